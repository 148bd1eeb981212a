//! The base's embedding tables on the device, in the type they are stored in.

use super::placer::Placer;
use crate::backend::cuda::driver::DeviceMemory;
use crate::backend::cuda::tables::{FloatRows, FloatType};
use crate::error::{Error, ErrorCode, Result};
use crate::tensor::{DType, TensorView, shape_text, zeros};

/// Bytes that are compared at once.
const COMPARED_BYTES: usize = 1 << 20;

/// An embedding table `[vocab, hidden]`.
pub(crate) struct EmbeddingTable {
    /// The values, row after row.
    pub(crate) memory: DeviceMemory,
    /// Number of rows.
    pub(crate) vocab: usize,
    /// Width of a row.
    pub(crate) hidden: usize,
    dtype: DType,
    float_type: FloatType,
}

impl EmbeddingTable {
    /// Copies a table to the device.
    ///
    /// # Errors
    /// `memory_exhausted`; `internal` if it is no matrix of floats; the device failed.
    pub(super) fn load(placer: &mut Placer, table: TensorView<'_>) -> Result<Self> {
        let (&[vocab, hidden], Some(float_type)) = (table.shape(), FloatType::of(table.dtype())) else {
            return Err(Error::new(ErrorCode::Internal, "an embedding table must be a matrix of floats")
                .with_found(format!("{} {}", table.dtype(), shape_text(table.shape()))));
        };
        let memory = placer.place(table.bytes())?;
        Ok(Self { memory, vocab, hidden, dtype: table.dtype(), float_type })
    }

    /// As kernels read it.
    pub(crate) fn rows(&self) -> FloatRows {
        FloatRows { values: self.memory.address(), rows: self.vocab as u32, float_type: self.float_type as u32 }
    }

    /// Bytes of one value.
    pub(crate) fn value_bytes(&self) -> usize {
        self.dtype.bytes()
    }

    /// Reads values in f32, from the one at `first` on, through a buffer of `value_bytes` for each.
    ///
    /// # Errors
    /// `internal` if there are fewer; the device failed.
    pub(crate) fn read(&self, first: usize, bytes: &mut [u8], out: &mut [f32]) -> Result<()> {
        self.memory.download_beside_steps(first * self.dtype.bytes(), bytes)?;
        let shape = [out.len()];
        let view = TensorView::new(self.dtype, &shape, bytes)
            .ok_or_else(|| Error::new(ErrorCode::Internal, "a buffer does not fit the values of a table"))?;
        view.read_f32(0..out.len(), out);
        Ok(())
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
            self.read(start, &mut bytes[..count * self.dtype.bytes()], &mut held[..count])?;
            values.read_f32(start..start + count, &mut wanted[..count]);
            if held[..count] != wanted[..count] {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
