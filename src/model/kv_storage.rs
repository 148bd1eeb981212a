//! Storage of a KV cache in a model's backend.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::backend::{KvId, KvShape};
use crate::error::Result;
use crate::model::core::Core;

/// KV pages in a model's backend, freed when dropped.
pub struct KvStorage {
    core: Arc<Mutex<Core>>,
    id: KvId,
    shape: KvShape,
}

impl KvStorage {
    pub(super) fn new(core: &Arc<Mutex<Core>>, shape: KvShape) -> Result<Self> {
        let id = core.lock().compute.create_kv(shape)?;
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
        self.core.lock().compute.drop_kv(self.id);
    }
}
