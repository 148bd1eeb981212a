//! Storage of a KV cache in a model's backend.

use std::sync::Arc;

use crate::backend::{KvId, KvShape};
use crate::error::Result;
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
