//! Attention of query vectors over one segment of a sequence's positions, in the pages of a KV cache as
//! `runtime/kv_cache.rs` lays them out.
//!
//! ```text
//! score   s[j] = scale * sum over channels c, ascending, of q[c] k[j, c]             (fused), then cap * tanh(s[j] / cap)
//! peak    max s;  weight  p[j] = exp(s[j] - peak)
//! part    peak, sum of p[j], sum over positions j, ascending, of p[j] v[j]           (fused)
//! ```
//!
//! A segment is [`SEGMENT`] positions from a multiple of it on. A query's parts of all segments that it sees are merged in
//! their order (`ops/attention.rs`), so that no sum depends on where pages, tiles or chunks begin, nor on who computes which
//! segment: only on the query's own first and last position.
//!
//! Query vectors are the heads of a row that share a key/value head, and those of further rows of the sequence. Keys and
//! values are read once for several of them, whose sums stay in registers.

#![allow(unsafe_code, reason = "vector loads through pointers, inside loops that must not check bounds")]

use super::kv_format::{KvFormat, View};
use super::rowwise::bound;
use super::tile::prefetch_line;
use super::vector::{LANES, LINE, Vector};

/// Positions of a segment; its keys and values of one head stay in a core's own caches.
pub(crate) const SEGMENT: usize = 256;

/// Query vectors whose scores are computed together, at most.
const QUERIES: usize = 8;

/// The positions of a segment that a query sees, both included.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    /// The first.
    pub(crate) first: usize,
    /// The last.
    pub(crate) last: usize,
}

/// Where a query's part has its peak, behind the weighted sum of values.
pub(crate) const PEAK: usize = 0;
/// Where a query's part has its sum of weights, behind the weighted sum of values.
pub(crate) const SUM: usize = 1;

/// Values of a query's part of one segment: the weighted sum of values, in whole vectors, then peak and sum of weights.
pub(crate) const fn part_len(value_stride: usize) -> usize {
    value_stride + LANES
}

/// Values of scratch that [`attend`](super::dispatch::Kernels::attend) needs.
pub(crate) const fn scores_len(page_tokens: usize) -> usize {
    QUERIES * score_stride(page_tokens)
}

/// Values from the scores of one query to the next: scores begin with a page, and the last tile may reach beyond the last
/// position.
const fn score_stride(page_tokens: usize) -> usize {
    (SEGMENT + page_tokens + LANES).next_multiple_of(LANES)
}

/// The parts `[queries][part_len]` of query vectors `q [queries][head_dim]`, normed and rotated, for what each sees of one
/// segment; `scores` is scratch.
pub(crate) type AttendFn = unsafe fn(view: &View<'_>, q: &[f32], seen: &[Seen], scores: &mut [f32], parts: &mut [f32]);

/// See [`AttendFn`].
///
/// # Safety
/// The instruction set of `V` must be available; the positions must lie within the block table, and its pages within the cache,
/// whose format is F.
///
/// # Panics
/// If a length does not fit, or a query sees no position or those of several segments.
#[inline(always)]
pub(crate) unsafe fn attend<V: Vector, F: KvFormat>(
    view: &View<'_>,
    q: &[f32],
    seen: &[Seen],
    scores: &mut [f32],
    parts: &mut [f32],
) {
    let (dim, part) = (view.head_dim, part_len(view.value_stride));
    assert!(q.len() == seen.len() * dim && parts.len() == seen.len() * part);
    assert!(scores.len() >= scores_len(view.page_tokens) && view.value_stride >= dim);
    let segment = seen.first().map_or(0, |seen| seen.first / SEGMENT);
    assert!(seen.iter().all(|seen| seen.first <= seen.last));
    assert!(seen.iter().all(|seen| seen.first / SEGMENT == segment && seen.last / SEGMENT == segment));
    let mut query = 0;
    while query < seen.len() {
        let count = match seen.len() - query {
            QUERIES.. if V::SUMS >= 2 * QUERIES => QUERIES,
            4.. => 4,
            2.. => 2,
            _ => 1,
        };
        let queries = query..query + count;
        let q = &q[queries.start * dim..queries.end * dim];
        let parts = &mut parts[queries.start * part..queries.end * part];
        // SAFETY: the caller's promise.
        unsafe {
            match count {
                QUERIES => attend_some::<V, F, QUERIES>(view, q, &seen[queries], scores, parts),
                4 => attend_some::<V, F, 4>(view, q, &seen[queries], scores, parts),
                2 => attend_some::<V, F, 2>(view, q, &seen[queries], scores, parts),
                _ => attend_some::<V, F, 1>(view, q, &seen[queries], scores, parts),
            }
        }
        query += count;
    }
}

/// As [`attend`], of Q queries, whose keys are read once.
///
/// # Safety
/// As [`attend`], which has checked the lengths.
#[inline(always)]
unsafe fn attend_some<V: Vector, F: KvFormat, const Q: usize>(
    view: &View<'_>,
    q: &[f32],
    seen: &[Seen],
    scores: &mut [f32],
    parts: &mut [f32],
) {
    let (stride, part) = (score_stride(view.page_tokens), part_len(view.value_stride));
    let first = seen.iter().map(|seen| seen.first).min().unwrap_or(0);
    let last = seen.iter().map(|seen| seen.last).max().unwrap_or(0);
    // Position of the first score.
    let start = first - first % view.page_tokens;
    // SAFETY: as `attend`.
    unsafe {
        score_keys::<V, F, Q>(view, q, Seen { first, last }, scores, stride);
        for ((seen, part), scores) in seen.iter().zip(parts.chunks_exact_mut(part)).zip(scores.chunks_exact_mut(stride))
        {
            let (sums, rest) = part.split_at_mut(view.value_stride);
            sums.fill(0.0);
            let scores = &mut scores[seen.first - start..=seen.last - start];
            if view.score_cap.is_some() {
                bound::<V>(1.0, view.score_cap, scores);
            }
            (rest[PEAK], rest[SUM]) = exponentiate::<V>(scores);
        }
        let weights = Weights { values: scores.as_ptr(), stride, start };
        let mut query = 0;
        while query < Q {
            let count = (Q - query).min(4);
            let (seen, parts) = (&seen[query..query + count], &mut parts[query * part..(query + count) * part]);
            let weights = weights.of(query);
            match count {
                4 => mix_some::<V, F, 4>(view, seen, weights, parts),
                2 => mix_some::<V, F, 2>(view, seen, weights, parts),
                _ => mix_some::<V, F, 1>(view, seen, weights, parts),
            }
            query += count;
        }
    }
}

/// Scores of Q queries against every key of the positions, from the first page on.
///
/// # Safety
/// As [`attend`].
#[inline(always)]
unsafe fn score_keys<V: Vector, F: KvFormat, const Q: usize>(
    view: &View<'_>,
    q: &[f32],
    seen: Seen,
    scores: &mut [f32],
    stride: usize,
) {
    let tokens = view.page_tokens;
    let start = seen.first - seen.first % tokens;
    // SAFETY: as `attend`: pages lie within the cache, tiles within the page, and scores hold a segment from a page on and
    // one more tile.
    unsafe {
        for page in seen.first / tokens..=seen.last / tokens {
            let keys = view.keys_of_page(page);
            if page < seen.last / tokens {
                prefetch(view.keys_of_page(page + 1), view.key_head);
            }
            prefetch(view.values_of_page(page), FIRST_LINES * LINE);
            let mut tile = seen.first.saturating_sub(page * tokens) / LANES;
            let end = (seen.last - page * tokens).min(tokens - 1) / LANES + 1;
            // Lanes beyond the page are overwritten by the next page's, those beyond the last position are not read.
            while tile < end {
                let at = page * tokens + tile * LANES - start;
                let scores = scores.as_mut_ptr().add(at);
                if tile + 2 <= end && 2 * Q <= V::SUMS {
                    score_tiles::<V, F, Q, 2>(view, q, keys, tile, scores, stride);
                    tile += 2;
                } else {
                    score_tiles::<V, F, Q, 1>(view, q, keys, tile, scores, stride);
                    tile += 1;
                }
            }
        }
    }
}

/// Lines of a page's values that are requested while its keys are read; the hardware goes on from there.
const FIRST_LINES: usize = 4;

/// Requests cache lines ahead of their use.
#[inline(always)]
fn prefetch(from: *const u8, bytes: usize) {
    for line in 0..bytes.div_ceil(LINE) {
        prefetch_line(from.wrapping_add(line * LINE));
    }
}

/// Scores of Q queries against T tiles of 16 keys, from that tile of a page's `keys` on.
///
/// # Safety
/// As [`attend`]; `keys` must have the tiles, `scores` be valid for theirs, `stride` values apart for each query.
#[inline(always)]
unsafe fn score_tiles<V: Vector, F: KvFormat, const Q: usize, const T: usize>(
    view: &View<'_>,
    q: &[f32],
    keys: *const u8,
    tile: usize,
    scores: *mut f32,
    stride: usize,
) {
    let dim = view.head_dim;
    // SAFETY: the caller's promises; a head has whole loads of channels.
    unsafe {
        let mut sums = [[V::splat(0.0); T]; Q];
        let mut first = 0;
        while first < dim {
            let mut loaded = [F::load_keys::<V>(view, keys, tile, first); T];
            for (t, loaded) in loaded.iter_mut().enumerate().skip(1) {
                *loaded = F::load_keys(view, keys, tile + t, first);
            }
            for index in 0..F::KEY_CHANNELS {
                let mut keys = [V::splat(0.0); T];
                for (keys, &loaded) in keys.iter_mut().zip(&loaded) {
                    *keys = F::channel_of(loaded, index);
                }
                for (i, sums) in sums.iter_mut().enumerate() {
                    let q = V::splat(*q.get_unchecked(i * dim + first + index));
                    for (sum, keys) in sums.iter_mut().zip(keys) {
                        *sum = keys.mul_add(q, *sum);
                    }
                }
            }
            first += F::KEY_CHANNELS;
        }
        let scale = V::splat(view.scale);
        for (i, sums) in sums.iter().enumerate() {
            for (t, sum) in sums.iter().enumerate() {
                sum.mul(scale).store(scores.add(i * stride + t * LANES));
            }
        }
    }
}

/// Replaces scores by `exp(score - peak)`, the softmax before it is normalized, and returns their peak and sum.
///
/// # Safety
/// The instruction set of `V` must be available.
#[inline(always)]
unsafe fn exponentiate<V: Vector>(scores: &mut [f32]) -> (f32, f32) {
    // SAFETY: the caller's promise; loads and stores stay within their chunk.
    unsafe {
        let mut peaks = V::splat(f32::NEG_INFINITY);
        for chunk in scores.chunks(LANES) {
            peaks = peaks.max(V::load_partial(chunk.as_ptr(), chunk.len(), f32::NEG_INFINITY));
        }
        let peak = peaks.to_array().into_iter().fold(f32::NEG_INFINITY, f32::max);
        let mut sums = V::splat(0.0);
        for chunk in scores.chunks_mut(LANES) {
            let weight = V::load_partial(chunk.as_ptr(), chunk.len(), 0.0).sub(V::splat(peak)).exp();
            weight.store_partial(chunk.as_mut_ptr(), chunk.len());
            sums = sums.add(V::load_partial(chunk.as_ptr(), chunk.len(), 0.0));
        }
        (peak, sums.sum())
    }
}

/// The weights of some queries.
#[derive(Clone, Copy)]
struct Weights {
    values: *const f32,
    /// Values from one query to the next.
    stride: usize,
    /// Position of the first.
    start: usize,
}

impl Weights {
    /// Those of the queries from the given one on.
    #[inline(always)]
    fn of(self, query: usize) -> Self {
        Self { values: self.values.wrapping_add(query * self.stride), ..self }
    }
}

/// The weighted sums of values of M queries: together where all of them see a position, else one by one.
///
/// # Safety
/// As [`attend`]; `weights` are those of the queries.
#[inline(always)]
unsafe fn mix_some<V: Vector, F: KvFormat, const M: usize>(
    view: &View<'_>,
    seen: &[Seen],
    weights: Weights,
    parts: &mut [f32],
) {
    let part = part_len(view.value_stride);
    let first = seen.iter().map(|seen| seen.first).max().unwrap_or(0);
    let end = seen.iter().map(|seen| seen.last).min().unwrap_or(0) + 1;
    // SAFETY: as `attend`; each query adds its own positions, in ascending order.
    unsafe {
        let alone = |query: usize, first: usize, end: usize, parts: &mut [f32]| {
            if first < end {
                let own = &mut parts[query * part..(query + 1) * part];
                mix_range::<V, F, 1>(view, first, end, weights.of(query), own);
            }
        };
        if M == 1 || first >= end {
            for (query, seen) in seen.iter().enumerate() {
                alone(query, seen.first, seen.last + 1, parts);
            }
            return;
        }
        for (query, seen) in seen.iter().enumerate() {
            alone(query, seen.first, first, parts);
        }
        mix_range::<V, F, M>(view, first, end, weights, parts);
        for (query, seen) in seen.iter().enumerate() {
            alone(query, end, seen.last + 1, parts);
        }
    }
}

/// Adds the weighted values of positions to the sums of M queries.
///
/// # Safety
/// As [`attend`]; all queries must see the positions.
#[inline(always)]
unsafe fn mix_range<V: Vector, F: KvFormat, const M: usize>(
    view: &View<'_>,
    first: usize,
    end: usize,
    weights: Weights,
    parts: &mut [f32],
) {
    let mut channel = 0;
    // SAFETY: as `attend`; a position's values are padded to whole vectors, as the sums are.
    unsafe {
        while channel + 4 * LANES <= view.value_stride && 4 * M <= V::SUMS {
            mix_values::<V, F, M, 4>(view, first, end, weights, channel, parts);
            channel += 4 * LANES;
        }
        while channel < view.value_stride {
            mix_values::<V, F, M, 1>(view, first, end, weights, channel, parts);
            channel += LANES;
        }
    }
}

/// As [`mix_range`], of C vectors of channels from `channel` on.
///
/// # Safety
/// As [`mix_range`]; the channels must lie within the values.
#[inline(always)]
unsafe fn mix_values<V: Vector, F: KvFormat, const M: usize, const C: usize>(
    view: &View<'_>,
    first: usize,
    end: usize,
    weights: Weights,
    channel: usize,
    parts: &mut [f32],
) {
    let (tokens, part) = (view.page_tokens, part_len(view.value_stride));
    // SAFETY: as `mix_range`.
    unsafe {
        let parts = parts.as_mut_ptr().add(channel);
        let mut sums = [[V::splat(0.0); C]; M];
        for (i, sums) in sums.iter_mut().enumerate() {
            for (c, sum) in sums.iter_mut().enumerate() {
                *sum = V::load(parts.add(i * part + c * LANES));
            }
        }
        let mut position = first;
        while position < end {
            let page = position / tokens;
            let page_end = end.min((page + 1) * tokens);
            let page_values = view.values_of_page(page);
            if channel == 0 && page_end < end {
                prefetch(view.values_of_page(page + 1), view.value_head);
            }
            let mut weight = weights.values.add(position - weights.start);
            for position in position - page * tokens..page_end - page * tokens {
                let mut values = [V::splat(0.0); C];
                for (c, values) in values.iter_mut().enumerate() {
                    *values = F::load_value(view, page_values, position, channel + c * LANES);
                }
                for (i, sums) in sums.iter_mut().enumerate() {
                    let weight = V::splat(*weight.add(i * weights.stride));
                    for (sum, values) in sums.iter_mut().zip(values) {
                        *sum = values.mul_add(weight, *sum);
                    }
                }
                weight = weight.add(1);
            }
            position = page_end;
        }
        for (i, sums) in sums.iter().enumerate() {
            for (c, sum) in sums.iter().enumerate() {
                sum.store(parts.add(i * part + c * LANES));
            }
        }
    }
}
