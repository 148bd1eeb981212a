//! The CUDA driver: a device and its streams, its memory, copies to it, modules of kernels and their launches.
//!
//! One stream orders all steps, another copies adapters meanwhile. Calls may come from any thread.

mod arena;
mod device;
mod error;
mod launch;
mod library;
mod memory;
mod module;
mod staging;

pub use self::arena::{Arena, ArenaSize};
pub use self::device::{Device, DeviceProperties, DryRun, Stream};
pub use self::launch::Arguments;
pub use self::library::{DriverVersion, count, probe};
pub use self::memory::DeviceMemory;
pub use self::module::{Kernel, Module};
pub use self::staging::StagingBuffers;
