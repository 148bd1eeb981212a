//! The six operations: each looks up what its ids name and calls the file in `ops` that computes it.

use std::ops::Range;
use std::sync::Arc;

use super::adapter::resident::Adapter;
use super::adapter::routing::{RoutedNorm, Routing};
use super::ops::attention;
use super::ops::embed::Embedding;
use super::ops::kv_append::{HeadNorms, RoutedHeadNorm};
use super::ops::linear::{self, Context};
use super::ops::rowwise::{NORMED_PER_NS, for_rows};
use super::runtime::buffers::{Buffer, Inputs, Output, Store};
use super::runtime::kv_cache::KvCache;
use super::runtime::threads::Pool;
use super::weights::BaseWeights;
use crate::adapter::batch::{AdapterBatch, SlotId};
use crate::backend::kv_positions::PositionCopy;
use crate::backend::kv_states::KvStates;
use crate::backend::slots::Slots;
use crate::backend::{
    Activation, AttentionSpec, BufferId, Compute, EmbeddingId, GroupId, HeadNorm, HeadSpec, KvId, KvPositions, KvShape,
    LogitRows, MemoryUse, MlpShape, NormSpec, PreparedAdapter, StepRows, Write,
};
use crate::error::{Error, ErrorCode, Result};

/// Values that a thread activates and multiplies in a nanosecond.
const ACTIVATED_PER_NS: usize = 2;

/// Everything that a step changes, beside the weights it reads.
pub(super) struct CpuCompute {
    weights: Arc<BaseWeights>,
    pool: Pool,
    memory: Arc<MemoryUse>,
    buffers: Vec<Buffer>,
    kvs: Vec<Option<KvCache>>,
    adapters: Slots<Adapter>,
    linear_scratch: linear::Scratch,
    attention_scratch: attention::Scratch,
}

impl CpuCompute {
    /// Over these weights.
    pub(super) fn new(weights: Arc<BaseWeights>, pool: Pool, memory: Arc<MemoryUse>) -> Self {
        Self {
            weights,
            pool,
            adapters: Slots::new(Arc::clone(&memory)),
            memory,
            buffers: Vec::new(),
            kvs: Vec::new(),
            linear_scratch: linear::Scratch::default(),
            attention_scratch: attention::Scratch::default(),
        }
    }

    fn kv(&self, kv: KvId) -> Result<&KvCache> {
        self.kvs.get(kv.0 as usize).and_then(Option::as_ref).ok_or_else(|| unknown("a KV cache"))
    }
}

fn unknown(what: &str) -> Error {
    Error::new(ErrorCode::Internal, format!("the step names {what} that the backend does not have"))
}

/// Two different buffers, the second to write.
fn pair(buffers: &mut [Buffer], x: BufferId, y: BufferId) -> Result<(&Buffer, &mut Buffer)> {
    match buffers.get_disjoint_mut([x.0 as usize, y.0 as usize]) {
        Ok([x, y]) => Ok((x, y)),
        Err(_) => Err(unknown("a buffer, or one for input and output,")),
    }
}

/// A norm, over `width` channels.
fn routed_norm<'a>(
    weights: &'a BaseWeights,
    spec: NormSpec,
    width: usize,
    routing: Routing<'a>,
) -> Result<RoutedNorm<'a>> {
    let (form, base) = weights.norm(spec.id.0 as usize).ok_or_else(|| unknown("a norm"))?;
    if form.width() != width {
        return Err(Error::new(ErrorCode::Internal, "a norm's weight does not fit")
            .with_expected(width)
            .with_found(form.width()));
    }
    Ok(RoutedNorm::new(routing, spec, width, base))
}

impl Compute for CpuCompute {
    fn create_buffer(&mut self, width: usize) -> BufferId {
        self.buffers.push(Buffer::new(width));
        BufferId(self.buffers.len() as u32 - 1)
    }

    fn reserve_rows(&mut self, rows: usize) -> Result<()> {
        self.attention_scratch.kv_overflows.clear();
        self.buffers.iter_mut().try_for_each(|buffer| buffer.reserve(rows))
    }

    fn write_rows(&mut self, buffer: BufferId, first: usize, values: &[f32]) -> Result<()> {
        self.buffers.get_mut(buffer.0 as usize).ok_or_else(|| unknown("a buffer"))?.write(first, values)
    }

    fn read_rows(&mut self, buffer: BufferId, values: &mut [f32]) -> Result<()> {
        self.buffers.get(buffer.0 as usize).ok_or_else(|| unknown("a buffer"))?.read(values)
    }

    fn create_kv(&mut self, shape: KvShape) -> Result<KvId> {
        let cache = KvCache::new(shape)?;
        self.memory.add_kv(cache.bytes());
        self.kvs.push(Some(cache));
        Ok(KvId(self.kvs.len() as u32 - 1))
    }

    fn drop_kv(&mut self, kv: KvId) {
        if let Some(cache) = self.kvs.get_mut(kv.0 as usize).and_then(Option::take) {
            self.memory.remove_kv(cache.bytes());
        }
    }

    fn read_kv(&self, kv: KvId, layer: usize, block_table: &[u32], positions: Range<usize>) -> Result<KvStates> {
        self.kv(kv)?.read(layer, block_table, positions)
    }

    fn copy_kv_pages(&mut self, from: KvId, from_pages: &[u32], to: KvId, to_pages: &[u32]) -> Result<()> {
        let unknown = || unknown("a KV cache");
        if from == to {
            let cache = self.kvs.get_mut(to.0 as usize).and_then(Option::as_mut).ok_or_else(unknown)?;
            return cache.copy_pages_within(to_pages, from_pages);
        }
        match self.kvs.get_disjoint_mut([from.0 as usize, to.0 as usize]) {
            Ok([Some(from), Some(to)]) => to.copy_pages(to_pages, from, from_pages),
            _ => Err(unknown()),
        }
    }

    fn copy_kv_positions(
        &mut self,
        layer: usize,
        from: KvPositions<'_>,
        to: KvPositions<'_>,
        keys: Option<&[f32]>,
    ) -> Result<bool> {
        let (source, target, to_kv) = (self.kv(from.kv)?, self.kv(to.kv)?, to.kv);
        let shapes = [source, target].map(|cache| cache.layout().shape);
        let read_page = |page| source.layer_page(layer, page);
        let copy = PositionCopy::read(layer, (&shapes[0], from), (&shapes[1], to), keys, read_page)?;
        let target = self.kvs.get_mut(to_kv.0 as usize).and_then(Option::as_mut);
        Ok(target.ok_or_else(|| unknown("a KV cache"))?.write_positions(layer, &copy))
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
        let index = table.0 as usize;
        let table = self.weights.tables.get(index).ok_or_else(|| unknown("an embedding table"))?;
        let out = self.buffers.get_mut(out.0 as usize).ok_or_else(|| unknown("a buffer"))?;
        out.expect(table.hidden, tokens.len())?;
        let routing = Routing::new(batch, &self.adapters, tokens.len())?;
        let embedding = Embedding { kernels: self.weights.kernels, arena: &self.weights.arena, table, index, routing };
        let (stride, shrunk) = (out.stride, &mut self.linear_scratch.shrunk);
        embedding.run(&mut self.pool, tokens, multiplier, out.values_mut(), stride, shrunk)
    }

    fn norm(
        &mut self,
        norm: &NormSpec,
        x: BufferId,
        rows: usize,
        batch: &AdapterBatch,
        out: BufferId,
        write: Write,
    ) -> Result<()> {
        let (x, out) = pair(&mut self.buffers, x, out)?;
        let routing = Routing::new(batch, &self.adapters, rows)?;
        let norm = routed_norm(&self.weights, *norm, x.width, routing)?;
        x.expect(norm.width, rows)?;
        out.expect(norm.width, rows)?;
        let (kernels, width, stride, x) = (self.weights.kernels, norm.width, out.stride, x.rows());
        for_rows(&mut self.pool, rows, width, NORMED_PER_NS, out.values_mut(), stride, |i, out| {
            kernels.norm(&norm.of_row(i), &x.row(i)[..width], write, out);
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
        let group = self.weights.groups.get(group_index).ok_or_else(|| unknown("a group"))?;
        let (x, y) = pair(&mut self.buffers, x, y)?;
        x.expect(group.in_features, rows)?;
        y.expect(group.out_features, rows)?;
        let routing = Routing::new(batch, &self.adapters, rows)?;
        let context =
            Context { kernels: self.weights.kernels, arena: &self.weights.arena, group, group_index, routing };
        let inputs = Inputs { x: x.rows(), rows, picked: None };
        let output = Output { stride: y.stride, width: y.width, y: y.values_mut(), store: write.into() };
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
        let norm = |norm: Option<HeadNorm>, heads: usize| {
            let Some(HeadNorm { norm, scope }) = norm else { return Ok(None) };
            let width = scope.weight_shape(heads, spec.head_dim).into_iter().product();
            Ok::<_, Error>(Some(RoutedHeadNorm { norm: routed_norm(&self.weights, norm, width, routing)?, scope }))
        };
        let norms = HeadNorms { q: norm(spec.q_norm, spec.heads)?, k: norm(spec.k_norm, spec.kv_heads)? };
        let (qkv, out) = pair(&mut self.buffers, qkv, out)?;
        qkv.expect((spec.heads + 2 * spec.kv_heads) * spec.head_dim, rows.len())?;
        out.expect(spec.heads * spec.head_dim, rows.len())?;
        let output = Output { stride: out.stride, width: out.width, y: out.values_mut(), store: Store::Replace };
        attention::run(
            &mut self.pool,
            self.weights.kernels,
            cache,
            spec,
            norms,
            rows,
            qkv.rows(),
            output,
            &mut self.attention_scratch,
        )
    }

    fn take_kv_overflows(&mut self) -> Result<Vec<u32>> {
        Ok(std::mem::take(&mut self.attention_scratch.kv_overflows).into_iter().collect())
    }

    fn activate(
        &mut self,
        activation: Activation,
        shape: MlpShape,
        x: BufferId,
        rows: usize,
        out: BufferId,
    ) -> Result<()> {
        let kernels = self.weights.kernels;
        let (x, out) = pair(&mut self.buffers, x, out)?;
        let inputs = match shape {
            MlpShape::Gated => 2 * out.width,
            MlpShape::Plain => out.width,
        };
        x.expect(inputs, rows)?;
        out.expect(out.width, rows)?;
        let (width, stride, x) = (out.width, out.stride, x.rows());
        for_rows(&mut self.pool, rows, width, ACTIVATED_PER_NS, out.values_mut(), stride, |i, out| {
            let (gate, up) = x.row(i)[..inputs].split_at(width);
            kernels.activate(activation, gate, (shape == MlpShape::Gated).then_some(up), out);
        })
    }

    fn head(
        &mut self,
        head: &HeadSpec,
        x: BufferId,
        rows: LogitRows<'_>,
        logits: &mut [f32],
        stride: usize,
    ) -> Result<()> {
        let LogitRows { rows, adapters, .. } = rows;
        let group_index = head.group.0 as usize;
        let group = self.weights.groups.get(group_index).ok_or_else(|| unknown("a group"))?;
        let x = self.buffers.get(x.0 as usize).ok_or_else(|| unknown("a buffer"))?;
        x.expect(group.in_features, rows.iter().max().map_or(0, |&row| row as usize + 1))?;
        if logits.len() != rows.len() * stride || stride < group.out_features {
            return Err(Error::new(ErrorCode::Internal, "the buffer for logits does not fit")
                .with_expected(rows.len() * group.out_features)
                .with_found(logits.len()));
        }
        let routing = Routing::new(adapters, &self.adapters, rows.len())?;
        let context =
            Context { kernels: self.weights.kernels, arena: &self.weights.arena, group, group_index, routing };
        let inputs = Inputs { x: x.rows(), rows: rows.len(), picked: Some(rows) };
        let output = Output { stride, width: stride, y: logits, store: head.into() };
        linear::run(&mut self.pool, &context, inputs, output, &mut self.linear_scratch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::delta::{LowRank, SiteDelta};
    use crate::backend::cpu::kernels::dispatch::Kernels;
    use crate::backend::cpu::kernels::isa::Isa;
    use crate::backend::cpu::kernels::vector::LINE;
    use crate::backend::cpu::preparer::CpuPreparer;
    use crate::backend::{ActivationDType, AdapterPreparer, LinearSource};
    use crate::checkpoint::Checkpoint;
    use crate::quant::StoredWeight;
    use crate::sites::{SiteId, SitePart};
    use crate::tensor::Tensor;

    const INPUTS: usize = 24;
    const OUTPUTS: usize = 20;
    const ROWS: usize = 7;

    /// A matrix of values of either sign.
    fn matrix(rows: usize, columns: usize, seed: usize) -> Tensor<'static> {
        let value = |i: usize| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1000.0 - 1.0;
        Tensor::from_f32(&[rows, columns], &(0..rows * columns).map(value).collect::<Vec<_>>())
    }

    /// What `linear` and `embed` compute for rows under adapters of ranks 40 and 3, and how many values of t they held, if
    /// they are to hold at most `max_t`.
    fn outputs_and_largest_t(max_t: usize) -> [(Vec<f32>, usize); 2] {
        let mut pool = Pool::new(2).expect("threads");
        let mut weights =
            BaseWeights::new(Kernels::of(Isa::detect()).expect("this machine has it"), ActivationDType::F32);
        let (linear, table) = (SiteId(0), SiteId(1));
        let (weight, embeddings) = (matrix(OUTPUTS, INPUTS, 1), matrix(ROWS, OUTPUTS, 2));
        let source =
            LinearSource { site: linear, weight: StoredWeight::Dense(weight.view()), bias: None, checkpoint: None };
        let group = weights.load_linears(&mut pool, &[source]).expect("it packs");
        let embedding = weights.load_embedding(table, embeddings.view()).expect("it packs");
        let weights = Arc::new(weights);
        let mut compute = CpuCompute::new(Arc::clone(&weights), pool, Arc::new(MemoryUse::new(0)));
        compute.linear_scratch.shrunk.max_t = max_t;
        for (slot, rank) in [(SlotId(1), 40), (SlotId(2), 3)] {
            let low = |inputs, seed| LowRank::new(matrix(rank, inputs, seed), matrix(OUTPUTS, rank, seed + 1), 0.1);
            let deltas = [(linear, INPUTS), (table, ROWS)]
                .map(|(site, inputs)| SiteDelta { low_rank: Some(low(inputs, 3 + rank)), ..SiteDelta::at(site) });
            let preparer = CpuPreparer::new(Arc::clone(&weights), 1);
            let prepared = preparer.prepare(&deltas, &mut || Ok(())).expect("it is prepared");
            compute.install_adapter(slot, prepared).expect("the slot is free");
        }
        let (one, two) = ((SlotId(1), 1.0), (SlotId(2), -0.5));
        let mixtures: [&[(SlotId, f32)]; ROWS] = [&[], &[one], &[two, one], &[one], &[], &[two], &[one, two]];
        let mut batch = AdapterBatch::default();
        batch.rebuild(mixtures);

        let [x, y] = [INPUTS, OUTPUTS].map(|width| compute.create_buffer(width));
        compute.reserve_rows(ROWS).expect("memory");
        compute.write_rows(x, 0, &matrix(ROWS, INPUTS, 5).view().to_f32()).expect("rows fit");
        let result = |compute: &mut CpuCompute| {
            let mut values = vec![0.0; ROWS * OUTPUTS];
            compute.read_rows(y, &mut values).expect("rows are there");
            (values, std::mem::take(&mut compute.linear_scratch.shrunk.t).len())
        };
        compute.linear(group, x, ROWS, &batch, y, Write::Replace).expect("it computes");
        let linear = result(&mut compute);
        compute.embed(embedding, &[0, 1, 2, 3, 4, 5, 6], 2.0, &batch, y).expect("it computes");
        [linear, result(&mut compute)]
    }

    #[test]
    fn rows_in_blocks_have_the_same_bits_and_hold_less_at_once() {
        let whole = outputs_and_largest_t(usize::MAX);
        for max_t in [0, 50, 100, 120] {
            for ((values, held), (expected, all)) in outputs_and_largest_t(max_t).iter().zip(&whole) {
                let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(values), bits(expected), "at most {max_t}");
                // Of a single row there are at most 48 + 16.
                assert!(*held <= max_t.max(64) && held < all, "{held} of {all} values of t, at most {max_t}");
            }
        }
    }

    #[test]
    fn a_table_on_disk_embeds_as_its_copy_does_until_the_file_is_changed_in_place() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("model.safetensors");
        let table = matrix(ROWS, OUTPUTS, 2);
        let header = format!(
            r#"{{"table":{{"dtype":"F32","shape":[{ROWS},{OUTPUTS}],"data_offsets":[0,{}]}}}}"#,
            table.bytes().len()
        );
        let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), table.bytes()].concat();
        std::fs::write(&path, file).expect("it is written");

        let mut weights =
            BaseWeights::new(Kernels::of(Isa::detect()).expect("this machine has it"), ActivationDType::F32);
        let checkpoint = Checkpoint::open(folder.path()).expect("it opens");
        let on_disk = checkpoint.on_disk("table").expect("it is mapped");
        let tables = [
            weights.load_embedding(SiteId(0), table.view()).expect("it fits"),
            weights
                .load_embedding_on_disk(SiteId(1), checkpoint.tensor("table").expect("there"), on_disk)
                .expect("it fits"),
        ];
        drop(checkpoint);
        let padded = table.bytes().len().next_multiple_of(LINE);
        assert_eq!(weights.arena.bytes(), padded, "one of them is in memory");
        assert!(weights.equals(SiteId(1), SitePart::Weight, table.view()));
        let other = matrix(ROWS, OUTPUTS, 3);
        assert!(!weights.equals(SiteId(1), SitePart::Weight, other.view()));

        let pool = Pool::new(2).expect("threads");
        let mut compute = CpuCompute::new(Arc::new(weights), pool, Arc::new(MemoryUse::new(0)));
        let out = compute.create_buffer(OUTPUTS);
        compute.reserve_rows(ROWS).expect("memory");
        let mut embed = |table| {
            let mut values = vec![0.0; ROWS * OUTPUTS];
            compute.embed(table, &[3, 0, 6, 6, 1, 2, 5], 1.5, &AdapterBatch::default(), out)?;
            compute.read_rows(out, &mut values).map(|()| values)
        };
        let copied = embed(tables[0]).expect("it embeds");
        assert_eq!(embed(tables[1]).expect("it embeds"), copied);
        std::fs::write(&path, "another file").expect("it is written");
        assert_eq!(embed(tables[1]).unwrap_err().code(), ErrorCode::CheckpointTruncated);
        assert_eq!(embed(tables[0]).expect("a copy does not need the file"), copied);
    }
}
