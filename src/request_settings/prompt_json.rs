//! A prompt as a value of JSON: text, a list of token ids, or a list of messages.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use crate::engine::{ChatMessage, Prompt};
use crate::error::{Error, ErrorCode, Result};

/// What a prompt may be.
const PROMPT: &str = "a string, an array of token ids, or an array of messages";

/// Reads the prompt that is the value of `key`.
///
/// # Errors
/// `request_invalid`.
pub(crate) fn prompt_of_json(key: &str, value: Value) -> Result<Prompt> {
    let invalid = |what: String| Error::new(ErrorCode::RequestInvalid, what).with_setting(key);
    let expected = || invalid(format!("{key} must be {PROMPT}"));
    match value {
        Value::String(text) => Ok(Prompt::Text(text)),
        Value::Array(items) if items.iter().all(Value::is_number) => {
            let ids = items.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()));
            ids.collect::<Option<_>>().map(Prompt::Tokens).ok_or_else(expected)
        }
        Value::Array(items) if items.iter().all(Value::is_object) => {
            let messages = items.into_iter().map(serde_json::from_value::<ChatMessage>);
            messages.collect::<Result<_, _>>().map(Prompt::Chat).map_err(|e| invalid(format!("{key}: {e}")))
        }
        _ => Err(expected()),
    }
}

/// The negative prompt of a request; null is none.
pub(super) fn negative_prompt<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Prompt>, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::Null => Ok(None),
        value => {
            let prompt = prompt_of_json("negative_prompt", value);
            prompt.map(Some).map_err(|error| serde::de::Error::custom(error.message()))
        }
    }
}

/// A prompt as the value that it is read from.
pub(super) fn prompt_as_json<S: Serializer>(prompt: &Option<Prompt>, serializer: S) -> Result<S::Ok, S::Error> {
    match prompt {
        None => serializer.serialize_none(),
        Some(Prompt::Text(text)) => text.serialize(serializer),
        Some(Prompt::Tokens(ids)) => ids.serialize(serializer),
        Some(Prompt::Chat(messages)) => messages.serialize(serializer),
        Some(Prompt::Parts(_)) => Err(serde::ser::Error::custom("a prompt with vectors is no JSON")),
    }
}
