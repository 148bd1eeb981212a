//! The base's embedding tables, in the type they are stored in: a copy, or rows read from the file.

use std::ops::Range;

use crate::backend::cpu::runtime::arena::{Arena, ArenaSlice};
use crate::checkpoint::TensorOnDisk;
use crate::error::Result;
use crate::tensor::{DType, TensorView};

/// An embedding table in its stored type.
pub(crate) struct EmbeddingTable {
    pub(crate) dtype: DType,
    pub(crate) vocab: usize,
    pub(crate) hidden: usize,
    pub(crate) store: TableStore,
}

/// Where a table's bytes are.
pub(crate) enum TableStore {
    /// A copy.
    Memory(ArenaSlice),
    /// The file they were loaded from.
    Disk(TensorOnDisk),
}

impl EmbeddingTable {
    /// Channels of a token's row.
    ///
    /// # Errors
    /// `checkpoint_truncated` or `checkpoint_unreadable` if the row cannot be read from its file.
    pub(crate) fn read(&self, arena: &Arena, token: usize, channels: Range<usize>, out: &mut [f32]) -> Result<()> {
        match &self.store {
            TableStore::Memory(store) => {
                read_row(self.dtype, arena.values(*store), self.hidden, token, channels, out);
            }
            TableStore::Disk(on_disk) => {
                let (width, bytes) = (channels.len(), self.dtype.bytes());
                let mut row = vec![0; width * bytes];
                on_disk.read((token * self.hidden + channels.start) * bytes, &mut row)?;
                read_row(self.dtype, &row, width, 0, 0..width, out);
            }
        }
        Ok(())
    }

    /// Whether all that was read so far is what was loaded.
    ///
    /// # Errors
    /// `checkpoint_unreadable` if the table's file was changed since.
    pub(crate) fn check_unchanged(&self) -> Result<()> {
        match &self.store {
            TableStore::Memory(_) => Ok(()),
            TableStore::Disk(on_disk) => on_disk.check_unchanged(),
        }
    }

    /// Whether it holds exactly these values; `false` if it cannot be read.
    pub(crate) fn equals(&self, arena: &Arena, values: TensorView<'_>) -> bool {
        let (mut held, mut wanted) = (vec![0.0; self.hidden], vec![0.0; self.hidden]);
        values.shape() == [self.vocab, self.hidden]
            && (0..self.vocab).all(|token| {
                values.read_f32(token * self.hidden..(token + 1) * self.hidden, &mut wanted);
                self.read(arena, token, 0..self.hidden, &mut held).is_ok() && held == wanted
            })
            && self.check_unchanged().is_ok()
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
