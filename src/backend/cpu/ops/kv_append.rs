//! What attention does before it attends: heads are normed and rotated, and a step's keys and values are stored.

#![allow(unsafe_code, reason = "tasks write disjoint parts of the cache")]

use std::sync::Arc;

use crate::backend::cpu::adapter::routing::RoutedNorm;
use crate::backend::cpu::kernels::dispatch::Kernels;
use crate::backend::cpu::kernels::vector::LANES;
use crate::backend::cpu::runtime::buffers::Rows;
use crate::backend::cpu::runtime::kv_cache::{KvCache, Stored};
use crate::backend::cpu::runtime::threads::{Disjoint, Pool};
use crate::backend::{AttentionSpec, Rope, StepRows};
use crate::error::Result;

/// Keys and values that a thread prepares and stores in a nanosecond.
const STORED_PER_NS: usize = 1;

/// Cosines and sines of a step's rows under one rotation; computed by the first layer, used by all.
pub(super) struct Rotations {
    rope: Arc<Rope>,
    positions: Vec<u32>,
    /// `[row][cos, sin][pair]`
    values: Vec<f32>,
}

/// The rotation's values `[row][cos, sin][pair]` for these positions.
pub(super) fn rotations<'a>(known: &'a mut Vec<Rotations>, rope: &Arc<Rope>, positions: &[u32]) -> &'a [f32] {
    let index = known.iter().position(|t| Arc::ptr_eq(&t.rope, rope)).unwrap_or_else(|| {
        known.push(Rotations { rope: Arc::clone(rope), positions: Vec::new(), values: Vec::new() });
        known.len() - 1
    });
    let rotations = &mut known[index];
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
    &rotations.values
}

/// The norms over heads, if the model has them.
#[derive(Clone, Copy)]
pub(crate) struct HeadNorms<'a> {
    pub(crate) q: Option<RoutedNorm<'a>>,
    pub(crate) k: Option<RoutedNorm<'a>>,
}

/// Where a head's norm and rotation come from.
pub(super) struct HeadPreparer<'a> {
    pub(super) kernels: &'a Kernels,
    pub(super) norms: HeadNorms<'a>,
    pub(super) eps: f32,
    /// `[row][cos, sin][pair]`
    pub(super) rotations: &'a [f32],
    pub(super) pairs: usize,
}

impl HeadPreparer<'_> {
    /// Norms and rotates one head of one row.
    pub(super) fn prepare(&self, row: usize, norm: Option<RoutedNorm<'_>>, x: &[f32], out: &mut [f32]) {
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

/// Stores keys and values of all rows, and calls `overflowed` for each that had one out of range. A task owns a head, so that
/// no two write the same place whatever the rows are. `keys` has `head_dim` values of scratch for each thread.
///
/// # Errors
/// `internal` if a task panicked.
#[allow(clippy::too_many_arguments)]
pub(super) fn append<T: Stored>(
    pool: &mut Pool,
    cache: &mut KvCache,
    spec: &AttentionSpec,
    rows: &StepRows,
    qkv: Rows<'_>,
    preparer: &HeadPreparer<'_>,
    keys: &mut [Vec<f32>],
    overflowed: impl Fn(usize) + Sync,
) -> Result<()> {
    let layout = cache.layout();
    let (dim, page_tokens) = (spec.head_dim, layout.shape.page_tokens);
    let stored = Disjoint::new(cache.elements_mut::<T>());
    let threads = pool.threads_for(2 * rows.len() * spec.kv_heads * dim / STORED_PER_NS);
    let keys = Disjoint::new(keys);
    pool.run_on(threads, spec.kv_heads, |head, thread| {
        // SAFETY: no two tasks run on the same thread at the same time.
        let [key] = (unsafe { keys.part(thread..thread + 1) }) else { return };
        for row in 0..rows.len() {
            let position = rows.positions[row] as usize;
            let page = rows.block_tables[rows.sequences[row] as usize][position / page_tokens] as usize;
            let at = position % page_tokens;
            let k = (spec.heads + head) * dim;
            let v = k + spec.kv_heads * dim;
            preparer.prepare(row, preparer.norms.k, &qkv.row(row)[k..k + dim], key);
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
    })
}

/// The value as stored, NaN if that is not finite; `fits` becomes false if only the element type is too narrow.
#[inline]
fn stored_or_nan<T: Stored>(value: f32, fits: &mut bool) -> T {
    T::of(value).unwrap_or_else(|| {
        *fits &= !value.is_finite();
        T::NAN
    })
}
