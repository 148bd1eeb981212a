//! A dense weight rounded to codes of 8 bits: an output head that is read in half the bytes.
//!
//! Every output has a scale for each 128 inputs, the largest of them over 127, and codes around 128. A weight is off by half a
//! scale at most, about 0.6 % of the weights' size where they are normally distributed.

use std::ops::Range;
use std::sync::OnceLock;

use half::f16;

use super::bit_fields::BitStreams;
use super::weight::{QuantGroup, QuantLayout, QuantizedWeight};
use crate::tensor::TensorView;

/// Inputs that share a scale.
const GROUP: usize = 128;
const BITS: u8 = 8;
/// Largest distance of a code from [`ZERO`].
const LARGEST: f32 = 127.0;
const ZERO: i32 = 128;

/// A matrix of floats `[outputs, inputs]` whose codes are computed as they are read.
pub struct RoundedWeight<'a> {
    weight: TensorView<'a>,
    layout: QuantLayout,
    /// `[inputs / 4, outputs]`, for those that read the codes as bit streams.
    words: OnceLock<Vec<[u8; 4]>>,
}

impl<'a> RoundedWeight<'a> {
    /// Rounds a matrix of floats.
    ///
    /// # Panics
    /// If it is no matrix.
    pub fn new(weight: TensorView<'a>) -> Self {
        let inputs = weight.shape()[1];
        let group = |first: usize| QuantGroup { bits: BITS, inputs: GROUP.min(inputs - first) };
        let layout = QuantLayout { groups: (0..inputs).step_by(GROUP).map(group).collect(), permutation: None };
        Self { weight, layout, words: OnceLock::new() }
    }

    /// An output's weights of a group, in `values`, and their scale.
    fn read_group<'v>(&self, group: usize, output: usize, values: &'v mut [f32; GROUP]) -> (&'v [f32], f32) {
        let first = output * self.in_features() + group * GROUP;
        let values = &mut values[..self.layout.groups[group].inputs];
        self.weight.read_f32(first..first + values.len(), values);
        (values, scale(values))
    }
}

/// The scale of a group, exact in f16 where that has enough digits; not finite if a weight is not.
fn scale(values: &[f32]) -> f32 {
    // Magnitudes of floats are ordered as their bits, infinities and NaN last.
    let largest = values.iter().fold(0, |largest, value| largest.max(value.to_bits() & 0x7fff_ffff));
    let scale = f32::from_bits(largest) / LARGEST;
    let half = f16::from_f32(scale);
    if half.is_normal() { half.to_f32() } else { scale }
}

/// The code of a weight; that of zero where the scale is zero or not finite.
fn code(value: f32, scale: f32) -> u8 {
    ((value / scale).round_ties_even().clamp(-LARGEST, LARGEST) as i32 + ZERO) as u8
}

impl QuantizedWeight for RoundedWeight<'_> {
    fn in_features(&self) -> usize {
        self.weight.shape()[1]
    }

    fn out_features(&self) -> usize {
        self.weight.shape()[0]
    }

    fn layout(&self) -> &QuantLayout {
        &self.layout
    }

    fn read_codes(&self, inputs: Range<usize>, outputs: Range<usize>, codes: &mut [u8]) {
        assert!(inputs.end <= self.in_features() && codes.len() == inputs.len() * outputs.len());
        let (width, mut values) = (outputs.len(), [0.0; GROUP]);
        for group in inputs.start / GROUP..inputs.end.div_ceil(GROUP) {
            for (n, output) in outputs.clone().enumerate() {
                let (values, scale) = self.read_group(group, output, &mut values);
                for (input, &value) in (group * GROUP..).zip(values).filter(|(input, _)| inputs.contains(input)) {
                    codes[(input - inputs.start) * width + n] = code(value, scale);
                }
            }
        }
    }

    fn code_streams(&self) -> BitStreams<'_> {
        let columns = self.out_features();
        let words = self.words.get_or_init(|| {
            let mut words = vec![[0; 4]; self.in_features().div_ceil(4) * columns];
            let mut codes = vec![0; columns];
            for input in 0..self.in_features() {
                self.read_codes(input..input + 1, 0..columns, &mut codes);
                let row = &mut words[input / 4 * columns..][..columns];
                row.iter_mut().zip(&codes).for_each(|(word, &code)| word[input % 4] = code);
            }
            words
        });
        BitStreams { words, columns }
    }

    fn first_bit(&self, input: usize) -> usize {
        assert!(input < self.in_features());
        input * usize::from(BITS)
    }

    fn read_scales(&self, group: usize, outputs: Range<usize>, scales: &mut [f32], zeros: &mut [i32]) {
        assert!(scales.len() == outputs.len() && zeros.len() == outputs.len());
        let mut values = [0.0; GROUP];
        for (output, scale) in outputs.zip(&mut *scales) {
            *scale = self.read_group(group, output, &mut values).1;
        }
        zeros.fill(ZERO);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::StoredWeight;
    use crate::tensor::Tensor;

    /// Three outputs of 300 weights, which take two groups and a part of one; the sum of twelve digits of a generator of random
    /// numbers is nearly normal.
    fn weights() -> Vec<f32> {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32
        };
        (0..900).map(|_| 0.02 * ((0..12).map(|_| next()).sum::<f32>() - 6.0)).collect()
    }

    fn rounded(weights: &[f32]) -> Vec<f32> {
        let tensor = Tensor::from_f32(&[3, 300], weights);
        StoredWeight::Quantized(Box::new(RoundedWeight::new(tensor.view()))).dequantize(0..3)
    }

    #[test]
    fn weights_are_off_by_half_a_scale_at_most() {
        let weights = weights();
        let (mut error, mut size) = (0f64, 0f64);
        for (row, found) in weights.chunks(300).zip(rounded(&weights).chunks(300)) {
            for (group, found) in row.chunks(GROUP).zip(found.chunks(GROUP)) {
                let largest = group.iter().fold(0f32, |largest, w| largest.max(w.abs()));
                for (&w, &found) in group.iter().zip(found) {
                    assert!((w - found).abs() <= 0.502 * largest / LARGEST, "{found} for {w}");
                    error += f64::from(w - found).powi(2);
                    size += f64::from(w).powi(2);
                }
            }
        }
        let relative = (error / size).sqrt();
        assert!((0.004..0.007).contains(&relative), "{relative} of the weights' size");
    }

    #[test]
    fn extreme_weights_stay_what_they_are() {
        assert!(rounded(&[0.0; 900]).iter().all(|&w| w == 0.0));
        for largest in [1e-30, 1e30] {
            let found = rounded(&[largest; 900]);
            assert!(found.iter().all(|w| (w / largest - 1.0).abs() < 1e-6), "{}", found[0]);
        }
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut weights = weights();
            weights[300 + 150] = value;
            let found = rounded(&weights);
            assert!(!found[300 + 150].is_finite() && found[..300].iter().all(|w| w.is_finite()));
        }
    }

    #[test]
    fn the_bit_streams_hold_the_codes() {
        let weights = weights();
        let tensor = Tensor::from_f32(&[3, 300], &weights);
        let rounded = RoundedWeight::new(tensor.view());
        let mut codes = vec![0; 900];
        rounded.read_codes(0..300, 0..3, &mut codes);
        let streams = rounded.code_streams();
        for (i, &code) in codes.iter().enumerate() {
            let (first_bit, output) = (rounded.first_bit(i / 3), i % 3);
            assert_eq!(streams.words[first_bit / 32 * streams.columns + output][first_bit % 32 / 8], code);
        }
    }
}
