//! Paged attention.
//!
//! Successive rows of a sequence form a block, so that a prompt's keys and values are read from memory once for many rows. A
//! task is a block and a key/value head, with all query heads that share it, and walks the segments that the rows see; if there
//! are few blocks for many threads, a block's segments are divided among several tasks. Each segment's part is computed on its
//! own (`kernels/attend.rs`), and a query's parts are merged in the order of their positions: by its only task, or by the last
//! of several to finish. The arithmetic is the same, so it changes no bits.
//!
//! ```text
//! merge   peak = max(peak a, peak b);  a e^(peak a - peak) + b e^(peak b - peak)      sum of weights and values alike
//! out     values / sum of weights
//! ```

#![allow(unsafe_code, reason = "tasks write disjoint parts of the output")]

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::kv_append::{HeadNorms, HeadPreparer, KeyValue, Rotations, append, norm_all_heads, rotations};
use crate::backend::cpu::kernels::attend::{PEAK, SEGMENT, SUM, Seen, part_len, scores_len};
use crate::backend::cpu::kernels::dispatch::Kernels;
use crate::backend::cpu::runtime::arena::grow;
use crate::backend::cpu::runtime::buffers::{Output, Rows};
use crate::backend::cpu::runtime::kv_cache::KvCache;
use crate::backend::cpu::runtime::threads::{Disjoint, Pool};
use crate::backend::kv_quant::rotate_to_read;
use crate::backend::{AttentionSpec, RopeLayout, StepRows};
use crate::error::Result;

/// Query vectors of a block, unless a single row has more: their sums stay in a core's own caches.
const BLOCK_QUERIES: usize = 64;
/// Tasks for each thread that a step's segments are divided into, so that one that starts late can take fewer.
const TASKS_OF_THREAD: usize = 4;
/// Values of the parts that are kept until a block's last task, at most (16 MiB); beyond that, blocks are not divided.
const MAX_PARTS: usize = 1 << 22;
/// Products and sums that a thread computes in a nanosecond.
const MULTIPLIES_PER_NS: usize = 32;

/// What attention keeps from step to step.
#[derive(Default)]
pub(crate) struct Scratch {
    rotations: Vec<Rotations>,
    /// Queries and keys under norms over all heads.
    normed: Vec<f32>,
    threads: Vec<ThreadScratch>,
    key_values: Vec<KeyValue>,
    blocks: Vec<Block>,
    /// Parts of the blocks that are divided, `[head][segment][query][part_len]` of each.
    parts: Vec<f32>,
    /// Tasks that have not finished, of each block and head.
    unfinished: Vec<AtomicUsize>,
    /// Rows of this step with a finite key or value that was not finite as stored.
    pub(crate) kv_overflows: BTreeSet<u32>,
}

/// What a thread works with.
#[derive(Default)]
struct ThreadScratch {
    queries: Queries,
    /// `[query][part_len]` of one segment.
    part: Vec<f32>,
    /// `[query][part_len]` of the segments so far.
    merged: Vec<f32>,
}

/// The queries of a block and one head.
#[derive(Default)]
struct Queries {
    /// `[query][head_dim]`
    q: Vec<f32>,
    /// What the block's rows see of a segment, a row's for each of its heads.
    seen: Vec<Seen>,
    scores: Vec<f32>,
}

/// Successive rows of a sequence.
#[derive(Clone, Debug)]
struct Block {
    rows: Range<usize>,
    /// The segments that any of its rows sees.
    segments: Range<usize>,
    /// Segments of a task.
    of_task: usize,
    /// The first of its tasks: those of the first head, then those of the next.
    first_task: usize,
    /// Where its parts begin, if it is divided.
    parts: usize,
}

impl Block {
    /// Tasks of each head.
    fn tasks(&self) -> usize {
        self.segments.len().div_ceil(self.of_task)
    }
}

/// What the blocks of a step are computed from.
struct Attention<'a> {
    kernels: &'a Kernels,
    cache: &'a KvCache,
    spec: &'a AttentionSpec,
    rows: &'a StepRows,
    preparer: HeadPreparer<'a>,
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
    let group = spec.heads / spec.kv_heads;
    let part = part_len(layout.value_stride);
    let Scratch { rotations: known, normed, threads, key_values, blocks, parts, unfinished, kv_overflows } = scratch;
    let rope = spec.rope.as_ref();
    let preparer = HeadPreparer {
        kernels,
        norms,
        heads: norm_all_heads(pool, kernels, norms, spec, (rows.len(), qkv), normed)?,
        layout: rope.map_or(RopeLayout::Halves, |rope| rope.layout),
        rotations: match rope {
            Some(rope) => rotations(known, rope, &rows.positions),
            None => &[],
        },
        pairs: rope.map_or(0, |rope| rope.inv_freq.len()),
    };

    key_values.resize_with(pool.threads(), KeyValue::default);
    let overflows = Mutex::new(kv_overflows);
    let noted = |row: usize| {
        overflows.lock().insert(row as u32);
    };
    append(pool, cache, spec, rows, qkv, &preparer, key_values, noted)?;

    let positions: usize = (0..rows.len()).map(|row| seen(spec, rows, row)).map(|s| s.last - s.first + 1).sum();
    let work = 2 * positions * spec.heads * spec.head_dim / MULTIPLIES_PER_NS;
    let workers = pool.threads_for(work);
    list_blocks(spec, rows, blocks);
    let (tasks, parts_len) = divide(blocks, workers, spec.kv_heads, |block| block.rows.len() * group * part);
    grow(parts, parts_len)?;
    unfinished.resize_with(blocks.len() * spec.kv_heads, AtomicUsize::default);
    for (block, counters) in blocks.iter().zip(unfinished.chunks_exact_mut(spec.kv_heads)) {
        counters.iter_mut().for_each(|counter| *counter.get_mut() = block.tasks());
    }
    let queries = blocks.iter().map(|block| block.rows.len() * group).max().unwrap_or(0);
    threads.resize_with(pool.threads(), ThreadScratch::default);
    for own in &mut *threads {
        grow(&mut own.queries.q, queries * spec.head_dim)?;
        grow(&mut own.queries.scores, scores_len(layout.shape.page_tokens))?;
        grow(&mut own.part, queries * part)?;
        grow(&mut own.merged, queries * part)?;
    }

    let attention = Attention { kernels, cache, spec, rows, preparer };
    let (threads, parts) = (Disjoint::new(threads), Disjoint::new(parts));
    let out = Disjoint::new(output.y);
    pool.run_on(workers, tasks, |task, thread| {
        // The last blocks of a prompt see most, so they come first.
        let task = tasks - 1 - task;
        let index = blocks.partition_point(|block| block.first_task <= task) - 1;
        let block = &blocks[index];
        let (head, run) = ((task - block.first_task) / block.tasks(), (task - block.first_task) % block.tasks());
        // SAFETY: no two tasks run on the same thread at the same time.
        let [own] = (unsafe { threads.part(thread..thread + 1) }) else { return };
        let ThreadScratch { queries, part: of_segment, merged } = own;
        attention.prepare(block, head, &mut queries.q);
        let len = block.rows.len() * group * part;
        if block.tasks() == 1 {
            for segment in block.segments.clone() {
                attention.attend(block, head, segment, queries, of_segment);
                attention.merge(block, segment, of_segment, merged);
            }
        } else {
            let of_head = block.parts + head * block.segments.len() * len;
            let first = block.segments.start + run * block.of_task;
            for segment in first..block.segments.end.min(first + block.of_task) {
                let start = of_head + (segment - block.segments.start) * len;
                // SAFETY: each head and segment belongs to one task, until all have finished.
                let kept = unsafe { parts.part(start..start + len) };
                attention.attend(block, head, segment, queries, kept);
            }
            // Releases what this task has written to the last one, which acquires it.
            if unfinished[index * spec.kv_heads + head].fetch_sub(1, Ordering::AcqRel) > 1 {
                return;
            }
            // SAFETY: all tasks of this block and head have finished but this one.
            let kept = unsafe { parts.part(of_head..of_head + block.segments.len() * len) };
            for (segment, kept) in block.segments.clone().zip(kept.chunks_exact(len)) {
                attention.merge(block, segment, kept, merged);
            }
        }
        for (row, merged) in block.rows.clone().zip(merged.chunks_exact(group * part)) {
            let start = row * output.stride + head * group * spec.head_dim;
            // SAFETY: each row and head has a part of its own.
            let out = unsafe { out.part(start..start + group * spec.head_dim) };
            for (out, merged) in out.chunks_exact_mut(spec.head_dim).zip(merged.chunks_exact(part)) {
                let factor = 1.0 / merged[layout.value_stride + SUM];
                out.iter_mut().zip(merged).for_each(|(out, value)| *out = value * factor);
                attention.rotate_to_read(out);
            }
        }
    })
}

/// What a row sees.
fn seen(spec: &AttentionSpec, rows: &StepRows, row: usize) -> Seen {
    let last = rows.positions[row] as usize;
    Seen { first: spec.window.map_or(0, |window| (last + 1).saturating_sub(window)), last }
}

/// Lists the blocks of a step, not yet divided.
fn list_blocks(spec: &AttentionSpec, rows: &StepRows, blocks: &mut Vec<Block>) {
    let most = (BLOCK_QUERIES * spec.kv_heads / spec.heads).max(1);
    blocks.clear();
    for row in 0..rows.len() {
        let Seen { first, last } = seen(spec, rows, row);
        let follows = |before: usize| {
            rows.sequences[before] == rows.sequences[row] && rows.positions[before] < rows.positions[row]
        };
        match blocks.last_mut() {
            Some(block) if block.rows.len() < most && follows(row - 1) => {
                block.rows.end = row + 1;
                block.segments.end = last / SEGMENT + 1;
            }
            _ => {
                let segments = first / SEGMENT..last / SEGMENT + 1;
                blocks.push(Block { rows: row..row + 1, of_task: segments.len(), segments, first_task: 0, parts: 0 });
            }
        }
    }
}

/// Divides blocks into tasks for that many threads, and returns the number of tasks and that of the values of all kept parts;
/// `len_of` is the length of a block's parts of one segment and head.
fn divide(blocks: &mut [Block], threads: usize, kv_heads: usize, len_of: impl Fn(&Block) -> usize) -> (usize, usize) {
    let segments: usize = blocks.iter().map(|block| block.segments.len() * kv_heads).sum();
    let of_task = if threads == 1 { usize::MAX } else { (segments / (TASKS_OF_THREAD * threads)).max(1) };
    let (mut tasks, mut parts) = (0, 0);
    for block in blocks {
        let kept = block.segments.len() * kv_heads * len_of(block);
        block.of_task = block.segments.len();
        if block.segments.len() > of_task && parts + kept <= MAX_PARTS {
            (block.of_task, block.parts) = (of_task, parts);
            parts += kept;
        }
        block.first_task = tasks;
        tasks += kv_heads * block.tasks();
    }
    (tasks, parts)
}

impl Attention<'_> {
    /// Query heads that share a key/value head.
    fn group(&self) -> usize {
        self.spec.heads / self.spec.kv_heads
    }

    /// Where the cache has rotated keys and values, rotates a query, or a sum of values back: see `kv_quant.rs`.
    fn rotate_to_read(&self, x: &mut [f32]) {
        let group = self.cache.layout().group;
        if group > 0 {
            rotate_to_read(x, group);
        }
    }

    /// Norms and rotates the block's queries `[row][head of the group][head_dim]`.
    fn prepare(&self, block: &Block, head: usize, q: &mut [f32]) {
        let (dim, width) = (self.spec.head_dim, self.group() * self.spec.head_dim);
        for (row, q) in block.rows.clone().zip(q.chunks_exact_mut(width)) {
            let temperature = self.spec.query_temperature.map(|temperature| temperature.at(self.rows.positions[row]));
            for (query_head, q) in (head * self.group()..).zip(q.chunks_exact_mut(dim)) {
                self.preparer.prepare(row, self.preparer.norms.q, (query_head, query_head * dim), q);
                if let Some(temperature) = temperature {
                    q.iter_mut().for_each(|q| *q *= temperature);
                }
                self.rotate_to_read(q);
            }
        }
    }

    /// What a row sees of a segment; empty ranges are `None`.
    fn seen_of(&self, row: usize, segment: usize) -> Option<Seen> {
        let Seen { first, last } = seen(self.spec, self.rows, row);
        let of_segment = Seen { first: first.max(segment * SEGMENT), last: last.min((segment + 1) * SEGMENT - 1) };
        (of_segment.first <= of_segment.last).then_some(of_segment)
    }

    /// The rows of a block that see a segment: positions ascend, so they follow each other.
    fn seeing(&self, block: &Block, segment: usize) -> Range<usize> {
        let mut seeing = block.rows.clone().filter(|&row| self.seen_of(row, segment).is_some());
        let first = seeing.next().unwrap_or(block.rows.end);
        first..seeing.next_back().unwrap_or(first) + 1
    }

    /// The parts of a segment for those of the block's queries that see it, `[query of the block][part_len]`.
    fn attend(&self, block: &Block, head: usize, segment: usize, queries: &mut Queries, parts: &mut [f32]) {
        let Queries { q, seen, scores } = queries;
        let (dim, group) = (self.spec.head_dim, self.group());
        let rows = self.seeing(block, segment);
        seen.clear();
        for row in rows.clone() {
            seen.extend(self.seen_of(row, segment).into_iter().flat_map(|seen| std::iter::repeat_n(seen, group)));
        }
        let first = (rows.start - block.rows.start) * group;
        let seeing = first..first + seen.len();
        let layout = self.cache.layout();
        let part = part_len(layout.value_stride);
        let view = self.cache.view(self.spec, head, &self.rows.block_tables[self.rows.sequences[rows.start] as usize]);
        let (q, parts) = (&q[seeing.start * dim..seeing.end * dim], &mut parts[seeing.start * part..seeing.end * part]);
        // SAFETY: `AttentionSpec::check` found all pages within the cache and each row's position within its table.
        unsafe { self.kernels.attend(layout.shape.dtype, &view, q, seen, scores, parts) };
    }

    /// Adds the parts of a segment to what the queries that see it have of the segments before.
    fn merge(&self, block: &Block, segment: usize, parts: &[f32], merged: &mut [f32]) {
        let stride = self.cache.layout().value_stride;
        let of_row = self.group() * part_len(stride);
        for row in self.seeing(block, segment) {
            let place = (row - block.rows.start) * of_row..(row - block.rows.start + 1) * of_row;
            let (parts, merged) = (&parts[place.clone()], &mut merged[place]);
            if seen(self.spec, self.rows, row).first / SEGMENT == segment {
                merged.copy_from_slice(parts);
                continue;
            }
            for (part, merged) in parts.chunks_exact(part_len(stride)).zip(merged.chunks_exact_mut(part_len(stride))) {
                merge_query(stride, part, merged);
            }
        }
    }
}

/// Adds a query's part of a segment to what it has of the segments before. What is NaN stays NaN.
fn merge_query(stride: usize, part: &[f32], merged: &mut [f32]) {
    let peak = merged[stride + PEAK].max(part[stride + PEAK]);
    let before = (merged[stride + PEAK] - peak).exp();
    let added = (part[stride + PEAK] - peak).exp();
    for (merged, part) in merged[..stride].iter_mut().zip(part) {
        *merged = *merged * before + part * added;
    }
    merged[stride + SUM] = merged[stride + SUM] * before + part[stride + SUM] * added;
    merged[stride + PEAK] = peak;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(segments: Range<usize>) -> Block {
        Block { rows: 0..1, of_task: segments.len(), segments, first_task: 0, parts: 0 }
    }

    #[test]
    fn one_long_row_is_divided_among_threads_and_many_rows_are_not() {
        let mut long = [block(0..40)];
        assert_eq!(divide(&mut long, 1, 4, |_| 10), (4, 0));
        let (tasks, parts) = divide(&mut long, 2, 4, |_| 10);
        assert_eq!((long[0].of_task, tasks, parts), (20, 8, 40 * 4 * 10));
        let mut many: Vec<Block> = (0..64).map(|_| block(0..2)).collect();
        assert_eq!(divide(&mut many, 2, 4, |_| 10), (64 * 4, 0));
        assert!(many.iter().enumerate().all(|(i, block)| block.tasks() == 1 && block.first_task == 4 * i));
    }

    #[test]
    fn blocks_whose_parts_would_be_too_large_stay_whole() {
        let mut blocks = [block(0..100), block(0..100)];
        let (tasks, parts) = divide(&mut blocks, 8, 1, |_| MAX_PARTS / 150);
        assert!(blocks[0].tasks() > 1 && blocks[1].tasks() == 1);
        assert_eq!((tasks, parts), (blocks[0].tasks() + 1, 100 * (MAX_PARTS / 150)));
    }

    #[test]
    fn merged_parts_are_the_softmax_of_all() {
        // Weights e^1, e^3 and e^2 of the values 10, 20 and 40, in two parts.
        let part = |peak: f32, weights: &[f32], values: &[f32]| {
            let weights: Vec<f32> = weights.iter().map(|weight| (weight - peak).exp()).collect();
            [weights.iter().zip(values).map(|(w, v)| w * v).sum(), peak, weights.iter().sum()]
        };
        let (mut merged, second) = (part(3.0, &[1.0, 3.0], &[10.0, 20.0]), part(2.0, &[2.0], &[40.0]));
        merge_query(1, &second, &mut merged);
        let [a, b, c] = [1f32.exp(), 3f32.exp(), 2f32.exp()];
        let expected = (10.0 * a + 20.0 * b + 40.0 * c) / (a + b + c);
        assert!((merged[0] / merged[2] - expected).abs() < 1e-5 * expected);
        merge_query(1, &[0.0, f32::NEG_INFINITY, f32::NAN], &mut merged);
        assert!((merged[0] / merged[2]).is_nan());
    }
}
