//! A decoder in a backend, and the one forward pass that every family shares.

use crate::adapter::batch::AdapterBatch;
use crate::backend::{
    AttentionSpec, BufferId, Compute, EmbeddingId, GroupId, KvId, NormId, StepInputs, StepRows, Write,
};
use crate::error::{Error, ErrorCode, Result};
use crate::model::batch::StepBatch;
use crate::model::config::DecoderConfig;

/// KV groups of a layer map with that many layers.
pub(super) fn kv_groups_of(layers: usize, base_layers: usize) -> usize {
    layers.div_ceil(base_layers.max(1)).max(1)
}

/// The ids of a decoder's weights in a backend.
pub(super) struct DecoderWeights {
    pub(super) embedding: EmbeddingId,
    pub(super) layers: Vec<LayerWeights>,
    pub(super) final_norm: NormId,
    pub(super) head: GroupId,
}

/// The ids of one layer's weights, and its attention.
pub(super) struct LayerWeights {
    pub(super) attention_norm: NormId,
    pub(super) qkv: GroupId,
    pub(super) attention: AttentionSpec,
    pub(super) output: GroupId,
    pub(super) mlp_norm: NormId,
    pub(super) gate_up: GroupId,
    pub(super) down: GroupId,
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
    /// A norm's output, `hidden_size`.
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
    /// Creates the buffers of the forward pass.
    pub(super) fn new(weights: DecoderWeights, config: &DecoderConfig, compute: &mut dyn Compute) -> Self {
        let (query, key) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let buffers = Buffers {
            hidden: compute.create_buffer(config.hidden_size),
            normed: compute.create_buffer(config.hidden_size),
            qkv: compute.create_buffer(query + 2 * key),
            attended: compute.create_buffer(query),
            gate_up: compute.create_buffer(2 * config.intermediate_size),
            activated: compute.create_buffer(config.intermediate_size),
        };
        Self { weights, buffers, config: config.clone() }
    }

    /// Runs the layers for the rows of `batch`; `logits` becomes `[logit_rows, logit_width]`. There is a cache for each KV
    /// group, or one that has the pages of all.
    pub(super) fn forward(
        &self,
        compute: &mut dyn Compute,
        batch: &mut StepBatch,
        kvs: &[KvId],
        logits: &mut [f32],
    ) -> Result<()> {
        let (b, eps, rows) = (&self.buffers, self.config.norm_eps, batch.tokens.len());
        compute.begin_step(&StepInputs {
            tokens: &batch.tokens,
            adapters: &batch.adapters,
            kv_groups: &batch.kv_groups,
            logit_rows: &batch.logit_rows,
            logit_adapters: &batch.logit_adapters,
        })?;
        compute.embed(self.weights.embedding, &batch.tokens, 1.0, &batch.adapters, b.hidden)?;
        let mut start = 0;
        for &(row, end) in &batch.embeds_rows {
            compute.write_rows(b.hidden, row, &batch.embeds[start..end])?;
            start = end;
        }
        match batch.layer_map.clone() {
            None => {
                let (rows, kv) = kv_group(&batch.kv_groups, kvs, 0)?;
                for layer in &self.weights.layers {
                    self.layer(compute, layer, &layer.attention, &batch.adapters, rows, kv)?;
                }
            }
            Some(layer_map) => self.mapped_layers(compute, &layer_map, batch, kvs)?,
        }
        if batch.wants_last_states {
            batch.last_states.resize(rows * self.config.hidden_size, 0.0);
            compute.read_rows(b.hidden, &mut batch.last_states)?;
        }
        if !batch.logit_rows.is_empty() {
            compute.norm(self.weights.final_norm, eps, b.hidden, rows, &batch.adapters, b.normed)?;
            let (picked, adapters) = (&batch.logit_rows, &batch.logit_adapters);
            compute.head(self.weights.head, b.normed, picked, adapters, logits, batch.logit_width)?;
        }
        // Last, so that a device is waited for once.
        batch.kv_overflows = compute.take_kv_overflows()?;
        batch.activation_overflows = compute.take_activation_overflows()?;
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
            let attention = AttentionSpec { layer: index % layers.len(), ..layer.attention.clone() };
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
        let (b, eps, count) = (&self.buffers, self.config.norm_eps, rows.len());
        compute.norm(layer.attention_norm, eps, b.hidden, count, adapters, b.normed)?;
        compute.linear(layer.qkv, b.normed, count, adapters, b.qkv, Write::Replace)?;
        compute.attend(attention, kv, rows, adapters, b.qkv, b.attended)?;
        compute.linear(layer.output, b.attended, count, adapters, b.hidden, Write::Add)?;

        compute.norm(layer.mlp_norm, eps, b.hidden, count, adapters, b.normed)?;
        compute.linear(layer.gate_up, b.normed, count, adapters, b.gate_up, Write::Replace)?;
        compute.activate(self.config.activation, b.gate_up, count, b.activated)?;
        compute.linear(layer.down, b.activated, count, adapters, b.hidden, Write::Add)
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
