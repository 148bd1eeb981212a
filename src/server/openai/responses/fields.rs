//! The fields of a request for a response.

use serde::Deserialize;
use serde_json::{Map, Value as Json, json};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::input::chat_messages;
use super::response::RequestEcho;
use crate::error::{Error, ErrorCode};
use crate::request_settings::RequestSettings;
use crate::server::adapters::AdapterFields;
use crate::server::error::{ApiError, ApiResult};
use crate::server::openai::response_format::{NamedSchema, ResponseFormat};
use crate::server::openai::tool_calls::{Function, ToolRequest};
use crate::server::schema::one_object;

/// The fields of a request for a response.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct ResponseFields {
    /// A text, or a list of messages, calls and outputs of calls.
    input: Json,
    /// What stands before the input as the message of the system.
    instructions: Option<String>,
    /// Largest number of new tokens.
    pub max_output_tokens: Option<usize>,
    /// Whether the response is sent as server-sent events while it is generated.
    pub stream: Option<bool>,
    /// Options of such a stream.
    #[expect(dead_code, reason = "accepted, since it changes no answer")]
    stream_options: Option<ResponseStreamOptions>,
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
    /// What else the response contains: nothing.
    include: Option<Vec<String>>,
    /// What happens to an input that is too long: it is an error (`disabled`).
    truncation: Option<String>,
    /// Must be `false`.
    background: Option<bool>,
    /// Must be 0.
    top_logprobs: Option<usize>,
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

/// The body of a request, for the OpenAPI document: its own fields, and those that all routes have.
pub struct ResponseRequest;

impl PartialSchema for ResponseRequest {
    fn schema() -> RefOr<Schema> {
        one_object([ResponseFields::schema(), AdapterFields::schema(), RequestSettings::schema()])
    }
}

impl ToSchema for ResponseRequest {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        ResponseFields::schemas(schemas);
    }
}

/// Options of a stream.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ResponseStreamOptions {
    /// Whether events are padded against eavesdroppers; they are not.
    #[serde(default)]
    #[expect(dead_code, reason = "accepted, since it changes no answer")]
    include_obfuscation: Option<bool>,
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
    /// Refuses values that ask for what exlora does not have.
    ///
    /// # Errors
    /// `setting_unsupported`.
    pub fn refuse_unsupported(&self) -> ApiResult<()> {
        let verbosity = self.text.as_ref().and_then(|text| text.verbosity.as_deref());
        let refused = [
            ("include", self.include.as_ref().is_some_and(|include| !include.is_empty())),
            ("truncation", self.truncation.as_deref().is_some_and(|truncation| truncation != "disabled")),
            ("background", self.background == Some(true)),
            ("top_logprobs", self.top_logprobs.is_some_and(|top| top > 0)),
            ("text.verbosity", verbosity.is_some_and(|verbosity| verbosity != "medium")),
        ];
        match refused.into_iter().find(|&(_, is_refused)| is_refused) {
            None => Ok(()),
            Some((field, _)) => Err(unsupported(field, &format!("the value of {field} is not supported"))),
        }
    }

    /// What the request asks for.
    ///
    /// # Errors
    /// `request_invalid`, `setting_unsupported`.
    pub fn into_parts(self) -> ApiResult<ResponseParts> {
        let tools = self.tools.unwrap_or_default();
        let functions =
            tools.iter().enumerate().map(|(index, tool)| function(index, tool)).collect::<ApiResult<_>>()?;
        let format = self.text.and_then(|text| text.format);
        let schema = response_format(format.clone())?.map(|format| format.schema()).transpose();
        let schema = schema.map_err(|error| ApiError::of_field("text.format", error))?.flatten();
        let request = ToolRequest::new(functions, self.tool_choice.as_ref(), self.parallel_tool_calls, schema)?;
        let echo = RequestEcho {
            instructions: self.instructions.clone(),
            max_output_tokens: self.max_output_tokens,
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
    read(&place, fields.collect())
}

/// The form of the text: as in chats, but with the schema beside the type.
fn response_format(format: Option<Map<String, Json>>) -> ApiResult<Option<ResponseFormat>> {
    let Some(mut format) = format else { return Ok(None) };
    if format.get("type").is_none_or(|kind| kind != "json_schema") {
        return read("text.format", format).map(Some);
    }
    format.shift_remove("type");
    let json_schema: NamedSchema = read("text.format", format)?;
    Ok(Some(ResponseFormat::JsonSchema { json_schema }))
}

/// Reads an object that lies at this place of the request.
fn read<T: serde::de::DeserializeOwned>(place: &str, fields: Map<String, Json>) -> ApiResult<T> {
    serde_path_to_error::deserialize(Json::Object(fields)).map_err(|e| {
        let path = e.path().to_string();
        let place = if path == "." { place.to_owned() } else { format!("{place}.{path}") };
        let what = format!("{place}: {}", e.inner());
        ApiError::of_field(place, Error::new(ErrorCode::RequestInvalid, what))
    })
}

fn unsupported(field: &str, what: &str) -> ApiError {
    ApiError::of_field(field, Error::new(ErrorCode::SettingUnsupported, what).with_hint("leave it out"))
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let place = |value: Json| {
            let mut whole = json!({"input": "a"});
            whole.as_object_mut().expect("an object").extend(value.as_object().expect("an object").clone());
            let asked = fields(whole);
            let error = asked.refuse_unsupported().and_then(|()| asked.into_parts().map(drop)).expect_err("refused");
            serde_json::to_value(error.body()).expect("serializes")["error"]["param"].clone()
        };
        for (value, expected) in [
            (json!({"include": ["x"]}), "include"),
            (json!({"truncation": "auto"}), "truncation"),
            (json!({"background": true}), "background"),
            (json!({"top_logprobs": 1}), "top_logprobs"),
            (json!({"text": {"verbosity": "low"}}), "text.verbosity"),
            (json!({"text": {"format": {"type": "xml"}}}), "text.format.type"),
            (json!({"text": {"format": {"type": "json_schema"}}}), "text.format"),
            (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
            (json!({"tools": [{"type": "function"}]}), "tools[0]"),
            (json!({"tools": [{"type": "function", "name": "f", "async": true}]}), "tools[0].async"),
            (json!({"tool_choice": "any"}), "tool_choice"),
        ] {
            assert_eq!(place(value), expected);
        }
        let accepted =
            json!({"input": "a", "include": [], "truncation": "disabled", "background": false, "top_logprobs": 0});
        assert!(fields(accepted).refuse_unsupported().is_ok());
    }
}
