//! Pages of keys and values.

use super::arena::Region;
use super::kv_layout::PageLayout;
use crate::backend::cpu::kernels::kv_format::View;
use crate::backend::{AttentionSpec, KvShape};
use crate::error::{Error, ErrorCode, Result};

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

    /// Bytes it occupies once every page was used.
    pub(crate) fn bytes(&self) -> usize {
        self.region.len()
    }
}
