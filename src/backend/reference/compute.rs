//! The six operations, row by row.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;

use super::activation::{activated, capped};
use super::attention::Cache;
use super::delta::{Adapter, BaseWeight, Delta};
use super::matrix::{Matrix, dot, unknown};
use super::norm::norm;
use super::weights::BaseWeights;
use crate::adapter::batch::{AdapterBatch, SlotId};
use crate::backend::kv_positions::check_position_copy;
use crate::backend::kv_states::{KvStates, check_page_copy};
use crate::backend::slots::Slots;
use crate::backend::{
    Activation, AttentionSpec, BufferId, Compute, EmbeddingId, GroupId, HeadNorm, HeadSpec, KvId, KvPositions, KvShape,
    LargestLogit, LogitRows, MemoryUse, MlpShape, NormId, NormSpec, PreparedAdapter, StepRows, Write,
};
use crate::error::{Error, ErrorCode, Result};
use crate::sites::SiteId;

/// Everything that a step changes.
pub(super) struct ReferenceCompute {
    weights: Arc<BaseWeights>,
    memory: Arc<MemoryUse>,
    buffers: Vec<Matrix>,
    kvs: HashMap<KvId, Cache>,
    next_kv: u32,
    adapters: Slots<Adapter>,
    kv_overflows: BTreeSet<u32>,
    /// Of each row of the last head, if it is greedy.
    largest_logits: Vec<Option<LargestLogit>>,
}

/// What an adapter changes at a site for a row, with the request's weight.
type RoutedDelta<'a> = (&'a Adapter, f32, &'a Delta);

/// Row `i` of a buffer.
fn row(buffers: &[Matrix], id: BufferId, i: usize) -> Result<&[f32]> {
    let buffer = buffers.get(id.0 as usize).ok_or_else(unknown)?;
    buffer.values.get(i * buffer.width..(i + 1) * buffer.width).ok_or_else(unknown)
}

impl ReferenceCompute {
    /// Over these weights.
    pub(super) fn new(weights: Arc<BaseWeights>, memory: Arc<MemoryUse>) -> Self {
        Self {
            weights,
            adapters: Slots::new(Arc::clone(&memory)),
            memory,
            buffers: Vec::new(),
            kvs: HashMap::new(),
            next_kv: 0,
            kv_overflows: BTreeSet::new(),
            largest_logits: Vec::new(),
        }
    }

    fn row(&self, id: BufferId, i: usize) -> Result<&[f32]> {
        row(&self.buffers, id, i)
    }

    /// Row `i` of a buffer, to write `width` values.
    fn row_mut(&mut self, id: BufferId, i: usize, width: usize) -> Result<&mut [f32]> {
        let buffer = self.buffers.get_mut(id.0 as usize).filter(|buffer| buffer.width == width).ok_or_else(unknown)?;
        buffer.values.get_mut(i * width..(i + 1) * width).ok_or_else(unknown)
    }

    /// What the row's adapters change at a site, each with its adapter and weight, in the order of the request.
    fn deltas(&self, batch: &AdapterBatch, row: usize, site: SiteId) -> Result<Vec<RoutedDelta<'_>>> {
        let entries = if batch.is_base_only() { &[] } else { batch.of_row(row) };
        let mut deltas = Vec::new();
        for entry in entries.iter().map(|&index| batch.entries()[index]) {
            let adapter = self.adapters.get(entry.slot.0 as usize).and_then(Option::as_ref).ok_or_else(unknown)?;
            let delta = adapter.deltas.get(&(site, batch.repeat()));
            deltas.extend(delta.map(|delta| (adapter, entry.weight, delta)));
        }
        Ok(deltas)
    }

    /// A norm's packed values for a row, of a norm over `width` channels.
    fn norm_values(&self, id: NormId, width: usize, batch: &AdapterBatch, row: usize) -> Result<&[f32]> {
        let norm = self.weights.norms.get(id.0 as usize).ok_or_else(unknown)?;
        let deltas = self.deltas(batch, row, norm.site)?;
        let replaced = deltas.iter().rev().find_map(|(_, _, delta)| delta.norm.as_deref());
        let packed = replaced.unwrap_or(&norm.packed);
        if norm.width() == width { Ok(packed) } else { Err(unknown()) }
    }

    /// Writes a row of results as an operation says.
    fn store(&mut self, id: BufferId, i: usize, result: &[f32], write: Write) -> Result<()> {
        let out = self.row_mut(id, i, result.len())?;
        match write {
            Write::Replace => out.copy_from_slice(result),
            Write::Add { factor } => out.iter_mut().zip(result).for_each(|(out, result)| *out += factor * result),
        }
        Ok(())
    }

    /// [`Compute::linear`] of one row, member after member.
    fn project(&self, group: GroupId, x: &[f32], batch: &AdapterBatch, row: usize) -> Result<Vec<f32>> {
        let mut out = Vec::new();
        for linear in self.weights.groups.get(group.0 as usize).ok_or_else(unknown)? {
            if linear.weight.width != x.len() {
                return Err(unknown());
            }
            let deltas = self.deltas(batch, row, linear.site)?;
            let replaced = |part: fn(&Delta) -> bool| deltas.iter().rev().map(|(.., delta)| *delta).find(|d| part(d));
            let weight = replaced(|delta| delta.weight.is_some()).and_then(|delta| delta.weight.as_ref());
            let bias = replaced(|delta| delta.bias.is_some()).map_or(&linear.bias, |delta| &delta.bias).as_deref();
            let mut y = weight.unwrap_or(&linear.weight).times(x);
            for (id, values) in deltas.iter().flat_map(|(.., delta)| delta.rows()) {
                // Beyond the outputs of a weight that another adapter brings there is nothing to replace.
                if let Some(y) = y.get_mut(id) {
                    *y = dot(values, x);
                }
            }
            for (y, bias) in y.iter_mut().zip(bias.into_iter().flatten()) {
                *y += bias;
            }
            for removed in deltas.iter().filter_map(|(.., delta)| delta.removed.as_ref()) {
                removed.apply(&removed.a.times(x), 1.0, None, None, &mut y);
            }
            let base = BaseWeight { values: &linear.weight, is_table: false };
            for (adapter, weight, delta) in deltas {
                let Some(low) = &delta.low_rank else { continue };
                let norms = adapter.norms.of((linear.site, batch.repeat()), delta, base, weight);
                low.apply(&low.a.times(x), weight, norms.as_deref(), bias, &mut y);
            }
            out.append(&mut y);
        }
        Ok(out)
    }

    /// [`Compute::embed`] of one row, before the multiplier.
    fn embedded(&self, table: EmbeddingId, token: u32, batch: &AdapterBatch, row: usize) -> Result<Vec<f32>> {
        let (site, base) = self.weights.tables.get(table.0 as usize).ok_or_else(unknown)?;
        let deltas = self.deltas(batch, row, *site)?;
        let table = deltas.iter().rev().find_map(|(.., delta)| delta.weight.as_ref()).unwrap_or(base);
        if token as usize >= table.rows() {
            return Err(Error::new(ErrorCode::TokenOutOfRange, "a token is outside the vocabulary")
                .with_expected(format!("below {}", table.rows()))
                .with_found(token));
        }
        let rows = deltas.iter().flat_map(|(.., delta)| delta.rows());
        let replaced = rows.filter(|&(id, _)| id == token as usize).last();
        let mut y = replaced.map_or(table.row(token as usize), |(_, values)| values).to_vec();
        let base = BaseWeight { values: base, is_table: true };
        for (adapter, weight, delta) in deltas {
            let Some(low) = &delta.low_rank else { continue };
            // A column of A; tokens beyond its width add nothing.
            let column = |r: usize| low.a.row(r).get(token as usize).copied().unwrap_or(0.0);
            let t: Vec<f32> = (0..low.a.rows()).map(column).collect();
            let norms = adapter.norms.of((*site, batch.repeat()), delta, base, weight);
            low.apply(&t, weight, norms.as_deref(), None, &mut y);
        }
        Ok(y)
    }
}

impl Compute for ReferenceCompute {
    fn create_buffer(&mut self, width: usize) -> BufferId {
        self.buffers.push(Matrix { width, values: Vec::new() });
        BufferId(self.buffers.len() as u32 - 1)
    }

    fn reserve_rows(&mut self, rows: usize) -> Result<()> {
        self.kv_overflows.clear();
        for buffer in &mut self.buffers {
            let len = buffer.values.len().max(rows.saturating_mul(buffer.width));
            let exhausted = |_| Error::new(ErrorCode::MemoryExhausted, "cannot allocate the rows of a step");
            buffer.values.try_reserve_exact(len - buffer.values.len()).map_err(exhausted)?;
            buffer.values.resize(len, 0.0);
        }
        Ok(())
    }

    fn write_rows(&mut self, buffer: BufferId, first: usize, values: &[f32]) -> Result<()> {
        let buffer = self.buffers.get_mut(buffer.0 as usize).ok_or_else(unknown)?;
        let start = first * buffer.width;
        buffer.values.get_mut(start..start + values.len()).ok_or_else(unknown)?.copy_from_slice(values);
        Ok(())
    }

    fn read_rows(&mut self, buffer: BufferId, values: &mut [f32]) -> Result<()> {
        let buffer = self.buffers.get(buffer.0 as usize).ok_or_else(unknown)?;
        values.copy_from_slice(buffer.values.get(..values.len()).ok_or_else(unknown)?);
        Ok(())
    }

    fn create_kv(&mut self, shape: KvShape) -> Result<KvId> {
        let (kv, cache) = (KvId(self.next_kv), Cache::new(shape)?);
        self.memory.add_kv(cache.bytes());
        self.kvs.insert(kv, cache);
        self.next_kv += 1;
        Ok(kv)
    }

    fn drop_kv(&mut self, kv: KvId) {
        if let Some(cache) = self.kvs.remove(&kv) {
            self.memory.remove_kv(cache.bytes());
        }
    }

    fn read_kv(&self, kv: KvId, layer: usize, block_table: &[u32], positions: Range<usize>) -> Result<KvStates> {
        self.kvs.get(&kv).ok_or_else(unknown)?.read(layer, block_table, positions)
    }

    fn copy_kv_pages(&mut self, from: KvId, from_pages: &[u32], to: KvId, to_pages: &[u32]) -> Result<()> {
        let cache = |kv| self.kvs.get(&kv).ok_or_else(unknown);
        check_page_copy((&cache(from)?.shape, from_pages), (&cache(to)?.shape, to_pages), from == to)?;
        let contents = cache(from)?.pages(from_pages);
        self.kvs.get_mut(&to).ok_or_else(unknown)?.set_pages(to_pages, &contents);
        Ok(())
    }

    fn copy_kv_positions(
        &mut self,
        layer: usize,
        from: KvPositions<'_>,
        to: KvPositions<'_>,
        keys: Option<&[f32]>,
    ) -> Result<bool> {
        let cache = |kv| self.kvs.get(&kv).ok_or_else(unknown);
        check_position_copy(layer, (&cache(from.kv)?.shape, &from), (&cache(to.kv)?.shape, &to), keys)?;
        let states = cache(from.kv)?.read(layer, from.block_table, from.positions)?;
        Ok(self.kvs.get_mut(&to.kv).ok_or_else(unknown)?.write(layer, &to, states, keys))
    }

    fn install_adapter(&mut self, slot: SlotId, adapter: PreparedAdapter) -> Result<()> {
        self.adapters.install(slot, adapter)
    }

    fn drop_adapter(&mut self, slot: SlotId) {
        self.adapters.remove(slot);
    }

    fn embed(
        &mut self,
        table: EmbeddingId,
        tokens: &[u32],
        multiplier: f32,
        batch: &AdapterBatch,
        out: BufferId,
    ) -> Result<()> {
        for (i, &token) in tokens.iter().enumerate() {
            let embedded: Vec<f32> =
                self.embedded(table, token, batch, i)?.into_iter().map(|value| value * multiplier).collect();
            self.row_mut(out, i, embedded.len())?.copy_from_slice(&embedded);
        }
        Ok(())
    }

    fn norm(
        &mut self,
        spec: &NormSpec,
        x: BufferId,
        rows: usize,
        batch: &AdapterBatch,
        out: BufferId,
        write: Write,
    ) -> Result<()> {
        for i in 0..rows {
            let x = self.row(x, i)?;
            let normed = norm(spec, self.norm_values(spec.id, x.len(), batch, i)?, x);
            self.store(out, i, &normed, write)?;
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
            self.store(y, i, &result, write)?;
        }
        Ok(())
    }

    fn attend(
        &mut self,
        spec: &AttentionSpec,
        kv: KvId,
        rows: &StepRows,
        batch: &AdapterBatch,
        qkv: BufferId,
        out: BufferId,
    ) -> Result<()> {
        let norms: Vec<[Option<Vec<f32>>; 2]> = (0..rows.len())
            .map(|i| {
                let norm = |norm: Option<HeadNorm>, heads: usize| {
                    let Some(HeadNorm { norm, scope }) = norm else { return Ok(None) };
                    let width = scope.weight_shape(heads, spec.head_dim).into_iter().product();
                    Ok::<_, Error>(Some(self.norm_values(norm.id, width, batch, i)?.to_vec()))
                };
                Ok([norm(spec.q_norm, spec.heads)?, norm(spec.k_norm, spec.kv_heads)?])
            })
            .collect::<Result<_>>()?;
        let qkv: Vec<&[f32]> = (0..rows.len()).map(|i| row(&self.buffers, qkv, i)).collect::<Result<_>>()?;
        let mixed =
            self.kvs.get_mut(&kv).ok_or_else(unknown)?.attend(spec, rows, &norms, &qkv, &mut self.kv_overflows)?;
        for (i, mixed) in mixed.into_iter().enumerate() {
            self.row_mut(out, i, mixed.len())?.copy_from_slice(&mixed);
        }
        Ok(())
    }

    fn take_kv_overflows(&mut self) -> Result<Vec<u32>> {
        Ok(std::mem::take(&mut self.kv_overflows).into_iter().collect())
    }

    fn activate(
        &mut self,
        activation: Activation,
        shape: MlpShape,
        x: BufferId,
        rows: usize,
        out: BufferId,
    ) -> Result<()> {
        for i in 0..rows {
            let row = self.row(x, i)?;
            let result: Vec<f32> = match shape {
                MlpShape::Gated => {
                    let (gate, up) = row.split_at(row.len() / 2);
                    gate.iter().zip(up).map(|(&gate, up)| activated(activation, gate) * up).collect()
                }
                MlpShape::Plain => row.iter().map(|&x| activated(activation, x)).collect(),
            };
            self.store(out, i, &result, Write::Replace)?;
        }
        Ok(())
    }

    fn head(
        &mut self,
        head: &HeadSpec,
        x: BufferId,
        rows: LogitRows<'_>,
        logits: &mut [f32],
        stride: usize,
    ) -> Result<()> {
        self.largest_logits.clear();
        for (i, &row) in rows.rows.iter().enumerate() {
            let mut result = self.project(head.group, self.row(x, row as usize)?, rows.adapters, i)?;
            result.iter_mut().for_each(|value| *value = capped(head.cap, head.multiplier * *value));
            let row = logits.get_mut(i * stride..(i + 1) * stride).ok_or_else(unknown)?;
            let row = row.get_mut(..result.len()).ok_or_else(unknown)?;
            let largest = if rows.is_greedy.get(i) == Some(&true) { largest_logit(&result) } else { None };
            if largest.is_none() {
                row.copy_from_slice(&result);
            }
            self.largest_logits.push(largest);
        }
        Ok(())
    }

    fn take_largest_logits(&mut self) -> Result<Vec<Option<LargestLogit>>> {
        Ok(std::mem::take(&mut self.largest_logits))
    }
}

/// The first logit that is infinite or NaN, or the first of the largest; `None` of none.
fn largest_logit(logits: &[f32]) -> Option<LargestLogit> {
    let mut largest: Option<LargestLogit> = None;
    for (token, &logit) in (0..).zip(logits) {
        if !logit.is_finite() {
            return Some(LargestLogit { token, logit });
        }
        if largest.is_none_or(|largest| logit > largest.logit) {
            largest = Some(LargestLogit { token, logit });
        }
    }
    largest
}
