//! What the codes of a quantized KV cache mean.
//!
//! A head is cut into groups of 32 channels (16 where its width is no multiple of 32). Each group is rotated by the Hadamard
//! matrix H of its width, `H[i][j] = (-1)^(ones in i & j)`, which spreads a channel that is larger than the others over the
//! group, and then rounded to codes with one scale:
//!
//! ```text
//! to store   r = H x / 8                      (/ 4 in groups of 16)
//! scale      s = f16(largest |r| / c)         c = (2^bits - 1) / 2, the middle of the codes
//! code       r / s + c, rounded to nearest    0 ..= 2^bits - 1
//! stored     (code - c) s                     exact in f32
//! to read    H x / 4
//! ```
//!
//! H is symmetric and `H H` the group's width times 1, so a query that is rotated to be read has the same product with a
//! rotated key as the two had before, and a sum of rotated values is rotated back by the same function. All factors are powers
//! of two. The factors on what is stored leave room for what f16 holds: 32 channels of 65504 have a finite scale.

use half::f16;

/// Bytes of a group's scale.
pub const SCALE_BYTES: usize = 2;

/// Channels of a group of a head of that width; `None` if it has no whole groups.
pub fn group_width(head_dim: usize) -> Option<usize> {
    [32, 16].into_iter().find(|&width| head_dim > 0 && head_dim.is_multiple_of(width))
}

/// Rotates keys or values, in whole groups of that width, as they are stored.
pub fn rotate_to_store(x: &mut [f32], group: usize) {
    rotate(x, group, if group == 32 { 0.125 } else { 0.25 });
}

/// Rotates a query, or a sum of stored values, in whole groups of that width.
pub fn rotate_to_read(x: &mut [f32], group: usize) {
    rotate(x, group, 0.25);
}

/// `factor H x` of each group.
fn rotate(x: &mut [f32], group: usize, factor: f32) {
    for group in x.chunks_exact_mut(group) {
        let mut half = group.len() / 2;
        while half > 0 {
            for pair in group.chunks_exact_mut(2 * half) {
                let (first, second) = pair.split_at_mut(half);
                for (a, b) in first.iter_mut().zip(second) {
                    (*a, *b) = (*a + *b, *a - *b);
                }
            }
            half /= 2;
        }
        group.iter_mut().for_each(|value| *value *= factor);
    }
}

/// The middle of the codes of that many bits.
pub(crate) const fn middle(bits: u32) -> f32 {
    ((1u32 << bits) - 1) as f32 / 2.0
}

/// The codes of one rotated group, and its scale: NaN if that is not finite.
pub fn quantize(group: &[f32], bits: u32, codes: &mut [u8]) -> f16 {
    let largest = |largest: f32, x: &f32| if x.is_nan() || x.abs() > largest { x.abs() } else { largest };
    let middle = middle(bits);
    let scale = f16::from_f32(group.iter().fold(0.0, largest) / middle);
    let divisor = scale.to_f32();
    for (code, x) in codes.iter_mut().zip(group) {
        // A scale of 0 leaves codes without meaning: 0 times any of them is 0.
        *code = (x / divisor + middle).round_ties_even().clamp(0.0, 2.0 * middle) as u8;
    }
    if scale.is_finite() { scale } else { f16::NAN }
}

/// What a code stands for.
pub fn dequantize(code: u8, bits: u32, scale: f16) -> f32 {
    (f32::from(code) - middle(bits)) * scale.to_f32()
}

/// A head in its own channels, which are whole groups of that width, from the code and the scale of each channel.
pub(crate) fn restore(head: &mut [f32], bits: u32, group: usize, code_of: impl Fn(usize) -> (u8, f16)) {
    for (channel, value) in head.iter_mut().enumerate() {
        let (code, scale) = code_of(channel);
        *value = dequantize(code, bits, scale);
    }
    rotate_to_read(head, group);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `H x` by the definition of H, in f64.
    fn hadamard(x: &[f64]) -> Vec<f64> {
        let sign = |i: usize, j: usize| if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
        (0..x.len()).map(|i| x.iter().enumerate().map(|(j, x)| sign(i, j) * x).sum()).collect()
    }

    fn norm(x: &[f64]) -> f64 {
        x.iter().map(|x| x * x).sum::<f64>().sqrt()
    }

    proptest! {
        /// Each rotated channel is off by at most half a step, so the whole group, which the rotation keeps its length, by
        /// that for each channel.
        #[test]
        fn what_is_read_is_within_half_a_step_of_what_was_stored(
            head_dim in prop_oneof![Just(64usize), Just(80), Just(96), Just(128), Just(256)],
            bits in prop_oneof![Just(4u32), Just(8)],
            magnitude in -12i32..12,
            seed in any::<u64>(),
        ) {
            let group = group_width(head_dim).unwrap();
            let mut state = seed | 1;
            let mut x: Vec<f32> = (0..head_dim).map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                ((state >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 2f32.powi(magnitude)
            }).collect();
            x[0] *= 50.0;
            let mut rotated = x.clone();
            rotate_to_store(&mut rotated, group);
            let mut read = Vec::new();
            for values in rotated.chunks(group) {
                let mut codes = vec![0; group];
                let scale = quantize(values, bits, &mut codes);
                read.extend(codes.iter().map(|&code| dequantize(code, bits, scale)));
            }
            rotate_to_read(&mut read, group);

            for (x, read) in x.chunks(group).zip(read.chunks(group)) {
                let x: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
                let error: Vec<f64> = x.iter().zip(read).map(|(x, &read)| x - f64::from(read)).collect();
                // In units of x: a rotation that keeps lengths has the factor 1 / sqrt(width).
                let width = group as f64;
                let largest = hadamard(&x).into_iter().fold(0f64, |m, r| m.max(r.abs())) / width.sqrt();
                let half_step = largest / ((1 << bits) - 1) as f64;
                // A scale's rounding to f16, and below its normal numbers to a multiple of 2^-24.
                let bound = half_step * (1.0 + 2f64.powi(-9) * (1 << bits) as f64) + 2f64.powi(-16);
                prop_assert!(norm(&error) <= bound * width.sqrt(), "{} of at most {}", norm(&error), bound * width.sqrt());
            }
        }

        #[test]
        fn products_are_those_before_the_rotation(values in prop::collection::vec(-1000i16..1000, 160)) {
            let (q, k) = values.split_at(80);
            let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
            let mut q: Vec<f32> = q.iter().map(|&x| f32::from(x)).collect();
            let mut k: Vec<f32> = k.iter().map(|&x| f32::from(x)).collect();
            let before = product(&q, &k);
            rotate_to_read(&mut q, 16);
            rotate_to_store(&mut k, 16);
            prop_assert_eq!(product(&q, &k), before, "integers of that size are exact");
        }
    }

    #[test]
    fn a_rotation_to_store_and_one_to_read_give_what_was_there() {
        for group in [16, 32] {
            let x: Vec<f32> = (0..64).map(|i| (i * i % 37) as f32 - 11.0).collect();
            let mut twice = x.clone();
            rotate_to_store(&mut twice, group);
            let expected: Vec<f64> =
                x.chunks(group).flat_map(|x| hadamard(&x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>())).collect();
            let factor = if group == 32 { 8.0 } else { 4.0 };
            assert!(twice.iter().zip(&expected).all(|(&found, expected)| f64::from(found) * factor == *expected));
            rotate_to_read(&mut twice, group);
            assert_eq!(twice, x);
        }
    }

    #[test]
    fn what_f16_holds_has_a_scale_and_what_is_not_finite_has_none() {
        for bits in [4, 8] {
            let mut codes = [0; 32];
            let mut x = [65504.0; 32];
            rotate_to_store(&mut x, 32);
            assert!(quantize(&x, bits, &mut codes).is_finite());
            for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 3e38] {
                let mut x = [0.0; 32];
                x[7] = value;
                rotate_to_store(&mut x, 32);
                assert!(quantize(&x, bits, &mut codes).is_nan(), "{value}");
            }
        }
    }

    #[test]
    fn zeros_stay_zeros() {
        for bits in [4, 8] {
            let mut codes = [0; 16];
            let scale = quantize(&[0.0; 16], bits, &mut codes);
            assert!(codes.iter().all(|&code| dequantize(code, bits, scale) == 0.0));
        }
    }
}
