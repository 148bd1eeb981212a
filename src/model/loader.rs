//! A checkpoint's decoder into a backend, layer by layer, and the list of its sites.

use super::config::DecoderConfig;
use super::decoder::{DecoderWeights, LayerWeights};
use crate::backend::{AttentionSpec, GroupId, LinearSource, NormId, WeightLoader};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, ErrorCode, Result};
use crate::quant::{self, QuantConfig, StoredWeight};
use crate::sites::{LayerList, Site, SiteId, SiteTable};
use crate::tensor::TensorView;

/// How far loading has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Modules loaded so far.
    pub done: usize,
    /// Modules in all.
    pub total: usize,
}

/// Loads a checkpoint's decoder and lists its sites.
pub(super) struct DecoderLoader<'a> {
    pub config: &'a DecoderConfig,
    pub quant: Option<&'a QuantConfig>,
    pub checkpoint: &'a Checkpoint,
    pub weights: &'a mut dyn WeightLoader,
    pub sites: SiteTable,
    pub progress: &'a mut dyn FnMut(Progress) -> Result<()>,
    pub done: usize,
}

/// Module paths that every family shares.
const EMBEDDING: &str = "model.embed_tokens";
const LAYERS: &str = "model.layers";
const HEAD: &str = "lm_head";

/// A linear of a group: module path, output width, whether the architecture has a bias there.
type Member = (String, usize, bool);

impl<'a> DecoderLoader<'a> {
    /// Loads everything, layer by layer, and releases the mapped pages on the way.
    pub(super) fn load(mut self) -> Result<(DecoderWeights, SiteTable)> {
        let c = self.config;
        let table = quant::open_dense(self.checkpoint, self.embedding_name(), &[c.vocab_size, c.hidden_size])?;
        let site = self.sites.push(Site::embedding(EMBEDDING, c.vocab_size, c.hidden_size));
        let embedding = match self.checkpoint.on_disk(self.embedding_name()) {
            Some(on_disk) => self.weights.load_embedding_on_disk(site, table, on_disk)?,
            None => self.weights.load_embedding(site, table)?,
        };
        self.advance()?;
        self.sites.layers = LayerList { prefix: LAYERS.to_owned(), count: c.layers };
        let layers = (0..c.layers).map(|layer| self.layer(layer)).collect::<Result<Vec<_>>>()?;
        let final_norm = self.norm("model.norm", c.hidden_size)?;
        let head = self.head()?;
        (self.sites.embedding, self.sites.head) = (Some(site), self.sites.find(HEAD));
        self.sites.is_head_tied = c.tie_word_embeddings;
        self.checkpoint.release();
        Ok((DecoderWeights { embedding, layers, final_norm, head }, self.sites))
    }

    fn layer(&mut self, index: usize) -> Result<LayerWeights> {
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
        Ok(LayerWeights { attention_norm, qkv, attention, output, mlp_norm, gate_up, down })
    }

    /// A group that other model families store as one module, by whose `path` their adapters find its members.
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
        is_expected: bool,
        weight: &StoredWeight<'_>,
    ) -> Result<Option<TensorView<'a>>> {
        let bias = quant::open_bias(self.checkpoint, path, out_features)?;
        let wrong = match (&bias, is_expected, weight) {
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
        let group = self.weights.load_linears(sources)?;
        for _ in sources {
            self.advance()?;
        }
        Ok(group)
    }

    /// The output head: its own weight where one is stored, else the tied embedding (as transformers does).
    fn head(&mut self) -> Result<GroupId> {
        let c = self.config;
        if quant::format_of(self.checkpoint, HEAD).is_some() || !c.tie_word_embeddings {
            return self.group(c.hidden_size, &[(HEAD.to_owned(), c.vocab_size, false)]);
        }
        let table = quant::open_dense(self.checkpoint, self.embedding_name(), &[c.vocab_size, c.hidden_size])?;
        let source = self.source(HEAD, StoredWeight::Dense(table), None);
        self.pack(&[source])
    }

    /// The embedding's tensor, under the head's name where they are tied and only that is stored.
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
        self.weights.load_norm(site, weight)
    }

    fn advance(&mut self) -> Result<()> {
        self.done += 1;
        (self.progress)(Progress { done: self.done, total: self.config.layers * 7 + 2 })
    }
}
