//! Pages of keys and values.

use std::ops::Range;

use super::arena::Region;
use super::kv_layout::PageLayout;
use crate::backend::cpu::kernels::kv_format::View;
use crate::backend::kv_elements::{ElementPlaces, HeadSlot, KvPart};
use crate::backend::kv_positions::PositionCopy;
use crate::backend::kv_states::{HeadStates, KvStates, check_page_copy};
use crate::backend::{AttentionSpec, KvShape};
use crate::error::{Error, ErrorCode, Result};
use crate::tensor::zeros;

/// Pages of keys and values.
pub(crate) struct KvCache {
    layout: PageLayout,
    region: Region,
}

impl KvCache {
    /// Pages of that shape, untouched.
    ///
    /// # Errors
    /// `memory_exhausted`; as [`KvShape::check`].
    pub(crate) fn new(shape: KvShape) -> Result<Self> {
        shape.check()?;
        let exhausted = || Error::new(ErrorCode::MemoryExhausted, "the KV cache exceeds the address space");
        let layout = PageLayout::new(shape).ok_or_else(exhausted)?;
        Ok(Self { layout, region: Region::new(layout.bytes().ok_or_else(exhausted)?)? })
    }

    /// The layout of its pages.
    pub(crate) fn layout(&self) -> PageLayout {
        self.layout
    }

    /// All its bytes, page after page.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        self.region.values_mut()
    }

    /// The keys and values of a key/value head in the pages of a sequence.
    pub(crate) fn view<'a>(&'a self, spec: &AttentionSpec, kv_head: usize, block_table: &'a [u32]) -> View<'a> {
        let layout = &self.layout;
        View {
            cache: self.region.values(),
            page_bytes: layout.page_bytes(),
            page_tokens: layout.shape.page_tokens,
            head_dim: layout.shape.head_dim,
            value_stride: layout.value_stride,
            keys: layout.keys_of(spec.layer, kv_head),
            key_head: layout.key_head,
            values: layout.values_of(spec.layer, kv_head),
            value_head: layout.value_head,
            group_shift: layout.group.max(1).ilog2(),
            key_codes: layout.key_codes,
            value_codes: layout.value_codes,
            block_table,
            scale: spec.scale,
            score_cap: spec.score_cap,
        }
    }

    /// See [`Compute::read_kv`](crate::backend::Compute::read_kv).
    pub(crate) fn read(&self, layer: usize, block_table: &[u32], positions: Range<usize>) -> Result<KvStates> {
        let (layout, bytes) = (&self.layout, self.region.values::<u8>());
        KvStates::read(&layout.shape, layer, block_table, positions, |mut part| {
            let page = &bytes[layout.layer_page(layer, part.page as u32)];
            for HeadStates { slot, head, key, value } in part.heads() {
                layout.load(page, KvPart::Key, HeadSlot { head, slot }, key);
                layout.load(page, KvPart::Value, HeadSlot { head, slot }, value);
            }
            Ok(())
        })
    }

    /// A copy of the bytes that a page has in a layer.
    ///
    /// # Errors
    /// `memory_exhausted`.
    pub(crate) fn layer_page(&self, layer: usize, page: u32) -> Result<Vec<u8>> {
        let bytes = &self.region.values::<u8>()[self.layout.layer_page(layer, page)];
        let mut copy = zeros(bytes.len())?;
        copy.copy_from_slice(bytes);
        Ok(copy)
    }

    /// Writes positions of a layer; returns whether all finite keys are finite as stored.
    pub(crate) fn write_positions(&mut self, layer: usize, copy: &PositionCopy<'_>) -> bool {
        let (layout, bytes) = (self.layout, self.region.values_mut::<u8>());
        let write = |(index, page)| copy.write(&layout, index, &mut bytes[layout.layer_page(layer, page)]);
        // All are written, whatever becomes of one.
        copy.target_pages().map(write).filter(|fits| !fits).count() == 0
    }

    /// Overwrites pages by those of another cache.
    ///
    /// # Errors
    /// `internal` if the caches or pages do not fit each other.
    pub(crate) fn copy_pages(&mut self, to_pages: &[u32], from: &Self, from_pages: &[u32]) -> Result<()> {
        check_page_copy((&from.layout.shape, from_pages), (&self.layout.shape, to_pages), false)?;
        let (bytes, source) = (self.region.values_mut::<u8>(), from.region.values::<u8>());
        for (&from, &to) in from_pages.iter().zip(to_pages) {
            let [from, to] = [from, to].map(|page| self.layout.page(page));
            bytes[to].copy_from_slice(&source[from]);
        }
        Ok(())
    }

    /// Overwrites pages by others of the same cache.
    ///
    /// # Errors
    /// As [`KvCache::copy_pages`]; `internal` if a page is both read and written.
    pub(crate) fn copy_pages_within(&mut self, to_pages: &[u32], from_pages: &[u32]) -> Result<()> {
        let shape = &self.layout.shape;
        check_page_copy((shape, from_pages), (shape, to_pages), true)?;
        let bytes = self.region.values_mut::<u8>();
        for (&from, &to) in from_pages.iter().zip(to_pages) {
            let [from, to] = [from, to].map(|page| self.layout.page(page));
            bytes.copy_within(from, to.start);
        }
        Ok(())
    }

    /// Bytes it occupies once every page was used.
    pub(crate) fn bytes(&self) -> usize {
        self.region.len()
    }
}
