//! Requests as JSON lines: `{"prompt": …, "adapter": …, "max_new_tokens": …, "id": …}`.
//!
//! Unknown keys are refused by name, so a misspelled `temprature` cannot silently change the sampling. Keys that a line omits
//! take the values of the command's own options.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde_json::Value;

use super::mixture_arg::MixtureArg;
use crate::engine::{AdapterRef, ChatMessage, Prompt, Request, Stop};
use crate::error::{Error, ErrorCode, Result};

/// One line: the request, and the caller's id for its result.
pub(super) struct JsonRequest {
    pub id: Option<Value>,
    pub mixture: MixtureArg,
    pub request: Request,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    id: Option<Value>,
    #[serde(deserialize_with = "prompt")]
    prompt: Prompt,
    #[serde(default, deserialize_with = "mixture")]
    adapter: Option<MixtureArg>,
    max_new_tokens: Option<usize>,
    min_new_tokens: Option<usize>,
    temperature: Option<f32>,
    top_k: Option<usize>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    repetition_range: Option<usize>,
    frequency_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    logit_bias: Option<BTreeMap<u32, f32>>,
    seed: Option<u64>,
    #[serde(default, deserialize_with = "stops")]
    stop: Option<Vec<Stop>>,
    stop_at_eos: Option<bool>,
    logprobs: Option<usize>,
    skip_special_tokens: Option<bool>,
    add_special_tokens: Option<bool>,
}

/// Reads a file of requests, or stdin for `-`. Empty lines are skipped.
///
/// # Errors
/// `io_failed`; `request_invalid` naming the line.
pub(super) fn read(source: &Path, defaults: &Request, mixture: &MixtureArg) -> Result<Vec<JsonRequest>> {
    let text = if source == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        std::fs::read_to_string(source)
    };
    let text =
        text.map_err(|e| Error::new(ErrorCode::IoFailed, format!("cannot read the requests: {e}")).with_path(source))?;
    parse(&text, defaults, mixture).map_err(|e| e.with_path(source))
}

fn parse(text: &str, defaults: &Request, mixture: &MixtureArg) -> Result<Vec<JsonRequest>> {
    let lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(number, line)| {
            let line: Line = serde_json::from_str(line).map_err(|e| {
                // Each line is parsed alone, so the parser's own line number is always 1.
                let what = e.to_string().replace(" at line 1 column ", " at column ");
                Error::new(ErrorCode::RequestInvalid, what)
                    .with_subject(format!("line {number}"))
                    .with_hint("each line is one JSON object with at least a prompt")
            })?;
            Ok(line.into_request(defaults, mixture))
        })
        .collect()
}

impl Line {
    fn into_request(self, defaults: &Request, mixture: &MixtureArg) -> JsonRequest {
        let mut request = defaults.clone();
        let mixture = self.adapter.unwrap_or_else(|| mixture.clone());
        request.prompt = self.prompt;
        request.adapters = mixture.0.iter().map(|(name, weight)| (AdapterRef::Name(name.clone()), *weight)).collect();
        set(&mut request.max_new_tokens, self.max_new_tokens);
        set(&mut request.min_new_tokens, self.min_new_tokens);
        set(&mut request.stop, self.stop);
        set(&mut request.stop_at_eos, self.stop_at_eos);
        set(&mut request.logprobs, self.logprobs);
        set(&mut request.skip_special_tokens, self.skip_special_tokens);
        set(&mut request.add_special_tokens, self.add_special_tokens);
        let sampling = &mut request.sampling;
        set(&mut sampling.temperature, self.temperature);
        set(&mut sampling.top_k, self.top_k);
        set(&mut sampling.top_p, self.top_p);
        set(&mut sampling.min_p, self.min_p);
        set(&mut sampling.repetition_penalty, self.repetition_penalty);
        set(&mut sampling.repetition_range, self.repetition_range.map(Some));
        set(&mut sampling.frequency_penalty, self.frequency_penalty);
        set(&mut sampling.presence_penalty, self.presence_penalty);
        set(&mut sampling.logit_bias, self.logit_bias.map(|bias| bias.into_iter().collect()));
        set(&mut sampling.seed, self.seed.map(Some));
        JsonRequest { id: self.id, mixture, request }
    }
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

/// Text, a list of token ids, or a list of messages.
fn prompt<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Prompt, D::Error> {
    let expected = || D::Error::custom("prompt must be text, a list of token ids, or a list of messages");
    match Value::deserialize(deserializer)? {
        Value::String(text) => Ok(Prompt::Text(text)),
        Value::Array(items) if items.iter().all(Value::is_number) => {
            let ids = items.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()));
            ids.collect::<Option<_>>().map(Prompt::Tokens).ok_or_else(expected)
        }
        Value::Array(items) if items.iter().all(Value::is_object) => {
            let message = |(i, item): (usize, Value)| {
                serde_json::from_value::<ChatMessage>(item)
                    .map_err(|e| D::Error::custom(format!("message {i} of prompt: {e}")))
            };
            items.into_iter().enumerate().map(message).collect::<Result<_, _>>().map(Prompt::Chat)
        }
        _ => Err(expected()),
    }
}

/// A name, `{name: weight}` in order, or null for the base.
fn mixture<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<MixtureArg>, D::Error> {
    struct MixtureVisitor;

    impl<'de> Visitor<'de> for MixtureVisitor {
        type Value = MixtureArg;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("adapter: a name, an object of names and weights, or null")
        }

        fn visit_unit<E>(self) -> Result<MixtureArg, E> {
            Ok(MixtureArg::default())
        }

        fn visit_str<E>(self, name: &str) -> Result<MixtureArg, E> {
            Ok(MixtureArg(vec![(name.to_owned(), 1.0)]))
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<MixtureArg, A::Error> {
            let mut parts = Vec::new();
            while let Some(part) = map.next_entry()? {
                parts.push(part);
            }
            Ok(MixtureArg(parts))
        }
    }

    deserializer.deserialize_any(MixtureVisitor).map(Some)
}

/// A string, a token id, or a list of both.
fn stops<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<Stop>>, D::Error> {
    let stop = |value: &Value| match value {
        Value::String(text) => Some(Stop::Text(text.clone())),
        other => other.as_u64().and_then(|id| u32::try_from(id).ok()).map(Stop::Token),
    };
    let stops = match &Value::deserialize(deserializer)? {
        Value::Null => return Ok(None),
        Value::Array(items) => items.iter().map(stop).collect(),
        one => stop(one).map(|stop| vec![stop]),
    };
    stops.map(Some).ok_or_else(|| D::Error::custom("stop must be a string, a token id, or a list of them"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<Vec<JsonRequest>> {
        let mut defaults = Request::new("").max_new_tokens(7);
        defaults.sampling.temperature = 0.5;
        parse(text, &defaults, &MixtureArg(vec![("usual".to_owned(), 1.0)]))
    }

    fn one(line: &str) -> JsonRequest {
        read_text(line).expect("parses").remove(0)
    }

    fn message(line: &str) -> String {
        read_text(line).err().expect("an error").to_string()
    }

    #[test]
    fn prompts_are_texts_tokens_or_messages() {
        assert_eq!(one(r#"{"prompt": "SELECT"}"#).request.prompt, Prompt::Text("SELECT".into()));
        assert_eq!(one(r#"{"prompt": [1, 2]}"#).request.prompt, Prompt::Tokens(vec![1, 2]));
        let chat = one(r#"{"prompt": [{"role": "user", "content": "hi"}]}"#).request.prompt;
        assert_eq!(chat, Prompt::Chat(vec![ChatMessage::new("user", "hi")]));
        for prompt in ["3", "null", "[1.5]", "[-1]", "[4294967296]", "[1, \"a\"]", "{}"] {
            assert!(message(&format!(r#"{{"prompt": {prompt}}}"#)).contains("prompt must be"), "{prompt}");
        }
        assert!(message(r#"{"prompt": [{"role": "user"}]}"#).contains("message 0 of prompt: missing field `content`"));
    }

    #[test]
    fn adapters_are_a_name_a_mixture_in_order_or_the_base() {
        assert_eq!(one(r#"{"prompt": "a", "adapter": "sql"}"#).mixture.to_string(), "sql");
        let mixed = one(r#"{"prompt": "a", "adapter": {"wit": 0.5, "sql": 0.25}}"#);
        assert_eq!(mixed.mixture.to_string(), "wit*0.5 + sql*0.25");
        assert_eq!(mixed.request.adapters.len(), 2);
        assert!(one(r#"{"prompt": "a", "adapter": null}"#).request.adapters.is_empty());
        assert_eq!(one(r#"{"prompt": "a"}"#).mixture.to_string(), "usual", "the command's own mixture by default");
        assert!(message(r#"{"prompt": "a", "adapter": 3}"#).contains("adapter: a name"));
    }

    #[test]
    fn a_line_overrides_the_commands_settings() {
        let line = r#"{"prompt": "a", "id": {"n": 1}, "max_new_tokens": 3, "top_k": 5, "seed": 18446744073709551615,
                       "stop": ["x", 2], "logit_bias": {"7": -1.5}, "repetition_range": 64, "logprobs": 2}"#;
        let JsonRequest { id, request, .. } = one(&line.replace('\n', " "));
        assert_eq!(id, Some(serde_json::json!({"n": 1})));
        assert_eq!((request.max_new_tokens, request.logprobs), (3, 2));
        assert_eq!(request.stop, [Stop::Text("x".into()), Stop::Token(2)]);
        let sampling = request.sampling;
        assert_eq!((sampling.temperature, sampling.top_k, sampling.seed), (0.5, 5, Some(u64::MAX)));
        assert_eq!((sampling.logit_bias, sampling.repetition_range), (vec![(7, -1.5)], Some(64)));
        assert_eq!(one(r#"{"prompt": "a"}"#).request.max_new_tokens, 7);
    }

    #[test]
    fn an_error_names_the_line_and_the_mistake() {
        let text = message("{\"prompt\": \"a\"}\n\n{\"prompt\": \"b\", \"temprature\": 1}");
        assert!(text.starts_with("line 3: unknown field `temprature`"), "{text}");
        assert!(message("{").starts_with("line 1: EOF"), "{}", message("{"));
        assert!(message(r#"{"adapter": "sql"}"#).contains("missing field `prompt`"));
        assert!(message(r#"{"prompt": "a", "stop": [true]}"#).contains("stop must be"));
    }

    #[test]
    fn empty_lines_are_skipped() {
        assert_eq!(read_text("\n{\"prompt\": \"a\"}\n  \n").expect("parses").len(), 1);
        assert!(read_text("").expect("parses").is_empty());
    }
}
