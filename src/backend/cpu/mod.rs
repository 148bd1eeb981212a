//! The CPU backend. SKELETON

use crate::backend::Backend;
use crate::error::Result;

/// Options of the CPU backend.
#[derive(Clone, Debug, Default)]
pub struct CpuOptions {
    /// Worker threads; all physical cores that may be used by default.
    pub threads: Option<usize>,
    /// Plain f32 maths of `reference.rs` instead of the fast paths: the oracle.
    pub reference: bool,
}

/// The CPU as a backend.
///
/// # Errors
/// Thread creation failed.
pub fn open(_options: &CpuOptions) -> Result<Box<dyn Backend>> {
    todo!()
}
