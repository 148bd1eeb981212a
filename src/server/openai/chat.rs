//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::compat_fields::{CompatField, only, refused, same_as};
use super::events::{self, Events};
use super::finish::{UsageObject, chat_finish_reason, stop_reason, text_end};
use super::generation::{Generation, response_id};
use super::generation_request::{GenerationBody, GenerationRequest, RouteFields};
use super::logprobs::ChatLogprobs;
use super::messages::chat_messages;
use super::response_format::ResponseFormat;
use super::tool_calls::{MessageReader, Tool, ToolCall, ToolCallDelta, ToolRequest, ToolUse, whole_message};
use crate::engine::{ChatOptions, Chunk, Completion, Finish, Prompt, StopMatch, TokenLogprobs, Tokenizer};
use crate::error::{Error, ErrorCode};
use crate::server::error::{ApiError, ApiResult, ErrorBody};
use crate::server::json::JsonFields;
use crate::server::sse;
use crate::server::state::{AppState, unix_seconds};

/// OpenAI's largest number of top log-probabilities.
const MAX_TOP_LOGPROBS: usize = 20;

/// The fields of a chat alone.
#[derive(Clone, Debug, Deserialize, ToSchema)]
struct ChatFields {
    /// The messages: each an object with `role`, `content` and whatever else the model's chat template reads.
    messages: Vec<Map<String, Value>>,
    /// Whether the response has log-probabilities.
    logprobs: Option<bool>,
    /// Number of top log-probabilities for each token.
    top_logprobs: Option<usize>,
    /// Whether the prompt ends with the start of an assistant's message.
    add_generation_prompt: Option<bool>,
    /// Whether the last message is continued.
    continue_final_message: Option<bool>,
    /// The name of one of the model's templates, or the text of another one.
    chat_template: Option<String>,
    /// Other variables of the template.
    chat_template_kwargs: Option<Map<String, Value>>,
    /// Documents for templates that take them.
    documents: Option<Vec<Map<String, Value>>>,
    /// Functions that the model may call.
    tools: Option<Vec<Tool>>,
    /// Whether it calls them: `none`, `auto` (the default with tools), `required`, or an object that names one.
    tool_choice: Option<Value>,
    /// Whether it may call several at once; `true` by default.
    parallel_tool_calls: Option<bool>,
    /// What the text has to be: any text, a JSON object, or JSON under a schema.
    response_format: Option<ResponseFormat>,
}

impl RouteFields for ChatFields {
    const COMPAT: &'static [CompatField] = &[
        only("modalities", &["[\"text\"]"], "the model produces text only"),
        only("echo", &["false"], "add the message to the answer"),
        same_as("best_of", "n", "every choice is returned; use n"),
        only("verbosity", &["\"medium\""], "say in a message how much the model is to write"),
        only("include_reasoning", &["true"], "the text of a model that reasons is not told apart"),
        only("mm_processor_kwargs", &["{}"], "the model reads text only"),
        only("function_call", &["\"none\""], "use tool_choice"),
        refused("functions", "use tools"),
        refused("audio", "the model produces text only"),
        refused("web_search_options", "give the model a tool for it"),
        refused(
            "reasoning_effort",
            "chat_template_kwargs has what the model's template knows, such as enable_thinking",
        ),
        refused("thinking_token_budget", "use max_tokens"),
    ];
    const PROMPT: &'static str = "messages";
}

/// A message that was generated.
#[derive(Debug, Serialize, ToSchema)]
struct ChatMessageObject {
    role: &'static str,
    /// The text; null where there are only calls.
    content: Option<String>,
    /// Calls of the request's tools.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall>,
    /// Models of exlora never say that they refuse.
    refusal: Option<String>,
}

/// A message for the chat.
#[derive(Debug, Serialize, ToSchema)]
struct ChatChoice {
    index: usize,
    message: ChatMessageObject,
    logprobs: Option<ChatLogprobs>,
    /// `stop`, `length`, or `tool_calls`.
    finish_reason: Option<&'static str>,
    /// The stop string or token that was found.
    #[schema(value_type = Option<Value>)]
    stop_reason: Option<StopMatch>,
    /// Seed of the choice's random numbers.
    seed: u64,
}

/// Messages for a chat.
#[derive(Debug, Serialize, ToSchema)]
struct ChatObject {
    id: String,
    object: &'static str,
    /// Seconds since 1970.
    created: u64,
    model: String,
    choices: Vec<ChatChoice>,
    /// Token counts.
    usage: UsageObject,
}

/// What a part of a message adds to it.
#[derive(Debug, Default, Serialize, ToSchema)]
struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    /// Calls, or more of the last one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCallDelta>,
}

/// A part of a message.
#[derive(Debug, Serialize, ToSchema)]
struct ChatChunkChoice {
    index: usize,
    delta: Delta,
    logprobs: Option<ChatLogprobs>,
    /// `stop`, `length` or `tool_calls`; null while the message is generated.
    finish_reason: Option<&'static str>,
    /// The stop string or token that was found.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Value>)]
    stop_reason: Option<StopMatch>,
    /// Seed of the choice's random numbers, once it has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
}

/// Parts of messages.
#[derive(Debug, Serialize, ToSchema)]
struct ChatChunkObject {
    id: String,
    object: &'static str,
    /// Seconds since 1970.
    created: u64,
    model: String,
    choices: Vec<ChatChunkChoice>,
    /// Token counts, in the last event if they were asked for.
    usage: Option<UsageObject>,
}

/// The body of a request, for the OpenAPI document.
type ChatRequest = GenerationRequest<ChatFields>;

/// Answers a chat.
#[utoipa::path(
    post,
    path = "/v1/chat/completions",
    operation_id = "create_chat_completion",
    tag = "openai",
    request_body = ChatRequest,
    responses(
        (status = 200, description = "the messages, or events with their parts", body = ChatObject),
        (status = 400, description = "the request is wrong", body = ErrorBody),
        (status = 404, description = "no such adapter", body = ErrorBody),
        (status = 429, description = "too many requests wait", body = ErrorBody),
    )
)]
pub async fn complete(State(state): State<Arc<AppState>>, fields: JsonFields) -> ApiResult<Response> {
    let body: GenerationBody<ChatFields> = GenerationBody::read(fields)?;
    let (streams, include_usage) = (body.streams, body.includes_usage);
    // Up to the end of the context.
    let (mut client, own) = body.into_request(&state, state.engine.max_tokens())?;
    let top_logprobs = top_logprobs(&own)?;
    let tools = tool_request(own.tools, own.tool_choice, own.parallel_tool_calls, own.response_format)?;
    tools.name_grammar(&client.request, "response_format", &mut client.names);
    // 0 asks for the log-probabilities of the chosen tokens alone.
    client.request.logprobs = top_logprobs.map_or(0, |top| top.max(1));
    let messages = chat_messages(own.messages)?;
    client.request.chat = ChatOptions {
        add_generation_prompt: own.add_generation_prompt,
        continue_final_message: own.continue_final_message.unwrap_or(false).then(|| "content".to_owned()),
        documents: own.documents.map(|documents| documents.into_iter().map(Value::Object).collect()),
        chat_template: own.chat_template,
        chat_template_kwargs: own.chat_template_kwargs.unwrap_or_default(),
        ..ChatOptions::default()
    };
    let prompts = vec![Prompt::Chat(messages)];
    let tool_use = tools.prepare(state.options.tool_call_parser);
    let (generated, tool_use) = Generation::start_with(&state, client, prompts, tool_use).await?;
    let id = response_id("chatcmpl")?;
    let reader = |choice: usize| tool_use.as_ref().map(|tools: &ToolUse| tools.reader(&id, choice));
    let writer = Writer {
        readers: (0..generated.choices).map(reader).collect(),
        id,
        created: unix_seconds(),
        model: generated.model.clone(),
        tokenizer: generated.tokenizer.clone().filter(|_| top_logprobs.is_some()),
        top: top_logprobs.unwrap_or(0),
        include_usage,
        has_begun: vec![false; generated.choices],
    };
    if streams {
        return Ok(events::response(generated, writer));
    }
    let (completions, usage) = generated.completions().await?;
    Ok(Json(writer.whole(completions, usage)).into_response())
}

/// What the request asks for about tools and the form of the text.
fn tool_request(
    tools: Option<Vec<Tool>>,
    choice: Option<Value>,
    parallel: Option<bool>,
    format: Option<ResponseFormat>,
) -> ApiResult<ToolRequest> {
    let functions = tools.unwrap_or_default().into_iter().map(|tool| tool.function).collect();
    let schema = format.map(|format| format.schema("response_format.json_schema")).transpose()?.flatten();
    ToolRequest::new(functions, choice.as_ref(), parallel, schema)
}

/// The number of top log-probabilities; `None` for no log-probabilities at all.
fn top_logprobs(fields: &ChatFields) -> ApiResult<Option<usize>> {
    let invalid = |what| Error::new(ErrorCode::RequestInvalid, what);
    match (fields.logprobs.unwrap_or(false), fields.top_logprobs) {
        (_, Some(top)) if top > MAX_TOP_LOGPROBS => {
            let error = invalid("top_logprobs is out of range").with_found(top);
            Err(ApiError::of_field("top_logprobs", error.with_expected(format!("at most {MAX_TOP_LOGPROBS}"))))
        }
        (false, Some(1..)) => {
            let error = invalid("top_logprobs is given without logprobs");
            Err(ApiError::of_field("top_logprobs", error.with_hint("set logprobs, or leave it out")))
        }
        (false, _) => Ok(None),
        (true, top) => Ok(Some(top.unwrap_or(0))),
    }
}

/// Writes choices as OpenAI has them.
struct Writer {
    id: String,
    created: u64,
    model: String,
    /// Of log-probabilities, if they were asked for.
    tokenizer: Option<Arc<Tokenizer>>,
    top: usize,
    include_usage: bool,
    /// Whether the first event of each choice was sent.
    has_begun: Vec<bool>,
    /// What finds calls of tools in the text of each choice, if there may be some.
    readers: Vec<Option<MessageReader>>,
}

impl Writer {
    fn logprobs(&self, ids: &[u32], logprobs: &[TokenLogprobs]) -> Option<ChatLogprobs> {
        self.tokenizer.as_ref().map(|tokenizer| ChatLogprobs::of(ids, logprobs, self.top, tokenizer))
    }

    fn whole(mut self, completions: Vec<Completion>, usage: UsageObject) -> ChatObject {
        let mut readers = std::mem::take(&mut self.readers);
        let choice = |(index, completion): (usize, Completion)| {
            let (content, tool_calls) = match readers[index].take() {
                Some(reader) => whole_message(reader, &completion.text, text_end(&completion.finish)),
                None => (completion.text, Vec::new()),
            };
            let has_calls = !tool_calls.is_empty();
            let content = Some(content).filter(|content| !has_calls || !content.is_empty());
            ChatChoice {
                index,
                logprobs: self.logprobs(&completion.token_ids, &completion.logprobs),
                message: ChatMessageObject { role: "assistant", content, tool_calls, refusal: None },
                finish_reason: Some(chat_finish_reason(&completion.finish, has_calls)),
                stop_reason: stop_reason(&completion.finish),
                seed: completion.finish.seed,
            }
        };
        let choices = completions.into_iter().enumerate().map(choice).collect();
        ChatObject { object: "chat.completion", created: self.created, choices, usage, id: self.id, model: self.model }
    }

    fn has_calls(&self, index: usize) -> bool {
        self.readers[index].as_ref().is_some_and(MessageReader::has_calls)
    }

    fn event(&self, choices: Vec<ChatChunkChoice>, usage: Option<UsageObject>) -> String {
        let (id, model) = (self.id.clone(), self.model.clone());
        let object = "chat.completion.chunk";
        sse::event(&ChatChunkObject { id, object, created: self.created, model, choices, usage })
    }

    fn part(&self, index: usize, delta: Delta, logprobs: Option<ChatLogprobs>, finish: Option<&Finish>) -> String {
        let choice = ChatChunkChoice {
            index,
            delta,
            logprobs,
            finish_reason: finish.map(|finish| chat_finish_reason(finish, self.has_calls(index))),
            stop_reason: finish.and_then(stop_reason),
            seed: finish.map(|finish| finish.seed),
        };
        self.event(vec![choice], None)
    }
}

impl Events for Writer {
    fn chunk(&mut self, index: usize, chunk: Chunk) -> Vec<String> {
        let mut events = Vec::new();
        if !std::mem::replace(&mut self.has_begun[index], true) {
            let delta = Delta { role: Some("assistant"), content: Some(String::new()), ..Delta::default() };
            events.push(self.part(index, delta, None, None));
        }
        let logprobs = self.logprobs(&chunk.token_ids, &chunk.logprobs).filter(|logprobs| !logprobs.content.is_empty());
        let (content, tool_calls) = match &mut self.readers[index] {
            Some(reader) => {
                let delta = reader.push(&chunk.text, chunk.finish.as_ref().map(text_end));
                (delta.content, delta.tool_calls)
            }
            None => (chunk.text, Vec::new()),
        };
        if !content.is_empty() || !tool_calls.is_empty() || logprobs.is_some() {
            let content = Some(content).filter(|content| tool_calls.is_empty() || !content.is_empty());
            events.push(self.part(index, Delta { role: None, content, tool_calls }, logprobs, None));
        }
        if let Some(finish) = &chunk.finish {
            events.push(self.part(index, Delta::default(), None, Some(finish)));
        }
        events
    }

    fn end(&mut self, usage: &UsageObject) -> Vec<String> {
        let usage = self.include_usage.then(|| self.event(Vec::new(), Some(*usage)));
        usage.into_iter().chain([sse::DONE.to_owned()]).collect()
    }
}
