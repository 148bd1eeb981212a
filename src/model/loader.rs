//! A checkpoint's decoder into a backend, layer by layer, and the list of its sites.

use std::str::FromStr;

use half::{bf16, f16};

use super::config::DecoderConfig;
use super::decoder::{DecoderWeights, LayerNorms, LayerWeights};
use crate::backend::{
    AttentionSpec, GroupId, HeadNorm, HeadNormScope, HeadSpec, LinearSource, NormSource, NormSpec, WeightLoader,
};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, ErrorCode, Result};
use crate::quant::{self, QuantConfig, RoundedWeight, StoredWeight};
use crate::sites::{LayerList, Site, SiteId, SiteTable};
use crate::tensor::{DType, TensorView};

/// How far loading has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Modules loaded so far.
    pub done: usize,
    /// Modules in all.
    pub total: usize,
}

/// How the output head's weight is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HeadDType {
    /// As the checkpoint has it.
    #[default]
    Stored,
    /// Rounded to 8 bits, with a scale for every 128 inputs, unless the checkpoint has it quantized. Decoding reads half the
    /// bytes of a float16 head; logits move by about 0.6 % of their size.
    Int8,
}

impl FromStr for HeadDType {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "stored" => Ok(HeadDType::Stored),
            "int8" => Ok(HeadDType::Int8),
            other => Err(Error::new(ErrorCode::RequestInvalid, "a head cannot be kept so")
                .with_expected("stored or int8")
                .with_found(other)),
        }
    }
}

/// Loads a checkpoint's decoder and lists its sites.
pub(super) struct DecoderLoader<'a> {
    pub config: &'a DecoderConfig,
    pub quant: Option<&'a QuantConfig>,
    pub checkpoint: &'a Checkpoint,
    pub head: HeadDType,
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
        let embed_multiplier = match c.multipliers.is_embed_of_table {
            true => rounded_to(table.dtype(), c.multipliers.embed),
            false => c.multipliers.embed,
        };
        let embedding = match self.checkpoint.on_disk(self.embedding_name()) {
            Some(on_disk) => self.weights.load_embedding_on_disk(site, table, on_disk)?,
            None => self.weights.load_embedding(site, table)?,
        };
        self.advance()?;
        self.sites.layers = LayerList { prefix: LAYERS.to_owned(), count: c.layers };
        let layers = (0..c.layers).map(|layer| self.layer(layer)).collect::<Result<Vec<_>>>()?;
        let final_norm = self.norm(Site::norm("model.norm", c.hidden_size))?;
        let head = HeadSpec { group: self.head()?, multiplier: c.multipliers.logit, cap: c.multipliers.logit_cap };
        (self.sites.embedding, self.sites.head) = (Some(site), self.sites.find(HEAD));
        // Of a multimodal model the config says so by default, of whatever text model.
        let has_own_head = c.is_wrapped && quant::format_of(self.checkpoint, HEAD).is_some();
        self.sites.is_head_tied = c.tie_word_embeddings && !has_own_head;
        self.checkpoint.release();
        Ok((DecoderWeights { embedding, embed_multiplier, layers, final_norm, head }, self.sites))
    }

    fn layer(&mut self, index: usize) -> Result<LayerWeights> {
        let c = self.config;
        let (query, key) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let at = |name: &str| format!("{LAYERS}.{index}.{name}");
        let bias = c.biases;

        let pre_attention = self.block_norm(index, c.block.pre_attention)?;
        let qkv = [("q_proj", query), ("k_proj", key), ("v_proj", key)]
            .map(|(name, width)| (at(&format!("self_attn.{name}")), width, bias.qkv));
        let qkv = self.fused_group(&at("self_attn.qkv_proj"), c.hidden_size, &qkv)?;
        let attention = AttentionSpec {
            layer: index,
            heads: c.heads,
            kv_heads: c.kv_heads,
            head_dim: c.head_dim,
            scale: c.scores.scale,
            score_cap: c.scores.cap,
            window: c.windows[index],
            q_norm: self.qk_norm(&at("self_attn.q_norm"), c.heads)?,
            k_norm: self.qk_norm(&at("self_attn.k_norm"), c.kv_heads)?,
            rope: c.ropes[index].clone(),
            query_temperature: c.scores.query_temperature,
        };
        let long_rope = c.long_ropes.as_ref().map(|long| long.ropes[index].clone());
        let long_attention = long_rope.map(|rope| AttentionSpec { rope, ..attention.clone() });
        let output = self.group(query, &[(at("self_attn.o_proj"), c.hidden_size, bias.output)])?;
        let post_attention = self.block_norm(index, c.block.post_attention)?;

        let pre_mlp = self.block_norm(index, c.block.pre_mlp)?;
        let inputs: Vec<Member> = c.mlp.inputs.iter().map(|name| (at(name), c.intermediate_size, bias.mlp)).collect();
        let up = match inputs.len() {
            1 => self.group(c.hidden_size, &inputs)?,
            _ => self.fused_group(&at("mlp.gate_up_proj"), c.hidden_size, &inputs)?,
        };
        let down = self.group(c.intermediate_size, &[(at(c.mlp.output), c.hidden_size, bias.mlp)])?;
        let post_mlp = self.block_norm(index, c.block.post_mlp)?;
        self.checkpoint.release();
        let norms = LayerNorms { pre_attention, post_attention, pre_mlp, post_mlp };
        Ok(LayerWeights { norms, qkv, attention, long_attention, output, up, down })
    }

    /// A group of linears that a checkpoint has apart or, at `fused`, as one module, whatever its family does: some quantizers
    /// split them. Adapters find it by either names.
    fn fused_group(&mut self, fused: &str, in_features: usize, members: &[Member]) -> Result<GroupId> {
        let is_stored = |path: &str| quant::format_of(self.checkpoint, path).is_some();
        if !is_stored(fused) || members.iter().any(|(path, ..)| is_stored(path)) {
            let group = self.group(in_features, members)?;
            let sites: Vec<SiteId> = members.iter().filter_map(|(member, ..)| self.sites.find(member)).collect();
            self.sites.add_fused_alias(fused, &sites);
            return Ok(group);
        }
        let outputs = members.iter().map(|(_, outputs, _)| outputs).sum();
        let has_bias = members.iter().any(|&(.., has_bias)| has_bias);
        let group = self.group(in_features, &[(fused.to_owned(), outputs, has_bias)])?;
        if let Some(site) = self.sites.find(fused) {
            self.sites.add_part_aliases(site, members.iter().map(|(path, outputs, _)| (path.as_str(), *outputs)));
        }
        members.iter().skip(1).try_for_each(|_| self.advance())?;
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

    fn source<'w>(&mut self, path: &str, weight: StoredWeight<'w>, bias: Option<TensorView<'w>>) -> LinearSource<'w>
    where
        'a: 'w,
    {
        let site = Site::linear(path, weight.in_features(), weight.out_features()).with_bias(bias.is_some());
        let site = self.sites.push(site);
        LinearSource { site, weight, bias, checkpoint: Some(self.checkpoint) }
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
        let (weight, bias) = if quant::format_of(self.checkpoint, HEAD).is_some() || !c.tie_word_embeddings {
            let weight = quant::open_linear(self.checkpoint, self.quant, HEAD, c.hidden_size, c.vocab_size)?;
            let bias = self.bias(HEAD, c.vocab_size, false, &weight)?;
            (weight, bias)
        } else {
            let table = quant::open_dense(self.checkpoint, self.embedding_name(), &[c.vocab_size, c.hidden_size])?;
            (StoredWeight::Dense(table), None)
        };
        let weight = match (weight, self.head) {
            (StoredWeight::Dense(view), HeadDType::Int8) => StoredWeight::Quantized(Box::new(RoundedWeight::new(view))),
            (weight, _) => weight,
        };
        let source = self.source(HEAD, weight, bias);
        self.pack(&[source])
    }

    /// The embedding's tensor, under the head's name where they are tied and only that is stored.
    fn embedding_name(&self) -> &'static str {
        let (embedding, head) = ("model.embed_tokens.weight", "lm_head.weight");
        let only_head = self.checkpoint.contains(head) && !self.checkpoint.contains(embedding);
        if self.config.tie_word_embeddings && only_head { head } else { embedding }
    }

    /// A norm over the residual stream, or over what is added to it, if blocks have it.
    fn block_norm(&mut self, layer: usize, name: Option<&str>) -> Result<Option<NormSpec>> {
        let path = |name| format!("{LAYERS}.{layer}.{name}");
        name.map(|name| self.norm(Site::norm(path(name), self.config.hidden_size))).transpose()
    }

    /// A norm over that many heads of queries or keys, if the architecture has it.
    fn qk_norm(&mut self, path: &str, heads: usize) -> Result<Option<HeadNorm>> {
        let head_dim = self.config.head_dim;
        let Some(scope) = self.config.norms.qk else { return Ok(None) };
        let site = match scope {
            HeadNormScope::Head => Site::norm(path, head_dim),
            HeadNormScope::HeadOwn => Site::head_norm(path, heads, head_dim),
            HeadNormScope::All => Site::norm(path, heads * head_dim),
        };
        Ok(Some(HeadNorm { norm: self.norm(site)?, scope }))
    }

    fn norm(&mut self, site: Site) -> Result<NormSpec> {
        let norms = self.config.norms;
        let open =
            |part: &str| quant::open_dense(self.checkpoint, &format!("{}.{part}", site.path), &site.weight_shape());
        let weight = open("weight")?;
        let bias = norms.has_bias.then(|| open("bias")).transpose()?;
        let site = self.sites.push(site.with_bias(bias.is_some()));
        let id = self.weights.load_norm(&NormSource { site, weight, bias, offset: norms.offset })?;
        Ok(NormSpec { id, kind: norms.kind, eps: norms.eps })
    }

    fn advance(&mut self) -> Result<()> {
        self.done += 1;
        // The linears of a layer with its projections apart; then embedding and head.
        let of_layer = 5 + self.config.mlp.inputs.len();
        (self.progress)(Progress { done: self.done, total: self.config.layers * of_layer + 2 })
    }
}

/// A number as a table of floats of that type would hold it.
fn rounded_to(dtype: DType, value: f32) -> f32 {
    match dtype {
        DType::BF16 => bf16::from_f32(value).to_f32(),
        DType::F16 => f16::from_f32(value).to_f32(),
        _ => value,
    }
}
