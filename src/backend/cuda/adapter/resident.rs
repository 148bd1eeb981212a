//! A prepared adapter: its memory on the device, and what the host must know of it to launch kernels.

use super::slot_array::SlotArray;
use crate::backend::cuda::driver::DeviceMemory;
use crate::backend::cuda::tables::{Slot, SlotEmbedding, SlotGroup, SlotNorm};

/// An adapter, whose memory holds each of its arrays.
pub(crate) struct Adapter {
    memory: DeviceMemory,
    /// Where its arrays are on the device; the segment is 0.
    slot: Slot,
    /// As on the device: the groups, embeddings and norms of the model, once for each repeat of a layer.
    groups: Vec<SlotGroup>,
    embeddings: Vec<SlotEmbedding>,
    norms: Vec<SlotNorm>,
}

impl Adapter {
    /// An adapter that was copied to the device.
    pub(super) fn new(
        memory: DeviceMemory,
        groups: SlotArray<SlotGroup>,
        embeddings: SlotArray<SlotEmbedding>,
        norms: SlotArray<SlotNorm>,
    ) -> Self {
        let address = |offset: usize| memory.address() + offset as u64;
        let addresses = [groups.offset(), embeddings.offset(), norms.offset()].map(address);
        let (groups, embeddings, norms) = (groups.into_values(), embeddings.into_values(), norms.into_values());
        let slot = Slot {
            groups: addresses[0],
            embeddings: addresses[1],
            norms: addresses[2],
            group_count: groups.len() as u32,
            embedding_count: embeddings.len() as u32,
            norm_count: norms.len() as u32,
            segment: 0,
        };
        Self { memory, slot, groups, embeddings, norms }
    }

    /// As a step's tables name it; the segment is still 0.
    pub(crate) fn slot(&self) -> Slot {
        self.slot
    }

    /// What it changes at a group of the model in some repeat of its layer, counted as kernels do.
    pub(crate) fn group(&self, index: usize) -> Option<&SlotGroup> {
        self.groups.get(index)
    }

    /// Rows of its largest stack.
    pub(crate) fn largest_stack(&self) -> usize {
        self.groups.iter().map(|group| group.stack_rows as usize).max().unwrap_or(0)
    }

    /// Size of the vocabulary, if it replaces the table of an embedding, counted in the same way.
    pub(crate) fn tokens(&self, index: usize) -> Option<usize> {
        self.embeddings.get(index).filter(|embedding| embedding.table.values != 0).map(|it| it.table.rows as usize)
    }

    /// Whether it replaces the weight of a norm, counted in the same way.
    pub(crate) fn replaces_norm(&self, index: usize) -> bool {
        self.norms.get(index).is_some_and(|norm| norm.weight != 0)
    }

    /// Bytes it occupies on the device.
    pub(crate) fn bytes(&self) -> usize {
        self.memory.len()
    }
}
