//! Faults of a kernel.

/// What a kernel did wrong, as the driver's error codes tell faults apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// An address outside every allocation or variable.
    IllegalAddress,
    /// An address that is no multiple of the access's size.
    MisalignedAddress,
    /// An operand that the instruction does not allow.
    IllegalInstruction,
    /// A failed `assert`.
    Assert,
    /// More instructions than the limit: an endless loop.
    Timeout,
    /// All that a card does not notice: races, memory never written, divergence, deadlocks.
    LaunchFailed,
}

/// Why a kernel stopped.
#[derive(Clone, Debug)]
pub struct Fault {
    /// What kind of fault it is.
    pub kind: FaultKind,
    /// What happened, in which kernel, block and thread, at which instruction and source line.
    pub message: String,
}
