//! A response, as it is returned whole and by the events of a stream.

use serde::Serialize;
use serde_json::{Map, Value as Json};
use utoipa::ToSchema;

use crate::engine::Usage;

/// A response.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Response {
    /// Its id. Responses are not kept, so nothing can be asked about it later.
    pub id: String,
    /// `response`.
    pub object: &'static str,
    /// When it was accepted, in seconds since 1970.
    pub created_at: u64,
    /// How far it is.
    pub status: Status,
    /// Why it failed.
    #[schema(value_type = Option<Object>)]
    pub error: Option<ResponseError>,
    /// Why it is incomplete.
    pub incomplete_details: Option<IncompleteDetails>,
    /// Messages and calls.
    pub output: Vec<OutputItem>,
    /// Token counts, at the end.
    pub usage: Option<ResponseUsage>,
    /// What of the request it repeats.
    #[serde(flatten)]
    pub request: RequestEcho,
}

/// What a response repeats of its request.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct RequestEcho {
    /// What generated it: the base model or an adapter.
    pub model: String,
    /// `instructions` of the request.
    pub instructions: Option<String>,
    /// `max_output_tokens` of the request.
    pub max_output_tokens: Option<usize>,
    /// `temperature` of the request.
    pub temperature: Option<f32>,
    /// `top_p` of the request.
    pub top_p: Option<f32>,
    /// `metadata` of the request.
    #[schema(value_type = Object)]
    pub metadata: Map<String, Json>,
    /// `parallel_tool_calls` of the request.
    pub parallel_tool_calls: bool,
    /// `tool_choice` of the request.
    #[schema(value_type = Object)]
    pub tool_choice: Json,
    /// `tools` of the request.
    #[schema(value_type = Vec<Object>)]
    pub tools: Vec<Json>,
    /// `text` of the request.
    #[schema(value_type = Object)]
    pub text: Json,
    /// Always `null`: responses are not kept.
    #[schema(value_type = Option<String>)]
    pub previous_response_id: (),
    /// Always `false`: responses are not kept.
    pub store: bool,
    /// Always `false`.
    pub background: bool,
    /// Always `disabled`: an input that is too long is an error.
    pub truncation: Truncation,
}

/// What happens to an input that is too long.
#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Truncation {
    /// It is an error.
    #[default]
    Disabled,
}

/// How far a response or one of its items is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It is being generated.
    InProgress,
    /// It ended by itself.
    Completed,
    /// It was cut off.
    Incomplete,
    /// It ended with an error.
    Failed,
}

/// Why a response failed.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ResponseError {
    /// The stable code, as in docs/errors.md.
    pub code: &'static str,
    /// What went wrong.
    pub message: String,
}

/// Why a response is incomplete.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub struct IncompleteDetails {
    /// `max_output_tokens`, also where the model's length or the cache was the limit.
    pub reason: &'static str,
}

/// A part of the output.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum OutputItem {
    /// Text.
    Message {
        /// Its id.
        id: String,
        /// How far it is.
        status: Status,
        /// `assistant`.
        role: &'static str,
        /// One text; none while the message begins.
        content: Vec<OutputText>,
    },
    /// A call of a function.
    FunctionCall {
        /// Its id.
        id: String,
        /// By which the client answers it.
        call_id: String,
        /// How far it is.
        status: Status,
        /// The function.
        name: String,
        /// The text of its arguments, as the model wrote it.
        arguments: String,
    },
}

/// The text of a message.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
#[serde(tag = "type", rename = "output_text")]
pub struct OutputText {
    /// The text.
    pub text: String,
    /// Always empty.
    #[schema(value_type = Vec<Object>)]
    pub annotations: [(); 0],
    /// Always empty.
    #[schema(value_type = Vec<Object>)]
    pub logprobs: [(); 0],
}

/// Token counts of a response.
#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
pub struct ResponseUsage {
    /// Tokens of the prompt.
    pub input_tokens: usize,
    /// What of the prompt was computed before.
    pub input_tokens_details: InputTokensDetails,
    /// New tokens.
    pub output_tokens: usize,
    /// What the new tokens are.
    pub output_tokens_details: OutputTokensDetails,
    /// Both together.
    pub total_tokens: usize,
}

/// Details of the prompt's tokens.
#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
pub struct InputTokensDetails {
    /// Prompt tokens whose keys and values were found in the prefix cache.
    pub cached_tokens: usize,
    /// Always 0: writing to the cache costs nothing.
    pub cache_write_tokens: usize,
}

/// Details of the new tokens.
#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
pub struct OutputTokensDetails {
    /// Always 0: the text of a model that reasons is not told apart.
    pub reasoning_tokens: usize,
}

impl Response {
    /// A response of which nothing is generated yet.
    pub fn begun(id: String, created_at: u64, request: RequestEcho) -> Self {
        Self {
            id,
            object: "response",
            created_at,
            status: Status::InProgress,
            error: None,
            incomplete_details: None,
            output: Vec::new(),
            usage: None,
            request,
        }
    }
}

impl From<&Usage> for ResponseUsage {
    fn from(usage: &Usage) -> Self {
        Self {
            input_tokens: usage.prompt_tokens,
            input_tokens_details: InputTokensDetails { cached_tokens: usage.cached_tokens, cache_write_tokens: 0 },
            output_tokens: usage.completion_tokens,
            output_tokens_details: OutputTokensDetails::default(),
            total_tokens: usage.prompt_tokens + usage.completion_tokens,
        }
    }
}
