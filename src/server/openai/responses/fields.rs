//! The fields of a request for a response.

use serde::Deserialize;
use serde_json::{Map, Value as Json, json};
use utoipa::ToSchema;

use super::input::chat_messages;
use super::response::RequestEcho;
use crate::error::{Error, ErrorCode};
use crate::request_settings::read_json_at;
use crate::server::error::{ApiError, ApiResult};
use crate::server::openai::compat_fields::{CompatField, only, refused, renamed};
use crate::server::openai::generation_request::RouteFields;
use crate::server::openai::response_format::{FormatType, NamedSchema, ResponseFormat};
use crate::server::openai::tool_calls::{Function, ToolRequest};

/// The fields of a request for a response.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct ResponseFields {
    /// A text, or a list of messages, calls and outputs of calls.
    input: Json,
    /// What stands before the input as the message of the system.
    instructions: Option<String>,
    /// What the text has to be.
    text: Option<TextFields>,
    /// Functions that the model may call.
    #[schema(value_type = Option<Vec<Object>>)]
    tools: Option<Vec<Map<String, Json>>>,
    /// Whether it calls them: `none`, `auto` (the default with tools), `required`, or an object that names one.
    tool_choice: Option<Json>,
    /// Whether it may call several at once; `true` by default.
    parallel_tool_calls: Option<bool>,
    /// Repeated in the response.
    #[schema(value_type = Option<Object>)]
    metadata: Option<Map<String, Json>>,
}

impl RouteFields for ResponseFields {
    const COMPAT: &'static [CompatField] = &[
        renamed("max_output_tokens", "max_new_tokens"),
        only("include", &["[]"], "a response contains nothing else"),
        only("truncation", &["\"disabled\""], "an input that is too long is an error"),
        only("background", &["false"], "leave it out, and read the response as a stream"),
        only("top_logprobs", &["0"], "/v1/chat/completions has log-probabilities"),
        only("logprobs", &["0", "false"], "/v1/chat/completions has log-probabilities"),
        only("n", &["1"], "a response has one output; /v1/chat/completions has several choices"),
        refused("previous_response_id", "responses are not kept; send the messages before as input"),
        refused("conversation", "responses are not kept; send the messages before as input"),
        refused("prompt", "use input and instructions"),
        refused("reasoning", "chat_template_kwargs of /v1/chat/completions has what the model's template knows"),
        refused("max_tool_calls", "the client makes the calls"),
        refused("context_management", "send the input that the model is to read"),
        refused("moderation", "leave it out"),
        refused("image", "the model reads text only"),
        refused("prompt_cache_options", "leave it out"),
        refused("background_options", "leave it out"),
        refused("access_programs", "leave it out"),
    ];
    const PROMPT: &'static str = "input";
}

/// What the fields of a request ask for.
pub struct ResponseParts {
    /// The messages of the chat.
    pub messages: Vec<Map<String, Json>>,
    /// Functions, and the form of the text.
    pub tools: ToolRequest,
    /// What the response repeats.
    pub echo: RequestEcho,
}

/// What the text has to be.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct TextFields {
    /// `text`, `json_object`, or `json_schema` with `name` and `schema` beside the type.
    #[schema(value_type = Option<Object>)]
    format: Option<Map<String, Json>>,
    /// How much to say: `medium`, for models that know no other.
    verbosity: Option<String>,
}

impl ResponseFields {
    /// What the request asks for.
    ///
    /// # Errors
    /// `request_invalid`, `setting_unsupported`.
    pub fn into_parts(self) -> ApiResult<ResponseParts> {
        let verbosity = self.text.as_ref().and_then(|text| text.verbosity.as_deref());
        if verbosity.is_some_and(|verbosity| verbosity != "medium") {
            return Err(unsupported("text.verbosity", "text.verbosity is not supported with this value"));
        }
        let tools = self.tools.unwrap_or_default();
        let functions =
            tools.iter().enumerate().map(|(index, tool)| function(index, tool)).collect::<ApiResult<_>>()?;
        let format = self.text.and_then(|text| text.format);
        let schema = response_format(format.clone())?.map(|format| format.schema("text.format")).transpose()?.flatten();
        let request = ToolRequest::new(functions, self.tool_choice.as_ref(), self.parallel_tool_calls, schema)?;
        let echo = RequestEcho {
            instructions: self.instructions.clone(),
            metadata: self.metadata.unwrap_or_default(),
            parallel_tool_calls: request.parallel,
            tool_choice: self.tool_choice.filter(|choice| !choice.is_null()).unwrap_or_else(|| "auto".into()),
            tools: tools.into_iter().map(Json::Object).collect(),
            text: json!({"format": format.map_or_else(|| json!({"type": "text"}), Json::Object)}),
            ..RequestEcho::default()
        };
        Ok(ResponseParts { messages: chat_messages(self.instructions, self.input)?, tools: request, echo })
    }
}

/// A function among the tools, which has its fields beside its type.
fn function(index: usize, tool: &Map<String, Json>) -> ApiResult<Function> {
    let place = format!("tools[{index}]");
    if tool.get("type").is_none_or(|kind| kind != "function") {
        return Err(unsupported(
            &format!("{place}.type"),
            &format!("{place} is no function, and nothing else is supported"),
        ));
    }
    let fields = tool.iter().filter(|(name, _)| *name != "type").map(|(name, value)| (name.clone(), value.clone()));
    Ok(read_json_at(&place, Json::Object(fields.collect()))?)
}

/// The form of the text: as in chats, but with the schema beside the type.
fn response_format(format: Option<Map<String, Json>>) -> ApiResult<Option<ResponseFormat>> {
    let Some(mut format) = format else { return Ok(None) };
    if format.get("type").is_none_or(|kind| kind != "json_schema") {
        return Ok(Some(read_json_at("text.format", Json::Object(format))?));
    }
    format.shift_remove("type");
    let json_schema: NamedSchema = read_json_at("text.format", Json::Object(format))?;
    Ok(Some(ResponseFormat { r#type: FormatType::JsonSchema, json_schema: Some(json_schema) }))
}

fn unsupported(field: &str, what: &str) -> ApiError {
    ApiError::of_field(field, Error::new(ErrorCode::SettingUnsupported, what).with_hint("leave it out"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::json::JsonFields;
    use crate::server::openai::generation_request::GenerationBody;

    fn fields(value: Json) -> ResponseFields {
        serde_json::from_value(value).expect("well-formed")
    }

    #[test]
    fn functions_and_schemas_have_their_fields_beside_their_types() {
        let tool = json!({"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": true});
        let format = json!({"type": "json_schema", "name": "n", "schema": {"type": "array"}});
        let asked = fields(json!({"input": "a", "tools": [tool], "text": {"format": format}}));
        let ResponseParts { messages, tools, echo } = asked.into_parts().expect("understood");
        assert_eq!((messages.len(), tools.functions[0].name.as_str()), (1, "f"));
        assert_eq!(tools.schema.expect("a schema")["type"], "array");
        assert_eq!((&echo.tools[0], &echo.text["format"]), (&tool, &format));
    }

    #[test]
    fn what_is_not_supported_is_refused_by_its_place() {
        let refusal = |value: Json| {
            let mut whole = json!({"input": "a"});
            whole.as_object_mut().expect("an object").extend(value.as_object().expect("an object").clone());
            let whole = JsonFields::from(whole.as_object().expect("an object").clone());
            let read = GenerationBody::<ResponseFields>::read(whole).and_then(|body| body.own.into_parts());
            read.err().map(|error| serde_json::to_value(error.body()).expect("serializes")["error"]["param"].clone())
        };
        for (value, expected) in [
            (json!({"include": ["x"]}), "include"),
            (json!({"truncation": "auto"}), "truncation"),
            (json!({"background": true}), "background"),
            (json!({"top_logprobs": 1}), "top_logprobs"),
            (json!({"logprobs": 1}), "logprobs"),
            (json!({"n": 2}), "n"),
            (json!({"previous_response_id": "x"}), "previous_response_id"),
            (json!({"max_output_tokens": "x"}), "max_output_tokens"),
            (json!({"stream_options": {}}), "stream_options"),
            (json!({"text": {"verbosity": "low"}}), "text.verbosity"),
            (json!({"text": {"format": {"type": "xml"}}}), "text.format.type"),
            (json!({"text": {"format": {"type": "json_schema"}}}), "text.format.name"),
            (json!({"text": {"format": {"type": "json_schema", "name": "a b"}}}), "text.format.name"),
            (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
            (json!({"tools": [{"type": "function"}]}), "tools[0].name"),
            (json!({"tools": [{"type": "function", "name": "f", "async": true}]}), "tools[0].async"),
            (json!({"tool_choice": "any"}), "tool_choice"),
        ] {
            assert_eq!(refusal(value.clone()), Some(json!(expected)), "{value}");
        }
        let accepted = json!({
            "include": [], "truncation": "disabled", "background": false, "top_logprobs": 0, "n": 1, "store": true,
            "stream": true, "stream_options": {"include_obfuscation": false},
        });
        assert_eq!(refusal(accepted), None);
    }
}
