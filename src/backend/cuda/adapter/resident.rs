//! A prepared adapter: its memory on the device, and what the host must know of it to launch kernels.

use crate::backend::cuda::driver::DeviceMemory;
use crate::backend::cuda::tables::{Slot, SlotGroup};

/// An adapter whose memory begins with its [`SlotGroup`]s.
pub(crate) struct Adapter {
    memory: DeviceMemory,
    /// As on the device: the groups of the model, once for each repeat of a layer.
    groups: Vec<SlotGroup>,
}

impl Adapter {
    /// An adapter that was copied to the device.
    pub(super) fn new(memory: DeviceMemory, groups: Vec<SlotGroup>) -> Self {
        Self { memory, groups }
    }

    /// As a step's tables name it; the segment is still 0.
    pub(crate) fn slot(&self) -> Slot {
        Slot { groups: self.memory.address(), count: self.groups.len() as u32, segment: 0 }
    }

    /// What it changes at a group of the model in some repeat of its layer, counted as kernels do.
    pub(crate) fn group(&self, index: usize) -> Option<&SlotGroup> {
        self.groups.get(index)
    }

    /// Bytes it occupies on the device.
    pub(crate) fn bytes(&self) -> usize {
        self.memory.len()
    }
}
