//! Storage of a KV cache in a model's backend.

use std::ops::Range;
use std::sync::Arc;

use crate::backend::{KvId, KvPositions, KvShape, KvStates};
use crate::error::{Error, ErrorCode, Result};
use crate::fork_safe_mutex::ForkSafeMutex;
use crate::model::core::Core;

/// KV pages in a model's backend, freed when dropped.
pub struct KvStorage {
    core: Arc<ForkSafeMutex<Core>>,
    id: KvId,
    shape: KvShape,
}

impl KvStorage {
    pub(super) fn new(core: &Arc<ForkSafeMutex<Core>>, shape: KvShape) -> Result<Self> {
        let id = core.lock()?.compute.create_kv(shape)?;
        Ok(Self { core: Arc::clone(core), id, shape })
    }

    /// Its size.
    pub fn shape(&self) -> &KvShape {
        &self.shape
    }

    /// Keys and values of some positions of a layer of the sequence that has those pages. What was not computed is undefined.
    ///
    /// # Errors
    /// `internal` if they do not lie within it; `memory_exhausted`; `forked_while_in_use`; the device failed.
    pub(crate) fn read(&self, layer: usize, block_table: &[u32], positions: Range<usize>) -> Result<KvStates> {
        self.core.lock()?.compute.read_kv(self.id, layer, block_table, positions)
    }

    /// Copies pages to those of another storage of the same model and element type, or to other pages of this one.
    ///
    /// # Errors
    /// `internal` if storages or pages do not fit each other; `forked_while_in_use`; the device failed.
    pub(crate) fn copy_pages(&self, pages: &[u32], to: &Self, to_pages: &[u32]) -> Result<()> {
        self.core_shared_with(to)?.lock()?.compute.copy_kv_pages(self.id, pages, to.id, to_pages)
    }

    /// Copies positions of a layer to others, of this storage or another one of the same model and element type. Each is named
    /// with the pages of its sequence; `keys` `[positions, kv_heads, head_dim]` take the place of those that are copied. Returns
    /// whether all of them fit the element type.
    ///
    /// # Errors
    /// `internal` if storages, positions or keys do not fit each other; `memory_exhausted`; `forked_while_in_use`; the device
    /// failed.
    pub(crate) fn copy_positions(
        &self,
        layer: usize,
        (block_table, positions): (&[u32], Range<usize>),
        to: &Self,
        (to_table, to_positions): (&[u32], Range<usize>),
        keys: Option<&[f32]>,
    ) -> Result<bool> {
        let from = KvPositions { kv: self.id, block_table, positions };
        let target = KvPositions { kv: to.id, block_table: to_table, positions: to_positions };
        self.core_shared_with(to)?.lock()?.compute.copy_kv_positions(layer, from, target, keys)
    }

    /// The core that this storage and another one are in.
    fn core_shared_with(&self, other: &Self) -> Result<&ForkSafeMutex<Core>> {
        if Arc::ptr_eq(&self.core, &other.core) {
            return Ok(&self.core);
        }
        Err(Error::new(ErrorCode::Internal, "keys and values are copied from one model's KV cache to another's"))
    }

    pub(super) fn id(&self) -> KvId {
        self.id
    }
}

impl Drop for KvStorage {
    fn drop(&mut self) {
        // In a forked child whose lock is lost, so is the storage.
        if let Ok(mut core) = self.core.lock() {
            core.compute.drop_kv(self.id);
        }
    }
}
