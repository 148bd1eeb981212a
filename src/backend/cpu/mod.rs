//! The CPU backend: weights stay packed in memory and are unpacked in registers, on every core.
//!
//! | file | what it knows |
//! |---|---|
//! | `isa`, `kernels` | instruction sets, the vector type, the table of kernels of each |
//! | `arena`, `threads` | memory for streaming, the pool |
//! | `pack`, `tile` | the packed form, and the product of a tile with a few rows |
//! | `linear`, `lora` | a group of linears; adapters in their slots |
//! | `attention`, `elementwise` | the other operations |
//! | `reference` | all of it again in plain maths: the oracle |
//!
//! Threads split outputs, rows and heads, never a sum, and vectors run over outputs, never over inputs: so a row's bits
//! depend neither on who shares the step nor on the number of threads.

mod arena;
mod attention;
mod elementwise;
mod isa;
mod kernels;
mod linear;
mod lora;
mod pack;
mod reference;
mod threads;
mod tile;

use std::collections::HashMap;

use self::arena::{Arena, ArenaSlice, Region};
use self::attention::{Cache, HeadNorms};
pub use self::isa::Isa;
use self::kernels::Kernels;
use self::linear::{Context, Group, Inputs, Output};
use self::lora::{Adapter, SitePlace};
use self::threads::Pool;
use super::{
    Activation, AttentionSpec, Backend, BackendMemory, BufferId, GroupId, KvId, KvShape, LinearSource, StepRows,
    TableId, VectorId, Write,
};
use crate::adapter::batch::{AdapterBatch, SlotId};
use crate::adapter::delta::SiteDelta;
use crate::error::{Error, ErrorCode, Result};
use crate::sites::{SiteId, SitePart};
use crate::tensor::{DType, TensorView, shape_text};

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
        Error::new(ErrorCode::DeviceUnavailable, format!("this machine has no {isa}")).found(Isa::detect())
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
            .expected(format!("[{rows}, {width}]"))
            .found(format!("[{}, {}]", self.rows, self.width)))
    }
}

struct Table {
    dtype: DType,
    vocab: usize,
    hidden: usize,
    store: ArenaSlice,
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

/// DoRA divides by the norm of an output, which an adapter must not make 0.
fn zero_norm(site: SiteId, output: usize) -> Error {
    Error::new(ErrorCode::AdapterScaleInvalid, "DoRA divides by the norm of an output that is 0")
        .expected("a norm above 0")
        .found(format!("0 at output {output} of site {}", site.0))
}

/// Two different buffers, the second to write.
fn pair(buffers: &mut [Buffer], x: BufferId, y: BufferId) -> Result<(&Buffer, &mut Buffer)> {
    match buffers.get_disjoint_mut([x.0 as usize, y.0 as usize]) {
        Ok([x, y]) => Ok((x, y)),
        Err(_) => Err(unknown("a buffer, or one for input and output,")),
    }
}

fn float_vector<'a>(arena: &'a Arena, vectors: &[ArenaSlice], id: VectorId) -> Result<&'a [f32]> {
    let slice = vectors.get(id.0 as usize).ok_or_else(|| unknown("a vector"))?;
    Ok(arena.values(*slice))
}

fn checked_vector<'a>(arena: &'a Arena, vectors: &[ArenaSlice], id: VectorId, len: usize) -> Result<&'a [f32]> {
    let vector = float_vector(arena, vectors, id)?;
    if vector.len() == len {
        return Ok(vector);
    }
    Err(Error::new(ErrorCode::Internal, "a norm's weight does not fit").expected(len).found(vector.len()))
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

    fn pack_group(&mut self, members: &[LinearSource<'_>]) -> Result<GroupId> {
        let packed = Group::pack(&mut self.pool, &mut self.arena, members)?;
        let group = self.groups.len();
        for (member, (source, linear)) in members.iter().zip(&packed.members).enumerate() {
            let (in_features, out_features) = (packed.in_features, linear.out_features());
            self.sites.insert(source.site, SitePlace { group, member, in_features, out_features });
        }
        self.groups.push(packed);
        Ok(GroupId(group as u32))
    }

    fn pack_table(&mut self, _: SiteId, table: TensorView<'_>) -> Result<TableId> {
        let (&[vocab, hidden], true) = (table.shape(), table.dtype().is_float()) else {
            return Err(Error::new(ErrorCode::Internal, "an embedding table must be a matrix of floats")
                .found(format!("{} {}", table.dtype(), shape_text(table.shape()))));
        };
        let store = self.arena.take(table.bytes().len())?;
        self.arena.values_mut::<u8>(store).copy_from_slice(table.bytes());
        self.tables.push(Table { dtype: table.dtype(), vocab, hidden, store });
        Ok(TableId(self.tables.len() as u32 - 1))
    }

    fn pack_vector(&mut self, _: SiteId, vector: TensorView<'_>) -> Result<VectorId> {
        if !vector.dtype().is_float() {
            return Err(Error::new(ErrorCode::Internal, "a vector must hold floats").found(vector.dtype()));
        }
        let slice = self.arena.take(vector.len() * size_of::<f32>())?;
        vector.read_f32(0..vector.len(), self.arena.values_mut(slice));
        self.vectors.push(slice);
        Ok(VectorId(self.vectors.len() as u32 - 1))
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

    fn holds(&self, _: SiteId, _: SitePart, _: TensorView<'_>) -> bool {
        false
    }

    fn upload_adapter(&mut self, slot: SlotId, deltas: &[SiteDelta<'_>]) -> Result<usize> {
        let index = slot.0 as usize;
        if self.adapters.get(index).is_some_and(Option::is_some) {
            return Err(Error::new(ErrorCode::Internal, format!("slot {index} is taken")));
        }
        let adapter = Adapter::new(deltas, &self.sites, self.groups.len())?;
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
        table: TableId,
        tokens: &[u32],
        multiplier: f32,
        _: &AdapterBatch,
        out: BufferId,
    ) -> Result<()> {
        let table = self.tables.get(table.0 as usize).ok_or_else(|| unknown("an embedding table"))?;
        let out = self.buffers.get_mut(out.0 as usize).ok_or_else(|| unknown("a buffer"))?;
        out.expect(table.hidden, tokens.len())?;
        if let Some(&token) = tokens.iter().find(|&&token| token as usize >= table.vocab) {
            return Err(Error::new(ErrorCode::TokenOutOfRange, "a token is outside the vocabulary")
                .expected(format!("below {}", table.vocab))
                .found(token));
        }
        let (stride, bytes) = (out.stride, self.arena.values::<u8>(table.store));
        elementwise::for_rows(&mut self.pool, tokens.len(), table.hidden, out.values_mut(), stride, |i, out| {
            elementwise::embed_row(table.dtype, bytes, tokens[i], multiplier, out);
        })
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
        let weight = float_vector(&self.arena, &self.vectors, weight)?;
        let (x, out) = pair(&mut self.buffers, x, out)?;
        x.expect(weight.len(), rows)?;
        out.expect(weight.len(), rows)?;
        let (kernels, width, stride, x) = (self.kernels, weight.len(), out.stride, x.rows());
        elementwise::for_rows(&mut self.pool, rows, width, out.values_mut(), stride, |i, out| {
            // SAFETY: the kernels exist, so their instruction set does.
            unsafe { (kernels.norm)(weight, eps, &x.row(i)[..width], out) };
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
        let context =
            Context { kernels: self.kernels, arena: &self.arena, adapters: &self.adapters, group, group_index, batch };
        let inputs = Inputs { x: x.rows(), rows, picked: None };
        let output = Output { stride: y.stride, y: y.values_mut(), write };
        linear::run(&mut self.pool, &context, inputs, output, &mut self.linear_scratch)
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
        let cache = self.kvs.get_mut(kv.0 as usize).and_then(Option::as_mut).ok_or_else(|| unknown("a KV cache"))?;
        let norm = |id: Option<VectorId>| {
            id.map(|id| checked_vector(&self.arena, &self.vectors, id, spec.head_dim)).transpose()
        };
        let norms = HeadNorms { q: norm(spec.q_norm)?, k: norm(spec.k_norm)? };
        let (qkv, out) = pair(&mut self.buffers, qkv, out)?;
        qkv.expect((spec.heads + 2 * spec.kv_heads) * spec.head_dim, rows.len())?;
        out.expect(spec.heads * spec.head_dim, rows.len())?;
        let output = Output { stride: out.stride, y: out.values_mut(), write: Write::Replace };
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
                .expected(rows.len() * group.out_features)
                .found(logits.len()));
        }
        let context =
            Context { kernels: self.kernels, arena: &self.arena, adapters: &self.adapters, group, group_index, batch };
        let inputs = Inputs { x: x.rows(), rows: rows.len(), picked: Some(rows) };
        let output = Output { stride, y: logits, write: Write::Replace };
        linear::run(&mut self.pool, &context, inputs, output, &mut self.linear_scratch)
    }
}
