//! The product of packed codes with activations in digits: the inner loop of quantized linears, on integers.
//!
//! The activations of a span (at most 128 inputs, the same as the codes that share a scale) become integers, multiples of one
//! power of two, as large as three signed bytes hold. Their bytes, the *digits*, meet the codes in 8-bit dot products:
//!
//! ```text
//! x[k] = step * q[k]        q = lo + 256 mid + 65536 hi,  |q| <= 0x7f7f7f,  each digit in -128..=127
//! y = 0;  for each span:  S_d = sum over k of code[k] * d[k]   for d = lo, mid, hi                        (i32, exact)
//!                         D_d = S_d - zero * (sum over k of d[k])                                        (f32, exact)
//!                         y += (scale * step) * (65536 D_hi + (256 D_mid + D_lo))                        (f32)
//! ```
//!
//! The sums are exact, so their order is free, and every instruction set that multiplies so gives the same bits: |code| <= 255, |zero| <= 256
//! and |d| <= 128 over 128 inputs bound S, D and the product with zero by 2^22, far below where i32 overflows or f32 rounds.
//! What remains is f32's rounding of few terms, none of which is fused, and that of x to 23 bits below the largest of its
//! span: as exact as a sum in f32. Two digits would be off by 3e-5 of a row's size, a hundred times more than f32.
//!
//! A row in digits is `[quad][lo, mid, hi, unused]`, words that hold the digit of four inputs, then `[span][step, sum of lo, of
//! mid, of hi]` in f32. A span with an infinity or NaN has a step of NaN, and so have all its row's outputs.
//!
//! Where the user takes activations of 8 bits, there is one digit, with a step for each block of 32 inputs (`int8.rs`):
//!
//! ```text
//! x[k] ~ step[b] * q[k]     |q| <= 127, for the inputs k of a block b
//! y = 0;  for each span:  D = 0;  for each block b:  D += step[b] * (sum over k of code[k] * q[k])        (fused)
//!                         y += scale * (D - zero * (sum over b of step[b] * sum over k of q[k]))          (fused)
//! ```
//!
//! Such a row is `[quad][q]`, then `[span][sum of step * q, step of each of four blocks]` in f32.

#![allow(unsafe_code, reason = "vector loads through pointers, inside loops that must not check bounds")]

use super::integers::{Integers, Pairs};
use super::tile::{BLOCK, Tiles, Width, advanced, prefetch_for_later, prefetch_lines};
use super::vector::{LANES, LINE};

/// Most blocks of a span of codes.
pub(crate) const SPAN_BLOCKS: usize = 4;
/// Inputs whose digits are in a word.
pub(crate) const QUAD: usize = 4;
/// Largest magnitude of an activation in steps: 127 of each digit.
const LARGEST: u32 = 0x7f_7f7f;

/// In how many digits activations are split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Digits {
    /// 8 bits, with a step for each block.
    One = 1,
    /// As exact as f32.
    Three = 3,
}

impl Digits {
    /// Words of a quad of inputs.
    pub(crate) const fn quad_words(self) -> usize {
        quad_words(self as usize)
    }

    /// Words that describe a span.
    pub(crate) const fn span_words(self) -> usize {
        span_words(self as usize)
    }

    /// Words of a row of that many inputs, padding included, in so many spans.
    pub(crate) const fn row_words(self, inputs: usize, spans: usize) -> usize {
        inputs / QUAD * self.quad_words() + spans * self.span_words()
    }
}

const fn quad_words(digits: usize) -> usize {
    if digits == 1 { 1 } else { 4 }
}

const fn span_words(digits: usize) -> usize {
    if digits == 1 { 1 + SPAN_BLOCKS } else { 4 }
}

/// The activations of one span: its digits, and what describes it; `x` has whole blocks.
pub(crate) type SplitFn = unsafe fn(x: &[f32], digits: &mut [u32], of_span: &mut [u32]);

/// See [`SplitFn`]; into three digits.
///
/// # Safety
/// The instruction set of `I` must be available.
#[inline(always)]
pub(crate) unsafe fn split<I: Integers>(x: &[f32], digits: &mut [u32], of_span: &mut [u32]) {
    assert!(x.len().is_multiple_of(BLOCK) && digits.len() == x.len() && of_span.len() == span_words(3));
    // Magnitudes of floats are ordered as their bits, infinities and NaN last.
    let largest = x.iter().fold(0, |largest, value| largest.max(value.to_bits() & 0x7fff_ffff));
    let (factor, step) = factor_and_step(largest);
    // SAFETY: the caller's promise; `x` and the digits are as long as each other, in whole vectors.
    let sums = unsafe {
        let mut sums = I::zero();
        for at in (0..x.len()).step_by(I::LANES) {
            let line = I::split(x.as_ptr().add(at), factor);
            line.store(digits.as_mut_ptr().add(at));
            sums = sums.dot(I::splat(0x0101_0101), line);
        }
        let mut lanes = [0u32; LANES];
        sums.store(lanes.as_mut_ptr());
        lanes
    };
    let mut of_digit = [0i32; QUAD];
    sums.iter().enumerate().for_each(|(lane, &sum)| of_digit[lane % QUAD] += sum as i32);
    let values = [step, of_digit[0] as f32, of_digit[1] as f32, of_digit[2] as f32];
    of_span.iter_mut().zip(values).for_each(|(word, value)| *word = value.to_bits());
}

/// Powers of two, each the other's inverse, such that the largest value, given by its bits, times the first is just within
/// [`LARGEST`]; below 2^-104 values are rounded to multiples of 2^-126.
fn factor_and_step(largest: u32) -> (f32, f32) {
    if largest >= f32::INFINITY.to_bits() {
        return (0.0, f32::NAN);
    }
    let power_of_two = |exponent: i32| f32::from_bits(((exponent + 127) as u32) << 23);
    // 24 significant bits make 23 when halved, rounded up.
    let significand = (largest & 0x7f_ffff) | 0x80_0000;
    let halved_is_within = significand.div_ceil(2) <= LARGEST;
    let exponent = (largest >> 23) as i32 - 127;
    let exponent = (if halved_is_within { 22 } else { 21 } - exponent).min(126);
    (power_of_two(exponent), power_of_two(-exponent))
}

/// Computes tiles `tile..tile + T` for R rows of digits: `x` points to R pointers to rows, `y` to `[T][stride]` values of
/// which the first `R * 16` are written.
pub(crate) type DigitProductFn =
    unsafe fn(tiles: &Tiles<'_>, tile: usize, x: *const *const u32, y: *mut f32, stride: usize);

/// Where the tiles, rows and results of a product are.
struct Place<const R: usize, const T: usize> {
    blocks: [*const u8; T],
    scales: [*const u8; T],
    digits: [*const u32; R],
    spans: [*const f32; R],
    y: *mut f32,
    stride: usize,
}

/// See [`DigitProductFn`].
///
/// # Safety
/// The instruction set of `I` must be available; `tile + T` within the tiles, all of whose spans are codes; `x` and `y` valid
/// as [`DigitProductFn`] says.
#[inline(always)]
pub(crate) unsafe fn product<I: Integers, const D: usize, const R: usize, const T: usize>(
    tiles: &Tiles<'_>,
    tile: usize,
    x: *const *const u32,
    y: *mut f32,
    stride: usize,
) {
    debug_assert!((tile + T) * tiles.tile_bytes <= tiles.codes.len());
    // SAFETY: the caller's promises. Pointers advance block by block and span by span through the T tiles, whose bytes
    // are `tile_bytes` and `scale_bytes` apart, and through the rows, which have the same blocks and spans.
    unsafe {
        let mut place = Place::<R, T> {
            blocks: [tiles.codes.as_ptr(); T],
            scales: [tiles.scales.as_ptr(); T],
            digits: [std::ptr::null(); R],
            spans: [std::ptr::null(); R],
            y,
            stride,
        };
        for t in 0..T {
            place.blocks[t] = place.blocks[t].add((tile + t) * tiles.tile_bytes);
            place.scales[t] = place.scales[t].add((tile + t) * tiles.scale_bytes);
            y.add(t * stride).write_bytes(0, R * LANES);
        }
        for r in 0..R {
            place.digits[r] = *x.add(r);
            place.spans[r] = (*x.add(r)).add(tiles.inputs / QUAD * quad_words(D)).cast();
        }
        let ahead = tiles.ahead;
        let mut ahead = ahead.chunks(ahead.len().div_ceil(tiles.spans.len().max(1)).next_multiple_of(LINE).max(LINE));
        for span in tiles.spans {
            let count = span.blocks;
            prefetch_for_later(ahead.next().unwrap_or(&[]));
            match span.width {
                Width::Code2 => add_span::<I, D, 2, R, T>(count, tiles.wide, &mut place),
                Width::Code3 => add_span::<I, D, 3, R, T>(count, tiles.wide, &mut place),
                Width::Code4 => add_span::<I, D, 4, R, T>(count, tiles.wide, &mut place),
                Width::Code5 => add_span::<I, D, 5, R, T>(count, tiles.wide, &mut place),
                Width::Code6 => add_span::<I, D, 6, R, T>(count, tiles.wide, &mut place),
                Width::Code8 => add_span::<I, D, 8, R, T>(count, tiles.wide, &mut place),
                Width::F16 | Width::Bf16 | Width::F32 => {}
            }
        }
    }
}

/// Adds one span of `BITS`-bit codes, and moves on to the next.
///
/// # Safety
/// As [`product`].
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "one index for several arrays")]
unsafe fn add_span<I: Integers, const D: usize, const BITS: usize, const R: usize, const T: usize>(
    count: usize,
    wide: bool,
    place: &mut Place<R, T>,
) {
    // SAFETY: as `product`; a vector of fewer lanes than a tile takes the tile in parts.
    unsafe {
        for part in 0..LANES / I::LANES {
            let lane = part * I::LANES;
            let mut sums = [[[I::zero(); D]; R]; T];
            let mut scaled = [[I::zero_floats(); R]; T];
            for i in 0..count {
                let blocks = advanced(&place.blocks, i * BITS * LINE + lane * 4);
                let digits = advanced(&place.digits, i * BLOCK / QUAD * quad_words(D));
                if part == 0 {
                    prefetch_lines::<T>(&blocks, BITS);
                }
                add_block::<I, D, BITS, R, T>(&blocks, &digits, &mut sums);
                if D == 1 {
                    for t in 0..T {
                        for r in 0..R {
                            scaled[t][r] = sums[t][r][0].scale_onto(place.spans[r].add(1 + i), scaled[t][r]);
                            sums[t][r][0] = I::zero();
                        }
                    }
                }
            }
            for t in 0..T {
                let scales = I::scale_and_zero(wide, place.scales[t], lane);
                for r in 0..R {
                    let y = place.y.add(t * place.stride + r * LANES + lane);
                    match sums[t][r][..] {
                        [low, mid, high] => low.fold(mid, high, scales, place.spans[r], y),
                        _ => I::fold_scaled(scaled[t][r], scales, place.spans[r], y),
                    }
                }
            }
        }
        let of_scales = 2 * LANES * if wide { 4 } else { 2 };
        for t in 0..T {
            place.blocks[t] = place.blocks[t].add(count * BITS * LINE);
            place.scales[t] = place.scales[t].add(of_scales);
        }
        for r in 0..R {
            place.digits[r] = place.digits[r].add(count * BLOCK / QUAD * quad_words(D));
            place.spans[r] = place.spans[r].add(span_words(D));
        }
    }
}

/// Adds one block.
///
/// # Safety
/// As [`product`].
#[inline(always)]
unsafe fn add_block<I: Integers, const D: usize, const BITS: usize, const R: usize, const T: usize>(
    blocks: &[*const u8; T],
    digits: &[*const u32; R],
    sums: &mut [[[I; D]; R]; T],
) {
    // SAFETY: as `product`; a block has eight quads.
    unsafe {
        if I::PAIRED_QUADS[BITS] > 0 {
            return add_block_in_pairs::<I, D, BITS, R, T>(blocks, digits, sums);
        }
        add_quad::<I, D, BITS, 0, R, T>(blocks, digits, sums);
        add_quad::<I, D, BITS, 1, R, T>(blocks, digits, sums);
        add_quad::<I, D, BITS, 2, R, T>(blocks, digits, sums);
        add_quad::<I, D, BITS, 3, R, T>(blocks, digits, sums);
        add_quad::<I, D, BITS, 4, R, T>(blocks, digits, sums);
        add_quad::<I, D, BITS, 5, R, T>(blocks, digits, sums);
        add_quad::<I, D, BITS, 6, R, T>(blocks, digits, sums);
        add_quad::<I, D, BITS, 7, R, T>(blocks, digits, sums);
    }
}

/// Adds inputs `4 Q .. 4 Q + 4` of a block.
///
/// # Safety
/// As [`product`].
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "one index for several arrays")]
unsafe fn add_quad<I: Integers, const D: usize, const BITS: usize, const Q: usize, const R: usize, const T: usize>(
    blocks: &[*const u8; T],
    digits: &[*const u32; R],
    sums: &mut [[[I; D]; R]; T],
) {
    // SAFETY: as `product`; a block has eight quads.
    unsafe {
        let mut codes = [I::zero(); T];
        for t in 0..T {
            codes[t] = unpack::<I, BITS, Q>(blocks[t]);
        }
        for r in 0..R {
            for d in 0..D {
                let digit = I::splat(*digits[r].add(quad_words(D) * Q + d));
                for t in 0..T {
                    sums[t][r][d] = sums[t][r][d].dot(codes[t], digit);
                }
            }
        }
    }
}

/// As [`add_block`], where products are summed in 16 bits and widened before they could overflow. The codes stay in registers
/// for all rows and digits, so that few sums in 16 bits are alive at a time.
///
/// # Safety
/// As [`product`].
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "one index for several arrays")]
unsafe fn add_block_in_pairs<I: Integers, const D: usize, const BITS: usize, const R: usize, const T: usize>(
    blocks: &[*const u8; T],
    digits: &[*const u32; R],
    sums: &mut [[[I; D]; R]; T],
) {
    // SAFETY: as `product`; a block has eight quads.
    unsafe {
        let mut codes = [[I::zero(); 8]; T];
        for t in 0..T {
            codes[t] = [
                unpack::<I, BITS, 0>(blocks[t]),
                unpack::<I, BITS, 1>(blocks[t]),
                unpack::<I, BITS, 2>(blocks[t]),
                unpack::<I, BITS, 3>(blocks[t]),
                unpack::<I, BITS, 4>(blocks[t]),
                unpack::<I, BITS, 5>(blocks[t]),
                unpack::<I, BITS, 6>(blocks[t]),
                unpack::<I, BITS, 7>(blocks[t]),
            ];
        }
        for r in 0..R {
            for d in 0..D {
                let mut pairs = [I::Pairs::zero(); T];
                for q in 0..8 {
                    let digit = I::splat(*digits[r].add(quad_words(D) * q + d));
                    for t in 0..T {
                        pairs[t] = pairs[t].add_products(codes[t][q], digit);
                        if (q + 1).is_multiple_of(I::PAIRED_QUADS[BITS]) {
                            sums[t][r][d] = pairs[t].widen_onto(sums[t][r][d]);
                            pairs[t] = I::Pairs::zero();
                        }
                    }
                }
            }
        }
    }
}

/// Inputs `4 Q .. 4 Q + 4` of a block, a code in each byte.
///
/// # Safety
/// The instruction set of `I` must be available, and `block` valid for a block.
#[inline(always)]
unsafe fn unpack<I: Integers, const BITS: usize, const Q: usize>(block: *const u8) -> I {
    // SAFETY: a plane of b bits has b lines in a block, so that line `Q b / 8` is within.
    unsafe {
        let line = |plane: usize, bits: usize| I::load(block.add((plane + Q * bits / 8) * LINE));
        let shift = |bits: usize| (Q * bits % 8) as u32;
        match BITS {
            2 => line(0, 2).fields::<2, 0>(shift(2)),
            3 => line(0, 2).fields::<2, 0>(shift(2)).or(line(2, 1).fields::<1, 2>(shift(1))),
            4 => line(0, 4).fields::<4, 0>(shift(4)),
            5 => line(0, 4).fields::<4, 0>(shift(4)).or(line(4, 1).fields::<1, 4>(shift(1))),
            6 => line(0, 4).fields::<4, 0>(shift(4)).or(line(4, 2).fields::<2, 4>(shift(2))),
            _ => line(0, 8),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::kernels::dispatch::Kernels;
    use crate::backend::cpu::kernels::isa::Isa;

    /// The digits of one span, and its step.
    fn split(isa: Isa, x: &[f32]) -> Option<(Vec<u32>, Vec<f32>)> {
        let (mut digits, mut of_span) = (vec![0; x.len()], vec![0; Digits::Three.span_words()]);
        let kernels = Kernels::of(isa).filter(|kernels| kernels.takes_digits(Digits::Three, &[]))?;
        kernels.split(Digits::Three, x, &mut digits, &mut of_span);
        Some((digits, of_span.into_iter().map(f32::from_bits).collect()))
    }

    #[test]
    fn digits_and_step_are_the_activation() {
        let largest = [1.0, 0.9999, 1.9999999, 127.498_04, 127.498_05, 3e38, 1e-20, 8_355_711.0, 8_355_712.0];
        for (largest, isa) in largest.into_iter().flat_map(|largest| Isa::ALL.map(|isa| (largest, isa))) {
            let x: Vec<f32> = (0..64).map(|i| largest * (1.0 - i as f32 / 31.5)).collect();
            let Some((digits, of_span)) = split(isa, &x) else { continue };
            let digit = |i: usize, d: usize| i64::from(digits[i / 4 * 4 + d].to_le_bytes()[i % 4] as i8);
            let step = f64::from(of_span[0]);
            for (i, &x) in x.iter().enumerate() {
                let value = (digit(i, 0) + 256 * digit(i, 1) + 65536 * digit(i, 2)) as f64 * step;
                assert!((value - f64::from(x)).abs() <= step / 2.0, "{isa}: {value} for {x}");
            }
            assert!(step * f64::from(LARGEST) < 2.001 * f64::from(largest), "{isa}: a step of {step} for {largest}");
            for d in 0..3 {
                assert_eq!(of_span[1 + d] as i64, (0..64).map(|i| digit(i, d)).sum::<i64>(), "{isa}");
            }
        }
    }

    #[test]
    fn a_span_that_is_not_finite_has_no_step() {
        for (value, isa) in [f32::INFINITY, f32::NAN].into_iter().flat_map(|value| Isa::ALL.map(|isa| (value, isa))) {
            let mut x = vec![1.0; 32];
            x[7] = value;
            let Some((_, of_span)) = split(isa, &x) else { continue };
            assert!(of_span[0].is_nan() && of_span[1..].iter().all(|sum| sum.is_finite()), "{isa}");
            let (digits, of_span) = split(isa, &[0.0; 32]).expect("it was there");
            assert!(digits.iter().all(|&word| word == 0) && of_span[0] > 0.0, "{isa}");
        }
    }
}
