//! Matrices in plain f32, with sums in f64.

use crate::error::{Error, ErrorCode, Result};
use crate::tensor::TensorView;

/// A matrix, row-major.
#[derive(Default)]
pub(super) struct Matrix {
    pub(super) width: usize,
    pub(super) values: Vec<f32>,
}

impl Matrix {
    /// Row `i`.
    pub(super) fn row(&self, i: usize) -> &[f32] {
        &self.values[i * self.width..(i + 1) * self.width]
    }

    /// Number of rows.
    pub(super) fn rows(&self) -> usize {
        self.values.len() / self.width.max(1)
    }

    /// `self x`
    pub(super) fn times(&self, x: &[f32]) -> Vec<f32> {
        if self.width == 0 {
            return Vec::new();
        }
        self.values.chunks_exact(self.width).map(|row| dot(row, x)).collect()
    }

    /// Bytes of its values.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.values)
    }
}

/// The dot product, summed in order in f64.
pub(super) fn dot_f64(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// The dot product, rounded once.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    dot_f64(a, b) as f32
}

/// A stored matrix, widened.
///
/// # Errors
/// `memory_exhausted`.
pub(super) fn matrix(view: &TensorView<'_>) -> Result<Matrix> {
    Ok(Matrix { width: view.shape().last().copied().unwrap_or(0), values: view.try_to_f32()? })
}

/// A step names something that does not exist or fit.
pub(super) fn unknown() -> Error {
    Error::new(ErrorCode::Internal, "the step names something that the backend does not have, or of another shape")
}
