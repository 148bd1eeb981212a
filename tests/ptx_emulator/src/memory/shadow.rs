//! The state of each byte of memory, kept in a shadow byte.

/// Bit of a shadow byte: the byte belongs to an allocation or variable.
pub(crate) const ADDRESSABLE: u8 = 1;
/// Bit of a shadow byte: somebody has written the byte.
pub(crate) const WRITTEN: u8 = 2;
/// Bit of a shadow byte: an asynchronous copy into the byte is in flight.
pub(crate) const IN_FLIGHT: u8 = 4;

/// The state of a byte.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum State {
    Unaddressable = 0,
    Unwritten = ADDRESSABLE,
    Written = ADDRESSABLE | WRITTEN,
    InFlight = ADDRESSABLE | IN_FLIGHT,
}

/// What the bytes' states must be for a read, where memory never written is an error or is not.
const READABLE: [(u8, u8); 2] =
    [(ADDRESSABLE | IN_FLIGHT, ADDRESSABLE), (ADDRESSABLE | WRITTEN | IN_FLIGHT, ADDRESSABLE | WRITTEN)];

/// Whether all bytes with these states may be accessed. `needs_written`: they are read, and must have been written.
#[inline(always)]
pub(crate) fn all_bytes(states: &[u8], needs_written: bool) -> bool {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let (mask, expected) = READABLE[usize::from(needs_written)];
    let eight = |bytes: [u8; 8]| u64::from_le_bytes(bytes) & (u64::from(mask) * EACH) == u64::from(expected) * EACH;
    // The usual sizes take one or two comparisons.
    if let &[a, b, c, d] = states {
        return u32::from_le_bytes([a, b, c, d]) & (u32::from(mask) * EACH as u32) == u32::from(expected) * EACH as u32;
    }
    let (chunks, rest) = states.as_chunks::<8>();
    chunks.iter().all(|&chunk| eight(chunk)) && rest.iter().all(|state| state & mask == expected)
}
