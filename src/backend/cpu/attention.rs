//! Paged attention: one row and one key/value head at a time, with all query heads that share it.
//!
//! A page holds, for each layer and key/value head, keys in tiles of 16 positions `[tile][channel][16]`, so that lanes
//! are positions and a score needs no sum across lanes, and values `[position][channel]`, so that lanes are channels.
//!
//! ```text
//! page    [layer][ keys of head 0.. | values of head 0.. ]
//! score   s[j] = scale * sum over channels c, ascending, of q[c] k[j, c]        (fused)
//! weight  p[j] = exp(s[j] - max s)
//! out     (sum over positions j, ascending, of p[j] v[j]) / sum p               (fused)
//! ```
//!
//! No sum depends on where pages, tiles or chunks begin: only on the row's own first and last position.

use std::sync::Arc;

use bytemuck::Pod;
use half::f16;

use super::arena::{Region, grow};
use super::buffers::Rows;
use super::isa::{LANES, Vector};
use super::kernels::Kernels;
use super::linear::Output;
use super::routing::RoutedVector;
use super::threads::{Disjoint, Pool};
use super::tile::Element;
use crate::backend::{AttentionSpec, KvDType, KvShape, Rope, StepRows};
use crate::error::{Error, ErrorCode, Result};

/// Rows below which keys and values are stored without waking other threads.
const PARALLEL_ROWS: usize = 8;
/// Channels are summed in this many vectors at once.
const CHANNEL_VECTORS: usize = 4;

/// Where things stand in a page.
#[derive(Clone, Copy)]
struct Layout {
    shape: KvShape,
    /// Elements of a head's keys in a page: whole tiles.
    key_head: usize,
    /// Elements from one position's values to the next: whole vectors.
    value_stride: usize,
}

/// Pages of keys and values.
pub(super) struct Cache {
    layout: Layout,
    region: Region,
}

impl Cache {
    /// Pages of that shape, untouched.
    ///
    /// # Errors
    /// `memory_exhausted`.
    pub(super) fn new(shape: KvShape) -> Result<Self> {
        let exhausted = || Error::new(ErrorCode::MemoryExhausted, "the KV cache exceeds the address space");
        let round = |n: usize| n.checked_next_multiple_of(LANES).ok_or_else(exhausted);
        let value_stride = round(shape.head_dim)?;
        let key_head = round(shape.page_tokens)?.checked_mul(shape.head_dim).ok_or_else(exhausted)?;
        let value_head = shape.page_tokens.checked_mul(value_stride).ok_or_else(exhausted)?;
        let bytes = [shape.kv_heads, shape.layers, shape.pages, shape.dtype.bytes()]
            .into_iter()
            .try_fold(key_head.checked_add(value_head).ok_or_else(exhausted)?, usize::checked_mul)
            .ok_or_else(exhausted)?;
        Ok(Self { layout: Layout { shape, key_head, value_stride }, region: Region::new(bytes)? })
    }

    /// Bytes it occupies once every page was used.
    pub(super) fn bytes(&self) -> usize {
        self.region.len()
    }
}

impl Layout {
    /// Elements of a head's values in a page.
    fn value_head(&self) -> usize {
        self.shape.page_tokens * self.value_stride
    }

    /// Elements of a page.
    fn page_elements(&self) -> usize {
        self.shape.layers * self.shape.kv_heads * (self.key_head + self.value_head())
    }

    /// First element of a head's keys in page 0.
    fn keys_of(&self, layer: usize, head: usize) -> usize {
        layer * self.shape.kv_heads * (self.key_head + self.value_head()) + head * self.key_head
    }

    /// First element of a head's values in page 0.
    fn values_of(&self, layer: usize, head: usize) -> usize {
        self.keys_of(layer, self.shape.kv_heads) + head * self.value_head()
    }
}

/// An element as the cache stores it.
trait Stored: Pod + Send {
    fn of(value: f32) -> Self;
}

impl Stored for u16 {
    fn of(value: f32) -> Self {
        f16::from_f32(value).to_bits()
    }
}

impl Stored for f32 {
    fn of(value: f32) -> Self {
        value
    }
}

/// Cosines and sines of a step's rows under one rotation; computed by the first layer, used by all.
struct Turns {
    rope: Arc<Rope>,
    positions: Vec<u32>,
    /// `[row][cos, sin][pair]`
    values: Vec<f32>,
}

/// What attention keeps from step to step.
#[derive(Default)]
pub(super) struct Scratch {
    turns: Vec<Turns>,
    threads: Vec<f32>,
}

impl Scratch {
    /// Index of the rotation's values for these positions.
    fn turn(&mut self, rope: &Arc<Rope>, positions: &[u32]) -> usize {
        let known = self.turns.iter().position(|t| Arc::ptr_eq(&t.rope, rope));
        let index = known.unwrap_or_else(|| {
            self.turns.push(Turns { rope: Arc::clone(rope), positions: Vec::new(), values: Vec::new() });
            self.turns.len() - 1
        });
        let turns = &mut self.turns[index];
        if turns.positions != positions {
            turns.positions.clear();
            turns.positions.extend_from_slice(positions);
            turns.values.clear();
            for &position in positions {
                let angles = rope.inv_freq.iter().map(|&frequency| position as f32 * frequency);
                turns.values.extend(angles.clone().map(|angle| angle.cos() * rope.factor));
                turns.values.extend(angles.map(|angle| angle.sin() * rope.factor));
            }
        }
        index
    }
}

/// The norms over heads, if the model has them.
#[derive(Clone, Copy)]
pub(super) struct HeadNorms<'a> {
    pub(super) q: Option<RoutedVector<'a>>,
    pub(super) k: Option<RoutedVector<'a>>,
}

/// Where a head's norm and rotation come from.
struct Prepare<'a> {
    kernels: &'a Kernels,
    norms: HeadNorms<'a>,
    eps: f32,
    turns: &'a [f32],
    pairs: usize,
}

impl Prepare<'_> {
    /// Norms and turns one head of one row.
    fn head(&self, row: usize, norm: Option<RoutedVector<'_>>, x: &[f32], out: &mut [f32]) {
        match norm {
            // SAFETY: the kernels exist, so their instruction set does.
            Some(weight) => unsafe { (self.kernels.norm)(weight.of_row(row), self.eps, x, out) },
            None => out.copy_from_slice(x),
        }
        let turns = &self.turns[row * 2 * self.pairs..(row + 1) * 2 * self.pairs];
        let (cos, sin) = turns.split_at(self.pairs);
        let (first, rest) = out.split_at_mut(self.pairs);
        for (((a, b), cos), sin) in first.iter_mut().zip(rest).zip(cos).zip(sin) {
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
}

/// `out[i] = softmax(scale q k^T) v` over what row i sees; keys and values of all rows are stored first.
///
/// # Errors
/// `internal` if rows, spec and cache don't fit together; `memory_exhausted`.
#[allow(clippy::too_many_arguments)]
pub(super) fn run(
    pool: &mut Pool,
    kernels: &Kernels,
    cache: &mut Cache,
    spec: &AttentionSpec,
    norms: HeadNorms<'_>,
    rows: &StepRows,
    qkv: Rows<'_>,
    output: Output<'_>,
    scratch: &mut Scratch,
) -> Result<()> {
    let layout = cache.layout;
    spec.check(&layout.shape, rows)?;
    let (dim, group) = (spec.head_dim, spec.heads / spec.kv_heads);
    let last = rows.positions.iter().max().map_or(0, |&position| position as usize);
    // Scores begin at a page, and the last tile may reach beyond the last position.
    let seen = spec.window.map_or(last + 1, |window| window.min(last + 1));
    let scores = (seen + layout.shape.page_tokens + 2 * LANES).next_multiple_of(LANES);
    let of_thread = (dim + group * dim + group * scores).next_multiple_of(LANES);
    grow(&mut scratch.threads, of_thread * pool.threads())?;
    let turns = scratch.turn(&spec.rope, &rows.positions);
    let prepare = Prepare {
        kernels,
        norms,
        eps: spec.norm_eps,
        turns: &scratch.turns[turns].values,
        pairs: spec.rope.inv_freq.len(),
    };
    let threads = Disjoint::new(&mut scratch.threads);

    match layout.shape.dtype {
        KvDType::F16 => append::<u16>(pool, cache, spec, rows, qkv, &prepare, &threads, of_thread)?,
        KvDType::F32 => append::<f32>(pool, cache, spec, rows, qkv, &prepare, &threads, of_thread)?,
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
        let view = View {
            cache,
            keys: layout.keys_of(spec.layer, kv_head),
            values: layout.values_of(spec.layer, kv_head),
            table: &rows.block_tables[rows.sequences[row] as usize],
            first: spec.window.map_or(0, |window| (position + 1).saturating_sub(window)),
            last: position,
            scale: spec.scale,
        };
        // SAFETY: each row and head has a part of its own.
        let out = unsafe { out.part(row * out_stride + heads.start..row * out_stride + heads.end) };
        let kernel = match layout.shape.dtype {
            KvDType::F16 => kernels.attend_f16,
            KvDType::F32 => kernels.attend_f32,
        };
        // SAFETY: the kernels exist, so their instruction set does; `AttentionSpec::check` found all pages within the cache and the
        // row's position within its table; the scores have room for all positions seen, from a page's start on.
        unsafe { kernel(&view, q, scores, out) };
    })
}

/// Stores keys and values of all rows. A task owns a head, so that no two write the same place whatever the rows are.
#[allow(clippy::too_many_arguments)]
fn append<T: Stored>(
    pool: &mut Pool,
    cache: &mut Cache,
    spec: &AttentionSpec,
    rows: &StepRows,
    qkv: Rows<'_>,
    prepare: &Prepare<'_>,
    threads: &Disjoint<'_, f32>,
    of_thread: usize,
) -> Result<()> {
    let layout = cache.layout;
    let (dim, page_tokens) = (spec.head_dim, layout.shape.page_tokens);
    let stored = Disjoint::new(cache.region.values_mut::<T>());
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
            for (channel, &value) in key.iter().enumerate() {
                tile[channel * LANES + at % LANES] = T::of(value);
            }
            let start = page * layout.page_elements() + layout.values_of(spec.layer, head);
            // SAFETY: as above.
            let values = unsafe { stored.part(start..start + layout.value_head()) };
            let place = &mut values[at * layout.value_stride..][..dim];
            for (place, &value) in place.iter_mut().zip(&qkv.row(row)[v..v + dim]) {
                *place = T::of(value);
            }
        }
    };
    if rows.len() < PARALLEL_ROWS {
        pool.run(1, |_, thread| (0..spec.kv_heads).for_each(|head| store_head(head, thread)))
    } else {
        pool.run(spec.kv_heads, store_head)
    }
}

/// What one row sees of one key/value head.
pub(super) struct View<'a> {
    cache: &'a Cache,
    /// First element of the head's keys, and of its values, in page 0.
    keys: usize,
    values: usize,
    /// Pages of the sequence.
    table: &'a [u32],
    /// The positions seen, both included.
    first: usize,
    last: usize,
    scale: f32,
}

/// Attention of the query heads `q [heads][head_dim]`, normed and turned, over one view; `scores` is room for each
/// head.
pub(super) type AttendFn = unsafe fn(view: &View<'_>, q: &[f32], scores: &mut [f32], out: &mut [f32]);

/// See [`AttendFn`].
///
/// # Safety
/// The instruction set of `V` must be there; the view's positions and pages must lie within table and cache, whose
/// elements are E's; `scores` must have room, for each head, from the first position's page on to 16 beyond the last.
#[inline(always)]
pub(super) unsafe fn attend<V: Vector, E: Element>(view: &View<'_>, q: &[f32], scores: &mut [f32], out: &mut [f32]) {
    let dim = view.cache.layout.shape.head_dim;
    let heads = q.len() / dim;
    let stride = scores.len() / heads / LANES * LANES;
    let start = view.first - view.first % view.cache.layout.shape.page_tokens;
    assert!(view.last - start + LANES < stride + 1 && out.len() == q.len());
    // SAFETY: the caller's promises.
    unsafe {
        let mut head = 0;
        while head + 4 <= heads {
            score::<V, E, 4>(view, &q[head * dim..(head + 4) * dim], &mut scores[head * stride..], stride);
            head += 4;
        }
        while head < heads {
            score::<V, E, 1>(view, &q[head * dim..(head + 1) * dim], &mut scores[head * stride..], stride);
            head += 1;
        }
        for (head, out) in out.chunks_exact_mut(dim).enumerate() {
            let scores = &mut scores[head * stride..][view.first - start..=view.last - start];
            let factor = V::splat(1.0 / soften::<V>(scores));
            let mut channel = 0;
            while channel + CHANNEL_VECTORS * LANES <= dim {
                mix::<V, E, CHANNEL_VECTORS>(view, scores, factor, channel, out);
                channel += CHANNEL_VECTORS * LANES;
            }
            while channel < dim {
                mix::<V, E, 1>(view, scores, factor, channel, out);
                channel += LANES;
            }
        }
    }
}

/// Scores of H heads against every key seen; lanes are positions.
///
/// # Safety
/// As [`attend`].
#[inline(always)]
unsafe fn score<V: Vector, E: Element, const H: usize>(view: &View<'_>, q: &[f32], scores: &mut [f32], stride: usize) {
    let shape = &view.cache.layout.shape;
    let (tokens, dim) = (shape.page_tokens, shape.head_dim);
    let start = view.first - view.first % tokens;
    // SAFETY: as `attend`: pages lie within the cache, tiles within the page, scores have room.
    unsafe {
        let base = view.cache.region.values::<u8>().as_ptr();
        let scale = V::splat(view.scale);
        for page in view.first / tokens..=view.last / tokens {
            let first = view.first.saturating_sub(page * tokens) / LANES;
            let last = (view.last - page * tokens).min(tokens - 1) / LANES;
            for tile in first..=last {
                let element = *view.table.get_unchecked(page) as usize * view.cache.layout.page_elements() + view.keys;
                let mut key = base.add((element + tile * LANES * dim) * E::BYTES);
                let mut sums = [V::splat(0.0); H];
                for channel in 0..dim {
                    let k = E::load::<V>(key);
                    for (h, sum) in sums.iter_mut().enumerate() {
                        *sum = k.mul_add(V::splat(*q.get_unchecked(h * dim + channel)), *sum);
                    }
                    key = key.add(LANES * E::BYTES);
                }
                // Lanes beyond the page are overwritten by the next page's, those beyond the last position are not
                // read.
                let at = page * tokens + tile * LANES - start;
                for (h, sum) in sums.iter().enumerate() {
                    sum.mul(scale).store(scores[h * stride + at..h * stride + at + LANES].as_mut_ptr());
                }
            }
        }
    }
}

/// Replaces scores by `exp(score - max)` and returns their sum.
///
/// # Safety
/// The instruction set of `V` must be there.
#[inline(always)]
unsafe fn soften<V: Vector>(scores: &mut [f32]) -> f32 {
    // SAFETY: the caller's promise; loads and stores stay within their chunk.
    unsafe {
        let mut peaks = V::splat(f32::NEG_INFINITY);
        for chunk in scores.chunks(LANES) {
            peaks = peaks.max(V::load_partial(chunk.as_ptr(), chunk.len(), f32::NEG_INFINITY));
        }
        let peak = V::splat(peaks.to_array().into_iter().fold(f32::NEG_INFINITY, f32::max));
        let mut sums = V::splat(0.0);
        for chunk in scores.chunks_mut(LANES) {
            let weight = V::load_partial(chunk.as_ptr(), chunk.len(), 0.0).sub(peak).exp();
            weight.store_partial(chunk.as_mut_ptr(), chunk.len());
            sums = sums.add(V::load_partial(chunk.as_ptr(), chunk.len(), 0.0));
        }
        sums.sum()
    }
}

/// The weighted sum of values, of C vectors of channels from `channel` on.
///
/// # Safety
/// As [`attend`]; the vectors must begin within the head.
#[inline(always)]
unsafe fn mix<V: Vector, E: Element, const C: usize>(
    view: &View<'_>,
    weights: &[f32],
    factor: V,
    channel: usize,
    out: &mut [f32],
) {
    let tokens = view.cache.layout.shape.page_tokens;
    let stride = view.cache.layout.value_stride;
    // SAFETY: as `attend`; a position's values are padded to whole vectors.
    unsafe {
        let base = view.cache.region.values::<u8>().as_ptr();
        let mut sums = [V::splat(0.0); C];
        let mut weights = weights.iter();
        for page in view.first / tokens..=view.last / tokens {
            let element = *view.table.get_unchecked(page) as usize * view.cache.layout.page_elements() + view.values;
            let page_start = page * tokens;
            for at in view.first.saturating_sub(page_start)..=(view.last - page_start).min(tokens - 1) {
                let value = base.add((element + at * stride + channel) * E::BYTES);
                let weight = V::splat(*weights.next().unwrap_unchecked());
                for (c, sum) in sums.iter_mut().enumerate() {
                    *sum = E::load::<V>(value.add(c * LANES * E::BYTES)).mul_add(weight, *sum);
                }
            }
        }
        for (c, sum) in sums.iter().enumerate() {
            let out = &mut out[channel + c * LANES..];
            sum.mul(factor).store_partial(out.as_mut_ptr(), out.len().min(LANES));
        }
    }
}
