//! A decoder in a backend, and the one forward pass that every family shares.

use crate::adapter::batch::AdapterBatch;
use crate::backend::{
    AttentionSpec, BufferId, Compute, EmbeddingId, GroupId, HeadSpec, KvId, MlpShape, NormSpec, StepInputs, StepRows,
    Write,
};
use crate::error::{Error, ErrorCode, Result};
use crate::model::batch::StepBatch;
use crate::model::config::{DecoderConfig, Multipliers};

/// KV groups of a layer map with that many layers.
pub(super) fn kv_groups_of(layers: usize, base_layers: usize) -> usize {
    layers.div_ceil(base_layers.max(1)).max(1)
}

/// The ids of a decoder's weights in a backend.
pub(super) struct DecoderWeights {
    pub(super) embedding: EmbeddingId,
    pub(super) embed_multiplier: f32,
    pub(super) layers: Vec<LayerWeights>,
    pub(super) final_norm: NormSpec,
    pub(super) head: HeadSpec,
}

/// The ids of one layer's weights, and its attention.
pub(super) struct LayerWeights {
    pub(super) norms: LayerNorms,
    pub(super) qkv: GroupId,
    pub(super) attention: AttentionSpec,
    /// That of long sequences, if it is another one.
    pub(super) long_attention: Option<AttentionSpec>,
    pub(super) output: GroupId,
    /// Gate and up, or up alone.
    pub(super) up: GroupId,
    pub(super) down: GroupId,
}

impl LayerWeights {
    /// Its attention in a step of long sequences, or of others.
    fn attention(&self, has_long_rope: bool) -> &AttentionSpec {
        self.long_attention.as_ref().filter(|_| has_long_rope).unwrap_or(&self.attention)
    }
}

/// The norms that a layer has over the residual stream, and over what is added to it.
pub(super) struct LayerNorms {
    pub(super) pre_attention: Option<NormSpec>,
    pub(super) post_attention: Option<NormSpec>,
    pub(super) pre_mlp: Option<NormSpec>,
    pub(super) post_mlp: Option<NormSpec>,
}

/// A decoder whose weights and buffers are in a backend.
pub(super) struct Decoder {
    weights: DecoderWeights,
    buffers: Buffers,
    config: DecoderConfig,
}

/// Activations of a step, `[rows, …]` each.
struct Buffers {
    /// The residual stream, `hidden_size`.
    hidden: BufferId,
    /// What a branch reads where it is not the residual stream: a norm's output. Then what it adds, before the norm over that.
    /// `hidden_size`.
    normed: BufferId,
    /// `(heads + 2 kv_heads) * head_dim`.
    qkv: BufferId,
    /// `heads * head_dim`.
    attended: BufferId,
    /// `2 * intermediate_size`, or once if the MLP has no gate.
    up: BufferId,
    /// `intermediate_size`.
    activated: BufferId,
}

impl Decoder {
    /// Creates the buffers of the forward pass.
    pub(super) fn new(weights: DecoderWeights, config: &DecoderConfig, compute: &mut dyn Compute) -> Self {
        let (query, key) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let up = match config.mlp.shape {
            MlpShape::Gated => 2,
            MlpShape::Plain => 1,
        };
        let buffers = Buffers {
            hidden: compute.create_buffer(config.hidden_size),
            normed: compute.create_buffer(config.hidden_size),
            qkv: compute.create_buffer(query + 2 * key),
            attended: compute.create_buffer(query),
            up: compute.create_buffer(up * config.intermediate_size),
            activated: compute.create_buffer(config.intermediate_size),
        };
        Self { weights, buffers, config: config.clone() }
    }

    /// Runs the layers for the rows of `batch`; `logits` becomes `[logit_rows, logit_width]`, but for greedy rows whose largest logit
    /// the device tells. There is a cache for each KV group, or one that has the pages of all.
    pub(super) fn forward(
        &self,
        compute: &mut dyn Compute,
        batch: &mut StepBatch,
        kvs: &[KvId],
        logits: &mut [f32],
    ) -> Result<()> {
        let (b, weights, rows) = (&self.buffers, &self.weights, batch.tokens.len());
        compute.begin_step(&StepInputs {
            tokens: &batch.tokens,
            adapters: &batch.adapters,
            kv_groups: &batch.kv_groups,
            logits: batch.rows_with_logits(),
        })?;
        compute.embed(weights.embedding, &batch.tokens, weights.embed_multiplier, &batch.adapters, b.hidden)?;
        self.write_embeds(compute, batch)?;
        match batch.layer_map.clone() {
            None => {
                let (rows, kv) = kv_group(&batch.kv_groups, kvs, 0)?;
                for layer in &weights.layers {
                    let attention = layer.attention(batch.has_long_rope);
                    self.layer(compute, layer, attention, &batch.adapters, rows, kv)?;
                }
            }
            Some(layer_map) => self.mapped_layers(compute, &layer_map, batch, kvs)?,
        }
        if batch.wants_last_states {
            batch.last_states.resize(rows * self.config.hidden_size, 0.0);
            compute.read_rows(b.hidden, &mut batch.last_states)?;
        }
        if !batch.logit_rows.is_empty() {
            compute.norm(&weights.final_norm, b.hidden, rows, &batch.adapters, b.normed, Write::Replace)?;
            compute.head(&weights.head, b.normed, batch.rows_with_logits(), logits, batch.logit_width)?;
        }
        // Last, so that a device is waited for once.
        batch.kv_overflows = compute.take_kv_overflows()?;
        batch.activation_overflows = compute.take_activation_overflows()?;
        batch.largest_logits = compute.take_largest_logits()?;
        Ok(())
    }

    /// Prompt embeds in place of what the table has for a token. Where the embeddings' factor belongs to the table, they have it
    /// already, as transformers' `inputs_embeds`.
    fn write_embeds(&self, compute: &mut dyn Compute, batch: &StepBatch) -> Result<()> {
        let Multipliers { embed, is_embed_of_table, .. } = self.config.multipliers;
        let mut start = 0;
        for &(row, end) in &batch.embeds_rows {
            let values = &batch.embeds[start..end];
            match is_embed_of_table || embed == 1.0 {
                true => compute.write_rows(self.buffers.hidden, row, values)?,
                false => {
                    let scaled: Vec<f32> = values.iter().map(|value| embed * value).collect();
                    compute.write_rows(self.buffers.hidden, row, &scaled)?;
                }
            }
            start = end;
        }
        Ok(())
    }

    /// The layers in the order of an adapter's layer map, which may repeat some and leave out others.
    fn mapped_layers(
        &self,
        compute: &mut dyn Compute,
        layer_map: &[u32],
        batch: &mut StepBatch,
        kvs: &[KvId],
    ) -> Result<()> {
        let layers = &self.weights.layers;
        let mut repeats = vec![0; layers.len()];
        for (index, &base) in layer_map.iter().enumerate() {
            let layer = layers.get(base as usize).ok_or_else(misfit)?;
            batch.adapters.set_repeat(repeats[base as usize]);
            repeats[base as usize] += 1;
            let attention = layer.attention(batch.has_long_rope).clone();
            let attention = AttentionSpec { layer: index % layers.len(), ..attention };
            let (rows, kv) = kv_group(&batch.kv_groups, kvs, index / layers.len())?;
            self.layer(compute, layer, &attention, &batch.adapters, rows, kv)?;
        }
        batch.adapters.set_repeat(0);
        Ok(())
    }

    fn layer(
        &self,
        compute: &mut dyn Compute,
        layer: &LayerWeights,
        attention: &AttentionSpec,
        adapters: &AdapterBatch,
        rows: &StepRows,
        kv: KvId,
    ) -> Result<()> {
        let (b, norms, count) = (&self.buffers, &layer.norms, rows.len());
        let read = self.branch_input(compute, norms.pre_attention, count, adapters)?;
        compute.linear(layer.qkv, read, count, adapters, b.qkv, Write::Replace)?;
        compute.attend(attention, kv, rows, adapters, b.qkv, b.attended)?;
        if self.config.block.is_parallel {
            // Before the residual stream changes, which is what the MLP reads where there is no norm.
            compute.linear(layer.up, read, count, adapters, b.up, Write::Replace)?;
            self.add_branch(compute, layer.output, b.attended, norms.post_attention, count, adapters)?;
        } else {
            self.add_branch(compute, layer.output, b.attended, norms.post_attention, count, adapters)?;
            let read = self.branch_input(compute, norms.pre_mlp, count, adapters)?;
            compute.linear(layer.up, read, count, adapters, b.up, Write::Replace)?;
        }
        compute.activate(self.config.mlp.activation, self.config.mlp.shape, b.up, count, b.activated)?;
        self.add_branch(compute, layer.down, b.activated, norms.post_mlp, count, adapters)
    }

    /// What a branch reads: the residual stream, or its norm if there is one.
    fn branch_input(
        &self,
        compute: &mut dyn Compute,
        norm: Option<NormSpec>,
        count: usize,
        adapters: &AdapterBatch,
    ) -> Result<BufferId> {
        let Some(norm) = norm else { return Ok(self.buffers.hidden) };
        compute.norm(&norm, self.buffers.hidden, count, adapters, self.buffers.normed, Write::Replace)?;
        Ok(self.buffers.normed)
    }

    /// Adds what a branch's last linear makes of `x`, or the norm of that if there is one, to the residual stream.
    fn add_branch(
        &self,
        compute: &mut dyn Compute,
        linear: GroupId,
        x: BufferId,
        norm: Option<NormSpec>,
        count: usize,
        adapters: &AdapterBatch,
    ) -> Result<()> {
        let (b, write) = (&self.buffers, Write::Add { factor: self.config.multipliers.residual });
        let Some(norm) = norm else { return compute.linear(linear, x, count, adapters, b.hidden, write) };
        compute.linear(linear, x, count, adapters, b.normed, Write::Replace)?;
        compute.norm(&norm, b.normed, count, adapters, b.hidden, write)
    }
}

/// Rows and cache of a KV group: its own, or those that all groups share.
fn kv_group<'a>(rows: &'a [StepRows], kvs: &[KvId], group: usize) -> Result<(&'a StepRows, KvId)> {
    let index = |count: usize| if count == 1 { 0 } else { group };
    match (rows.get(index(rows.len())), kvs.get(index(kvs.len()))) {
        (Some(of_group), Some(&kv)) if group < rows.len().max(kvs.len()) => Ok((of_group, kv)),
        _ => Err(misfit()),
    }
}

fn misfit() -> Error {
    Error::new(ErrorCode::Internal, "a step's layer map does not fit the model or its cache")
}
