//! `POST /v1/responses`: text and calls of functions, whole or as events. Nothing is kept: a response cannot be asked for later.

mod events;
mod fields;
mod input;
mod output;
mod response;

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response as HttpResponse};

use self::events::{Event, NumberedEvent};
use self::fields::{ResponseFields, ResponseParts};
use self::output::Output;
use self::response::{IncompleteDetails, RequestEcho, Response, ResponseError, Status};
use super::events::{self as streams, Events};
use super::finish::{UsageObject, text_end};
use super::generation::{Generation, response_id};
use super::generation_request::{GenerationBody, GenerationRequest};
use super::messages::chat_messages;
use super::tool_calls::{Parsed, ToolCallParser};
use crate::engine::{Chunk, Finish, FinishReason, Prompt};
use crate::server::error::{ApiError, ApiResult, ErrorBody};
use crate::server::json::JsonFields;
use crate::server::sse;
use crate::server::state::{AppState, unix_seconds};

/// The body of a request, for the OpenAPI document.
type ResponseRequest = GenerationRequest<ResponseFields>;

/// Answers an input.
#[utoipa::path(
    post,
    path = "/v1/responses",
    operation_id = "create_response",
    tag = "openai",
    request_body = ResponseRequest,
    responses(
        (status = 200, description = "the response, or events with its parts", body = Response),
        (status = 400, description = "the request is wrong", body = ErrorBody),
        (status = 404, description = "no such adapter", body = ErrorBody),
        (status = 429, description = "too many requests wait", body = ErrorBody),
    )
)]
pub async fn create(State(state): State<Arc<AppState>>, fields: JsonFields) -> ApiResult<HttpResponse> {
    let body: GenerationBody<ResponseFields> = GenerationBody::read(fields)?;
    let (streams, max_output_tokens) = (body.streams, body.settings.max_new_tokens());
    let (mut client, own) = body.into_request(&state, state.engine.max_tokens())?;
    // The server's default may be another number.
    client.request.n = 1;
    let (temperature, top_p) = (client.request.sampling.temperature, client.request.sampling.top_p);
    let ResponseParts { messages, tools, echo } = own.into_parts()?;
    tools.name_grammar(&client.request, "text.format", &mut client.names);
    let prompts = vec![Prompt::Chat(chat_messages(messages)?)];
    let prepare = tools.prepare(state.options.tool_call_parser);
    let (generated, tool_use) = Generation::start_with(&state, client, prompts, prepare).await?;
    let id = response_id("resp")?.replacen('-', "_", 1);
    let item_id = id.trim_start_matches("resp_");
    let echo = RequestEcho {
        model: generated.model.clone(),
        max_output_tokens,
        temperature: Some(temperature),
        top_p: Some(top_p),
        ..echo
    };
    let writer = Writer {
        output: Output::new(item_id, tool_use.as_ref().map(|tools| tools.call_ids(&id, 0))),
        parser: tool_use.map(|tools| tools.parser()),
        response: Response::begun(id, unix_seconds(), echo),
        sequence_number: 0,
    };
    if streams {
        return Ok(streams::response(generated, writer));
    }
    let (completions, _) = generated.completions().await?;
    let completion = completions.into_iter().next();
    let (text, finish) = completion.map_or_else(Default::default, |one| (one.text, Some(one.finish)));
    Ok(Json(writer.whole(text, finish.as_ref())).into_response())
}

/// Writes a response, whole or as events.
struct Writer {
    response: Response,
    output: Output,
    /// What finds calls of functions in the text, if there may be some.
    parser: Option<ToolCallParser>,
    sequence_number: u64,
}

impl Writer {
    /// Adds a text of the model.
    fn text(&mut self, text: String, finish: Option<&Finish>, out: &mut Vec<Event>) {
        let mut parsed = match &mut self.parser {
            Some(parser) => parser.push(&text),
            None if text.is_empty() => Vec::new(),
            None => vec![Parsed::Content(text)],
        };
        if let (Some(parser), Some(finish)) = (&mut self.parser, finish) {
            parsed.extend(parser.finish(text_end(finish)));
        }
        parsed.into_iter().for_each(|parsed| self.output.push(parsed, out));
        if let Some(finish) = finish {
            self.finish(finish, out);
        }
    }

    fn finish(&mut self, finish: &Finish, out: &mut Vec<Event>) {
        let status = match finish.reason {
            FinishReason::Length => Status::Incomplete,
            _ => Status::Completed,
        };
        self.output.finish(status, out);
        self.response.output = self.output.items().to_vec();
        self.response.usage = Some((&finish.usage).into());
        self.response.status = status;
        self.response.incomplete_details =
            (status == Status::Incomplete).then_some(IncompleteDetails { reason: "max_output_tokens" });
    }

    fn whole(mut self, text: String, finish: Option<&Finish>) -> Response {
        self.text(text, finish, &mut Vec::new());
        self.response
    }

    fn write(&mut self, events: Vec<Event>) -> Vec<String> {
        let mut write = |event: Event| {
            let (name, sequence_number) = (event.name(), self.sequence_number);
            self.sequence_number += 1;
            sse::named_event(name, &NumberedEvent { event, sequence_number })
        };
        events.into_iter().map(&mut write).collect()
    }

    fn snapshot(&self) -> Box<Response> {
        Box::new(self.response.clone())
    }
}

impl Events for Writer {
    fn begin(&mut self) -> Vec<String> {
        let events =
            vec![Event::Created { response: self.snapshot() }, Event::InProgress { response: self.snapshot() }];
        self.write(events)
    }

    fn chunk(&mut self, _choice: usize, chunk: Chunk) -> Vec<String> {
        let mut events = Vec::new();
        self.text(chunk.text, chunk.finish.as_ref(), &mut events);
        self.write(events)
    }

    fn end(&mut self, _usage: &UsageObject) -> Vec<String> {
        let response = self.snapshot();
        let event = match self.response.status {
            Status::Incomplete => Event::Incomplete { response },
            _ => Event::Completed { response },
        };
        self.write(vec![event])
    }

    fn failed(&mut self, error: &ApiError) -> Vec<String> {
        let mut events = Vec::new();
        self.output.finish(Status::Incomplete, &mut events);
        self.response.output = self.output.items().to_vec();
        self.response.status = Status::Failed;
        self.response.error = Some(ResponseError { code: error.code(), message: error.message().to_owned() });
        events.push(Event::Failed { response: self.snapshot() });
        self.write(events)
    }
}
