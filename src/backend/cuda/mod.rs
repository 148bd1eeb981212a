//! The CUDA backend: kernels compiled at run time by NVRTC and launched through cudarc.

pub mod device_image;
pub mod layout;
pub mod table_builder;
pub mod tables;
