//! The ids of special tokens that config.json and generation_config.json name.

use std::path::Path;

use serde_json::Value;

use super::architecture::TextModel;
use super::fields::{Fields, invalid, read_json};
use crate::error::Result;

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
    Fields::of(generation_config)?.nullable_ids("eos_token_id", &[])
}
