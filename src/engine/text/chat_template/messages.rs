//! The messages of a chat and the choices of its rendering, as the template gets them.

use serde_json::{Map, Value as Json};

use crate::error::{Error, ErrorCode, Result};
use crate::jinja::is_space;

/// One message of a chat: a role and a content, and whatever else the template reads (`tool_calls`, `name`, …), in the
/// order in which they were given.
///
/// The content is a text, or what else the template takes: a list of parts like `{"type": "text", "text": "…"}`. A field
/// that is null is as if it were not there, as in transformers.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct ChatMessage {
    fields: Map<String, Json>,
}

impl ChatMessage {
    /// A message that is a role (`system`, `user`, `assistant`, `tool`) and a content, usually a text.
    pub fn new(role: impl Into<String>, content: impl Into<Json>) -> Self {
        Self::default().with("role", role.into()).with("content", content)
    }

    /// The message with one more field, or another value of it.
    pub fn with(mut self, name: impl Into<String>, value: impl Into<Json>) -> Self {
        self.fields.insert(name.into(), value.into());
        self
    }

    /// All fields, in order.
    pub fn fields(&self) -> &Map<String, Json> {
        &self.fields
    }
}

impl From<Map<String, Json>> for ChatMessage {
    fn from(fields: Map<String, Json>) -> Self {
        Self { fields }
    }
}

/// How a chat is rendered: the arguments of transformers' `apply_chat_template`, under vLLM's names.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChatOptions {
    /// Whether the prompt ends with the start of an assistant's message; `None`: unless the last message is continued.
    pub add_generation_prompt: Option<bool>,
    /// The field of the last message that the model continues, usually `content`; `None` starts a new message.
    pub continue_final_message: Option<String>,
    /// Descriptions of the functions that the model may call, as JSON schemas.
    pub tools: Option<Vec<Json>>,
    /// Documents for templates that take them, usually with `title` and `text`.
    pub documents: Option<Vec<Json>>,
    /// The name of one of the model's templates, or the text of another one.
    pub chat_template: Option<String>,
    /// Other variables of the template (`enable_thinking`, …).
    pub chat_template_kwargs: Map<String, Json>,
}

/// Stands behind what is continued, while the template renders it.
const CONTINUE_TAG: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// Names a message's reasoning is passed under. The first is the standard one that templates read.
const REASONING_FIELDS: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

fn failed(message: impl Into<String>) -> Error {
    Error::new(ErrorCode::ChatTemplateFailed, message)
}

/// The messages as the template gets them, and what has to be cut off the prompt.
pub(super) struct Prepared {
    /// A list of objects.
    pub messages: Json,
    /// The text that is continued.
    continued: Option<String>,
}

impl Prepared {
    /// Applies what transformers does to messages before it renders them with a template of this source.
    pub(super) fn new(messages: &[ChatMessage], options: &ChatOptions, source: &str) -> Result<Self> {
        if messages.is_empty() {
            return Err(failed("a chat needs at least one message"));
        }
        if options.continue_final_message.is_some() && options.add_generation_prompt == Some(true) {
            return Err(failed("continue_final_message and add_generation_prompt cannot be used together"));
        }
        let mut fields: Vec<Map<String, Json>> = messages.iter().map(prepared).collect();
        let mut continued = None;
        if let (Some(field), Some(last)) = (&options.continue_final_message, fields.last_mut()) {
            continued = Some(mark(last, field, source)?);
        }
        Ok(Self { messages: Json::Array(fields.into_iter().map(Json::Object).collect()), continued })
    }

    /// Cuts off what follows the text that is continued.
    pub(super) fn cut(&self, mut prompt: String) -> Result<String> {
        let Some(continued) = &self.continued else { return Ok(prompt) };
        let tag = CONTINUE_TAG.trim_end();
        let at = prompt.rfind(tag).filter(|_| prompt.contains(continued.trim_matches(is_space)));
        let Some(at) = at else {
            return Err(failed("the chat template does not print the whole final message, so it cannot be continued"));
        };
        let keeps_spaces = prompt[at..].starts_with(CONTINUE_TAG);
        prompt.truncate(at);
        if !keeps_spaces {
            // The template trims texts, so it would have trimmed the end of this one.
            prompt.truncate(prompt.trim_end_matches(is_space).len());
        }
        Ok(prompt)
    }
}

/// A message without nulls, and with its reasoning under all names that templates read it by.
fn prepared(message: &ChatMessage) -> Map<String, Json> {
    let given = message.fields.iter().filter(|(_, value)| !value.is_null());
    let given: Map<String, Json> = given.map(|(name, value)| (name.clone(), value.clone())).collect();
    let Some(reasoning) = REASONING_FIELDS.iter().find_map(|&name| given.get(name)).cloned() else { return given };
    let mut fields = Map::new();
    fields.insert("thinking".to_owned(), reasoning.clone());
    fields.extend(given);
    fields.insert("reasoning_content".to_owned(), reasoning);
    fields
}

/// Puts the tag behind a field of the last message, and returns the text before it.
fn mark(last: &mut Map<String, Json>, field: &str, source: &str) -> Result<String> {
    let nothing = || failed(format!("the final message has no text in '{}' to continue", field.escape_debug()));
    let value = last.get(field).cloned().ok_or_else(nothing)?;
    let copies: Vec<&str> = match REASONING_FIELDS.contains(&field) {
        true => REASONING_FIELDS.into_iter().filter(|&name| last.get(name) == Some(&value)).collect(),
        false => vec![field],
    };
    if !copies.iter().any(|name| source.contains(name)) {
        return Err(failed(format!(
            "the chat template does not read '{}', which is to be continued",
            field.escape_debug()
        )));
    }
    match value {
        Json::String(text) => {
            for name in copies {
                last.insert(name.to_owned(), (text.clone() + CONTINUE_TAG).into());
            }
            Ok(text)
        }
        Json::Array(_) => {
            let parts = last.get_mut(field).and_then(Json::as_array_mut).ok_or_else(nothing)?;
            let last_text = parts.iter_mut().rev().find_map(|part| part.get_mut("text")).ok_or_else(nothing)?;
            let text = last_text.as_str().ok_or_else(nothing)?.to_owned();
            *last_text = (text.clone() + CONTINUE_TAG).into();
            Ok(text)
        }
        _ => Err(nothing()),
    }
}
