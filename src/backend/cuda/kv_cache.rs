//! Keys and values of one cache on the device.

use std::sync::Arc;

use super::driver::{Device, DeviceMemory};
use super::ops::kv_layout::{KvLayer, KvLayout, MAX_HEAD_DIM};
use crate::backend::KvShape;
use crate::error::{Error, ErrorCode, Result};

/// One cache, whose content is undefined until written.
pub(super) struct KvCache {
    /// Its size.
    pub(super) shape: KvShape,
    layout: KvLayout,
    memory: DeviceMemory,
}

impl KvCache {
    /// Allocates a cache.
    ///
    /// # Errors
    /// `memory_exhausted`; `model_feature_unsupported` for heads that the kernels cannot compute; as [`KvShape::check`].
    pub(super) fn new(device: &Arc<Device>, shape: KvShape) -> Result<Self> {
        shape.check()?;
        if shape.head_dim > MAX_HEAD_DIM {
            return Err(Error::new(ErrorCode::ModelFeatureUnsupported, "the model's heads are too wide for CUDA")
                .with_expected(format!("at most {MAX_HEAD_DIM} channels"))
                .with_found(shape.head_dim));
        }
        let layout = KvLayout::new(shape);
        let too_large = || Error::new(ErrorCode::MemoryExhausted, "the KV cache exceeds the address space");
        let memory = device.allocate(layout.bytes().ok_or_else(too_large)?)?;
        Ok(Self { shape, layout, memory })
    }

    /// A layer, for kernels.
    pub(super) fn layer(&self, layer: usize) -> KvLayer {
        self.layout.layer(self.memory.address(), layer)
    }

    /// Bytes it occupies.
    pub(super) fn bytes(&self) -> usize {
        self.memory.len()
    }
}
