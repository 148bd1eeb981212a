//! Activations rounded to int8, with a step for each block of 32 inputs: as one digit (`digits.rs`), or as floats where the
//! product is in floats. An option of the user's: it is faster, and off by up to 1/254 of a block's largest activation.
//!
//! Plain loops over arrays, which vectorize wherever they are inlined, and round alike everywhere.

use super::digits::{Digits, QUAD};
use super::tile::BLOCK;

/// Largest magnitude of a digit.
const LARGEST: f32 = 127.0;
/// Blocks of smaller activations are rounded as if this was the largest: the inverse of their step would overflow.
const SMALLEST: f32 = 1e-30;

/// Rounds a block to multiples of the step that is returned. Where an activation is an infinity or NaN, the step is NaN.
#[inline(always)]
fn round_block(x: &[f32; BLOCK], digits: &mut [i8; BLOCK]) -> f32 {
    // Magnitudes of floats are ordered as their bits, infinities and NaN last.
    let largest = x.iter().fold(0, |largest, value| largest.max(value.to_bits() & 0x7fff_ffff));
    if largest >= f32::INFINITY.to_bits() {
        *digits = [0; BLOCK];
        return f32::NAN;
    }
    let largest = f32::from_bits(largest).max(SMALLEST);
    let factor = LARGEST / largest;
    digits.iter_mut().zip(x).for_each(|(digit, value)| *digit = (value * factor).round_ties_even() as i8);
    largest / LARGEST
}

/// A span's activations in one digit, as [`SplitFn`](super::digits::SplitFn) says.
#[inline(always)]
pub(crate) fn split(x: &[f32], digits: &mut [u32], of_span: &mut [u32]) {
    assert!(x.len() == digits.len() * QUAD && of_span.len() == Digits::One.span_words());
    let digits = bytemuck::cast_slice_mut::<u32, i8>(digits).as_chunks_mut::<BLOCK>().0;
    let (sum, steps) = of_span.split_at_mut(1);
    let mut total = 0.0;
    for ((x, digits), place) in x.as_chunks::<BLOCK>().0.iter().zip(digits).zip(steps) {
        let step = round_block(x, digits);
        total += step * digits.iter().map(|&digit| i32::from(digit)).sum::<i32>() as f32;
        *place = step.to_bits();
    }
    sum[0] = f32::to_bits(total);
}

/// Rounds whole blocks in place.
pub(crate) type RoundFn = unsafe fn(x: &mut [f32]);

/// See [`RoundFn`].
#[inline(always)]
pub(crate) fn round(x: &mut [f32]) {
    for x in x.as_chunks_mut::<BLOCK>().0 {
        let mut digits = [0; BLOCK];
        let step = round_block(x, &mut digits);
        x.iter_mut().zip(digits).for_each(|(x, digit)| *x = step * f32::from(digit));
    }
}

#[cfg(test)]
mod tests {
    use crate::backend::cpu::kernels::digits::Digits;
    use crate::backend::cpu::kernels::dispatch::Kernels;
    use crate::backend::cpu::kernels::isa::Isa;

    #[test]
    fn a_digit_times_its_step_is_the_rounded_activation_on_every_instruction_set() {
        for (largest, isa) in [1.0, 3e38, 1e-20].into_iter().flat_map(|largest| Isa::ALL.map(|isa| (largest, isa))) {
            let Some(kernels) = Kernels::of(isa) else { continue };
            // The second block is 1000 times smaller, and keeps its own step.
            let x: Vec<f32> =
                (0..64i16).map(|i| largest / [1.0, 1e3][i as usize / 32] * (f32::from(i % 32) / 15.5 - 1.0)).collect();
            let mut rounded = x.clone();
            kernels.round(&mut rounded);
            for (x, rounded) in x.chunks(32).zip(rounded.chunks(32)) {
                let largest = x.iter().fold(0f32, |largest, x| largest.max(x.abs()));
                for (x, rounded) in x.iter().zip(rounded) {
                    assert!((x - rounded).abs() <= 0.50001 / 127.0 * largest, "{isa}: {rounded} for {x}");
                }
            }
            if !kernels.takes_digits(Digits::One, &[]) {
                continue;
            }
            let (mut digits, mut of_span) = (vec![0u32; 16], vec![0u32; Digits::One.span_words()]);
            kernels.split(Digits::One, &x, &mut digits, &mut of_span);
            let digits: Vec<f32> =
                digits.iter().flat_map(|word| word.to_le_bytes()).map(|b| f32::from(b as i8)).collect();
            let of_span: Vec<f32> = of_span.into_iter().map(f32::from_bits).collect();
            for (i, &rounded) in rounded.iter().enumerate() {
                assert_eq!(digits[i] * of_span[1 + i / 32], rounded, "{isa}");
            }
            let sums: Vec<f32> = digits.chunks(32).map(|block| block.iter().sum()).collect();
            assert_eq!(of_span[0], of_span[1] * sums[0] + of_span[2] * sums[1], "{isa}");
        }
    }

    #[test]
    fn a_block_that_is_not_finite_becomes_nan_and_tiny_ones_become_zero() {
        for (value, isa) in [f32::INFINITY, f32::NAN].into_iter().flat_map(|value| Isa::ALL.map(|isa| (value, isa))) {
            let Some(kernels) = Kernels::of(isa) else { continue };
            let mut x = vec![1.0; 64];
            x[7] = value;
            x[32..].fill(1e-38);
            kernels.round(&mut x);
            assert!(x[..32].iter().all(|x| x.is_nan()) && x[32..].iter().all(|&x| x == 0.0), "{isa}");
        }
    }
}
