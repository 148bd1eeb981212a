//! The engine: requests in, chunks out (continuous batching).
//!
//! Nothing runs in the background. A thread that waits for a chunk computes steps for all requests ([`Job::next_chunk`]); a
//! server may instead call [`Engine::step`] in a loop of its own. All methods may be called from any thread. Adapters may be
//! loaded and unloaded while requests run, and a request keeps the adapter versions that it named.

mod as_completed;
mod banned_text;
mod checked_request;
mod constraint;
mod draft;
mod draft_source;
mod encoded_prompt;
mod engine_core;
#[cfg(test)]
mod faulty_compute;
mod generate;
mod generation_config;
mod guidance;
mod in_flight;
mod job;
mod job_state;
mod options;
mod output;
mod post_sampling;
mod request;
mod sampler;
mod sampling_params;
mod scheduler;
mod seed;
mod sequence;
mod sequence_cache;
mod sequence_copies;
mod sequence_kv;
mod sequence_rows;
mod sequence_states;
mod stats;
mod text;
mod token_mask;
mod turns;

use std::path::Path;
use std::sync::Arc;

use crate::adapter::pool::AdapterInfo;
use crate::backend::BackendMemory;
use crate::error::{Error, ErrorCode, Result};
use crate::kv_cache::{PAGE_TOKENS, pages_for};
use crate::model::batch::StepLimits;
use crate::model::{LoadHooks, Model, ModelOptions, Progress};
use draft::Drafts;
use engine_core::EngineCore;
use output::no_memory_for_logits;
use scheduler::{DraftModel, Scheduler};
use sequence::{Purpose, Sequence};

pub use as_completed::AsCompleted;
pub use checked_request::CheckedRequest;
pub use constraint::{FilterTokens, Filters, Grammar, MAX_GRAMMAR_BYTES, TokenFilter};
pub use draft_source::DraftModelSource;
pub use generate::{Refused, with_index};
pub use generation_config::{GenerationConfig, GenerationConfigSource};
pub use in_flight::{Finished, InFlight, samples_of};
pub use job::{CancelHandle, Job};
pub use options::{DEFAULT_DRAFT_TOKENS, DEFAULT_KV_TOKENS, DEFAULT_PREFILL_CHUNK, EngineOptions};
pub use output::{Chunk, Completion, Finish, FinishReason, Logits, StopMatch, TokenLogprobs, TokenProbs, Usage};
pub use post_sampling::{PostSampling, PostSamplingHook};
pub use request::{
    AdapterRef, DEFAULT_MAX_NGRAM, MAX_DRAFT_TOKENS, MAX_NGRAM, MAX_SAMPLES, MAX_STOP_STRING_BYTES, MAX_STOP_STRINGS,
    Prompt, PromptPart, Request, Stop,
};
pub use sampler::{Context, Sampled, Sampler, SamplerState, TopCounts, guide};
pub use sampling_params::SamplingParams;
pub use seed::random_seed;
pub use sequence_cache::{SequenceCache, SequenceChunk};
pub use stats::{DeviceStats, EngineStats};
pub use text::{AdapterTokenizer, ChatMessage, ChatOptions, Tokenizer};
pub use token_mask::TokenMask;

/// The part of a device's free memory that a KV cache takes by default, as a fraction. The rest is for adapters, and for the
/// buffers of steps that are larger with them.
const KV_SHARE: (usize, usize) = (17, 20);

/// A model, a KV cache and a scheduler. Cheap to clone; clones share everything. All methods may be called from any thread.
#[derive(Clone)]
pub struct Engine {
    core: Arc<EngineCore>,
    tokenizer: Option<Arc<Tokenizer>>,
    /// Positions that a sequence can reach as far as the model is concerned.
    max_seq_len: usize,
    kv_pages: usize,
    generation_config: Arc<GenerationConfig>,
    /// Requests that run at once.
    max_rows: usize,
    /// The model that drafts, if there is one.
    draft_model: Option<Arc<Model>>,
    /// Largest number of tokens drafted for a step, where the request doesn't say.
    num_draft_tokens: usize,
}

impl Engine {
    /// Loads a model folder and its tokenizer.
    ///
    /// # Errors
    /// Any `checkpoint_*`, `quant_*` or `model_*` code, `tokenizer_invalid`, `memory_exhausted`.
    pub fn load(model: impl AsRef<Path>, options: EngineOptions) -> Result<Self> {
        Self::load_with_progress(model, options, &mut |_| Ok(()))
    }

    /// As [`Engine::load`], reporting progress; an error from `progress` stops the loading.
    ///
    /// # Errors
    /// As [`Engine::load`], and what `progress` returned.
    pub fn load_with_progress(
        model: impl AsRef<Path>,
        options: EngineOptions,
        progress: &mut dyn FnMut(Progress) -> Result<()>,
    ) -> Result<Self> {
        options.check()?;
        let dir = model.as_ref();
        let model_options = options.model_options();
        // An unusable one is reported before the model takes its time to load.
        let generation_config = GenerationConfig::read(options.generation_config.as_ref(), dir)?;
        let model = Model::load(dir, &model_options, progress)?;
        let tokenizer = Tokenizer::open(dir)?.map(Arc::new);
        Self::with_generation_config(model, tokenizer, &options, generation_config, progress)
    }

    /// An engine with its own KV cache over a loaded model, which other engines may share.
    ///
    /// # Errors
    /// `memory_exhausted`; `request_invalid` or `model_feature_unsupported` for `max_seq_len`; for the generation config
    /// `checkpoint_not_found`, `model_config_invalid`, `sampling_invalid`, `request_invalid` or `setting_unsupported`.
    pub fn from_model(model: Arc<Model>, tokenizer: Option<Arc<Tokenizer>>, options: EngineOptions) -> Result<Self> {
        let generation_config = GenerationConfig::read(options.generation_config.as_ref(), model.path())?;
        Self::with_generation_config(model, tokenizer, &options, generation_config, &mut |_| Ok(()))
    }

    fn with_generation_config(
        model: Arc<Model>,
        tokenizer: Option<Arc<Tokenizer>>,
        options: &EngineOptions,
        generation_config: GenerationConfig,
        progress: &mut dyn FnMut(Progress) -> Result<()>,
    ) -> Result<Self> {
        options.check()?;
        let max_seq_len = match options.max_seq_len {
            Some(asked) => model.config().max_seq_len(Some(asked))?,
            None => model.max_seq_len(),
        };
        let draft_model = match &options.draft_model {
            None => None,
            Some(source) => {
                let model_options = ModelOptions { max_seq_len: None, ..options.model_options() };
                Some(source.open(&model, tokenizer.as_deref(), &model_options, progress)?)
            }
        };
        let limits = StepLimits {
            sequences: options.max_rows,
            prompt_tokens: options.prefill_chunk,
            max_seq_len: options.kv_tokens.map_or(max_seq_len, |tokens| max_seq_len.min(tokens)),
        };
        for model in std::iter::once(&model).chain(&draft_model) {
            model.reserve_steps(&limits, options.kv_dtype)?;
        }
        let pages = match options.kv_tokens {
            Some(tokens) => pages_for(tokens),
            None => default_kv_pages(&model, draft_model.as_deref(), options, max_seq_len)?,
        };
        generation_config.check(model.config().vocab_size, max_seq_len.min(pages * PAGE_TOKENS))?;
        let kv = model.create_kv(pages, options.kv_dtype).map_err(|error| with_what_fits(error, &model, options))?;
        let drafting = draft_model.clone().map(|model| DraftModel::new(model, pages, options)).transpose()?;
        let scheduler = Scheduler::new(kv, drafting, options)?;
        Ok(Self {
            core: Arc::new(EngineCore::new(model, scheduler)),
            tokenizer,
            max_seq_len,
            kv_pages: pages,
            generation_config: Arc::new(generation_config),
            max_rows: options.max_rows.max(1),
            draft_model,
            num_draft_tokens: options.num_draft_tokens.min(MAX_DRAFT_TOKENS),
        })
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        self.core.model()
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// `tokenizer_not_found`.
    pub fn tokenizer(&self) -> Result<&Arc<Tokenizer>> {
        self.tokenizer.as_ref().ok_or_else(|| {
            Error::new(ErrorCode::TokenizerNotFound, "the model folder has no tokenizer.json")
                .with_path(self.model().path())
        })
    }

    /// A request with the defaults of the generation config that the engine was opened with.
    ///
    /// ```
    /// use exlora::{Engine, EngineOptions, GenerationConfigSource};
    ///
    /// let options = EngineOptions { generation_config: Some(GenerationConfigSource::Auto), ..Default::default() };
    /// let engine = Engine::load("tests/fixtures/quill-4m", options)?;
    /// assert_eq!(engine.request("Once upon a time").max_new_tokens, 64); // as its generation_config.json says
    /// # Ok::<(), exlora::Error>(())
    /// ```
    pub fn request(&self, prompt: impl Into<Prompt>) -> Request {
        let mut request = Request::new(prompt);
        self.generation_config.apply(&mut request);
        request
    }

    /// The generation config that the engine was opened with.
    pub fn generation_config(&self) -> &GenerationConfig {
        &self.generation_config
    }

    /// Positions that a sequence can reach: `max_seq_len`, or those of the cache if that is smaller.
    pub fn max_tokens(&self) -> usize {
        self.max_seq_len.min(self.kv_pages * PAGE_TOKENS)
    }

    /// Largest number of requests that run at once.
    pub fn max_rows(&self) -> usize {
        self.max_rows
    }

    /// Loads an adapter under a name, or replaces the adapter of that name. Running requests keep the version they have.
    /// If the adapter's folder has a tokenizer, its requests use it.
    ///
    /// # Errors
    /// Any `adapter_*` code, `tokenizer_invalid`; nothing has changed then.
    pub fn load_adapter(&self, name: &str, dir: impl AsRef<Path>) -> Result<AdapterInfo> {
        self.load_adapter_with(name, dir, &mut || Ok(()))
    }

    /// As [`Engine::load_adapter`]; an error from `between_parts` (Ctrl-C) ends the loading.
    ///
    /// # Errors
    /// As [`Engine::load_adapter`], and what `between_parts` returned.
    pub fn load_adapter_with(
        &self,
        name: &str,
        dir: impl AsRef<Path>,
        between_parts: &mut dyn FnMut() -> Result<()>,
    ) -> Result<AdapterInfo> {
        self.load_adapter_hooked(name, dir.as_ref(), &mut LoadHooks { between_parts, make_room: &mut || false })
    }

    /// As [`Engine::load_adapter`], with all hooks.
    pub(crate) fn load_adapter_hooked(&self, name: &str, dir: &Path, hooks: &mut LoadHooks<'_>) -> Result<AdapterInfo> {
        let tokenizer = || AdapterTokenizer::attachment(dir, self.tokenizer.as_ref());
        self.model().load_adapter_attaching(name, dir, hooks, tokenizer)
    }

    /// Removes an adapter's name. Running requests keep the adapter.
    ///
    /// # Errors
    /// `adapter_not_found`.
    pub fn unload_adapter(&self, name: &str) -> Result<()> {
        self.model().unload_adapter(name)
    }

    /// The named adapters, sorted by name. Never waits for a step.
    pub fn adapters(&self) -> Vec<AdapterInfo> {
        self.model().adapters().list()
    }

    /// The model that drafts tokens, if the engine was opened with one.
    pub fn draft_model(&self) -> Option<&Arc<Model>> {
        self.draft_model.as_ref()
    }

    /// As [`Engine::load_adapter`], for the draft model: adapters of [`Request::draft_adapters`].
    ///
    /// # Errors
    /// As [`Engine::load_adapter`]; `request_invalid`: there is no draft model.
    pub fn load_draft_adapter(&self, name: &str, dir: impl AsRef<Path>) -> Result<AdapterInfo> {
        self.load_draft_adapter_with(name, dir, &mut || Ok(()))
    }

    /// As [`Engine::load_draft_adapter`]; an error from `between_parts` (Ctrl-C) ends the loading.
    ///
    /// # Errors
    /// As [`Engine::load_draft_adapter`], and what `between_parts` returned.
    pub fn load_draft_adapter_with(
        &self,
        name: &str,
        dir: impl AsRef<Path>,
        between_parts: &mut dyn FnMut() -> Result<()>,
    ) -> Result<AdapterInfo> {
        self.expect_draft_model()?.load_adapter_with(name, dir.as_ref(), between_parts)
    }

    /// As [`Engine::unload_adapter`], for the draft model.
    ///
    /// # Errors
    /// `adapter_not_found`; `request_invalid`: there is no draft model.
    pub fn unload_draft_adapter(&self, name: &str) -> Result<()> {
        self.expect_draft_model()?.unload_adapter(name)
    }

    fn expect_draft_model(&self) -> Result<&Arc<Model>> {
        self.draft_model.as_ref().ok_or_else(|| {
            Error::new(ErrorCode::RequestInvalid, "the engine has no draft model")
                .with_hint("open the engine with draft_model")
        })
    }

    /// Checks a request, leases its adapters and queues it. Never waits for a step.
    ///
    /// # Errors
    /// `adapter_not_found`, `adapter_weight_invalid`, `adapter_model_mismatch`, `prompt_*`, `sampling_invalid`,
    /// `constraint_invalid`, `token_out_of_range`, `request_invalid` (also for more than one sample), `tokenizer_not_found`,
    /// `chat_template_*`.
    pub fn submit(&self, request: Request) -> Result<Job> {
        if request.n > 1 {
            return Err(Error::new(ErrorCode::RequestInvalid, "a job has one sample")
                .with_expected("n = 1")
                .with_found(request.n)
                .with_hint("submit the request several times, or use generate or as_completed"));
        }
        Ok(self.start_sample(&self.check(request)?, 0))
    }

    /// Computes one step for all requests; `false` if there was nothing to do.
    ///
    /// # Errors
    /// `internal`: the scheduler panicked; every request ends with that error. What else goes wrong ends only the requests that
    /// cannot be computed, and reaches those who wait for them.
    pub fn step(&self) -> Result<bool> {
        self.core.step()
    }

    /// Logits of every position of a prompt under a mixture.
    ///
    /// # Errors
    /// As [`Engine::submit`].
    pub fn logits(&self, prompt: &Prompt, adapters: &[(AdapterRef, f32)]) -> Result<Logits> {
        self.logits_with(prompt, adapters, &mut || Ok(()))
    }

    /// As [`Engine::logits`]; an error from `between_steps` (Ctrl-C) ends the request.
    ///
    /// # Errors
    /// As [`Engine::logits`], and what `between_steps` returned.
    pub fn logits_with(
        &self,
        prompt: &Prompt,
        adapters: &[(AdapterRef, f32)],
        between_steps: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Logits> {
        let (mixture, text) = self.lease(adapters)?;
        let prompt = self.encode(&text, prompt, true, &ChatOptions::default())?;
        let plan = self.plan(&mixture, &prompt)?;
        let tokens = prompt.tokens;
        let (tokens_len, vocab) = (tokens.len(), plan.vocab);
        // All of it now, so that no step has to find memory.
        let mut values = Vec::new();
        let size = tokens_len.checked_mul(vocab).ok_or_else(no_memory_for_logits)?;
        values.try_reserve_exact(size).map_err(|_| no_memory_for_logits())?;
        let state = self.core.new_job(mixture.into_leases(), &Arc::default());
        let sequence = Sequence::new(state, Purpose::PromptLogits(values), tokens.clone(), plan, Drafts::off());
        let mut job = self.enqueue(sequence, tokens.into(), 0);
        let mut values = Vec::new();
        while let Some(chunk) = job.next_chunk_with(between_steps)? {
            values = chunk.logits;
        }
        Ok(Logits { values, tokens: tokens_len, vocab })
    }

    /// Counters and resident bytes. Never waits for a step: while one runs, what the scheduler counts is as it was before.
    pub fn stats(&self) -> EngineStats {
        let scheduler = self.core.stats();
        let memory = self.model().memory();
        let models = || std::iter::once(self.model()).chain(&self.draft_model);
        let bytes = |of: fn(&BackendMemory) -> usize| models().map(|model| of(&model.memory())).sum();
        EngineStats {
            weights_bytes: bytes(|memory| memory.weights_bytes),
            adapters_bytes: bytes(|memory| memory.adapters_bytes),
            adapters_resident: models().map(|model| model.adapters().resident()).sum(),
            leases: models().map(|model| model.adapters().leases()).sum(),
            kv_bytes: bytes(|memory| memory.kv_bytes),
            kv_pages_total: scheduler.kv_pages_total,
            kv_pages_free: scheduler.kv_pages_free,
            prefix_pages: scheduler.prefix_pages,
            rows_running: scheduler.rows_running,
            rows_waiting: scheduler.rows_waiting,
            tokens_prompt: scheduler.steps.tokens_prompt,
            tokens_generated: scheduler.steps.tokens_generated,
            steps: scheduler.steps.steps,
            accepted_draft_tokens: scheduler.steps.accepted_draft_tokens,
            rejected_draft_tokens: scheduler.steps.rejected_draft_tokens,
            device: DeviceStats::of(&memory),
        }
    }

    /// Forgets all cached prefixes.
    pub fn clear_prefix_cache(&self) {
        self.core.clear_prefixes();
    }

    /// The tokenizer that requests with these adapters use: the first adapter's that has one, else the base's.
    ///
    /// # Errors
    /// `tokenizer_not_found`, `adapter_not_found`, `adapter_model_mismatch`, `adapter_weight_invalid`,
    /// `adapter_mixture_invalid`.
    pub fn tokenizer_for(&self, adapters: &[(AdapterRef, f32)]) -> Result<Arc<Tokenizer>> {
        match self.lease(adapters)?.1.tokenizer {
            Some(tokenizer) => Ok(tokenizer),
            None => self.tokenizer().cloned(),
        }
    }
}

/// KV pages where the caller names no number of tokens: on a device of its own memory what that holds, but no more than all
/// rows at their longest need. A draft model gets as many pages of its own.
fn default_kv_pages(
    model: &Model,
    draft_model: Option<&Model>,
    options: &EngineOptions,
    max_seq_len: usize,
) -> Result<usize> {
    let Some(free) = model.kv_pages_in_free_memory(options.kv_dtype)? else {
        return Ok(pages_for(DEFAULT_KV_TOKENS.max(options.max_seq_len.unwrap_or(0))));
    };
    let most = options.max_rows.saturating_mul(pages_for(max_seq_len));
    let page_bytes = |model: &Model| model.kv_page_bytes(options.kv_dtype) as f64;
    let own_share = page_bytes(model) / (page_bytes(model) + draft_model.map_or(0.0, page_bytes));
    let free = (free as f64 * own_share) as usize;
    Ok((free.saturating_mul(KV_SHARE.0) / KV_SHARE.1).min(most).max(1))
}

/// Adds to the error of a cache that is too large for a device which one is not.
fn with_what_fits(error: Error, model: &Model, options: &EngineOptions) -> Error {
    match model.kv_pages_in_free_memory(options.kv_dtype) {
        _ if error.code() != ErrorCode::MemoryExhausted => error,
        Ok(Some(pages)) => error
            .with_subject("the KV cache")
            .with_hint(format!("at most a cache of {} tokens fits: set kv_tokens", pages * PAGE_TOKENS)),
        _ => error.with_subject("the KV cache").with_hint("set a smaller kv_tokens or max_seq_len"),
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("model", self.model()).finish_non_exhaustive()
    }
}
