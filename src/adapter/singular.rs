//! The smallest singular values of a weight: what KaSA does without.
//!
//! With W = U S V^T, the weight without its r smallest values is `W - (U_r S_r) V_r^T`, r columns and rows of each: a product
//! of two thin matrices, which costs a row as much as any adapter of rank r. Finding them takes the whole decomposition.

#[cfg(feature = "kasa")]
use nalgebra::{DMatrix, SVD};

use crate::adapter::delta::LowRank;
use crate::error::{Error, ErrorCode, Result};
#[cfg(feature = "kasa")]
use crate::tensor::Tensor;

/// Steps after which a decomposition that should take a few for each value is given up.
#[cfg(feature = "kasa")]
const MAX_STEPS_OF_VALUE: usize = 1000;

/// What takes the `count` smallest singular values out of a weight `[outputs, inputs]`, row-major: A is `V_r^T`, B `U_r S_r`,
/// and the scale -1. The weight is decomposed in f64; it has at least so many values.
///
/// # Errors
/// `internal` if the decomposition does not converge.
#[cfg(feature = "kasa")]
pub(super) fn without_smallest(
    weight: &[f32],
    outputs: usize,
    inputs: usize,
    count: usize,
) -> Result<LowRank<'static>> {
    let matrix = DMatrix::from_row_iterator(outputs, inputs, weight.iter().map(|&value| f64::from(value)));
    let values = outputs.min(inputs);
    let failed = || Error::new(ErrorCode::Internal, "the singular values of a weight were not found");
    let svd = SVD::try_new(matrix, true, true, 5.0 * f64::EPSILON, MAX_STEPS_OF_VALUE * values).ok_or_else(failed)?;
    let (Some(u), Some(v_t)) = (svd.u, svd.v_t) else { return Err(failed()) };
    // They stand in descending order.
    let kept = values.saturating_sub(count)..values;
    let left = (0..outputs).flat_map(|output| kept.clone().map(move |i| (output, i)));
    let right = kept.clone().flat_map(|i| (0..inputs).map(move |input| (i, input)));
    let left: Vec<f32> = left.map(|(output, i)| (u[(output, i)] * svd.singular_values[i]) as f32).collect();
    let right: Vec<f32> = right.map(|(i, input)| v_t[(i, input)] as f32).collect();
    Ok(LowRank::new(Tensor::from_f32(&[count, inputs], &right), Tensor::from_f32(&[outputs, count], &left), -1.0))
}

/// A build without the feature `kasa` has no decomposition.
///
/// # Errors
/// `adapter_feature_unsupported`, always.
#[cfg(not(feature = "kasa"))]
pub(super) fn without_smallest(_: &[f32], _: usize, _: usize, _: usize) -> Result<LowRank<'static>> {
    Err(Error::new(ErrorCode::AdapterFeatureUnsupported, "KaSA is left out of this build"))
}

#[cfg(all(test, feature = "kasa"))]
mod tests {
    use super::*;

    /// What one value of rank one is, `[outputs, inputs]`, times the scale.
    fn removed(weight: &[f32], outputs: usize, inputs: usize) -> Vec<f32> {
        let low = without_smallest(weight, outputs, inputs, 1).expect("it converges");
        assert_eq!((low.a.shape(), low.b.shape()), (&[1, inputs][..], &[outputs, 1][..]));
        let (a, b) = (low.a.view().to_f32(), low.b.view().to_f32());
        b.iter().flat_map(|b| a.iter().map(move |a| low.scale * b * a)).collect()
    }

    #[test]
    fn what_is_left_of_a_weight_has_none_of_its_smallest_values() {
        // [2 1; 1 2] has the singular values 3 and 1, the smaller along (1, -1) / sqrt 2.
        let removed = removed(&[2.0, 1.0, 1.0, 2.0], 2, 2);
        for (found, expected) in removed.iter().zip([-0.5, 0.5, 0.5, -0.5]) {
            assert!((found - expected).abs() < 1e-6, "{removed:?}");
        }
    }

    #[test]
    fn a_wide_and_a_tall_weight_are_decomposed_alike() {
        let wide = removed(&[4.0, 0.0, 0.0, 0.0, 0.5, 0.0], 2, 3);
        let tall = removed(&[4.0, 0.0, 0.0, 0.5, 0.0, 0.0], 3, 2);
        for (removed, at) in [(wide, 4), (tall, 3)] {
            for (i, value) in removed.iter().enumerate() {
                let expected = if i == at { -0.5 } else { 0.0 };
                assert!((value - expected).abs() < 1e-6, "{removed:?}");
            }
        }
    }
}
