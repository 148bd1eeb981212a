//! The reference backend: every operation in plain f32 math, the oracle of every fast path and the definition of what
//! exlora computes.
//!
//! One thread, weights dequantized to f32, no layout, no vectors. Values are f32; a sum is taken in f64 in the order of
//! its index and rounded once, so that a fast path differs by its own rounding alone.

mod attention;
mod delta;

use std::collections::HashMap;
use std::sync::Arc;

use self::attention::{Cache, rms_norm};
use self::delta::{BaseWeight, Delta, Norms};
use crate::adapter::batch::{AdapterBatch, SlotId};
use crate::adapter::delta::SiteDelta;
use crate::backend::{
    Activation, AdapterPreparer, AttentionSpec, Backend, BackendBuilder, BufferId, Compute, EmbeddingId, GroupId, KvId,
    KvShape, LinearSource, MemoryUse, NormId, PrepareError, PreparedAdapter, StepRows, WeightLoader, Write,
};
use crate::error::{Error, ErrorCode, Result};
use crate::quant::StoredWeight;
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

    fn rows(&self) -> usize {
        self.values.len() / self.width.max(1)
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
    /// Whether it was stored as plain numbers.
    is_dense: bool,
    bias: Option<Vec<f32>>,
}

/// Where the weight of a site is.
#[derive(Clone, Copy)]
enum SitePlace {
    Linear { group: usize, member: usize },
    Embedding(usize),
    Norm(usize),
}

/// The base's dequantized weights.
#[derive(Default)]
struct BaseWeights {
    groups: Vec<Vec<Linear>>,
    tables: Vec<(SiteId, Matrix)>,
    norms: Vec<(SiteId, Vec<f32>)>,
    sites: HashMap<SiteId, SitePlace>,
}

/// An adapter: what it changes at each site and repeat.
struct Adapter {
    deltas: HashMap<(SiteId, u32), Delta>,
    norms: Norms,
}

impl Adapter {
    fn bytes(&self) -> usize {
        self.deltas.values().map(Delta::bytes).sum()
    }
}

/// Everything that a step changes.
struct ReferenceCompute {
    weights: Arc<BaseWeights>,
    memory: Arc<MemoryUse>,
    buffers: Vec<Matrix>,
    kvs: HashMap<KvId, Cache>,
    next_kv: u32,
    adapters: HashMap<SlotId, Adapter>,
}

/// The reference backend, for as long as weights are loaded.
pub fn open() -> Box<dyn BackendBuilder> {
    Box::new(ReferenceBuilder(BaseWeights::default()))
}

/// The reference backend while a model loads.
struct ReferenceBuilder(BaseWeights);

fn dot_f64(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// The dot product, rounded once.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    dot_f64(a, b) as f32
}

fn matrix(view: &TensorView<'_>) -> Matrix {
    Matrix { width: view.shape().last().copied().unwrap_or(0), values: view.to_f32() }
}

fn unknown() -> Error {
    Error::new(ErrorCode::Internal, "the step names something that the backend has not, or of another shape")
}

/// What an adapter changes at a site for a row, with the request's weight.
type RoutedDelta<'a> = (&'a Adapter, f32, &'a Delta);

/// Row `i` of a buffer.
fn row(buffers: &[Matrix], id: BufferId, i: usize) -> Result<&[f32]> {
    let buffer = buffers.get(id.0 as usize).ok_or_else(unknown)?;
    buffer.values.get(i * buffer.width..(i + 1) * buffer.width).ok_or_else(unknown)
}

impl BaseWeights {
    /// Resident bytes.
    fn bytes(&self) -> usize {
        let linear = |linear: &Linear| linear.weight.bytes() + linear.bias.as_ref().map_or(0, |b| size_of_val(&**b));
        let tables = self.tables.iter().map(|(_, table)| table.bytes());
        let norms = self.norms.iter().map(|(_, norm)| size_of_val(&**norm));
        self.groups.iter().flatten().map(linear).sum::<usize>() + tables.chain(norms).sum::<usize>()
    }

    /// The base's weight at a site.
    fn base_weight(&self, site: SiteId) -> Result<BaseWeight<'_>> {
        match self.sites.get(&site) {
            Some(&SitePlace::Linear { group, member }) => {
                Ok(BaseWeight { values: &self.groups[group][member].weight, is_table: false })
            }
            Some(&SitePlace::Embedding(table)) => Ok(BaseWeight { values: &self.tables[table].1, is_table: true }),
            _ => Err(unknown()),
        }
    }

    /// Checks that an adapter's norms at a weight of 1 are not 0.
    fn check_norms(&self, norms: &Norms, (site, repeat): (SiteId, u32), delta: &Delta) -> Result<(), PrepareError> {
        if delta.low_rank.is_none() {
            return Ok(());
        }
        let norms = norms.of((site, repeat), delta, self.base_weight(site)?, 1.0);
        match norms.iter().flat_map(|norms| norms.iter()).position(|norm| *norm == 0.0 || norm.is_nan()) {
            Some(output) => Err(PrepareError::ZeroNorm { site, output }),
            None => Ok(()),
        }
    }
}

impl WeightLoader for ReferenceBuilder {
    fn load_linears(&mut self, members: &[LinearSource<'_>]) -> Result<GroupId> {
        let group = self.0.groups.len();
        let linear = |source: &LinearSource<'_>| Linear {
            site: source.site,
            weight: Matrix {
                width: source.weight.in_features(),
                values: source.weight.dequantize(0..source.weight.out_features()),
            },
            is_dense: matches!(source.weight, StoredWeight::Dense(_)),
            bias: source.bias.as_ref().map(|bias| bias.to_f32()[..source.weight.out_features()].to_vec()),
        };
        let places = members.iter().enumerate();
        self.0.sites.extend(places.map(|(member, source)| (source.site, SitePlace::Linear { group, member })));
        self.0.groups.push(members.iter().map(linear).collect());
        Ok(GroupId(group as u32))
    }

    fn load_embedding(&mut self, site: SiteId, table: TensorView<'_>) -> Result<EmbeddingId> {
        self.0.sites.insert(site, SitePlace::Embedding(self.0.tables.len()));
        self.0.tables.push((site, matrix(&table)));
        Ok(EmbeddingId(self.0.tables.len() as u32 - 1))
    }

    fn load_norm(&mut self, site: SiteId, weight: TensorView<'_>) -> Result<NormId> {
        self.0.sites.insert(site, SitePlace::Norm(self.0.norms.len()));
        self.0.norms.push((site, weight.to_f32()));
        Ok(NormId(self.0.norms.len() as u32 - 1))
    }
}

impl BackendBuilder for ReferenceBuilder {
    fn finish(self: Box<Self>) -> Result<Backend> {
        let weights = Arc::new(self.0);
        let memory = Arc::new(MemoryUse::new(weights.bytes()));
        Ok(Backend {
            description: "cpu (reference, 1 thread)".to_owned(),
            memory: Arc::clone(&memory),
            adapters: Arc::clone(&weights) as Arc<dyn AdapterPreparer>,
            compute: Box::new(ReferenceCompute {
                weights,
                memory,
                buffers: Vec::new(),
                kvs: HashMap::new(),
                next_kv: 0,
                adapters: HashMap::new(),
            }),
        })
    }
}

impl AdapterPreparer for BaseWeights {
    fn equals_base(&self, site: SiteId, part: SitePart, values: TensorView<'_>) -> bool {
        let held: Option<&[f32]> = match (self.sites.get(&site), part) {
            (Some(&SitePlace::Linear { group, member }), SitePart::Weight) => {
                Some(&self.groups[group][member]).filter(|linear| linear.is_dense).map(|linear| &*linear.weight.values)
            }
            (Some(&SitePlace::Linear { group, member }), SitePart::Bias) => self.groups[group][member].bias.as_deref(),
            (Some(&SitePlace::Embedding(table)), SitePart::Weight) => Some(&self.tables[table].1.values),
            (Some(&SitePlace::Norm(vector)), SitePart::Weight) => Some(&self.norms[vector].1),
            _ => None,
        };
        values.dtype().is_float() && held.is_some_and(|held| held == values.to_f32())
    }

    fn dense_weight(&self, site: SiteId) -> Result<Vec<f32>> {
        match self.base_weight(site)? {
            BaseWeight { values, is_table: false } => Ok(values.values.clone()),
            BaseWeight { is_table: true, .. } => Err(unknown()),
        }
    }

    fn prepare(&self, deltas: &[SiteDelta<'_>]) -> Result<PreparedAdapter, PrepareError> {
        let mut adapter = Adapter { deltas: HashMap::new(), norms: Norms::default() };
        for delta in deltas {
            let key = (delta.site, delta.repeat);
            if !self.sites.contains_key(&delta.site) || adapter.deltas.insert(key, Delta::new(delta)).is_some() {
                return Err(unknown().into());
            }
        }
        adapter.deltas.iter().try_for_each(|(&key, delta)| self.check_norms(&adapter.norms, key, delta))?;
        Ok(PreparedAdapter::new(adapter.bytes(), adapter))
    }
}

impl ReferenceCompute {
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
            let adapter = self.adapters.get(&entry.slot).ok_or_else(unknown)?;
            let delta = adapter.deltas.get(&(site, batch.repeat()));
            deltas.extend(delta.map(|delta| (adapter, entry.weight, delta)));
        }
        Ok(deltas)
    }

    /// A norm's weight for a row.
    fn norm_weight(&self, id: NormId, batch: &AdapterBatch, row: usize) -> Result<&[f32]> {
        let (site, norm) = self.weights.norms.get(id.0 as usize).ok_or_else(unknown)?;
        let deltas = self.deltas(batch, row, *site)?;
        let replaced = deltas.iter().rev().find_map(|(_, _, delta)| delta.weight.as_ref());
        Ok(replaced.map_or(norm, |weight| &weight.values))
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
            // A column of A; of tokens that it has not, nothing is added.
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
        for buffer in &mut self.buffers {
            let len = buffer.values.len().max(rows * buffer.width);
            buffer.values.resize(len, 0.0);
        }
        Ok(())
    }

    fn write_rows(&mut self, buffer: BufferId, values: &[f32]) -> Result<()> {
        let buffer = self.buffers.get_mut(buffer.0 as usize).ok_or_else(unknown)?;
        buffer.values.get_mut(..values.len()).ok_or_else(unknown)?.copy_from_slice(values);
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

    fn install_adapter(&mut self, slot: SlotId, adapter: PreparedAdapter) -> Result<()> {
        if self.adapters.contains_key(&slot) {
            return Err(unknown());
        }
        let adapter: Box<Adapter> = adapter.into_inner()?;
        self.memory.add_adapter(adapter.bytes());
        self.adapters.insert(slot, *adapter);
        Ok(())
    }

    fn drop_adapter(&mut self, slot: SlotId) {
        if let Some(adapter) = self.adapters.remove(&slot) {
            self.memory.remove_adapter(adapter.bytes());
        }
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
        weight: NormId,
        eps: f32,
        x: BufferId,
        rows: usize,
        batch: &AdapterBatch,
        out: BufferId,
    ) -> Result<()> {
        for i in 0..rows {
            let normed = rms_norm(self.norm_weight(weight, batch, i)?, eps, self.row(x, i)?);
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
        batch: &AdapterBatch,
        qkv: BufferId,
        out: BufferId,
    ) -> Result<()> {
        let norms: Vec<[Option<Vec<f32>>; 2]> = (0..rows.len())
            .map(|i| {
                let norm = |id: Option<NormId>| id.map(|id| Ok(self.norm_weight(id, batch, i)?.to_vec())).transpose();
                Ok([norm(spec.q_norm)?, norm(spec.k_norm)?])
            })
            .collect::<Result<_>>()?;
        let qkv: Vec<&[f32]> = (0..rows.len()).map(|i| row(&self.buffers, qkv, i)).collect::<Result<_>>()?;
        let mixed = self.kvs.get_mut(&kv).ok_or_else(unknown)?.attend(spec, rows, &norms, &qkv)?;
        for (i, mixed) in mixed.into_iter().enumerate() {
            self.row_mut(out, i, mixed.len())?.copy_from_slice(&mixed);
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
