//! Operations in which every row is computed on its own, and the loop they share.

use crate::backend::cpu::runtime::threads::Pool;
use crate::error::Result;

/// Values of a row that a thread norms in a nanosecond.
pub(crate) const NORMED_PER_NS: usize = 8;

/// Calls `row(i, out row i)` for each row, on as many threads as are worth it if one computes `values_per_ns` values in a
/// nanosecond. `stride` is the distance of rows in `out`, `width` what of it is written.
///
/// # Errors
/// A task panicked.
pub(crate) fn for_rows<T: Send>(
    pool: &mut Pool,
    rows: usize,
    width: usize,
    values_per_ns: usize,
    out: &mut [T],
    stride: usize,
    row: impl Fn(usize, &mut [T]) + Sync,
) -> Result<()> {
    let threads = pool.threads_for(rows * width / values_per_ns);
    let tasks = if threads == 1 { 1 } else { rows.min(4 * threads) };
    let rows_of_task = rows.div_ceil(tasks.max(1)).max(1);
    pool.for_chunks_on(threads, &mut out[..rows * stride], rows_of_task * stride, |task, chunk| {
        for (i, out) in chunk.chunks_exact_mut(stride).enumerate() {
            row(task * rows_of_task + i, &mut out[..width]);
        }
    })
}
