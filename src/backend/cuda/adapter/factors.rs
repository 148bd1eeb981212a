//! Low-rank factors in 16 bits, scaled by powers of two where they come from a wider type.

use half::f16;

use crate::backend::cuda::layout::ElementType;
use crate::error::Result;
use crate::tensor::{DType, Tensor};

/// The largest magnitude of a scaled factor is below 2 to this power, half of f16's largest.
const LARGEST_EXPONENT: i32 = 15;
/// Powers beyond this are not needed for any factor that matters; their product with a scale stays an f32.
const EXPONENTS: std::ops::RangeInclusive<i32> = -48..=48;

/// A factor as f32, multiplied by a power of two so that rounding it to 16 bits keeps its small values too.
pub(super) struct ScaledFactor {
    /// The scaled values, row after row.
    pub(super) values: Vec<f32>,
    /// They are `2^exponent` times the factor's.
    pub(super) exponent: i32,
}

impl ScaledFactor {
    /// A factor that will be rounded to `element`.
    ///
    /// # Errors
    /// `memory_exhausted`.
    pub(super) fn new(factor: &Tensor<'_>, element: ElementType) -> Result<Self> {
        let mut values = factor.view().try_to_f32()?;
        // A bf16 has the range of an f32, and an f16 is itself.
        let exponent = match (element, factor.dtype()) {
            (ElementType::Bf16, _) | (_, DType::F16) => 0,
            (ElementType::F16, _) => exponent_for(&values),
        };
        if exponent != 0 {
            let scale = power_of_two(exponent);
            values.iter_mut().for_each(|value| *value *= scale);
        }
        Ok(Self { values, exponent })
    }

    /// The values as f16.
    pub(super) fn to_f16(&self) -> impl Iterator<Item = f16> + '_ {
        self.values.iter().map(|&value| f16::from_f32(value))
    }
}

/// The power of two that brings the largest magnitude below [`LARGEST_EXPONENT`].
fn exponent_for(values: &[f32]) -> i32 {
    let largest = values.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    if largest == 0.0 || !largest.is_finite() {
        return 0;
    }
    (LARGEST_EXPONENT - 1 - largest.log2().floor() as i32).clamp(*EXPONENTS.start(), *EXPONENTS.end())
}

/// `2^exponent`, exactly.
pub(super) fn power_of_two(exponent: i32) -> f32 {
    f32::exp2(exponent as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scaled(values: &[f32], element: ElementType) -> ScaledFactor {
        ScaledFactor::new(&Tensor::from_f32(&[1, values.len()], values), element).unwrap()
    }

    #[test]
    fn wide_factors_are_scaled_by_a_power_of_two_and_keep_their_small_values() {
        let values = [1.5e-9, -3.0e-6, 7.7e-8];
        let factor = scaled(&values, ElementType::F16);
        for (half, value) in factor.to_f16().zip(values) {
            let back = f64::from(half.to_f32()) * 2f64.powi(-factor.exponent);
            assert!((back / f64::from(value) - 1.0).abs() < 5e-4, "{back} for {value}");
        }
    }

    #[test]
    fn large_factors_do_not_overflow() {
        let factor = scaled(&[3.0e5, -1.0], ElementType::F16);
        assert!(factor.exponent < 0 && factor.to_f16().all(f16::is_finite));
    }

    #[test]
    fn zeros_halves_and_bfloat16_activations_need_no_scaling() {
        assert_eq!(scaled(&[0.0, 0.0], ElementType::F16).exponent, 0);
        assert_eq!(scaled(&[1e-9], ElementType::Bf16).exponent, 0);
    }
}
