//! Fields of other servers and their clients that are called otherwise here, that change no answer, or that are understood with
//! some values alone: tables of what each means, so that nothing of a request is dropped in silence.

use serde_json::Value;
use utoipa::PartialSchema;
use utoipa::openapi::schema::{Object, SchemaType};
use utoipa::openapi::{RefOr, Schema};

use crate::error::{Error, ErrorCode};
use crate::request_settings::RequestSettings;
use crate::server::error::{ApiError, ApiResult};
use crate::server::json::JsonFields;

/// A field of another server's.
#[derive(Clone, Copy, Debug)]
pub struct CompatField {
    name: &'static str,
    meaning: Meaning,
}

#[derive(Clone, Copy, Debug)]
enum Meaning {
    /// It changes no answer: who asks, what is kept or billed.
    WithoutEffect,
    /// A setting under another name.
    Setting(&'static str),
    /// A setting in another form; `None` for a value that is not `expected`.
    Converted { expected: &'static str, convert: fn(&Value) -> Option<(&'static str, Value)> },
    /// Only these values, each JSON, ask for what is done anyway; others are refused, and told what to use instead.
    Only { values: &'static [&'static str], instead: &'static str },
    /// Only the value of that field, which is 1 by default.
    SameAs { field: &'static str, instead: &'static str },
    /// An object of such fields.
    Object(&'static [CompatField]),
}

/// A field that changes no answer, whatever its value.
pub const fn without_effect(name: &'static str) -> CompatField {
    CompatField { name, meaning: Meaning::WithoutEffect }
}

/// Another name for a setting.
pub const fn renamed(name: &'static str, setting: &'static str) -> CompatField {
    CompatField { name, meaning: Meaning::Setting(setting) }
}

/// A field that is understood with these values alone; null is always as if it were not there.
pub const fn only(name: &'static str, values: &'static [&'static str], instead: &'static str) -> CompatField {
    CompatField { name, meaning: Meaning::Only { values, instead } }
}

/// A field that is not supported.
pub const fn refused(name: &'static str, instead: &'static str) -> CompatField {
    only(name, &[], instead)
}

/// A field that must have the value of another one.
pub const fn same_as(name: &'static str, field: &'static str, instead: &'static str) -> CompatField {
    CompatField { name, meaning: Meaning::SameAs { field, instead } }
}

const fn converted(
    name: &'static str,
    expected: &'static str,
    convert: fn(&Value) -> Option<(&'static str, Value)>,
) -> CompatField {
    CompatField { name, meaning: Meaning::Converted { expected, convert } }
}

const fn object(name: &'static str, fields: &'static [CompatField]) -> CompatField {
    CompatField { name, meaning: Meaning::Object(fields) }
}

/// What to use instead of beam search and its settings.
const NO_BEAMS: &str = "beams are not searched; ask for several samples with n";

/// What to use instead of other white space in JSON.
const WHITESPACE: &str = "give the schema an \"x-guidance\": {\"whitespace_pattern\": …}";

/// Fields of all routes that generate text, OpenAI's and vLLM's.
pub const SHARED: &[CompatField] = &[
    renamed("max_completion_tokens", "max_new_tokens"),
    renamed("max_tokens", "max_new_tokens"),
    renamed("min_tokens", "min_new_tokens"),
    converted("ignore_eos", "true or false", |value| Some(("stop_at_eos", (!value.as_bool()?).into()))),
    renamed("bad_words", "banned_strings"),
    renamed("guided_json", "json_schema"),
    renamed("guided_regex", "regex"),
    renamed("guided_choice", "choices"),
    converted("guided_grammar", "a string", grammar),
    object("structured_outputs", STRUCTURED_OUTPUTS),
    without_effect("guided_decoding_backend"),
    refused("guided_whitespace_pattern", WHITESPACE),
    refused("structural_tag", "use tools, or a grammar"),
    without_effect("user"),
    without_effect("metadata"),
    without_effect("store"),
    without_effect("service_tier"),
    without_effect("safety_identifier"),
    without_effect("prompt_cache_key"),
    without_effect("prompt_cache_retention"),
    without_effect("prediction"),
    without_effect("request_id"),
    without_effect("priority"),
    only("use_beam_search", &["false"], NO_BEAMS),
    only("length_penalty", &["1"], NO_BEAMS),
    only("early_stopping", &["false"], NO_BEAMS),
    only("detokenize", &["true"], "the answer is text; POST /tokenize gives its ids"),
    only("spaces_between_special_tokens", &["true"], "the text is what the tokenizer makes of the tokens"),
    only("include_stop_str_in_output", &["false"], "stop_reason of a choice is the string that ended its text"),
    refused("truncate_prompt_tokens", "POST /tokenize gives the ids of the prompt, the last of which can be sent"),
    refused("prompt_logprobs", "prompts have no log-probabilities; logprobs are those of new tokens"),
    only("return_token_ids", &["false"], "POST /tokenize gives ids, and logprobs the tokens of the text"),
    only("return_tokens_as_token_ids", &["false"], "POST /tokenize gives the ids of tokens"),
    only("logits_processors", &["[]"], "use logit_bias, allowed_token_ids, or a grammar"),
    only("vllm_xargs", &["{}"], "name each setting as a field of the request"),
    refused("kv_transfer_params", "keys and values are not passed between servers"),
    refused("cache_salt", "requests share the prefix cache; start a server for each tenant"),
    only("probs", &["0"], "use logprobs: a response has no place for them"),
];

/// vLLM's newer form of guided decoding.
const STRUCTURED_OUTPUTS: &[CompatField] = &[
    renamed("json", "json_schema"),
    renamed("regex", "regex"),
    renamed("choice", "choices"),
    converted("grammar", "a string", grammar),
    renamed("json_object", "json_object"),
    without_effect("disable_fallback"),
    only("disable_any_whitespace", &["false"], WHITESPACE),
    only("disable_additional_properties", &["false"], "give the schema \"additionalProperties\": false"),
    refused("whitespace_pattern", WHITESPACE),
    refused("structural_tag", "use tools, or a grammar"),
];

/// vLLM takes grammars in both forms: GBNF, which has `::=`, and Lark.
fn grammar(value: &Value) -> Option<(&'static str, Value)> {
    let text = value.as_str()?;
    Some((if text.contains("::=") { "gbnf" } else { "grammar" }, text.into()))
}

/// Turns the fields of tables that a request has into settings.
///
/// # Errors
/// `request_invalid`; `setting_unsupported` for a value that asks for something else than what is done.
pub fn translate(fields: &mut JsonFields, tables: &[&[CompatField]]) -> ApiResult<()> {
    for field in tables.iter().copied().flatten() {
        if let Some(value) = fields.take(field.name) {
            field.translate(field.name, value, fields)?;
        }
    }
    Ok(())
}

impl CompatField {
    /// Does what the value at this place of the request asks for.
    fn translate(&self, place: &str, value: Value, fields: &mut JsonFields) -> ApiResult<()> {
        match self.meaning {
            Meaning::WithoutEffect => Ok(()),
            Meaning::Setting(setting) => fields.give(setting, place, value),
            Meaning::Converted { expected, convert } => {
                let (setting, value) = convert(&value).ok_or_else(|| wrong(place, expected))?;
                fields.give(setting, place, value)
            }
            Meaning::Only { values, instead } => {
                if values.iter().any(|allowed| is_same(&json(allowed), &value)) {
                    return Ok(());
                }
                Err(unsupported(place, &values.join(" or "), instead))
            }
            Meaning::SameAs { field, instead } => {
                let other = fields.get(field).cloned().unwrap_or_else(|| 1.into());
                if is_same(&other, &value) {
                    Ok(())
                } else {
                    Err(unsupported(place, &format!("that of {field}"), instead))
                }
            }
            Meaning::Object(table) => {
                let Value::Object(mut object) = value else { return Err(wrong(place, "an object")) };
                for field in table {
                    if let Some(value) = object.shift_remove(field.name).filter(|value| !value.is_null()) {
                        field.translate(&format!("{place}.{}", field.name), value, fields)?;
                    }
                }
                match object.iter().find(|(_, value)| !value.is_null()) {
                    None => Ok(()),
                    Some((name, _)) => Err(unknown(&format!("{place}.{name}"))),
                }
            }
        }
    }

    /// For the OpenAPI document; `settings` are the schemas of the settings.
    fn schema(&self, settings: &Object) -> RefOr<Schema> {
        let mut schema = Object::with_type(SchemaType::AnyValue);
        let description = match self.meaning {
            Meaning::WithoutEffect => "Accepted: it changes no answer.".to_owned(),
            Meaning::Setting(setting) => {
                if let Some(RefOr::T(Schema::Object(of_setting))) = settings.properties.get(setting) {
                    schema = of_setting.clone();
                }
                format!("The same as `{setting}`.")
            }
            Meaning::Converted { expected, .. } => format!("Takes {expected}, as in vLLM."),
            Meaning::Only { values: [], instead } => format!("Not supported: {instead}."),
            Meaning::Only { values, instead } => {
                schema.enum_values = Some(values.iter().map(|value| json(value)).chain([Value::Null]).collect());
                format!("Otherwise: {instead}.")
            }
            Meaning::SameAs { field, instead } => format!("Must be the value of `{field}`: {instead}."),
            Meaning::Object(table) => {
                schema = properties(&[table], settings);
                "As in vLLM.".to_owned()
            }
        };
        schema.description = Some(description);
        RefOr::T(Schema::Object(schema))
    }
}

/// The fields of tables in the OpenAPI document.
pub fn schema(tables: &[&[CompatField]]) -> RefOr<Schema> {
    let settings = match RequestSettings::schema() {
        RefOr::T(Schema::Object(settings)) => settings,
        _ => Object::new(),
    };
    RefOr::T(Schema::Object(properties(tables, &settings)))
}

fn properties(tables: &[&[CompatField]], settings: &Object) -> Object {
    let mut whole = Object::new();
    for field in tables.iter().copied().flatten() {
        whole.properties.insert(field.name.to_owned(), field.schema(settings));
    }
    whole
}

/// Whether two values are the same, be it a number in two spellings.
fn is_same(one: &Value, other: &Value) -> bool {
    one == other || one.as_f64().is_some_and(|number| other.as_f64() == Some(number))
}

/// A value of a table.
fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_default()
}

fn wrong(place: &str, expected: &str) -> ApiError {
    let what = format!("{place} has a wrong value");
    ApiError::of_field(place, Error::new(ErrorCode::RequestInvalid, what).with_expected(expected))
}

fn unknown(place: &str) -> ApiError {
    ApiError::of_field(place, Error::new(ErrorCode::RequestInvalid, format!("unknown field {place}")))
}

fn unsupported(place: &str, expected: &str, instead: &str) -> ApiError {
    let error = match expected {
        "" => Error::new(ErrorCode::SettingUnsupported, format!("{place} is not supported")),
        _ => Error::new(ErrorCode::SettingUnsupported, format!("{place} is not supported with this value"))
            .with_expected(expected),
    };
    ApiError::of_field(place, error.with_hint(instead))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::engine::{Grammar, Request};

    const OWN: &[CompatField] = &[same_as("best_of", "n", "use n"), refused("suffix", "leave it out")];

    fn request(body: Value) -> Result<Request, Value> {
        let of = |error: ApiError| serde_json::to_value(error.body()).expect("serializes")["error"].clone();
        let Value::Object(body) = body else { panic!("no object: {body}") };
        let mut fields = JsonFields::from(body);
        translate(&mut fields, &[SHARED, OWN]).map_err(of)?;
        let settings: RequestSettings = fields.read().map_err(of)?;
        fields.finish().map_err(of)?;
        let mut request = Request::new("");
        settings.apply(&mut request).map_err(|error| of(error.into()))?;
        Ok(request)
    }

    #[test]
    fn vllms_defaults_ask_for_nothing() {
        let defaults = json!({
            "use_beam_search": false, "best_of": 1, "length_penalty": 1.0, "early_stopping": false, "detokenize": true,
            "skip_special_tokens": true, "spaces_between_special_tokens": true, "include_stop_str_in_output": false,
            "min_p": 0, "top_k": -1, "min_tokens": 0, "ignore_eos": false, "prompt_logprobs": null,
            "truncate_prompt_tokens": null, "allowed_token_ids": null, "logit_bias": null, "stop": [], "stop_token_ids": [],
            "bad_words": [], "priority": 0, "user": "me", "metadata": {}, "store": false, "service_tier": "auto",
            "structured_outputs": null, "guided_json": null, "logits_processors": [], "suffix": null, "seed": null,
            "return_token_ids": false, "repetition_penalty": 1.0, "n": 1, "vllm_xargs": {}, "cache_salt": null,
        });
        assert_eq!(request(defaults).expect("accepted"), Request::new(""));
    }

    #[test]
    fn settings_have_other_names_and_forms() {
        let same = |one: Value, other: Value| {
            assert_eq!(request(one.clone()).expect("accepted"), request(other).expect("accepted"), "{one}");
        };
        same(json!({"max_tokens": 7}), json!({"max_new_tokens": 7}));
        same(json!({"max_completion_tokens": 7, "max_tokens": 7}), json!({"max_new_tokens": 7}));
        same(json!({"min_tokens": 2, "ignore_eos": true}), json!({"min_new_tokens": 2, "stop_at_eos": false}));
        same(json!({"bad_words": ["x"]}), json!({"banned_strings": ["x"]}));
        same(json!({"guided_json": {"type": "object"}}), json!({"json_schema": {"type": "object"}}));
        same(json!({"structured_outputs": {"json": "{}"}}), json!({"json_schema": "{}"}));
        same(json!({"structured_outputs": {"json_object": true}}), json!({"json_object": true}));
        same(json!({"guided_choice": ["a"]}), json!({"structured_outputs": {"choice": ["a"]}}));
        let grammar = |body| request(body).expect("accepted").grammar;
        assert_eq!(grammar(json!({"guided_regex": "a"})), Some(Grammar::Regex("a".into())));
        assert_eq!(grammar(json!({"guided_grammar": "root ::= \"a\""})), Some(Grammar::Gbnf("root ::= \"a\"".into())));
        assert_eq!(
            grammar(json!({"structured_outputs": {"grammar": "start: \"a\""}})),
            Some(Grammar::Lark("start: \"a\"".into()))
        );
        assert_eq!(request(json!({"seed": -1})).expect("accepted").sampling.seed, Some(u64::MAX));
        assert_eq!(request(json!({"n": 3, "best_of": 3.0})).expect("accepted").n, 3);
    }

    #[test]
    fn what_would_change_the_answer_is_refused_by_the_clients_name() {
        for (body, param, code) in [
            (json!({"use_beam_search": true}), "use_beam_search", "setting_unsupported"),
            (json!({"length_penalty": 2}), "length_penalty", "setting_unsupported"),
            (json!({"best_of": 3}), "best_of", "setting_unsupported"),
            (json!({"n": 2, "best_of": 1}), "best_of", "setting_unsupported"),
            (json!({"prompt_logprobs": 1}), "prompt_logprobs", "setting_unsupported"),
            (json!({"truncate_prompt_tokens": 8}), "truncate_prompt_tokens", "setting_unsupported"),
            (json!({"cache_salt": "x"}), "cache_salt", "setting_unsupported"),
            (json!({"suffix": "x"}), "suffix", "setting_unsupported"),
            (
                json!({"structured_outputs": {"whitespace_pattern": "x"}}),
                "structured_outputs.whitespace_pattern",
                "setting_unsupported",
            ),
            (json!({"structured_outputs": {"xml": 1}}), "structured_outputs.xml", "request_invalid"),
            (json!({"structured_outputs": "json"}), "structured_outputs", "request_invalid"),
            (json!({"structured_outputs": {"choice": [1]}}), "structured_outputs.choice[0]", "request_invalid"),
            (json!({"max_tokens": "7"}), "max_tokens", "request_invalid"),
            (json!({"max_tokens": 7, "max_completion_tokens": 8}), "max_tokens", "request_invalid"),
            (json!({"max_tokens": 7, "max_new_tokens": 8}), "max_tokens", "request_invalid"),
            (json!({"ignore_eos": 1}), "ignore_eos", "request_invalid"),
            (json!({"guided_grammar": {}}), "guided_grammar", "request_invalid"),
            (json!({"max_token": 7}), "max_token", "request_invalid"),
        ] {
            let error = request(body.clone()).expect_err("refused");
            assert_eq!((&error["param"], &error["code"]), (&json!(param), &json!(code)), "{body}");
            let message = error["message"].as_str().expect("a text");
            assert!(
                message.contains(param.split('.').next().unwrap_or_default()) && !message.contains("()"),
                "{message}"
            );
        }
        let both = request(json!({"max_tokens": 7, "max_completion_tokens": 8})).expect_err("refused");
        assert!(both["message"].to_string().contains("max_tokens and max_completion_tokens"), "{both}");
    }

    #[test]
    fn every_value_of_a_table_is_json() {
        for field in SHARED.iter().chain(STRUCTURED_OUTPUTS) {
            if let Meaning::Only { values, .. } = field.meaning {
                assert!(values.iter().all(|value| serde_json::from_str::<Value>(value).is_ok()), "{field:?}");
            }
        }
    }
}
