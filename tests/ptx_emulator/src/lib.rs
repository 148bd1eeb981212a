//! Executes the PTX of CUDA kernels on the CPU, with checks that a card does not make. For tests only.
pub mod alu;
pub mod exec;
pub mod ir;
pub mod lower;
pub mod mem;
pub mod num;
pub mod parse;
