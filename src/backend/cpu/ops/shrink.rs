//! Shrink, `t = A x`: the product of each adapter's stack with the rows on which it acts.

#![allow(unsafe_code, reason = "tasks write disjoint tiles of rows")]

use std::ops::Range;

use crate::backend::cpu::adapter::resident::Adapter;
use crate::backend::cpu::adapter::routing::Routing;
use crate::backend::cpu::kernels::dispatch::{Kernels, MAX_ROWS};
use crate::backend::cpu::kernels::vector::LANES;
use crate::backend::cpu::runtime::arena::{exhausted, grow};
use crate::backend::cpu::runtime::buffers::Inputs;
use crate::backend::cpu::runtime::threads::{Disjoint, Pool};
use crate::error::Result;

/// Values of t that are held at once, 64 MiB: rows under adapters of very large ranks are computed in blocks.
const MAX_T: usize = 1 << 24;

/// Products and sums that a thread computes in a nanosecond.
const MULTIPLIES_PER_NS: usize = 16;

/// Splits a step's rows into consecutive blocks, nearly always one, whose t has at most `max_t` values or is that of one
/// row; `len_of` is the length of an adapter's t.
pub(crate) fn row_blocks<'a>(
    routing: Routing<'a>,
    rows: usize,
    max_t: usize,
    len_of: impl Fn(&Adapter) -> usize + 'a,
) -> impl Iterator<Item = Range<usize>> + 'a {
    let total: usize = routing.segments().map(|(_, adapter, entries)| entries.len() * len_of(adapter)).sum();
    let of_row = move |row: usize| routing.of_row(row).map(|(.., adapter)| len_of(adapter)).sum::<usize>();
    let mut start = 0;
    std::iter::from_fn(move || {
        let first = Some(start).filter(|&start| start < rows)?;
        start = rows;
        if total > max_t {
            let mut len = of_row(first);
            start = first + 1;
            while start < rows && len + of_row(start) <= max_t {
                len += of_row(start);
                start += 1;
            }
        }
        Some(first..start)
    })
}

/// The product of each adapter's stack with the rows it acts on: entry after entry of the batch.
pub(crate) struct Shrunk {
    /// Values of t that are held at once, unless a single row has more.
    pub(crate) max_t: usize,
    pub(crate) t: Vec<f32>,
    /// Where each entry's t begins.
    pub(crate) starts: Vec<usize>,
    tasks: Vec<ShrinkTask>,
}

impl Default for Shrunk {
    fn default() -> Self {
        Self { max_t: MAX_T, t: Vec::new(), starts: Vec::new(), tasks: Vec::new() }
    }
}

impl Shrunk {
    /// The products from an entry's t on.
    pub(crate) fn of(&self, entry: usize) -> &[f32] {
        &self.t[self.starts[entry]..]
    }
}

/// One tile of a stack for a few entries of one slot.
#[derive(Clone, Copy)]
struct ShrinkTask {
    slot: usize,
    tile: usize,
    first_entry: usize,
    entries: usize,
}

/// `t = A x` for every entry of the batch that acts on one of the rows, of all members at once.
///
/// # Errors
/// `memory_exhausted`; `internal` if a task panicked.
pub(crate) fn shrink(
    pool: &mut Pool,
    kernels: &Kernels,
    group: usize,
    routing: Routing<'_>,
    inputs: Inputs<'_>,
    rows: Range<usize>,
    shrunk: &mut Shrunk,
) -> Result<()> {
    let Shrunk { t, starts, tasks, .. } = shrunk;
    let repeat = routing.repeat();
    tasks.clear();
    starts.clear();
    let mut t_len = 0;
    for (slot, adapter, entries) in routing.segments() {
        let tiles = adapter.group(group, repeat).map_or(0, |delta| delta.stack_tiles());
        let all = entries.clone();
        let entries = routing.entries_of_rows(entries, &rows);
        for entry in all {
            starts.push(t_len);
            t_len += if entries.contains(&entry) { tiles * LANES } else { 0 };
        }
        for first_entry in entries.clone().step_by(MAX_ROWS) {
            let entries = MAX_ROWS.min(entries.end - first_entry);
            tasks.try_reserve(tiles).map_err(|_| exhausted(tiles.saturating_mul(size_of::<ShrinkTask>())))?;
            tasks.extend((0..tiles).map(|tile| ShrinkTask { slot, tile, first_entry, entries }));
        }
    }
    grow(t, t_len)?;
    let (t, starts, tasks) = (Disjoint::new(t), &*starts, &*tasks);
    let threads = pool.threads_for(t_len * inputs.x.stride / MULTIPLIES_PER_NS);
    pool.run_on(threads, tasks.len(), |task, _| {
        let task = tasks[task];
        let Some(adapter) = routing.adapter(task.slot) else { return };
        let Some(delta) = adapter.group(group, repeat) else { return };
        let mut rows: [&[f32]; MAX_ROWS] = [&[]; MAX_ROWS];
        for (i, row) in rows[..task.entries].iter_mut().enumerate() {
            *row = inputs.row(routing.row_of(task.first_entry + i));
        }
        let mut sums = [[0.0; LANES]; MAX_ROWS];
        kernels.product(&delta.stack(adapter.region()), task.tile, 1, &rows[..task.entries], &mut sums);
        for (i, sums) in sums[..task.entries].iter().enumerate() {
            let start = starts[task.first_entry + i] + task.tile * LANES;
            // SAFETY: an entry and tile belong to one task.
            unsafe { t.part(start..start + LANES) }.copy_from_slice(sums);
        }
    })
}
