//! Instruction sets, chosen once at run time, and the one vector type that every kernel is written over.
//!
//! Each kernel is a generic function over [`Vector`], sixteen f32 lanes, marked `#[inline(always)]`; `kernels.rs`
//! stamps it once for each instruction set inside a `#[target_feature]` function, so that one text serves all of them
//! and the default build still runs on any x86-64. AVX2 and AVX-512 do the same operations in the same order, hence
//! give the same bits; the portable path has no fused multiply-add and differs in the last bits.
//!
//! Having a value of a vector type proves that its instruction set is there: the functions that make one from nothing
//! are unsafe, those that take one are not.

use std::fmt;

use half::{bf16, f16};

/// An instruction set the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Isa {
    /// Whatever the compiler makes of plain loops for the baseline CPU.
    Scalar,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
}

impl Isa {
    /// All of them, the slowest first.
    pub const ALL: [Isa; 3] = [Isa::Scalar, Isa::Avx2, Isa::Avx512];

    /// Whether this machine has it.
    pub fn is_available(self) -> bool {
        match self {
            Isa::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                Isa::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::Avx512 => false,
        }
    }

    /// The best this machine has.
    pub fn detect() -> Self {
        Self::ALL.into_iter().rfind(|isa| isa.is_available()).unwrap_or(Isa::Scalar)
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
        })
    }
}

/// Lanes of a [`Vector`]; also the outputs of a tile.
pub(super) const LANES: usize = 16;

/// Sixteen f32 lanes.
///
/// Constructors are unsafe: the instruction set must be there, and pointers must be valid for all lanes (of any
/// alignment). `max` and `min` return `other` where a lane is not a number.
pub(super) trait Vector: Copy {
    /// Sixteen lanes of 32 bits holding packed codes.
    type Line: Copy;

    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn load_f16(from: *const u16) -> Self;
    unsafe fn load_bf16(from: *const u16) -> Self;
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
    /// `from` must be valid for `count` lanes, and the instruction set there.
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

    /// `e^self` within 2 units in the last place; clamped to `[2^-126, e^88]`, not a number stays so.
    ///
    /// Range reduction `x = n ln 2 + r` with ln 2 in two parts, then the Taylor polynomial of degree 7 on
    /// `|r| <= ln 2 / 2`, whose truncation error is below 1e-8.
    #[inline(always)]
    fn exp(self) -> Self {
        // SAFETY: `self` proves the instruction set.
        let splat = |value| unsafe { Self::splat(value) };
        let x = splat(88.0).min(splat(-87.336_54).max(self));
        let n = x.mul(splat(std::f32::consts::LOG2_E)).round();
        let r = n.mul_add(splat(-0.693_359_4), x);
        let r = n.mul_add(splat(2.121_944_4e-4), r);
        let mut p = splat(1.0 / 5040.0);
        for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            p = p.mul_add(r, splat(c));
        }
        p.mul(n.exp2_of_integer())
    }
}

/// The portable vector: plain loops.
#[derive(Clone, Copy)]
pub(super) struct Scalar([f32; LANES]);

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

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{LANES, Vector};

    const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

    /// Sixteen lanes in one register.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx512(__m512);

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

    impl Avx512 {
        /// A code of at most four bits times `UNIT`: one table look-up that ignores the bits above.
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
        fn codes_joined<const LOW: u32, const HIGH: u32>(
            low: __m512i,
            low_shift: u32,
            high: __m512i,
            high_shift: u32,
        ) -> Self {
            // Sums of small integers are exact, so that two look-ups and an addition join the planes.
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
    pub(in super::super) struct Avx2(__m256, __m256);

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
                Self(
                    _mm256_cvtepi32_ps(field(line.0, shift, BITS, 0)),
                    _mm256_cvtepi32_ps(field(line.1, shift, BITS, 0)),
                )
            }
        }

        #[inline(always)]
        fn codes_joined<const LOW: u32, const HIGH: u32>(
            low: Self::Line,
            low_shift: u32,
            high: Self::Line,
            high_shift: u32,
        ) -> Self {
            let join = |low, high| unsafe {
                let low = field(low, low_shift, LOW, 0);
                _mm256_cvtepi32_ps(_mm256_or_si256(low, field(high, high_shift, HIGH, LOW)))
            };
            Self(join(low.0, high.0), join(low.1, high.1))
        }
    }
}
