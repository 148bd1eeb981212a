//! The events of a streamed response.

use serde::Serialize;
use utoipa::ToSchema;

use super::response::{OutputItem, OutputText, Response};

/// An event, with its place in the stream.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct NumberedEvent {
    /// The event.
    #[serde(flatten)]
    pub event: Event,
    /// Its number in the stream, from 0.
    pub sequence_number: u64,
}

/// What happened to a response.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(tag = "type")]
pub enum Event {
    /// It was accepted.
    #[serde(rename = "response.created")]
    Created {
        /// The response so far.
        response: Box<Response>,
    },
    /// It is being generated.
    #[serde(rename = "response.in_progress")]
    InProgress {
        /// The response so far.
        response: Box<Response>,
    },
    /// A message or a call begins.
    #[serde(rename = "response.output_item.added")]
    OutputItemAdded {
        /// Its place in `output`.
        output_index: usize,
        /// The item so far.
        item: OutputItem,
    },
    /// The text of a message begins.
    #[serde(rename = "response.content_part.added")]
    ContentPartAdded {
        /// The message.
        item_id: String,
        /// The message's place in `output`.
        output_index: usize,
        /// The text's place in the message.
        content_index: usize,
        /// The text so far.
        part: OutputText,
    },
    /// More text of a message.
    #[serde(rename = "response.output_text.delta")]
    OutputTextDelta {
        /// The message.
        item_id: String,
        /// The message's place in `output`.
        output_index: usize,
        /// The text's place in the message.
        content_index: usize,
        /// The new text.
        delta: String,
        /// Always empty.
        #[schema(value_type = Vec<Object>)]
        logprobs: [(); 0],
    },
    /// The text of a message is complete.
    #[serde(rename = "response.output_text.done")]
    OutputTextDone {
        /// The message.
        item_id: String,
        /// The message's place in `output`.
        output_index: usize,
        /// The text's place in the message.
        content_index: usize,
        /// The whole text.
        text: String,
        /// Always empty.
        #[schema(value_type = Vec<Object>)]
        logprobs: [(); 0],
    },
    /// The text of a message is complete.
    #[serde(rename = "response.content_part.done")]
    ContentPartDone {
        /// The message.
        item_id: String,
        /// The message's place in `output`.
        output_index: usize,
        /// The text's place in the message.
        content_index: usize,
        /// The whole text.
        part: OutputText,
    },
    /// More of a call's arguments.
    #[serde(rename = "response.function_call_arguments.delta")]
    FunctionCallArgumentsDelta {
        /// The call.
        item_id: String,
        /// The call's place in `output`.
        output_index: usize,
        /// The next part of the text of its arguments.
        delta: String,
    },
    /// The arguments of a call are complete.
    #[serde(rename = "response.function_call_arguments.done")]
    FunctionCallArgumentsDone {
        /// The call.
        item_id: String,
        /// The call's place in `output`.
        output_index: usize,
        /// The function.
        name: String,
        /// The whole text of its arguments.
        arguments: String,
    },
    /// A message or a call is complete.
    #[serde(rename = "response.output_item.done")]
    OutputItemDone {
        /// Its place in `output`.
        output_index: usize,
        /// The whole item.
        item: OutputItem,
    },
    /// The response ended by itself.
    #[serde(rename = "response.completed")]
    Completed {
        /// The whole response.
        response: Box<Response>,
    },
    /// The response ended at `max_output_tokens` or the length of the model.
    #[serde(rename = "response.incomplete")]
    Incomplete {
        /// The response, as far as it came.
        response: Box<Response>,
    },
    /// The response failed.
    #[serde(rename = "response.failed")]
    Failed {
        /// The response, as far as it came.
        response: Box<Response>,
    },
}

impl Event {
    /// The event's name, which is also its `type`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Created { .. } => "response.created",
            Self::InProgress { .. } => "response.in_progress",
            Self::OutputItemAdded { .. } => "response.output_item.added",
            Self::ContentPartAdded { .. } => "response.content_part.added",
            Self::OutputTextDelta { .. } => "response.output_text.delta",
            Self::OutputTextDone { .. } => "response.output_text.done",
            Self::ContentPartDone { .. } => "response.content_part.done",
            Self::FunctionCallArgumentsDelta { .. } => "response.function_call_arguments.delta",
            Self::FunctionCallArgumentsDone { .. } => "response.function_call_arguments.done",
            Self::OutputItemDone { .. } => "response.output_item.done",
            Self::Completed { .. } => "response.completed",
            Self::Incomplete { .. } => "response.incomplete",
            Self::Failed { .. } => "response.failed",
        }
    }
}
