//! Attention in plain math, over keys and values in the order of their positions within a page.

use std::collections::BTreeSet;

use half::f16;

use super::activation::capped;
use super::matrix::{dot, unknown};
use super::norm::norm_heads;
use crate::backend::kv_quant::{dequantize, group_width, quantize, rotate_to_read, rotate_to_store};
use crate::backend::{AttentionSpec, HeadNorm, KvDType, KvShape, Rope, RopeLayout, StepRows};
use crate::error::{Error, ErrorCode, Result};

/// Keys and values, each `[layer][page][position][kv head][channel]`.
pub(super) struct Cache {
    pub(super) shape: KvShape,
    pub(super) keys: Vec<f32>,
    pub(super) values: Vec<f32>,
}

impl Cache {
    /// Zeros of that shape.
    ///
    /// # Errors
    /// `memory_exhausted`; as [`KvShape::check`].
    pub(super) fn new(shape: KvShape) -> Result<Self> {
        let exhausted = || Error::new(ErrorCode::MemoryExhausted, "cannot allocate the KV cache");
        shape.check()?;
        // What keys, or values, take in f32.
        let elements = KvShape { dtype: KvDType::F32, ..shape }.bytes().ok_or_else(exhausted)? / size_of::<f32>() / 2;
        let zeros = || {
            let mut values = Vec::new();
            values.try_reserve_exact(elements).map_err(|_| exhausted())?;
            values.resize(elements, 0.0);
            Ok::<_, Error>(values)
        };
        Ok(Self { shape, keys: zeros()?, values: zeros()? })
    }

    /// Where a head's channels begin.
    pub(super) fn at(&self, layer: usize, table: &[u32], position: usize, head: usize) -> usize {
        let s = &self.shape;
        let page = table[position / s.page_tokens] as usize;
        (((layer * s.pages + page) * s.page_tokens + position % s.page_tokens) * s.kv_heads + head) * s.head_dim
    }

    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.keys) + size_of_val(&*self.values)
    }

    /// [`Compute::attend`] on rows of q,k,v, each with norms of q and k of its own; rows that overflow are added to `overflows`.
    ///
    /// # Errors
    /// `internal` if they don't lie within the cache.
    ///
    /// [`Compute::attend`]: crate::backend::Compute::attend
    pub(super) fn attend(
        &mut self,
        spec: &AttentionSpec,
        rows: &StepRows,
        norms: &[[Option<Vec<f32>>; 2]],
        qkv: &[&[f32]],
        overflows: &mut BTreeSet<u32>,
    ) -> Result<Vec<Vec<f32>>> {
        spec.check(&self.shape, rows)?;
        let (dim, group) = (spec.head_dim, spec.heads / spec.kv_heads);
        let q_width = spec.heads * dim;
        if qkv.iter().any(|row| row.len() != q_width + 2 * spec.kv_heads * dim) {
            return Err(unknown());
        }
        for (i, &position) in rows.positions.iter().enumerate() {
            let (keys, values) = qkv[i][q_width..].split_at(spec.kv_heads * dim);
            let keys = prepare_heads(spec, spec.k_norm.as_ref(), norms[i][1].as_deref(), position, keys);
            let table = &rows.block_tables[rows.sequences[i] as usize];
            for head in 0..spec.kv_heads {
                let at = self.at(spec.layer, table, position as usize, head);
                let [key, value] = [&keys[..], values].map(|x| &x[head * dim..(head + 1) * dim]);
                let [key_bits, value_bits] = self.shape.dtype.code_bits().map_or([None; 2], |bits| bits.map(Some));
                let stored = [(key, key_bits), (value, value_bits)].map(|(x, bits)| stored(self.shape.dtype, bits, x));
                self.keys[at..at + dim].copy_from_slice(&stored[0]);
                self.values[at..at + dim].copy_from_slice(&stored[1]);
                let dtype = self.shape.dtype;
                if is_overflow(dtype, key, &stored[0]) || is_overflow(dtype, value, &stored[1]) {
                    overflows.insert(i as u32);
                }
            }
        }
        let mut all_mixed = Vec::new();
        for (i, &position) in rows.positions.iter().enumerate() {
            let table = &rows.block_tables[rows.sequences[i] as usize];
            let last = position as usize;
            let first = spec.window.map_or(0, |window| (last + 1).saturating_sub(window));
            let mut row = Vec::new();
            let queries = &qkv[i][..q_width];
            let queries = prepare_heads(spec, spec.q_norm.as_ref(), norms[i][0].as_deref(), position, queries);
            let temperature = spec.query_temperature.map_or(1.0, |temperature| temperature.at(position));
            for (head, q) in queries.chunks_exact(dim).enumerate() {
                let q: Vec<f32> = q.iter().map(|q| q * temperature).collect();
                let at: Vec<usize> = (first..=last).map(|j| self.at(spec.layer, table, j, head / group)).collect();
                let score = |&at: &usize| capped(spec.score_cap, spec.scale * dot(&q, &self.keys[at..at + dim]));
                let scores: Vec<f32> = at.iter().map(score).collect();
                let peak = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let weights: Vec<f64> = scores.iter().map(|&score| f64::from(score - peak).exp()).collect();
                let total: f64 = weights.iter().sum();
                row.extend((0..dim).map(|channel| {
                    let terms = at.iter().zip(&weights).map(|(&at, p)| p * f64::from(self.values[at + channel]));
                    (terms.sum::<f64>() / total) as f32
                }));
            }
            all_mixed.push(row);
        }
        Ok(all_mixed)
    }
}

/// Whether a head that is finite is not so as stored.
pub(super) fn is_overflow(dtype: KvDType, x: &[f32], stored: &[f32]) -> bool {
    let is_finite = |x: &[f32]| x.iter().all(|x| x.is_finite());
    match dtype.code_bits() {
        // A group stands and falls together.
        Some(_) => is_finite(x) && !is_finite(stored),
        None => x.iter().zip(stored).any(|(x, stored)| x.is_finite() && !stored.is_finite()),
    }
}

/// A head as the cache stores it, or what its codes of that many bits stand for: NaN where that is not finite.
pub(super) fn stored(dtype: KvDType, code_bits: Option<u32>, x: &[f32]) -> Vec<f32> {
    let finite = |stored: f32| if stored.is_finite() { stored } else { f32::NAN };
    match code_bits {
        Some(bits) => rounded_to_codes(bits, x).into_iter().map(finite).collect(),
        None if dtype == KvDType::F16 => x.iter().map(|&x| finite(f16::from_f32(x).to_f32())).collect(),
        None => x.iter().copied().map(finite).collect(),
    }
}

/// What the codes of a head stand for, in the head's own channels again.
fn rounded_to_codes(bits: u32, x: &[f32]) -> Vec<f32> {
    let Some(width) = group_width(x.len()) else { return vec![f32::NAN; x.len()] };
    let mut rotated = x.to_vec();
    rotate_to_store(&mut rotated, width);
    for group in rotated.chunks_exact_mut(width) {
        let mut codes = vec![0; width];
        let scale = quantize(group, bits, &mut codes);
        for (value, code) in group.iter_mut().zip(codes) {
            *value = dequantize(code, bits, scale);
        }
    }
    rotate_to_read(&mut rotated, width);
    rotated
}

/// Norms and rotates all heads of queries or keys, where the layer does that.
fn prepare_heads(
    spec: &AttentionSpec,
    norm: Option<&HeadNorm>,
    packed: Option<&[f32]>,
    position: u32,
    x: &[f32],
) -> Vec<f32> {
    let mut heads = match (norm, packed) {
        (Some(norm), Some(packed)) => norm_heads(norm, packed, spec.head_dim, x),
        _ => x.to_vec(),
    };
    if let Some(rope) = &spec.rope {
        heads.chunks_exact_mut(spec.head_dim).for_each(|head| rotate(rope, position, head));
    }
    heads
}

/// Rotates one head.
fn rotate(rope: &Rope, position: u32, head: &mut [f32]) {
    let pairs = rope.inv_freq.len();
    for (i, frequency) in rope.inv_freq.iter().enumerate() {
        let angle = position as f32 * frequency;
        let (cos, sin) = (angle.cos() * rope.factor, angle.sin() * rope.factor);
        let (first, second) = match rope.layout {
            RopeLayout::Halves => (i, i + pairs),
            RopeLayout::Pairs => (2 * i, 2 * i + 1),
        };
        let (a, b) = (head[first], head[second]);
        head[first] = a * cos - b * sin;
        head[second] = b * cos + a * sin;
    }
}
