//! adapter_config.json: what each of its fields means here, one row a field.
//!
//! Every field PEFT 0.21.2 writes stands in one table: it is read, ignored because it can't change a result, or refused by
//! name where it does. To serve a further feature turns its row from refused into read. PEFT itself drops fields it doesn't
//! know with a warning, also those that switch something on; here such a field is an error.

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Map, Value};

use crate::adapter::Problems;
use crate::adapter::features::Feature;
use crate::adapter::json;
use crate::adapter::patterns::{LayerFilter, PatternMap, Selector, Targeting};
use crate::error::{Error, ErrorCode, Result};

/// Largest rank that is believed. The largest in use are a few thousand.
const MAX_RANK: u64 = 1 << 20;

/// What an adapter's config says.
#[derive(Clone, Debug)]
pub struct AdapterConfig {
    /// `r`; without one the tensors tell (PEFT would assume 8).
    pub rank: Option<usize>,
    /// `lora_alpha`.
    pub alpha: f64,
    /// `use_rslora`: alpha is divided by the rank's root.
    pub use_rslora: bool,
    /// `rank_pattern`: ranks of single modules.
    pub rank_pattern: PatternMap<usize>,
    /// `alpha_pattern`: alphas of single modules.
    pub alpha_pattern: PatternMap<f64>,
    /// `target_modules` as written: names, or the one string.
    pub target_modules: Vec<String>,
    /// Which modules it means. The tensors are the truth; this is a cross-check.
    pub targeting: Targeting,
}

/// What is collected while the fields are read in the order of the file.
#[derive(Default)]
struct Draft {
    rank: Option<usize>,
    alpha: Option<f64>,
    use_rslora: bool,
    rank_pattern: PatternMap<usize>,
    alpha_pattern: PatternMap<f64>,
    target_modules: Vec<String>,
    targets: Option<Selector>,
    exclude: Option<Selector>,
    layers: Option<Vec<u64>>,
    layer_names: Vec<String>,
}

/// What a field does.
#[derive(Clone, Copy)]
enum Rule {
    /// Its value shapes the adapter, or decides whether the adapter can be served.
    Read(fn(&mut Draft, &'static str, &Value) -> Result<()>),
    /// It can't change a result.
    Ignored,
    /// It can't change a result either, but hints at something that a user may want to know.
    Noted,
    /// Switched on, it asks for a feature that is not served.
    Refused(Feature, Switch),
}

/// How a field says that it is off.
#[derive(Clone, Copy)]
enum Switch {
    /// A bool. PEFT takes the string "false" for true, so anything else is refused as malformed.
    Bool,
    /// A list; null and the empty list are off.
    List,
    /// A list or an object; null and the empty ones are off.
    Collection,
    /// An object; only null is off, since the empty object may stand for its defaults.
    Object,
}

const FIELDS: &[(&str, Rule)] = &[
    ("r", Rule::Read(read_rank)),
    ("lora_alpha", Rule::Read(read_alpha)),
    ("use_rslora", Rule::Read(read_use_rslora)),
    ("rank_pattern", Rule::Read(read_rank_pattern)),
    ("alpha_pattern", Rule::Read(read_alpha_pattern)),
    ("target_modules", Rule::Read(read_target_modules)),
    ("exclude_modules", Rule::Read(read_exclude_modules)),
    ("layers_to_transform", Rule::Read(read_layers)),
    ("layers_pattern", Rule::Read(read_layer_names)),
    ("bias", Rule::Read(read_bias)),
    ("init_lora_weights", Rule::Read(read_init)),
    ("task_type", Rule::Read(read_task_type)),
    ("fan_in_fan_out", Rule::Read(read_fan_in_fan_out)),
    ("use_dora", Rule::Refused(Feature::Dora, Switch::Bool)),
    ("lora_bias", Rule::Refused(Feature::LoraBias, Switch::Bool)),
    ("modules_to_save", Rule::Refused(Feature::ModulesToSave, Switch::List)),
    ("trainable_token_indices", Rule::Refused(Feature::TrainableTokens, Switch::Collection)),
    ("ensure_weight_tying", Rule::Refused(Feature::WeightTying, Switch::Bool)),
    ("layer_replication", Rule::Refused(Feature::LayerReplication, Switch::List)),
    ("target_parameters", Rule::Refused(Feature::TargetParameters, Switch::List)),
    ("alora_invocation_tokens", Rule::Refused(Feature::ActivatedLora, Switch::List)),
    ("use_qalora", Rule::Refused(Feature::QaLora, Switch::Bool)),
    ("use_bdlora", Rule::Refused(Feature::BdLora, Switch::Object)),
    ("kasa_config", Rule::Refused(Feature::Kasa, Switch::Object)),
    ("arrow_config", Rule::Refused(Feature::Arrow, Switch::Object)),
    // These change training alone; the forward pass of a trained adapter is plain LoRA.
    ("velora_config", Rule::Noted),
    ("monteclora_config", Rule::Noted),
    ("megatron_config", Rule::Noted),
    // Whether the base was changed hangs on init_lora_weights, not on these.
    ("loftq_config", Rule::Ignored),
    ("eva_config", Rule::Ignored),
    ("corda_config", Rule::Ignored),
    ("lora_ga_config", Rule::Ignored),
    ("peft_type", Rule::Ignored),
    ("lora_dropout", Rule::Ignored),
    ("qalora_group_size", Rule::Ignored),
    ("megatron_core", Rule::Ignored),
    ("base_model_name_or_path", Rule::Ignored),
    ("revision", Rule::Ignored),
    ("inference_mode", Rule::Ignored),
    ("peft_version", Rule::Ignored),
    ("auto_mapping", Rule::Ignored),
    ("runtime_config", Rule::Ignored),
];

impl AdapterConfig {
    /// Reads the bytes of an adapter_config.json; `path` and `subject` are for messages.
    ///
    /// # Errors
    /// Everything that is wrong with its fields at once: `adapter_config_invalid`, `adapter_pattern_invalid`,
    /// `adapter_feature_unsupported`, `adapter_base_changed`. Alone: `adapter_type_unsupported`,
    /// `adapter_format_unsupported`, and `adapter_config_invalid` where it is no JSON object.
    pub fn parse(bytes: &[u8], path: &Path, subject: &str) -> Result<Self> {
        let place = |error: Error| error.path(path).subject(subject);
        let invalid = |what: String| place(Error::new(ErrorCode::AdapterConfigInvalid, what));
        let fields = match json::read(bytes).map_err(|what| invalid(format!("the config is not valid JSON: {what}")))? {
            Value::Object(fields) => fields,
            other => return Err(invalid("the config is not a JSON object".into()).found(shown(&other))),
        };
        check_type(&fields).map_err(place)?;

        let rules: HashMap<&str, (&'static str, Rule)> = FIELDS.iter().map(|&(n, rule)| (n, (n, rule))).collect();
        let mut draft = Draft::default();
        let mut problems = Problems::new(subject);
        for (name, value) in &fields {
            let outcome = match rules.get(name.as_str()) {
                Some((field, rule)) => apply(*rule, field, value, &mut draft),
                None => check_unknown(name, value),
            };
            problems.keep(outcome.map_err(place));
        }
        let config = problems.keep(draft.finish().map_err(place));
        problems.finish()?;
        config.ok_or_else(|| place(Error::new(ErrorCode::Internal, "a config without problems was not built")))
    }
}

impl Draft {
    fn finish(self) -> Result<AdapterConfig> {
        let alpha = self.alpha.ok_or_else(|| {
            Error::new(ErrorCode::AdapterConfigInvalid, "lora_alpha is missing, so the scale can't be known")
                .expected("a number")
                .hint("PEFT would assume 8: write what the training used into adapter_config.json")
        })?;
        let layers = match self.layers {
            Some(layers) if !layers.is_empty() => Some(LayerFilter::new(layers, &self.layer_names)?),
            _ => None,
        };
        Ok(AdapterConfig {
            rank: self.rank,
            alpha,
            use_rslora: self.use_rslora,
            rank_pattern: self.rank_pattern,
            alpha_pattern: self.alpha_pattern,
            target_modules: self.target_modules,
            targeting: Targeting { targets: self.targets, exclude: self.exclude, layers },
        })
    }
}

/// Is it a PEFT LoRA at all? What another tool or method wrote is told apart before any field is looked at.
fn check_type(fields: &Map<String, Value>) -> Result<()> {
    match fields.get("peft_type") {
        Some(Value::String(kind)) if kind == "LORA" => Ok(()),
        Some(Value::String(kind)) => {
            Err(Error::new(ErrorCode::AdapterTypeUnsupported, format!("the adapter is of PEFT type '{kind}'"))
                .expected("peft_type 'LORA'")
                .found(format!("'{kind}'")))
        }
        Some(other) => Err(malformed("peft_type", "\"LORA\"", other)),
        None if fields.contains_key("fine_tune_type") || fields.contains_key("lora_parameters") => {
            Err(Error::new(ErrorCode::AdapterFormatUnsupported, "the adapter is in the format of mlx-lm, not PEFT")
                .hint(
                    "convert it: transpose lora_a and lora_b, rename them as PEFT does, set lora_alpha to scale * rank",
                ))
        }
        None => Err(Error::new(ErrorCode::AdapterConfigInvalid, "peft_type is missing").expected("\"LORA\"")),
    }
}

fn apply(rule: Rule, field: &'static str, value: &Value, draft: &mut Draft) -> Result<()> {
    match rule {
        Rule::Read(read) => read(draft, field, value),
        Rule::Ignored => Ok(()),
        Rule::Noted => {
            if !value.is_null() {
                tracing::info!(field, "adapter_config.json: it changes training alone and is ignored");
            }
            Ok(())
        }
        Rule::Refused(feature, switch) => match switch.is_on(field, value)? {
            true => Err(feature.refusal().found(format!("{field} = {}", shown(value)))),
            false => Ok(()),
        },
    }
}

impl Switch {
    fn is_on(self, field: &'static str, value: &Value) -> Result<bool> {
        let expected = match (self, value) {
            (_, Value::Null) => return Ok(false),
            (Switch::Bool, Value::Bool(on)) => return Ok(*on),
            (Switch::List | Switch::Collection, Value::Array(list)) => return Ok(!list.is_empty()),
            (Switch::Collection, Value::Object(map)) => return Ok(!map.is_empty()),
            (Switch::Object, Value::Object(_)) => return Ok(true),
            (Switch::Bool, _) => "true or false",
            (Switch::List, _) => "a list or null",
            (Switch::Collection, _) => "a list, an object or null",
            (Switch::Object, _) => "an object or null",
        };
        Err(malformed(field, expected, value))
    }
}

/// A field nobody here knows. Bookkeeping is text or a number; a switch is true, a list or an object.
fn check_unknown(name: &str, value: &Value) -> Result<()> {
    let on = match value {
        Value::Null | Value::Bool(false) => false,
        Value::Bool(true) => true,
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        Value::String(text) if text.is_empty() => false,
        Value::String(_) | Value::Number(_) => {
            tracing::info!(field = ?name, value = %shown(value), "adapter_config.json: an unknown field is ignored");
            false
        }
    };
    if !on {
        return Ok(());
    }
    let message = format!("'{name}' is unknown here and may change what the adapter computes");
    Err(Error::new(ErrorCode::AdapterFeatureUnsupported, message)
        .found(format!("{name} = {}", shown(value)))
        .hint("if it does not, remove it from adapter_config.json"))
}

fn malformed(field: &str, expected: &str, value: &Value) -> Error {
    Error::new(ErrorCode::AdapterConfigInvalid, format!("{field} is malformed")).expected(expected).found(shown(value))
}

/// A value as messages show it, cut to a readable length.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn rank_of(field: &str, value: &Value) -> Result<usize> {
    match value.as_u64() {
        Some(rank @ 1..=MAX_RANK) => Ok(rank as usize),
        _ => Err(malformed(field, "an integer of at least 1", value)),
    }
}

fn number_of(field: &str, value: &Value) -> Result<f64> {
    match value.as_f64() {
        Some(number) if number.is_finite() => Ok(number),
        _ => Err(malformed(field, "a finite number", value)),
    }
}

fn bool_of(field: &'static str, value: &Value) -> Result<bool> {
    Switch::Bool.is_on(field, value)
}

/// A list of strings; null is none.
fn strings_of(field: &str, expected: &str, value: &Value) -> Result<Option<Vec<String>>> {
    match value {
        Value::Null => Ok(None),
        Value::Array(list) => {
            let strings = list.iter().map(|item| item.as_str().map(str::to_owned)).collect::<Option<_>>();
            strings.map(Some).ok_or_else(|| malformed(field, expected, value))
        }
        _ => Err(malformed(field, expected, value)),
    }
}

/// `target_modules` and `exclude_modules`: a list of names, one regular expression, or null.
fn selector_of(field: &'static str, value: &Value) -> Result<Option<Selector>> {
    match value {
        Value::String(text) => Selector::from_text(field, text).map(Some),
        _ => Ok(strings_of(field, "a list of names, a string or null", value)?.map(Selector::Names)),
    }
}

/// A pattern map; null, which PEFT can't read, can only mean none.
fn patterns_of<T: Copy>(
    field: &'static str,
    value: &Value,
    read: impl Fn(&str, &Value) -> Result<T>,
) -> Result<PatternMap<T>> {
    let entries = match value {
        Value::Null => return Ok(PatternMap::default()),
        Value::Object(entries) => entries,
        _ => return Err(malformed(field, "an object", value)),
    };
    let entries: Vec<(&str, T)> = entries
        .iter()
        .map(|(key, value)| Ok((key.as_str(), read(&format!("{field}.{key}"), value)?)))
        .collect::<Result<_>>()?;
    PatternMap::new(field, entries)
}

fn read_rank(draft: &mut Draft, field: &'static str, value: &Value) -> Result<()> {
    draft.rank = Some(rank_of(field, value)?);
    Ok(())
}

fn read_alpha(draft: &mut Draft, field: &'static str, value: &Value) -> Result<()> {
    // Whatever is wrong with it is one problem: it isn't missing too.
    draft.alpha = Some(0.0);
    draft.alpha = Some(number_of(field, value)?);
    Ok(())
}

fn read_use_rslora(draft: &mut Draft, field: &'static str, value: &Value) -> Result<()> {
    draft.use_rslora = bool_of(field, value)?;
    Ok(())
}

fn read_rank_pattern(draft: &mut Draft, field: &'static str, value: &Value) -> Result<()> {
    draft.rank_pattern = patterns_of(field, value, rank_of)?;
    Ok(())
}

fn read_alpha_pattern(draft: &mut Draft, field: &'static str, value: &Value) -> Result<()> {
    draft.alpha_pattern = patterns_of(field, value, number_of)?;
    Ok(())
}

fn read_target_modules(draft: &mut Draft, field: &'static str, value: &Value) -> Result<()> {
    draft.targets = selector_of(field, value)?;
    draft.target_modules = match (value, &draft.targets) {
        (Value::String(text), _) => vec![text.clone()],
        (_, Some(Selector::Names(names))) => names.clone(),
        _ => Vec::new(),
    };
    Ok(())
}

fn read_exclude_modules(draft: &mut Draft, field: &'static str, value: &Value) -> Result<()> {
    // Unlike a target, "all-linear" is no word of its own here, and an empty string excludes nothing.
    draft.exclude = match value.as_str() {
        Some("") => None,
        Some(text) if text.eq_ignore_ascii_case("all-linear") => None,
        _ => selector_of(field, value)?,
    };
    Ok(())
}

fn read_layers(draft: &mut Draft, field: &'static str, value: &Value) -> Result<()> {
    let expected = "a layer index, a list of them or null";
    draft.layers = match value {
        Value::Null => None,
        Value::Number(_) => Some(vec![value.as_u64().ok_or_else(|| malformed(field, expected, value))?]),
        Value::Array(list) => {
            let layers = list.iter().map(Value::as_u64).collect::<Option<_>>();
            Some(layers.ok_or_else(|| malformed(field, expected, value))?)
        }
        _ => return Err(malformed(field, expected, value)),
    };
    Ok(())
}

fn read_layer_names(draft: &mut Draft, field: &'static str, value: &Value) -> Result<()> {
    draft.layer_names = match value {
        Value::String(name) if name.is_empty() => Vec::new(),
        Value::String(name) => vec![name.clone()],
        _ => strings_of(field, "a name, a list of names or null", value)?.unwrap_or_default(),
    };
    Ok(())
}

fn read_bias(_: &mut Draft, field: &'static str, value: &Value) -> Result<()> {
    match value.as_str() {
        Some("none") => Ok(()),
        Some("all" | "lora_only") => Err(Feature::Bias.refusal().found(format!("{field} = {}", shown(value)))),
        _ => Err(malformed(field, "\"none\", \"all\" or \"lora_only\"", value)),
    }
}

/// Some initialisations subtract what they start from from the base, so that the factors mean nothing on the base as it is.
fn read_init(_: &mut Draft, field: &'static str, value: &Value) -> Result<()> {
    let name = match value {
        Value::Null | Value::Bool(_) => return Ok(()),
        Value::String(name) => name.to_lowercase(),
        _ => return Err(malformed(field, "true, false or a name", value)),
    };
    let remedy = match name.as_str() {
        "gaussian" | "orthogonal" | "eva" | "mica" => return Ok(()),
        "loftq" => "merge it into the base it was trained on, or train it with init_lora_weights=True",
        "olora" | "lora_ga" => {
            "convert it with PEFT: save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        }
        name if name.starts_with("pissa") || name.starts_with("corda") => {
            "convert it with PEFT: save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        }
        _ => return Err(Feature::Initialisation.refusal().found(format!("{field} = {}", shown(value)))),
    };
    Err(Error::new(
        ErrorCode::AdapterBaseChanged,
        format!("the initialisation {} changed the base weights", shown(value)),
    )
    .found(format!("{field} = {}", shown(value)))
    .hint(remedy))
}

fn read_task_type(_: &mut Draft, field: &'static str, value: &Value) -> Result<()> {
    match value {
        Value::Null => Ok(()),
        Value::String(task) if task == "CAUSAL_LM" => Ok(()),
        Value::String(_) => Err(Feature::TaskHead.refusal().found(format!("{field} = {}", shown(value)))),
        _ => Err(malformed(field, "a string or null", value)),
    }
}

fn read_fan_in_fan_out(_: &mut Draft, field: &'static str, value: &Value) -> Result<()> {
    // It describes how a base stores its weight; no linear served here is stored that way, and PEFT resets it for those.
    if bool_of(field, value)? {
        tracing::info!(field, "adapter_config.json: ignored, no site stores its weight transposed");
    }
    Ok(())
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
        let rows: HashSet<_> = FIELDS.iter().map(|(name, _)| *name).collect();
        assert_eq!(rows.len(), FIELDS.len());
        for field in WRITTEN.split_whitespace().chain(["runtime_config"]) {
            assert!(rows.contains(field), "{field}");
        }
        assert_eq!(WRITTEN.split_whitespace().count() + 1, FIELDS.len());
    }

    #[test]
    fn a_long_value_is_cut_at_a_character() {
        let text = shown(&Value::String("ü".repeat(200)));
        assert!(text.ends_with('…') && text.chars().count() == 81, "{text}");
    }
}
