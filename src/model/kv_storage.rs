//! Storage of a KV cache in a model's backend.

use std::ops::Range;
use std::sync::Arc;

use crate::backend::{KvId, KvShape, KvStates};
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
        if !Arc::ptr_eq(&self.core, &to.core) {
            return Err(Error::new(ErrorCode::Internal, "pages are copied from one model's KV cache to another's"));
        }
        self.core.lock()?.compute.copy_kv_pages(self.id, pages, to.id, to_pages)
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
