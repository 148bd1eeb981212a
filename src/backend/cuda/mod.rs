//! The CUDA backend: kernels compiled at run time, which read tables of what each row's adapters change.

pub mod device_image;
pub mod table_builder;
pub mod tables;
