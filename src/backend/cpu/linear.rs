//! `y = W x + b` and what adapters make of it, for a group of linears over one input.
//!
//! Three regions of parallel work, the first two only if there is something to do: gather the inputs of act-ordered
//! members; shrink, the product of each adapter's stack for every (row, adapter) of the batch; then, tile by tile of outputs,
//! the product of the weight with the epilogue of `epilogue.rs`, written once. A row's weight is the base's or that of the
//! adapter that replaces it, and rows of one weight are multiplied together. Threads split tiles and rows, never a sum.

use std::ops::Range;

use super::adapter::Adapter;
use super::arena::{Arena, grow};
use super::buffers::Rows;
use super::epilogue::Epilogue;
use super::group::Group;
use super::isa::LANES;
use super::kernels::{Kernels, MAX_ROWS};
use super::pack::{DenseTiles, PADDING};
use super::routing::Routing;
use super::threads::{Disjoint, Pool};
use crate::backend::Write;
use crate::error::{Error, ErrorCode, Result};

/// Tiles a task computes; few rows want several at once, see `tile.rs`.
const TASK_TILES: usize = 4;
/// Tasks a thread should find, so that a late one can take less.
const TASKS_OF_THREAD: usize = 4;

/// The rows of a step that are multiplied.
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a> {
    pub(super) x: Rows<'a>,
    /// Number of rows.
    pub(super) rows: usize,
    /// Which rows of `x`; all of them from the first on if `None`.
    pub(super) picked: Option<&'a [u32]>,
}

impl<'a> Inputs<'a> {
    fn row(&self, i: usize) -> &'a [f32] {
        self.x.row(self.picked.map_or(i, |picked| picked[i] as usize))
    }
}

/// Where results go.
pub(super) struct Output<'a> {
    pub(super) y: &'a mut [f32],
    pub(super) stride: usize,
    /// Values of a row that may be written.
    pub(super) width: usize,
    pub(super) write: Write,
}

/// The product of each adapter's stack with the rows it acts on: entry after entry of the batch.
#[derive(Default)]
pub(super) struct Shrunk {
    pub(super) t: Vec<f32>,
    /// Where an entry's t begins.
    pub(super) starts: Vec<usize>,
}

impl Shrunk {
    /// From an entry's t on.
    pub(super) fn of(&self, entry: usize) -> &[f32] {
        &self.t[self.starts[entry]..]
    }
}

/// What `linear` keeps from step to step.
#[derive(Default)]
pub(super) struct Scratch {
    /// Gathered inputs `[order][row][packed input]`.
    gathered: Vec<f32>,
    pub(super) shrunk: Shrunk,
    shrink: Vec<ShrinkTask>,
    /// All rows, then those of each weight that some adapter replaces.
    row_lists: Vec<u32>,
    weights: Vec<WeightRows>,
}

/// One tile of a stack for a few entries of one slot.
#[derive(Clone, Copy)]
struct ShrinkTask {
    slot: usize,
    tile: usize,
    first_entry: usize,
    entries: usize,
}

/// A member's weight and the rows that it multiplies, cut into tasks: some tiles for some of the rows each.
///
/// Tasks are counted, not listed: a list would have to travel from the core that writes it to those that read it, each time.
#[derive(Clone)]
struct WeightRows {
    member: usize,
    /// Whose weight it is; the base's if `None`.
    slot: Option<usize>,
    tiles: usize,
    /// In the row lists.
    rows: Range<usize>,
    /// Parts that the rows are cut into.
    parts: usize,
    first_task: usize,
}

impl WeightRows {
    /// Tasks that go once over all tiles.
    fn runs(&self) -> usize {
        self.tiles.div_ceil(TASK_TILES)
    }

    fn end_task(&self) -> usize {
        self.first_task + self.parts * self.runs()
    }

    /// First tile, number of tiles and rows of a task.
    fn task(&self, task: usize) -> (usize, usize, Range<usize>) {
        let (part, run) = ((task - self.first_task) / self.runs(), (task - self.first_task) % self.runs());
        let blocks = self.rows.len().div_ceil(MAX_ROWS);
        let at = |part: usize| self.rows.end.min(self.rows.start + blocks * part / self.parts * MAX_ROWS);
        let tile = run * TASK_TILES;
        (tile, TASK_TILES.min(self.tiles - tile), at(part)..at(part + 1))
    }
}

/// The parts of a backend that `linear` works with.
pub(super) struct Context<'a> {
    pub(super) kernels: &'a Kernels,
    pub(super) arena: &'a Arena,
    pub(super) group: &'a Group,
    /// Index of the group.
    pub(super) group_index: usize,
    pub(super) routing: Routing<'a>,
}

/// Computes the group; see the module.
///
/// # Errors
/// `internal` if a row has more outputs than there is room for or a task panicked; `memory_exhausted`.
pub(super) fn run(
    pool: &mut Pool,
    context: &Context<'_>,
    inputs: Inputs<'_>,
    output: Output<'_>,
    scratch: &mut Scratch,
) -> Result<()> {
    gather(pool, context.group, inputs, &mut scratch.gathered)?;
    if !context.routing.is_base_only() {
        context.shrink(pool, inputs, scratch)?;
    }
    context.plan(pool.threads(), inputs.rows, output.width, scratch)?;
    context.multiply(pool, inputs, output, scratch)
}

/// Gathers the inputs once for each distinct order.
fn gather(pool: &mut Pool, group: &Group, inputs: Inputs<'_>, gathered: &mut Vec<f32>) -> Result<()> {
    let mut start = 0;
    for order in &group.orders {
        let end = start + inputs.rows * order.len();
        grow(gathered, end)?;
        super::elementwise::for_rows(
            pool,
            inputs.rows,
            order.len(),
            &mut gathered[start..end],
            order.len(),
            |row, out| {
                let x = inputs.row(row);
                for (out, &input) in out.iter_mut().zip(order) {
                    *out = if input == PADDING { 0.0 } else { x[input as usize] };
                }
            },
        )?;
        start = end;
    }
    Ok(())
}

impl<'a> Context<'a> {
    /// `t = A x` for every entry of the batch, of all members at once.
    fn shrink(&self, pool: &mut Pool, inputs: Inputs<'_>, scratch: &mut Scratch) -> Result<()> {
        let Scratch { shrunk: Shrunk { t, starts }, shrink, .. } = scratch;
        let (routing, repeat) = (self.routing, self.routing.repeat());
        shrink.clear();
        starts.clear();
        let mut t_len = 0;
        for (slot, adapter, entries) in routing.segments() {
            let tiles = adapter.group(self.group_index, repeat).map_or(0, |delta| delta.stack_tiles());
            for _ in entries.clone() {
                starts.push(t_len);
                t_len += tiles * LANES;
            }
            for first_entry in entries.clone().step_by(MAX_ROWS) {
                let entries = MAX_ROWS.min(entries.end - first_entry);
                shrink.extend((0..tiles).map(|tile| ShrinkTask { slot, tile, first_entry, entries }));
            }
        }
        grow(t, t_len)?;
        let (t, starts, tasks) = (Disjoint::new(t), &*starts, &*shrink);
        pool.run(tasks.len(), |task, _| {
            let task = tasks[task];
            let Some(adapter) = routing.adapter(task.slot) else { return };
            let Some(delta) = adapter.group(self.group_index, repeat) else { return };
            let mut rows = [std::ptr::null(); MAX_ROWS];
            for (i, row) in rows[..task.entries].iter_mut().enumerate() {
                *row = inputs.row(routing.row_of(task.first_entry + i)).as_ptr();
            }
            let mut sums = [[0.0; LANES]; MAX_ROWS];
            // SAFETY: rows are as long as the input padded to whole blocks, which is what the stack takes.
            unsafe {
                self.kernels.product(&delta.stack(adapter.region()), task.tile, 1, &rows[..task.entries], &mut sums);
            }
            for (i, sums) in sums[..task.entries].iter().enumerate() {
                let start = starts[task.first_entry + i] + task.tile * LANES;
                // SAFETY: an entry and tile belong to one task.
                unsafe { t.part(start..start + LANES) }.copy_from_slice(sums);
            }
        })
    }

    /// The slot of the adapter that replaces a member's weight for a row.
    fn weight_slot(&self, member: usize, row: usize) -> Option<usize> {
        let replaces = |(entry, _, _): &(usize, f32, _)| self.replaced(member, self.routing.slot_of(*entry)).is_some();
        self.routing.of_row(row).rev().find(replaces).map(|(entry, ..)| self.routing.slot_of(entry))
    }

    /// A member's weight as an adapter replaces it.
    fn replaced(&self, member: usize, slot: usize) -> Option<(&'a Adapter, &'a DenseTiles)> {
        let adapter = self.routing.adapter(slot)?;
        let delta = adapter.group(self.group_index, self.routing.repeat())?.member(member)?;
        Some((adapter, delta.weight()?))
    }

    /// Lists the rows of each weight, and counts the tasks.
    fn plan(&self, threads: usize, rows: usize, width: usize, scratch: &mut Scratch) -> Result<()> {
        let Scratch { row_lists, weights, .. } = scratch;
        row_lists.clear();
        row_lists.extend(0..rows as u32);
        weights.clear();
        for (member, linear) in self.group.members.iter().enumerate() {
            let tiles = linear.tile_count();
            let base = WeightRows { member, slot: None, tiles, rows: 0..rows, parts: 0, first_task: 0 };
            if self.routing.segments().all(|(slot, ..)| self.replaced(member, slot).is_none()) {
                weights.push(base);
                continue;
            }
            let mut list = |slot: Option<usize>, tiles: usize| {
                let start = row_lists.len();
                row_lists.extend((0..rows as u32).filter(|&row| self.weight_slot(member, row as usize) == slot));
                weights.push(WeightRows { slot, tiles, rows: start..row_lists.len(), ..base.clone() });
            };
            list(None, tiles);
            for (slot, ..) in self.routing.segments() {
                let Some((_, weight)) = self.replaced(member, slot) else { continue };
                if linear.first_output + weight.rows > width {
                    return Err(Error::new(
                        ErrorCode::Internal,
                        "an adapter's weight has outputs for which there is no room",
                    )
                    .with_expected(width)
                    .with_found(linear.first_output + weight.rows));
                }
                list(Some(slot), weight.tiles);
            }
        }
        let runs: usize = weights.iter().map(WeightRows::runs).sum();
        // Few tiles for many threads: split the rows too.
        let wanted_parts = (TASKS_OF_THREAD * threads).div_ceil(runs.max(1));
        let mut first_task = 0;
        for weight in weights {
            weight.parts = wanted_parts.min(weight.rows.len().div_ceil(MAX_ROWS));
            weight.first_task = first_task;
            first_task = weight.end_task();
        }
        Ok(())
    }

    /// Product and epilogue, tile by tile.
    fn multiply(&self, pool: &mut Pool, inputs: Inputs<'_>, output: Output<'_>, scratch: &Scratch) -> Result<()> {
        let epilogue = Epilogue::new(self, &scratch.shrunk);
        let out = Disjoint::new(output.y);
        let weights = &scratch.weights;
        pool.run(weights.last().map_or(0, WeightRows::end_task), |task, _| {
            let of_task = weights.partition_point(|weight| weight.end_task() <= task);
            let &WeightRows { member, slot, .. } = &weights[of_task];
            let (first_tile, count, rows) = weights[of_task].task(task);
            let linear = &self.group.members[member];
            let replaced = slot.and_then(|slot| self.replaced(member, slot));
            let (tiles, outputs) = match replaced {
                Some((adapter, weight)) => (weight.view(adapter.region()), weight.rows),
                None => (linear.tiles(self.arena), linear.out_features()),
            };
            let mut sums = [[0.0; LANES]; TASK_TILES * MAX_ROWS];
            for rows in scratch.row_lists[rows].chunks(MAX_ROWS) {
                let mut x = [std::ptr::null(); MAX_ROWS];
                for (x, &row) in x.iter_mut().zip(rows) {
                    let order = linear.order.filter(|_| replaced.is_none());
                    *x = self.input_row(order, inputs, row as usize, scratch).as_ptr();
                }
                // SAFETY: rows are gathered, or padded to whole blocks, to the length the packed weight takes.
                unsafe { self.kernels.product(&tiles, first_tile, count, &x[..rows.len()], &mut sums) };
                for tile in 0..count {
                    let first = (first_tile + tile) * LANES;
                    let lanes = LANES.min(outputs - first);
                    for (y, &row) in sums[tile * MAX_ROWS..].iter_mut().zip(rows) {
                        epilogue.finish(linear, member, first_tile + tile, row as usize, y);
                        let start = row as usize * output.stride + linear.first_output + first;
                        // SAFETY: each row and tile belongs to one task.
                        let out = unsafe { out.part(start..start + lanes) };
                        match output.write {
                            Write::Replace => out.copy_from_slice(&y[..lanes]),
                            Write::Add => out.iter_mut().zip(y).for_each(|(out, y)| *out += *y),
                        }
                    }
                }
            }
        })
    }

    /// A row of inputs, gathered by one of the group's orders.
    fn input_row<'s>(&self, order: Option<usize>, inputs: Inputs<'s>, row: usize, scratch: &'s Scratch) -> &'s [f32] {
        let Some(order) = order else { return inputs.row(row) };
        let before: usize = self.group.orders[..order].iter().map(Vec::len).sum();
        let width = self.group.orders[order].len();
        &scratch.gathered[before * inputs.rows + row * width..][..width]
    }
}
