//! A decoder in a backend, and the one walk over its layers that every family shares.

use crate::adapter::batch::AdapterBatch;
use crate::backend::{
    AttentionSpec, Backend, BufferId, EmbeddingId, GroupId, KvId, LinearSource, NormId, StepRows, Write,
};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, ErrorCode, Result};
use crate::model::batch::StepBatch;
use crate::model::config::DecoderConfig;
use crate::model::{KvStorage, Progress};
use crate::quant::{self, QuantConfig, StoredWeight};
use crate::sites::{LayerList, Site, SiteId, SiteTable};
use crate::tensor::TensorView;

/// How often the cache of a token has the base's number of layers, for a stack of that many.
pub(super) fn kv_groups_of(stack: usize, base_layers: usize) -> usize {
    stack.div_ceil(base_layers.max(1)).max(1)
}

/// Packed weights of a decoder, by their ids in a backend.
pub(super) struct Decoder {
    embedding: EmbeddingId,
    layers: Vec<Layer>,
    final_norm: NormId,
    head: GroupId,
    buffers: Buffers,
    config: DecoderConfig,
}

struct Layer {
    attention_norm: NormId,
    qkv: GroupId,
    attention: AttentionSpec,
    output: GroupId,
    mlp_norm: NormId,
    gate_up: GroupId,
    down: GroupId,
}

/// Activations of a step, `[rows, …]` each.
struct Buffers {
    /// The residual stream, `hidden_size`.
    hidden: BufferId,
    /// What a norm gave, `hidden_size`.
    normed: BufferId,
    /// `(heads + 2 kv_heads) * head_dim`.
    qkv: BufferId,
    /// `heads * head_dim`.
    attended: BufferId,
    /// `2 * intermediate_size`.
    gate_up: BufferId,
    /// `intermediate_size`.
    activated: BufferId,
}

impl Decoder {
    /// Walks the layers for the rows of `batch`; `logits` becomes `[logit_rows, logit_width]`. There is a cache for each
    /// kv_group, or one that has the pages of all.
    pub(super) fn forward(
        &self,
        backend: &mut dyn Backend,
        batch: &mut StepBatch,
        kvs: &[&KvStorage],
        logits: &mut [f32],
    ) -> Result<()> {
        let (b, eps, rows) = (&self.buffers, self.config.norm_eps, batch.tokens.len());
        backend.reserve_rows(rows)?;
        backend.embed(self.embedding, &batch.tokens, 1.0, &batch.adapters, b.hidden)?;
        match batch.layer_map.clone() {
            None => {
                let (rows, kv) = kv_group(&batch.kv_groups, kvs, 0)?;
                for layer in &self.layers {
                    self.layer(backend, layer, &layer.attention, &batch.adapters, rows, kv)?;
                }
            }
            Some(stack) => self.stacked_layers(backend, &stack, batch, kvs)?,
        }
        if batch.logit_rows.is_empty() {
            return Ok(());
        }
        backend.norm(self.final_norm, eps, b.hidden, rows, &batch.adapters, b.normed)?;
        backend.head(self.head, b.normed, &batch.logit_rows, &batch.logit_adapters, logits, batch.logit_width)
    }

    /// The layers in the order of a stack of an adapter's own, where one may stand several times.
    fn stacked_layers(
        &self,
        backend: &mut dyn Backend,
        stack: &[u32],
        batch: &mut StepBatch,
        kvs: &[&KvStorage],
    ) -> Result<()> {
        let mut repeats = vec![0; self.layers.len()];
        for (index, &base) in stack.iter().enumerate() {
            let layer = self.layers.get(base as usize).ok_or_else(unfit)?;
            batch.adapters.set_repeat(repeats[base as usize]);
            repeats[base as usize] += 1;
            let attention = AttentionSpec { layer: index % self.layers.len(), ..layer.attention.clone() };
            let (rows, kv) = kv_group(&batch.kv_groups, kvs, index / self.layers.len())?;
            self.layer(backend, layer, &attention, &batch.adapters, rows, kv)?;
        }
        batch.adapters.set_repeat(0);
        Ok(())
    }

    fn layer(
        &self,
        backend: &mut dyn Backend,
        layer: &Layer,
        attention: &AttentionSpec,
        adapters: &AdapterBatch,
        places: &StepRows,
        kv: KvId,
    ) -> Result<()> {
        let (b, eps, rows) = (&self.buffers, self.config.norm_eps, places.len());
        backend.norm(layer.attention_norm, eps, b.hidden, rows, adapters, b.normed)?;
        backend.linear(layer.qkv, b.normed, rows, adapters, b.qkv, Write::Replace)?;
        backend.attend(attention, kv, places, adapters, b.qkv, b.attended)?;
        backend.linear(layer.output, b.attended, rows, adapters, b.hidden, Write::Add)?;

        backend.norm(layer.mlp_norm, eps, b.hidden, rows, adapters, b.normed)?;
        backend.linear(layer.gate_up, b.normed, rows, adapters, b.gate_up, Write::Replace)?;
        backend.activate(self.config.activation, b.gate_up, rows, b.activated)?;
        backend.linear(layer.down, b.activated, rows, adapters, b.hidden, Write::Add)
    }
}

/// Rows and cache of a kv_group: its own, or those that all kv_groups share.
fn kv_group<'a>(kv_groups: &'a [StepRows], kvs: &[&KvStorage], kv_group: usize) -> Result<(&'a StepRows, KvId)> {
    let of = |count: usize| if count == 1 { 0 } else { kv_group };
    match (kv_groups.get(of(kv_groups.len())), kvs.get(of(kvs.len()))) {
        (Some(rows), Some(kv)) if kv_group < kv_groups.len().max(kvs.len()) => Ok((rows, kv.id)),
        _ => Err(unfit()),
    }
}

fn unfit() -> Error {
    Error::new(ErrorCode::Internal, "a step's stack of layers does not fit the model or its cache")
}

/// Packs a checkpoint's decoder into a backend and lists its sites.
pub(super) struct DecoderLoader<'a> {
    pub config: &'a DecoderConfig,
    pub quant: Option<&'a QuantConfig>,
    pub checkpoint: &'a Checkpoint,
    pub backend: &'a mut dyn Backend,
    pub sites: SiteTable,
    pub progress: &'a mut dyn FnMut(Progress) -> Result<()>,
    pub done: usize,
}

/// Paths of the modules that every family calls alike.
const EMBEDDING: &str = "model.embed_tokens";
const LAYERS: &str = "model.layers";
const HEAD: &str = "lm_head";

/// A linear of a group: module path, width of the output, whether config.json promises a bias.
type Member = (String, usize, bool);

impl<'a> DecoderLoader<'a> {
    /// Packs everything, layer by layer, and lets go of the mapped pages as it proceeds.
    pub(super) fn load(mut self) -> Result<(Decoder, SiteTable)> {
        let c = self.config;
        let (query, key) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let table = quant::open_dense(self.checkpoint, self.embedding_name(), &[c.vocab_size, c.hidden_size])?;
        let site = self.sites.push(Site::embedding(EMBEDDING, c.vocab_size, c.hidden_size));
        let embedding = self.backend.load_embedding(site, table)?;
        self.advance()?;
        self.sites.layers = LayerList { prefix: LAYERS.to_owned(), count: c.layers };
        let layers = (0..c.layers).map(|layer| self.layer(layer)).collect::<Result<Vec<_>>>()?;
        let final_norm = self.norm("model.norm", c.hidden_size)?;
        let head = self.head()?;
        (self.sites.embedding, self.sites.head) = (Some(site), self.sites.find(HEAD));
        self.sites.is_head_tied = c.tie_word_embeddings;
        self.checkpoint.release();
        let mut buffer = |width| self.backend.create_buffer(width);
        let buffers = Buffers {
            hidden: buffer(c.hidden_size),
            normed: buffer(c.hidden_size),
            qkv: buffer(query + 2 * key),
            attended: buffer(query),
            gate_up: buffer(2 * c.intermediate_size),
            activated: buffer(c.intermediate_size),
        };
        Ok((Decoder { embedding, layers, final_norm, head, buffers, config: c.clone() }, self.sites))
    }

    fn layer(&mut self, index: usize) -> Result<Layer> {
        let c = self.config;
        let (query, key) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let at = |name: &str| format!("{LAYERS}.{index}.{name}");
        let bias = c.biases;

        let attention_norm = self.norm(&at("input_layernorm"), c.hidden_size)?;
        let qkv = [("q_proj", query), ("k_proj", key), ("v_proj", key)]
            .map(|(name, width)| (at(&format!("self_attn.{name}")), width, bias.qkv));
        let qkv = self.fused_group(&at("self_attn.qkv_proj"), c.hidden_size, &qkv)?;
        let attention = AttentionSpec {
            layer: index,
            heads: c.heads,
            kv_heads: c.kv_heads,
            head_dim: c.head_dim,
            scale: 1.0 / (c.head_dim as f32).sqrt(),
            window: c.windows[index],
            q_norm: self.head_norm(&at("self_attn.q_norm"))?,
            k_norm: self.head_norm(&at("self_attn.k_norm"))?,
            norm_eps: c.norm_eps,
            rope: c.rope.clone(),
        };
        let output = self.group(query, &[(at("self_attn.o_proj"), c.hidden_size, bias.output)])?;

        let mlp_norm = self.norm(&at("post_attention_layernorm"), c.hidden_size)?;
        let gate_up = ["gate_proj", "up_proj"].map(|name| (at(&format!("mlp.{name}")), c.intermediate_size, bias.mlp));
        let gate_up = self.fused_group(&at("mlp.gate_up_proj"), c.hidden_size, &gate_up)?;
        let down = self.group(c.intermediate_size, &[(at("mlp.down_proj"), c.hidden_size, bias.mlp)])?;
        self.checkpoint.release();
        Ok(Layer { attention_norm, qkv, attention, output, mlp_norm, gate_up, down })
    }

    /// A group that models of another shape have as one module, whose adapters find its members by `path`.
    fn fused_group(&mut self, path: &str, in_features: usize, members: &[Member]) -> Result<GroupId> {
        let group = self.group(in_features, members)?;
        let sites: Vec<SiteId> = members.iter().filter_map(|(member, ..)| self.sites.find(member)).collect();
        self.sites.add_fused_alias(path, &sites);
        Ok(group)
    }

    fn group(&mut self, in_features: usize, members: &[Member]) -> Result<GroupId> {
        let mut sources = Vec::with_capacity(members.len());
        for (path, out_features, has_bias) in members {
            let weight = quant::open_linear(self.checkpoint, self.quant, path, in_features, *out_features)?;
            let bias = self.bias(path, *out_features, *has_bias, &weight)?;
            sources.push(self.source(path, weight, bias));
        }
        self.pack(&sources)
    }

    /// The stored bias of a linear. GPTQ exporters write one, often of zeros, where the architecture has none.
    fn bias(
        &self,
        path: &str,
        out_features: usize,
        is_promised: bool,
        weight: &StoredWeight<'_>,
    ) -> Result<Option<TensorView<'a>>> {
        let bias = quant::open_bias(self.checkpoint, path, out_features)?;
        let wrong = match (&bias, is_promised, weight) {
            (None, true, _) => (ErrorCode::CheckpointTensorMissing, "a bias that the architecture has is missing"),
            (Some(_), false, StoredWeight::Dense(_)) => {
                (ErrorCode::ModelConfigInvalid, "the checkpoint has a bias where config.json says there is none")
            }
            _ => return Ok(bias),
        };
        Err(Error::new(wrong.0, wrong.1).with_tensor(format!("{path}.bias")))
    }

    fn source<'w>(&mut self, path: &str, weight: StoredWeight<'w>, bias: Option<TensorView<'w>>) -> LinearSource<'w> {
        let site = Site::linear(path, weight.in_features(), weight.out_features()).with_bias(bias.is_some());
        let site = self.sites.push(site);
        LinearSource { site, weight, bias }
    }

    fn pack(&mut self, sources: &[LinearSource<'_>]) -> Result<GroupId> {
        let group = self.backend.load_linears(sources)?;
        for _ in sources {
            self.advance()?;
        }
        Ok(group)
    }

    /// The output head: its own weight where one is stored, else the embedding if they are tied (as transformers does).
    fn head(&mut self) -> Result<GroupId> {
        let c = self.config;
        if quant::format_of(self.checkpoint, HEAD).is_some() || !c.tie_word_embeddings {
            return self.group(c.hidden_size, &[(HEAD.to_owned(), c.vocab_size, false)]);
        }
        let table = quant::open_dense(self.checkpoint, self.embedding_name(), &[c.vocab_size, c.hidden_size])?;
        let source = self.source(HEAD, StoredWeight::Dense(table), None);
        self.pack(&[source])
    }

    /// The embedding, under the head's name where they are tied and only that is stored.
    fn embedding_name(&self) -> &'static str {
        let (embedding, head) = ("model.embed_tokens.weight", "lm_head.weight");
        let only_head = self.checkpoint.contains(head) && !self.checkpoint.contains(embedding);
        if self.config.tie_word_embeddings && only_head { head } else { embedding }
    }

    fn head_norm(&mut self, path: &str) -> Result<Option<NormId>> {
        if !self.config.has_qk_norm {
            return Ok(None);
        }
        self.norm(path, self.config.head_dim).map(Some)
    }

    fn norm(&mut self, path: &str, width: usize) -> Result<NormId> {
        let weight = quant::open_dense(self.checkpoint, &format!("{path}.weight"), &[width])?;
        let site = self.sites.push(Site::norm(path, width));
        self.backend.load_norm(site, weight)
    }

    fn advance(&mut self) -> Result<()> {
        self.done += 1;
        (self.progress)(Progress { done: self.done, total: self.config.layers * 7 + 2 })
    }
}
