//! Low-rank factors and replaced rows in 16 bits, scaled by powers of two where they come from a wider type.

use half::f16;

use crate::backend::cuda::layout::ElementType;
use crate::error::Result;
use crate::tensor::{DType, Tensor, TensorView, zeros};

/// The largest magnitude of a scaled factor is below 2 to this power, half of f16's largest.
const LARGEST_EXPONENT: i32 = 15;
/// Powers beyond this are not needed for any factor that matters; their product with a scale stays an f32.
const EXPONENTS: std::ops::RangeInclusive<i32> = -48..=48;
/// Values that are widened at a time.
const PART: usize = 4096;

/// A factor, to be multiplied by a power of two so that rounding it to 16 bits keeps its small values too.
#[derive(Clone, Copy)]
pub(super) struct ScaledFactor<'a> {
    factor: TensorView<'a>,
    /// The scaled values are `2^exponent` times the factor's.
    pub(super) exponent: i32,
}

impl<'a> ScaledFactor<'a> {
    /// A factor that will be rounded to `element`.
    pub(super) fn new(factor: &'a Tensor<'_>, element: ElementType) -> Self {
        let factor = factor.view();
        // A bf16 has the range of an f32, and an f16 is itself.
        let exponent = match (element, factor.dtype()) {
            (ElementType::Bf16, _) | (_, DType::F16) => 0,
            (ElementType::F16, _) => exponent_for(largest_magnitude(factor)),
        };
        Self { factor, exponent }
    }

    /// Number of rows.
    pub(super) fn rows(&self) -> usize {
        self.factor.shape()[0]
    }

    /// Reads scaled values from the one with index `first` on.
    pub(super) fn read(&self, first: usize, values: &mut [f32]) {
        self.factor.read_f32(first..first + values.len(), values);
        if self.exponent != 0 {
            let scale = power_of_two(self.exponent);
            values.iter_mut().for_each(|value| *value *= scale);
        }
    }

    /// The bits of the scaled values as f16.
    ///
    /// # Errors
    /// `memory_exhausted`.
    pub(super) fn to_f16(self) -> Result<Vec<u16>> {
        let mut bits = zeros(self.factor.len())?;
        let mut values = [0.0; PART];
        for (part, bits) in bits.chunks_mut(PART).enumerate() {
            let values = &mut values[..bits.len()];
            self.read(part * PART, values);
            bits.iter_mut().zip(values).for_each(|(bits, &mut value)| *bits = f16::from_f32(value).to_bits());
        }
        Ok(bits)
    }
}

/// The largest finite or infinite magnitude; NaN counts for nothing.
fn largest_magnitude(factor: TensorView<'_>) -> f32 {
    let mut values = [0.0; PART];
    let mut largest = 0f32;
    for first in (0..factor.len()).step_by(PART) {
        let values = &mut values[..PART.min(factor.len() - first)];
        factor.read_f32(first..first + values.len(), values);
        largest = values.iter().fold(largest, |largest, value| largest.max(value.abs()));
    }
    largest
}

/// The power of two that brings a magnitude below [`LARGEST_EXPONENT`].
fn exponent_for(largest: f32) -> i32 {
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

    fn assert_keeps(values: &[f32]) {
        let tensor = Tensor::from_f32(&[1, values.len()], values);
        let factor = ScaledFactor::new(&tensor, ElementType::F16);
        for (bits, &value) in factor.to_f16().unwrap().into_iter().zip(values) {
            let back = f16::from_bits(bits).to_f64() * 2f64.powi(-factor.exponent);
            assert!((back / f64::from(value) - 1.0).abs() < 5e-4, "{back} for {value}");
        }
    }

    fn exponent_of(values: &[f32], element: ElementType) -> i32 {
        ScaledFactor::new(&Tensor::from_f32(&[1, values.len()], values), element).exponent
    }

    #[test]
    fn wide_factors_are_scaled_by_a_power_of_two_and_keep_their_small_values() {
        assert_keeps(&[1.5e-9, -3.0e-6, 7.7e-8]);
        let mut many = vec![1.5e-9; 2 * PART + 5];
        many[2 * PART + 4] = -3.0e-6;
        assert_keeps(&many);
    }

    #[test]
    fn large_factors_do_not_overflow() {
        let values = Tensor::from_f32(&[1, 2], &[3.0e5, -1.0]);
        let factor = ScaledFactor::new(&values, ElementType::F16);
        let finite = factor.to_f16().unwrap().into_iter().all(|bits| f16::from_bits(bits).is_finite());
        assert!(factor.exponent < 0 && finite);
    }

    #[test]
    fn zeros_halves_and_bfloat16_activations_need_no_scaling() {
        assert_eq!(exponent_of(&[0.0, 0.0], ElementType::F16), 0);
        assert_eq!(exponent_of(&[1e-9], ElementType::Bf16), 0);
    }
}
