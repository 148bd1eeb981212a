//! `POST /v1/completions`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::compat_fields::{CompatField, only, same_as};
use super::events::{self, Events};
use super::finish::{UsageObject, finish_reason, stop_reason};
use super::generation::{Generation, response_id};
use super::generation_request::{GenerationBody, GenerationRequest, RouteFields};
use super::logprobs::CompletionLogprobs;
use crate::engine::{Chunk, Completion, Finish, Prompt, StopMatch, TokenLogprobs, Tokenizer};
use crate::error::{Error, ErrorCode};
use crate::request_settings::prompt_embeds_of_json;
use crate::server::client_names::ClientNames;
use crate::server::error::{ApiError, ApiResult, ErrorBody};
use crate::server::json::JsonFields;
use crate::server::sse;
use crate::server::state::{AppState, blocking, unix_seconds};

/// OpenAI's largest number of new tokens where a request does not say.
const DEFAULT_MAX_TOKENS: usize = 16;

/// The fields of a completion alone.
#[derive(Clone, Debug, Deserialize, ToSchema)]
struct CompletionFields {
    /// A text, a list of texts, token ids, or a list of lists of token ids.
    prompt: Option<Value>,
    /// In place of a prompt, vectors in place of token ids, or a list of such prompts: each base64 of a safetensors file with one
    /// tensor of floats, `[tokens, hidden_size]`. Files of torch.save are refused.
    prompt_embeds: Option<Value>,
    /// Number of top log-probabilities for each token.
    logprobs: Option<usize>,
    /// Whether the text begins with the prompt.
    echo: Option<bool>,
}

impl RouteFields for CompletionFields {
    const COMPAT: &'static [CompatField] = &[
        same_as("best_of", "n", "every choice is returned; use n"),
        only("suffix", &["\"\""], "leave it out: the model does not fill gaps"),
        only("response_format", &["{\"type\": \"text\"}"], "use json_schema or json_object"),
        only("parallel_tool_calls", &["true"], "tools are those of /v1/chat/completions"),
    ];
}

impl CompletionFields {
    /// Checks that the prompts can be repeated in the text, if they are to be.
    fn check_echo(&self) -> ApiResult<()> {
        let (what, hint) = match (self.echo.unwrap_or(false), &self.logprobs, &self.prompt_embeds) {
            (true, Some(_), _) => ("echo has no log-probabilities of the prompt", "leave out echo or logprobs"),
            (true, None, Some(_)) => ("echo is not supported with prompt_embeds: they have no text", "leave out echo"),
            _ => return Ok(()),
        };
        Err(ApiError::of_field("echo", Error::new(ErrorCode::SettingUnsupported, what).with_hint(hint)))
    }

    /// The prompts: of the one field or the other, which `names` is told.
    async fn prompts(self, state: &AppState, names: &mut ClientNames) -> ApiResult<Vec<Prompt>> {
        match (self.prompt, self.prompt_embeds) {
            (prompt, Some(embeds)) if prompt.as_ref().is_none_or(is_nothing) => {
                names.add("prompt", "prompt_embeds");
                embeds_of(state, embeds).await
            }
            (_, Some(_)) => {
                let what = "prompt_embeds and a prompt are given";
                let error = Error::new(ErrorCode::RequestInvalid, what).with_hint("leave one of them out");
                Err(ApiError::of_field("prompt_embeds", error))
            }
            (Some(prompt), None) => prompts_of(prompt),
            (None, None) => {
                let error = Error::new(ErrorCode::RequestInvalid, "prompt is missing");
                Err(ApiError::of_field("prompt", error.with_hint("send a prompt, or prompt_embeds")))
            }
        }
    }
}

/// A completion of a prompt.
#[derive(Debug, Serialize, ToSchema)]
struct CompletionChoice {
    index: usize,
    text: String,
    logprobs: Option<CompletionLogprobs>,
    /// `stop` or `length`; null while the text is generated.
    finish_reason: Option<&'static str>,
    /// The stop string or token that was found.
    #[schema(value_type = Option<Value>)]
    stop_reason: Option<StopMatch>,
    /// Seed of the choice's random numbers, once it has ended.
    seed: Option<u64>,
}

/// Completions, or a part of them.
#[derive(Debug, Serialize, ToSchema)]
struct CompletionObject {
    id: String,
    object: &'static str,
    /// Seconds since 1970.
    created: u64,
    model: String,
    choices: Vec<CompletionChoice>,
    /// Token counts.
    usage: Option<UsageObject>,
}

/// The body of a request, for the OpenAPI document.
type CompletionRequest = GenerationRequest<CompletionFields>;

/// Completes texts.
#[utoipa::path(
    post,
    path = "/v1/completions",
    operation_id = "create_completion",
    tag = "openai",
    request_body = CompletionRequest,
    responses(
        (status = 200, description = "the completions, or events with their parts", body = CompletionObject),
        (status = 400, description = "the request is wrong", body = ErrorBody),
        (status = 404, description = "no such adapter", body = ErrorBody),
        (status = 429, description = "too many requests wait", body = ErrorBody),
    )
)]
pub async fn complete(State(state): State<Arc<AppState>>, fields: JsonFields) -> ApiResult<Response> {
    let body: GenerationBody<CompletionFields> = GenerationBody::read(fields)?;
    let (streams, include_usage) = (body.streams, body.includes_usage);
    let (mut client, own) = body.into_request(&state, DEFAULT_MAX_TOKENS)?;
    // 0 asks for the log-probabilities of the chosen tokens alone.
    client.request.logprobs = own.logprobs.map_or(0, |top| top.max(1));
    own.check_echo()?;
    let (logprobs, echo) = (own.logprobs, own.echo.unwrap_or(false));
    let skip_special_tokens = client.request.skip_special_tokens;
    let prompts = own.prompts(&state, &mut client.names).await?;
    let generation = Generation::start(&state, client, prompts).await?;
    let echoed = match echo {
        true => echoed(&generation, skip_special_tokens)?,
        false => Vec::new(),
    };
    let writer = Writer {
        id: response_id("cmpl")?,
        created: unix_seconds(),
        model: generation.model.clone(),
        n: generation.n,
        tokenizer: generation.tokenizer.clone().filter(|_| logprobs.is_some()),
        top: logprobs.unwrap_or(0),
        include_usage,
        offsets: vec![0; generation.choices],
        echoed,
    };
    if streams {
        return Ok(events::response(generation, writer));
    }
    let (completions, usage) = generation.completions().await?;
    Ok(Json(writer.whole(completions, usage)).into_response())
}

/// The prompts of a request.
fn prompts_of(prompt: Value) -> ApiResult<Vec<Prompt>> {
    let expected = || {
        let error = Error::new(ErrorCode::RequestInvalid, "prompt has a wrong value");
        let forms = "a text, a list of texts, token ids, or a list of lists of token ids";
        ApiError::of_field("prompt", error.with_expected(forms))
    };
    let ids = |ids: &[Value]| {
        let ids = ids.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()));
        ids.collect::<Option<Vec<u32>>>().map(Prompt::Tokens).ok_or_else(expected)
    };
    match prompt {
        Value::String(text) => Ok(vec![Prompt::Text(text)]),
        Value::Array(items) if items.is_empty() => Err(expected()),
        Value::Array(items) if items.iter().all(Value::is_number) => Ok(vec![ids(&items)?]),
        Value::Array(items) => {
            let one = |item: Value| match item {
                Value::String(text) => Ok(Prompt::Text(text)),
                Value::Array(numbers) => ids(&numbers),
                _ => Err(expected()),
            };
            items.into_iter().map(one).collect()
        }
        _ => Err(expected()),
    }
}

/// Whether a prompt is one that clients send beside `prompt_embeds`.
fn is_nothing(prompt: &Value) -> bool {
    match prompt {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

/// The prompts of a request that are vectors. Large ones are read one at a time, as large texts are encoded.
async fn embeds_of(state: &AppState, embeds: Value) -> ApiResult<Vec<Prompt>> {
    let items = match embeds {
        Value::Array(items) if !items.is_empty() => items,
        one => vec![one],
    };
    let bytes = items.iter().filter_map(Value::as_str).map(str::len).sum();
    let permit = state.prompt_text.permit(bytes).await;
    let read = move || {
        let _permit = permit;
        items.iter().map(|item| Ok(Prompt::from(prompt_embeds_of_json("prompt_embeds", item)?))).collect()
    };
    Ok(blocking(read).await?)
}

/// The texts of the prompts.
fn echoed(generation: &Generation, skip_special_tokens: bool) -> ApiResult<Vec<String>> {
    let tokenizer = generation.tokenizer.as_ref().ok_or_else(|| {
        ApiError::of_field("echo", Error::new(ErrorCode::TokenizerNotFound, "echo needs a tokenizer"))
    })?;
    let decode = |prompt: &Vec<u32>| Ok(tokenizer.decode(prompt, skip_special_tokens)?);
    generation.prompts.iter().map(decode).collect()
}

/// Writes choices as OpenAI has them.
struct Writer {
    id: String,
    created: u64,
    model: String,
    n: usize,
    /// Of log-probabilities, if they were asked for.
    tokenizer: Option<Arc<Tokenizer>>,
    top: usize,
    include_usage: bool,
    /// Characters of each choice's tokens so far.
    offsets: Vec<usize>,
    /// The texts of the prompts, until the first choices have begun with them.
    echoed: Vec<String>,
}

impl Writer {
    fn choice(
        &mut self,
        index: usize,
        text: String,
        ids: &[u32],
        logprobs: &[TokenLogprobs],
        finish: Option<&Finish>,
    ) -> CompletionChoice {
        let (top, offset) = (self.top, &mut self.offsets[index]);
        let logprobs =
            self.tokenizer.as_ref().map(|tokenizer| CompletionLogprobs::of(ids, logprobs, offset, top, tokenizer));
        CompletionChoice {
            index,
            text,
            logprobs,
            finish_reason: finish.map(finish_reason),
            stop_reason: finish.and_then(stop_reason),
            seed: finish.map(|finish| finish.seed),
        }
    }

    fn object(&self, choices: Vec<CompletionChoice>, usage: Option<UsageObject>) -> CompletionObject {
        let (id, model) = (self.id.clone(), self.model.clone());
        CompletionObject { id, object: "text_completion", created: self.created, model, choices, usage }
    }

    fn whole(mut self, completions: Vec<Completion>, usage: UsageObject) -> CompletionObject {
        let mut choices = Vec::with_capacity(completions.len());
        for (index, completion) in completions.into_iter().enumerate() {
            let echoed = self.echoed.get(index / self.n).map_or("", String::as_str);
            let text = format!("{echoed}{}", completion.text);
            let (ids, logprobs) = (&completion.token_ids, &completion.logprobs);
            choices.push(self.choice(index, text, ids, logprobs, Some(&completion.finish)));
        }
        self.object(choices, Some(usage))
    }
}

impl Events for Writer {
    fn begin(&mut self) -> Vec<String> {
        let begin = |index: usize| {
            let text = self.echoed.get(index / self.n)?.clone();
            Some((index, text))
        };
        let echoes: Vec<(usize, String)> = (0..self.offsets.len()).filter_map(begin).collect();
        let event = |(index, text)| {
            let choice = self.choice(index, text, &[], &[], None);
            sse::event(&self.object(vec![choice], None))
        };
        echoes.into_iter().map(event).collect()
    }

    fn chunk(&mut self, index: usize, chunk: Chunk) -> Vec<String> {
        let has_logprobs = self.tokenizer.is_some() && !chunk.logprobs.is_empty();
        if chunk.text.is_empty() && chunk.finish.is_none() && !has_logprobs {
            return Vec::new();
        }
        let choice = self.choice(index, chunk.text, &chunk.token_ids, &chunk.logprobs, chunk.finish.as_ref());
        vec![sse::event(&self.object(vec![choice], None))]
    }

    fn end(&mut self, usage: &UsageObject) -> Vec<String> {
        let usage = self.include_usage.then(|| sse::event(&self.object(Vec::new(), Some(*usage))));
        usage.into_iter().chain([sse::DONE.to_owned()]).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_prompt_has_four_forms() {
        let read = |value: Value| prompts_of(value).ok();
        assert_eq!(read(json!("a")), Some(vec![Prompt::Text("a".into())]));
        assert_eq!(read(json!(["a", "b"])), Some(vec![Prompt::Text("a".into()), Prompt::Text("b".into())]));
        assert_eq!(read(json!([1, 2])), Some(vec![Prompt::Tokens(vec![1, 2])]));
        assert_eq!(read(json!([[1], [2, 3]])), Some(vec![Prompt::Tokens(vec![1]), Prompt::Tokens(vec![2, 3])]));
        for wrong in [json!(null), json!(3), json!([]), json!([1, "a"]), json!([-1]), json!([1.5]), json!([[1], 2])] {
            assert_eq!(read(wrong.clone()), None, "{wrong}");
        }
    }
}
