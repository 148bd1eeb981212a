//! The CPU backend: weights stay packed in memory and are unpacked in registers, on every core.
//!
//! | file | what it knows |
//! |---|---|
//! | `isa`, `kernels` | instruction sets, the vector type, the table of kernels of each |
//! | `arena`, `threads` | memory for streaming, the pool |
//! | `pack`, `tile` | the packed form, and the product of a tile with a few rows |
//! | `group`, `linear`, `epilogue` | a group of linears, and what adapters make of its outputs |
//! | `embed` | the embedding |
//! | `adapter`, `routing` | adapters in their slots; which of them act on a row |
//! | `attention`, `elementwise` | the other operations |
//! | `reference` | all of it again in plain maths: the oracle |
//!
//! Threads split outputs, rows and heads, never a sum, and vectors run over outputs, never over inputs: so a row's bits
//! depend neither on who shares the step nor on the number of threads.

#![allow(unsafe_code, reason = "kernels, the arena and the thread pool need it")]

mod adapter;
mod arena;
mod attention;
mod elementwise;
mod embed;
mod epilogue;
mod group;
mod isa;
mod kernels;
mod linear;
mod pack;
mod reference;
mod routing;
mod threads;
mod tile;
mod unpack;

use std::collections::HashMap;

use self::adapter::{Adapter, Base, SitePlace};
use self::arena::{Arena, ArenaSlice, Region};
use self::attention::{Cache, HeadNorms};
use self::embed::{Embedding, Table};
use self::group::Group;
pub use self::isa::Isa;
use self::kernels::Kernels;
use self::linear::{Context, Inputs, Output};
use self::routing::{RoutedVector, Routing};
use self::threads::Pool;
use super::{
    Activation, AttentionSpec, Backend, BackendMemory, BufferId, EmbeddingId, GroupId, KvId, KvShape, LinearSource,
    NormId, StepRows, UploadError, Write,
};
use crate::adapter::batch::{AdapterBatch, SlotId};
use crate::adapter::delta::SiteDelta;
use crate::error::{Error, ErrorCode, Result};
use crate::sites::{SiteId, SitePart};
use crate::tensor::{TensorView, shape_text};

/// Options of the CPU backend.
#[derive(Clone, Debug, Default)]
pub struct CpuOptions {
    /// Threads that compute, the caller's included; all physical cores that may be used by default.
    pub threads: Option<usize>,
    /// Plain maths of `reference.rs` instead of the fast paths: the oracle.
    pub reference: bool,
    /// Instruction set of the fast paths; the best this machine has by default.
    pub isa: Option<Isa>,
}

/// The CPU as a backend.
///
/// # Errors
/// `device_unavailable` if the machine lacks the instruction set asked for; `memory_exhausted` if a thread could not be
/// started.
pub fn open(options: &CpuOptions) -> Result<Box<dyn Backend>> {
    if options.reference {
        return Ok(Box::new(reference::ReferenceBackend::default()));
    }
    let isa = options.isa.unwrap_or_else(Isa::detect);
    let kernels = Kernels::of(isa).ok_or_else(|| {
        Error::new(ErrorCode::DeviceUnavailable, format!("this machine has no {isa}")).with_found(Isa::detect())
    })?;
    let threads = options.threads.unwrap_or_else(threads::default_threads).max(1);
    tracing::debug!(%isa, threads, "cpu backend opened");
    Ok(Box::new(CpuBackend {
        kernels,
        pool: Pool::new(threads)?,
        arena: Arena::default(),
        buffers: Vec::new(),
        groups: Vec::new(),
        sites: HashMap::new(),
        vectors: Vec::new(),
        tables: Vec::new(),
        kvs: Vec::new(),
        adapters: Vec::new(),
        linear_scratch: linear::Scratch::default(),
        attention_scratch: attention::Scratch::default(),
    }))
}

/// Rows of activations, `stride` values apart; what lies beyond a row's width is zero.
#[derive(Clone, Copy)]
struct Rows<'a> {
    values: &'a [f32],
    stride: usize,
}

impl<'a> Rows<'a> {
    /// Row `i` with its padding.
    fn row(&self, i: usize) -> &'a [f32] {
        &self.values[i * self.stride..(i + 1) * self.stride]
    }
}

/// Activations. Rows are padded to whole blocks by zeros that nothing ever writes, so that a linear may read them
/// whole.
struct Buffer {
    width: usize,
    stride: usize,
    rows: usize,
    region: Option<Region>,
}

impl Buffer {
    fn reserve(&mut self, rows: usize) -> Result<()> {
        if rows > self.rows {
            let bytes = rows.checked_mul(self.stride * size_of::<f32>());
            let bytes =
                bytes.ok_or_else(|| Error::new(ErrorCode::MemoryExhausted, "a step exceeds the address space"))?;
            self.region = None;
            self.rows = 0;
            self.region = Some(Region::new(bytes)?);
            self.rows = rows;
        }
        Ok(())
    }

    fn rows(&self) -> Rows<'_> {
        Rows { values: self.region.as_ref().map_or(&[], Region::values), stride: self.stride }
    }

    fn values_mut(&mut self) -> &mut [f32] {
        self.region.as_mut().map_or(&mut [], Region::values_mut)
    }

    fn expect(&self, width: usize, rows: usize) -> Result<()> {
        if self.width == width && rows <= self.rows {
            return Ok(());
        }
        Err(Error::new(ErrorCode::Internal, "a buffer does not fit the operation")
            .with_expected(format!("[{rows}, {width}]"))
            .with_found(format!("[{}, {}]", self.rows, self.width)))
    }
}

struct CpuBackend {
    kernels: &'static Kernels,
    pool: Pool,
    arena: Arena,
    buffers: Vec<Buffer>,
    groups: Vec<Group>,
    sites: HashMap<SiteId, SitePlace>,
    vectors: Vec<ArenaSlice>,
    tables: Vec<Table>,
    kvs: Vec<Option<Cache>>,
    adapters: Vec<Option<Adapter>>,
    linear_scratch: linear::Scratch,
    attention_scratch: attention::Scratch,
}

fn unknown(what: &str) -> Error {
    Error::new(ErrorCode::Internal, format!("the step names {what} that the backend has not"))
}

/// Two different buffers, the second to write.
fn pair(buffers: &mut [Buffer], x: BufferId, y: BufferId) -> Result<(&Buffer, &mut Buffer)> {
    match buffers.get_disjoint_mut([x.0 as usize, y.0 as usize]) {
        Ok([x, y]) => Ok((x, y)),
        Err(_) => Err(unknown("a buffer, or one for input and output,")),
    }
}

fn routed_vector<'a>(
    arena: &'a Arena,
    vectors: &[ArenaSlice],
    id: NormId,
    routing: Routing<'a>,
) -> Result<RoutedVector<'a>> {
    let index = id.0 as usize;
    let slice = vectors.get(index).ok_or_else(|| unknown("a vector"))?;
    Ok(RoutedVector::new(routing, index, arena.values(*slice)))
}

impl Backend for CpuBackend {
    fn describe(&self) -> String {
        let threads = self.pool.threads();
        format!("cpu ({}, {threads} thread{})", self.kernels.isa, if threads == 1 { "" } else { "s" })
    }

    fn memory(&self) -> BackendMemory {
        BackendMemory {
            weights_bytes: self.arena.bytes(),
            adapters_bytes: self.adapters.iter().flatten().map(Adapter::bytes).sum(),
            kv_bytes: self.kvs.iter().flatten().map(Cache::bytes).sum(),
        }
    }

    fn load_linears(&mut self, members: &[LinearSource<'_>]) -> Result<GroupId> {
        let packed = Group::pack(&mut self.pool, &mut self.arena, members)?;
        let group = self.groups.len();
        for (member, source) in members.iter().enumerate() {
            self.sites.insert(source.site, SitePlace::Linear { group, member });
        }
        self.groups.push(packed);
        Ok(GroupId(group as u32))
    }

    fn load_embedding(&mut self, site: SiteId, table: TensorView<'_>) -> Result<EmbeddingId> {
        let (&[vocab, hidden], true) = (table.shape(), table.dtype().is_float()) else {
            return Err(Error::new(ErrorCode::Internal, "an embedding table must be a matrix of floats")
                .with_found(format!("{} {}", table.dtype(), shape_text(table.shape()))));
        };
        let store = self.arena.take(table.bytes().len())?;
        self.arena.values_mut::<u8>(store).copy_from_slice(table.bytes());
        self.sites.insert(site, SitePlace::Table(self.tables.len()));
        self.tables.push(Table { dtype: table.dtype(), vocab, hidden, store });
        Ok(EmbeddingId(self.tables.len() as u32 - 1))
    }

    fn load_norm(&mut self, site: SiteId, vector: TensorView<'_>) -> Result<NormId> {
        if !vector.dtype().is_float() {
            return Err(Error::new(ErrorCode::Internal, "a vector must hold floats").with_found(vector.dtype()));
        }
        let slice = self.arena.take(vector.len() * size_of::<f32>())?;
        vector.read_f32(0..vector.len(), self.arena.values_mut(slice));
        self.sites.insert(site, SitePlace::Vector(self.vectors.len()));
        self.vectors.push(slice);
        Ok(NormId(self.vectors.len() as u32 - 1))
    }

    fn create_buffer(&mut self, width: usize) -> BufferId {
        let stride = width.next_multiple_of(tile::BLOCK);
        self.buffers.push(Buffer { width, stride, rows: 0, region: None });
        BufferId(self.buffers.len() as u32 - 1)
    }

    fn reserve_rows(&mut self, rows: usize) -> Result<()> {
        self.buffers.iter_mut().try_for_each(|buffer| buffer.reserve(rows))
    }

    fn create_kv(&mut self, shape: KvShape) -> Result<KvId> {
        if shape.page_tokens == 0 {
            return Err(Error::new(ErrorCode::Internal, "a page of the KV cache must hold a position"));
        }
        self.kvs.push(Some(Cache::new(shape)?));
        Ok(KvId(self.kvs.len() as u32 - 1))
    }

    fn drop_kv(&mut self, kv: KvId) {
        if let Some(cache) = self.kvs.get_mut(kv.0 as usize) {
            *cache = None;
        }
    }

    fn equals_base(&self, site: SiteId, part: SitePart, values: TensorView<'_>) -> bool {
        if !values.dtype().is_float() {
            return false;
        }
        let (arena, same) = (&self.arena, |held: &[f32]| values.shape() == [held.len()] && values.to_f32() == held);
        match (self.sites.get(&site), part) {
            (Some(&SitePlace::Linear { group, member }), SitePart::Weight) => {
                self.groups[group].members[member].equals_base(arena, values)
            }
            (Some(&SitePlace::Linear { group, member }), SitePart::Bias) => {
                self.groups[group].members[member].bias(arena).is_some_and(same)
            }
            (Some(&SitePlace::Table(table)), SitePart::Weight) => self.tables[table].equals_base(arena, values),
            (Some(&SitePlace::Vector(vector)), SitePart::Weight) => same(arena.values(self.vectors[vector])),
            _ => false,
        }
    }

    fn dense_weight(&mut self, site: SiteId) -> Result<Vec<f32>> {
        let Some(&SitePlace::Linear { group, member }) = self.sites.get(&site) else { return Err(unknown("a linear")) };
        let group = &self.groups[group];
        let (linear, order) = (&group.members[member], group.order(member));
        let (tiles, outputs) = (linear.tiles(&self.arena), linear.out_features());
        unpack::unpack(&mut self.pool, self.kernels, &tiles, order, outputs, group.in_features)
    }

    fn upload_adapter(&mut self, slot: SlotId, deltas: &[SiteDelta<'_>]) -> Result<usize, UploadError> {
        let index = slot.0 as usize;
        if self.adapters.get(index).is_some_and(Option::is_some) {
            return Err(Error::new(ErrorCode::Internal, format!("slot {index} is taken")).into());
        }
        let base = Base {
            kernels: self.kernels,
            arena: &self.arena,
            sites: &self.sites,
            groups: &self.groups,
            tables: &self.tables,
            vectors: &self.vectors,
        };
        let adapter = Adapter::new(&mut self.pool, &base, deltas)?;
        let bytes = adapter.bytes();
        if self.adapters.len() <= index {
            self.adapters.resize_with(index + 1, || None);
        }
        self.adapters[index] = Some(adapter);
        Ok(bytes)
    }

    fn drop_adapter(&mut self, slot: SlotId) {
        if let Some(adapter) = self.adapters.get_mut(slot.0 as usize) {
            *adapter = None;
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
        let index = table.0 as usize;
        let table = self.tables.get(index).ok_or_else(|| unknown("an embedding table"))?;
        let out = self.buffers.get_mut(out.0 as usize).ok_or_else(|| unknown("a buffer"))?;
        out.expect(table.hidden, tokens.len())?;
        let routing = Routing::new(batch, &self.adapters, tokens.len())?;
        let embedding = Embedding { kernels: self.kernels, arena: &self.arena, table, index, routing };
        let (stride, shrunk) = (out.stride, &mut self.linear_scratch.shrunk);
        embedding.run(&mut self.pool, tokens, multiplier, out.values_mut(), stride, shrunk)
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
        let weight = routed_vector(&self.arena, &self.vectors, weight, Routing::new(batch, &self.adapters, rows)?)?;
        let (x, out) = pair(&mut self.buffers, x, out)?;
        x.expect(weight.len(), rows)?;
        out.expect(weight.len(), rows)?;
        let (kernels, width, stride, x) = (self.kernels, weight.len(), out.stride, x.rows());
        elementwise::for_rows(&mut self.pool, rows, width, out.values_mut(), stride, |i, out| {
            // SAFETY: the kernels exist, so their instruction set does.
            unsafe { (kernels.norm)(weight.of_row(i), eps, &x.row(i)[..width], out) };
        })
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
        let group_index = group.0 as usize;
        let group = self.groups.get(group_index).ok_or_else(|| unknown("a group"))?;
        let (x, y) = pair(&mut self.buffers, x, y)?;
        x.expect(group.in_features, rows)?;
        y.expect(group.out_features, rows)?;
        let routing = Routing::new(batch, &self.adapters, rows)?;
        let context = Context { kernels: self.kernels, arena: &self.arena, group, group_index, routing };
        let inputs = Inputs { x: x.rows(), rows, picked: None };
        let output = Output { stride: y.stride, width: y.width, y: y.values_mut(), write };
        linear::run(&mut self.pool, &context, inputs, output, &mut self.linear_scratch)
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
        let cache = self.kvs.get_mut(kv.0 as usize).and_then(Option::as_mut).ok_or_else(|| unknown("a KV cache"))?;
        let routing = Routing::new(batch, &self.adapters, rows.len())?;
        let norm = |id: Option<NormId>| {
            let norm = id.map(|id| routed_vector(&self.arena, &self.vectors, id, routing)).transpose()?;
            match norm.filter(|norm| norm.len() != spec.head_dim) {
                Some(norm) => Err(Error::new(ErrorCode::Internal, "a norm's weight does not fit")
                    .with_expected(spec.head_dim)
                    .with_found(norm.len())),
                None => Ok(norm),
            }
        };
        let norms = HeadNorms { q: norm(spec.q_norm)?, k: norm(spec.k_norm)? };
        let (qkv, out) = pair(&mut self.buffers, qkv, out)?;
        qkv.expect((spec.heads + 2 * spec.kv_heads) * spec.head_dim, rows.len())?;
        out.expect(spec.heads * spec.head_dim, rows.len())?;
        let output = Output { stride: out.stride, width: out.width, y: out.values_mut(), write: Write::Replace };
        attention::run(
            &mut self.pool,
            self.kernels,
            cache,
            spec,
            norms,
            rows,
            qkv.rows(),
            output,
            &mut self.attention_scratch,
        )
    }

    fn activate(&mut self, activation: Activation, gate_up: BufferId, rows: usize, out: BufferId) -> Result<()> {
        let kernel = match activation {
            Activation::Silu => self.kernels.silu_gate,
        };
        let (gate_up, out) = pair(&mut self.buffers, gate_up, out)?;
        gate_up.expect(2 * out.width, rows)?;
        out.expect(out.width, rows)?;
        let (width, stride, gate_up) = (out.width, out.stride, gate_up.rows());
        elementwise::for_rows(&mut self.pool, rows, width, out.values_mut(), stride, |i, out| {
            let (gate, up) = gate_up.row(i)[..2 * width].split_at(width);
            // SAFETY: the kernels exist, so their instruction set does.
            unsafe { kernel(gate, up, out) };
        })
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
        let group_index = group.0 as usize;
        let group = self.groups.get(group_index).ok_or_else(|| unknown("a group"))?;
        let x = self.buffers.get(x.0 as usize).ok_or_else(|| unknown("a buffer"))?;
        x.expect(group.in_features, rows.iter().max().map_or(0, |&row| row as usize + 1))?;
        if logits.len() != rows.len() * stride || stride < group.out_features {
            return Err(Error::new(ErrorCode::Internal, "the room for logits does not fit")
                .with_expected(rows.len() * group.out_features)
                .with_found(logits.len()));
        }
        let routing = Routing::new(batch, &self.adapters, rows.len())?;
        let context = Context { kernels: self.kernels, arena: &self.arena, group, group_index, routing };
        let inputs = Inputs { x: x.rows(), rows: rows.len(), picked: Some(rows) };
        let output = Output { stride, width: stride, y: logits, write: Write::Replace };
        linear::run(&mut self.pool, &context, inputs, output, &mut self.linear_scratch)
    }
}
