//! The table of kernels of each instruction set.
//!
//! A [`Kernels`] is returned only after the instruction set was detected on the machine, which makes calling its entries
//! sound.

#![allow(unsafe_code, reason = "kernels are compiled for instruction sets that are detected at run time")]

use super::attend::{self, AttendFn, Seen, View};
use super::dequantize::{self, DequantizeFn};
use super::isa::Isa;
use super::rowwise::{self, GateFn, NormFn};
use super::tile::{self, ExpandFn, ProductFn, SquaresFn, Tiles, Width};
use super::vector::{F16, F32, LANES, Scalar};
#[cfg(target_arch = "x86_64")]
use super::x86::{Avx2, Avx512};
use crate::backend::KvDType;

/// Maximum rows of one product call.
pub(crate) const MAX_ROWS: usize = 8;

/// Every kernel, for one instruction set.
pub(crate) struct Kernels {
    pub(crate) isa: Isa,
    /// Rows of the largest product that keeps its sums in registers.
    rows: usize,
    product_8x1: ProductFn,
    product_4x1: ProductFn,
    product_2x2: ProductFn,
    product_2x1: ProductFn,
    product_1x4: ProductFn,
    product_1x1: ProductFn,
    squares: SquaresFn,
    dequantize: DequantizeFn,
    expand: ExpandFn,
    norm: NormFn,
    silu_gate: GateFn,
    attend_f16: AttendFn,
    attend_f32: AttendFn,
}

impl Kernels {
    /// The kernels of an instruction set, or `None` if this machine lacks it.
    pub(crate) fn of(isa: Isa) -> Option<&'static Self> {
        if !isa.is_available() {
            return None;
        }
        Some(match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => &avx512::KERNELS,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => &avx2::KERNELS,
            _ => &scalar::KERNELS,
        })
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
        assert!(rows.len() <= MAX_ROWS && y.len() >= count * MAX_ROWS);
        assert!((tile + count) * tiles.tile_bytes <= tiles.codes.len());
        assert!((tile + count) * tiles.scale_bytes <= tiles.scales.len());
        let mut pointers = [std::ptr::null(); MAX_ROWS];
        for (pointer, row) in pointers.iter_mut().zip(rows) {
            assert!(row.len() >= tiles.inputs);
            *pointer = row.as_ptr();
        }
        let mut r = 0;
        while r < rows.len() && count > 0 {
            let left = (rows.len() - r).min(self.rows);
            let mut t = 0;
            while t < count {
                let (kernel, r_step, t_step) = match (left, count - t) {
                    (8.., _) => (self.product_8x1, 8, 1),
                    (4.., _) => (self.product_4x1, 4, 1),
                    (2.., 2..) => (self.product_2x2, 2, 2),
                    (2.., _) => (self.product_2x1, 2, 1),
                    (_, 4..) => (self.product_1x4, 1, 4),
                    _ => (self.product_1x1, 1, 1),
                };
                let out = y[t * MAX_ROWS + r..].as_mut_ptr().cast::<f32>();
                // SAFETY: the table exists only where its instruction set does. The asserts above bound tiles, rows and
                // `y`, into which the kernel writes `r_step` vectors at each of `t_step` strides.
                unsafe { kernel(tiles, tile + t, pointers[r..].as_ptr(), out, MAX_ROWS * LANES) };
                t += t_step;
                if t >= count {
                    r += r_step;
                }
            }
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

    /// RMS norm of one row: `out = weight * x / sqrt(mean(x^2) + eps)`.
    ///
    /// # Panics
    /// If the lengths differ.
    #[inline]
    pub(crate) fn norm(&self, weight: &[f32], eps: f32, x: &[f32], out: &mut [f32]) {
        // SAFETY: the table exists only where its instruction set does.
        unsafe { (self.norm)(weight, eps, x, out) };
    }

    /// `out = silu(gate) * up` of one row.
    ///
    /// # Panics
    /// If the lengths differ.
    #[inline]
    pub(crate) fn silu_gate(&self, gate: &[f32], up: &[f32], out: &mut [f32]) {
        // SAFETY: the table exists only where its instruction set does.
        unsafe { (self.silu_gate)(gate, up, out) };
    }

    /// The parts `[queries][part_len]` of query vectors `q [queries][head_dim]`, normed and rotated, for what each sees of one
    /// segment of `attend.rs`; `scores` is scratch.
    ///
    /// # Panics
    /// If a length does not fit, or a query sees no position or those of several segments.
    ///
    /// # Safety
    /// The positions must lie within the view's block table, and its pages within the cache, whose elements are of `dtype`.
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
        };
        // SAFETY: the table exists only where its instruction set does; the rest is the caller's promise.
        unsafe { kernel(view, q, seen, scores, parts) };
    }
}

macro_rules! kernels_for {
    ($module:ident, $vector:ty, $isa:expr, $rows:literal $(, $features:literal)?) => {
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
            unsafe fn norm(weight: &[f32], eps: f32, x: &[f32], out: &mut [f32]) {
                // SAFETY: as `product`.
                unsafe { rowwise::norm::<$vector>(weight, eps, x, out) }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn silu_gate(gate: &[f32], up: &[f32], out: &mut [f32]) {
                // SAFETY: as `product`.
                unsafe { rowwise::silu_gate::<$vector>(gate, up, out) }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn attend_f16(view: &View<'_>, q: &[f32], seen: &[Seen], scores: &mut [f32], parts: &mut [f32]) {
                // SAFETY: as `product`.
                unsafe { attend::attend::<$vector, F16>(view, q, seen, scores, parts) }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn attend_f32(view: &View<'_>, q: &[f32], seen: &[Seen], scores: &mut [f32], parts: &mut [f32]) {
                // SAFETY: as `product`.
                unsafe { attend::attend::<$vector, F32>(view, q, seen, scores, parts) }
            }

            pub(crate) static KERNELS: Kernels = Kernels {
                isa: $isa,
                rows: $rows,
                product_8x1: product::<$rows, 1>,
                product_4x1: product::<4, 1>,
                product_2x2: product::<2, 2>,
                product_2x1: product::<2, 1>,
                product_1x4: product::<1, 4>,
                product_1x1: product::<1, 1>,
                squares,
                dequantize,
                expand,
                norm,
                silu_gate,
                attend_f16,
                attend_f32,
            };
        }
    };
}

kernels_for!(scalar, Scalar, Isa::Scalar, 4);
#[cfg(target_arch = "x86_64")]
kernels_for!(avx2, Avx2, Isa::Avx2, 4, "avx2,fma,f16c");
#[cfg(target_arch = "x86_64")]
kernels_for!(avx512, Avx512, Isa::Avx512, 8, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gate_is_silu_over_the_whole_range() {
        let gates: Vec<f32> = (-2000..2000).map(|i| i as f32 * 0.05).chain([0.0, -0.0, 1e30, 1e4, -1e4]).collect();
        let up = vec![1.5; gates.len()];
        for isa in Isa::ALL {
            let Some(kernels) = Kernels::of(isa) else { continue };
            let mut out = vec![0.0; gates.len()];
            kernels.silu_gate(&gates, &up, &mut out);
            for (&gate, &found) in gates.iter().zip(&out) {
                let x = f64::from(gate);
                let expected = 1.5 * x / (1.0 + (-x).exp());
                let tolerance = 4e-7 * expected.abs() + 1e-30;
                assert!((f64::from(found) - expected).abs() <= tolerance, "{isa}: silu({gate}) = {found}");
            }
        }
    }

    #[test]
    fn nan_stays_nan() {
        for isa in Isa::ALL {
            let Some(kernels) = Kernels::of(isa) else { continue };
            let mut out = [0.0; 2];
            kernels.silu_gate(&[f32::NAN, 1.0], &[1.0, 1.0], &mut out);
            assert!(out[0].is_nan() && !out[1].is_nan());
        }
    }
}
