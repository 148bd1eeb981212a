//! The vector type over AVX-512 and over AVX2.
//!
//! A value of either type exists only where its instruction set does.

#![allow(unsafe_code, reason = "vector intrinsics; a value of a type proves that its instruction set is available")]

use std::arch::x86_64::*;

use super::vector::{LANES, Vector};
use crate::backend::kv_quant::middle;

const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

/// Sixteen lanes in one register.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(__m512);

/// The numbers 0..2^bits, repeated over sixteen entries: indexed by a code with anything above it in the index.
#[inline(always)]
const fn code_table(bits: u32, unit: u32) -> [f32; LANES] {
    let mut table = [0.0; LANES];
    let mut i = 0;
    while i < LANES {
        table[i] = ((i as u32 % (1 << bits)) * unit) as f32;
        i += 1;
    }
    table
}

/// The numbers 0..16, less their middle.
const CENTERED: [f32; LANES] = {
    let mut table = code_table(4, 1);
    let mut i = 0;
    while i < LANES {
        table[i] -= 7.5;
        i += 1;
    }
    table
};

impl Avx512 {
    /// A code of at most four bits times `UNIT`: one table lookup that ignores the bits above.
    #[inline(always)]
    fn look_up<const BITS: u32, const UNIT: u32>(line: __m512i, shift: u32) -> Self {
        let table = const { code_table(BITS, UNIT) };
        // SAFETY: a line exists only where AVX-512 does; the table has sixteen entries.
        unsafe {
            let index = _mm512_srlv_epi32(line, _mm512_set1_epi32(shift as i32));
            Self(_mm512_permutexvar_ps(index, _mm512_loadu_ps(table.as_ptr())))
        }
    }
}

// Every `unsafe` block below: a value of the type exists only where the instruction set does, and constructors have
// the caller's promise of both instruction set and pointers.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Vector for Avx512 {
    type Line = __m512i;

    const SUMS: usize = 16;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self(unsafe { _mm512_set1_ps(value) })
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Self(unsafe { _mm512_loadu_ps(from) })
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        Self(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) })
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide)))
        }
    }

    #[inline(always)]
    unsafe fn splat_f16(from: *const u16) -> Self {
        Self(unsafe { _mm512_cvtph_ps(_mm256_set1_epi16(*from as i16)) })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { _mm512_storeu_ps(to, self.0) };
    }

    #[inline(always)]
    unsafe fn load_line(from: *const u8) -> __m512i {
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self(unsafe { _mm512_add_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Self(unsafe { _mm512_sub_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        Self(unsafe { _mm512_mul_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        Self(unsafe { _mm512_div_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        Self(unsafe { _mm512_fmadd_ps(self.0, factor.0, addend.0) })
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        Self(unsafe { _mm512_max_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        Self(unsafe { _mm512_min_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn round(self) -> Self {
        Self(unsafe { _mm512_roundscale_ps::<NEAREST>(self.0) })
    }

    #[inline(always)]
    fn exp2_of_integer(self) -> Self {
        unsafe {
            let exponent = _mm512_add_epi32(_mm512_cvtps_epi32(self.0), _mm512_set1_epi32(127));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(exponent)))
        }
    }

    #[inline(always)]
    fn codes<const BITS: u32>(line: __m512i, shift: u32) -> Self {
        if BITS <= 4 {
            return Self::look_up::<BITS, 1>(line, shift);
        }
        unsafe {
            let field = _mm512_srlv_epi32(line, _mm512_set1_epi32(shift as i32));
            let field = _mm512_and_si512(field, _mm512_set1_epi32((1 << BITS) - 1));
            Self(_mm512_cvtepi32_ps(field))
        }
    }

    #[inline(always)]
    fn centered_codes<const BITS: u32>(line: __m512i, shift: u32) -> Self {
        if BITS == 4 {
            let index = unsafe { _mm512_srlv_epi32(line, _mm512_set1_epi32(shift as i32)) };
            return Self(unsafe { _mm512_permutexvar_ps(index, _mm512_loadu_ps(CENTERED.as_ptr())) });
        }
        Self::codes::<BITS>(line, shift).sub(unsafe { Self::splat(middle(BITS)) })
    }

    #[inline(always)]
    fn codes_joined<const LOW: u32, const HIGH: u32>(
        low: __m512i,
        low_shift: u32,
        high: __m512i,
        high_shift: u32,
    ) -> Self {
        // Sums of small integers are exact, so two lookups and an addition join the bit planes.
        let low_part = Self::look_up::<LOW, 1>(low, low_shift);
        let high_part = match LOW {
            2 => Self::look_up::<HIGH, 4>(high, high_shift),
            _ => Self::look_up::<HIGH, 16>(high, high_shift),
        };
        low_part.add(high_part)
    }
}

/// Sixteen lanes in two registers.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(__m256, __m256);

impl Avx2 {
    #[inline(always)]
    fn each(self, f: impl Fn(__m256) -> __m256) -> Self {
        Self(f(self.0), f(self.1))
    }

    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(__m256, __m256) -> __m256) -> Self {
        Self(f(self.0, other.0), f(self.1, other.1))
    }
}

/// The bits of each lane in `shift..shift + bits`, left of `place` zero bits.
///
/// # Safety
/// AVX2 must be there.
#[inline(always)]
unsafe fn field(line: __m256i, shift: u32, bits: u32, place: u32) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let moved = if shift >= place {
            _mm256_srlv_epi32(line, _mm256_set1_epi32((shift - place) as i32))
        } else {
            _mm256_sllv_epi32(line, _mm256_set1_epi32((place - shift) as i32))
        };
        _mm256_and_si256(moved, _mm256_set1_epi32(((1 << bits) - 1) << place))
    }
}

// As for AVX-512: a value proves the instruction set, constructors have the caller's promise.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Vector for Avx2 {
    type Line = (__m256i, __m256i);

    const SUMS: usize = 4;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        let half = unsafe { _mm256_set1_ps(value) };
        Self(half, half)
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { Self(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        unsafe {
            let half = |at: *const u16| _mm256_cvtph_ps(_mm_loadu_si128(at.cast()));
            Self(half(from), half(from.add(8)))
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        unsafe {
            let half = |at: *const u16| {
                let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
            };
            Self(half(from), half(from.add(8)))
        }
    }

    #[inline(always)]
    unsafe fn splat_f16(from: *const u16) -> Self {
        let value = unsafe { _mm256_cvtph_ps(_mm_set1_epi16(*from as i16)) };
        Self(value, value)
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe {
            _mm256_storeu_ps(to, self.0);
            _mm256_storeu_ps(to.add(8), self.1);
        }
    }

    #[inline(always)]
    unsafe fn load_line(from: *const u8) -> Self::Line {
        unsafe { (_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast())) }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| unsafe { _mm256_add_ps(a, b) })
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| unsafe { _mm256_sub_ps(a, b) })
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| unsafe { _mm256_mul_ps(a, b) })
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| unsafe { _mm256_div_ps(a, b) })
    }

    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        unsafe { Self(_mm256_fmadd_ps(self.0, factor.0, addend.0), _mm256_fmadd_ps(self.1, factor.1, addend.1)) }
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| unsafe { _mm256_max_ps(a, b) })
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        self.zip(other, |a, b| unsafe { _mm256_min_ps(a, b) })
    }

    #[inline(always)]
    fn round(self) -> Self {
        self.each(|a| unsafe { _mm256_round_ps::<NEAREST>(a) })
    }

    #[inline(always)]
    fn exp2_of_integer(self) -> Self {
        self.each(|a| unsafe {
            let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(a), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent))
        })
    }

    #[inline(always)]
    fn codes<const BITS: u32>(line: Self::Line, shift: u32) -> Self {
        unsafe {
            Self(_mm256_cvtepi32_ps(field(line.0, shift, BITS, 0)), _mm256_cvtepi32_ps(field(line.1, shift, BITS, 0)))
        }
    }

    #[inline(always)]
    fn codes_joined<const LOW: u32, const HIGH: u32>(
        low: Self::Line,
        low_shift: u32,
        high: Self::Line,
        high_shift: u32,
    ) -> Self {
        // Not in a closure, into which the intrinsics are not inlined.
        unsafe {
            let first = _mm256_or_si256(field(low.0, low_shift, LOW, 0), field(high.0, high_shift, HIGH, LOW));
            let second = _mm256_or_si256(field(low.1, low_shift, LOW, 0), field(high.1, high_shift, HIGH, LOW));
            Self(_mm256_cvtepi32_ps(first), _mm256_cvtepi32_ps(second))
        }
    }
}
