//! One allocation for all that is needed together and whose size is known before.

use std::sync::Arc;

use super::device::Device;
use super::memory::DeviceMemory;
use crate::error::Result;

/// Alignment of every part, in bytes: that of an allocation.
const ALIGNMENT: usize = 256;

/// Bytes of the parts that an arena will be asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct ArenaSize {
    bytes: usize,
}

impl ArenaSize {
    /// Adds a part.
    pub fn add(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes.saturating_add(ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
    }

    /// Bytes of all parts, with what aligns them.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// An allocation that is handed out in parts and freed with the last of them.
#[derive(Debug)]
pub struct Arena {
    device: Arc<Device>,
    block: DeviceMemory,
    /// Bytes handed out.
    used: usize,
}

impl Arena {
    /// Allocates room for parts of that size.
    ///
    /// # Errors
    /// As [`Device::allocate`].
    pub fn new(device: &Arc<Device>, size: ArenaSize) -> Result<Self> {
        Ok(Self { device: Arc::clone(device), block: device.allocate(size.bytes())?, used: 0 })
    }

    /// The next part, aligned to 256 bytes. What was not part of the size gets an allocation of its own.
    ///
    /// # Errors
    /// As [`Device::allocate`].
    pub fn take(&mut self, bytes: usize) -> Result<DeviceMemory> {
        if bytes > self.block.len() - self.used {
            return self.device.allocate(bytes);
        }
        let part = self.block.part(self.used, bytes)?;
        self.used = (self.used + bytes).next_multiple_of(ALIGNMENT).min(self.block.len());
        Ok(part)
    }
}
