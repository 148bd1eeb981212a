//! The integer vectors over AVX2 and AVX-512, each with the dot products of VNNI and without.
//!
//! Without them, products of bytes are added in 16 bits as long as they fit: a quad of b-bit codes adds two products, at most
//! `2 * (2^b - 1) * 128`, which for codes of eight bits may not fit even once.

#![allow(unsafe_code, reason = "vector intrinsics; a value of a type proves that its instruction set is available")]

use std::arch::x86_64::*;

use super::integers::{Integers, Pairs};
use super::vector::LANES;

/// How many quads of codes of each number of bits fit 16 bits, of the eight in a block.
const PAIRED_QUADS: [usize; 9] = [0, 0, 8, 8, 8, 4, 2, 0, 0];

/// Moves the four values' lowest, middle and highest bytes together in each 128 bits.
const GATHER_DIGITS: [i8; 16] = [0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15];

/// Eight lanes, half a tile; with the dot products of AVX-VNNI, or without.
#[derive(Clone, Copy)]
pub(crate) struct Integers256<const VNNI: bool>(__m256i);

/// Sums in 16 bits.
#[derive(Clone, Copy)]
pub(crate) struct Pairs256(__m256i);

// Every `unsafe` block below: a value of the type exists only where the instruction set does, and constructors have the
// caller's promise of both instruction set and pointers.
#[allow(clippy::undocumented_unsafe_blocks)]
impl<const VNNI: bool> Integers for Integers256<VNNI> {
    const LANES: usize = 8;
    const PAIRED_QUADS: [usize; 9] = if VNNI { [0; 9] } else { PAIRED_QUADS };
    type Pairs = Pairs256;
    type Scales = (__m256, __m256);
    type Floats = __m256;

    #[inline(always)]
    unsafe fn zero() -> Self {
        Self(unsafe { _mm256_setzero_si256() })
    }

    #[inline(always)]
    unsafe fn zero_floats() -> Self::Floats {
        unsafe { _mm256_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn splat(word: u32) -> Self {
        Self(unsafe { _mm256_set1_epi32(word as i32) })
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        Self(unsafe { _mm256_loadu_si256(from.cast()) })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u32) {
        unsafe { _mm256_storeu_si256(to.cast(), self.0) };
    }

    #[inline(always)]
    unsafe fn split(from: *const f32, factor: f32) -> Self {
        unsafe {
            let steps = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(from), _mm256_set1_ps(factor)));
            let bias = _mm256_set1_epi32(0x0080_8080);
            let digits = _mm256_xor_si256(_mm256_add_epi32(steps, bias), bias);
            let order = _mm256_broadcastsi128_si256(_mm_loadu_si128(GATHER_DIGITS.as_ptr().cast()));
            Self(_mm256_shuffle_epi8(digits, order))
        }
    }

    #[inline(always)]
    unsafe fn scale_and_zero(wide: bool, from: *const u8, lane: usize) -> Self::Scales {
        unsafe {
            if wide {
                let from = from.cast::<f32>().add(lane);
                return (_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(LANES)));
            }
            let widen = |from: *const u16| _mm256_cvtph_ps(_mm_loadu_si128(from.cast()));
            let from = from.cast::<u16>().add(lane);
            (widen(from), widen(from.add(LANES)))
        }
    }

    #[inline(always)]
    fn fields<const BITS: u32, const PLACE: u32>(self, shift: u32) -> Self {
        unsafe {
            let moved = if shift >= PLACE {
                _mm256_srlv_epi32(self.0, _mm256_set1_epi32((shift - PLACE) as i32))
            } else {
                _mm256_sllv_epi32(self.0, _mm256_set1_epi32((PLACE - shift) as i32))
            };
            let mask = (((1 << BITS) - 1) << PLACE) * 0x0101_0101;
            Self(_mm256_and_si256(moved, _mm256_set1_epi32(mask)))
        }
    }

    #[inline(always)]
    fn or(self, other: Self) -> Self {
        Self(unsafe { _mm256_or_si256(self.0, other.0) })
    }

    #[inline(always)]
    fn dot(self, codes: Self, digits: Self) -> Self {
        if VNNI {
            return Self(unsafe { _mm256_dpbusd_avx_epi32(self.0, codes.0, digits.0) });
        }
        unsafe {
            // Bytes 0 and 2, then 1 and 3 of each lane, in 16 bits.
            let even_codes = _mm256_and_si256(codes.0, _mm256_set1_epi32(0x00ff_00ff));
            let even_digits = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(digits.0));
            let even = _mm256_madd_epi16(even_codes, even_digits);
            let odd_codes = _mm256_srli_epi16::<8>(codes.0);
            let odd = _mm256_madd_epi16(odd_codes, _mm256_srai_epi16::<8>(digits.0));
            Self(_mm256_add_epi32(self.0, _mm256_add_epi32(even, odd)))
        }
    }

    #[inline(always)]
    unsafe fn fold(self, mid: Self, high: Self, (scale, zero): Self::Scales, span: *const f32, y: *mut f32) {
        unsafe {
            let number = |i: usize| _mm256_set1_ps(*span.add(i));
            // Both are exact, so it does not matter that this is fused.
            let part = |sums: Self, i: usize| _mm256_fnmadd_ps(zero, number(i), _mm256_cvtepi32_ps(sums.0));
            let times_256 = |value: __m256| _mm256_mul_ps(value, _mm256_set1_ps(256.0));
            let below = _mm256_add_ps(times_256(part(mid, 2)), part(self, 1));
            let total = _mm256_add_ps(times_256(times_256(part(high, 3))), below);
            let product = _mm256_mul_ps(_mm256_mul_ps(scale, number(0)), total);
            _mm256_storeu_ps(y, _mm256_add_ps(_mm256_loadu_ps(y), product));
        }
    }

    #[inline(always)]
    unsafe fn scale_onto(self, step: *const f32, scaled: Self::Floats) -> Self::Floats {
        unsafe { _mm256_fmadd_ps(_mm256_cvtepi32_ps(self.0), _mm256_set1_ps(*step), scaled) }
    }

    #[inline(always)]
    unsafe fn fold_scaled(scaled: Self::Floats, (scale, zero): Self::Scales, span: *const f32, y: *mut f32) {
        unsafe {
            let total = _mm256_fnmadd_ps(zero, _mm256_set1_ps(*span), scaled);
            _mm256_storeu_ps(y, _mm256_fmadd_ps(scale, total, _mm256_loadu_ps(y)));
        }
    }
}

// As above.
#[allow(clippy::undocumented_unsafe_blocks)]
impl<const VNNI: bool> Pairs<Integers256<VNNI>> for Pairs256 {
    #[inline(always)]
    unsafe fn zero() -> Self {
        Self(unsafe { _mm256_setzero_si256() })
    }

    #[inline(always)]
    fn add_products(self, codes: Integers256<VNNI>, digits: Integers256<VNNI>) -> Self {
        Self(unsafe { _mm256_add_epi16(self.0, _mm256_maddubs_epi16(codes.0, digits.0)) })
    }

    #[inline(always)]
    fn widen_onto(self, sums: Integers256<VNNI>) -> Integers256<VNNI> {
        unsafe {
            let wide = _mm256_madd_epi16(self.0, _mm256_set1_epi16(1));
            Integers256(_mm256_add_epi32(sums.0, wide))
        }
    }
}

/// Sixteen lanes, a tile; with the dot products of AVX512-VNNI, or without.
#[derive(Clone, Copy)]
pub(crate) struct Integers512<const VNNI: bool>(__m512i);

/// Sums in 16 bits.
#[derive(Clone, Copy)]
pub(crate) struct Pairs512(__m512i);

// Every `unsafe` block below: a value of the type exists only where the instruction set does, and constructors have the
// caller's promise of both instruction set and pointers.
#[allow(clippy::undocumented_unsafe_blocks)]
impl<const VNNI: bool> Integers for Integers512<VNNI> {
    const LANES: usize = 16;
    const PAIRED_QUADS: [usize; 9] = if VNNI { [0; 9] } else { PAIRED_QUADS };
    type Pairs = Pairs512;
    type Scales = (__m512, __m512);
    type Floats = __m512;

    #[inline(always)]
    unsafe fn zero() -> Self {
        Self(unsafe { _mm512_setzero_si512() })
    }

    #[inline(always)]
    unsafe fn zero_floats() -> Self::Floats {
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn splat(word: u32) -> Self {
        Self(unsafe { _mm512_set1_epi32(word as i32) })
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        Self(unsafe { _mm512_loadu_si512(from.cast()) })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u32) {
        unsafe { _mm512_storeu_si512(to.cast(), self.0) };
    }

    #[inline(always)]
    unsafe fn split(from: *const f32, factor: f32) -> Self {
        unsafe {
            let steps = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(from), _mm512_set1_ps(factor)));
            let bias = _mm512_set1_epi32(0x0080_8080);
            let digits = _mm512_xor_si512(_mm512_add_epi32(steps, bias), bias);
            let order = _mm512_broadcast_i32x4(_mm_loadu_si128(GATHER_DIGITS.as_ptr().cast()));
            Self(_mm512_shuffle_epi8(digits, order))
        }
    }

    #[inline(always)]
    unsafe fn scale_and_zero(wide: bool, from: *const u8, lane: usize) -> Self::Scales {
        unsafe {
            if wide {
                let from = from.cast::<f32>().add(lane);
                return (_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(LANES)));
            }
            let widen = |from: *const u16| _mm512_cvtph_ps(_mm256_loadu_si256(from.cast()));
            let from = from.cast::<u16>().add(lane);
            (widen(from), widen(from.add(LANES)))
        }
    }

    #[inline(always)]
    fn fields<const BITS: u32, const PLACE: u32>(self, shift: u32) -> Self {
        unsafe {
            let moved = if shift >= PLACE {
                _mm512_srlv_epi32(self.0, _mm512_set1_epi32((shift - PLACE) as i32))
            } else {
                _mm512_sllv_epi32(self.0, _mm512_set1_epi32((PLACE - shift) as i32))
            };
            let mask = (((1 << BITS) - 1) << PLACE) * 0x0101_0101;
            Self(_mm512_and_si512(moved, _mm512_set1_epi32(mask)))
        }
    }

    #[inline(always)]
    fn or(self, other: Self) -> Self {
        Self(unsafe { _mm512_or_si512(self.0, other.0) })
    }

    #[inline(always)]
    fn dot(self, codes: Self, digits: Self) -> Self {
        if VNNI {
            return Self(unsafe { _mm512_dpbusd_epi32(self.0, codes.0, digits.0) });
        }
        unsafe {
            // Bytes 0 and 2, then 1 and 3 of each lane, in 16 bits.
            let even_codes = _mm512_and_si512(codes.0, _mm512_set1_epi32(0x00ff_00ff));
            let even_digits = _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(digits.0));
            let even = _mm512_madd_epi16(even_codes, even_digits);
            let odd_codes = _mm512_srli_epi16::<8>(codes.0);
            let odd = _mm512_madd_epi16(odd_codes, _mm512_srai_epi16::<8>(digits.0));
            Self(_mm512_add_epi32(self.0, _mm512_add_epi32(even, odd)))
        }
    }

    #[inline(always)]
    unsafe fn fold(self, mid: Self, high: Self, (scale, zero): Self::Scales, span: *const f32, y: *mut f32) {
        unsafe {
            let number = |i: usize| _mm512_set1_ps(*span.add(i));
            // Both are exact, so it does not matter that this is fused.
            let part = |sums: Self, i: usize| _mm512_fnmadd_ps(zero, number(i), _mm512_cvtepi32_ps(sums.0));
            let times_256 = |value: __m512| _mm512_mul_ps(value, _mm512_set1_ps(256.0));
            let below = _mm512_add_ps(times_256(part(mid, 2)), part(self, 1));
            let total = _mm512_add_ps(times_256(times_256(part(high, 3))), below);
            let product = _mm512_mul_ps(_mm512_mul_ps(scale, number(0)), total);
            _mm512_storeu_ps(y, _mm512_add_ps(_mm512_loadu_ps(y), product));
        }
    }

    #[inline(always)]
    unsafe fn scale_onto(self, step: *const f32, scaled: Self::Floats) -> Self::Floats {
        unsafe { _mm512_fmadd_ps(_mm512_cvtepi32_ps(self.0), _mm512_set1_ps(*step), scaled) }
    }

    #[inline(always)]
    unsafe fn fold_scaled(scaled: Self::Floats, (scale, zero): Self::Scales, span: *const f32, y: *mut f32) {
        unsafe {
            let total = _mm512_fnmadd_ps(zero, _mm512_set1_ps(*span), scaled);
            _mm512_storeu_ps(y, _mm512_fmadd_ps(scale, total, _mm512_loadu_ps(y)));
        }
    }
}

// As above.
#[allow(clippy::undocumented_unsafe_blocks)]
impl<const VNNI: bool> Pairs<Integers512<VNNI>> for Pairs512 {
    #[inline(always)]
    unsafe fn zero() -> Self {
        Self(unsafe { _mm512_setzero_si512() })
    }

    #[inline(always)]
    fn add_products(self, codes: Integers512<VNNI>, digits: Integers512<VNNI>) -> Self {
        Self(unsafe { _mm512_add_epi16(self.0, _mm512_maddubs_epi16(codes.0, digits.0)) })
    }

    #[inline(always)]
    fn widen_onto(self, sums: Integers512<VNNI>) -> Integers512<VNNI> {
        unsafe {
            let wide = _mm512_madd_epi16(self.0, _mm512_set1_epi16(1));
            Integers512(_mm512_add_epi32(sums.0, wide))
        }
    }
}
