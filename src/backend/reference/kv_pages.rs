//! Keys and values read from a cache, and pages copied.

use std::ops::Range;

use super::attention::Cache;
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
