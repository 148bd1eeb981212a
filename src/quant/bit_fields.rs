//! Unsigned fields of 2 to 8 bits, packed back to back into little-endian 32-bit words: what GPTQ and EXL2 share.

use std::ops::Range;

/// Bits of a word.
pub(super) const WORD_BITS: usize = 32;
/// Streams read at once: a loop of a fixed length becomes vector instructions, for which a tile of 16 outputs is too short
/// otherwise.
const VECTOR: usize = 16;

/// The position of field `index` in a bit stream: it begins at bit `index * bits`, lowest bits first, at any width.
pub(super) struct BitField {
    /// The word it begins in.
    pub(super) word: usize,
    /// Its lowest bit in that word.
    shift: usize,
    mask: u32,
    /// Whether its high bits are in the next word.
    pub(super) straddles: bool,
}

impl BitField {
    #[inline]
    pub(super) fn new(index: usize, bits: usize) -> Self {
        let (word, shift) = (index * bits / WORD_BITS, index * bits % WORD_BITS);
        Self { word, shift, mask: (1 << bits) - 1, straddles: shift + bits > WORD_BITS }
    }

    /// The field's values in several streams.
    #[inline(always)]
    fn read_all(&self, codes: &mut [u8], low: &[[u8; 4]], high: &[[u8; 4]]) {
        for ((code, &low), &high) in codes.iter_mut().zip(low).zip(high) {
            *code = self.read(u32::from_le_bytes(low), u32::from_le_bytes(high)) as u8;
        }
    }

    /// The field's value; `high` is the next word if it straddles, else anything, whose bits the mask removes.
    #[inline]
    pub(super) fn read(&self, low: u32, high: u32) -> u32 {
        // Shifting left twice keeps the shift below 32 when shift is 0.
        (low >> self.shift | (high << (31 - self.shift)) << 1) & self.mask
    }
}

/// Words `[rows, columns]`; each column is a bit stream.
#[derive(Clone, Copy)]
pub struct BitStreams<'a> {
    /// `[rows, columns]`, little-endian.
    pub words: &'a [[u8; 4]],
    /// Number of streams.
    pub columns: usize,
}

impl BitStreams<'_> {
    /// Reads one field from each of a range of columns, whose streams begin at `first_row`.
    pub(super) fn read(&self, first_row: usize, field: &BitField, columns: Range<usize>, codes: &mut [u8]) {
        let row = |word: usize| &self.words[(first_row + word) * self.columns..][columns.clone()];
        let low = row(field.word);
        let high = if field.straddles { row(field.word + 1) } else { low };
        let ((codes, last_codes), (low, last_low)) = (codes.as_chunks_mut::<VECTOR>(), low.as_chunks::<VECTOR>());
        let (high, last_high) = high.as_chunks::<VECTOR>();
        for ((codes, low), high) in codes.iter_mut().zip(low).zip(high) {
            field.read_all(codes, low, high);
        }
        field.read_all(last_codes, last_low, last_high);
    }
}
