//! Attention over the pages of a KV cache, as `runtime/kv_cache.rs` lays them out.
//!
//! ```text
//! score   s[j] = scale * sum over channels c, ascending, of q[c] k[j, c]        (fused)
//! weight  p[j] = exp(s[j] - max s)
//! out     (sum over positions j, ascending, of p[j] v[j]) / sum p               (fused)
//! ```
//!
//! No sum depends on where pages, tiles or chunks begin: only on the row's own first and last position.

use super::vector::{Element, LANES, Vector};

/// Channels are summed in this many vectors at once.
const CHANNEL_VECTORS: usize = 4;

/// What one row attends to of one key/value head.
pub(crate) struct View<'a> {
    /// The whole cache.
    pub(crate) cache: &'a [u8],
    /// Elements of a page.
    pub(crate) page_elements: usize,
    /// Positions of a page.
    pub(crate) page_tokens: usize,
    /// Width of a head.
    pub(crate) head_dim: usize,
    /// Elements from one position's values to the next: whole vectors.
    pub(crate) value_stride: usize,
    /// First element of the head's keys in page 0.
    pub(crate) keys: usize,
    /// First element of the head's values in page 0.
    pub(crate) values: usize,
    /// Pages of the sequence.
    pub(crate) block_table: &'a [u32],
    /// First position the row attends to.
    pub(crate) first: usize,
    /// Last position the row attends to, its own.
    pub(crate) last: usize,
    /// Factor on the scores.
    pub(crate) scale: f32,
}

/// Attention of the query heads `q [heads][head_dim]`, normed and rotated, over one view; `scores` is scratch for each
/// head.
pub(crate) type AttendFn = unsafe fn(view: &View<'_>, q: &[f32], scores: &mut [f32], out: &mut [f32]);

/// See [`AttendFn`].
///
/// # Safety
/// The instruction set of `V` must be available; the view's positions and pages must lie within table and cache, whose
/// elements are E's; `scores` must have room, for each head, from the first position's page on to 16 beyond the last.
#[inline(always)]
pub(crate) unsafe fn attend<V: Vector, E: Element>(view: &View<'_>, q: &[f32], scores: &mut [f32], out: &mut [f32]) {
    let dim = view.head_dim;
    let heads = q.len() / dim;
    let stride = scores.len() / heads / LANES * LANES;
    let start = view.first - view.first % view.page_tokens;
    assert!(view.last - start + LANES < stride + 1 && out.len() == q.len());
    // SAFETY: the caller's promises.
    unsafe {
        let mut head = 0;
        while head + 4 <= heads {
            score_keys::<V, E, 4>(view, &q[head * dim..(head + 4) * dim], &mut scores[head * stride..], stride);
            head += 4;
        }
        while head < heads {
            score_keys::<V, E, 1>(view, &q[head * dim..(head + 1) * dim], &mut scores[head * stride..], stride);
            head += 1;
        }
        for (head, out) in out.chunks_exact_mut(dim).enumerate() {
            let scores = &mut scores[head * stride..][view.first - start..=view.last - start];
            let factor = V::splat(1.0 / exponentiate::<V>(scores));
            let mut channel = 0;
            while channel + CHANNEL_VECTORS * LANES <= dim {
                mix_values::<V, E, CHANNEL_VECTORS>(view, scores, factor, channel, out);
                channel += CHANNEL_VECTORS * LANES;
            }
            while channel < dim {
                mix_values::<V, E, 1>(view, scores, factor, channel, out);
                channel += LANES;
            }
        }
    }
}

/// Scores of H heads against every key of the view; lanes are positions.
///
/// # Safety
/// As [`attend`].
#[inline(always)]
unsafe fn score_keys<V: Vector, E: Element, const H: usize>(
    view: &View<'_>,
    q: &[f32],
    scores: &mut [f32],
    stride: usize,
) {
    let (tokens, dim) = (view.page_tokens, view.head_dim);
    let start = view.first - view.first % tokens;
    // SAFETY: as `attend`: pages lie within the cache, tiles within the page, scores have room.
    unsafe {
        let base = view.cache.as_ptr();
        let scale = V::splat(view.scale);
        for page in view.first / tokens..=view.last / tokens {
            let first = view.first.saturating_sub(page * tokens) / LANES;
            let last = (view.last - page * tokens).min(tokens - 1) / LANES;
            for tile in first..=last {
                let element = *view.block_table.get_unchecked(page) as usize * view.page_elements + view.keys;
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

/// Replaces scores by `exp(score - max)`, the softmax before it is normalized, and returns their sum.
///
/// # Safety
/// The instruction set of `V` must be available.
#[inline(always)]
unsafe fn exponentiate<V: Vector>(scores: &mut [f32]) -> f32 {
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
unsafe fn mix_values<V: Vector, E: Element, const C: usize>(
    view: &View<'_>,
    weights: &[f32],
    factor: V,
    channel: usize,
    out: &mut [f32],
) {
    let tokens = view.page_tokens;
    let stride = view.value_stride;
    // SAFETY: as `attend`; a position's values are padded to whole vectors.
    unsafe {
        let base = view.cache.as_ptr();
        let mut sums = [V::splat(0.0); C];
        let mut weights = weights.iter();
        for page in view.first / tokens..=view.last / tokens {
            let element = *view.block_table.get_unchecked(page) as usize * view.page_elements + view.values;
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
