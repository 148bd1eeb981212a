//! All that multiplies the input of a group, one below the other, so that the kernel `linear` computes it as one weight: the A's
//! of what is added and of what is taken out, and the replaced rows.

use super::factors::{ScaledFactor, power_of_two};
use crate::backend::cuda::layout::ElementType;
use crate::tensor::Tensor;

/// The matrices of a stack, each `[rows, in_features]`.
#[derive(Default)]
pub(super) struct Stack<'a> {
    /// Where each one's rows end in the stack.
    matrices: Vec<(usize, ScaledFactor<'a>)>,
}

/// A matrix in a stack.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Stacked {
    /// The first of its rows, and of its products.
    pub(super) first: u32,
    /// What its products are to be multiplied by, a power of two.
    pub(super) scale: f32,
}

impl<'a> Stack<'a> {
    /// Number of rows.
    pub(super) fn rows(&self) -> usize {
        self.matrices.last().map_or(0, |(end, _)| *end)
    }

    /// Puts a matrix below the others, to be stored in `element`.
    pub(super) fn push(&mut self, matrix: &'a Tensor<'_>, element: ElementType) -> Stacked {
        let (first, matrix) = (self.rows(), ScaledFactor::new(matrix, element));
        self.matrices.push((first + matrix.rows(), matrix));
        Stacked { first: first as u32, scale: power_of_two(-matrix.exponent) }
    }

    /// Reads a row.
    ///
    /// # Panics
    /// If there is no such row, or it has another width.
    pub(super) fn read_row(&self, row: usize, values: &mut [f32]) {
        let (end, matrix) = self.matrices[self.matrices.partition_point(|(end, _)| *end <= row)];
        matrix.read((row + matrix.rows() - end) * values.len(), values);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_follow_each_other_each_scaled_as_its_matrix() {
        let matrices = [
            Tensor::from_f32(&[2, 2], &[1.0, 2.0, 3.0, 4.0]),
            Tensor::from_f32(&[0, 2], &[]),
            Tensor::from_f32(&[1, 2], &[1e-6, 5e5]),
        ];
        let mut stack = Stack::default();
        let stacked = matrices.each_ref().map(|matrix| stack.push(matrix, ElementType::F16));
        assert_eq!((stacked.map(|stacked| stacked.first), stack.rows()), ([0, 2, 2], 3));
        for (row, expected, scale) in
            [(0, [1.0, 2.0], stacked[0].scale), (1, [3.0, 4.0], stacked[0].scale), (2, [1e-6, 5e5], stacked[2].scale)]
        {
            let mut values = [0.0; 2];
            stack.read_row(row, &mut values);
            assert_eq!(values.map(|value| value * scale), expected);
        }
    }
}
