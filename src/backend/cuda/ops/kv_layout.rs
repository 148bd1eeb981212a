//! Where keys and values lie in a KV cache on the device; `cuda/kv_cache.cuh` draws it. Layers follow each other.

use bytemuck::{Pod, Zeroable};

use crate::backend::KvShape;

/// Widest head that the kernels can compute.
pub const MAX_HEAD_DIM: usize = 256;
/// Channels of a key that lie together; heads are padded to a multiple of them.
const KEY_CHANNELS: usize = 8;

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

/// The layout of a cache of that shape.
#[derive(Clone, Copy, Debug)]
pub struct KvLayout {
    shape: KvShape,
}

impl KvLayout {
    /// Of a cache of that shape.
    pub fn new(shape: KvShape) -> Self {
        Self { shape }
    }

    /// Bytes of the whole cache with the heads' padding, or `None` on overflow.
    pub fn bytes(&self) -> Option<usize> {
        KvShape { head_dim: self.padded_head_dim(), ..self.shape }.bytes()
    }

    /// A layer of a cache that begins at that address.
    pub fn layer(&self, address: u64, layer: usize) -> KvLayer {
        let page_bytes =
            self.shape.page_tokens * self.shape.kv_heads * self.shape.dtype.head_bytes(self.padded_head_dim());
        let layer_bytes = self.shape.pages * page_bytes;
        KvLayer {
            pages: address + (layer * layer_bytes) as u64,
            page_tokens: self.shape.page_tokens as u32,
            kv_heads: self.shape.kv_heads as u32,
        }
    }

    /// Channels of a head with its padding.
    fn padded_head_dim(&self) -> usize {
        self.shape.head_dim.next_multiple_of(KEY_CHANNELS)
    }

    /// Elements of a page of one layer.
    fn page_elements(&self) -> usize {
        2 * self.shape.kv_heads * self.shape.page_tokens * self.padded_head_dim()
    }

    /// Index in a layer of a channel of a key, at a position of a page.
    pub fn key_index(&self, page: usize, head: usize, position: usize, channel: usize) -> usize {
        let (chunk, within) = (channel / KEY_CHANNELS, channel % KEY_CHANNELS);
        let keys = page * self.page_elements() + head * self.shape.page_tokens * self.padded_head_dim();
        keys + (chunk * self.shape.page_tokens + position) * KEY_CHANNELS + within
    }

    /// Index in a layer of a channel of a value, at a position of a page.
    pub fn value_index(&self, page: usize, head: usize, position: usize, channel: usize) -> usize {
        let head = self.shape.kv_heads + head;
        let values = page * self.page_elements() + head * self.shape.page_tokens * self.padded_head_dim();
        values + position * self.padded_head_dim() + channel
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::backend::KvDType;

    const SHAPE: KvShape =
        KvShape { layers: 2, pages: 3, page_tokens: 4, kv_heads: 2, head_dim: 12, dtype: KvDType::F16 };

    #[test]
    fn keys_and_values_of_a_layer_have_places_of_their_own() {
        let layout = KvLayout::new(SHAPE);
        let mut places = HashSet::new();
        for page in 0..3 {
            for head in 0..2 {
                for position in 0..4 {
                    for channel in 0..16 {
                        places.insert(layout.key_index(page, head, position, channel));
                        places.insert(layout.value_index(page, head, position, channel));
                    }
                }
            }
        }
        let elements = layout.bytes().unwrap() / 2 / 2;
        assert_eq!(places.len(), elements, "padding included, a layer has as many places as elements");
        assert_eq!(places.into_iter().max(), Some(elements - 1));
    }

    #[test]
    fn layers_follow_each_other() {
        let layout = KvLayout::new(SHAPE);
        let layer = layout.layer(4096, 1);
        assert_eq!(layer.pages - 4096, layout.bytes().unwrap() as u64 / 2);
        assert_eq!((layer.page_tokens, layer.kv_heads), (4, 2));
    }
}
