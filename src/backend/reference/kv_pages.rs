//! Keys and values read from a cache, and positions and pages copied.

use std::ops::Range;

use super::attention::{Cache, is_overflow, stored};
use crate::backend::KvPositions;
use crate::backend::kv_states::{HeadStates, KvStates};
use crate::error::Result;

/// The keys of a page of one layer, and its values.
pub(super) type LayerPage = [Vec<f32>; 2];

impl Cache {
    /// See [`Compute::read_kv`](crate::backend::Compute::read_kv).
    pub(super) fn read(&self, layer: usize, block_table: &[u32], positions: Range<usize>) -> Result<KvStates> {
        KvStates::read(&self.shape, layer, block_table, positions, |mut part| {
            let (page, dim) = (part.page as u32, self.shape.head_dim);
            for HeadStates { slot, head, key, value } in part.heads() {
                let at = self.at(layer, &[page], slot, head);
                key.copy_from_slice(&self.keys[at..at + dim]);
                value.copy_from_slice(&self.values[at..at + dim]);
            }
            Ok(())
        })
    }

    /// Replaces keys and values at positions of a layer by what was read from others, and its keys by `keys` as the cache stores
    /// those. Returns whether all finite ones are finite as stored.
    pub(super) fn write(
        &mut self,
        layer: usize,
        to: &KvPositions<'_>,
        mut states: KvStates,
        keys: Option<&[f32]>,
    ) -> bool {
        let (dim, dtype) = (self.shape.head_dim, self.shape.dtype);
        let mut fits = true;
        if let Some(keys) = keys {
            let bits = dtype.code_bits().map(|[key_bits, _]| key_bits);
            for (place, key) in states.keys.chunks_exact_mut(dim).zip(keys.chunks_exact(dim)) {
                place.copy_from_slice(&stored(dtype, bits, key));
                fits &= !is_overflow(dtype, key, place);
            }
        }
        let heads = states.keys.chunks_exact(dim).zip(states.values.chunks_exact(dim));
        for (index, (key, value)) in heads.enumerate() {
            let position = to.positions.start + index / self.shape.kv_heads;
            let at = self.at(layer, to.block_table, position, index % self.shape.kv_heads);
            self.keys[at..at + dim].copy_from_slice(key);
            self.values[at..at + dim].copy_from_slice(value);
        }
        fits
    }

    /// What pages of the cache hold, layer by layer.
    pub(super) fn pages(&self, pages: &[u32]) -> Vec<LayerPage> {
        let copy = |place: Range<usize>| [self.keys[place.clone()].to_vec(), self.values[place].to_vec()];
        self.places(pages).into_iter().map(copy).collect()
    }

    /// Overwrites pages by what [`Cache::pages`] of a cache of the same shape returned for as many.
    pub(super) fn set_pages(&mut self, pages: &[u32], contents: &[LayerPage]) {
        for (place, [keys, values]) in self.places(pages).into_iter().zip(contents) {
            self.keys[place.clone()].copy_from_slice(keys);
            self.values[place].copy_from_slice(values);
        }
    }

    /// Where the keys, and the values, of pages are, layer by layer.
    fn places(&self, pages: &[u32]) -> Vec<Range<usize>> {
        let width = self.shape.page_tokens * self.shape.kv_heads * self.shape.head_dim;
        let first = |layer: usize, page: u32| self.at(layer, &[page], 0, 0);
        let of_layer = |layer: usize| pages.iter().map(move |&page| first(layer, page)..first(layer, page) + width);
        (0..self.shape.layers).flat_map(of_layer).collect()
    }
}
