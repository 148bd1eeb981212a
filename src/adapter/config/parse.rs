//! Parses adapter_config.json: its type first, then each field by its rule, then what only several fields together decide.

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Map, Value};

use super::adapter_config::AdapterConfig;
use super::fields::{FIELDS, Rule, apply};
use super::json;
use super::readers::{Draft, check_unknown, malformed, shown};
use crate::adapter::problems::Problems;
use crate::adapter::target_modules::LayerFilter;
use crate::error::{Error, ErrorCode, Result};

impl AdapterConfig {
    /// Parses the bytes of an adapter_config.json; `path` and `subject` are for messages. Problems with single fields are
    /// collected in [`AdapterConfig::problems`].
    ///
    /// # Errors
    /// It is not the config of a PEFT LoRA: `adapter_type_unsupported`, `adapter_format_unsupported`, and
    /// `adapter_config_invalid` where it is not a JSON object.
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
}

impl Draft {
    /// The config, with the problems that only several fields together show.
    fn finish(self, mut report: impl FnMut(Error)) -> AdapterConfig {
        self.check_exclusions(&mut report);
        let variant = self.variant();
        let mut config = self.config;
        config.variant = variant;
        if config.alpha.is_none() && !config.is_broken("lora_alpha") {
            report(
                Error::new(ErrorCode::AdapterConfigInvalid, "lora_alpha is missing, so the scale is unknown")
                    .with_expected("a number")
                    .with_hint("PEFT would assume 8: write the value used in training into adapter_config.json"),
            );
        }
        if let Some(layers) = self.layers.filter(|layers| !layers.is_empty()) {
            match LayerFilter::new(layers, self.layer_names.as_deref().unwrap_or_default()) {
                Ok(filter) => config.targeting.layers = Some(filter),
                Err(error) => report(error),
            }
        }
        if self.use_qalora && !config.is_broken("qalora_group_size") {
            // PEFT's default.
            config.pooled_inputs = Some(self.group_size.unwrap_or(16));
        }
        config.targeting.saved.clone_from(&config.modules_to_save);
        config
    }
}

/// Whether it is a PEFT LoRA at all. Other tools and methods are recognized before any field is read.
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
