//! What the packings share: the tensors of a module, checked as they are fetched, and streams of bits in 32-bit words.

use std::ops::Range;

use crate::checkpoint::Checkpoint;
use crate::error::{Error, ErrorCode, Result};
use crate::tensor::{DType, TensorView, shape_text};

pub(super) const WORD_BITS: usize = 32;

/// Where field `index` of a bit stream lies. It begins at bit `index * bits`, lowest bits first, whatever the width.
pub(super) struct Field {
    /// The word it begins in.
    pub(super) word: usize,
    /// Its lowest bit there.
    shift: usize,
    mask: u32,
    /// Whether its high bits are in the next word.
    pub(super) straddles: bool,
}

impl Field {
    #[inline]
    pub(super) fn new(index: usize, bits: usize) -> Self {
        let (word, shift) = (index * bits / WORD_BITS, index * bits % WORD_BITS);
        Self { word, shift, mask: (1 << bits) - 1, straddles: shift + bits > WORD_BITS }
    }

    /// The field's value; `high` is the next word if it straddles, else 0.
    #[inline]
    pub(super) fn read(&self, low: u32, high: u32) -> u32 {
        // Shifting left twice keeps the shift below 32 when shift is 0.
        (low >> self.shift | (high << (31 - self.shift)) << 1) & self.mask
    }
}

/// Words `[rows, columns]` of which each column is a bit stream.
#[derive(Clone, Copy)]
pub(super) struct Streams<'a> {
    pub(super) words: &'a [[u8; 4]],
    pub(super) columns: usize,
}

impl Streams<'_> {
    /// Reads a field of each of some columns, of streams that begin at `first_row`.
    pub(super) fn read(&self, first_row: usize, field: &Field, columns: Range<usize>, codes: &mut [u8]) {
        let row = |word: usize| &self.words[(first_row + word) * self.columns..][columns.clone()];
        if field.straddles {
            for ((code, &low), &high) in codes.iter_mut().zip(row(field.word)).zip(row(field.word + 1)) {
                *code = field.read(u32::from_le_bytes(low), u32::from_le_bytes(high)) as u8;
            }
        } else {
            for (code, &word) in codes.iter_mut().zip(row(field.word)) {
                *code = field.read(u32::from_le_bytes(word), 0) as u8;
            }
        }
    }
}

/// The tensors of one module.
pub(super) struct Module<'a, 'p> {
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) path: &'p str,
    /// What to do about a tensor of the wrong shape.
    pub(super) hint: String,
}

impl<'a> Module<'a, '_> {
    pub(super) fn name(&self, part: &str) -> String {
        format!("{}.{part}", self.path)
    }

    pub(super) fn error(&self, code: ErrorCode, what: &str, part: &str) -> Error {
        let name = self.name(part);
        let file = self.checkpoint.path_of(&name).unwrap_or(self.checkpoint.path());
        Error::new(code, what).with_path(file).with_tensor(name)
    }

    pub(super) fn mismatch(&self, what: &str, part: &str) -> Error {
        self.error(ErrorCode::QuantShapeMismatch, what, part).with_hint(&*self.hint)
    }

    pub(super) fn tensor(&self, part: &str, shape: &[usize]) -> Result<TensorView<'a>> {
        let view = self.checkpoint.tensor(&self.name(part))?;
        if view.shape() == shape {
            return Ok(view);
        }
        Err(self
            .mismatch("a quantized tensor has the wrong shape", part)
            .with_expected(shape_text(shape))
            .with_found(shape_text(view.shape())))
    }

    pub(super) fn of_dtype(&self, view: TensorView<'a>, part: &str, dtype: DType) -> Result<TensorView<'a>> {
        match view.dtype() {
            found if found == dtype => Ok(view),
            found => Err(self
                .error(ErrorCode::CheckpointDtypeUnsupported, "a quantized tensor of another type", part)
                .with_expected(dtype)
                .with_found(found)
                .with_hint(format!("quantize again with {part} as {dtype}"))),
        }
    }

    /// The words of an int32 tensor.
    pub(super) fn words(&self, part: &str, shape: &[usize]) -> Result<&'a [[u8; 4]]> {
        Ok(self.of_dtype(self.tensor(part, shape)?, part, DType::I32)?.bytes().as_chunks().0)
    }
}
