//! The input of `/v1/responses` as messages of a chat.

use serde_json::{Map, Value as Json, json};

use crate::error::{Error, ErrorCode};
use crate::server::error::{ApiError, ApiResult};

/// Fields of an item that say nothing to the model.
const WITHOUT_EFFECT: [&str; 4] = ["type", "id", "status", "phase"];

/// Reads `input`, a text or a list of items, after the `instructions`.
///
/// # Errors
/// `request_invalid`; `setting_unsupported` for a kind of item that is not supported.
pub fn chat_messages(instructions: Option<String>, input: Json) -> ApiResult<Vec<Map<String, Json>>> {
    let mut messages = Vec::new();
    if let Some(instructions) = instructions {
        push(&mut messages, json!({"role": "system", "content": instructions}));
    }
    match input {
        Json::String(text) => push(&mut messages, json!({"role": "user", "content": text})),
        Json::Array(items) if items.is_empty() => return Err(invalid("input", "input has no items")),
        Json::Array(items) => {
            for (index, item) in items.into_iter().enumerate() {
                let place = format!("input[{index}]");
                match item {
                    Json::Object(item) => add_item(&mut messages, item, &place)?,
                    _ => return Err(invalid(&place, &format!("{place} is no object"))),
                }
            }
        }
        _ => return Err(invalid("input", "input is neither a text nor a list of items")),
    }
    Ok(messages)
}

fn add_item(messages: &mut Vec<Map<String, Json>>, item: Map<String, Json>, place: &str) -> ApiResult<()> {
    let kind = match item.get("type") {
        None | Some(Json::Null) => "message",
        Some(Json::String(kind)) => kind,
        Some(_) => return Err(invalid(&format!("{place}.type"), &format!("{place}.type is no text"))),
    };
    match kind {
        "message" => {
            refuse_others(&item, &["role", "content"], place)?;
            // Text or parts: messages of a chat have the same.
            let fields = item.into_iter().filter(|(name, _)| name == "role" || name == "content");
            messages.push(fields.collect());
        }
        "function_call" => {
            refuse_others(&item, &["call_id", "name", "arguments"], place)?;
            let (id, name, arguments) =
                (text(&item, "call_id", place)?, text(&item, "name", place)?, text(&item, "arguments", place)?);
            let call = json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
            match messages.last_mut().filter(|last| last.get("role").is_some_and(|role| role == "assistant")) {
                // A chat has the text and the calls of one answer in one message.
                Some(answer) => match answer.get_mut("tool_calls").and_then(Json::as_array_mut) {
                    Some(calls) => calls.push(call),
                    None => drop(answer.insert("tool_calls".to_owned(), json!([call]))),
                },
                None => push(messages, json!({"role": "assistant", "content": "", "tool_calls": [call]})),
            }
        }
        "function_call_output" => {
            refuse_others(&item, &["call_id", "output", "name"], place)?;
            let id = text(&item, "call_id", place)?;
            let output = item.get("output").filter(|output| output.is_string() || output.is_array());
            let output = output.ok_or_else(|| {
                let field = format!("{place}.output");
                invalid(&field, &format!("{field} is neither a text nor a list of text parts"))
            })?;
            push(messages, json!({"role": "tool", "tool_call_id": id, "content": output}));
        }
        kind => {
            let what = format!("{place} is of a kind that is not supported");
            let error = Error::new(ErrorCode::SettingUnsupported, what)
                .with_expected("message, function_call or function_call_output")
                .with_found(kind.chars().take(100).collect::<String>().escape_debug());
            return Err(ApiError::of_field(format!("{place}.type"), error));
        }
    }
    Ok(())
}

/// Refuses fields that would say something to the model and are not understood.
fn refuse_others(item: &Map<String, Json>, known: &[&str], place: &str) -> ApiResult<()> {
    let is_known = |name: &str| known.contains(&name) || WITHOUT_EFFECT.contains(&name);
    match item.iter().find(|(name, value)| !is_known(name) && !value.is_null()) {
        None => Ok(()),
        Some((name, _)) => {
            let field = format!("{place}.{}", name.escape_debug());
            Err(ApiError::of_field(
                field.clone(),
                Error::new(ErrorCode::SettingUnsupported, format!("{field} is not supported"))
                    .with_hint("leave the field out"),
            ))
        }
    }
}

fn text<'a>(item: &'a Map<String, Json>, name: &str, place: &str) -> ApiResult<&'a str> {
    item.get(name).and_then(Json::as_str).ok_or_else(|| {
        let field = format!("{place}.{name}");
        invalid(&field, &format!("{field} is missing or no text"))
    })
}

fn push(messages: &mut Vec<Map<String, Json>>, message: Json) {
    if let Json::Object(message) = message {
        messages.push(message);
    }
}

fn invalid(field: &str, what: &str) -> ApiError {
    ApiError::of_field(field, Error::new(ErrorCode::RequestInvalid, what))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(input: Json) -> ApiResult<Json> {
        chat_messages(None, input).map(|messages| json!(messages))
    }

    #[test]
    fn a_text_is_a_message_of_the_user_after_the_instructions() {
        let messages = chat_messages(Some("Be brief.".to_owned()), json!("Hi")).expect("reads");
        let expected = json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]);
        assert_eq!(json!(messages), expected);
    }

    #[test]
    fn messages_keep_their_roles_and_contents() {
        let parts = json!([{"type": "input_text", "text": "Hi"}]);
        let input = json!([
            {"role": "developer", "content": "Be brief."},
            {"type": "message", "role": "user", "content": parts, "status": null},
            {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": "Hello"},
        ]);
        let expected = json!([
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": parts},
            {"role": "assistant", "content": "Hello"},
        ]);
        assert_eq!(read(input).expect("reads"), expected);
    }

    #[test]
    fn calls_are_part_of_the_answer_before_them_and_their_outputs_messages_of_tools() {
        let call =
            |id: &str| json!({"type": "function_call", "id": "fc_1", "call_id": id, "name": "f", "arguments": "{}"});
        let input = json!([
            {"role": "user", "content": "Hi"}, call("a"), call("b"),
            {"type": "function_call_output", "call_id": "a", "output": "1"},
            {"role": "assistant", "content": "So"}, call("c"),
        ]);
        let called = |id: &str| json!({"id": id, "type": "function", "function": {"name": "f", "arguments": "{}"}});
        let expected = json!([
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "", "tool_calls": [called("a"), called("b")]},
            {"role": "tool", "tool_call_id": "a", "content": "1"},
            {"role": "assistant", "content": "So", "tool_calls": [called("c")]},
        ]);
        assert_eq!(read(input).expect("reads"), expected);
    }

    #[test]
    fn what_is_not_understood_is_refused_by_its_place() {
        for (input, place) in [
            (json!(3), "input"),
            (json!([]), "input"),
            (json!(["a"]), "input[0]"),
            (json!([{"type": 3}]), "input[0].type"),
            (json!([{"type": "item_reference", "id": "x"}]), "input[0].type"),
            (json!([{"role": "user", "content": "a", "namespace": "n"}]), "input[0].namespace"),
            (json!([{"type": "function_call", "call_id": "a", "name": "f"}]), "input[0].arguments"),
            (json!([{"type": "function_call_output", "call_id": "a", "output": 1}]), "input[0].output"),
        ] {
            let error = read(input).expect_err(place);
            let body = serde_json::to_value(error.body()).expect("serializes");
            assert_eq!(body["error"]["param"], place);
        }
    }
}
