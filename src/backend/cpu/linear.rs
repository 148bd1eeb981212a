//! `y = W x + b + sum of w * scale * B (A x)` for a group of linears over one input.
//!
//! Three regions of parallel work, the first two only if there is something to do: gather the inputs of act-ordered
//! members; shrink, `t = A x`, for every (row, adapter) of the batch; then, tile by tile of outputs, the base product
//! with bias and expand in its epilogue, written once. Threads split tiles and rows, never a sum.

use super::Rows;
use super::arena::{Arena, ArenaSlice, grow};
use super::isa::LANES;
use super::kernels::{Kernels, MAX_ROWS};
use super::lora::Adapter;
use super::pack::{PADDING, Packed, pack};
use super::threads::{Disjoint, Pool};
use crate::adapter::batch::AdapterBatch;
use crate::backend::{LinearSource, Write};
use crate::error::{Error, ErrorCode, Result};

/// Tiles a task computes; few rows want several at once, see `tile.rs`.
const TASK_TILES: usize = 4;
/// Tasks a thread should find, so that a late one can take less.
const TASKS_OF_THREAD: usize = 4;

/// Linears over one input, packed.
pub(super) struct Group {
    pub(super) members: Vec<Linear>,
    pub(super) in_features: usize,
    /// All members' outputs.
    pub(super) out_features: usize,
    /// Distinct input orders of the members.
    orders: Vec<Vec<u32>>,
    /// Runs of tiles, each of one member.
    tasks: Vec<TileRun>,
}

/// One linear of a group.
pub(super) struct Linear {
    packed: Packed,
    /// Index into the group's orders.
    order: Option<usize>,
    bias: Option<ArenaSlice>,
    /// Where its outputs begin among the group's.
    first_output: usize,
}

impl Linear {
    /// Width of its output.
    pub(super) fn out_features(&self) -> usize {
        self.packed.out_features
    }
}

#[derive(Clone, Copy)]
struct TileRun {
    member: usize,
    tile: usize,
    count: usize,
}

impl Group {
    /// Packs the members.
    ///
    /// # Errors
    /// `memory_exhausted`; `internal` if the members' inputs differ or one contradicts itself.
    pub(super) fn pack(pool: &mut Pool, arena: &mut Arena, sources: &[LinearSource<'_>]) -> Result<Self> {
        let in_features = sources.first().map_or(0, |source| source.weight.in_features());
        let mut group =
            Self { members: Vec::new(), in_features, out_features: 0, orders: Vec::new(), tasks: Vec::new() };
        for (member, source) in sources.iter().enumerate() {
            let mut packed = pack(pool, arena, &source.weight)?;
            if packed.in_features != in_features {
                return Err(Error::new(ErrorCode::Internal, "the linears of a group read inputs of different widths")
                    .expected(in_features)
                    .found(packed.in_features));
            }
            let order = packed.order.take().map(|order| {
                group.orders.iter().position(|known| *known == order).unwrap_or_else(|| {
                    group.orders.push(order);
                    group.orders.len() - 1
                })
            });
            let bias = match source.bias {
                Some(bias) if bias.len() >= packed.out_features && bias.dtype().is_float() => {
                    let slice = arena.take(packed.out_features * size_of::<f32>())?;
                    bias.read_f32(0..packed.out_features, arena.values_mut(slice));
                    Some(slice)
                }
                Some(bias) => {
                    return Err(Error::new(ErrorCode::Internal, "a bias does not fit its weight")
                        .expected(packed.out_features)
                        .found(bias.len()));
                }
                None => None,
            };
            for tile in (0..packed.tiles).step_by(TASK_TILES) {
                group.tasks.push(TileRun { member, tile, count: TASK_TILES.min(packed.tiles - tile) });
            }
            let out_features = packed.out_features;
            group.members.push(Linear { packed, order, bias, first_output: group.out_features });
            group.out_features += out_features;
        }
        Ok(group)
    }
}

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
    pub(super) write: Write,
}

/// What `linear` keeps from step to step.
#[derive(Default)]
pub(super) struct Scratch {
    /// Gathered inputs `[order][row][packed input]`.
    gathered: Vec<f32>,
    /// `A x` of each entry of the batch.
    t: Vec<f32>,
    /// Where an entry's t begins.
    t_starts: Vec<usize>,
    shrink: Vec<ShrinkTask>,
}

/// One tile of stacked ranks for a few entries of one slot.
#[derive(Clone, Copy)]
struct ShrinkTask {
    slot: usize,
    tile: usize,
    first_entry: usize,
    entries: usize,
}

/// The parts of a backend that `linear` works with.
pub(super) struct Context<'a> {
    pub(super) kernels: &'a Kernels,
    pub(super) arena: &'a Arena,
    pub(super) adapters: &'a [Option<Adapter>],
    pub(super) group: &'a Group,
    /// Index of the group.
    pub(super) group_index: usize,
    pub(super) batch: &'a AdapterBatch,
}

/// Computes the group; see the module.
///
/// # Errors
/// `internal` if the batch names an empty slot or a task panicked; `memory_exhausted`.
pub(super) fn run(
    pool: &mut Pool,
    context: &Context<'_>,
    inputs: Inputs<'_>,
    output: Output<'_>,
    scratch: &mut Scratch,
) -> Result<()> {
    context.check(inputs.rows)?;
    gather(pool, context.group, inputs, &mut scratch.gathered)?;
    if !context.batch.is_base_only() {
        context.shrink(pool, inputs, scratch)?;
    }
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

impl Context<'_> {
    fn check(&self, rows: usize) -> Result<()> {
        let entries = self.batch.entries();
        let resident = |slot: usize| self.adapters.get(slot).is_some_and(Option::is_some);
        if let Some(segment) = self.batch.segments().iter().find(|s| !resident(s.slot.0 as usize)) {
            return Err(Error::new(ErrorCode::Internal, format!("slot {} holds no adapter", segment.slot.0)));
        }
        match entries.iter().find(|entry| entry.row as usize >= rows) {
            Some(entry) => Err(Error::new(ErrorCode::Internal, "the routing names a row that the step has not")
                .expected(format!("below {rows}"))
                .found(entry.row)),
            None => Ok(()),
        }
    }

    /// The adapter of a resident slot.
    fn adapter(&self, slot: usize) -> Option<&Adapter> {
        self.adapters.get(slot)?.as_ref()
    }

    /// `t = A x` for every entry of the batch, of all members at once.
    fn shrink(&self, pool: &mut Pool, inputs: Inputs<'_>, scratch: &mut Scratch) -> Result<()> {
        let entries = self.batch.entries();
        let Scratch { t, t_starts, shrink, .. } = scratch;
        shrink.clear();
        t_starts.clear();
        let mut t_len = 0;
        for segment in self.batch.segments() {
            let slot = segment.slot.0 as usize;
            let factors = self.adapter(slot).and_then(|adapter| adapter.factors(self.group_index));
            let (tiles, len) = factors.map_or((0, 0), |factors| (factors.a_tiles, factors.t_len()));
            for _ in segment.entries.clone() {
                t_starts.push(t_len);
                t_len += len;
            }
            for first_entry in segment.entries.clone().step_by(MAX_ROWS) {
                let entries = MAX_ROWS.min(segment.entries.end - first_entry);
                shrink.extend((0..tiles).map(|tile| ShrinkTask { slot, tile, first_entry, entries }));
            }
        }
        grow(t, t_len)?;
        let (t, t_starts, tasks) = (Disjoint::new(t), &*t_starts, &*shrink);
        pool.run(tasks.len(), |task, _| {
            let task = tasks[task];
            let Some(adapter) = self.adapter(task.slot) else { return };
            let Some(factors) = adapter.factors(self.group_index) else { return };
            let mut rows = [std::ptr::null(); MAX_ROWS];
            for (i, row) in rows[..task.entries].iter_mut().enumerate() {
                *row = inputs.row(entries[task.first_entry + i].row as usize).as_ptr();
            }
            let mut sums = [[0.0; LANES]; MAX_ROWS];
            // SAFETY: rows are as long as the input padded to whole blocks, which is what the stacked A's take.
            unsafe {
                self.kernels.product(&adapter.a(factors), task.tile, 1, &rows[..task.entries], &mut sums);
            }
            for (i, sums) in sums[..task.entries].iter().enumerate() {
                let start = t_starts[task.first_entry + i] + task.tile * LANES;
                // SAFETY: an entry and tile belong to one task.
                unsafe { t.part(start..start + LANES) }.copy_from_slice(sums);
            }
        })
    }

    /// Base product, bias and expand, tile by tile.
    fn multiply(&self, pool: &mut Pool, inputs: Inputs<'_>, output: Output<'_>, scratch: &Scratch) -> Result<()> {
        let (runs, rows) = (&self.group.tasks, inputs.rows);
        // Few tiles for many threads: split the rows too.
        let wanted = TASKS_OF_THREAD * pool.threads();
        let row_parts = wanted.div_ceil(runs.len().max(1)).clamp(1, rows.div_ceil(MAX_ROWS).max(1));
        let row_blocks = rows.div_ceil(MAX_ROWS);
        let out = Disjoint::new(output.y);
        pool.run(runs.len() * row_parts, |task, _| {
            let (run, part) = (runs[task % runs.len()], task / runs.len());
            let blocks = row_blocks * part / row_parts..row_blocks * (part + 1) / row_parts;
            let linear = &self.group.members[run.member];
            let tiles = linear.packed.view(self.arena);
            let mut sums = [[0.0; LANES]; TASK_TILES * MAX_ROWS];
            for first_row in blocks.map(|block| block * MAX_ROWS) {
                let count = MAX_ROWS.min(rows - first_row);
                let mut x = [std::ptr::null(); MAX_ROWS];
                for (i, x) in x[..count].iter_mut().enumerate() {
                    *x = self.input_row(linear, inputs, first_row + i, scratch).as_ptr();
                }
                // SAFETY: rows are gathered, or padded to whole blocks, to the length the packed weight takes.
                unsafe { self.kernels.product(&tiles, run.tile, run.count, &x[..count], &mut sums) };
                for tile in 0..run.count {
                    let first = (run.tile + tile) * LANES;
                    let lanes = LANES.min(linear.out_features() - first);
                    for row in first_row..first_row + count {
                        let y = &mut sums[tile * MAX_ROWS + row - first_row];
                        self.finish(linear, run.member, run.tile + tile, row, scratch, y);
                        let start = row * output.stride + linear.first_output + first;
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

    /// The row of inputs that a member's packed weight takes.
    fn input_row<'a>(&self, linear: &Linear, inputs: Inputs<'a>, row: usize, scratch: &'a Scratch) -> &'a [f32] {
        let Some(order) = linear.order else { return inputs.row(row) };
        let before: usize = self.group.orders[..order].iter().map(Vec::len).sum();
        let width = self.group.orders[order].len();
        &scratch.gathered[before * inputs.rows + row * width..][..width]
    }

    /// Adds the bias, then each of the row's adapters in the order of its request.
    fn finish(&self, linear: &Linear, member: usize, tile: usize, row: usize, scratch: &Scratch, y: &mut [f32; LANES]) {
        if let Some(bias) = linear.bias {
            y.iter_mut().zip(&self.arena.values::<f32>(bias)[tile * LANES..]).for_each(|(y, bias)| *y += bias);
        }
        if self.batch.is_base_only() {
            return;
        }
        for &index in self.batch.of_row(row) {
            let entry = self.batch.entries()[index];
            let Some(adapter) = self.adapter(entry.slot.0 as usize) else { continue };
            let Some(member) = adapter.factors(self.group_index).and_then(|f| f.member(member)) else { continue };
            let t = &scratch.t[scratch.t_starts[index] + member.first_rank..][..member.rank];
            let b = adapter.b_tile(member, tile);
            // SAFETY: the kernels exist, so their instruction set does; a tile of B is `[rank][16]` in its width.
            unsafe { (self.kernels.expand)(b.as_ptr(), member.width, t, entry.weight * member.scale, y) };
        }
    }
}
