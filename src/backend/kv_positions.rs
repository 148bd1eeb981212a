//! Keys and values of single positions copied to other positions, where pages as a whole cannot be.

use std::ops::Range;

use super::kv_elements::{ElementPlaces, HeadSlot, KvPart};
use super::kv_shape::KvShape;
use super::kv_states::check_positions;
use super::types::KvId;
use crate::error::{Error, ErrorCode, Result};

/// Successive positions of the sequence that has those pages of a cache.
#[derive(Clone, Debug)]
pub struct KvPositions<'a> {
    /// The cache.
    pub kv: KvId,
    /// The pages of the sequence, in order of position.
    pub block_table: &'a [u32],
    /// The positions.
    pub positions: Range<usize>,
}

/// Positions of a layer on their way to others: the source's pages are copies, so the two may overlap.
pub(crate) struct PositionCopy<'a> {
    shape: KvShape,
    from: Range<usize>,
    to: KvPositions<'a>,
    keys: Option<&'a [f32]>,
    /// The bytes of each page that has some of `from`.
    source: Vec<Vec<u8>>,
}

impl<'a> PositionCopy<'a> {
    /// Copies the source's pages by `read_page`, which returns the bytes that a page has in the layer.
    ///
    /// # Errors
    /// As [`check_position_copy`]; what `read_page` returned.
    pub(crate) fn read(
        layer: usize,
        (shape, from): (&KvShape, KvPositions<'_>),
        (to_shape, to): (&KvShape, KvPositions<'a>),
        keys: Option<&'a [f32]>,
        read_page: impl FnMut(u32) -> Result<Vec<u8>>,
    ) -> Result<Self> {
        check_position_copy(layer, (shape, &from), (to_shape, &to), keys)?;
        let pages = &from.block_table[pages_of(&from.positions, shape.page_tokens)];
        let source = pages.iter().copied().map(read_page).collect::<Result<_>>()?;
        Ok(Self { shape: *to_shape, from: from.positions, to, keys, source })
    }

    /// The pages that are written, each with its place in the target's block table.
    pub(crate) fn target_pages(&self) -> impl Iterator<Item = (usize, u32)> {
        let table = self.to.block_table;
        pages_of(&self.to.positions, self.shape.page_tokens).map(move |index| (index, table[index]))
    }

    /// Writes what belongs to a page at that place of the block table into the bytes that it has in the layer. Returns whether
    /// all finite keys are finite as stored.
    pub(crate) fn write(&self, places: &impl ElementPlaces, index: usize, page: &mut [u8]) -> bool {
        let KvShape { page_tokens, kv_heads, head_dim, .. } = self.shape;
        let first = self.to.positions.start.max(index * page_tokens);
        let end = self.to.positions.end.min((index + 1) * page_tokens);
        let mut fits = true;
        for position in first..end {
            let offset = position - self.to.positions.start;
            let from = self.from.start + offset;
            let source = &self.source[from / page_tokens - self.from.start / page_tokens][..];
            for head in 0..kv_heads {
                let [from, to] = [from, position].map(|position| HeadSlot { head, slot: position % page_tokens });
                places.copy((source, from), (&mut *page, to), KvPart::Value);
                match self.keys {
                    Some(keys) => {
                        let key = &keys[(offset * kv_heads + head) * head_dim..][..head_dim];
                        fits &= places.store(page, KvPart::Key, to, key);
                    }
                    None => places.copy((source, from), (&mut *page, to), KvPart::Key),
                }
            }
        }
        fits
    }
}

/// Places in a block table of the pages that have some of the positions.
fn pages_of(positions: &Range<usize>, page_tokens: usize) -> Range<usize> {
    match positions.is_empty() {
        true => 0..0,
        false => positions.start / page_tokens..positions.end.div_ceil(page_tokens),
    }
}

/// Checks that positions of a layer can be copied: there are as many of them, each lies within its cache, the caches have the same
/// shape but for the number of their pages, and there is a key for each head at each.
///
/// # Errors
/// `internal` if they can't.
pub(crate) fn check_position_copy(
    layer: usize,
    (shape, from): (&KvShape, &KvPositions<'_>),
    (to_shape, to): (&KvShape, &KvPositions<'_>),
    keys: Option<&[f32]>,
) -> Result<()> {
    check_positions(shape, layer, from.block_table, &from.positions)?;
    check_positions(to_shape, layer, to.block_table, &to.positions)?;
    let elements = from.positions.len() * shape.kv_heads * shape.head_dim;
    if (KvShape { pages: to_shape.pages, ..*shape }) == *to_shape
        && from.positions.len() == to.positions.len()
        && keys.is_none_or(|keys| keys.len() == elements)
    {
        return Ok(());
    }
    Err(Error::new(ErrorCode::Internal, "positions of a KV cache are copied that do not fit each other"))
}
