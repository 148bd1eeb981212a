//! The CUDA backend: kernels compiled at run time by NVRTC and launched through cudarc, which read tables of what each row's
//! adapters change.
//!
//! Nothing of CUDA is needed to build or to start exlora. Driver and compiler are looked for when a device is opened, and what
//! is missing then is named by a `cuda_unavailable` error.

mod adapter;
mod buffers;
mod builder;
pub mod compiler;
mod compute;
pub mod device_image;
pub mod driver;
mod kernels;
mod kv_cache;
pub mod layout;
pub mod ops;
mod preparer;
mod step;
pub mod table_builder;
pub mod tables;
mod weights;

pub use self::builder::{CudaOptions, open};
