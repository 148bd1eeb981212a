//! Pages of keys and values.
//!
//! A page holds, for each layer and key/value head, keys in tiles of 16 positions `[tile][channel][16]`, so that lanes
//! are positions and a score needs no sum across lanes, and values `[position][channel]`, so that lanes are channels.
//!
//! ```text
//! page    [layer][ keys of head 0.. | values of head 0.. ]
//! ```

use bytemuck::Pod;
use half::f16;

use super::arena::Region;
use crate::backend::cpu::kernels::attend::View;
use crate::backend::cpu::kernels::vector::LANES;
use crate::backend::{AttentionSpec, KvShape};
use crate::error::{Error, ErrorCode, Result};

/// The layout of a page, in elements.
#[derive(Clone, Copy)]
pub(crate) struct PageLayout {
    pub(crate) shape: KvShape,
    /// Elements of a head's keys in a page: whole tiles.
    pub(crate) key_head: usize,
    /// Elements from one position's values to the next: whole vectors.
    pub(crate) value_stride: usize,
}

/// Pages of keys and values.
pub(crate) struct KvCache {
    layout: PageLayout,
    region: Region,
}

impl KvCache {
    /// Pages of that shape, untouched.
    ///
    /// # Errors
    /// `memory_exhausted`.
    pub(crate) fn new(shape: KvShape) -> Result<Self> {
        let exhausted = || Error::new(ErrorCode::MemoryExhausted, "the KV cache exceeds the address space");
        let round = |n: usize| n.checked_next_multiple_of(LANES).ok_or_else(exhausted);
        let value_stride = round(shape.head_dim)?;
        let key_head = round(shape.page_tokens)?.checked_mul(shape.head_dim).ok_or_else(exhausted)?;
        let value_head = shape.page_tokens.checked_mul(value_stride).ok_or_else(exhausted)?;
        let bytes = [shape.kv_heads, shape.layers, shape.pages, shape.dtype.bytes()]
            .into_iter()
            .try_fold(key_head.checked_add(value_head).ok_or_else(exhausted)?, usize::checked_mul)
            .ok_or_else(exhausted)?;
        Ok(Self { layout: PageLayout { shape, key_head, value_stride }, region: Region::new(bytes)? })
    }

    /// The layout of its pages.
    pub(crate) fn layout(&self) -> PageLayout {
        self.layout
    }

    /// All its elements, page after page.
    pub(crate) fn elements_mut<T: Stored>(&mut self) -> &mut [T] {
        self.region.values_mut()
    }

    /// The keys and values of a key/value head in the pages of a sequence.
    pub(crate) fn view<'a>(&'a self, spec: &AttentionSpec, kv_head: usize, block_table: &'a [u32]) -> View<'a> {
        let layout = &self.layout;
        View {
            cache: self.region.values(),
            page_elements: layout.page_elements(),
            page_tokens: layout.shape.page_tokens,
            head_dim: layout.shape.head_dim,
            value_stride: layout.value_stride,
            keys: layout.keys_of(spec.layer, kv_head),
            values: layout.values_of(spec.layer, kv_head),
            block_table,
            scale: spec.scale,
        }
    }

    /// Bytes it occupies once every page was used.
    pub(crate) fn bytes(&self) -> usize {
        self.region.len()
    }
}

impl PageLayout {
    /// Elements of a head's values in a page.
    pub(crate) fn value_head(&self) -> usize {
        self.shape.page_tokens * self.value_stride
    }

    /// Elements of a page.
    pub(crate) fn page_elements(&self) -> usize {
        self.shape.layers * self.shape.kv_heads * (self.key_head + self.value_head())
    }

    /// First element of a head's keys in page 0.
    pub(crate) fn keys_of(&self, layer: usize, head: usize) -> usize {
        layer * self.shape.kv_heads * (self.key_head + self.value_head()) + head * self.key_head
    }

    /// First element of a head's values in page 0.
    pub(crate) fn values_of(&self, layer: usize, head: usize) -> usize {
        self.keys_of(layer, self.shape.kv_heads) + head * self.value_head()
    }
}

/// An element as the cache stores it.
pub(crate) trait Stored: Pod + Send {
    const NAN: Self;

    /// The element nearest to a value; `None` if that is not finite.
    fn of(value: f32) -> Option<Self>;
}

impl Stored for u16 {
    const NAN: Self = f16::NAN.to_bits();

    #[inline]
    fn of(value: f32) -> Option<Self> {
        let half = f16::from_f32(value);
        half.is_finite().then_some(half.to_bits())
    }
}

impl Stored for f32 {
    const NAN: Self = f32::NAN;

    #[inline]
    fn of(value: f32) -> Option<Self> {
        value.is_finite().then_some(value)
    }
}
