//! The CUDA driver API over an emulated device: what cudarc and NVRTC call, with the codes that the real driver answers with.
//!
//! Kernels are executed on the CPU from their PTX, with checks (`exlora-ptx-emulator`). Work runs when it is submitted, or with
//! `EMULATED_CUDA_STREAMS=lazy` when it is waited for. As with the real driver, a fault of a kernel breaks the context;
//! `cuGetErrorString` then says all that is known about it. Graphs, memory pools and cooperative launches are not supported.
//! See [`settings`] for the environment variables, [`control`] for functions beyond the CUDA API.
#![allow(unsafe_code, reason = "a C interface: exported names, pointers of callers")]
#![allow(non_snake_case, reason = "functions are named as in cuda.h")]

pub mod context;
pub mod control;
mod cubin;
pub mod device;
mod driver;
pub mod errors;
pub mod event;
pub mod export_table;
pub mod function;
pub mod launch;
pub mod memory;
pub mod module;
pub mod settings;
pub mod stream;
pub mod unsupported;

pub use driver::{Out, Text};
