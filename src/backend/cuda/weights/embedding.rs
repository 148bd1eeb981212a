//! The base's embedding tables on the device, in the type they are stored in.

use super::placer::Placer;
use crate::backend::cuda::driver::DeviceMemory;
use crate::backend::cuda::ops::embed::TableType;
use crate::error::{Error, ErrorCode, Result};
use crate::tensor::{DType, TensorView, shape_text, zeros};

/// Bytes that are compared at once.
const COMPARED_BYTES: usize = 1 << 20;

/// An embedding table `[vocab, hidden]`.
pub(crate) struct EmbeddingTable {
    /// The values, row after row.
    pub(crate) memory: DeviceMemory,
    /// Their type.
    pub(crate) table_type: TableType,
    /// Number of rows.
    pub(crate) vocab: usize,
    /// Width of a row.
    pub(crate) hidden: usize,
    dtype: DType,
}

impl EmbeddingTable {
    /// Copies a table to the device.
    ///
    /// # Errors
    /// `memory_exhausted`; `internal` if it is no matrix of floats; the device failed.
    pub(super) fn load(placer: &mut Placer, table: TensorView<'_>) -> Result<Self> {
        let table_type = match table.dtype() {
            DType::F16 => Some(TableType::F16),
            DType::BF16 => Some(TableType::Bf16),
            DType::F32 => Some(TableType::F32),
            _ => None,
        };
        let (&[vocab, hidden], Some(table_type)) = (table.shape(), table_type) else {
            return Err(Error::new(ErrorCode::Internal, "an embedding table must be a matrix of floats")
                .with_found(format!("{} {}", table.dtype(), shape_text(table.shape()))));
        };
        let memory = placer.place(table.bytes())?;
        Ok(Self { memory, table_type, vocab, hidden, dtype: table.dtype() })
    }

    /// Whether it holds exactly these values.
    ///
    /// # Errors
    /// `memory_exhausted`; the device failed.
    pub(super) fn equals(&self, values: TensorView<'_>) -> Result<bool> {
        if values.shape() != [self.vocab, self.hidden] {
            return Ok(false);
        }
        let part = COMPARED_BYTES / self.dtype.bytes();
        let (mut bytes, mut held, mut wanted) = (zeros(part * self.dtype.bytes())?, zeros(part)?, zeros(part)?);
        for start in (0..values.len()).step_by(part) {
            let count = part.min(values.len() - start);
            let (bytes, shape) = (&mut bytes[..count * self.dtype.bytes()], [count]);
            self.memory.download_beside_steps(start * self.dtype.bytes(), bytes)?;
            let Some(view) = TensorView::new(self.dtype, &shape, bytes) else { return Ok(false) };
            view.read_f32(0..count, &mut held[..count]);
            values.read_f32(start..start + count, &mut wanted[..count]);
            if held[..count] != wanted[..count] {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
