//! Structured factors that are stored in a compact form, expanded to plain ones: pooled, block-diagonal, transposed.
//!
//! Shapes are checked before anything is expanded, and an expanded factor is never larger than the base's weight at its
//! site, so that a small file cannot claim much memory. Each function fails with `memory_exhausted` alone.

use crate::error::Result;
use crate::tensor::{Tensor, zeros};

/// QA-LoRA: A `[rank, groups]` acts on the mean of each `group` inputs, times the number of groups. As a plain A
/// `[rank, groups * group]`, each column is repeated `group` times and scaled by `groups / group`.
///
/// Source: PEFT 0.21.2, `QALoraLinearVariant.forward`.
pub(super) fn pooled(a: &Tensor<'_>, group: usize) -> Result<Tensor<'static>> {
    let (rank, groups) = (a.shape()[0], a.shape()[1]);
    let factor = groups as f32 / group as f32;
    let mut values = zeros(rank * groups * group)?;
    for (columns, value) in values.chunks_exact_mut(group).zip(a.view().try_to_f32()?) {
        columns.fill(value * factor);
    }
    Tensor::try_from_f32(&[rank, groups * group], &values)
}

/// BD-LoRA: the rows of `[rows, columns]` in `count` blocks, each moved to its own columns of `[rows, count * columns]`.
///
/// Source: PEFT 0.21.2, `BlockDiagonalLinear`.
pub(super) fn block_diagonal(blocks: &Tensor<'_>, count: usize) -> Result<Tensor<'static>> {
    let (rows, columns) = (blocks.shape()[0], blocks.shape()[1]);
    let stored = blocks.view().try_to_f32()?;
    let mut values = zeros(rows * columns * count)?;
    for (row, from) in stored.chunks_exact(columns).enumerate() {
        let start = (row * count + row / (rows / count)) * columns;
        values[start..start + columns].copy_from_slice(from);
    }
    Tensor::try_from_f32(&[rows, columns * count], &values)
}

/// KaSA: B `[outputs, rank]`, each column scaled by an entry of the diagonal `[rank]`.
pub(super) fn scaled_columns(b: &Tensor<'_>, diagonal: &Tensor<'_>) -> Result<Tensor<'static>> {
    let (mut values, diagonal) = (b.view().try_to_f32()?, diagonal.view().try_to_f32()?);
    for row in values.chunks_exact_mut(diagonal.len()) {
        row.iter_mut().zip(&diagonal).for_each(|(value, factor)| *value *= factor);
    }
    Tensor::try_from_f32(b.shape(), &values)
}

/// The transpose of a matrix.
pub(super) fn transposed(matrix: &Tensor<'_>) -> Result<Tensor<'static>> {
    let (rows, columns) = (matrix.shape()[0], matrix.shape()[1]);
    let stored = matrix.view().try_to_f32()?;
    let mut values = zeros(stored.len())?;
    for (column, out) in values.chunks_exact_mut(rows).enumerate() {
        out.iter_mut().zip(stored.iter().skip(column).step_by(columns)).for_each(|(out, value)| *out = *value);
    }
    Tensor::try_from_f32(&[columns, rows], &values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pooled_factor_repeats_its_columns() {
        // Two groups of three inputs: x summed over a group, times 2 / 3.
        let a = Tensor::from_f32(&[2, 2], &[3.0, 6.0, -3.0, 0.0]);
        let expected = [2.0, 2.0, 2.0, 4.0, 4.0, 4.0, -2.0, -2.0, -2.0, 0.0, 0.0, 0.0];
        assert_eq!(pooled(&a, 3), Ok(Tensor::from_f32(&[2, 6], &expected)));
    }

    #[test]
    fn blocks_are_placed_on_the_diagonal() {
        let blocks = Tensor::from_f32(&[4, 1], &[1.0, 2.0, 3.0, 4.0]);
        let expected = [1.0, 0.0, 2.0, 0.0, 0.0, 3.0, 0.0, 4.0];
        assert_eq!(block_diagonal(&blocks, 2), Ok(Tensor::from_f32(&[4, 2], &expected)));
    }

    #[test]
    fn a_diagonal_scales_the_columns_of_b() {
        let b = Tensor::from_f32(&[2, 2], &[1.0, 2.0, 3.0, 4.0]);
        let scaled = scaled_columns(&b, &Tensor::from_f32(&[2], &[10.0, -1.0]));
        assert_eq!(scaled, Ok(Tensor::from_f32(&[2, 2], &[10.0, -2.0, 30.0, -4.0])));
    }

    #[test]
    fn a_transpose_swaps_rows_and_columns() {
        let matrix = Tensor::from_f32(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(transposed(&matrix), Ok(Tensor::from_f32(&[3, 2], &[1.0, 4.0, 2.0, 5.0, 3.0, 6.0])));
    }
}
