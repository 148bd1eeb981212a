//! From a kernel's source to code that the driver loads: NVRTC, where to find it, and a cache of what it compiled.

pub mod cache;
pub mod locate;
pub mod sources;

mod compile;
mod includes;
mod nvrtc;
mod target;

pub use self::compile::{Compiler, Image, compiler};
pub use self::nvrtc::Nvrtc;
pub use self::target::{Code, Target};
