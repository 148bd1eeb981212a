//! The base's embedding tables, in the type they are stored in.

use std::ops::Range;

use crate::backend::cpu::runtime::arena::{Arena, ArenaSlice};
use crate::tensor::{DType, TensorView};

/// An embedding table as it was stored.
pub(crate) struct EmbeddingTable {
    pub(crate) dtype: DType,
    pub(crate) vocab: usize,
    pub(crate) hidden: usize,
    pub(crate) store: ArenaSlice,
}

impl EmbeddingTable {
    /// Channels of a token's row.
    pub(crate) fn read(&self, arena: &Arena, token: usize, channels: Range<usize>, out: &mut [f32]) {
        read_row(self.dtype, arena.values(self.store), self.hidden, token, channels, out);
    }

    /// Whether it holds these numbers.
    pub(crate) fn equals(&self, arena: &Arena, values: TensorView<'_>) -> bool {
        let (mut held, mut wanted) = (vec![0.0; self.hidden], vec![0.0; self.hidden]);
        values.shape() == [self.vocab, self.hidden]
            && (0..self.vocab).all(|token| {
                self.read(arena, token, 0..self.hidden, &mut held);
                values.read_f32(token * self.hidden..(token + 1) * self.hidden, &mut wanted);
                held == wanted
            })
    }
}

/// Columns of a row of stored floats, as f32; rows are `width` long.
///
/// # Panics
/// If row or columns are outside of the matrix, or the dtype is no float.
pub(crate) fn read_row(dtype: DType, matrix: &[u8], width: usize, row: usize, columns: Range<usize>, out: &mut [f32]) {
    let shape = [width];
    let bytes = width * dtype.bytes();
    if let Some(view) = TensorView::new(dtype, &shape, &matrix[row * bytes..][..bytes]) {
        view.read_f32(columns, out);
    }
}
