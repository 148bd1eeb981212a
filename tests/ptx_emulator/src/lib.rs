//! Executes the PTX of CUDA kernels on the CPU, with checks that a card does not make. For tests only.
pub mod arithmetic;
pub mod data_type;
pub mod exec;
pub mod instruction;
pub mod kernel;
pub mod lowering;
pub mod mem;
pub mod number;
pub mod parser;
