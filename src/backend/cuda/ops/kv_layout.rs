//! Where keys and values lie in a KV cache on the device; `cuda/kv_floats.cuh` and `cuda/kv_codes.cuh` draw it. Layers follow each
//! other.

use bytemuck::{Pod, Zeroable};

use crate::backend::cuda::compiler::sources::Define;
use crate::backend::kv_elements::{ElementPlaces, HeadSlot, KvPart};
use crate::backend::kv_quant::{SCALE_BYTES, group_width};
use crate::backend::{KvDType, KvShape};

/// Widest head that the kernels can compute.
pub const MAX_HEAD_DIM: usize = 256;
/// Bytes that lanes load at once: a head's scales, and its codes, are whole ones.
const VECTOR_BYTES: usize = 16;

/// One layer of a cache, for kernels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct KvLayer {
    /// The layer's first page.
    pub pages: u64,
    /// Positions of a page.
    pub page_tokens: u32,
    /// Key/value heads.
    pub kv_heads: u32,
}

/// What a kernel is compiled with to read or write a cache of that type.
pub fn defines(dtype: KvDType) -> &'static [Define] {
    match dtype {
        KvDType::F16 => &[],
        KvDType::F32 => &[("KV_F32", "1")],
        KvDType::Q8 => &[("KEY_BITS", "8"), ("VALUE_BITS", "8")],
        KvDType::Q6 => &[("KEY_BITS", "8"), ("VALUE_BITS", "4")],
        KvDType::Q4 => &[("KEY_BITS", "4"), ("VALUE_BITS", "4")],
    }
}

/// The layout of a cache of that shape.
#[derive(Clone, Copy, Debug)]
pub struct KvLayout {
    shape: KvShape,
}

impl KvLayout {
    /// Of a cache of that shape, which was checked.
    pub fn new(shape: KvShape) -> Self {
        Self { shape }
    }

    /// Bytes of the whole cache with its padding, or `None` on overflow.
    pub fn bytes(&self) -> Option<usize> {
        let page_bytes = self.head_bytes().into_iter().sum::<usize>().checked_mul(self.shape.kv_heads)?;
        page_bytes.checked_mul(self.shape.pages)?.checked_mul(self.shape.layers)
    }

    /// A layer of a cache that begins at that address.
    pub fn layer(&self, address: u64, layer: usize) -> KvLayer {
        KvLayer {
            pages: address + self.page_byte(layer, 0) as u64,
            page_tokens: self.shape.page_tokens as u32,
            kv_heads: self.shape.kv_heads as u32,
        }
    }

    /// Bit in a layer at which a channel of a key begins, at a position of a page: its float, or its code.
    pub fn key_bit(&self, page: usize, head: usize, position: usize, channel: usize) -> usize {
        let chunk_channels = self.chunk_channels();
        let chunk = channel / chunk_channels * self.shape.page_tokens + position;
        let element = chunk * chunk_channels + channel % chunk_channels;
        8 * (self.keys_of(page, head) + self.scale_bytes()) + element * self.element_bits()[0]
    }

    /// Bit in a layer at which a channel of a value begins, at a position of a page: its float, or its code.
    pub fn value_bit(&self, page: usize, head: usize, position: usize, channel: usize) -> usize {
        let element = position * self.padded_head_dim() + channel;
        8 * (self.values_of(page, head) + self.scale_bytes()) + element * self.element_bits()[1]
    }

    /// Byte in a layer at which the scale of a channel of a key begins, at a position of a page of codes.
    pub fn key_scale_byte(&self, page: usize, head: usize, position: usize, channel: usize) -> usize {
        let group = channel / self.group();
        self.keys_of(page, head) + (group * self.shape.page_tokens + position) * SCALE_BYTES
    }

    /// Byte in a layer at which the scale of a channel of a value begins, at a position of a page of codes.
    pub fn value_scale_byte(&self, page: usize, head: usize, position: usize, channel: usize) -> usize {
        let (groups, group) = (self.shape.head_dim / self.group(), channel / self.group());
        self.values_of(page, head) + (position * groups + group) * SCALE_BYTES
    }

    /// Byte in the cache at which a page of a layer begins; it has [`KvLayout::page_bytes`].
    pub fn page_byte(&self, layer: usize, page: usize) -> usize {
        (layer * self.shape.pages + page) * self.page_bytes()
    }

    /// Bytes of a page of one layer.
    pub fn page_bytes(&self) -> usize {
        self.shape.kv_heads * self.head_bytes().into_iter().sum::<usize>()
    }

    /// Byte in a layer at which the keys of a head in a page begin.
    fn keys_of(&self, page: usize, head: usize) -> usize {
        page * self.page_bytes() + head * self.head_bytes()[0]
    }

    /// Byte in a layer at which the values of a head in a page begin.
    fn values_of(&self, page: usize, head: usize) -> usize {
        self.keys_of(page, self.shape.kv_heads) + head * self.head_bytes()[1]
    }

    /// Bytes of the keys, and of the values, of a head in a page.
    fn head_bytes(&self) -> [usize; 2] {
        let elements = self.shape.page_tokens * self.padded_head_dim();
        self.element_bits().map(|bits| self.whole_vectors(elements * bits / 8) + self.scale_bytes())
    }

    /// Bytes of the scales of the keys, or of the values, of a head in a page.
    fn scale_bytes(&self) -> usize {
        match self.shape.dtype.code_bits() {
            Some(_) => self.whole_vectors(self.shape.head_dim / self.group() * self.shape.page_tokens * SCALE_BYTES),
            None => 0,
        }
    }

    /// Bytes up to the next whole vector, where elements are codes: chunks of floats are whole vectors.
    fn whole_vectors(&self, bytes: usize) -> usize {
        if self.shape.dtype.code_bits().is_some() { bytes.next_multiple_of(VECTOR_BYTES) } else { bytes }
    }

    /// Bits of a channel of a key, and of a value.
    fn element_bits(&self) -> [usize; 2] {
        self.shape.dtype.element_bits().map(|bits| bits as usize)
    }

    /// Channels that share a scale.
    fn group(&self) -> usize {
        group_width(self.shape.head_dim).unwrap_or(self.shape.head_dim)
    }

    /// Channels of a key that lie together.
    fn chunk_channels(&self) -> usize {
        if self.shape.dtype.code_bits().is_some() { 16 } else { 8 }
    }

    /// Channels of a head with its padding.
    fn padded_head_dim(&self) -> usize {
        self.shape.head_dim.next_multiple_of(self.chunk_channels())
    }
}

impl ElementPlaces for KvLayout {
    fn shape(&self) -> &KvShape {
        &self.shape
    }

    fn element_bit(&self, part: KvPart, HeadSlot { head, slot }: HeadSlot, channel: usize) -> usize {
        match part {
            KvPart::Key => self.key_bit(0, head, slot, channel),
            KvPart::Value => self.value_bit(0, head, slot, channel),
        }
    }

    fn scale_byte(&self, part: KvPart, HeadSlot { head, slot }: HeadSlot, channel: usize) -> usize {
        match part {
            KvPart::Key => self.key_scale_byte(0, head, slot, channel),
            KvPart::Value => self.value_scale_byte(0, head, slot, channel),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const SHAPE: KvShape =
        KvShape { layers: 2, pages: 3, page_tokens: 4, kv_heads: 2, head_dim: 12, dtype: KvDType::F16 };

    #[test]
    fn keys_and_values_of_a_layer_have_places_of_their_own() {
        let quantized = [KvDType::Q8, KvDType::Q6, KvDType::Q4];
        let shapes = quantized.map(|dtype| KvShape { page_tokens: 8, head_dim: 48, dtype, ..SHAPE });
        for shape in [SHAPE, KvShape { dtype: KvDType::F32, ..SHAPE }].into_iter().chain(shapes) {
            let layout = KvLayout::new(shape);
            let [key_bits, value_bits] = layout.element_bits();
            let mut bits = HashSet::new();
            let mut take = |first: usize, count: usize| (first..first + count).for_each(|bit| _ = bits.insert(bit));
            let mut taken = 0;
            for page in 0..shape.pages {
                for (head, position) in (0..2).flat_map(|head| (0..shape.page_tokens).map(move |slot| (head, slot))) {
                    for channel in 0..layout.padded_head_dim() {
                        take(layout.key_bit(page, head, position, channel), key_bits);
                        take(layout.value_bit(page, head, position, channel), value_bits);
                        taken += key_bits + value_bits;
                    }
                    for channel in (0..48).step_by(16).filter(|_| shape.dtype.code_bits().is_some()) {
                        take(8 * layout.key_scale_byte(page, head, position, channel), 16);
                        take(8 * layout.value_scale_byte(page, head, position, channel), 16);
                        taken += 32;
                    }
                }
            }
            let layer_bits = 8 * layout.bytes().unwrap() / shape.layers;
            assert_eq!((bits.len(), taken), (layer_bits, layer_bits), "{:?}: padding included", shape.dtype);
            assert_eq!(bits.into_iter().max(), Some(layer_bits - 1));
        }
    }

    #[test]
    fn layers_follow_each_other() {
        for dtype in KvDType::ALL {
            let layout = KvLayout::new(KvShape { head_dim: 16, dtype, ..SHAPE });
            let layer = layout.layer(4096, 1);
            assert_eq!(layer.pages - 4096, layout.bytes().unwrap() as u64 / 2);
            assert_eq!((layer.page_tokens, layer.kv_heads), (4, 2));
        }
    }

    #[test]
    fn pages_of_whole_vectors_have_the_bytes_of_their_shape() {
        for dtype in KvDType::ALL {
            for head_dim in [16, 64, 80, 128, 256] {
                let shape = KvShape { page_tokens: 32, head_dim, dtype, ..SHAPE };
                assert_eq!(KvLayout::new(shape).bytes(), shape.bytes(), "{} of {head_dim}", dtype.name());
            }
        }
    }
}
