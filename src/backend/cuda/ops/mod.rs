//! Kernels by family: the argument of each, how many blocks it is launched with, and the launch.
//!
//! Every argument struct has the fields of its twin in `cuda/`, where shapes and formulas are told; addresses are those of device
//! memory. Grids end with rows, and kernels loop over the rows beyond their grid.

pub mod linear;
pub mod repack;
