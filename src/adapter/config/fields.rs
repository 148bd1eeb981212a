//! The table of fields: one row for each field that PEFT writes, and the rule that applies to it.

use serde_json::Value;

use super::readers::{self, Draft, Reader, Switch, shown};
use crate::adapter::unsupported::Feature;
use crate::error::Result;

/// What a field does.
#[derive(Clone, Copy)]
pub(in crate::adapter) enum Rule {
    /// Its value describes the adapter, or decides whether the adapter is supported.
    Read(Reader),
    /// Checked before all others.
    Checked,
    /// It cannot change a result.
    NoEffect,
    /// It cannot change a result either, but it excludes other fields, and is worth a line in the log.
    Noted,
    /// Switched on, it asks for a feature that is not supported.
    Refused(Feature, Switch),
}

/// Every field with its rule and a note for the documentation.
pub(in crate::adapter) const FIELDS: &[(&str, Rule, &str)] = &[
    ("peft_type", Rule::Checked, "`LORA`"),
    ("r", Rule::Read(readers::read_rank), "any rank; if missing, it is inferred from the tensors"),
    ("lora_alpha", Rule::Read(readers::read_alpha), "any finite number, 0 and negative too; a missing one is an error"),
    ("use_rslora", Rule::Read(readers::read_use_rslora), "alpha is divided by the rank's root"),
    ("rank_pattern", Rule::Read(readers::read_rank_pattern), "ranks of single modules, in the order of the file"),
    ("alpha_pattern", Rule::Read(readers::read_alpha_pattern), "alphas of single modules, in the order of the file"),
    ("target_modules", Rule::Read(readers::read_target_modules), "a list, a regular expression, `all-linear` or null"),
    ("exclude_modules", Rule::Read(readers::read_exclude_modules), "a list or a regular expression"),
    ("layers_to_transform", Rule::Read(readers::read_layers), "narrows a list of targets to these layers"),
    ("layers_pattern", Rule::Read(readers::read_layer_names), "what the list of layers is called"),
    ("use_dora", Rule::Read(readers::read_use_dora), "magnitudes, at any request weight"),
    ("lora_bias", Rule::Read(readers::read_lora_bias), "a bias of B, scaled like B"),
    ("bias", Rule::Read(readers::read_bias), "`all` and `lora_only`: trained biases in place of the base's"),
    ("modules_to_save", Rule::Read(readers::read_modules_to_save), "linears, embedding, head, norms, whole blocks"),
    (
        "trainable_token_indices",
        Rule::Read(readers::read_token_rows),
        "rows of embedding or head; of both if they are tied",
    ),
    (
        "ensure_weight_tying",
        Rule::Read(readers::read_weight_tying),
        "what acts on the embedding also acts on a tied head",
    ),
    (
        "layer_replication",
        Rule::Read(readers::read_replication),
        "the base's layers in another order, some of them repeated",
    ),
    (
        "alora_invocation_tokens",
        Rule::Read(readers::read_invocation),
        "acts from the last invocation in the prompt on (aLoRA)",
    ),
    ("use_qalora", Rule::Read(readers::read_use_qalora), "A sees pooled inputs"),
    ("qalora_group_size", Rule::Read(readers::read_group_size), "how many inputs are pooled; only with `use_qalora`"),
    ("use_bdlora", Rule::Read(readers::read_blocks), "block-diagonal A or B"),
    (
        "kasa_config",
        Rule::Read(readers::read_kasa),
        "drops the base's smallest singular values; loading decomposes each weight: over a minute for 2048 x 2048",
    ),
    ("init_lora_weights", Rule::Read(readers::read_init), "true, false, gaussian, orthogonal, eva, mica; others below"),
    ("task_type", Rule::Read(readers::read_task_type), "`CAUSAL_LM` or null; a head of another task is refused"),
    (
        "fan_in_fan_out",
        Rule::Read(readers::read_fan_in_fan_out),
        "no linear of a supported model is stored transposed, and PEFT resets it",
    ),
    ("target_parameters", Rule::Refused(Feature::TargetParameters, Switch::List), "LoRA on stacked experts"),
    ("arrow_config", Rule::Refused(Feature::Arrow, Switch::Object), "a router over other adapters"),
    ("velora_config", Rule::Noted, "affects training only; its tensors are left out"),
    ("monteclora_config", Rule::Noted, "affects training only; its tensors are left out"),
    ("megatron_config", Rule::Noted, "how training was distributed"),
    ("megatron_core", Rule::NoEffect, "how training was distributed"),
    ("loftq_config", Rule::NoEffect, "initialization; `init_lora_weights` says whether it changed the base"),
    ("eva_config", Rule::NoEffect, "initialization"),
    ("corda_config", Rule::NoEffect, "initialization; `init_lora_weights` says whether it changed the base"),
    ("lora_ga_config", Rule::NoEffect, "initialization; `init_lora_weights` says whether it changed the base"),
    ("lora_dropout", Rule::NoEffect, "training only"),
    ("base_model_name_or_path", Rule::NoEffect, "a label; never opened"),
    ("revision", Rule::NoEffect, "a label"),
    ("inference_mode", Rule::NoEffect, "bookkeeping"),
    ("peft_version", Rule::NoEffect, "bookkeeping"),
    ("auto_mapping", Rule::NoEffect, "bookkeeping"),
    ("runtime_config", Rule::NoEffect, "bookkeeping"),
];

/// Applies a field's rule to its value.
pub(super) fn apply(rule: Rule, field: &'static str, value: &Value, draft: &mut Draft) -> Result<()> {
    match rule {
        Rule::Read(read) => read(draft, field, value),
        Rule::NoEffect | Rule::Checked => Ok(()),
        Rule::Noted => {
            if !value.is_null() {
                draft.noted.push(field);
                tracing::info!(field, "adapter_config.json: it affects training only");
            }
            Ok(())
        }
        Rule::Refused(feature, switch) => match switch.is_on(field, value)? {
            true => Err(feature.refusal().with_found(format!("{field} = {}", shown(value)))),
            false => Ok(()),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// The 41 fields that PEFT 0.21.2 writes for a LoRA.
    const WRITTEN: &str = "alora_invocation_tokens alpha_pattern arrow_config auto_mapping base_model_name_or_path bias \
        corda_config ensure_weight_tying eva_config exclude_modules fan_in_fan_out inference_mode init_lora_weights \
        kasa_config layer_replication layers_pattern layers_to_transform loftq_config lora_alpha lora_bias lora_dropout \
        lora_ga_config megatron_config megatron_core modules_to_save monteclora_config peft_type peft_version \
        qalora_group_size r rank_pattern revision target_modules target_parameters task_type trainable_token_indices \
        use_bdlora use_dora use_qalora use_rslora velora_config";

    #[test]
    fn every_field_peft_writes_has_one_row() {
        let rows: HashSet<_> = FIELDS.iter().map(|(name, _, _)| *name).collect();
        assert_eq!(rows.len(), FIELDS.len());
        for field in WRITTEN.split_whitespace().chain(["runtime_config"]) {
            assert!(rows.contains(field), "{field}");
        }
        assert_eq!(WRITTEN.split_whitespace().count() + 1, FIELDS.len());
    }
}
