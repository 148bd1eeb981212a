//! Norm and gate: operations on one row alone.

use super::vector::{LANES, Vector};

/// `out = weight * x / sqrt(mean(x^2) + eps)` for one row.
pub(crate) type NormFn = unsafe fn(weight: &[f32], eps: f32, x: &[f32], out: &mut [f32]);

/// `out = act(gate) * up` for one row.
pub(crate) type GateFn = unsafe fn(gate: &[f32], up: &[f32], out: &mut [f32]);

/// See [`NormFn`]. Squares are summed lane by lane, then over the lanes.
///
/// # Safety
/// The instruction set of `V` must be there.
#[inline(always)]
pub(crate) unsafe fn norm<V: Vector>(weight: &[f32], eps: f32, x: &[f32], out: &mut [f32]) {
    assert!(weight.len() == x.len() && out.len() == x.len());
    // SAFETY: the caller's promise; each load and store stays within the rest of its slice.
    unsafe {
        let mut squares = V::splat(0.0);
        for chunk in x.chunks(LANES) {
            let x = V::load_partial(chunk.as_ptr(), chunk.len(), 0.0);
            squares = x.mul_add(x, squares);
        }
        let factor = V::splat(1.0 / (squares.sum() / x.len() as f32 + eps).sqrt());
        for ((x, weight), out) in x.chunks(LANES).zip(weight.chunks(LANES)).zip(out.chunks_mut(LANES)) {
            let normed = V::load_partial(x.as_ptr(), x.len(), 0.0).mul(factor);
            let weight = V::load_partial(weight.as_ptr(), weight.len(), 0.0);
            weight.mul(normed).store_partial(out.as_mut_ptr(), out.len());
        }
    }
}

/// `out = gate / (1 + exp(-gate)) * up`; see [`GateFn`].
///
/// # Safety
/// The instruction set of `V` must be there.
#[inline(always)]
pub(crate) unsafe fn silu_gate<V: Vector>(gate: &[f32], up: &[f32], out: &mut [f32]) {
    assert!(gate.len() == out.len() && up.len() == out.len());
    // SAFETY: as in `norm`.
    unsafe {
        for ((gate, up), out) in gate.chunks(LANES).zip(up.chunks(LANES)).zip(out.chunks_mut(LANES)) {
            let gate = V::load_partial(gate.as_ptr(), gate.len(), 0.0);
            let up = V::load_partial(up.as_ptr(), up.len(), 0.0);
            let silu = gate.div(V::splat(1.0).add(V::splat(0.0).sub(gate).exp()));
            silu.mul(up).store_partial(out.as_mut_ptr(), out.len());
        }
    }
}
