//! Messages of a chat, as the chat template gets them.

use serde_json::{Map, Value};

use crate::engine::ChatMessage;
use crate::error::{Error, ErrorCode};
use crate::server::error::{ApiError, ApiResult};

/// Between text parts of a message, for templates that take one text.
const BETWEEN_PARTS: &str = "\n";

/// Reads the messages. Whatever a message has besides its role and content is the template's matter.
///
/// # Errors
/// `request_invalid`; `setting_unsupported` for a part that is no text.
pub fn chat_messages(messages: Vec<Map<String, Value>>) -> ApiResult<Vec<ChatMessage>> {
    if messages.is_empty() {
        return Err(ApiError::of_field("messages", invalid("a chat needs at least one message")));
    }
    messages.into_iter().enumerate().map(|(index, message)| chat_message(index, message)).collect()
}

fn chat_message(index: usize, mut message: Map<String, Value>) -> ApiResult<ChatMessage> {
    let wrong = |field: &str, what: &str| {
        let path = format!("messages[{index}].{field}");
        ApiError::of_field(path.clone(), invalid(format!("{path} {what}")))
    };
    match message.get("role").and_then(Value::as_str) {
        None => return Err(wrong("role", "is missing or no text")),
        // A newer name, which templates don't know.
        Some("developer") => drop(message.insert("role".to_owned(), "system".into())),
        Some(_) => {}
    }
    match message.get_mut("content") {
        None | Some(Value::Null | Value::String(_)) => {}
        Some(Value::Array(parts)) => {
            let texts: Vec<&str> = parts
                .iter()
                .enumerate()
                .map(|(part, value)| text_part(value).ok_or(part))
                .collect::<Result<_, _>>()
                .map_err(|part| {
                    let path = format!("messages[{index}].content[{part}]");
                    let what = format!("{path} is no text part, and the model reads text only");
                    ApiError::of_field(path, Error::new(ErrorCode::SettingUnsupported, what).with_hint("send text"))
                })?;
            let text = texts.join(BETWEEN_PARTS);
            message.insert("content".to_owned(), text.into());
        }
        Some(_) => return Err(wrong("content", "is neither text nor a list of text parts")),
    }
    if let Some(calls) = message.get_mut("tool_calls") {
        calls.as_array_mut().into_iter().flatten().for_each(parse_arguments);
    }
    Ok(ChatMessage::from(message))
}

/// The text of a part: `{"type": "text", "text": …}`, or one that an assistant refused with.
fn text_part(part: &Value) -> Option<&str> {
    match part.get("type").and_then(Value::as_str) {
        Some("text" | "input_text" | "output_text") => part.get("text")?.as_str(),
        Some("refusal") => part.get("refusal")?.as_str(),
        _ => None,
    }
}

/// Templates print the arguments of a call as an object, which OpenAI has as its text.
fn parse_arguments(call: &mut Value) {
    let Some(arguments) = call.get_mut("function").and_then(|function| function.get_mut("arguments")) else { return };
    let parsed = arguments.as_str().and_then(|text| serde_json::from_str::<Map<String, Value>>(text).ok());
    if let Some(parsed) = parsed {
        *arguments = Value::Object(parsed);
    }
}

fn invalid(what: impl Into<String>) -> Error {
    Error::new(ErrorCode::RequestInvalid, what)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(messages: Value) -> ApiResult<Vec<ChatMessage>> {
        chat_messages(serde_json::from_value(messages).expect("objects"))
    }

    #[test]
    fn text_parts_are_joined_and_other_fields_are_passed_on() {
        let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
        let read =
            read(json!([{"role": "user", "content": parts, "name": "n"}, {"role": "assistant", "content": null}]));
        let messages = read.expect("reads");
        assert_eq!(messages[0], ChatMessage::new("user", "a\nb").with("name", "n"));
        assert_eq!(messages[1], ChatMessage::new("assistant", Value::Null));
    }

    #[test]
    fn a_developer_is_the_system_and_arguments_become_objects() {
        let call = |arguments: &str| json!([{"function": {"name": "f", "arguments": arguments}}]);
        let messages = read(json!([
            {"role": "developer", "content": "x"},
            {"role": "assistant", "tool_calls": call(r#"{"a": 1}"#)},
            {"role": "assistant", "tool_calls": call("{")},
        ]))
        .expect("reads");
        assert_eq!(messages[0], ChatMessage::new("system", "x"));
        let arguments = |message: usize| &messages[message].fields()["tool_calls"][0]["function"]["arguments"];
        assert_eq!((arguments(1), arguments(2)), (&json!({"a": 1}), &json!("{")));
    }

    #[test]
    fn what_is_no_text_is_refused_by_its_place() {
        let text = |messages: Value| serde_json::to_string(read(messages).expect_err("refused").body()).expect("text");
        let image = json!([{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "x"}}]);
        assert!(text(json!([{"role": "user", "content": image}])).contains("messages[0].content[1]"));
        assert!(text(json!([{"role": "user", "content": 3}])).contains("messages[0].content"));
        assert!(text(json!([{"content": "x"}])).contains("messages[0].role"));
        assert!(text(json!([])).contains("at least one message"));
    }
}
