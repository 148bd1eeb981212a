//! The six operations in plain maths: the oracle of every fast path, and the meaning of the product.
//!
//! One thread, weights dequantised to f32, no layout, no vectors. Values are f32; a sum is taken in f64 in the order of
//! its index and rounded once, so that what a fast path differs by is its own rounding alone.

use std::collections::HashMap;

use half::f16;

use super::attention::check;
use crate::adapter::batch::{AdapterBatch, SlotId};
use crate::adapter::delta::SiteDelta;
use crate::backend::{
    Activation, AttentionSpec, Backend, BackendMemory, BufferId, GroupId, KvDType, KvId, KvShape, LinearSource,
    StepRows, TableId, VectorId, Write,
};
use crate::error::{Error, ErrorCode, Result};
use crate::sites::{SiteId, SitePart};
use crate::tensor::TensorView;

/// A matrix, row-major.
#[derive(Default)]
struct Matrix {
    width: usize,
    values: Vec<f32>,
}

impl Matrix {
    fn row(&self, i: usize) -> &[f32] {
        &self.values[i * self.width..(i + 1) * self.width]
    }

    /// `self x`
    fn times(&self, x: &[f32]) -> Vec<f32> {
        if self.width == 0 {
            return Vec::new();
        }
        self.values.chunks_exact(self.width).map(|row| dot(row, x)).collect()
    }

    fn bytes(&self) -> usize {
        size_of_val(&*self.values)
    }
}

/// A linear of a group.
struct Linear {
    site: SiteId,
    weight: Matrix,
    bias: Option<Vec<f32>>,
}

/// A low-rank delta.
struct LowRank {
    a: Matrix,
    b: Matrix,
    scale: f32,
}

/// Keys and values, each `[layer][page][position][kv head][channel]`.
struct Cache {
    shape: KvShape,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Cache {
    /// Where a head's channels begin.
    fn at(&self, layer: usize, table: &[u32], position: usize, head: usize) -> usize {
        let s = &self.shape;
        let page = table[position / s.page_tokens] as usize;
        (((layer * s.pages + page) * s.page_tokens + position % s.page_tokens) * s.kv_heads + head) * s.head_dim
    }

    fn bytes(&self) -> usize {
        size_of_val(&*self.keys) + size_of_val(&*self.values)
    }
}

/// The oracle as a backend.
#[derive(Default)]
pub(super) struct ReferenceBackend {
    buffers: Vec<Matrix>,
    groups: Vec<Vec<Linear>>,
    tables: Vec<Matrix>,
    vectors: Vec<Vec<f32>>,
    kvs: HashMap<KvId, Cache>,
    next_kv: u32,
    adapters: HashMap<SlotId, HashMap<SiteId, LowRank>>,
}

/// The dot product, rounded once.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>() as f32
}

/// `weight * x / sqrt(mean(x^2) + eps)`
fn rms_norm(weight: &[f32], eps: f32, x: &[f32]) -> Vec<f32> {
    let factor = 1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt();
    x.iter().zip(weight).map(|(x, weight)| weight * (x * factor)).collect()
}

/// The value as the cache keeps it.
fn stored(dtype: KvDType, value: f32) -> f32 {
    match dtype {
        KvDType::F16 => f16::from_f32(value).to_f32(),
        KvDType::F32 => value,
    }
}

fn matrix(view: &TensorView<'_>) -> Matrix {
    Matrix { width: view.shape().last().copied().unwrap_or(0), values: view.to_f32() }
}

fn unknown() -> Error {
    Error::new(ErrorCode::Internal, "the step names something that the backend has not, or of another shape")
}

/// Row `i` of a buffer.
fn row(buffers: &[Matrix], id: BufferId, i: usize) -> Result<&[f32]> {
    let buffer = buffers.get(id.0 as usize).ok_or_else(unknown)?;
    buffer.values.get(i * buffer.width..(i + 1) * buffer.width).ok_or_else(unknown)
}

/// Norms (if there is a norm) and turns one head.
fn prepare_head(spec: &AttentionSpec, norm: Option<&[f32]>, position: u32, x: &[f32]) -> Vec<f32> {
    let mut head = norm.map_or_else(|| x.to_vec(), |weight| rms_norm(weight, spec.norm_eps, x));
    let pairs = spec.rope.inv_freq.len();
    for (i, frequency) in spec.rope.inv_freq.iter().enumerate() {
        let angle = position as f32 * frequency;
        let (cos, sin) = (angle.cos() * spec.rope.factor, angle.sin() * spec.rope.factor);
        let (a, b) = (head[i], head[i + pairs]);
        head[i] = a * cos - b * sin;
        head[i + pairs] = b * cos + a * sin;
    }
    head
}

impl ReferenceBackend {
    fn row(&self, id: BufferId, i: usize) -> Result<&[f32]> {
        row(&self.buffers, id, i)
    }

    /// Row `i` of a buffer, to write `width` values.
    fn row_mut(&mut self, id: BufferId, i: usize, width: usize) -> Result<&mut [f32]> {
        let buffer = self.buffers.get_mut(id.0 as usize).filter(|buffer| buffer.width == width).ok_or_else(unknown)?;
        buffer.values.get_mut(i * width..(i + 1) * width).ok_or_else(unknown)
    }

    fn vector(&self, id: VectorId) -> Result<&[f32]> {
        Ok(self.vectors.get(id.0 as usize).ok_or_else(unknown)?)
    }

    /// `W x + b + sum over (slot, w) in order of w * scale * B (A x)`, member after member.
    fn project(&self, group: GroupId, x: &[f32], batch: &AdapterBatch, row: usize) -> Result<Vec<f32>> {
        let mut out = Vec::new();
        for linear in self.groups.get(group.0 as usize).ok_or_else(unknown)? {
            if linear.weight.width != x.len() {
                return Err(unknown());
            }
            let mut y = linear.weight.times(x);
            for (y, bias) in y.iter_mut().zip(linear.bias.iter().flatten()) {
                *y += bias;
            }
            let entries = if batch.is_base_only() { &[] } else { batch.of_row(row) };
            for entry in entries.iter().map(|&index| batch.entries()[index]) {
                let adapter = self.adapters.get(&entry.slot).ok_or_else(unknown)?;
                if let Some(delta) = adapter.get(&linear.site) {
                    let delta_y = delta.b.times(&delta.a.times(x));
                    y.iter_mut().zip(delta_y).for_each(|(y, delta_y)| *y += entry.weight * delta.scale * delta_y);
                }
            }
            out.append(&mut y);
        }
        Ok(out)
    }
}

impl Backend for ReferenceBackend {
    fn describe(&self) -> String {
        "cpu (reference, 1 thread)".to_owned()
    }

    fn memory(&self) -> BackendMemory {
        let linear = |linear: &Linear| linear.weight.bytes() + linear.bias.as_ref().map_or(0, |b| size_of_val(&**b));
        let deltas = self.adapters.values().flat_map(HashMap::values);
        BackendMemory {
            weights_bytes: self.groups.iter().flatten().map(linear).sum::<usize>()
                + self.tables.iter().map(Matrix::bytes).sum::<usize>()
                + self.vectors.iter().map(|v| size_of_val(&**v)).sum::<usize>(),
            adapters_bytes: deltas.map(|delta| delta.a.bytes() + delta.b.bytes()).sum(),
            kv_bytes: self.kvs.values().map(Cache::bytes).sum(),
        }
    }

    fn pack_group(&mut self, members: &[LinearSource<'_>]) -> Result<GroupId> {
        let linear = |source: &LinearSource<'_>| Linear {
            site: source.site,
            weight: Matrix {
                width: source.weight.in_features(),
                values: source.weight.dequantise(0..source.weight.out_features()),
            },
            bias: source.bias.as_ref().map(TensorView::to_f32),
        };
        self.groups.push(members.iter().map(linear).collect());
        Ok(GroupId(self.groups.len() as u32 - 1))
    }

    fn pack_table(&mut self, _: SiteId, table: TensorView<'_>) -> Result<TableId> {
        self.tables.push(matrix(&table));
        Ok(TableId(self.tables.len() as u32 - 1))
    }

    fn pack_vector(&mut self, _: SiteId, vector: TensorView<'_>) -> Result<VectorId> {
        self.vectors.push(vector.to_f32());
        Ok(VectorId(self.vectors.len() as u32 - 1))
    }

    fn create_buffer(&mut self, width: usize) -> BufferId {
        self.buffers.push(Matrix { width, values: Vec::new() });
        BufferId(self.buffers.len() as u32 - 1)
    }

    fn reserve_rows(&mut self, rows: usize) -> Result<()> {
        for buffer in &mut self.buffers {
            let len = buffer.values.len().max(rows * buffer.width);
            buffer.values.resize(len, 0.0);
        }
        Ok(())
    }

    fn create_kv(&mut self, shape: KvShape) -> Result<KvId> {
        let exhausted = || Error::new(ErrorCode::MemoryExhausted, "cannot allocate the KV cache");
        // Half of what keys and values take together, in f32.
        let elements = shape.bytes().ok_or_else(exhausted)? / shape.dtype.bytes() / 2;
        let zeros = || {
            let mut values = Vec::new();
            values.try_reserve_exact(elements).map_err(|_| exhausted())?;
            values.resize(elements, 0.0);
            Ok::<_, Error>(values)
        };
        let kv = KvId(self.next_kv);
        self.kvs.insert(kv, Cache { shape, keys: zeros()?, values: zeros()? });
        self.next_kv += 1;
        Ok(kv)
    }

    fn drop_kv(&mut self, kv: KvId) {
        self.kvs.remove(&kv);
    }

    fn holds(&self, _: SiteId, _: SitePart, _: TensorView<'_>) -> bool {
        false
    }

    fn upload_adapter(&mut self, slot: SlotId, deltas: &[SiteDelta<'_>]) -> Result<usize> {
        if self.adapters.contains_key(&slot) {
            return Err(unknown());
        }
        let factors = |delta: &SiteDelta<'_>| {
            let low = delta.low_rank.as_ref()?;
            Some((delta.site, LowRank { a: matrix(&low.a.view()), b: matrix(&low.b.view()), scale: low.scale }))
        };
        let adapter: HashMap<_, _> = deltas.iter().filter_map(factors).collect();
        let bytes = adapter.values().map(|delta| delta.a.bytes() + delta.b.bytes()).sum();
        self.adapters.insert(slot, adapter);
        Ok(bytes)
    }

    fn drop_adapter(&mut self, slot: SlotId) {
        self.adapters.remove(&slot);
    }

    fn embed(
        &mut self,
        table: TableId,
        tokens: &[u32],
        multiplier: f32,
        _: &AdapterBatch,
        out: BufferId,
    ) -> Result<()> {
        for (i, &token) in tokens.iter().enumerate() {
            let table = self.tables.get(table.0 as usize).ok_or_else(unknown)?;
            if (token as usize + 1) * table.width > table.values.len() {
                return Err(Error::new(ErrorCode::TokenOutOfRange, "a token is outside the vocabulary").found(token));
            }
            let embedded: Vec<f32> = table.row(token as usize).iter().map(|value| value * multiplier).collect();
            self.row_mut(out, i, embedded.len())?.copy_from_slice(&embedded);
        }
        Ok(())
    }

    fn norm(
        &mut self,
        weight: VectorId,
        eps: f32,
        x: BufferId,
        rows: usize,
        _: &AdapterBatch,
        out: BufferId,
    ) -> Result<()> {
        for i in 0..rows {
            let normed = rms_norm(self.vector(weight)?, eps, self.row(x, i)?);
            self.row_mut(out, i, normed.len())?.copy_from_slice(&normed);
        }
        Ok(())
    }

    fn linear(
        &mut self,
        group: GroupId,
        x: BufferId,
        rows: usize,
        batch: &AdapterBatch,
        y: BufferId,
        write: Write,
    ) -> Result<()> {
        for i in 0..rows {
            let result = self.project(group, self.row(x, i)?, batch, i)?;
            let y = self.row_mut(y, i, result.len())?;
            match write {
                Write::Replace => y.copy_from_slice(&result),
                Write::Add => y.iter_mut().zip(result).for_each(|(y, result)| *y += result),
            }
        }
        Ok(())
    }

    fn attend(
        &mut self,
        spec: &AttentionSpec,
        kv: KvId,
        rows: &StepRows,
        _: &AdapterBatch,
        qkv: BufferId,
        out: BufferId,
    ) -> Result<()> {
        let vectors = &self.vectors;
        let norm = |id: Option<VectorId>| {
            id.map(|id| vectors.get(id.0 as usize).map(Vec::as_slice).ok_or_else(unknown)).transpose()
        };
        let (q_norm, k_norm) = (norm(spec.q_norm)?, norm(spec.k_norm)?);
        let cache = self.kvs.get_mut(&kv).ok_or_else(unknown)?;
        check(&cache.shape, spec, rows)?;
        let (dim, group) = (spec.head_dim, spec.heads / spec.kv_heads);
        let q_width = spec.heads * dim;
        for (i, &position) in rows.positions.iter().enumerate() {
            let row = row(&self.buffers, qkv, i)?;
            if row.len() != q_width + 2 * spec.kv_heads * dim {
                return Err(unknown());
            }
            let (keys, values) = row[q_width..].split_at(spec.kv_heads * dim);
            for head in 0..spec.kv_heads {
                let table = &rows.block_tables[rows.sequences[i] as usize];
                let at = cache.at(spec.layer, table, position as usize, head);
                let key = prepare_head(spec, k_norm, position, &keys[head * dim..(head + 1) * dim]);
                for (channel, key) in key.into_iter().enumerate() {
                    cache.keys[at + channel] = stored(cache.shape.dtype, key);
                    cache.values[at + channel] = stored(cache.shape.dtype, values[head * dim + channel]);
                }
            }
        }
        let cache = &self.kvs[&kv];
        let mut all_mixed = Vec::new();
        for (i, &position) in rows.positions.iter().enumerate() {
            let table = &rows.block_tables[rows.sequences[i] as usize];
            let last = position as usize;
            let first = spec.window.map_or(0, |window| (last + 1).saturating_sub(window));
            for (head, q) in row(&self.buffers, qkv, i)?[..q_width].chunks_exact(dim).enumerate() {
                let q = prepare_head(spec, q_norm, position, q);
                let at: Vec<usize> = (first..=last).map(|j| cache.at(spec.layer, table, j, head / group)).collect();
                let scores: Vec<f32> = at.iter().map(|&at| spec.scale * dot(&q, &cache.keys[at..at + dim])).collect();
                let peak = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let weights: Vec<f64> = scores.iter().map(|&score| f64::from(score - peak).exp()).collect();
                let total: f64 = weights.iter().sum();
                all_mixed.extend((0..dim).map(|channel| {
                    let terms = at.iter().zip(&weights).map(|(&at, p)| p * f64::from(cache.values[at + channel]));
                    (terms.sum::<f64>() / total) as f32
                }));
            }
        }
        for (i, mixed) in all_mixed.chunks_exact(q_width).enumerate() {
            self.row_mut(out, i, q_width)?.copy_from_slice(mixed);
        }
        Ok(())
    }

    fn activate(&mut self, activation: Activation, gate_up: BufferId, rows: usize, out: BufferId) -> Result<()> {
        let act = |x: f32| match activation {
            Activation::Silu => x / (1.0 + (-x).exp()),
        };
        for i in 0..rows {
            let row = self.row(gate_up, i)?;
            let (gate, up) = row.split_at(row.len() / 2);
            let gated: Vec<f32> = gate.iter().zip(up).map(|(&gate, up)| act(gate) * up).collect();
            self.row_mut(out, i, gated.len())?.copy_from_slice(&gated);
        }
        Ok(())
    }

    fn head(
        &mut self,
        group: GroupId,
        x: BufferId,
        rows: &[u32],
        batch: &AdapterBatch,
        logits: &mut [f32],
        stride: usize,
    ) -> Result<()> {
        for (i, &row) in rows.iter().enumerate() {
            let result = self.project(group, self.row(x, row as usize)?, batch, i)?;
            let row = logits.get_mut(i * stride..(i + 1) * stride).ok_or_else(unknown)?;
            row.get_mut(..result.len()).ok_or_else(unknown)?.copy_from_slice(&result);
        }
        Ok(())
    }
}
