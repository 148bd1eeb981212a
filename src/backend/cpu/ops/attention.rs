//! Paged attention: a task is one row and one key/value head, with all query heads that share it.

#![allow(unsafe_code, reason = "tasks write disjoint parts of the cache and of the output")]

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::backend::cpu::adapter::routing::RoutedNorm;
use crate::backend::cpu::kernels::dispatch::Kernels;
use crate::backend::cpu::kernels::vector::LANES;
use crate::backend::cpu::runtime::arena::grow;
use crate::backend::cpu::runtime::buffers::{Output, Rows};
use crate::backend::cpu::runtime::kv_cache::{KvCache, Stored};
use crate::backend::cpu::runtime::threads::{Disjoint, Pool};
use crate::backend::{AttentionSpec, KvDType, Rope, StepRows};
use crate::error::Result;

/// Rows below which keys and values are stored without waking other threads.
const PARALLEL_ROWS: usize = 8;

/// Cosines and sines of a step's rows under one rotation; computed by the first layer, used by all.
struct Rotations {
    rope: Arc<Rope>,
    positions: Vec<u32>,
    /// `[row][cos, sin][pair]`
    values: Vec<f32>,
}

/// What attention keeps from step to step.
#[derive(Default)]
pub(crate) struct Scratch {
    rotations: Vec<Rotations>,
    threads: Vec<f32>,
    /// Rows of this step with a finite key or value that was not finite as stored.
    pub(crate) kv_overflows: BTreeSet<u32>,
}

impl Scratch {
    /// Index of the rotation's values for these positions.
    fn rotation(&mut self, rope: &Arc<Rope>, positions: &[u32]) -> usize {
        let known = self.rotations.iter().position(|t| Arc::ptr_eq(&t.rope, rope));
        let index = known.unwrap_or_else(|| {
            self.rotations.push(Rotations { rope: Arc::clone(rope), positions: Vec::new(), values: Vec::new() });
            self.rotations.len() - 1
        });
        let rotations = &mut self.rotations[index];
        if rotations.positions != positions {
            // Filled last, so that values that a panic cut short are never taken for these positions'.
            rotations.positions.clear();
            rotations.values.clear();
            for &position in positions {
                let angles = rope.inv_freq.iter().map(|&frequency| position as f32 * frequency);
                rotations.values.extend(angles.clone().map(|angle| angle.cos() * rope.factor));
                rotations.values.extend(angles.map(|angle| angle.sin() * rope.factor));
            }
            rotations.positions.extend_from_slice(positions);
        }
        index
    }
}

/// The norms over heads, if the model has them.
#[derive(Clone, Copy)]
pub(crate) struct HeadNorms<'a> {
    pub(crate) q: Option<RoutedNorm<'a>>,
    pub(crate) k: Option<RoutedNorm<'a>>,
}

/// Where a head's norm and rotation come from.
struct Prepare<'a> {
    kernels: &'a Kernels,
    norms: HeadNorms<'a>,
    eps: f32,
    rotations: &'a [f32],
    pairs: usize,
}

impl Prepare<'_> {
    /// Norms and rotates one head of one row.
    fn head(&self, row: usize, norm: Option<RoutedNorm<'_>>, x: &[f32], out: &mut [f32]) {
        match norm {
            Some(weight) => self.kernels.norm(weight.of_row(row), self.eps, x, out),
            None => out.copy_from_slice(x),
        }
        let rotations = &self.rotations[row * 2 * self.pairs..(row + 1) * 2 * self.pairs];
        let (cos, sin) = rotations.split_at(self.pairs);
        let (first, rest) = out.split_at_mut(self.pairs);
        for (((a, b), cos), sin) in first.iter_mut().zip(rest).zip(cos).zip(sin) {
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
}

/// `out[i] = softmax(scale q k^T) v` over what row i sees; keys and values of all rows are stored first, and those that
/// overflow are noted in `scratch`.
///
/// # Errors
/// `internal` if rows, spec and cache don't fit together; `memory_exhausted`.
#[allow(clippy::too_many_arguments)]
pub(crate) fn run(
    pool: &mut Pool,
    kernels: &Kernels,
    cache: &mut KvCache,
    spec: &AttentionSpec,
    norms: HeadNorms<'_>,
    rows: &StepRows,
    qkv: Rows<'_>,
    output: Output<'_>,
    scratch: &mut Scratch,
) -> Result<()> {
    let layout = cache.layout();
    spec.check(&layout.shape, rows)?;
    let (dim, group) = (spec.head_dim, spec.heads / spec.kv_heads);
    let last = rows.positions.iter().max().map_or(0, |&position| position as usize);
    // Scores begin at a page, and the last tile may reach beyond the last position.
    let seen = spec.window.map_or(last + 1, |window| window.min(last + 1));
    let scores = (seen + layout.shape.page_tokens + 2 * LANES).next_multiple_of(LANES);
    let of_thread = (dim + group * dim + group * scores).next_multiple_of(LANES);
    grow(&mut scratch.threads, of_thread * pool.threads())?;
    let rotations = scratch.rotation(&spec.rope, &rows.positions);
    let prepare = Prepare {
        kernels,
        norms,
        eps: spec.norm_eps,
        rotations: &scratch.rotations[rotations].values,
        pairs: spec.rope.inv_freq.len(),
    };
    let threads = Disjoint::new(&mut scratch.threads);

    let overflows = Mutex::new(&mut scratch.kv_overflows);
    let noted = |row: usize| {
        overflows.lock().insert(row as u32);
    };
    match layout.shape.dtype {
        KvDType::F16 => append::<u16>(pool, cache, spec, rows, qkv, &prepare, &threads, of_thread, noted)?,
        KvDType::F32 => append::<f32>(pool, cache, spec, rows, qkv, &prepare, &threads, of_thread, noted)?,
    }

    let cache = &*cache;
    let (out, out_stride) = (Disjoint::new(output.y), output.stride);
    pool.run(rows.len() * spec.kv_heads, |task, thread| {
        let (row, kv_head) = (task / spec.kv_heads, task % spec.kv_heads);
        // SAFETY: each thread has a part of its own.
        let own = unsafe { threads.part(thread * of_thread..(thread + 1) * of_thread) };
        let (q, scores) = own[dim..].split_at_mut(group * dim);
        let heads = kv_head * group * dim..(kv_head + 1) * group * dim;
        for (x, q) in qkv.row(row)[heads.clone()].chunks_exact(dim).zip(q.chunks_exact_mut(dim)) {
            prepare.head(row, prepare.norms.q, x, q);
        }
        let position = rows.positions[row] as usize;
        let first = spec.window.map_or(0, |window| (position + 1).saturating_sub(window));
        let block_table = &rows.block_tables[rows.sequences[row] as usize];
        let view = cache.view(spec, kv_head, block_table, (first, position));
        // SAFETY: each row and head has a part of its own.
        let out = unsafe { out.part(row * out_stride + heads.start..row * out_stride + heads.end) };
        // SAFETY: `AttentionSpec::check` found all pages within the cache and the row's position within its table.
        unsafe { kernels.attend(layout.shape.dtype, &view, q, scores, out) };
    })
}

/// Stores keys and values of all rows, and calls `overflowed` for each that had one out of range. A task owns a head, so that no two write the same place whatever the rows are.
#[allow(clippy::too_many_arguments)]
fn append<T: Stored>(
    pool: &mut Pool,
    cache: &mut KvCache,
    spec: &AttentionSpec,
    rows: &StepRows,
    qkv: Rows<'_>,
    prepare: &Prepare<'_>,
    threads: &Disjoint<'_, f32>,
    of_thread: usize,
    overflowed: impl Fn(usize) + Sync,
) -> Result<()> {
    let layout = cache.layout();
    let (dim, page_tokens) = (spec.head_dim, layout.shape.page_tokens);
    let stored = Disjoint::new(cache.elements_mut::<T>());
    let store_head = |head: usize, thread: usize| {
        // SAFETY: each thread has a part of its own.
        let key = unsafe { threads.part(thread * of_thread..thread * of_thread + dim) };
        for row in 0..rows.len() {
            let position = rows.positions[row] as usize;
            let page = rows.block_tables[rows.sequences[row] as usize][position / page_tokens] as usize;
            let at = position % page_tokens;
            let k = (spec.heads + head) * dim;
            let v = k + spec.kv_heads * dim;
            prepare.head(row, prepare.norms.k, &qkv.row(row)[k..k + dim], key);
            let start = page * layout.page_elements() + layout.keys_of(spec.layer, head);
            // SAFETY: keys and values of a head belong to its task alone, which takes one part at a time.
            let keys = unsafe { stored.part(start..start + layout.key_head) };
            let tile = &mut keys[at / LANES * LANES * dim..][..LANES * dim];
            let mut fits = true;
            for (channel, &value) in key.iter().enumerate() {
                tile[channel * LANES + at % LANES] = stored_or_nan(value, &mut fits);
            }
            let start = page * layout.page_elements() + layout.values_of(spec.layer, head);
            // SAFETY: as above.
            let values = unsafe { stored.part(start..start + layout.value_head()) };
            let place = &mut values[at * layout.value_stride..][..dim];
            for (place, &value) in place.iter_mut().zip(&qkv.row(row)[v..v + dim]) {
                *place = stored_or_nan(value, &mut fits);
            }
            if !fits {
                overflowed(row);
            }
        }
    };
    if rows.len() < PARALLEL_ROWS {
        pool.run(1, |_, thread| (0..spec.kv_heads).for_each(|head| store_head(head, thread)))
    } else {
        pool.run(spec.kv_heads, store_head)
    }
}

/// The value as stored, NaN if that is not finite; `fits` becomes false if only the element type is too narrow.
#[inline]
fn stored_or_nan<T: Stored>(value: f32, fits: &mut bool) -> T {
    T::of(value).unwrap_or_else(|| {
        *fits &= !value.is_finite();
        T::NAN
    })
}
