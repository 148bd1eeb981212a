//! Calls in a chat message, whole and in pieces.

use serde::Serialize;
use utoipa::ToSchema;

use super::call_id::CallIds;
use super::json_call::Parsed;
use super::parser::{TextEnd, ToolCallParser};
use super::tools::ToolType;

/// A call of a message.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct ToolCall {
    /// By which the client answers it.
    pub id: String,
    /// The kind of tool.
    pub r#type: ToolType,
    /// What to call.
    pub function: FunctionCall,
}

/// A function and its arguments.
#[derive(Clone, Debug, Default, PartialEq, Serialize, ToSchema)]
pub struct FunctionCall {
    /// The function's name.
    pub name: String,
    /// Its arguments, as the model wrote them: the JSON text of an object, which may be invalid or end early.
    pub arguments: String,
}

/// A piece of a call in a stream.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct ToolCallDelta {
    /// Which of the message's calls it belongs to.
    pub index: usize,
    /// The call's id, in its first piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The kind of tool, in its first piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub r#type: Option<ToolType>,
    /// More of the call.
    pub function: FunctionDelta,
}

/// More of a call.
#[derive(Clone, Debug, Default, PartialEq, Serialize, ToSchema)]
pub struct FunctionDelta {
    /// The function's name, in the first piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The next part of the text of its arguments.
    pub arguments: String,
}

/// What a piece of a model's text adds to its message.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MessageDelta {
    /// More content.
    pub content: String,
    /// More calls, or more of the last one.
    pub tool_calls: Vec<ToolCallDelta>,
}

/// Turns the text of one sample into a message with calls.
#[derive(Debug)]
pub struct MessageReader {
    parser: ToolCallParser,
    ids: CallIds,
    calls: usize,
}

impl MessageReader {
    /// A reader of a text that has not begun.
    pub fn new(parser: ToolCallParser, ids: CallIds) -> Self {
        Self { parser, ids, calls: 0 }
    }

    /// What the next piece of the text adds; `end` if it is the last one.
    pub fn push(&mut self, text: &str, end: Option<TextEnd>) -> MessageDelta {
        let mut delta = MessageDelta::default();
        let mut events = self.parser.push(text);
        if let Some(end) = end {
            events.extend(self.parser.finish(end));
        }
        for event in events {
            match event {
                Parsed::Content(text) => delta.content += &text,
                Parsed::Call(name) => {
                    self.calls += 1;
                    delta.tool_calls.push(ToolCallDelta {
                        index: self.calls - 1,
                        id: Some(self.ids.next_id()),
                        r#type: Some(ToolType::Function),
                        function: FunctionDelta { name: Some(name), arguments: String::new() },
                    });
                }
                Parsed::Arguments(text) => {
                    let index = self.calls.saturating_sub(1);
                    match delta.tool_calls.last_mut() {
                        Some(last) if last.index == index => last.function.arguments += &text,
                        _ => delta.tool_calls.push(ToolCallDelta {
                            index,
                            id: None,
                            r#type: None,
                            function: FunctionDelta { name: None, arguments: text },
                        }),
                    }
                }
            }
        }
        delta
    }

    /// Whether the message has calls so far.
    pub fn has_calls(&self) -> bool {
        self.parser.has_calls()
    }
}

/// The message of a whole text: its content, and its calls.
pub fn whole_message(mut reader: MessageReader, text: &str, end: TextEnd) -> (String, Vec<ToolCall>) {
    let delta = reader.push(text, Some(end));
    let call = |call: ToolCallDelta| ToolCall {
        id: call.id.unwrap_or_default(),
        r#type: ToolType::Function,
        function: FunctionCall { name: call.function.name.unwrap_or_default(), arguments: call.function.arguments },
    };
    (delta.content, delta.tool_calls.into_iter().map(call).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::format::ToolCallFormat;
    use super::*;

    fn reader() -> MessageReader {
        let format = ToolCallFormat::Hermes;
        MessageReader::new(ToolCallParser::new(format, ["f".to_owned()], true), CallIds::new(format, "chatcmpl-1", 0))
    }

    #[test]
    fn the_first_piece_of_a_call_has_its_id_and_name_and_the_others_its_index() {
        let mut reader = reader();
        let first = reader.push("Yes <tool_call>{\"name\": \"f\", \"arguments\": {\"a", None);
        assert_eq!(first.content, "Yes");
        let mut call = serde_json::to_value(&first.tool_calls).expect("serializes");
        assert!(call[0]["id"].take().as_str().is_some_and(|id| id.starts_with("call_")));
        let function = json!({"name": "f", "arguments": "{\"a"});
        assert_eq!(call, json!([{"index": 0, "id": null, "type": "function", "function": function}]));

        let next = reader.push("\": 1}", None);
        assert_eq!(
            serde_json::to_value(&next.tool_calls).expect("serializes"),
            json!([{"index": 0, "function": {"arguments": "\": 1}"}}])
        );
        let second = reader.push("}</tool_call><tool_call>{\"name\": \"f\"}", Some(TextEnd::Whole));
        assert_eq!((second.tool_calls.len(), second.tool_calls[0].index), (1, 1));
        assert!(reader.has_calls());
    }

    #[test]
    fn a_whole_message_has_every_call_with_all_its_arguments() {
        let text = "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}}</tool_call>\n\
                    <tool_call>{\"name\": \"g\", \"arguments\": {}}</tool_call>";
        let (content, calls) = whole_message(reader(), text, TextEnd::Whole);
        assert_eq!(content, "");
        let functions: Vec<_> = calls.iter().map(|call| (&*call.function.name, &*call.function.arguments)).collect();
        assert_eq!(functions, [("f", "{\"a\": 1}"), ("g", "{}")]);
        assert_ne!(calls[0].id, calls[1].id);
    }
}
