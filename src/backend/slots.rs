//! The adapters that a backend computes with, by slot.

use std::any::Any;
use std::ops::Deref;
use std::sync::Arc;

use super::{MemoryUse, PreparedAdapter};
use crate::adapter::batch::SlotId;
use crate::error::{Error, ErrorCode, Result};

/// Adapters by the index of their slot, whose bytes are counted.
pub(crate) struct Slots<A> {
    adapters: Vec<Option<A>>,
    /// Bytes of the adapter in each slot.
    bytes: Vec<usize>,
    memory: Arc<MemoryUse>,
}

impl<A: Any> Slots<A> {
    /// No adapters yet.
    pub(crate) fn new(memory: Arc<MemoryUse>) -> Self {
        Self { adapters: Vec::new(), bytes: Vec::new(), memory }
    }

    /// Moves an adapter into a free slot.
    ///
    /// # Errors
    /// `internal` if the slot is taken, or another backend prepared the adapter.
    pub(crate) fn install(&mut self, slot: SlotId, adapter: PreparedAdapter) -> Result<()> {
        let index = slot.0 as usize;
        if self.get(index).is_some_and(Option::is_some) {
            return Err(Error::new(ErrorCode::Internal, format!("slot {index} is taken")));
        }
        let (bytes, adapter) = (adapter.bytes(), adapter.into_inner()?);
        if self.adapters.len() <= index {
            self.adapters.resize_with(index + 1, || None);
            self.bytes.resize(index + 1, 0);
        }
        self.adapters[index] = Some(*adapter);
        self.bytes[index] = bytes;
        self.memory.add_adapter(bytes);
        Ok(())
    }

    /// Empties a slot. An empty slot is ignored.
    pub(crate) fn remove(&mut self, slot: SlotId) {
        let index = slot.0 as usize;
        if self.adapters.get_mut(index).and_then(Option::take).is_some() {
            self.memory.remove_adapter(self.bytes[index]);
        }
    }
}

impl<A> Deref for Slots<A> {
    type Target = [Option<A>];

    fn deref(&self) -> &Self::Target {
        &self.adapters
    }
}
