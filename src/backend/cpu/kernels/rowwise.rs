//! Norms and bounds: operations on one row alone.

#![allow(unsafe_code, reason = "vector loads of instruction sets that are detected at run time")]

use std::ops::Range;

use super::vector::{LANES, Vector};
use crate::backend::{NormKind, Write};

/// A norm as it acts on one row.
#[derive(Clone, Copy)]
pub(crate) struct RowNorm<'a> {
    /// What it divides by.
    pub(crate) kind: NormKind,
    /// Added to the mean of squares.
    pub(crate) eps: f32,
    /// `[channels]`
    pub(crate) weight: &'a [f32],
    /// `[channels]`, or none.
    pub(crate) bias: &'a [f32],
}

impl RowNorm<'_> {
    /// The norm of some channels alone.
    pub(crate) fn of_channels(self, channels: Range<usize>) -> Self {
        let bias = if self.bias.is_empty() { &[] } else { &self.bias[channels.clone()] };
        Self { weight: &self.weight[channels], bias, ..self }
    }
}

/// `out = ` or `+= weight * normed(x) + bias` for one row.
pub(crate) type NormFn = unsafe fn(norm: &RowNorm<'_>, x: &[f32], write: Write, out: &mut [f32]);

/// `x = cap * tanh(factor * x / cap)`, or `factor * x` without a cap.
pub(crate) type BoundFn = unsafe fn(factor: f32, cap: Option<f32>, x: &mut [f32]);

/// See [`NormFn`].
///
/// # Safety
/// The instruction set of `V` must be available.
#[inline(always)]
pub(crate) unsafe fn norm<V: Vector>(norm: &RowNorm<'_>, x: &[f32], write: Write, out: &mut [f32]) {
    // SAFETY: the caller's promise.
    unsafe {
        match norm.kind {
            NormKind::Rms => norm_about::<V, false>(norm, 0.0, x, write, out),
            NormKind::Layer => norm_about::<V, true>(norm, mean::<V>(x), x, write, out),
        }
    }
}

/// The norm of the deviations from `mean`, which is not subtracted if it is 0 for all. Squares are summed lane by lane, then over
/// the lanes.
///
/// # Safety
/// As [`norm`].
#[inline(always)]
unsafe fn norm_about<V: Vector, const IS_CENTERED: bool>(
    norm: &RowNorm<'_>,
    mean: f32,
    x: &[f32],
    write: Write,
    out: &mut [f32],
) {
    let RowNorm { eps, weight, bias, .. } = *norm;
    assert!(weight.len() == x.len() && out.len() == x.len() && (bias.is_empty() || bias.len() == x.len()));
    // SAFETY: the caller's promise; each load and store stays within the rest of its slice.
    unsafe {
        let mut squares = V::splat(0.0);
        for chunk in x.chunks(LANES) {
            let mut x = V::load_partial(chunk.as_ptr(), chunk.len(), mean);
            if IS_CENTERED {
                x = x.sub(V::splat(mean));
            }
            squares = x.mul_add(x, squares);
        }
        let factor = V::splat(1.0 / (squares.sum() / x.len() as f32 + eps).sqrt());
        for (i, ((x, weight), out)) in x.chunks(LANES).zip(weight.chunks(LANES)).zip(out.chunks_mut(LANES)).enumerate()
        {
            let mut x = V::load_partial(x.as_ptr(), x.len(), mean);
            if IS_CENTERED {
                x = x.sub(V::splat(mean));
            }
            let mut y = V::load_partial(weight.as_ptr(), weight.len(), 0.0).mul(x.mul(factor));
            if !bias.is_empty() {
                y = y.add(V::load_partial(bias[i * LANES..].as_ptr(), out.len(), 0.0));
            }
            if let Write::Add { factor } = write {
                y = V::load_partial(out.as_ptr(), out.len(), 0.0).add(y.mul(V::splat(factor)));
            }
            y.store_partial(out.as_mut_ptr(), out.len());
        }
    }
}

/// The mean, summed lane by lane, then over the lanes.
///
/// # Safety
/// As [`norm`].
#[inline(always)]
unsafe fn mean<V: Vector>(x: &[f32]) -> f32 {
    // SAFETY: as `norm_about`.
    unsafe {
        let mut sums = V::splat(0.0);
        for chunk in x.chunks(LANES) {
            sums = sums.add(V::load_partial(chunk.as_ptr(), chunk.len(), 0.0));
        }
        sums.sum() / x.len() as f32
    }
}

/// See [`BoundFn`].
///
/// # Safety
/// The instruction set of `V` must be available.
#[inline(always)]
pub(crate) unsafe fn bound<V: Vector>(factor: f32, cap: Option<f32>, x: &mut [f32]) {
    // SAFETY: as `norm_about`.
    unsafe {
        for chunk in x.chunks_mut(LANES) {
            let mut x = V::load_partial(chunk.as_ptr(), chunk.len(), 0.0).mul(V::splat(factor));
            if let Some(cap) = cap {
                x = x.div(V::splat(cap)).tanh().mul(V::splat(cap));
            }
            x.store_partial(chunk.as_mut_ptr(), chunk.len());
        }
    }
}
