//! The integer vectors that quantized products are written over.
//!
//! A value proves that its instruction set is available: functions that make one from nothing are unsafe, those that take one
//! are not.

#![allow(unsafe_code, reason = "vector loads and stores through pointers")]

use half::f16;

use super::vector::LANES;

/// Lanes of 32 bits for outputs: four codes in bytes, or an integer.
pub(crate) trait Integers: Copy {
    /// Outputs of a vector: a tile's, or half of them.
    const LANES: usize;
    /// How many quads of codes of each number of bits may be summed in [`Integers::Pairs`]; 0 where they never are.
    const PAIRED_QUADS: [usize; 9];
    /// Sums in 16 bits.
    type Pairs: Pairs<Self>;
    /// Scales and zeros of the outputs, in f32.
    type Scales: Copy;

    /// # Safety
    /// The instruction set must be available, here and below.
    unsafe fn zero() -> Self;
    unsafe fn splat(word: u32) -> Self;
    /// # Safety
    /// `from` must be valid for all lanes.
    unsafe fn load(from: *const u8) -> Self;
    /// # Safety
    /// `to` must be valid for all lanes.
    unsafe fn store(self, to: *mut u32);
    /// Four lanes for every four values: the lowest bytes of `value * factor` rounded to an integer, to even at ties, as
    /// digits from -128 to 127, then the next two, and a lane without meaning.
    ///
    /// # Safety
    /// `from` must be valid for as many values as there are lanes.
    unsafe fn split(from: *const f32, factor: f32) -> Self;
    /// The scales and zeros of the outputs from `lane` on, of 16 each in f16 or f32.
    ///
    /// # Safety
    /// `from` must be valid for both.
    unsafe fn scale_and_zero(wide: bool, from: *const u8, lane: usize) -> Self::Scales;
    /// In each byte the `BITS` bits from bit `shift` on, as bits from bit `PLACE` on.
    fn fields<const BITS: u32, const PLACE: u32>(self, shift: u32) -> Self;
    fn or(self, other: Self) -> Self;
    /// `self` plus in each lane the sum of four products of an unsigned byte of `codes` and a signed one of `digits`.
    fn dot(self, codes: Self, digits: Self) -> Self;
    /// Adds a span's sums to `y`, see `digits.rs`; `self` are those of the lowest digit, and `span` its four numbers.
    ///
    /// # Safety
    /// `span` must be valid for four values and `y` for all lanes.
    unsafe fn fold(self, mid: Self, high: Self, scales: Self::Scales, span: *const f32, y: *mut f32);
}

/// Two sums of 16 bits in each lane.
pub(crate) trait Pairs<I>: Copy {
    /// # Safety
    /// The instruction set must be available.
    unsafe fn zero() -> Self;
    /// Adds the products of bytes, two to a sum.
    fn add_products(self, codes: I, digits: I) -> Self;
    /// Adds both sums of each lane to the lane.
    fn widen_onto(self, sums: I) -> I;
}

/// Where products are summed in 32 bits at once.
#[derive(Clone, Copy)]
pub(crate) struct NoPairs;

impl<I> Pairs<I> for NoPairs {
    #[inline(always)]
    unsafe fn zero() -> Self {
        NoPairs
    }

    #[inline(always)]
    fn add_products(self, _codes: I, _digits: I) -> Self {
        self
    }

    #[inline(always)]
    fn widen_onto(self, sums: I) -> I {
        sums
    }
}

/// The portable vector: plain loops.
#[derive(Clone, Copy)]
pub(crate) struct ScalarIntegers([u32; LANES]);

impl Integers for ScalarIntegers {
    const LANES: usize = LANES;
    const PAIRED_QUADS: [usize; 9] = [0; 9];
    type Pairs = NoPairs;
    type Scales = [[f32; LANES]; 2];

    #[inline(always)]
    unsafe fn zero() -> Self {
        Self([0; LANES])
    }

    #[inline(always)]
    unsafe fn splat(word: u32) -> Self {
        Self([word; LANES])
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { from.cast::<[u32; LANES]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u32) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[u32; LANES]>().write_unaligned(self.0) };
    }

    #[inline(always)]
    unsafe fn split(from: *const f32, factor: f32) -> Self {
        // SAFETY: the caller's promise.
        let values = unsafe { from.cast::<[f32; LANES]>().read_unaligned() };
        let digits = values.map(|value| {
            let steps = (value * factor).round_ties_even() as i32 as u32;
            (steps.wrapping_add(0x0080_8080) ^ 0x0080_8080).to_le_bytes()
        });
        let mut words = [0; LANES];
        for (place, word) in words.iter_mut().enumerate() {
            let quad = &digits[place / 4 * 4..][..4];
            *word = u32::from_le_bytes([quad[0], quad[1], quad[2], quad[3]].map(|bytes| bytes[place % 4]));
        }
        Self(words)
    }

    #[inline(always)]
    unsafe fn scale_and_zero(wide: bool, from: *const u8, lane: usize) -> Self::Scales {
        debug_assert_eq!(lane, 0);
        // SAFETY: the caller's promise.
        unsafe {
            match wide {
                true => from.cast::<Self::Scales>().read_unaligned(),
                false => from
                    .cast::<[[u16; LANES]; 2]>()
                    .read_unaligned()
                    .map(|half| half.map(|b| f16::from_bits(b).to_f32())),
            }
        }
    }

    #[inline(always)]
    fn fields<const BITS: u32, const PLACE: u32>(self, shift: u32) -> Self {
        let mask = ((1 << BITS) - 1) * 0x0101_0101;
        Self(self.0.map(|word| (word >> shift & mask) << PLACE))
    }

    #[inline(always)]
    fn or(self, other: Self) -> Self {
        let mut lanes = self.0;
        lanes.iter_mut().zip(other.0).for_each(|(lane, other)| *lane |= other);
        Self(lanes)
    }

    #[inline(always)]
    fn dot(self, codes: Self, digits: Self) -> Self {
        let mut sums = self.0;
        for (sum, (codes, digits)) in sums.iter_mut().zip(codes.0.into_iter().zip(digits.0)) {
            let products = codes.to_le_bytes().into_iter().zip(digits.to_le_bytes());
            let dot: i32 = products.map(|(code, digit)| i32::from(code) * i32::from(digit as i8)).sum();
            *sum = sum.wrapping_add(dot as u32);
        }
        Self(sums)
    }

    #[inline(always)]
    unsafe fn fold(self, mid: Self, high: Self, [scale, zero]: Self::Scales, span: *const f32, y: *mut f32) {
        // SAFETY: the caller's promise.
        let (&[step, low_sum, mid_sum, high_sum], y) =
            unsafe { (&*span.cast::<[f32; 4]>(), &mut *y.cast::<[f32; LANES]>()) };
        for lane in 0..LANES {
            let part = |sums: Self, of_span: f32| sums.0[lane] as i32 as f32 - zero[lane] * of_span;
            let below = part(mid, mid_sum) * 256.0 + part(self, low_sum);
            let total = part(high, high_sum) * 65536.0 + below;
            y[lane] += scale[lane] * step * total;
        }
    }
}
