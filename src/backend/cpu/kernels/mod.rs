//! What computes on one thread: pure functions over slices, compiled for each instruction set. Kernels know neither the
//! thread pool nor adapters.

pub(crate) mod activate;
pub(crate) mod attend;
pub(crate) mod dequantize;
pub(crate) mod digits;
pub(crate) mod dispatch;
pub(crate) mod int8;
pub(crate) mod integers;
pub(crate) mod isa;
pub(crate) mod kv_format;
pub(crate) mod rowwise;
pub(crate) mod tile;
pub(crate) mod vector;
#[cfg(target_arch = "x86_64")]
mod x86;
#[cfg(target_arch = "x86_64")]
mod x86_integers;
