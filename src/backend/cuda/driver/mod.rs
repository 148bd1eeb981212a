//! The CUDA driver: a device with one stream, its memory, modules of kernels and their launches.
//!
//! All work of a device is ordered by its one stream. Calls may come from any thread.

mod device;
mod error;
mod launch;
mod library;
mod memory;
mod module;

pub use self::device::{Device, DeviceProperties};
pub use self::launch::Arguments;
pub use self::library::{DriverVersion, count, probe};
pub use self::memory::DeviceMemory;
pub use self::module::{Kernel, Module};
