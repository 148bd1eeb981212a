//! What attention does before it attends: heads are normed and rotated, and a step's keys and values are stored.

#![allow(unsafe_code, reason = "tasks write disjoint parts of the cache")]

use std::sync::Arc;

use super::rowwise::{NORMED_PER_NS, for_rows};
use crate::backend::cpu::adapter::routing::RoutedNorm;
use crate::backend::cpu::kernels::dispatch::Kernels;
use crate::backend::cpu::runtime::arena::grow;
use crate::backend::cpu::runtime::buffers::Rows;
use crate::backend::cpu::runtime::kv_cache::KvCache;
use crate::backend::cpu::runtime::threads::{Disjoint, Pool};
use crate::backend::{AttentionSpec, HeadNormScope, Rope, RopeLayout, StepRows, Write};
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

/// The norms of queries and keys, if the layer has them.
#[derive(Clone, Copy)]
pub(crate) struct HeadNorms<'a> {
    pub(crate) q: Option<RoutedHeadNorm<'a>>,
    pub(crate) k: Option<RoutedHeadNorm<'a>>,
}

/// A norm of queries or keys.
#[derive(Clone, Copy)]
pub(crate) struct RoutedHeadNorm<'a> {
    pub(crate) norm: RoutedNorm<'a>,
    pub(crate) scope: HeadNormScope,
}

impl RoutedHeadNorm<'_> {
    fn is_over_all_heads(&self) -> bool {
        self.scope == HeadNormScope::All
    }
}

/// Norms queries and keys where their norms are over all heads: `[rows, (heads + kv_heads) * head_dim]` in `normed`, or what
/// `qkv` has where no norm is.
///
/// # Errors
/// `memory_exhausted`; `internal` if a task panicked.
pub(super) fn norm_all_heads<'a>(
    pool: &mut Pool,
    kernels: &Kernels,
    norms: HeadNorms<'_>,
    spec: &AttentionSpec,
    (rows, qkv): (usize, Rows<'a>),
    normed: &'a mut Vec<f32>,
) -> Result<Rows<'a>> {
    if ![norms.q, norms.k].iter().flatten().any(RoutedHeadNorm::is_over_all_heads) {
        return Ok(qkv);
    }
    let q_width = spec.heads * spec.head_dim;
    let width = q_width + spec.kv_heads * spec.head_dim;
    grow(normed, rows * width)?;
    for_rows(pool, rows, width, NORMED_PER_NS, normed, width, |row, out| {
        let ((q, k), (q_out, k_out)) = (qkv.row(row)[..width].split_at(q_width), out.split_at_mut(q_width));
        for (norm, x, out) in [(norms.q, q, q_out), (norms.k, k, k_out)] {
            match norm.filter(RoutedHeadNorm::is_over_all_heads) {
                Some(RoutedHeadNorm { norm, .. }) => kernels.norm(&norm.of_row(row), x, Write::Replace, out),
                None => out.copy_from_slice(x),
            }
        }
    })?;
    Ok(Rows { values: normed, stride: width })
}

/// Where heads, their norms and rotations come from.
pub(super) struct HeadPreparer<'a> {
    pub(super) kernels: &'a Kernels,
    pub(super) norms: HeadNorms<'a>,
    /// Queries, then keys of each row; normed where the norm is over all heads.
    pub(super) heads: Rows<'a>,
    pub(super) layout: RopeLayout,
    /// `[row][cos, sin][pair]`
    pub(super) rotations: &'a [f32],
    pub(super) pairs: usize,
}

impl HeadPreparer<'_> {
    /// Norms and rotates one head of one row, which begins at channel `first` of the row.
    pub(super) fn prepare(
        &self,
        row: usize,
        norm: Option<RoutedHeadNorm<'_>>,
        (head, first): (usize, usize),
        out: &mut [f32],
    ) {
        let dim = out.len();
        let x = &self.heads.row(row)[first..first + dim];
        match norm.filter(|norm| !norm.is_over_all_heads()) {
            Some(RoutedHeadNorm { norm, scope }) => {
                let of_row = norm.of_row(row);
                let of_head = match scope {
                    HeadNormScope::HeadOwn => of_row.of_channels(head * dim..(head + 1) * dim),
                    _ => of_row,
                };
                self.kernels.norm(&of_head, x, Write::Replace, out);
            }
            None => out.copy_from_slice(x),
        }
        let rotations = &self.rotations[row * 2 * self.pairs..(row + 1) * 2 * self.pairs];
        let turns = rotations[..self.pairs].iter().zip(&rotations[self.pairs..]);
        match self.layout {
            RopeLayout::Halves => {
                let (first, rest) = out.split_at_mut(self.pairs);
                for ((a, b), (cos, sin)) in first.iter_mut().zip(rest).zip(turns) {
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
            RopeLayout::Pairs => {
                for ([a, b], (cos, sin)) in out.as_chunks_mut::<2>().0.iter_mut().zip(turns) {
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
        }
    }
}

/// Scratch of a thread that stores: a key and a value of one head.
#[derive(Default)]
pub(super) struct KeyValue {
    key: Vec<f32>,
    value: Vec<f32>,
}

/// Stores keys and values of all rows, and calls `overflowed` for each that had one out of range. A task owns a head, so that
/// no two write the same place whatever the rows are. `scratch` has an element for each thread.
///
/// # Errors
/// `internal` if a task panicked.
#[allow(clippy::too_many_arguments)]
pub(super) fn append(
    pool: &mut Pool,
    cache: &mut KvCache,
    spec: &AttentionSpec,
    rows: &StepRows,
    qkv: Rows<'_>,
    preparer: &HeadPreparer<'_>,
    scratch: &mut [KeyValue],
    overflowed: impl Fn(usize) + Sync,
) -> Result<()> {
    let layout = cache.layout();
    let (dim, page_tokens) = (spec.head_dim, layout.shape.page_tokens);
    for own in &mut *scratch {
        own.key.resize(dim, 0.0);
        own.value.resize(dim, 0.0);
    }
    let stored = Disjoint::new(cache.bytes_mut());
    let threads = pool.threads_for(2 * rows.len() * spec.kv_heads * dim / STORED_PER_NS);
    let scratch = Disjoint::new(scratch);
    pool.run_on(threads, spec.kv_heads, |head, thread| {
        // SAFETY: no two tasks run on the same thread at the same time.
        let [KeyValue { key, value }] = (unsafe { scratch.part(thread..thread + 1) }) else { return };
        for row in 0..rows.len() {
            let position = rows.positions[row] as usize;
            let page = rows.block_tables[rows.sequences[row] as usize][position / page_tokens] as usize;
            let k = (spec.heads + head) * dim;
            let v = k + spec.kv_heads * dim;
            preparer.prepare(row, preparer.norms.k, (head, k), key);
            value.copy_from_slice(&qkv.row(row)[v..v + dim]);
            let start = page * layout.page_bytes() + layout.keys_of(spec.layer, head);
            // SAFETY: keys and values of a head belong to its task alone, which takes one row's at a time.
            let keys = unsafe { stored.part(start..start + layout.key_head) };
            let start = page * layout.page_bytes() + layout.values_of(spec.layer, head);
            // SAFETY: as above; a head's keys and its values do not overlap.
            let values = unsafe { stored.part(start..start + layout.value_head) };
            if !layout.store(keys, values, position % page_tokens, key, value) {
                overflowed(row);
            }
        }
    })
}
