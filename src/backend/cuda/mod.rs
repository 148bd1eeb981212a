//! The CUDA backend: kernels compiled at run time by NVRTC and launched through cudarc, which read tables of what each row's
//! adapters change.
//!
//! Nothing of CUDA is needed to build or to start exlora. Driver and compiler are looked for when a device is opened, and what
//! is missing then is named by a `cuda_unavailable` error.

pub mod compiler;
pub mod device_image;
pub mod driver;
pub mod layout;
pub mod ops;
pub mod table_builder;
pub mod tables;
