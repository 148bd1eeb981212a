//! Executes the PTX of CUDA kernels on the CPU, with checks that a card does not make. For tests only.
pub mod arithmetic;
pub mod counters;
pub mod data_type;
pub mod execution;
pub mod instruction;
pub mod kernel;
pub mod lowering;
pub mod memory;
pub mod number;
pub mod parser;
pub mod report;
