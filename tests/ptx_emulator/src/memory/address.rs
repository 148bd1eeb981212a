//! Where the state spaces lie among generic addresses.
use crate::instruction::StateSpace;

/// Address of the first byte of a block's shared memory, so that an offset from a null pointer is out of bounds.
pub const SHARED_BASE: u32 = 1024;

const SHARED_WINDOW: u64 = 0x7d01_0100_0000;
const LOCAL_WINDOW: u64 = 0x7d02_0300_0000;
const PARAMETER_WINDOW: u64 = 0x7d03_0500_0000;
const WINDOW_BYTES: u64 = 1 << 24;

/// What is added to an address of the state space to make it generic.
pub fn generic_window(space: StateSpace) -> u64 {
    match space {
        StateSpace::Shared => SHARED_WINDOW,
        StateSpace::Local => LOCAL_WINDOW,
        StateSpace::Param => PARAMETER_WINDOW,
        StateSpace::Generic | StateSpace::Global | StateSpace::Const => 0,
    }
}

/// The state space of a generic address, and the address in it.
#[inline(always)]
pub(crate) fn resolve_generic(address: u64) -> (StateSpace, u64) {
    for (space, window) in
        [(StateSpace::Shared, SHARED_WINDOW), (StateSpace::Local, LOCAL_WINDOW), (StateSpace::Param, PARAMETER_WINDOW)]
    {
        if address.wrapping_sub(window) < WINDOW_BYTES {
            return (space, address - window);
        }
    }
    (StateSpace::Global, address)
}
