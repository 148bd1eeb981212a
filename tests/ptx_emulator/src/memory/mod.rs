//! Memory of the device and of a block, with what the checks know about each byte: is it addressable, has it been written, who
//! accessed it last.

mod address;
mod device;
mod races;
mod shadow;
mod shared;

pub(crate) use address::resolve_generic;
pub use address::{SHARED_BASE, generic_window};
pub(crate) use device::SECTOR_BYTES;
pub use device::{Allocation, DeviceMemory};
pub(crate) use races::{Accessor, Conflict};
pub(crate) use shadow::{IN_FLIGHT, State, all_bytes};
pub(crate) use shared::{SharedMemory, describe as describe_shared};
