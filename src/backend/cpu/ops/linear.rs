//! `y = W x + b` with the deltas of adapters, for a group of linears that read the same input.
//!
//! Rows whose t would be too large together are computed in blocks, one after the other.
//!
//! Three regions of parallel work, the first two only if there is something to do: write the inputs of quantized members as their
//! product takes them, as digits and in their order; shrink, the product of each adapter's stack for every (row, adapter) of the batch; then, tile by tile of outputs,
//! the product of the weight, followed by the epilogue of `epilogue.rs`; each output is written once. A row's weight is the
//! base's or that of the adapter that replaces it, and rows of one weight are multiplied together. Threads split tiles and
//! rows, never a sum.

#![allow(unsafe_code, reason = "tasks write disjoint tiles of rows")]

use std::ops::{Range, RangeInclusive};

use super::epilogue::Epilogue;
use super::rowwise::for_rows;
use super::shrink::{Shrunk, row_blocks, shrink};
use crate::backend::cpu::adapter::resident::Adapter;
use crate::backend::cpu::adapter::routing::Routing;
use crate::backend::cpu::kernels::dispatch::{Kernels, MAX_ROWS};
use crate::backend::cpu::kernels::vector::LANES;
use crate::backend::cpu::runtime::arena::{Arena, grow};
use crate::backend::cpu::runtime::buffers::{Inputs, Output, Store};
use crate::backend::cpu::runtime::threads::{Disjoint, Pool};
use crate::backend::cpu::weights::group::{Group, PackedInput};
use crate::backend::cpu::weights::pack::DenseTiles;
use crate::error::{Error, ErrorCode, Result};

/// Tiles a task computes; few rows want several at once, see `tile.rs`.
const TASK_TILES: usize = 4;
/// Tasks per thread, so that one that starts late can take fewer.
const TASKS_OF_THREAD: usize = 4;

/// Inputs that a thread splits into digits, or gathers, in a nanosecond.
const PACKED_PER_NS: usize = 2;
/// Rows whose product leaves memory time to read something else meanwhile: one is as fast as its weights are read, and the next
/// shrink of many multiplies for longer than it reads.
const ROWS_WITH_TIME: RangeInclusive<usize> = 2..=4 * MAX_ROWS;
/// Most bytes that are requested ahead of the next group: more would push each other out of the caches.
const MAX_AHEAD_BYTES: usize = 8 << 20;

/// Weights that a thread reads, or multiplies by a row, in a nanosecond.
const WEIGHTS_PER_NS: usize = 64;

/// What `linear` keeps from step to step.
#[derive(Default)]
pub(crate) struct Scratch {
    /// `[packed input][row][word]`
    packed: Vec<u32>,
    pub(crate) shrunk: Shrunk,
    /// All rows, then those of each weight that some adapter replaces.
    row_lists: Vec<u32>,
    weights: Vec<WeightRows>,
}

/// A member's weight and the rows that it multiplies, split into tasks: some tiles for some of the rows each.
///
/// Tasks are counted, not listed: a list would be written by one core and read by all others in every call.
#[derive(Clone)]
struct WeightRows {
    member: usize,
    /// The slot of the adapter that replaces the weight; `None` for the base's.
    slot: Option<usize>,
    tiles: usize,
    /// In the row lists.
    rows: Range<usize>,
    /// Parts that the rows are split into.
    parts: usize,
    first_task: usize,
}

impl WeightRows {
    /// Tasks that cover all tiles once.
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

/// What `linear` reads of the backend.
pub(crate) struct Context<'a> {
    pub(crate) kernels: &'a Kernels,
    pub(crate) arena: &'a Arena,
    pub(crate) group: &'a Group,
    /// Index of the group.
    pub(crate) group_index: usize,
    pub(crate) routing: Routing<'a>,
}

/// Computes the group; see the module.
///
/// # Errors
/// `internal` if a row has more outputs than `y` or a task panicked; `memory_exhausted`.
pub(crate) fn run(
    pool: &mut Pool,
    context: &Context<'_>,
    inputs: Inputs<'_>,
    mut output: Output<'_>,
    scratch: &mut Scratch,
) -> Result<()> {
    pack_inputs(pool, context.kernels, context.group, inputs, &mut scratch.packed)?;
    let Context { kernels, group_index, routing, .. } = *context;
    let stack_len =
        |adapter: &Adapter| adapter.group(group_index, routing.repeat()).map_or(0, |delta| delta.stack_tiles() * LANES);
    for rows in row_blocks(routing, inputs.rows, scratch.shrunk.max_t, stack_len) {
        if !routing.is_base_only() {
            shrink(pool, kernels, group_index, routing, inputs, rows.clone(), &mut scratch.shrunk)?;
        }
        let weights = context.group.in_features * context.group.out_features;
        let threads = pool.threads_for((1 + rows.len()) * weights / WEIGHTS_PER_NS);
        context.plan(threads, rows, output.width, scratch)?;
        context.multiply(pool, threads, inputs, &mut output, scratch)?;
    }
    Ok(())
}

/// Writes the inputs once for each way in which quantized members take them.
fn pack_inputs(
    pool: &mut Pool,
    kernels: &Kernels,
    group: &Group,
    inputs: Inputs<'_>,
    packed: &mut Vec<u32>,
) -> Result<()> {
    let mut start = 0;
    for input in &group.packed_inputs {
        let (words, end) = (input.words(), start + inputs.rows * input.words());
        grow(packed, end)?;
        for_rows(pool, inputs.rows, words, PACKED_PER_NS, &mut packed[start..end], words, |row, out| {
            input.write(kernels, inputs.row(row), out);
        })?;
        start = end;
    }
    Ok(())
}

impl<'a> Context<'a> {
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

    /// Lists those of the rows that each weight multiplies, and counts the tasks.
    fn plan(&self, threads: usize, rows: Range<usize>, width: usize, scratch: &mut Scratch) -> Result<()> {
        let Scratch { row_lists, weights, .. } = scratch;
        row_lists.clear();
        let listed = || rows.clone().map(|row| row as u32);
        row_lists.extend(listed());
        weights.clear();
        for (member, linear) in self.group.members.iter().enumerate() {
            let tiles = linear.tile_count();
            let base = WeightRows { member, slot: None, tiles, rows: 0..rows.len(), parts: 0, first_task: 0 };
            if self.routing.segments().all(|(slot, ..)| self.replaced(member, slot).is_none()) {
                weights.push(base);
                continue;
            }
            let mut list = |slot: Option<usize>, tiles: usize| {
                let start = row_lists.len();
                row_lists.extend(listed().filter(|&row| self.weight_slot(member, row as usize) == slot));
                weights.push(WeightRows { slot, tiles, rows: start..row_lists.len(), ..base.clone() });
            };
            list(None, tiles);
            for (slot, ..) in self.routing.segments() {
                let Some((_, weight)) = self.replaced(member, slot) else { continue };
                if linear.first_output + weight.rows > width {
                    return Err(Error::new(
                        ErrorCode::Internal,
                        "an adapter's weight has more outputs than the buffer",
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

    /// Product and epilogue, tile by tile, on that many threads.
    fn multiply(
        &self,
        pool: &mut Pool,
        threads: usize,
        inputs: Inputs<'_>,
        output: &mut Output<'_>,
        scratch: &Scratch,
    ) -> Result<()> {
        let epilogue = Epilogue::new(self.kernels, self.arena, self.routing, self.group_index, &scratch.shrunk);
        let (stride, store) = (output.stride, output.store);
        let out = Disjoint::new(output.y);
        let weights = &scratch.weights;
        let tasks = weights.last().map_or(0, WeightRows::end_task);
        let has_time = ROWS_WITH_TIME.contains(&inputs.rows);
        pool.run_on(threads, tasks, |task, _| {
            let of_task = weights.partition_point(|weight| weight.end_task() <= task);
            let &WeightRows { member, slot, .. } = &weights[of_task];
            let (first_tile, count, rows) = weights[of_task].task(task);
            let linear = &self.group.members[member];
            let replaced = slot.and_then(|slot| self.replaced(member, slot));
            let (mut tiles, outputs) = match replaced {
                Some((adapter, weight)) => (weight.view(adapter.region()), weight.rows),
                None => (linear.tiles(self.arena), linear.out_features()),
            };
            let mut sums = [[0.0; LANES]; TASK_TILES * MAX_ROWS];
            if has_time {
                tiles.ahead = self.next_stack(task, tasks);
            }
            for rows in scratch.row_lists[rows].chunks(MAX_ROWS) {
                rows.iter().for_each(|&row| epilogue.prefetch(member, first_tile..first_tile + count, row as usize));
                let packed = linear.packed_input.filter(|_| replaced.is_none());
                let row_words = |row| packed.map_or(&[][..], |input| self.packed_row(input, inputs.rows, row, scratch));
                match packed.map(|input| self.group.packed_inputs[input].digits()) {
                    Some(Some(digits)) => {
                        let x = rows_of(rows, row_words);
                        self.kernels.digit_product(digits, &tiles, first_tile, count, &x[..rows.len()], &mut sums);
                    }
                    Some(None) => {
                        let x = rows_of(rows, |row| bytemuck::cast_slice(row_words(row)));
                        self.kernels.product(&tiles, first_tile, count, &x[..rows.len()], &mut sums);
                    }
                    None => {
                        let x = rows_of(rows, |row| inputs.row(row));
                        self.kernels.product(&tiles, first_tile, count, &x[..rows.len()], &mut sums);
                    }
                }
                tiles.ahead = &[];
                for (r, &row) in rows.iter().enumerate() {
                    let row = row as usize;
                    let sums = &mut sums[r..count * MAX_ROWS];
                    epilogue.finish(linear, member, first_tile, row, sums);
                    let first = first_tile * LANES;
                    let start = row * stride + linear.first_output + first;
                    // SAFETY: each row and tile belongs to one task.
                    let out = unsafe { out.part(start..start + outputs.min(first + count * LANES) - first) };
                    for (out, y) in out.chunks_mut(LANES).zip(sums.iter().step_by(MAX_ROWS)) {
                        match store {
                            Store::Replace => out.copy_from_slice(&y[..out.len()]),
                            Store::Add { factor } => out.iter_mut().zip(y).for_each(|(out, y)| *out += factor * *y),
                            Store::Bounded { factor, cap } => {
                                out.copy_from_slice(&y[..out.len()]);
                                self.kernels.bound(factor, cap, out);
                            }
                        }
                    }
                }
            }
        })
    }

    /// A task's share of what the next group's shrink reads: groups are computed in the order in which they were loaded. Should they
    /// not be, nothing but time is lost.
    fn next_stack(&self, task: usize, tasks: usize) -> &'a [u8] {
        let adapters = self.routing.segment_count();
        let (index, share) = share_of_task(task, tasks, adapters);
        let Some((_, adapter, _)) = self.routing.segments().nth(index) else { return &[] };
        let Some(delta) = adapter.group(self.group_index + 1, self.routing.repeat()) else { return &[] };
        let bytes = delta.stack_bytes(adapter.region());
        let (part, parts) = share;
        match adapters * bytes.len() {
            ..=MAX_AHEAD_BYTES => &bytes[bytes.len() * part / parts..bytes.len() * (part + 1) / parts],
            _ => &[],
        }
    }

    /// A row of one of the group's packed inputs.
    fn packed_row<'s>(&self, input: usize, rows: usize, row: usize, scratch: &'s Scratch) -> &'s [u32] {
        let before: usize = self.group.packed_inputs[..input].iter().map(PackedInput::words).sum();
        let words = self.group.packed_inputs[input].words();
        &scratch.packed[before * rows + row * words..][..words]
    }
}

/// The adapter that a task reads ahead for, and its part of how many: tasks are shared among the adapters, then an adapter's among
/// its tasks. With fewer tasks than adapters some are left out.
fn share_of_task(task: usize, tasks: usize, adapters: usize) -> (usize, (usize, usize)) {
    let adapter = task * adapters / tasks;
    let first = |adapter: usize| (adapter * tasks).div_ceil(adapters.max(1));
    (adapter, (task - first(adapter), first(adapter + 1) - first(adapter)))
}

/// The listed rows, at most [`MAX_ROWS`].
fn rows_of<'x, X>(rows: &[u32], row: impl Fn(usize) -> &'x [X]) -> [&'x [X]; MAX_ROWS] {
    let mut x: [&[X]; MAX_ROWS] = [&[]; MAX_ROWS];
    x.iter_mut().zip(rows).for_each(|(x, &i)| *x = row(i as usize));
    x
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tasks_of_each_adapter_read_each_of_its_parts_once() {
        for (tasks, adapters) in (1..40).flat_map(|tasks| (0..20).map(move |adapters| (tasks, adapters))) {
            let mut parts = vec![Vec::new(); adapters];
            for task in 0..tasks {
                let (adapter, (part, of)) = share_of_task(task, tasks, adapters);
                if let Some(parts) = parts.get_mut(adapter) {
                    parts.push((part, of));
                }
            }
            for of_adapter in parts {
                let all: Vec<_> = (0..of_adapter.len()).map(|part| (part, of_adapter.len())).collect();
                assert_eq!(of_adapter, all, "{tasks} tasks, {adapters} adapters");
                assert!(tasks < adapters || !of_adapter.is_empty());
            }
        }
    }
}
