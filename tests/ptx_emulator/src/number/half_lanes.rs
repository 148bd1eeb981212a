//! The 16-bit formats, 32 lanes at a time.
#![allow(unsafe_code, reason = "conversions by F16C instructions")]
use super::{Rounding, bf16, f16};

/// A 16-bit floating-point format, worked on as 32 lanes of f32. Functions with `AVX2` need a CPU with AVX2 and F16C.
pub trait HalfFormat: 'static {
    /// The smallest normal number.
    const MIN_POSITIVE: f32;
    /// Bits of the exponent.
    const EXPONENT_MASK: u32;
    /// Whether f32 holds every product of two values.
    const PRODUCTS_FIT_F32: bool;
    /// The values of the lower halves.
    fn low<const AVX2: bool>(lanes: &[u32; 32]) -> [f32; 32];
    /// The values of the upper halves.
    fn high<const AVX2: bool>(lanes: &[u32; 32]) -> [f32; 32];
    /// The values rounded to the nearest, as lower halves.
    fn round<const AVX2: bool>(values: &[f32; 32]) -> [u32; 32];
    /// The value of `bits`.
    fn to_f32(bits: u16) -> f32;
    /// An exact value, or one rounded to odd, rounded once.
    fn from_f64(value: f64, rounding: Rounding) -> u16;
}

/// IEEE half precision.
pub struct F16;

/// bfloat16.
pub struct Bf16;

impl HalfFormat for F16 {
    const MIN_POSITIVE: f32 = f32::from_bits(0x3880_0000);
    const EXPONENT_MASK: u32 = 0x7c00;
    const PRODUCTS_FIT_F32: bool = true;

    #[inline(always)]
    fn low<const AVX2: bool>(lanes: &[u32; 32]) -> [f32; 32] {
        #[cfg(target_arch = "x86_64")]
        if AVX2 {
            // SAFETY: the caller has chosen the instruction set that the CPU has
            return unsafe { x86::f16_low(lanes) };
        }
        lanes.map(|bits| f16::to_f32(bits as u16))
    }

    #[inline(always)]
    fn high<const AVX2: bool>(lanes: &[u32; 32]) -> [f32; 32] {
        Self::low::<AVX2>(&lanes.map(|bits| bits >> 16))
    }

    #[inline(always)]
    fn round<const AVX2: bool>(values: &[f32; 32]) -> [u32; 32] {
        #[cfg(target_arch = "x86_64")]
        if AVX2 {
            // SAFETY: the caller has chosen the instruction set that the CPU has
            return unsafe { x86::f16_round(values) };
        }
        values.map(|value| u32::from(f16::from_f32(value)))
    }

    fn to_f32(bits: u16) -> f32 {
        f16::to_f32(bits)
    }

    fn from_f64(value: f64, rounding: Rounding) -> u16 {
        f16::from_f64(value, rounding)
    }
}

impl HalfFormat for Bf16 {
    const MIN_POSITIVE: f32 = f32::MIN_POSITIVE;
    const EXPONENT_MASK: u32 = 0x7f80;
    const PRODUCTS_FIT_F32: bool = false;

    #[inline(always)]
    fn low<const AVX2: bool>(lanes: &[u32; 32]) -> [f32; 32] {
        lanes.map(|bits| f32::from_bits(bits << 16))
    }

    #[inline(always)]
    fn high<const AVX2: bool>(lanes: &[u32; 32]) -> [f32; 32] {
        lanes.map(|bits| f32::from_bits(bits & 0xffff_0000))
    }

    #[inline(always)]
    fn round<const AVX2: bool>(values: &[f32; 32]) -> [u32; 32] {
        values.map(|value| {
            let bits = value.to_bits();
            let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
            if value.is_nan() { u32::from(bf16::NAN) } else { rounded }
        })
    }

    fn to_f32(bits: u16) -> f32 {
        bf16::to_f32(bits)
    }

    fn from_f64(value: f64, rounding: Rounding) -> u16 {
        bf16::from_f64(value, rounding)
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::f16;

    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    pub fn f16_low(lanes: &[u32; 32]) -> [f32; 32] {
        let mut values = [0f32; 32];
        for (from, to) in lanes.chunks_exact(8).zip(values.chunks_exact_mut(8)) {
            // SAFETY: both chunks have eight elements
            unsafe {
                let bits = _mm256_and_si256(_mm256_loadu_si256(from.as_ptr().cast()), _mm256_set1_epi32(0xffff));
                let packed = _mm_packus_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
                _mm256_storeu_ps(to.as_mut_ptr(), _mm256_cvtph_ps(packed));
            }
        }
        values
    }

    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    pub fn f16_round(values: &[f32; 32]) -> [u32; 32] {
        let mut lanes = [0u32; 32];
        for (from, to) in values.chunks_exact(8).zip(lanes.chunks_exact_mut(8)) {
            // SAFETY: both chunks have eight elements
            unsafe {
                let value = _mm256_loadu_ps(from.as_ptr());
                let rounded = _mm256_cvtepu16_epi32(_mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
                let is_nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
                let canonical = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(i32::from(f16::NAN)), is_nan);
                _mm256_storeu_si256(to.as_mut_ptr().cast(), canonical);
            }
        }
        lanes
    }
}
