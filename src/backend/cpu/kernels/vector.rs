//! The one vector type that every kernel in f32 is written over.
//!
//! Each kernel is a generic function over [`Vector`], sixteen f32 lanes, marked `#[inline(always)]`; `dispatch.rs`
//! compiles it once for each instruction set inside a `#[target_feature]` function, so that one source serves all of
//! them and the default build still runs on any x86-64. AVX2 and AVX-512 do the same operations in the same order, hence
//! give the same bits; the portable path has no fused multiply-add and differs in the last bits.
//!
//! A value of a vector type proves that its instruction set is available: functions that make one from nothing are
//! unsafe, those that take one are not.

#![allow(unsafe_code, reason = "vector loads and stores through pointers")]

use half::{bf16, f16};

use crate::backend::kv_quant::middle;

/// A cache line, and the width of the widest vector, in bytes.
pub(crate) const LINE: usize = 64;

/// Lanes of a [`Vector`]; also the outputs of a tile.
pub(crate) const LANES: usize = 16;

/// Sixteen f32 lanes.
///
/// Constructors are unsafe: the instruction set must be available, and pointers must be valid for all lanes (of any
/// alignment). `max` and `min` return `other` where a lane is NaN.
pub(crate) trait Vector: Copy {
    /// Sixteen lanes of 32 bits holding packed codes.
    type Line: Copy;

    /// Sums that registers hold beside the operands of a loop.
    const SUMS: usize;

    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn load_f16(from: *const u16) -> Self;
    unsafe fn load_bf16(from: *const u16) -> Self;
    /// One f16 in all lanes.
    unsafe fn splat_f16(from: *const u16) -> Self;
    /// # Safety
    /// `to` must be valid for sixteen lanes.
    unsafe fn store(self, to: *mut f32);
    unsafe fn load_line(from: *const u8) -> Self::Line;

    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn div(self, other: Self) -> Self;
    /// `self * factor + addend`; rounded once where the instruction set can.
    fn mul_add(self, factor: Self, addend: Self) -> Self;
    fn max(self, other: Self) -> Self;
    fn min(self, other: Self) -> Self;
    /// To the nearest integer, ties to even.
    fn round(self) -> Self;
    /// `2^self` for integers in `-126..=127`.
    fn exp2_of_integer(self) -> Self;
    /// The `BITS` bits of each lane above bit `shift`, as a number.
    fn codes<const BITS: u32>(line: Self::Line, shift: u32) -> Self;
    /// As [`Vector::codes`] with `HIGH` further bits from a second line above the `LOW` ones of the first.
    fn codes_joined<const LOW: u32, const HIGH: u32>(
        low: Self::Line,
        low_shift: u32,
        high: Self::Line,
        high_shift: u32,
    ) -> Self;
    /// As [`Vector::codes`], less their middle, `(2^BITS - 1) / 2`.
    #[inline(always)]
    fn centered_codes<const BITS: u32>(line: Self::Line, shift: u32) -> Self {
        // SAFETY: the line proves the instruction set.
        Self::codes::<BITS>(line, shift).sub(unsafe { Self::splat(middle(BITS)) })
    }

    /// The lanes as numbers.
    #[inline(always)]
    fn to_array(self) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        // SAFETY: the array has sixteen lanes.
        unsafe { self.store(lanes.as_mut_ptr()) };
        lanes
    }

    /// Sum of the lanes, pairwise in a fixed tree.
    #[inline(always)]
    fn sum(self) -> f32 {
        let mut lanes = self.to_array();
        let mut width = LANES / 2;
        while width > 0 {
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
            width /= 2;
        }
        lanes[0]
    }

    /// Loads `count <= 16` lanes, the others are `fill`.
    ///
    /// # Safety
    /// `from` must be valid for `count` lanes, and the instruction set available.
    #[inline(always)]
    unsafe fn load_partial(from: *const f32, count: usize, fill: f32) -> Self {
        if count >= LANES {
            // SAFETY: the caller's promise.
            return unsafe { Self::load(from) };
        }
        let mut lanes = [fill; LANES];
        // SAFETY: `count < 16` lanes are valid at `from` and in the array.
        unsafe { std::ptr::copy_nonoverlapping(from, lanes.as_mut_ptr(), count) };
        // SAFETY: the array has sixteen lanes.
        unsafe { Self::load(lanes.as_ptr()) }
    }

    /// Stores the first `count <= 16` lanes.
    ///
    /// # Safety
    /// `to` must be valid for `count` lanes.
    #[inline(always)]
    unsafe fn store_partial(self, to: *mut f32, count: usize) {
        if count >= LANES {
            // SAFETY: the caller's promise.
            return unsafe { self.store(to) };
        }
        // SAFETY: `count < 16` lanes are valid at `to` and in the array.
        unsafe { std::ptr::copy_nonoverlapping(self.to_array().as_ptr(), to, count) };
    }

    /// `e^self` within 2 units in the last place; clamped to `[2^-126, e^88]`, NaN stays NaN.
    #[inline(always)]
    fn exp(self) -> Self {
        // SAFETY: `self` proves the instruction set.
        let one = unsafe { Self::splat(1.0) };
        let (r, q, power) = self.exp_parts();
        q.mul_add(r, one).mul(power)
    }

    /// `e^self - 1` within 4 units in the last place, also near 0; clamped to `[-1, e^88]`, NaN stays NaN.
    ///
    /// It is `2^n (e^r - 1) + (2^n - 1)`, whose second term is 0 near 0.
    #[inline(always)]
    fn exp_m1(self) -> Self {
        // SAFETY: `self` proves the instruction set.
        let one = unsafe { Self::splat(1.0) };
        let (r, q, power) = self.exp_parts();
        q.mul(r).mul_add(power, power.sub(one))
    }

    /// `r`, `q` and `2^n` of which `e^self` is `2^n (1 + q r)`; `self` is clamped to `[-126 ln 2, 88]`.
    ///
    /// Range reduction `x = n ln 2 + r` with ln 2 in two parts, then the Taylor polynomial of `(e^r - 1) / r` of degree 6 on
    /// `|r| <= ln 2 / 2`, whose truncation error leaves one below 1e-8 in `e^r`.
    #[inline(always)]
    fn exp_parts(self) -> (Self, Self, Self) {
        // SAFETY: `self` proves the instruction set.
        let splat = |value| unsafe { Self::splat(value) };
        let x = splat(88.0).min(splat(-87.336_54).max(self));
        let n = x.mul(splat(std::f32::consts::LOG2_E)).round();
        let r = n.mul_add(splat(-0.693_359_4), x);
        let r = n.mul_add(splat(2.121_944_4e-4), r);
        let mut q = splat(1.0 / 5040.0);
        for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0] {
            q = q.mul_add(r, splat(c));
        }
        (r, q, n.exp2_of_integer())
    }

    /// The hyperbolic tangent, `e / (e + 2)` with `e = exp(2 self) - 1`; within 8 units in the last place, NaN stays NaN.
    #[inline(always)]
    fn tanh(self) -> Self {
        // SAFETY: `self` proves the instruction set.
        let two = unsafe { Self::splat(2.0) };
        let e = self.mul(two).exp_m1();
        e.div(e.add(two))
    }
}

/// The portable vector: plain loops.
#[derive(Clone, Copy)]
pub(crate) struct Scalar([f32; LANES]);

impl Scalar {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        let mut out = self.0;
        for (a, b) in out.iter_mut().zip(other.0) {
            *a = f(*a, b);
        }
        Self(out)
    }
}

impl Vector for Scalar {
    type Line = [u32; LANES];

    const SUMS: usize = 4;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; LANES])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { from.cast::<[f32; LANES]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        // SAFETY: the caller's promise.
        let bits = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        Self(bits.map(|b| f16::from_bits(b).to_f32()))
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: the caller's promise.
        let bits = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        Self(bits.map(|b| bf16::from_bits(b).to_f32()))
    }

    #[inline(always)]
    unsafe fn splat_f16(from: *const u16) -> Self {
        // SAFETY: the caller's promise.
        Self([f16::from_bits(unsafe { *from }).to_f32(); LANES])
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(self.0) };
    }

    #[inline(always)]
    unsafe fn load_line(from: *const u8) -> Self::Line {
        // SAFETY: the caller's promise.
        unsafe { from.cast::<[u32; LANES]>().read_unaligned() }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }

    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        self.mul(factor).add(addend)
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        self.zip(other, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn round(self) -> Self {
        Self(self.0.map(f32::round_ties_even))
    }

    #[inline(always)]
    fn exp2_of_integer(self) -> Self {
        Self(self.0.map(|n| f32::from_bits(((n as i32 + 127) as u32) << 23)))
    }

    #[inline(always)]
    fn codes<const BITS: u32>(line: Self::Line, shift: u32) -> Self {
        Self(line.map(|word| ((word >> shift) & ((1 << BITS) - 1)) as f32))
    }

    #[inline(always)]
    fn codes_joined<const LOW: u32, const HIGH: u32>(
        low: Self::Line,
        low_shift: u32,
        high: Self::Line,
        high_shift: u32,
    ) -> Self {
        let mut out = [0.0; LANES];
        for i in 0..LANES {
            let low = (low[i] >> low_shift) & ((1 << LOW) - 1);
            let high = (high[i] >> high_shift) & ((1 << HIGH) - 1);
            out[i] = (low | high << LOW) as f32;
        }
        Self(out)
    }
}

/// A stored element that widens to f32.
pub(crate) trait Element {
    const BYTES: usize;

    /// # Safety
    /// As [`Vector::load`].
    unsafe fn load<V: Vector>(from: *const u8) -> V;
}

/// IEEE half precision.
pub(crate) struct F16;
/// bfloat16.
pub(crate) struct Bf16;
/// IEEE single precision.
pub(crate) struct F32;

impl Element for F16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const u8) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load_f16(from.cast()) }
    }
}

impl Element for Bf16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const u8) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load_bf16(from.cast()) }
    }
}

impl Element for F32 {
    const BYTES: usize = 4;

    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const u8) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load(from.cast()) }
    }
}
