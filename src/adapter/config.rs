//! adapter_config.json: what each of its fields means here, one row a field.
//!
//! Every field PEFT 0.21.2 writes stands in one table: it is read, has no effect on a result, or is refused by name where it
//! does and is not served. The README's table is made from the same rows. PEFT itself drops fields it doesn't know with a
//! warning, also those that switch something on; here such a field is an error.

mod fields;
mod json;

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use serde_json::{Map, Value};

use self::fields::{Read, Switch, check_unknown, malformed, shown};
use crate::adapter::Problems;
use crate::adapter::features::{Feature, FeatureRow, Verdict};
use crate::adapter::patterns::{LayerFilter, PatternMap, Targeting};
use crate::error::{Error, ErrorCode, Result};

/// What an adapter's config says.
#[derive(Clone, Debug, Default)]
pub struct AdapterConfig {
    /// `r`; without one the tensors tell (PEFT would assume 8).
    pub rank: Option<usize>,
    /// `lora_alpha`; `None` is one of the problems.
    pub alpha: Option<f64>,
    /// `use_rslora`: alpha is divided by the rank's root.
    pub use_rslora: bool,
    /// `rank_pattern`: ranks of single modules.
    pub rank_pattern: PatternMap<usize>,
    /// `alpha_pattern`: alphas of single modules.
    pub alpha_pattern: PatternMap<f64>,
    /// `target_modules` as written: names, or the one string.
    pub target_modules: Vec<String>,
    /// Which modules have factors. The tensors are the truth; this is a cross-check.
    pub targeting: Targeting,
    /// `use_dora`: every pair of factors has a magnitude.
    pub use_dora: bool,
    /// `lora_bias`: every B of a linear has a bias.
    pub lora_bias: bool,
    /// `bias`: which biases of the base were trained.
    pub biases: TrainedBiases,
    /// `modules_to_save`: tails of the paths of modules whose weights are replaced.
    pub modules_to_save: Vec<String>,
    /// `trainable_token_indices`: rows by the tail of their module's path; `None` is the embedding.
    pub token_rows: Vec<(Option<String>, Vec<u32>)>,
    /// `ensure_weight_tying`: what acts on the embedding acts on a tied head too.
    pub ensure_weight_tying: bool,
    /// `layer_replication`: ranges `start..end` of the base's layers, one after another; empty is the base's stack.
    pub layer_replication: Vec<(u32, u32)>,
    /// `alora_invocation_tokens`: the adapter acts from their last place on.
    pub invocation: Vec<u32>,
    /// `qalora_group_size` where `use_qalora` is on: inputs that A sees pooled.
    pub pooled_inputs: Option<usize>,
    /// `use_bdlora`: A or B is stored as the blocks of a block-diagonal matrix.
    pub blocks: Option<BlockDiagonal>,
    /// `kasa_config`: the base's weights are truncated, and a diagonal stands between A and B.
    pub uses_kasa: bool,
    /// Everything wrong with the fields.
    pub problems: Vec<Error>,
    /// Fields whose value could not be used: what follows from them is no problem of its own.
    pub(super) broken: BTreeSet<&'static str>,
}

/// `bias`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrainedBiases {
    /// None of them.
    #[default]
    None,
    /// Those of every linear.
    All,
    /// Those of linears that have factors.
    LoraOnly,
}

/// `use_bdlora`: its patterns are parts of module paths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockDiagonal {
    /// `target_modules_bd_a`: modules whose A is block-diagonal.
    pub a: Vec<String>,
    /// `target_modules_bd_b`: modules whose B is.
    pub b: Vec<String>,
    /// `nblocks`.
    pub count: usize,
    /// `match_strict`: each module must be one of both.
    pub strict: bool,
}

/// What is collected while the fields are read in the order of the file.
#[derive(Default)]
pub(super) struct Draft {
    pub config: AdapterConfig,
    pub layers: Option<Vec<u64>>,
    pub layer_names: Vec<String>,
    pub use_qalora: bool,
    pub group_size: Option<usize>,
}

/// What a field does.
#[derive(Clone, Copy)]
enum Rule {
    /// Its value shapes the adapter, or decides whether the adapter can be served.
    Read(Read),
    /// Looked at before all others.
    Checked,
    /// It can't change a result.
    NoEffect,
    /// It can't change a result either, but hints at something that a user may want to know.
    Noted,
    /// Switched on, it asks for a feature that is not served.
    Refused(Feature, Switch),
}

const FIELDS: &[(&str, Rule, &str)] = &[
    ("peft_type", Rule::Checked, "`LORA`"),
    ("r", Rule::Read(fields::read_rank), "any rank; without one the tensors tell"),
    ("lora_alpha", Rule::Read(fields::read_alpha), "any finite number, 0 and negative too; a missing one is an error"),
    ("use_rslora", Rule::Read(fields::read_use_rslora), "alpha is divided by the rank's root"),
    ("rank_pattern", Rule::Read(fields::read_rank_pattern), "ranks of single modules, in the order of the file"),
    ("alpha_pattern", Rule::Read(fields::read_alpha_pattern), "alphas of single modules, in the order of the file"),
    ("target_modules", Rule::Read(fields::read_target_modules), "a list, a regular expression, `all-linear` or null"),
    ("exclude_modules", Rule::Read(fields::read_exclude_modules), "a list or a regular expression"),
    ("layers_to_transform", Rule::Read(fields::read_layers), "narrows a list of targets to layers"),
    ("layers_pattern", Rule::Read(fields::read_layer_names), "what the list of layers is called"),
    ("use_dora", Rule::Read(fields::read_use_dora), "magnitudes, with any weight of a request"),
    ("lora_bias", Rule::Read(fields::read_lora_bias), "a bias of B, scaled as B is"),
    ("bias", Rule::Read(fields::read_bias), "`all` and `lora_only`: trained biases in place of the base's"),
    ("modules_to_save", Rule::Read(fields::read_modules_to_save), "linears, embedding, head, norms, whole blocks"),
    ("trainable_token_indices", Rule::Read(fields::read_token_rows), "rows of embedding or head, tied ones at both"),
    (
        "ensure_weight_tying",
        Rule::Read(fields::read_weight_tying),
        "what acts on the embedding acts on a tied head too",
    ),
    ("layer_replication", Rule::Read(fields::read_replication), "another stack of the base's layers"),
    ("alora_invocation_tokens", Rule::Read(fields::read_invocation), "acts from the last invocation in the prompt on"),
    ("use_qalora", Rule::Read(fields::read_use_qalora), "A sees pooled inputs"),
    ("qalora_group_size", Rule::Read(fields::read_group_size), "how many are pooled; only with `use_qalora`"),
    ("use_bdlora", Rule::Read(fields::read_blocks), "block-diagonal A or B"),
    (
        "kasa_config",
        Rule::Read(fields::read_kasa),
        "drops the base's smallest singular values; loading decomposes each weight: over a minute for 2048 x 2048",
    ),
    ("init_lora_weights", Rule::Read(fields::read_init), "true, false, gaussian, orthogonal, eva, mica; others below"),
    ("task_type", Rule::Read(fields::read_task_type), "`CAUSAL_LM` or null; a head of another task is refused"),
    (
        "fan_in_fan_out",
        Rule::Read(fields::read_fan_in_fan_out),
        "no linear served here is stored transposed, and PEFT resets it",
    ),
    ("target_parameters", Rule::Refused(Feature::TargetParameters, Switch::List), "LoRA on stacked experts"),
    ("arrow_config", Rule::Refused(Feature::Arrow, Switch::Object), "a router over other adapters"),
    ("velora_config", Rule::Noted, "changes training alone; its tensors are left out"),
    ("monteclora_config", Rule::Noted, "changes training alone; its tensors are left out"),
    ("megatron_config", Rule::Noted, "how training was spread"),
    ("megatron_core", Rule::NoEffect, "how training was spread"),
    ("loftq_config", Rule::NoEffect, "initialization; `init_lora_weights` tells whether it changed the base"),
    ("eva_config", Rule::NoEffect, "initialization"),
    ("corda_config", Rule::NoEffect, "initialization; `init_lora_weights` tells whether it changed the base"),
    ("lora_ga_config", Rule::NoEffect, "initialization; `init_lora_weights` tells whether it changed the base"),
    ("lora_dropout", Rule::NoEffect, "training alone"),
    ("base_model_name_or_path", Rule::NoEffect, "a label; never opened"),
    ("revision", Rule::NoEffect, "a label"),
    ("inference_mode", Rule::NoEffect, "bookkeeping"),
    ("peft_version", Rule::NoEffect, "bookkeeping"),
    ("auto_mapping", Rule::NoEffect, "bookkeeping"),
    ("runtime_config", Rule::NoEffect, "bookkeeping"),
];

/// The fields, as the README's table shows them.
pub(super) fn rows() -> impl Iterator<Item = FeatureRow> {
    FIELDS.iter().map(|&(feature, rule, note)| {
        let verdict = match rule {
            Rule::Read(_) | Rule::Checked => Verdict::Yes,
            Rule::NoEffect | Rule::Noted => Verdict::NoEffect,
            Rule::Refused(feature, _) => Verdict::Refused(feature.refusal().code()),
        };
        FeatureRow { feature, verdict, note }
    })
}

impl AdapterConfig {
    /// Reads the bytes of an adapter_config.json; `path` and `subject` are for messages. What is wrong with single fields
    /// stands in [`AdapterConfig::problems`].
    ///
    /// # Errors
    /// It is no PEFT LoRA's config at all: `adapter_type_unsupported`, `adapter_format_unsupported`, and
    /// `adapter_config_invalid` where it is no JSON object.
    pub fn parse(bytes: &[u8], path: &Path, subject: &str) -> Result<Self> {
        let place = |error: Error| error.with_path(path).with_subject(subject);
        let invalid = |what: String| place(Error::new(ErrorCode::AdapterConfigInvalid, what));
        let fields = match json::read(bytes).map_err(|what| invalid(format!("the config is not valid JSON: {what}")))? {
            Value::Object(fields) => fields,
            other => return Err(invalid("the config is not a JSON object".into()).with_found(shown(&other))),
        };
        check_type(&fields).map_err(place)?;

        let rules: HashMap<&str, (&'static str, Rule)> = FIELDS.iter().map(|&(n, rule, _)| (n, (n, rule))).collect();
        let mut draft = Draft::default();
        let mut problems = Problems::new(subject);
        for (name, value) in &fields {
            let outcome = match rules.get(name.as_str()) {
                Some(&(field, rule)) => {
                    let outcome = apply(rule, field, value, &mut draft);
                    if outcome.is_err() {
                        draft.config.broken.insert(field);
                    }
                    outcome
                }
                None => check_unknown(name, value),
            };
            if let Err(error) = outcome {
                problems.push(place(error));
            }
        }
        let mut config = draft.finish(|error| problems.push(place(error)));
        config.problems = problems.finish().err().map(Error::into_list).unwrap_or_default();
        Ok(config)
    }

    /// Whether a field's value could not be used, which is told among the problems.
    pub fn is_broken(&self, field: &str) -> bool {
        self.broken.contains(field)
    }
}

impl Draft {
    fn finish(self, mut tell: impl FnMut(Error)) -> AdapterConfig {
        let mut config = self.config;
        if config.alpha.is_none() && !config.is_broken("lora_alpha") {
            tell(
                Error::new(ErrorCode::AdapterConfigInvalid, "lora_alpha is missing, so the scale can't be known")
                    .with_expected("a number")
                    .with_hint("PEFT would assume 8: write what the training used into adapter_config.json"),
            );
        }
        if let Some(layers) = self.layers.filter(|layers| !layers.is_empty()) {
            match LayerFilter::new(layers, &self.layer_names) {
                Ok(filter) => config.targeting.layers = Some(filter),
                Err(error) => tell(error),
            }
        }
        if self.use_qalora && !config.is_broken("qalora_group_size") {
            // PEFT's default.
            config.pooled_inputs = Some(self.group_size.unwrap_or(16));
        }
        config.targeting.saved.clone_from(&config.modules_to_save);
        let others = [
            ("lora_bias", config.lora_bias),
            ("alora_invocation_tokens", !config.invocation.is_empty()),
            ("use_bdlora", config.blocks.is_some()),
            ("use_qalora", config.pooled_inputs.is_some()),
            ("kasa_config", config.uses_kasa),
        ];
        for (other, _) in others.iter().filter(|(_, on)| *on && config.use_dora) {
            let what = format!("use_dora and {other} exclude each other, in PEFT too");
            tell(Error::new(ErrorCode::AdapterConfigInvalid, what));
        }
        config
    }
}

/// Is it a PEFT LoRA at all? What another tool or method wrote is told apart before any field is looked at.
fn check_type(fields: &Map<String, Value>) -> Result<()> {
    match fields.get("peft_type") {
        Some(Value::String(kind)) if kind == "LORA" => Ok(()),
        Some(Value::String(kind)) => {
            Err(Error::new(ErrorCode::AdapterTypeUnsupported, format!("the adapter is of PEFT type '{kind}'"))
                .with_expected("peft_type 'LORA'")
                .with_found(format!("'{kind}'")))
        }
        Some(other) => Err(malformed("peft_type", "\"LORA\"", other)),
        None if fields.contains_key("fine_tune_type") || fields.contains_key("lora_parameters") => {
            Err(Error::new(ErrorCode::AdapterFormatUnsupported, "the adapter is in the format of mlx-lm, not PEFT")
                .with_hint(
                    "convert it: transpose lora_a and lora_b, rename them as PEFT does, set lora_alpha to scale * rank",
                ))
        }
        None => Err(Error::new(ErrorCode::AdapterConfigInvalid, "peft_type is missing").with_expected("\"LORA\"")),
    }
}

fn apply(rule: Rule, field: &'static str, value: &Value, draft: &mut Draft) -> Result<()> {
    match rule {
        Rule::Read(read) => read(draft, field, value),
        Rule::NoEffect | Rule::Checked => Ok(()),
        Rule::Noted => {
            if !value.is_null() {
                tracing::info!(field, "adapter_config.json: it changes training alone");
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
