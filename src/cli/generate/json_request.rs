//! A request as a line of JSON: `{"prompt": …, "adapter": …, "max_new_tokens": …, "id": …}`.
//!
//! Unknown keys are refused by name, so a misspelled `temprature` cannot silently change the sampling. Keys that a line omits
//! take the values of the command's own options.

use serde_json::{Map, Value};

use crate::cli::args::{
    MixtureArg, RequestSettings, did_you_mean, prompt_embeds_of_json, prompt_of_json, read_json, read_json_at,
};
use crate::cli::result_line::RequestKeys;
use crate::engine::{ChatOptions, Request};
use crate::error::{Error, ErrorCode, Result};
use crate::unique_value::UniqueValue;

/// What a line may have besides the settings of [`RequestSettings`].
const OWN_KEYS: [&str; 6] = ["prompt", "prompt_embeds", "adapter", "draft_adapters", "id", "custom_id"];

/// Which of them say how a chat is rendered.
const CHAT_KEYS: [&str; 6] =
    ["tools", "documents", "chat_template", "chat_template_kwargs", "add_generation_prompt", "continue_final_message"];

/// Every key that a line may have.
pub(super) fn keys() -> Vec<String> {
    let settings = RequestSettings::names().into_iter().map(|name| name.replace('-', "_"));
    OWN_KEYS.into_iter().chain(CHAT_KEYS).map(str::to_owned).chain(settings).collect()
}

/// Reads a line. The ids are found also where the request is refused. `defaults` is what a line does not say.
pub(super) fn parse(line: &str, index: usize, defaults: &Request) -> (RequestKeys, Result<Request>) {
    let mut keys = RequestKeys { index, ..Default::default() };
    let refused = |what: String| Err(invalid(what).with_hint("each line is one JSON object with at least a prompt"));
    let mut fields = match serde_json::from_str(line) {
        Ok(UniqueValue(Value::Object(fields))) => fields,
        Ok(_) => return (keys, refused("the line is no JSON object".to_owned())),
        Err(e) => {
            // Each line is parsed alone, so the parser's own line number is always 1.
            let what = e.to_string().replace(" at line 1 column ", " at column ");
            return (keys, refused(format!("the line cannot be read as JSON: {what}")));
        }
    };
    (keys.id, keys.custom_id) = (fields.remove("id"), fields.remove("custom_id"));
    (keys, request(fields, defaults))
}

fn request(mut fields: Map<String, Value>, defaults: &Request) -> Result<Request> {
    let known = keys();
    if let Some(unknown) = fields.keys().find(|key| !known.contains(key)) {
        let similar = did_you_mean(unknown, known.iter().map(String::as_str));
        return Err(invalid(format!("unknown field `{unknown}`{similar}")).with_expected(known.join(", ")));
    }
    let mut request = defaults.clone();
    request.prompt = match (fields.remove("prompt"), fields.remove("prompt_embeds").filter(|embeds| !embeds.is_null()))
    {
        (Some(given), None) => prompt_of_json("prompt", given)?,
        (None, Some(embeds)) => prompt_embeds_of_json("prompt_embeds", &embeds)?.into(),
        (Some(_), Some(_)) => return Err(invalid("prompt and prompt_embeds are given".to_owned())),
        (None, None) => return Err(invalid("missing field `prompt`".to_owned())),
    };
    if let Some(adapter) = fields.remove("adapter") {
        request.adapters = mixture("adapter", &adapter)?.refs();
    }
    if let Some(adapters) = fields.remove("draft_adapters") {
        request.draft_adapters = mixture("draft_adapters", &adapters)?.refs();
    }
    request.chat = chat_options(&mut fields, &request.chat)?;
    let settings: RequestSettings = read_json(Value::Object(fields))?;
    settings.apply(&mut request)?;
    Ok(request)
}

/// How a chat is rendered. What is null is as if it were not there.
fn chat_options(fields: &mut Map<String, Value>, defaults: &ChatOptions) -> Result<ChatOptions> {
    let mut options = defaults.clone();
    for name in CHAT_KEYS {
        let Some(value) = fields.remove(name).filter(|value| !value.is_null()) else { continue };
        match name {
            "tools" => options.tools = Some(read_json_at(name, value)?),
            "documents" => options.documents = Some(read_json_at(name, value)?),
            "chat_template" => options.chat_template = Some(read_json_at(name, value)?),
            "chat_template_kwargs" => options.chat_template_kwargs = read_json_at(name, value)?,
            "add_generation_prompt" => options.add_generation_prompt = Some(read_json_at(name, value)?),
            _ => {
                options.continue_final_message = match value {
                    Value::Bool(false) => None,
                    Value::Bool(true) => Some("content".to_owned()),
                    field => Some(read_json_at(name, field)?),
                }
            }
        }
    }
    Ok(options)
}

/// A name, `{name: weight}` in order, a list of such pairs, or null for the base.
fn mixture(key: &str, value: &Value) -> Result<MixtureArg> {
    let weight = |weight: &Value| weight.as_f64().map(|weight| weight as f32);
    let parts: Option<Vec<(String, f32)>> = match value {
        Value::Null => Some(Vec::new()),
        Value::String(name) => Some(vec![(name.clone(), 1.0)]),
        Value::Object(parts) => parts.iter().map(|(name, value)| Some((name.clone(), weight(value)?))).collect(),
        Value::Array(pairs) => {
            let pair = |pair: &Value| match pair.as_array().map(Vec::as_slice) {
                Some([Value::String(name), value]) => Some((name.clone(), weight(value)?)),
                _ => None,
            };
            pairs.iter().map(pair).collect()
        }
        _ => None,
    };
    let expected = || invalid(format!("{key} must be a name, an object of names and weights, or null"));
    parts.map(MixtureArg).ok_or_else(expected)
}

fn invalid(what: String) -> Error {
    Error::new(ErrorCode::RequestInvalid, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{ChatMessage, Prompt, Stop};

    fn read(line: &str) -> Result<Request> {
        let mut defaults = Request::new("").max_new_tokens(7).adapter("usual", 1.0);
        defaults.sampling.temperature = 0.5;
        parse(line, 0, &defaults).1
    }

    fn one(line: &str) -> Request {
        read(line).expect("parses")
    }

    fn message(line: &str) -> String {
        read(line).expect_err("an error").to_string()
    }

    #[test]
    fn prompts_are_texts_tokens_or_messages() {
        assert_eq!(one(r#"{"prompt": "SELECT"}"#).prompt, Prompt::Text("SELECT".into()));
        assert_eq!(one(r#"{"prompt": [1, 2]}"#).prompt, Prompt::Tokens(vec![1, 2]));
        let chat = one(r#"{"prompt": [{"role": "user", "content": "hi"}]}"#).prompt;
        assert_eq!(chat, Prompt::Chat(vec![ChatMessage::new("user", "hi")]));
        for prompt in ["3", "null", "[1.5]", "[-1]", "[4294967296]", "[1, \"a\"]", "{}"] {
            assert!(message(&format!(r#"{{"prompt": {prompt}}}"#)).contains("prompt must be"), "{prompt}");
        }
        // What a message needs is the template's matter.
        let line = r#"{"prompt": [{"content": null}], "tools": [{"name": "f"}], "documents": null,
                       "chat_template_kwargs": {"enable_thinking": false}, "continue_final_message": true}"#;
        let request = one(&line.replace('\n', " "));
        assert_eq!(request.prompt, Prompt::Chat(vec![ChatMessage::default().with("content", Value::Null)]));
        assert_eq!((request.chat.tools, request.chat.documents), (Some(vec![serde_json::json!({"name": "f"})]), None));
        assert_eq!(request.chat.chat_template_kwargs["enable_thinking"], false);
        assert_eq!(request.chat.continue_final_message.as_deref(), Some("content"));
        assert!(message(r#"{"prompt": "a", "tools": 3}"#).contains("tools has a wrong value: expected an array"));
        let guided = one(r#"{"prompt": "a", "negative_prompt": [1, 2], "cfg_scale": 1.5}"#);
        assert_eq!(guided.negative_prompt, Some(Prompt::Tokens(vec![1, 2])));
        assert_eq!(guided.sampling.cfg_scale, Some(1.5));
        assert!(message(r#"{"prompt": "a", "negative_prompt": 3}"#).contains("negative_prompt must be a string"));
    }

    #[test]
    fn adapters_are_a_name_a_mixture_in_order_or_the_base() {
        let adapters = |line: &str| MixtureArg::of(&one(line)).to_string();
        assert_eq!(adapters(r#"{"prompt": "a", "adapter": "sql"}"#), "sql");
        assert_eq!(adapters(r#"{"prompt": "a", "adapter": {"wit": 0.5, "sql": 0.25}}"#), "wit*0.5 + sql*0.25");
        assert_eq!(adapters(r#"{"prompt": "a", "adapter": [["a", 0.5], ["a", 1]]}"#), "a*0.5 + a");
        assert_eq!(adapters(r#"{"prompt": "a", "adapter": null}"#), "base");
        assert_eq!(adapters(r#"{"prompt": "a"}"#), "usual", "the command's own mixture by default");
        for adapter in ["3", r#"{"a": "x"}"#, r#"["a"]"#, r#"[["a"]]"#, r#"[[1, "a"]]"#, "true"] {
            let text = message(&format!(r#"{{"prompt": "a", "adapter": {adapter}}}"#));
            assert!(text.contains("adapter must be a name"), "{adapter}: {text}");
        }
    }

    #[test]
    fn a_line_overrides_the_commands_settings() {
        let line = r#"{"prompt": "a", "id": {"n": 1}, "max_new_tokens": 3, "top_k": 5, "seed": 18446744073709551615,
                       "stop": ["x", 2], "logit_bias": {"7": -1.5}, "repetition_range": 64, "logprobs": 2}"#;
        let (keys, request) = parse(line, 5, &Request::new("").max_new_tokens(7));
        let request = request.expect("parses");
        assert_eq!((keys.index, keys.id, keys.custom_id), (5, Some(serde_json::json!({"n": 1})), None));
        assert_eq!((request.max_new_tokens, request.logprobs), (3, 2));
        assert_eq!(request.stop, [Stop::Text("x".into()), Stop::Token(2)]);
        let sampling = request.sampling;
        assert_eq!((sampling.top_k, sampling.seed), (5, Some(u64::MAX)));
        assert_eq!((sampling.logit_bias, sampling.repetition_range), (vec![(7, -1.5)], Some(64)));
        let rest = one(r#"{"prompt": "a"}"#);
        assert_eq!((rest.max_new_tokens, rest.sampling.temperature), (7, 0.5));
    }

    #[test]
    fn an_error_names_the_mistake_and_the_request_keeps_its_id() {
        let text = message(r#"{"prompt": "b", "temprature": 1}"#);
        assert!(text.starts_with("unknown field `temprature`; did you mean 'temperature'?"), "{text}");
        assert!(message("{").starts_with("the line cannot be read as JSON: EOF"), "{}", message("{"));
        assert!(message("[1]").starts_with("the line is no JSON object"), "{}", message("[1]"));
        assert!(message(r#"{"prompt": "a", "prompt": "b"}"#).contains("'prompt' is there twice"));
        assert!(message(r#"{"adapter": "sql"}"#).contains("missing field `prompt`"));
        assert!(message(r#"{"prompt_embeds": "x"}"#).contains("no base64"));
        assert!(message(r#"{"prompt": "a", "prompt_embeds": "x"}"#).contains("prompt and prompt_embeds"));
        assert!(
            message(r#"{"prompt": "a", "stop": [true]}"#)
                .contains("expected a string, a token id, or an array of them")
        );
        let text = message(r#"{"prompt": "a", "temperature": "hot"}"#);
        assert!(text.starts_with("temperature has a wrong value: expected a number, found \"hot\""), "{text}");
        let (keys, request) = parse(r#"{"custom_id": "x", "prompt": 1}"#, 2, &Request::new(""));
        assert_eq!((keys.index, keys.custom_id, request.is_err()), (2, Some("x".into()), true));
    }
}
