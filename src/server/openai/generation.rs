//! From the fields of a request to choices that are generated: what `/v1/completions`, `/v1/chat/completions` and
//! `/v1/responses` share.

use std::borrow::Cow;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Instant;

use serde::Deserialize;
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::finish::UsageObject;
use crate::engine::{Chunk, Completion, Prompt, Request, Tokenizer, random_seed};
use crate::error::{Error, ErrorCode, Result};
use crate::request_settings::RequestSettings;
use crate::server::adapters::{AdapterFields, Selection};
use crate::server::engine_loop::{RequestStream, stopping};
use crate::server::error::{ApiError, ApiResult};
use crate::server::schema::one_object;
use crate::server::state::{AppState, blocking};

/// Fields that change no answer: who asks, and what OpenAI keeps or bills.
pub const WITHOUT_EFFECT: [&str; 10] = [
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prediction",
    "request_id",
    "priority",
];

/// OpenAI's and vLLM's fields for what exlora has other names for.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub struct GenerationFields {
    /// Whether the text is sent as server-sent events while it is generated.
    pub stream: Option<bool>,
    /// Options of such a stream.
    pub stream_options: Option<StreamOptions>,
    /// Largest number of new tokens.
    pub max_tokens: Option<usize>,
    /// The same under OpenAI's newer name.
    pub max_completion_tokens: Option<usize>,
    /// Up to this number of new tokens, nothing else ends the text.
    pub min_tokens: Option<usize>,
    /// Whether the model's end-of-sequence tokens do not end the text.
    pub ignore_eos: Option<bool>,
}

/// The body of a request that generates text: the fields `F` of its route, and those that all routes have.
pub struct GenerationRequest<F>(PhantomData<F>);

impl<F: ToSchema> PartialSchema for GenerationRequest<F> {
    fn schema() -> RefOr<Schema> {
        one_object([F::schema(), GenerationFields::schema(), AdapterFields::schema(), RequestSettings::schema()])
    }
}

impl<F: ToSchema> ToSchema for GenerationRequest<F> {
    fn name() -> Cow<'static, str> {
        F::name().replace("Fields", "Request").into()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((StreamOptions::name().into_owned(), StreamOptions::schema()));
        F::schemas(schemas);
    }
}

/// Options of a stream.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StreamOptions {
    /// Whether the last event before the end has the token counts.
    #[serde(default)]
    pub include_usage: bool,
    /// Whether events are padded against eavesdroppers; they are not.
    #[serde(default)]
    #[expect(dead_code, reason = "accepted, since it changes no answer")]
    pub include_obfuscation: bool,
}

/// The choices of a request, which are being generated: `n` for each prompt, in order.
pub struct Generation {
    /// What the response calls the model.
    pub model: String,
    /// Choices of each prompt.
    pub n: usize,
    /// Number of choices.
    pub choices: usize,
    /// The tokenizer of the request, if there is one.
    pub tokenizer: Option<Arc<Tokenizer>>,
    /// Token ids of each prompt.
    pub prompts: Vec<Vec<u32>>,
    /// Token counts of the choices that ended.
    pub usage: UsageObject,
    stream: RequestStream,
    ended: usize,
    progress: Progress,
}

/// What is counted of a request. Dropped before it ended, it counts as failed.
struct Progress {
    state: Arc<AppState>,
    /// Names the adapters.
    label: String,
    accepted: Instant,
    /// When each choice had its first token.
    first_tokens: Vec<Option<Instant>>,
    /// New tokens of each choice that were counted.
    tokens: Vec<usize>,
    has_ended: bool,
}

/// A request without a prompt: the server's defaults, and what the client's fields change of them.
///
/// # Errors
/// `request_invalid`.
pub fn request_of(
    state: &AppState,
    fields: &GenerationFields,
    settings: &RequestSettings,
    default_max_tokens: usize,
) -> ApiResult<Request> {
    let mut request = state.engine.request("");
    // The engine's own number is for nobody in particular.
    request.max_new_tokens = state.engine.generation_config().new_tokens().unwrap_or(default_max_tokens);
    state.options.defaults.apply(&mut request)?;
    settings.apply(&mut request)?;
    let limits = [fields.max_completion_tokens, fields.max_tokens];
    if let Some(tokens) = limits.into_iter().flatten().next() {
        request.max_new_tokens = tokens;
    }
    if let Some(tokens) = fields.min_tokens {
        request.min_new_tokens = tokens;
    }
    if let Some(ignores) = fields.ignore_eos {
        request.stop_at_eos = !ignores;
    }
    if request.probs > 0 {
        let what = "the field probs is not supported: a response has no place for them";
        let error = Error::new(ErrorCode::SettingUnsupported, what);
        return Err(ApiError::of_field("probs", error.with_hint("use logprobs, or leave the field out")));
    }
    Ok(request)
}

impl Generation {
    /// Checks a request and starts it, once for each prompt.
    ///
    /// # Errors
    /// `queue_full`, `server_stopping`, and those of [`Engine::submit`](crate::Engine::submit).
    pub async fn start(
        state: &Arc<AppState>,
        request: Request,
        prompts: Vec<Prompt>,
        adapters: &AdapterFields,
    ) -> ApiResult<Self> {
        Ok(Self::start_with(state, request, prompts, adapters, |_, _| Ok(())).await?.0)
    }

    /// The same for a request that `prepare` completes once its tokenizer is known, and what that returns.
    ///
    /// # Errors
    /// As [`Generation::start`], and what `prepare` returns.
    pub async fn start_with<T: Send + 'static>(
        state: &Arc<AppState>,
        request: Request,
        prompts: Vec<Prompt>,
        adapters: &AdapterFields,
        prepare: impl FnOnce(&mut Request, Option<&Tokenizer>) -> Result<T> + Send + 'static,
    ) -> ApiResult<(Self, T)> {
        let accepted = Instant::now();
        state.check_accepting()?;
        let n = request.n;
        let choices = n.saturating_mul(prompts.len());
        let bytes = state.prompt_text.check(&prompts)?;
        let admission = state.engine_loop.admit(choices).inspect_err(|_| state.metrics.rejected())?;
        let selection = state.adapters.select(adapters).await?;
        let label = selection.label();
        let Selection { adapters, model } = selection;
        let mut request = Request { adapters, ..request };
        let engine = state.engine.clone();
        let permit = state.prompt_text.permit(bytes).await;
        // Should the client go away meanwhile, what was begun keeps its place and its permit up to its end.
        let check = move || {
            let _permit = permit;
            let tokenizer = engine.tokenizer_for(&request.adapters).ok();
            let prepared = prepare(&mut request, tokenizer.as_deref())?;
            if let Some(tokenizer) = tokenizer.as_ref().filter(|_| request.logprobs > 0) {
                // What the first call makes takes a while.
                tokenizer.piece_bytes(0)?;
            }
            let check = |prompt| engine.check(Request { prompt, ..request.clone() });
            let checked = prompts.into_iter().map(check).collect::<Result<Vec<_>>>()?;
            Ok((checked, tokenizer, prepared, admission))
        };
        let (checked, tokenizer, prepared, admission) = blocking(check).await?;
        let prompts = checked.iter().map(|request| request.prompt_tokens().to_vec()).collect();
        let stream = state.engine_loop.submit(checked, admission)?;
        state.metrics.accepted(&label);
        let progress = Progress {
            state: Arc::clone(state),
            label,
            accepted,
            first_tokens: vec![None; choices],
            tokens: vec![0; choices],
            has_ended: false,
        };
        let usage = UsageObject::default();
        let generation = Self { model, n, choices, tokenizer, prompts, usage, stream, ended: 0, progress };
        Ok((generation, prepared))
    }

    /// The next chunk of any choice, with the choice's index; `None` once all have ended.
    pub async fn next(&mut self) -> Option<ApiResult<(usize, Chunk)>> {
        if self.ended == self.choices {
            return None;
        }
        let Some((choice, chunk)) = self.stream.next().await else { return Some(Err(stopping().into())) };
        Some(chunk.inspect(|chunk| self.count(choice, chunk)).map(|chunk| (choice, chunk)).map_err(ApiError::from))
    }

    /// All choices once they have ended.
    ///
    /// # Errors
    /// That of the first choice that fails.
    pub async fn completions(mut self) -> ApiResult<(Vec<Completion>, UsageObject)> {
        let mut all: Vec<Completion> =
            (0..self.choices).map(|choice| Completion::unfinished(Vec::new(), choice % self.n)).collect();
        while let Some(next) = self.next().await {
            let (choice, chunk) = next?;
            all[choice].append(chunk)?;
        }
        Ok((all, self.usage))
    }

    fn count(&mut self, choice: usize, chunk: &Chunk) {
        let progress = &mut self.progress;
        let metrics = &progress.state.metrics;
        let first = &mut progress.first_tokens[choice];
        if first.is_none() && !chunk.token_ids.is_empty() {
            *first = Some(Instant::now());
            metrics.first_token(&progress.label, progress.accepted.elapsed());
        }
        let counted = &mut progress.tokens[choice];
        let new = match &chunk.finish {
            // Some of them may be no part of the text.
            Some(finish) => finish.usage.completion_tokens.saturating_sub(*counted),
            None => chunk.token_ids.len(),
        };
        *counted += new;
        metrics.generated(&progress.label, new);
        if let Some(finish) = &chunk.finish {
            let generating = first.map_or_else(Default::default, |first| first.elapsed());
            metrics.finished(&progress.label, &finish.usage, generating);
            self.usage.add(&finish.usage, choice.is_multiple_of(self.n));
            self.ended += 1;
            progress.has_ended = self.ended == self.choices;
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if !self.has_ended {
            self.state.metrics.failed(&self.label);
        }
    }
}

/// An id of a response, as OpenAI's begin: `chatcmpl-…`.
///
/// # Errors
/// `io_failed`: the operating system gives no random numbers.
pub fn response_id(prefix: &str) -> Result<String> {
    Ok(format!("{prefix}-{:016x}{:016x}", random_seed()?, random_seed()?))
}
