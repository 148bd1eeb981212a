//! The table of kernels of each instruction set.
//!
//! A [`Kernels`] is returned only after the instruction set was detected on the machine, which makes calling its entries
//! sound.

#![allow(unsafe_code, reason = "kernels are compiled for instruction sets that are detected at run time")]

use std::ops::Range;

use super::activate::{self, ActivateFn};
use super::attend::{self, AttendFn, Seen};
use super::dequantize::{self, DequantizeFn};
use super::digits::{self, DigitProductFn, Digits, SplitFn};
use super::int8::{self, RoundFn};
use super::isa::Isa;
use super::kv_format::{Codes, Floats, View};
use super::rowwise::{self, BoundFn, NormFn, RowNorm};
use super::tile::{self, ExpandFn, ProductFn, Span, SquaresFn, Tiles, Width};
use super::vector::{F16, F32, LANES, Scalar};
#[cfg(target_arch = "x86_64")]
use super::x86::{Avx2, Avx512};
#[cfg(target_arch = "x86_64")]
use super::x86_integers::{Integers256, Integers512};
use crate::backend::{Activation, KvDType, Write};

/// Maximum rows of one product call.
pub(crate) const MAX_ROWS: usize = 8;

/// Every kernel, for one instruction set.
pub(crate) struct Kernels {
    pub(crate) isa: Isa,
    product: Products<ProductFn>,
    /// `None` where floats are faster.
    integers: Option<IntegerKernels>,
    round: RoundFn,
    squares: SquaresFn,
    dequantize: DequantizeFn,
    expand: ExpandFn,
    norm: NormFn,
    bound: BoundFn,
    activate: ActivateFn,
    attend_f16: AttendFn,
    attend_f32: AttendFn,
    attend_q8: AttendFn,
    attend_q6: AttendFn,
    attend_q4: AttendFn,
}

/// Codes multiplied in integers.
#[derive(Clone, Copy)]
struct IntegerKernels {
    one: DigitKernels,
    three: DigitKernels,
}

/// Codes multiplied with activations in some number of digits.
#[derive(Clone, Copy)]
struct DigitKernels {
    split: SplitFn,
    product: Products<DigitProductFn>,
    /// Most bits of a code whose product is faster in integers than in floats.
    bits: usize,
}

/// A product for each number of rows and tiles that it keeps sums in registers for.
#[derive(Clone, Copy)]
struct Products<F> {
    /// Rows of the largest.
    rows: usize,
    of_8x1: F,
    /// `None` where registers lack for it.
    of_4x2: Option<F>,
    of_4x1: F,
    of_2x2: F,
    of_2x1: F,
    of_1x4: F,
    of_1x1: F,
}

impl<F: Copy> Products<F> {
    /// Covers some rows and tiles: calls each product with the first row and the tiles that it is for.
    #[inline]
    fn cover(&self, rows: usize, tiles: usize, mut call: impl FnMut(F, usize, Range<usize>)) {
        let mut row = 0;
        while row < rows && tiles > 0 {
            let left = (rows - row).min(self.rows);
            let (mut tile, mut covered) = (0, 0);
            while tile < tiles {
                let (product, of_rows, of_tiles) = match (left, tiles - tile, self.of_4x2) {
                    (8.., ..) => (self.of_8x1, 8, 1),
                    (4.., 2.., Some(of_4x2)) => (of_4x2, 4, 2),
                    (4.., ..) => (self.of_4x1, 4, 1),
                    (2.., 2.., _) => (self.of_2x2, 2, 2),
                    (2.., ..) => (self.of_2x1, 2, 1),
                    (_, 4.., _) => (self.of_1x4, 1, 4),
                    _ => (self.of_1x1, 1, 1),
                };
                call(product, row, tile..tile + of_tiles);
                (tile, covered) = (tile + of_tiles, of_rows);
            }
            row += covered;
        }
    }
}

impl Kernels {
    /// The kernels of an instruction set, or `None` if this machine lacks it.
    pub(crate) fn of(isa: Isa) -> Option<&'static Self> {
        if !isa.is_available() {
            return None;
        }
        Some(match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => &AVX512_VNNI,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => &AVX512,
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => &AVX_VNNI,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => &AVX2,
            _ => &SCALAR,
        })
    }

    /// Whether codes in such spans are multiplied with that many digits, by [`Kernels::digit_product`].
    pub(crate) fn takes_digits(&self, digits: Digits, spans: &[Span]) -> bool {
        self.integers.is_some() && spans.iter().all(|span| span.width.bits() <= self.integers(digits).bits)
    }

    /// Products of `count` tiles from `tile` with at most [`MAX_ROWS`] rows: `y[t * MAX_ROWS + r]` is tile `tile + t`
    /// of row `r`. How tiles and rows are grouped does not change any bits.
    ///
    /// # Panics
    /// If `y` or a row is too short, there are too many rows, or the tiles are out of bounds.
    pub(crate) fn product(
        &self,
        tiles: &Tiles<'_>,
        tile: usize,
        count: usize,
        rows: &[&[f32]],
        y: &mut [[f32; LANES]],
    ) {
        let pointers = checked_rows(tiles, tile, count, rows, tiles.inputs, y);
        self.product.cover(rows.len(), count, |kernel, r, of| {
            let out = y[of.start * MAX_ROWS + r..].as_mut_ptr().cast::<f32>();
            // SAFETY: the table exists only where its instruction set does. Tiles, rows and `y` were checked; the kernel
            // writes as many vectors as it has rows at as many strides as it has tiles.
            unsafe { kernel(tiles, tile + of.start, pointers[r..].as_ptr(), out, MAX_ROWS * LANES) };
        });
    }

    /// As [`Kernels::product`], for codes and rows of digits, whose spans are those of the tiles. What is ahead of the tiles is
    /// requested meanwhile.
    ///
    /// # Panics
    /// As [`Kernels::product`], and if it [takes no digits](Kernels::takes_digits).
    pub(crate) fn digit_product(
        &self,
        digits: Digits,
        tiles: &Tiles<'_>,
        tile: usize,
        count: usize,
        rows: &[&[u32]],
        y: &mut [[f32; LANES]],
    ) {
        let words = digits.row_words(tiles.inputs, tiles.spans.len());
        let pointers = checked_rows(tiles, tile, count, rows, words, y);
        assert!(self.takes_digits(digits, tiles.spans));
        self.integers(digits).product.cover(rows.len(), count, |kernel, r, of| {
            let out = y[of.start * MAX_ROWS + r..].as_mut_ptr().cast::<f32>();
            // Once, by the products of the first rows.
            let ahead = tiles.ahead.len();
            let share = if r == 0 { ahead * of.start / count..ahead * of.end / count } else { 0..0 };
            let tiles = Tiles { ahead: &tiles.ahead[share], ..*tiles };
            // SAFETY: as in `product`.
            unsafe { kernel(&tiles, tile + of.start, pointers[r..].as_ptr(), out, MAX_ROWS * LANES) };
        });
    }

    /// The activations of one span, of whole blocks, in digits: see `digits.rs`.
    ///
    /// # Panics
    /// If the lengths do not fit each other, or the instruction set takes no digits.
    #[inline]
    pub(crate) fn split(&self, digits: Digits, x: &[f32], out: &mut [u32], of_span: &mut [u32]) {
        // SAFETY: the table exists only where its instruction set does.
        unsafe { (self.integers(digits).split)(x, out, of_span) };
    }

    /// Rounds activations, of whole blocks, to what one digit holds of them.
    #[inline]
    pub(crate) fn round(&self, x: &mut [f32]) {
        // SAFETY: the table exists only where its instruction set does.
        unsafe { (self.round)(x) };
    }

    /// The kernels in integers.
    #[inline]
    fn integers(&self, digits: Digits) -> &DigitKernels {
        match (&self.integers, digits) {
            (Some(integers), Digits::One) => &integers.one,
            (Some(integers), Digits::Three) => &integers.three,
            (None, _) => panic!("{} takes no digits", self.isa),
        }
    }

    /// The sum of squares of each output's weights, over the inputs where `mask` is 1.
    ///
    /// # Panics
    /// If the tile is out of bounds or the mask shorter than the tiles' inputs, padding included.
    pub(crate) fn squares(&self, tiles: &Tiles<'_>, tile: usize, mask: &[f32]) -> [f64; LANES] {
        assert!((tile + 1) * tiles.tile_bytes <= tiles.codes.len());
        assert!((tile + 1) * tiles.scale_bytes <= tiles.scales.len());
        assert!(tiles.inputs <= mask.len());
        let mut squares = [0.0; LANES];
        // SAFETY: the table exists only where its instruction set does; the asserts above are the rest.
        unsafe { (self.squares)(tiles, tile, mask, &mut squares) };
        squares
    }

    /// The weights of a tile, `out[k][n] = W[n, k]` of its 16 outputs n and packed inputs k, padding included.
    ///
    /// # Panics
    /// If the tile is out of bounds or `out` does not have 16 values for each input.
    pub(crate) fn dequantize(&self, tiles: &Tiles<'_>, tile: usize, out: &mut [f32]) {
        assert!((tile + 1) * tiles.tile_bytes <= tiles.codes.len());
        assert!((tile + 1) * tiles.scale_bytes <= tiles.scales.len());
        assert!(out.len() == tiles.inputs * LANES);
        // SAFETY: the table exists only where its instruction set does; the asserts above are the rest.
        unsafe { (self.dequantize)(tiles, tile, out) };
    }

    /// `y += coefficient * sum over rank of t[r] b[r]`, for one tile `b [rank][16]` of floats of that width.
    ///
    /// # Panics
    /// If `b` is too short.
    #[inline]
    pub(crate) fn expand(&self, b: &[u8], width: Width, t: &[f32], coefficient: f32, y: &mut [f32; LANES]) {
        let bytes = if matches!(width, Width::F16 | Width::Bf16) { 2 } else { 4 };
        assert!(b.len() >= t.len() * LANES * bytes);
        // SAFETY: the table exists only where its instruction set does; `b` is long enough.
        unsafe { (self.expand)(b.as_ptr(), width, t, coefficient, y) };
    }

    /// `out = ` or `+= weight * normed(x) + bias` of one row.
    ///
    /// # Panics
    /// If the lengths differ.
    #[inline]
    pub(crate) fn norm(&self, norm: &RowNorm<'_>, x: &[f32], write: Write, out: &mut [f32]) {
        // SAFETY: the table exists only where its instruction set does.
        unsafe { (self.norm)(norm, x, write, out) };
    }

    /// `x = cap * tanh(factor * x / cap)`, or `factor * x` without a cap.
    #[inline]
    pub(crate) fn bound(&self, factor: f32, cap: Option<f32>, x: &mut [f32]) {
        // SAFETY: the table exists only where its instruction set does.
        unsafe { (self.bound)(factor, cap, x) };
    }

    /// `out = act(x) * up`, or `out = act(x)` without `up`, of one row.
    ///
    /// # Panics
    /// If the lengths differ.
    #[inline]
    pub(crate) fn activate(&self, activation: Activation, x: &[f32], up: Option<&[f32]>, out: &mut [f32]) {
        // SAFETY: the table exists only where its instruction set does.
        unsafe { (self.activate)(activation, x, up, out) };
    }

    /// The parts `[queries][part_len]` of query vectors `q [queries][head_dim]`, normed and rotated, for what each sees of one
    /// segment of `attend.rs`; `scores` is scratch.
    ///
    /// # Panics
    /// If a length does not fit, or a query sees no position or those of several segments.
    ///
    /// # Safety
    /// The positions must lie within the view's block table, and its pages within the cache, which is of `dtype`.
    #[inline]
    pub(crate) unsafe fn attend(
        &self,
        dtype: KvDType,
        view: &View<'_>,
        q: &[f32],
        seen: &[Seen],
        scores: &mut [f32],
        parts: &mut [f32],
    ) {
        let kernel = match dtype {
            KvDType::F16 => self.attend_f16,
            KvDType::F32 => self.attend_f32,
            KvDType::Q8 => self.attend_q8,
            KvDType::Q6 => self.attend_q6,
            KvDType::Q4 => self.attend_q4,
        };
        // SAFETY: the table exists only where its instruction set does; the rest is the caller's promise.
        unsafe { kernel(view, q, seen, scores, parts) };
    }
}

/// Pointers to the rows of a product, all of whose arguments are checked.
fn checked_rows<X>(
    tiles: &Tiles<'_>,
    tile: usize,
    count: usize,
    rows: &[&[X]],
    row_len: usize,
    y: &[[f32; LANES]],
) -> [*const X; MAX_ROWS] {
    assert!(rows.len() <= MAX_ROWS && y.len() >= count * MAX_ROWS);
    assert!((tile + count) * tiles.tile_bytes <= tiles.codes.len());
    assert!((tile + count) * tiles.scale_bytes <= tiles.scales.len());
    let mut pointers = [std::ptr::null(); MAX_ROWS];
    for (pointer, row) in pointers.iter_mut().zip(rows) {
        assert!(row.len() >= row_len);
        *pointer = row.as_ptr();
    }
    pointers
}

macro_rules! kernels_for {
    ($module:ident, $vector:ty, $rows:literal, $of_4x2:expr $(, $features:literal)?) => {
        mod $module {
            use super::*;

            $(#[target_feature(enable = $features)])?
            unsafe fn product<const R: usize, const T: usize>(
                tiles: &Tiles<'_>,
                tile: usize,
                x: *const *const f32,
                y: *mut f32,
                stride: usize,
            ) {
                // SAFETY: the caller's promises, and the instruction set of this module.
                unsafe { tile::product::<$vector, R, T>(tiles, tile, x, y, stride) }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn squares(tiles: &Tiles<'_>, tile: usize, mask: &[f32], squares: &mut [f64; LANES]) {
                // SAFETY: as `product`.
                unsafe { tile::squares::<$vector>(tiles, tile, mask, squares) }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn dequantize(tiles: &Tiles<'_>, tile: usize, out: &mut [f32]) {
                // SAFETY: as `product`.
                unsafe { dequantize::dequantize::<$vector>(tiles, tile, out) }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn expand(b: *const u8, width: Width, t: &[f32], coefficient: f32, y: &mut [f32; LANES]) {
                // SAFETY: as `product`.
                unsafe { tile::expand::<$vector>(b, width, t, coefficient, y) }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn norm(norm: &RowNorm<'_>, x: &[f32], write: Write, out: &mut [f32]) {
                // SAFETY: as `product`.
                unsafe { rowwise::norm::<$vector>(norm, x, write, out) }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn bound(factor: f32, cap: Option<f32>, x: &mut [f32]) {
                // SAFETY: as `product`.
                unsafe { rowwise::bound::<$vector>(factor, cap, x) }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn activate(activation: Activation, x: &[f32], up: Option<&[f32]>, out: &mut [f32]) {
                // SAFETY: as `product`.
                unsafe { activate::activate::<$vector>(activation, x, up, out) }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn round(x: &mut [f32]) {
                int8::round(x);
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn attend_f16(view: &View<'_>, q: &[f32], seen: &[Seen], scores: &mut [f32], parts: &mut [f32]) {
                // SAFETY: as `product`.
                unsafe { attend::attend::<$vector, Floats<F16>>(view, q, seen, scores, parts) }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn attend_f32(view: &View<'_>, q: &[f32], seen: &[Seen], scores: &mut [f32], parts: &mut [f32]) {
                // SAFETY: as `product`.
                unsafe { attend::attend::<$vector, Floats<F32>>(view, q, seen, scores, parts) }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn attend_q8(view: &View<'_>, q: &[f32], seen: &[Seen], scores: &mut [f32], parts: &mut [f32]) {
                // SAFETY: as `product`.
                unsafe { attend::attend::<$vector, Codes<8, 8>>(view, q, seen, scores, parts) }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn attend_q6(view: &View<'_>, q: &[f32], seen: &[Seen], scores: &mut [f32], parts: &mut [f32]) {
                // SAFETY: as `product`.
                unsafe { attend::attend::<$vector, Codes<8, 4>>(view, q, seen, scores, parts) }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn attend_q4(view: &View<'_>, q: &[f32], seen: &[Seen], scores: &mut [f32], parts: &mut [f32]) {
                // SAFETY: as `product`.
                unsafe { attend::attend::<$vector, Codes<4, 4>>(view, q, seen, scores, parts) }
            }

            /// The kernels, with the integers of an instruction set.
            pub(crate) const fn with(isa: Isa, integers: Option<IntegerKernels>) -> Kernels {
                Kernels {
                    isa,
                    product: Products {
                        rows: $rows,
                        of_8x1: product::<$rows, 1>,
                        of_4x2: $of_4x2,
                        of_4x1: product::<4, 1>,
                        of_2x2: product::<2, 2>,
                        of_2x1: product::<2, 1>,
                        of_1x4: product::<1, 4>,
                        of_1x1: product::<1, 1>,
                    },
                    integers,
                    round,
                    squares,
                    dequantize,
                    expand,
                    norm,
                    bound,
                    activate,
                    attend_f16,
                    attend_f32,
                    attend_q8,
                    attend_q6,
                    attend_q4,
                }
            }
        }
    };
}

macro_rules! integers_for {
    ($module:ident, $integers:ty, $bits:literal, $rows:literal, $of_4x2:expr, $features:literal) => {
        mod $module {
            use super::*;

            #[target_feature(enable = $features)]
            unsafe fn product<const D: usize, const R: usize, const T: usize>(
                tiles: &Tiles<'_>,
                tile: usize,
                x: *const *const u32,
                y: *mut f32,
                stride: usize,
            ) {
                // SAFETY: the caller's promises, and the instruction set of this module.
                unsafe { digits::product::<$integers, D, R, T>(tiles, tile, x, y, stride) }
            }

            #[target_feature(enable = $features)]
            unsafe fn split(x: &[f32], digits: &mut [u32], of_span: &mut [u32]) {
                // SAFETY: as `product`.
                unsafe { digits::split::<$integers>(x, digits, of_span) }
            }

            #[target_feature(enable = $features)]
            unsafe fn split_int8(x: &[f32], digits: &mut [u32], of_span: &mut [u32]) {
                int8::split(x, digits, of_span);
            }

            const fn with<const D: usize>(split: SplitFn, bits: usize) -> DigitKernels {
                let product = Products::<DigitProductFn> {
                    rows: $rows,
                    of_8x1: product::<D, $rows, 1>,
                    of_4x2: $of_4x2,
                    of_4x1: product::<D, 4, 1>,
                    of_2x2: product::<D, 2, 2>,
                    of_2x1: product::<D, 2, 1>,
                    of_1x4: product::<D, 1, 4>,
                    of_1x1: product::<D, 1, 1>,
                };
                DigitKernels { split, product, bits }
            }

            pub(crate) const KERNELS: IntegerKernels =
                IntegerKernels { one: with::<1>(split_int8, 8), three: with::<3>(split, $bits) };
        }
    };
}

kernels_for!(scalar, Scalar, 4, None);
static SCALAR: Kernels = scalar::with(Isa::Scalar, None);

// Without VNNI, products are summed in 16 bits, into which those of wide codes fit only a few times, or not at all: floats are
// faster then than three digits, but not than one.

#[cfg(target_arch = "x86_64")]
kernels_for!(avx2, Avx2, 4, None, "avx2,fma,f16c");
#[cfg(target_arch = "x86_64")]
integers_for!(avx2_integers, Integers256<false>, 5, 4, None, "avx2,fma,f16c");
#[cfg(target_arch = "x86_64")]
static AVX2: Kernels = avx2::with(Isa::Avx2, Some(avx2_integers::KERNELS));

#[cfg(target_arch = "x86_64")]
integers_for!(avx_vnni_integers, Integers256<true>, 8, 4, None, "avx2,fma,f16c,avxvnni");
#[cfg(target_arch = "x86_64")]
static AVX_VNNI: Kernels = avx2::with(Isa::AvxVnni, Some(avx_vnni_integers::KERNELS));

#[cfg(target_arch = "x86_64")]
kernels_for!(avx512, Avx512, 8, Some(product::<4, 2>), "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c");
#[cfg(target_arch = "x86_64")]
integers_for!(
    avx512_integers,
    Integers512<false>,
    5,
    4,
    Some(product::<D, 4, 2>),
    "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"
);
#[cfg(target_arch = "x86_64")]
static AVX512: Kernels = avx512::with(Isa::Avx512, Some(avx512_integers::KERNELS));

#[cfg(target_arch = "x86_64")]
integers_for!(
    avx512_vnni_integers,
    Integers512<true>,
    8,
    8,
    Some(product::<D, 4, 2>),
    "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c"
);
#[cfg(target_arch = "x86_64")]
static AVX512_VNNI: Kernels = avx512::with(Isa::Avx512Vnni, Some(avx512_vnni_integers::KERNELS));

#[cfg(test)]
mod tests {
    use super::*;

    /// Values over the whole range, and where functions saturate.
    fn values() -> Vec<f32> {
        (-2000..2000)
            .map(|i| i as f32 * 0.05)
            .chain((-100..100).map(|i| i as f32 * 1e-4))
            .chain([-0.0, 1e4, -1e4])
            .collect()
    }

    fn kernels() -> impl Iterator<Item = &'static Kernels> {
        Isa::ALL.into_iter().filter_map(Kernels::of)
    }

    /// Compares a function with its formula in f64: within `tolerance(x, expected)` everywhere.
    fn check(activation: Activation, formula: impl Fn(f64) -> f64, tolerance: impl Fn(f64, f64) -> f64) {
        let x = values();
        let up = vec![1.5; x.len()];
        for kernels in kernels() {
            let (mut gated, mut plain) = (vec![0.0; x.len()], vec![0.0; x.len()]);
            kernels.activate(activation, &x, Some(&up), &mut gated);
            kernels.activate(activation, &x, None, &mut plain);
            for ((&x, gated), plain) in x.iter().zip(gated).zip(plain) {
                assert_eq!(gated, 1.5 * plain);
                let expected = formula(f64::from(x));
                let error = (f64::from(plain) - expected).abs();
                let most = tolerance(f64::from(x), expected) + 1e-30;
                assert!(error <= most, "{}: {activation:?}({x}) = {plain}, not {expected}", kernels.isa);
            }
        }
    }

    #[test]
    fn silu_is_its_formula_over_the_whole_range() {
        check(Activation::Silu, |x| x / (1.0 + (-x).exp()), |_, expected| 4e-7 * expected.abs());
    }

    #[test]
    fn gelu_by_tanh_is_its_formula_over_the_whole_range() {
        let u = |x: f64| (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
        let tolerance = |x: f64, expected: f64| 1e-7 * (4.0 + 3.0 * u(x).abs()) * expected.abs();
        check(Activation::GeluTanh, |x| x / (1.0 + (-2.0 * u(x)).exp()), tolerance);
    }

    #[test]
    fn gelu_has_the_values_of_the_normal_distribution() {
        // P(x) by Simpson's rule over the density, from x to where nothing is left.
        let tail = |x: f64| {
            let (steps, width) = (4000, 12.0 / 4000.0);
            let density = |i: usize| (-(x + i as f64 * width).powi(2) / 2.0).exp();
            let weight = |i: usize| if i == 0 || i == steps { 1.0 } else { [2.0, 4.0][i % 2] };
            let sum: f64 = (0..=steps).map(|i| weight(i) * density(i)).sum();
            sum * width / 3.0 / (2.0 * std::f64::consts::PI).sqrt()
        };
        let formula = |x: f64| if x < 0.0 { x * tail(-x) } else { x - x * tail(x) };
        let tolerance = |x: f64, expected: f64| {
            if x > 0.0 { 3e-7 * x } else { 1e-7 * (5.0 + x * x) * expected.abs() + 1e-12 }
        };
        check(Activation::Gelu, formula, tolerance);
    }

    #[test]
    fn a_bound_is_its_tanh_also_near_zero_and_only_a_factor_without_a_cap() {
        let x = values();
        for kernels in kernels() {
            let mut capped = x.clone();
            kernels.bound(0.5, Some(3.0), &mut capped);
            for (&x, &found) in x.iter().zip(&capped) {
                let expected = 3.0 * (0.5 * f64::from(x) / 3.0).tanh();
                let error = (f64::from(found) - expected).abs();
                assert!(error <= 1e-6 * expected.abs(), "{}: {x} became {found}, not {expected}", kernels.isa);
            }
            let mut scaled = x.clone();
            kernels.bound(0.5, None, &mut scaled);
            assert!(x.iter().zip(scaled).all(|(x, scaled)| 0.5 * x == scaled));
        }
    }

    #[test]
    fn nan_stays_nan() {
        for kernels in kernels() {
            for activation in [Activation::Silu, Activation::GeluTanh, Activation::Gelu] {
                let mut out = [0.0; 2];
                kernels.activate(activation, &[f32::NAN, 1.0], Some(&[1.0, 1.0]), &mut out);
                assert!(out[0].is_nan() && !out[1].is_nan());
            }
            let mut bounded = [f32::NAN, 1.0];
            kernels.bound(1.0, Some(2.0), &mut bounded);
            assert!(bounded[0].is_nan() && !bounded[1].is_nan());
        }
    }
}
