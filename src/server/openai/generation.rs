//! From a request to choices that are generated: what `/v1/completions`, `/v1/chat/completions` and `/v1/responses` share.

use std::sync::Arc;
use std::time::Instant;

use super::finish::UsageObject;
use super::generation_request::ClientRequest;
use crate::engine::{CheckedRequest, Chunk, Completion, Engine, Prompt, Request, Tokenizer, random_seed};
use crate::error::{Error, ErrorCode, Result};
use crate::server::adapters::Selection;
use crate::server::engine_loop::{RequestStream, stopping};
use crate::server::error::{ApiError, ApiResult};
use crate::server::state::{AppState, blocking};

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

impl Generation {
    /// Checks a request and starts it, once for each prompt.
    ///
    /// # Errors
    /// `queue_full`, `server_stopping`, and those of [`Engine::submit`](crate::Engine::submit).
    pub async fn start(state: &Arc<AppState>, request: ClientRequest, prompts: Vec<Prompt>) -> ApiResult<Self> {
        Ok(Self::start_with(state, request, prompts, |_, _| Ok(())).await?.0)
    }

    /// The same for a request that `prepare` completes once its tokenizer is known, and what that returns.
    ///
    /// # Errors
    /// As [`Generation::start`], and what `prepare` returns.
    pub async fn start_with<T: Send + 'static>(
        state: &Arc<AppState>,
        request: ClientRequest,
        prompts: Vec<Prompt>,
        prepare: impl FnOnce(&mut Request, Option<&Tokenizer>) -> Result<T> + Send + 'static,
    ) -> ApiResult<(Self, T)> {
        let accepted = Instant::now();
        state.check_accepting()?;
        let ClientRequest { request, adapters, names, limits_new_tokens } = request;
        let of_client = |error: Error| ApiError::from(state.client_paths.error(names.error(error)));
        let n = request.n;
        let choices = n.saturating_mul(prompts.len());
        let bytes = state.prompt_text.check(&prompts).map_err(|error| of_client(error.with_setting("prompt")))?;
        let admission = state.engine_loop.admit(choices).inspect_err(|_| state.metrics.rejected());
        let admission = admission.map_err(|error| of_client(about_choices(error, n, prompts.len())))?;
        let selection = state.adapters.select(&adapters).await;
        let selection = selection.map_err(|error| of_client(adapters.error(error)))?;
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
            let checked = check_all(&engine, &request, prompts, limits_new_tokens)?;
            Ok((checked, tokenizer, prepared, admission))
        };
        let (checked, tokenizer, prepared, admission) = blocking(check).await.map_err(of_client)?;
        let prompts = checked.iter().map(|request| request.prompt_tokens().to_vec()).collect();
        let stream = state.engine_loop.submit(checked, admission)?;
        state.metrics.accepted(&label);
        let progress = Progress::new(Arc::clone(state), label, accepted, choices);
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

impl Progress {
    fn new(state: Arc<AppState>, label: String, accepted: Instant, choices: usize) -> Self {
        let (first_tokens, tokens) = (vec![None; choices], vec![0; choices]);
        Self { state, label, accepted, first_tokens, tokens, has_ended: false }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if !self.has_ended {
            self.state.metrics.failed(&self.label);
        }
    }
}

/// Checks a request with each of its prompts; where the client limits new tokens, also that so many fit.
fn check_all(
    engine: &Engine,
    request: &Request,
    prompts: Vec<Prompt>,
    limits_new_tokens: bool,
) -> Result<Vec<CheckedRequest>> {
    let check = |prompt| {
        let checked = engine.check(Request { prompt, ..request.clone() })?;
        if limits_new_tokens {
            checked.check_room()?;
        }
        Ok(checked)
    };
    prompts.into_iter().map(check).collect()
}

/// The error of a request that asks for more choices than there may be, by the field that there is too much of: `n`, or the
/// prompts, of which each has `n`. A full queue is no field's fault.
fn about_choices(error: Error, n: usize, prompts: usize) -> Error {
    match error.code() {
        ErrorCode::RequestInvalid if prompts > n => {
            let found =
                if n == 1 { format!("{prompts} prompts") } else { format!("{prompts} prompts, n = {n} of each") };
            error.with_setting("prompt").with_found(found)
        }
        ErrorCode::RequestInvalid => error.with_setting("n"),
        _ => error,
    }
}

/// An id of a response, as OpenAI's begin: `chatcmpl-…`.
///
/// # Errors
/// `io_failed`: the operating system gives no random numbers.
pub fn response_id(prefix: &str) -> Result<String> {
    Ok(format!("{prefix}-{:016x}{:016x}", random_seed()?, random_seed()?))
}
