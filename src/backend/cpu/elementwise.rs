//! Embedding, norm and gate: what happens to a row on its own.

use std::ops::Range;

use super::isa::{LANES, Vector};
use super::threads::{Disjoint, Pool};
use crate::error::Result;
use crate::tensor::{DType, TensorView};

/// Values below which waking other threads costs more than the work.
const PARALLEL_FROM: usize = 1 << 15;

/// `out = weight * x / sqrt(mean(x^2) + eps)` for one row.
pub(super) type NormFn = unsafe fn(weight: &[f32], eps: f32, x: &[f32], out: &mut [f32]);

/// `out = act(gate) * up` for one row.
pub(super) type GateFn = unsafe fn(gate: &[f32], up: &[f32], out: &mut [f32]);

/// See [`NormFn`]. Squares are summed lane by lane, then over the lanes.
///
/// # Safety
/// The instruction set of `V` must be there.
#[inline(always)]
pub(super) unsafe fn norm<V: Vector>(weight: &[f32], eps: f32, x: &[f32], out: &mut [f32]) {
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
pub(super) unsafe fn silu_gate<V: Vector>(gate: &[f32], up: &[f32], out: &mut [f32]) {
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

/// Calls `row(i, out row i)` for each row, on several threads if there is enough to do. `stride` is the distance of
/// rows in `out`, `width` what of it is written.
///
/// # Errors
/// A task panicked.
pub(super) fn for_rows(
    pool: &mut Pool,
    rows: usize,
    width: usize,
    out: &mut [f32],
    stride: usize,
    row: impl Fn(usize, &mut [f32]) + Sync,
) -> Result<()> {
    let out = Disjoint::new(&mut out[..rows * stride]);
    let tasks = if rows * width < PARALLEL_FROM { 1 } else { rows.min(4 * pool.threads()) };
    pool.run(tasks, |task, _| {
        for i in rows * task / tasks..rows * (task + 1) / tasks {
            // SAFETY: each row belongs to one task, and rows don't overlap since `width <= stride`.
            row(i, unsafe { out.part(i * stride..i * stride + width) });
        }
    })
}

/// Columns of a row of numbers, as f32; rows are `width` long.
///
/// # Panics
/// If row or columns are outside of the matrix, or the dtype is no float.
pub(super) fn read_row(dtype: DType, matrix: &[u8], width: usize, row: usize, columns: Range<usize>, out: &mut [f32]) {
    let shape = [width];
    let bytes = width * dtype.bytes();
    if let Some(view) = TensorView::new(dtype, &shape, &matrix[row * bytes..][..bytes]) {
        view.read_f32(columns, out);
    }
}

#[cfg(test)]
mod tests {
    use super::super::isa::Isa;
    use super::super::kernels::Kernels;

    #[test]
    fn the_gate_is_silu_from_one_end_of_the_numbers_to_the_other() {
        let gates: Vec<f32> = (-2000..2000).map(|i| i as f32 * 0.05).chain([0.0, -0.0, 1e30, 1e4, -1e4]).collect();
        let up = vec![1.5; gates.len()];
        for isa in Isa::ALL {
            let Some(kernels) = Kernels::of(isa) else { continue };
            let mut out = vec![0.0; gates.len()];
            // SAFETY: the kernels exist, so the instruction set does.
            unsafe { (kernels.silu_gate)(&gates, &up, &mut out) };
            for (&gate, &found) in gates.iter().zip(&out) {
                let x = f64::from(gate);
                let expected = 1.5 * x / (1.0 + (-x).exp());
                let tolerance = 4e-7 * expected.abs() + 1e-30;
                assert!((f64::from(found) - expected).abs() <= tolerance, "{isa}: silu({gate}) = {found}");
            }
        }
    }

    #[test]
    fn what_is_not_a_number_stays_so() {
        for isa in Isa::ALL {
            let Some(kernels) = Kernels::of(isa) else { continue };
            let mut out = [0.0; 2];
            // SAFETY: the kernels exist, so the instruction set does.
            unsafe { (kernels.silu_gate)(&[f32::NAN, 1.0], &[1.0, 1.0], &mut out) };
            assert!(out[0].is_nan() && !out[1].is_nan());
        }
    }
}
