//! Keys and values that were read back from a cache, whatever its layout and element type.

use std::ops::Range;

use super::kv_shape::KvShape;
use crate::error::{Error, ErrorCode, Result};
use crate::tensor::zeros;

/// Keys and values of successive positions of a layer, as attention reads them: normed, rotated to their positions, rounded as
/// the cache stores them. Each is `[positions, kv_heads, head_dim]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KvStates {
    /// Keys.
    pub keys: Vec<f32>,
    /// Values.
    pub values: Vec<f32>,
}

/// Successive positions of one page, and room for their keys and values, each `[slots, kv_heads, head_dim]`.
pub(crate) struct PageStates<'a> {
    /// The page.
    pub(crate) page: usize,
    /// The positions, counted within the page.
    pub(crate) slots: Range<usize>,
    shape: &'a KvShape,
    keys: &'a mut [f32],
    values: &'a mut [f32],
}

/// A head at a position of a page, and room for its key and value, each `[head_dim]`.
pub(crate) struct HeadStates<'a> {
    pub(crate) slot: usize,
    pub(crate) head: usize,
    pub(crate) key: &'a mut [f32],
    pub(crate) value: &'a mut [f32],
}

impl KvStates {
    /// Reads positions of a layer of the sequence that has those pages, page by page.
    ///
    /// # Errors
    /// `internal` if they do not lie within a cache of that shape; `memory_exhausted`; what `read_page` returned.
    pub(crate) fn read(
        shape: &KvShape,
        layer: usize,
        block_table: &[u32],
        positions: Range<usize>,
        mut read_page: impl FnMut(PageStates<'_>) -> Result<()>,
    ) -> Result<Self> {
        check_positions(shape, layer, block_table, &positions)?;
        let width = shape.kv_heads * shape.head_dim;
        let len = positions.len().saturating_mul(width);
        let mut states = Self { keys: zeros(len)?, values: zeros(len)? };
        let mut first = positions.start;
        while first < positions.end {
            let slot = first % shape.page_tokens;
            let count = (shape.page_tokens - slot).min(positions.end - first);
            let at = (first - positions.start) * width;
            let of_page = at..at + count * width;
            read_page(PageStates {
                page: block_table[first / shape.page_tokens] as usize,
                slots: slot..slot + count,
                shape,
                keys: &mut states.keys[of_page.clone()],
                values: &mut states.values[of_page],
            })?;
            first += count;
        }
        Ok(states)
    }
}

impl PageStates<'_> {
    /// Each head at each position.
    pub(crate) fn heads(&mut self) -> impl Iterator<Item = HeadStates<'_>> {
        let (first, kv_heads, dim) = (self.slots.start, self.shape.kv_heads, self.shape.head_dim);
        let heads = self.keys.chunks_exact_mut(dim).zip(self.values.chunks_exact_mut(dim));
        heads.enumerate().map(move |(index, (key, value))| HeadStates {
            slot: first + index / kv_heads,
            head: index % kv_heads,
            key,
            value,
        })
    }
}

/// Checks that positions of a layer, of the sequence that has those pages, lie within a cache.
///
/// # Errors
/// `internal` if they don't.
pub(super) fn check_positions(
    shape: &KvShape,
    layer: usize,
    block_table: &[u32],
    positions: &Range<usize>,
) -> Result<()> {
    let is_inside = layer < shape.layers
        && positions.start <= positions.end
        && positions.end.div_ceil(shape.page_tokens) <= block_table.len()
        && block_table.iter().all(|&page| (page as usize) < shape.pages);
    if is_inside {
        return Ok(());
    }
    Err(Error::new(ErrorCode::Internal, "keys and values are named that do not lie within the KV cache"))
}

/// Checks that pages of a cache can be copied to pages of another, or of itself: the caches have the same shape but for the
/// number of their pages, the pages exist, and of one cache none is both read and written.
///
/// # Errors
/// `internal` if they can't.
pub(crate) fn check_page_copy(
    (from, from_pages): (&KvShape, &[u32]),
    (to, to_pages): (&KvShape, &[u32]),
    is_same_cache: bool,
) -> Result<()> {
    let exist = |shape: &KvShape, pages: &[u32]| pages.iter().all(|&page| (page as usize) < shape.pages);
    let is_disjoint = || to_pages.iter().all(|page| !from_pages.contains(page));
    if (KvShape { pages: to.pages, ..*from }) == *to
        && from_pages.len() == to_pages.len()
        && exist(from, from_pages)
        && exist(to, to_pages)
        && (!is_same_cache || is_disjoint())
    {
        return Ok(());
    }
    Err(Error::new(ErrorCode::Internal, "pages of a KV cache are copied that do not fit each other"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::KvDType;

    const SHAPE: KvShape =
        KvShape { layers: 2, pages: 4, page_tokens: 3, kv_heads: 2, head_dim: 2, dtype: KvDType::F32 };

    #[test]
    fn positions_are_read_page_by_page_in_their_order() {
        let mut pages = Vec::new();
        let states = KvStates::read(&SHAPE, 1, &[2, 0, 3], 2..7, |mut part| {
            pages.push((part.page, part.slots.clone()));
            let page = part.page;
            for HeadStates { slot, head, key, value } in part.heads() {
                key.fill((100 * page + 10 * slot + head) as f32);
                value.fill(-((100 * page + 10 * slot + head) as f32));
            }
            Ok(())
        });
        let states = states.expect("they are inside");
        assert_eq!(pages, [(2, 2..3), (0, 0..3), (3, 0..1)]);
        let expected = [220, 221, 0, 1, 10, 11, 20, 21, 300, 301].map(|value| [value as f32; 2]);
        assert_eq!(states.keys, expected.concat());
        assert_eq!(states.values, expected.concat().into_iter().map(|key| -key).collect::<Vec<_>>());
        let none = KvStates::read(&SHAPE, 0, &[], 0..0, |_| unreachable!("there is no page"));
        assert_eq!(none, Ok(KvStates::default()));
    }

    #[test]
    fn what_lies_outside_of_the_cache_is_refused() {
        let read = |layer, table: &[u32], positions| KvStates::read(&SHAPE, layer, table, positions, |_| Ok(()));
        for result in [read(2, &[0], 0..1), read(0, &[0], 0..4), read(0, &[4], 0..1)] {
            assert_eq!(result.unwrap_err().code(), ErrorCode::Internal);
        }
        let larger = KvShape { pages: 9, ..SHAPE };
        let copy = |from, to, is_same_cache| check_page_copy(from, to, is_same_cache).is_ok();
        assert!(copy((&SHAPE, &[0, 3]), (&larger, &[8, 0]), false));
        assert!(copy((&SHAPE, &[0, 3]), (&SHAPE, &[1, 2]), true));
        assert!(!copy((&SHAPE, &[0, 3]), (&SHAPE, &[1, 0]), true));
        assert!(!copy((&SHAPE, &[4]), (&larger, &[4]), false));
        assert!(!copy((&SHAPE, &[1, 2]), (&larger, &[4]), false));
        for other in [KvShape { dtype: KvDType::F16, ..SHAPE }, KvShape { head_dim: 4, ..SHAPE }] {
            assert!(check_page_copy((&SHAPE, &[0]), (&other, &[0]), false).is_err());
        }
    }
}
