//! Paged attention: one kernel for decode and prefill.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use super::grid_rows;
use super::kv_layout::{self, KvLayer};
use crate::backend::KvDType;
use crate::backend::cuda::compiler::sources::{ATTENTION, Define};
use crate::backend::cuda::driver::{Arguments, Device, Kernel};
use crate::error::Result;

/// Positions of a split, and threads of a block.
pub const SPLIT_TOKENS: usize = 256;
/// Most bytes of partial sums: beyond that, one block computes all splits of a row.
pub const MAX_PARTIAL_BYTES: usize = 32 << 20;
/// Blocks for each multiprocessor that keep it busy.
const BUSY_BLOCKS: usize = 2;

/// The argument of the kernel.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct Attention {
    /// The step's [`AttentionTables`](crate::backend::cuda::tables::AttentionTables).
    pub tables: u64,
    /// The layer of the cache.
    pub kv: KvLayer,
    /// `[rows, heads * head_dim]` f32: the queries of [`ExpandRopeKv`](super::expand::ExpandRopeKv).
    pub queries: u64,
    /// `[rows, heads * head_dim]` of the element type, written.
    pub attended: u64,
    /// [`AttentionPlan::partial_bytes`]; any address where that is 0.
    pub partials: u64,
    /// `[rows, kv_heads]` u32, zero before the first launch; each launch leaves them zero.
    pub arrivals: u64,
    /// `[rows]` u32: becomes 1 where a finite value is beyond the element type.
    pub overflow_rows: u64,
    /// Factor on the scores.
    pub scale: f32,
    /// Cap of the scores, `cap * tanh(score / cap)`, or 0.
    pub score_cap: f32,
    /// Query heads of each key/value head.
    pub group_heads: u32,
    /// Positions that a row sees, its own included; 0 for all before it.
    pub window: u32,
    /// [`AttentionPlan::partial_splits`].
    pub partial_splits: u32,
    /// Width of a head.
    pub head_dim: u32,
    /// 1 if the element type is bf16, 0 if it is f16.
    pub is_bf16: u32,
    /// Always 0.
    pub padding: u32,
}

/// How a step's attention is launched. A row's bits do not depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionPlan {
    /// Blocks that share the splits of a row; key/value heads; rows.
    pub grid: [u32; 3],
    /// Splits for which there is space in the partial sums.
    pub partial_splits: u32,
    /// Bytes of the partial sums.
    pub partial_bytes: usize,
}

/// The kernel compiled for heads of some width.
pub struct AttentionKernel {
    kernel: Kernel,
    variant: Variant,
    group_heads: usize,
    multiprocessors: usize,
}

/// How the kernel is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Variant {
    /// Width of the head, or the next larger one that kernels know.
    max_head_dim: usize,
    /// Query heads that one pass over keys and values serves.
    heads: usize,
}

impl Variant {
    fn of(head_dim: usize, group_heads: usize) -> Self {
        let max_head_dim = head_dim.next_power_of_two().max(64);
        let heads = match group_heads {
            ..=1 => 1,
            2..=4 => 4,
            _ if max_head_dim > 128 => 4,
            _ => 8,
        };
        Self { max_head_dim, heads }
    }

    fn defines(self, kv: KvDType) -> Vec<Define> {
        let max_head_dim = match self.max_head_dim {
            ..=64 => "64",
            65..=128 => "128",
            _ => "256",
        };
        let heads = match self.heads {
            ..=1 => "1",
            2..=4 => "4",
            _ => "8",
        };
        let mut defines = vec![("MAX_HEAD_DIM", max_head_dim), ("HEADS", heads)];
        defines.extend(kv_layout::defines(kv));
        defines
    }

    /// Bytes of the partial sums of a pass over one split.
    fn pass_bytes(self) -> usize {
        self.heads * (self.max_head_dim + 2) * size_of::<f32>()
    }
}

/// Splits of a row that sees so many positions, or with a window only so many of them.
fn splits(longest: usize, window: Option<usize>) -> usize {
    let splits = longest.div_ceil(SPLIT_TOKENS).max(1);
    // A window that is no multiple of splits touches one more at each end.
    window.map_or(splits, |window| splits.min(window.div_ceil(SPLIT_TOKENS) + 1))
}

impl AttentionKernel {
    /// Compiles it, or takes it from the cache, for heads of up to [`MAX_HEAD_DIM`](super::kv_layout::MAX_HEAD_DIM) channels.
    ///
    /// # Errors
    /// As [`Device::module`]; `internal` for wider heads.
    pub fn load(device: &Arc<Device>, head_dim: usize, group_heads: usize, kv: KvDType) -> Result<Self> {
        let variant = Variant::of(head_dim, group_heads);
        let kernel = device.module(&ATTENTION, &variant.defines(kv))?.kernel("attention")?;
        let multiprocessors = device.properties().multiprocessors as usize;
        Ok(Self { kernel, variant, group_heads, multiprocessors })
    }

    /// How to compute that many rows, of which the one at the largest position sees `longest` positions or, with a window,
    /// only that many of them.
    pub fn plan(&self, rows: usize, kv_heads: usize, longest: usize, window: Option<usize>) -> AttentionPlan {
        let tasks = rows * kv_heads;
        let splits = splits(longest, window);
        let partial_bytes = tasks * splits * self.split_bytes();
        let is_busy = tasks >= BUSY_BLOCKS * self.multiprocessors;
        let rows = grid_rows(rows);
        if splits == 1 || is_busy || partial_bytes > MAX_PARTIAL_BYTES {
            AttentionPlan { grid: [1, grid_rows(kv_heads), rows], partial_splits: 0, partial_bytes: 0 }
        } else {
            let grid = [splits as u32, grid_rows(kv_heads), rows];
            AttentionPlan { grid, partial_splits: splits as u32, partial_bytes }
        }
    }

    /// Most bytes of the partial sums of any plan for at most that many rows, none of which sees more than `longest` positions.
    pub fn most_partial_bytes(&self, rows: usize, kv_heads: usize, longest: usize, window: Option<usize>) -> usize {
        match splits(longest, window) {
            1 => 0,
            splits => {
                let tasks = (rows * kv_heads).min(BUSY_BLOCKS * self.multiprocessors);
                (tasks * splits * self.split_bytes()).min(MAX_PARTIAL_BYTES)
            }
        }
    }

    /// Bytes of the partial sums of a split, of all heads that share a key/value head.
    fn split_bytes(&self) -> usize {
        self.group_heads.div_ceil(self.variant.heads) * self.variant.pass_bytes()
    }

    /// Computes the rows of a plan.
    ///
    /// # Errors
    /// As [`Kernel::launch`].
    pub fn launch(&self, attention: &Attention, plan: &AttentionPlan) -> Result<()> {
        self.kernel.launch(plan.grid, SPLIT_TOKENS as u32, 0, &Arguments::of(attention))
    }
}
