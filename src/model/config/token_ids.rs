//! The ids of special tokens that config.json and generation_config.json name.

use std::path::Path;

use serde_json::Value;

use super::architecture::TextModel;
use super::fields::{Fields, invalid, read_json, shown, token_ids};
use crate::error::{Error, ErrorCode, Result};

/// Ids of special tokens.
pub(super) struct TokenIds {
    pub bos: Option<u32>,
    pub eos: Vec<u32>,
    pub pad: Option<u32>,
}

impl TokenIds {
    /// Reads the ids of config.json. A multimodal model's own precede those of its text model.
    pub(super) fn read(model: &TextModel<'_>, vocab: usize) -> Result<Self> {
        let defaults = model.family.tokens;
        let holder = |name: &str| match &model.wrapper {
            Some(outer) if outer.get(name).is_some() => *outer,
            _ => model.fields,
        };
        let eos = holder("eos_token_id");
        let is_default_eos = defaults.null_is_default_eos && eos.non_null("eos_token_id").is_none();
        // What the text model has is checked in any case.
        let pad = pad_token_id(&model.fields, defaults.pad, vocab)?;
        Ok(Self {
            bos: holder("bos_token_id")
                .nullable_integer("bos_token_id", defaults.bos)?
                .and_then(|id| id.try_into().ok()),
            eos: match is_default_eos {
                true => defaults.eos.iter().filter_map(|&id| id.try_into().ok()).collect(),
                false => eos.nullable_ids("eos_token_id", defaults.eos)?,
            },
            pad: match holder("pad_token_id").get("pad_token_id") {
                Some(_) if model.wrapper.is_some() => {
                    holder("pad_token_id").nullable_integer("pad_token_id", None)?.and_then(|id| id.try_into().ok())
                }
                _ => pad,
            },
        })
    }
}

/// The padding id, which torch takes from the end of the vocabulary if it is negative, and which must be in it.
fn pad_token_id(fields: &Fields<'_>, default: Option<i64>, vocab_size: usize) -> Result<Option<u32>> {
    let Some(id) = fields.nullable_integer("pad_token_id", default)? else { return Ok(None) };
    let vocab = vocab_size as i64;
    if !(-vocab..vocab).contains(&id) {
        return Err(invalid("pad_token_id").with_expected(format!("an id below {vocab}")).with_found(id));
    }
    Ok(id.try_into().ok())
}

/// `eos_token_id` of a generation_config.json, if there is one.
///
/// # Errors
/// `model_config_invalid`; `checkpoint_unreadable`, `checkpoint_too_large`.
pub(crate) fn generation_eos_ids(path: &Path) -> Result<Vec<u32>> {
    let Some(value) = read_json(path)? else { return Ok(Vec::new()) };
    eos_ids(&value).map_err(|e| e.with_path(path))
}

/// `eos_token_id` of a parsed generation_config.json.
///
/// # Errors
/// `model_config_invalid`.
pub(crate) fn eos_ids(generation_config: &Value) -> Result<Vec<u32>> {
    let wrong = |what: &str, expected: &str, found: &Value| {
        let error = Error::new(ErrorCode::ModelConfigInvalid, what).with_expected(expected).with_found(shown(found));
        error.with_hint("use the generation_config.json that came with the weights, or remove it")
    };
    let Some(members) = generation_config.as_object() else {
        return Err(wrong("generation_config.json is not a JSON object", "an object", generation_config));
    };
    let Some(ids) = members.get("eos_token_id") else { return Ok(Vec::new()) };
    let what = "invalid 'eos_token_id' in generation_config.json";
    token_ids(ids).map_err(|(expected, found)| wrong(what, expected, found))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ids_are_read_and_what_is_wrong_is_said_of_the_right_file() {
        for (value, ids) in [
            (json!({}), vec![]),
            (json!({"eos_token_id": null}), vec![]),
            (json!({"eos_token_id": 2}), vec![2]),
            (json!({"eos_token_id": [2, -1, 5]}), vec![2, 5]),
        ] {
            assert_eq!(eos_ids(&value).ok(), Some(ids), "{value}");
        }
        for (value, field) in [
            (json!([]), "not a JSON object"),
            (json!("x".repeat(1 << 20)), "not a JSON object"),
            (json!({"eos_token_id": "</s>"}), "'eos_token_id'"),
            (json!({"eos_token_id": [2, "3"]}), "'eos_token_id'"),
        ] {
            let error = eos_ids(&value).expect_err("refused");
            assert_eq!(error.code(), ErrorCode::ModelConfigInvalid);
            let text = error.to_string();
            assert!(text.contains("generation_config.json") && text.contains(field), "{text}");
            assert!(text.len() < 300, "{text}");
        }
    }
}
