//! Where the base's weights go while a model loads: one allocation of device memory, filled through pinned host memory.

use crate::backend::cuda::driver::{Arena, DeviceMemory};
use crate::backend::cuda::layout::WeightLayout;
use crate::backend::cuda::ops::repack::Repacker;
use crate::error::Result;
use crate::quant::StoredWeight;

/// Places weights on the device. What it copies is there when the device has been waited for.
pub(crate) struct Placer {
    arena: Arena,
    repacker: Repacker,
}

impl Placer {
    /// Into that memory.
    pub(crate) fn new(arena: Arena, repacker: Repacker) -> Self {
        Self { arena, repacker }
    }

    /// Memory for a weight.
    ///
    /// # Errors
    /// `memory_exhausted`.
    pub(super) fn take(&mut self, bytes: usize) -> Result<DeviceMemory> {
        self.arena.take(bytes)
    }

    /// Copies bytes into memory of a weight.
    ///
    /// # Errors
    /// `internal` if they exceed the memory; the device failed.
    pub(super) fn upload(&mut self, memory: &DeviceMemory, offset: usize, bytes: &[u8]) -> Result<()> {
        self.repacker.upload(memory, offset, bytes)
    }

    /// Copies bytes into memory of their own.
    ///
    /// # Errors
    /// `memory_exhausted`; the device failed.
    pub(super) fn place(&mut self, bytes: &[u8]) -> Result<DeviceMemory> {
        let memory = self.take(bytes.len())?;
        self.upload(&memory, 0, bytes)?;
        Ok(memory)
    }

    /// Packs a weight into memory that begins at an address.
    ///
    /// # Errors
    /// As [`Repacker::repack`].
    pub(super) fn repack(&mut self, layout: &WeightLayout, weight: &StoredWeight<'_>, strips: u64) -> Result<()> {
        self.repacker.repack(layout, weight, strips)
    }
}
