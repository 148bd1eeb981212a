//! Operations in which every row is computed on its own, and the loop they share.

use crate::backend::cpu::runtime::threads::{Disjoint, Pool};
use crate::error::Result;

/// Values below which waking other threads costs more than the work.
const PARALLEL_FROM: usize = 1 << 15;

/// Calls `row(i, out row i)` for each row, on several threads if there is enough to do. `stride` is the distance of
/// rows in `out`, `width` what of it is written.
///
/// # Errors
/// A task panicked.
pub(crate) fn for_rows(
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
