//! Which family a config.json is of, and which part of it describes the text model.

use serde_json::Value;

use super::family::{Family, WrappedText, Wrapper};
use super::family_table::{FAMILIES, REFUSED, WRAPPERS};
use super::fields::{Fields, invalid, wrong};
use crate::error::{Error, ErrorCode, Result};

/// A supported architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Architecture {
    /// Its name in config.json.
    pub name: &'static str,
    /// The models that have it.
    pub models: &'static str,
}

/// The supported architectures.
pub fn architectures() -> impl Iterator<Item = Architecture> {
    let families = FAMILIES.iter().map(|family| Architecture { name: family.architecture, models: family.models });
    let wrappers = WRAPPERS.iter().map(|wrapper| Architecture { name: wrapper.architecture, models: wrapper.models });
    families.chain(wrappers)
}

/// The text model that a config.json describes.
pub(super) struct TextModel<'a> {
    pub family: &'static Family,
    /// The architecture that `model_type` means: the family's, or that of the multimodal model around it.
    pub architecture: &'static str,
    /// The members that describe the text model.
    pub fields: Fields<'a>,
    /// The members of the multimodal model around it, if there is one.
    pub wrapper: Option<Fields<'a>>,
}

impl<'a> TextModel<'a> {
    /// The text model that transformers' `AutoModelForCausalLM` would build, or that of the multimodal model around it.
    /// `model_type` decides. `architectures` must not name anything else than a supported one, since the weights would be
    /// those of something else.
    pub(super) fn of(fields: Fields<'a>) -> Result<Self> {
        let named = fields.get("architectures").and_then(|list| list.get(0)).and_then(Value::as_str);
        let is_supported = |name: &str| architectures().any(|known| known.name.eq_ignore_ascii_case(name));
        if let Some(name) = named.filter(|name| !is_supported(name)) {
            return Err(unsupported_architecture(name));
        }
        let model_type = match fields.get("model_type") {
            None => {
                return Err(invalid("model_type").with_expected("the name of the model family").with_found("nothing"));
            }
            Some(value) => type_name(value)?,
        };
        let model = match WRAPPERS.iter().find(|wrapper| wrapper.model_type == model_type) {
            Some(wrapper) => Self::wrapped(wrapper, fields)?,
            None => {
                // As AutoConfig does: a Mistral whose layers differ is a Ministral.
                let is_ministral = model_type == "mistral" && fields.get("layer_types").is_some();
                let family = family_of(if is_ministral { "ministral" } else { model_type })?;
                Self { family, architecture: family.architecture, fields, wrapper: None }
            }
        };
        if let Some(name) = named.filter(|name| !model.architecture.eq_ignore_ascii_case(name)) {
            tracing::warn!(architecture = name, model_type, "model_type decides, not architectures");
        }
        Ok(model)
    }

    /// The text model in `text_config` of a multimodal model.
    fn wrapped(wrapper: &'static Wrapper, outer: Fields<'a>) -> Result<Self> {
        let text = match outer.non_null("text_config") {
            Some(value @ Value::Object(_)) => Fields::of(value)?,
            Some(value) => return Err(wrong("text_config", "an object", value)),
            None => {
                return Err(invalid("text_config")
                    .with_expected("the members of the text model")
                    .with_found("nothing"));
            }
        };
        let model_type = match (wrapper.text, text.get("model_type")) {
            (WrappedText::Always(name), _) | (WrappedText::Named(name), None) => name,
            (WrappedText::Named(_), Some(value)) => type_name(value)?,
        };
        let family = family_of(model_type)?;
        Ok(Self { family, architecture: wrapper.architecture, fields: text, wrapper: Some(outer) })
    }
}

fn type_name(value: &Value) -> Result<&str> {
    value.as_str().ok_or_else(|| wrong("model_type", "the name of the model family", value))
}

fn family_of(model_type: &str) -> Result<&'static Family> {
    let family = FAMILIES.iter().find(|family| family.model_type == model_type);
    family.ok_or_else(|| unsupported_architecture(model_type))
}

fn unsupported_architecture(name: &str) -> Error {
    let error = Error::new(ErrorCode::ModelArchitectureUnsupported, format!("unsupported architecture '{name}'"))
        .with_expected(architectures().map(|known| known.name).collect::<Vec<_>>().join(", "))
        .with_found(name);
    let letters: String = name.chars().filter(|c| *c != '_').map(|c| c.to_ascii_lowercase()).collect();
    match REFUSED.iter().find(|(part, _)| letters.contains(part)) {
        Some((_, reason)) => error.with_hint(*reason),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn model(config: &Value) -> Result<(&'static str, &'static str)> {
        let model = TextModel::of(Fields::of(config)?)?;
        Ok((model.architecture, model.family.model_type))
    }

    #[test]
    fn the_text_of_a_multimodal_model_is_of_the_family_that_it_names() {
        let ministral3 = json!({"model_type": "mistral3", "text_config": {"model_type": "ministral3"}});
        assert_eq!(model(&ministral3).ok(), Some(("Mistral3ForConditionalGeneration", "ministral3")));
        let mistral = json!({"model_type": "mistral3", "text_config": {}});
        assert_eq!(model(&mistral).ok(), Some(("Mistral3ForConditionalGeneration", "mistral")));
        // It has one class of text model, whatever is named.
        let gemma3 = json!({"model_type": "gemma3", "text_config": {"model_type": "gemma3"}});
        assert_eq!(model(&gemma3).ok(), Some(("Gemma3ForConditionalGeneration", "gemma3_text")));
        for text in [json!(null), json!(3), json!({"model_type": 1}), json!({"model_type": "mamba"})] {
            assert!(model(&json!({"model_type": "mistral3", "text_config": text})).is_err());
        }
    }

    #[test]
    fn what_is_not_supported_is_refused_with_the_reason() {
        for (name, reason) in [
            ("Gemma3nForConditionalGeneration", "Gemma 3n"),
            ("Qwen3MoeForCausalLM", "experts"),
            ("GraniteMoeHybridForCausalLM", "recurrent"),
            ("Qwen3_5ForCausalLM", "recurrent"),
            ("GptOssForCausalLM", "experts"),
        ] {
            let error = model(&json!({"architectures": [name], "model_type": "llama"})).expect_err(name);
            assert_eq!(error.code(), ErrorCode::ModelArchitectureUnsupported);
            assert!(error.to_string().contains(name) && error.to_string().contains(reason), "{error}");
        }
        let error = model(&json!({"model_type": "gpt_oss"})).expect_err("refused");
        assert!(error.to_string().contains("experts"), "{error}");
    }
}
