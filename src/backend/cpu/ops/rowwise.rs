//! Operations in which every row is computed on its own, and the loop they share.

use crate::backend::cpu::runtime::threads::Pool;
use crate::error::Result;

/// Values below which waking other threads costs more than the work.
const PARALLEL_FROM: usize = 1 << 15;

/// Calls `row(i, out row i)` for each row, on several threads if there is enough to do. `stride` is the distance of
/// rows in `out`, `width` what of it is written.
///
/// # Errors
/// A task panicked.
pub(crate) fn for_rows<T: Send>(
    pool: &mut Pool,
    rows: usize,
    width: usize,
    out: &mut [T],
    stride: usize,
    row: impl Fn(usize, &mut [T]) + Sync,
) -> Result<()> {
    let tasks = if rows * width < PARALLEL_FROM { 1 } else { rows.min(4 * pool.threads()) };
    let rows_of_task = rows.div_ceil(tasks).max(1);
    pool.for_chunks(&mut out[..rows * stride], rows_of_task * stride, |task, chunk| {
        for (i, out) in chunk.chunks_exact_mut(stride).enumerate() {
            row(task * rows_of_task + i, &mut out[..width]);
        }
    })
}
