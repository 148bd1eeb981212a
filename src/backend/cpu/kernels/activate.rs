//! Activation functions of an MLP, gated or plain: operations on one row alone.

#![allow(unsafe_code, reason = "vector loads of instruction sets that are detected at run time")]

use std::f32::consts::FRAC_1_SQRT_2;

use super::vector::{LANES, Vector};
use crate::backend::Activation;

/// `out = act(x) * up`, or `out = act(x)` without `up`, for one row.
pub(crate) type ActivateFn = unsafe fn(activation: Activation, x: &[f32], up: Option<&[f32]>, out: &mut [f32]);

/// See [`ActivateFn`].
///
/// # Safety
/// The instruction set of `V` must be available.
#[inline(always)]
pub(crate) unsafe fn activate<V: Vector>(activation: Activation, x: &[f32], up: Option<&[f32]>, out: &mut [f32]) {
    // SAFETY: the caller's promise.
    unsafe {
        match activation {
            Activation::Silu => apply::<V, Silu>(x, up, out),
            Activation::GeluTanh => apply::<V, GeluTanh>(x, up, out),
            Activation::Gelu => apply::<V, Gelu>(x, up, out),
        }
    }
}

/// # Safety
/// As [`activate`].
#[inline(always)]
unsafe fn apply<V: Vector, F: Function>(x: &[f32], up: Option<&[f32]>, out: &mut [f32]) {
    assert!(x.len() == out.len() && up.is_none_or(|up| up.len() == out.len()));
    // SAFETY: the caller's promise; each load and store stays within the rest of its slice.
    unsafe {
        let Some(up) = up else {
            for (x, out) in x.chunks(LANES).zip(out.chunks_mut(LANES)) {
                F::of(V::load_partial(x.as_ptr(), x.len(), 0.0)).store_partial(out.as_mut_ptr(), out.len());
            }
            return;
        };
        for ((x, up), out) in x.chunks(LANES).zip(up.chunks(LANES)).zip(out.chunks_mut(LANES)) {
            let activated = F::of(V::load_partial(x.as_ptr(), x.len(), 0.0));
            let up = V::load_partial(up.as_ptr(), up.len(), 0.0);
            activated.mul(up).store_partial(out.as_mut_ptr(), out.len());
        }
    }
}

/// A function of each lane.
trait Function {
    fn of<V: Vector>(x: V) -> V;
}

/// `x / (1 + exp(-x))`.
struct Silu;

impl Function for Silu {
    #[inline(always)]
    fn of<V: Vector>(x: V) -> V {
        // SAFETY: `x` proves the instruction set.
        let (zero, one) = unsafe { (V::splat(0.0), V::splat(1.0)) };
        x.div(one.add(zero.sub(x).exp()))
    }
}

/// `x / (1 + exp(-2 u))` with `u = sqrt(2 / pi) (x + 0.044715 x^3)`, within `1e-7 (4 + 3 |u|)` of itself.
struct GeluTanh;

impl Function for GeluTanh {
    #[inline(always)]
    fn of<V: Vector>(x: V) -> V {
        /// `2 sqrt(2 / pi)`.
        const SLOPE: f32 = 1.595_769;
        // SAFETY: `x` proves the instruction set.
        let (zero, one, slope, cubic) =
            unsafe { (V::splat(0.0), V::splat(1.0), V::splat(SLOPE), V::splat(SLOPE * 0.044_715)) };
        let twice_u = x.mul(x).mul_add(cubic, slope).mul(x);
        x.div(one.add(zero.sub(twice_u).exp()))
    }
}

/// `max(x, 0) - |x| erfc(|x| / sqrt(2)) / 2`, within 3e-7 of x where x is positive, else within `1e-7 (5 + x^2)` of itself.
struct Gelu;

impl Function for Gelu {
    #[inline(always)]
    fn of<V: Vector>(x: V) -> V {
        /// `ln(erfc(z) e^(z^2) / t)` as a polynomial in `t = 1 / (1 + z / 2)`, from the highest power down: a Chebyshev fit over
        /// `t` from 1/8 to 1, off by at most 7e-8.
        const LOG_ERFC: [f32; 10] = [
            0.165_507_2,
            -0.791_451_9,
            1.413_184_6,
            -1.031_642_7,
            0.191_457_32,
            -0.139_632_2,
            0.081_165_8,
            0.377_223,
            0.999_686_4,
            -1.265_497_4,
        ];
        // SAFETY: `x` proves the instruction set.
        let splat = |value| unsafe { V::splat(value) };
        let zero = splat(0.0);
        let magnitude = zero.sub(x).max(x);
        let z = magnitude.mul(splat(FRAC_1_SQRT_2));
        let t = splat(1.0).div(z.mul_add(splat(0.5), splat(1.0)));
        let mut log = splat(LOG_ERFC[0]);
        for coefficient in &LOG_ERFC[1..] {
            log = log.mul_add(t, splat(*coefficient));
        }
        let erfc = t.mul(zero.sub(z).mul_add(z, log).exp());
        zero.max(x).sub(magnitude.mul(splat(0.5)).mul(erfc))
    }
}
