//! Keys and values of one cache on the device.

use std::ops::Range;
use std::sync::Arc;

use super::driver::{Device, DeviceMemory};
use super::ops::kv_layout::{KvLayer, KvLayout, MAX_HEAD_DIM};
use crate::backend::kv_elements::{ElementPlaces, HeadSlot, KvPart};
use crate::backend::kv_positions::PositionCopy;
use crate::backend::kv_states::{HeadStates, KvStates, check_page_copy};
use crate::backend::{KvPositions, KvShape};
use crate::error::{Error, ErrorCode, Result};
use crate::tensor::zeros;

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

    /// See [`Compute::read_kv`](crate::backend::Compute::read_kv).
    pub(super) fn read(&self, layer: usize, block_table: &[u32], positions: Range<usize>) -> Result<KvStates> {
        let mut bytes = zeros::<u8>(self.layout.page_bytes())?;
        KvStates::read(&self.shape, layer, block_table, positions, |mut part| {
            self.memory.download(self.layout.page_byte(layer, part.page), &mut bytes)?;
            for HeadStates { slot, head, key, value } in part.heads() {
                self.layout.load(&bytes, KvPart::Key, HeadSlot { head, slot }, key);
                self.layout.load(&bytes, KvPart::Value, HeadSlot { head, slot }, value);
            }
            Ok(())
        })
    }

    /// Copies positions to those of another cache, or of this one. The host does it, a page after the other.
    ///
    /// # Errors
    /// As [`Compute::copy_kv_positions`](crate::backend::Compute::copy_kv_positions).
    pub(super) fn copy_positions(
        &self,
        layer: usize,
        from: KvPositions<'_>,
        to_cache: &Self,
        to: KvPositions<'_>,
        keys: Option<&[f32]>,
    ) -> Result<bool> {
        let copy = PositionCopy::read(layer, (&self.shape, from), (&to_cache.shape, to), keys, |page| {
            let mut bytes = zeros::<u8>(self.layout.page_bytes())?;
            self.memory.download(self.layout.page_byte(layer, page as usize), &mut bytes)?;
            Ok(bytes)
        })?;
        let (layout, mut fits) = (&to_cache.layout, true);
        let mut bytes = zeros::<u8>(layout.page_bytes())?;
        for (index, page) in copy.target_pages() {
            let page_byte = layout.page_byte(layer, page as usize);
            to_cache.memory.download(page_byte, &mut bytes)?;
            fits &= copy.write(layout, index, &mut bytes);
            to_cache.memory.upload(page_byte, &bytes)?;
        }
        Ok(fits)
    }

    /// Copies pages to those of another cache, or to others of this one, in the order of the steps.
    ///
    /// # Errors
    /// As [`Compute::copy_kv_pages`](crate::backend::Compute::copy_kv_pages).
    pub(super) fn copy_pages(&self, pages: &[u32], to: &Self, to_pages: &[u32]) -> Result<()> {
        check_page_copy((&self.shape, pages), (&to.shape, to_pages), std::ptr::eq(self, to))?;
        for layer in 0..self.shape.layers {
            for (&page, &to_page) in pages.iter().zip(to_pages) {
                let from_byte = self.layout.page_byte(layer, page as usize);
                let to_byte = to.layout.page_byte(layer, to_page as usize);
                to.memory.copy_from(to_byte, &self.memory, from_byte, self.layout.page_bytes())?;
            }
        }
        Ok(())
    }

    /// Bytes it occupies.
    pub(super) fn bytes(&self) -> usize {
        self.memory.len()
    }
}
