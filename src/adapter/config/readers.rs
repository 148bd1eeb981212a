//! Readers of single fields, each as strict as PEFT's type of the field.

use serde_json::Value;

use super::adapter_config::{AdapterConfig, BlockDiagonal, TrainedBiases};
use crate::adapter::target_modules::{PatternMap, Selector};
use crate::adapter::unsupported::{Feature, unsupported};
use crate::error::{Error, ErrorCode, Result, printable};

/// Largest plausible rank. The largest in use are a few thousand.
const MAX_RANK: u64 = 1 << 20;

/// Most tokens of an invocation.
const MAX_INVOCATION: usize = 1024;

/// Most replaced rows: more than any vocabulary has.
const MAX_TOKEN_ROWS: usize = 1 << 21;

/// Most names of a list: more than any model has modules.
const MAX_NAMES: usize = 16_384;

/// Most entries of `modules_to_save`.
const MAX_SAVED: usize = 4096;

/// The values read so far; some only get a meaning when all fields are known.
#[derive(Default)]
pub(in crate::adapter) struct Draft {
    pub config: AdapterConfig,
    pub layers: Option<Vec<u64>>,
    pub layer_names: Option<Vec<String>>,
    /// `init_lora_weights`, where it is not true or false: a name, or `null`.
    pub init: Option<String>,
    /// Fields without effect that are on, but exclude others.
    pub noted: Vec<&'static str>,
    pub use_qalora: bool,
    pub group_size: Option<usize>,
}

/// Reads a field's value into the draft.
pub(in crate::adapter) type Reader = fn(&mut Draft, &'static str, &Value) -> Result<()>;

/// How a field is switched off.
#[derive(Clone, Copy)]
pub(in crate::adapter) enum Switch {
    /// A bool. PEFT treats the string "false" as true, so anything but a bool is malformed.
    Bool,
    /// A list; null and the empty list mean off.
    List,
    /// An object; only null means off, since an empty object may stand for its defaults.
    Object,
}

impl Switch {
    pub(super) fn is_on(self, field: &'static str, value: &Value) -> Result<bool> {
        let expected = match (self, value) {
            (_, Value::Null) => return Ok(false),
            (Switch::Bool, Value::Bool(on)) => return Ok(*on),
            (Switch::List, Value::Array(list)) => return Ok(!list.is_empty()),
            (Switch::Object, Value::Object(_)) => return Ok(true),
            (Switch::Bool, _) => "true or false",
            (Switch::List, _) => "a list or null",
            (Switch::Object, _) => "an object or null",
        };
        Err(malformed(field, expected, value))
    }
}

/// Ends of the names of fields whose text says what an adapter is, and not what it computes: those of other tools, and of
/// versions of PEFT to come.
const LABELS: [&str; 8] =
    ["version", "name_or_path", "model_name", "revision", "dtype", "description", "license", "author"];

/// Texts by which a field is switched off.
const OFF: [&str; 5] = ["", "none", "null", "false", "off"];

/// An unknown field: harmless if it is a label or a number, refused if it may be a switch that is on (true, a text, a list, an
/// object). Numbers are no switches: PEFT writes those of features that are off too.
pub(super) fn check_unknown(name: &str, value: &Value) -> Result<()> {
    let is_label = || LABELS.iter().any(|label| name.strip_suffix(label).is_some_and(is_word_end));
    let (is_on, is_noted) = match value {
        Value::Null | Value::Bool(false) => (false, false),
        Value::Bool(true) => (true, false),
        Value::Array(list) => (!list.is_empty(), false),
        Value::Object(map) => (!map.is_empty(), false),
        Value::String(text) if OFF.contains(&text.to_ascii_lowercase().as_str()) => (false, false),
        Value::String(_) => (!is_label(), true),
        Value::Number(_) => (false, true),
    };
    if !is_on {
        if is_noted {
            tracing::info!(field = %printable(name), value = %printable(&shown(value)), "adapter_config.json: an unknown field is ignored");
        }
        return Ok(());
    }
    let message = format!("'{name}' is unknown and may change what the adapter computes");
    Err(Error::new(ErrorCode::AdapterFeatureUnsupported, message)
        .with_found(format!("{name} = {}", shown(value)))
        .with_hint("if it does not, remove it from adapter_config.json"))
}

/// Whether a word of a field's name begins behind this.
fn is_word_end(before: &str) -> bool {
    before.is_empty() || before.ends_with('_')
}

pub(super) fn malformed(field: &str, expected: &str, value: &Value) -> Error {
    Error::new(ErrorCode::AdapterConfigInvalid, format!("{field} is malformed"))
        .with_expected(expected)
        .with_found(shown(value))
}

/// A value as shown in messages, cut to a readable length.
pub(super) fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn rank_of(field: &str, value: &Value) -> Result<usize> {
    match value.as_u64() {
        Some(rank @ 1..=MAX_RANK) => Ok(rank as usize),
        _ => Err(malformed(field, &format!("an integer from 1 to {MAX_RANK}"), value)),
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
        Value::Array(list) if list.len() > MAX_NAMES => {
            Err(malformed(field, &format!("at most {MAX_NAMES} names"), value)
                .with_found(format!("{} names", list.len())))
        }
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

/// A pattern map; null, which PEFT cannot read, can only mean none.
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

pub(super) fn read_rank(draft: &mut Draft, field: &'static str, value: &Value) -> Result<()> {
    draft.config.rank = Some(rank_of(field, value)?);
    Ok(())
}

pub(super) fn read_alpha(draft: &mut Draft, field: &'static str, value: &Value) -> Result<()> {
    draft.config.alpha = Some(number_of(field, value)?);
    Ok(())
}

pub(super) fn read_use_rslora(draft: &mut Draft, field: &'static str, value: &Value) -> Result<()> {
    draft.config.use_rslora = bool_of(field, value)?;
    Ok(())
}

pub(super) fn read_rank_pattern(draft: &mut Draft, field: &'static str, value: &Value) -> Result<()> {
    draft.config.rank_pattern = patterns_of(field, value, rank_of)?;
    Ok(())
}

pub(super) fn read_alpha_pattern(draft: &mut Draft, field: &'static str, value: &Value) -> Result<()> {
    draft.config.alpha_pattern = patterns_of(field, value, number_of)?;
    Ok(())
}

pub(super) fn read_target_modules(draft: &mut Draft, field: &'static str, value: &Value) -> Result<()> {
    draft.config.targeting.targets = selector_of(field, value)?;
    draft.config.target_modules = match (value, &draft.config.targeting.targets) {
        (Value::String(text), _) => vec![text.clone()],
        (_, Some(Selector::Names(names))) => names.clone(),
        _ => Vec::new(),
    };
    Ok(())
}

pub(super) fn read_exclude_modules(draft: &mut Draft, field: &'static str, value: &Value) -> Result<()> {
    // Unlike in target_modules, "all-linear" has no special meaning here, and an empty string excludes nothing.
    draft.config.targeting.exclude = match value.as_str() {
        Some("") => None,
        Some(text) if text.eq_ignore_ascii_case("all-linear") => None,
        _ => selector_of(field, value)?,
    };
    Ok(())
}

pub(super) fn read_layers(draft: &mut Draft, field: &'static str, value: &Value) -> Result<()> {
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

pub(super) fn read_layer_names(draft: &mut Draft, field: &'static str, value: &Value) -> Result<()> {
    draft.layer_names = match value {
        Value::String(name) if name.is_empty() => Some(Vec::new()),
        Value::String(name) => Some(vec![name.clone()]),
        _ => strings_of(field, "a name, a list of names or null", value)?,
    };
    Ok(())
}

pub(super) fn read_bias(draft: &mut Draft, field: &'static str, value: &Value) -> Result<()> {
    draft.config.biases = match value.as_str() {
        Some("none") => TrainedBiases::None,
        Some("all") => TrainedBiases::All,
        Some("lora_only") => TrainedBiases::LoraOnly,
        _ => return Err(malformed(field, "\"none\", \"all\" or \"lora_only\"", value)),
    };
    Ok(())
}

pub(super) fn read_use_dora(draft: &mut Draft, field: &'static str, value: &Value) -> Result<()> {
    draft.config.use_dora = bool_of(field, value)?;
    Ok(())
}

pub(super) fn read_lora_bias(draft: &mut Draft, field: &'static str, value: &Value) -> Result<()> {
    draft.config.lora_bias = bool_of(field, value)?;
    Ok(())
}

pub(super) fn read_weight_tying(draft: &mut Draft, field: &'static str, value: &Value) -> Result<()> {
    draft.config.ensure_weight_tying = bool_of(field, value)?;
    Ok(())
}

pub(super) fn read_modules_to_save(draft: &mut Draft, field: &'static str, value: &Value) -> Result<()> {
    let names = strings_of(field, "a list of names or null", value)?.unwrap_or_default();
    // Every path ends with the empty name, and each name is compared with each module.
    if names.len() > MAX_SAVED || names.iter().any(String::is_empty) {
        return Err(malformed(field, &format!("at most {MAX_SAVED} names, none empty"), value));
    }
    draft.config.modules_to_save = names;
    Ok(())
}

pub(super) fn read_token_rows(draft: &mut Draft, field: &'static str, value: &Value) -> Result<()> {
    let expected = "a list of token ids, an object with one for each module, or null";
    let ids = |value: &Value| {
        let ids = token_ids(value, MAX_TOKEN_ROWS).ok_or_else(|| malformed(field, expected, value))?;
        let mut sorted = ids.clone();
        sorted.sort_unstable();
        match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => {
                Err(malformed(field, "each token once", value).with_found(format!("token {} twice", pair[0])))
            }
            None => Ok(ids),
        }
    };
    draft.config.token_rows = match value {
        Value::Null => Vec::new(),
        Value::Array(_) => vec![(None, ids(value)?)],
        Value::Object(entries) if entries.len() <= MAX_NAMES && !entries.contains_key("") => {
            entries.iter().map(|(name, value)| Ok((Some(name.clone()), ids(value)?))).collect::<Result<_>>()?
        }
        _ => return Err(malformed(field, expected, value)),
    };
    draft.config.token_rows.retain(|(_, ids)| !ids.is_empty());
    Ok(())
}

pub(super) fn read_replication(draft: &mut Draft, field: &'static str, value: &Value) -> Result<()> {
    let expected = "a list of [start, end) pairs or null";
    let pair = |pair: &Value| match pair.as_array().map(Vec::as_slice) {
        Some([start, end]) => Some((u32::try_from(start.as_u64()?).ok()?, u32::try_from(end.as_u64()?).ok()?)),
        _ => None,
    };
    let ranges = match value {
        Value::Null => Some(Vec::new()),
        Value::Array(list) => list.iter().map(pair).collect(),
        _ => None,
    };
    draft.config.layer_replication = ranges.ok_or_else(|| malformed(field, expected, value))?;
    Ok(())
}

pub(super) fn read_invocation(draft: &mut Draft, field: &'static str, value: &Value) -> Result<()> {
    let expected = format!("a list of at most {MAX_INVOCATION} token ids, or null");
    let ids = if value.is_null() { Some(Vec::new()) } else { token_ids(value, MAX_INVOCATION) };
    draft.config.invocation = ids.ok_or_else(|| malformed(field, &expected, value))?;
    Ok(())
}

pub(super) fn read_use_qalora(draft: &mut Draft, field: &'static str, value: &Value) -> Result<()> {
    draft.use_qalora = bool_of(field, value)?;
    Ok(())
}

pub(super) fn read_group_size(draft: &mut Draft, field: &'static str, value: &Value) -> Result<()> {
    draft.group_size = match value {
        Value::Null => None,
        _ => Some(rank_of(field, value)?),
    };
    Ok(())
}

pub(super) fn read_kasa(draft: &mut Draft, field: &'static str, value: &Value) -> Result<()> {
    draft.config.uses_kasa = Switch::Object.is_on(field, value)?;
    if draft.config.uses_kasa && !cfg!(feature = "kasa") {
        let error = unsupported(format!("`{field}`: KaSA is left out of this build"));
        return Err(error.with_hint("build exlora with its Cargo feature `kasa`"));
    }
    Ok(())
}

pub(super) fn read_blocks(draft: &mut Draft, field: &'static str, value: &Value) -> Result<()> {
    let fields = match value {
        Value::Null => return Ok(()),
        Value::Object(fields) => fields,
        _ => return Err(malformed(field, "an object or null", value)),
    };
    let mut blocks = BlockDiagonal { count: 1, strict: true, ..BlockDiagonal::default() };
    for (name, value) in fields {
        let path = format!("{field}.{name}");
        let names = || Ok(strings_of(&path, "a list of names or null", value)?.unwrap_or_default());
        match name.as_str() {
            "target_modules_bd_a" => blocks.a = names()?,
            "target_modules_bd_b" => blocks.b = names()?,
            "nblocks" => blocks.count = rank_of(&path, value)?,
            "match_strict" => {
                blocks.strict = value.as_bool().ok_or_else(|| malformed(&path, "true or false", value))?
            }
            _ => check_unknown(&path, value)?,
        }
    }
    draft.config.blocks = Some(blocks);
    Ok(())
}

/// A list of at most `max` token ids.
fn token_ids(value: &Value, max: usize) -> Option<Vec<u32>> {
    let list = value.as_array().filter(|list| list.len() <= max)?;
    list.iter().map(|id| u32::try_from(id.as_u64()?).ok()).collect()
}

/// Some initializations subtract the initial factors from the base, so that the factors mean nothing on the original base.
pub(super) fn read_init(draft: &mut Draft, field: &'static str, value: &Value) -> Result<()> {
    let name = match value {
        Value::Bool(_) => return Ok(()),
        Value::Null => {
            draft.init = Some("null".to_owned());
            return Ok(());
        }
        Value::String(name) => name.to_lowercase(),
        _ => return Err(malformed(field, "true, false or a name", value)),
    };
    draft.init = Some(name.clone());
    let remedy = match name.as_str() {
        "gaussian" | "orthogonal" | "eva" | "mica" => return Ok(()),
        "loftq" => "merge it into the base it was trained on, or train it with init_lora_weights=True",
        "olora" | "lora_ga" => {
            "convert it with PEFT: save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        }
        name if name.starts_with("pissa") || name.starts_with("corda") => {
            "convert it with PEFT: save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        }
        _ => return Err(Feature::Initialization.refusal().with_found(format!("{field} = {}", shown(value)))),
    };
    Err(Error::new(
        ErrorCode::AdapterBaseChanged,
        format!("the initialization {} changed the base weights", shown(value)),
    )
    .with_found(format!("{field} = {}", shown(value)))
    .with_hint(remedy))
}

pub(super) fn read_task_type(_: &mut Draft, field: &'static str, value: &Value) -> Result<()> {
    match value {
        Value::Null => Ok(()),
        Value::String(task) if task == "CAUSAL_LM" => Ok(()),
        Value::String(_) => Err(Feature::TaskHead.refusal().with_found(format!("{field} = {}", shown(value)))),
        _ => Err(malformed(field, "a string or null", value)),
    }
}

pub(super) fn read_fan_in_fan_out(_: &mut Draft, field: &'static str, value: &Value) -> Result<()> {
    // It describes how a base stores its weights. No supported linear is stored that way, and PEFT resets it for those.
    if bool_of(field, value)? {
        tracing::info!(field, "adapter_config.json: ignored, no linear of the model is stored transposed");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_value_is_cut_at_a_character_boundary() {
        let text = shown(&Value::String("ü".repeat(200)));
        assert!(text.ends_with('…') && text.chars().count() == 81, "{text}");
    }
}
