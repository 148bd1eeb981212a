//! The smallest singular values of a weight: what KaSA does without.
//!
//! With W = U S V^T, the weight without its r smallest values is `W - (U_r S_r) V_r^T`, r columns and rows of each: a product
//! of two thin matrices, which costs a row as much as any adapter of rank r. Finding them takes the whole decomposition.

use nalgebra::{DMatrix, SVD};

use crate::error::{Error, ErrorCode, Result};

/// Steps after which a decomposition that should take a few for each value is given up.
const MAX_STEPS_OF_VALUE: usize = 1000;

/// The part of a weight that belongs to its smallest singular values, `left right`.
pub(super) struct Smallest {
    /// `U_r S_r` `[outputs, count]`, row-major.
    pub(super) left: Vec<f32>,
    /// `V_r^T` `[count, inputs]`, row-major.
    pub(super) right: Vec<f32>,
}

/// Decomposes a weight `[outputs, inputs]`, row-major, in f64; `count` is at most the number of its singular values.
///
/// # Errors
/// `internal` if the decomposition does not converge.
pub(super) fn smallest(weight: &[f32], outputs: usize, inputs: usize, count: usize) -> Result<Smallest> {
    let matrix = DMatrix::from_row_iterator(outputs, inputs, weight.iter().map(|&value| f64::from(value)));
    let values = outputs.min(inputs);
    let failed = || Error::new(ErrorCode::Internal, "the singular values of a weight were not found");
    let svd = SVD::try_new(matrix, true, true, 5.0 * f64::EPSILON, MAX_STEPS_OF_VALUE * values).ok_or_else(failed)?;
    let (Some(u), Some(v_t)) = (svd.u, svd.v_t) else { return Err(failed()) };
    // They stand in descending order.
    let kept = values.saturating_sub(count)..values;
    let left = (0..outputs).flat_map(|output| kept.clone().map(move |i| (output, i)));
    let right = kept.clone().flat_map(|i| (0..inputs).map(move |input| (i, input)));
    Ok(Smallest {
        left: left.map(|(output, i)| (u[(output, i)] * svd.singular_values[i]) as f32).collect(),
        right: right.map(|(i, input)| v_t[(i, input)] as f32).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_a_weight_has_none_of_its_smallest_values() {
        // The second factor of [3 0; 0 1] turned by an orthogonal pair: values 3 and 1, the smaller along (1, -1) / sqrt 2.
        let weight = [2.0, 1.0, 1.0, 2.0];
        let Smallest { left, right } = smallest(&weight, 2, 2, 1).expect("it converges");
        let dropped: Vec<f32> = left.iter().flat_map(|l| right.iter().map(move |r| l * r)).collect();
        for (found, expected) in dropped.iter().zip([0.5, -0.5, -0.5, 0.5]) {
            assert!((found - expected).abs() < 1e-6, "{dropped:?}");
        }
    }

    #[test]
    fn a_wide_and_a_tall_weight_are_decomposed_alike() {
        let wide = [4.0, 0.0, 0.0, 0.0, 0.5, 0.0];
        let tall = [4.0, 0.0, 0.0, 0.5, 0.0, 0.0];
        for (weight, outputs, inputs) in [(wide, 2, 3), (tall, 3, 2)] {
            let Smallest { left, right } = smallest(&weight, outputs, inputs, 1).expect("it converges");
            assert_eq!((left.len(), right.len()), (outputs, inputs));
            let sum: f32 = left.iter().flat_map(|l| right.iter().map(move |r| l * r)).sum();
            assert!((sum - 0.5).abs() < 1e-6);
        }
    }
}
