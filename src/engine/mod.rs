//! The engine: requests in, chunks out.
//!
//! Nothing runs in the background: whoever waits for a chunk computes steps for everybody ([`Job::next_chunk`]), and a
//! server may call [`Engine::step`] in a loop of its own. All methods may be called from any thread; adapters come and go
//! while requests run, and a request keeps the generations it named.

mod job;
pub mod request;
pub mod sampler;
mod scheduler;
mod sequence;
pub mod text;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use crate::adapter::mixture::Mixture;
use crate::adapter::pool::{AdapterInfo, AdapterLimits};
use crate::backend::KvDType;
use crate::error::{Error, ErrorCode, Result};
use crate::kv::{PAGE_TOKENS, pages_for};
use crate::model::{Device, Model, ModelOptions, Progress};
use job::JobShared;
use request::{AdapterRef, Completion, Prompt, Request, Stop};
use scheduler::Scheduler;
use sequence::{Generation, Purpose, Sequence, Walk};
use text::{StopStrings, Tokenizer};

pub use job::Job;

/// Tokens of a KV cache where nothing else is said.
pub const DEFAULT_KV_TOKENS: usize = 8192;

/// Options of [`Engine::load`].
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Where the model runs.
    pub device: Device,
    /// CPU threads; all physical cores by default.
    pub threads: Option<usize>,
    /// Element type of cached keys and values.
    pub kv_dtype: KvDType,
    /// Tokens the KV cache holds over all requests; [`DEFAULT_KV_TOKENS`] by default. Memory is touched as it is used.
    pub kv_tokens: Option<usize>,
    /// Largest number of requests that run at once; further ones wait.
    pub max_rows: usize,
    /// Largest number of prompt tokens a step computes.
    pub prefill_chunk: usize,
    /// Whether prefixes are found in the cache.
    pub prefix_cache: bool,
    /// Limits of resident adapters.
    pub adapter_limits: AdapterLimits,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            device: Device::Auto,
            threads: None,
            kv_dtype: KvDType::F16,
            kv_tokens: None,
            max_rows: 32,
            prefill_chunk: 512,
            prefix_cache: true,
            adapter_limits: AdapterLimits::default(),
        }
    }
}

/// Counters and resident bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct EngineStats {
    /// Packed weights.
    pub weights_bytes: usize,
    /// Adapters in slots.
    pub adapters_bytes: usize,
    /// Generations in slots, retired ones included.
    pub adapters_resident: usize,
    /// Leases that requests hold.
    pub leases: usize,
    /// KV caches.
    pub kv_bytes: usize,
    /// Pages of this engine's cache.
    pub kv_pages_total: usize,
    /// Pages no request uses (those that hold a findable prefix included).
    pub kv_pages_free: usize,
    /// Pages that hold a findable prefix.
    pub prefix_pages: usize,
    /// Requests running.
    pub rows_running: usize,
    /// Requests waiting.
    pub rows_waiting: usize,
    /// Prompt tokens taken in since the start.
    pub tokens_prompt: u64,
    /// Tokens generated since the start.
    pub tokens_generated: u64,
}

/// Logits of every position of a prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Logits {
    /// `[tokens, vocab]`, row-major.
    pub values: Vec<f32>,
    /// Number of rows.
    pub tokens: usize,
    /// Width of a row.
    pub vocab: usize,
}

/// A model, a KV cache and a scheduler. Cheap to clone; clones share everything. Any thread may call anything.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

struct Shared {
    model: Arc<Model>,
    tokenizer: Option<Arc<Tokenizer>>,
    /// Positions a sequence can reach: the model's, or the cache's if that is smaller.
    max_tokens: usize,
    kv_pages: usize,
    /// Submitted, not yet seen by the scheduler: submitting never waits for a step.
    incoming: Mutex<VecDeque<Sequence>>,
    scheduler: Mutex<Scheduler>,
}

impl Engine {
    /// Loads a model folder and its tokenizer.
    ///
    /// # Errors
    /// Anything of `checkpoint_*`, `quant_*`, `model_*`, `tokenizer_invalid`, `memory_exhausted`.
    pub fn load(model: impl AsRef<Path>, options: EngineOptions) -> Result<Self> {
        Self::load_with_progress(model, options, &mut |_| Ok(()))
    }

    /// As [`Engine::load`], telling how far it is; an error from `progress` stops it.
    ///
    /// # Errors
    /// As [`Engine::load`], and what `progress` returned.
    pub fn load_with_progress(
        model: impl AsRef<Path>,
        options: EngineOptions,
        progress: &mut dyn FnMut(Progress) -> Result<()>,
    ) -> Result<Self> {
        let dir = model.as_ref();
        let model_options =
            ModelOptions { device: options.device, threads: options.threads, adapter_limits: options.adapter_limits };
        let model = Model::load(dir, &model_options, progress)?;
        let tokenizer = Tokenizer::open(dir)?.map(Arc::new);
        Self::from_model(model, tokenizer, options)
    }

    /// An engine over a model that is loaded already, with a cache of its own.
    ///
    /// # Errors
    /// `memory_exhausted`.
    pub fn from_model(model: Arc<Model>, tokenizer: Option<Arc<Tokenizer>>, options: EngineOptions) -> Result<Self> {
        let positions = model.config().max_positions;
        let pages = pages_for(options.kv_tokens.unwrap_or(DEFAULT_KV_TOKENS).max(1));
        let kv = model.create_kv(pages, options.kv_dtype)?;
        let shared = Shared {
            max_tokens: positions.min(pages * PAGE_TOKENS),
            kv_pages: pages,
            model,
            tokenizer,
            incoming: Mutex::default(),
            scheduler: Mutex::new(Scheduler::new(kv, &options)),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.shared.model
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// `tokenizer_not_found`.
    pub fn tokenizer(&self) -> Result<&Arc<Tokenizer>> {
        self.shared.tokenizer.as_ref().ok_or_else(|| {
            Error::new(ErrorCode::TokenizerNotFound, "the model folder has no tokenizer.json")
                .with_path(self.model().path())
        })
    }

    /// Positions a sequence can reach: the model's, or the cache's if that is smaller.
    pub fn max_tokens(&self) -> usize {
        self.shared.max_tokens
    }

    /// Loads an adapter under a name, or replaces the one that has it; running requests keep theirs.
    ///
    /// # Errors
    /// Anything of `adapter_*`; nothing changed then.
    pub fn load_adapter(&self, name: &str, dir: impl AsRef<Path>) -> Result<AdapterInfo> {
        self.model().load_adapter(name, dir.as_ref())
    }

    /// Forgets an adapter's name; running requests keep it.
    ///
    /// # Errors
    /// `adapter_not_found`.
    pub fn unload_adapter(&self, name: &str) -> Result<()> {
        self.model().unload_adapter(name)
    }

    /// The named adapters, by name.
    pub fn adapters(&self) -> Vec<AdapterInfo> {
        self.model().adapters().list()
    }

    /// Checks a request and queues it. Adapters are leased here.
    ///
    /// # Errors
    /// `adapter_not_found`, `adapter_weight_invalid`, `adapter_model_mismatch`, `prompt_*`, `sampling_invalid`,
    /// `token_out_of_range`, `request_invalid`, `tokenizer_not_found`, `chat_template_*`.
    pub fn submit(&self, request: Request) -> Result<Job> {
        let tokens = self.encode(&request.prompt, request.add_special_tokens)?;
        if request.max_new_tokens == 0 {
            return Err(Error::new(ErrorCode::RequestInvalid, "max_new_tokens is 0").with_expected("at least 1"));
        }
        let (mixture, walk) = self.walk(&request.adapters, &tokens)?;
        request.sampling.check(walk.vocab)?;
        let generation = self.generation(&request, tokens.len(), self.max_tokens_of(&walk))?;
        Ok(self.enqueue(tokens, mixture, walk, Purpose::Generate(Box::new(generation))))
    }

    /// Computes one step for all requests; `false` if there was nothing to do.
    ///
    /// # Errors
    /// The device failed; every running request then ends with that error.
    pub fn step(&self) -> Result<bool> {
        self.scheduler().step(self.model())
    }

    /// Runs requests to their end, in one batch with whatever else runs. Results stand in the order of the requests.
    ///
    /// # Errors
    /// As [`Engine::submit`]; if one request is refused none is run.
    pub fn generate(&self, requests: &[Request]) -> Result<Vec<Completion>> {
        self.generate_with(requests, &mut || Ok(()))
    }

    /// As [`Engine::generate`]; `between_steps` may stop all of them by an error (Ctrl-C).
    ///
    /// # Errors
    /// As [`Engine::generate`], and what `between_steps` returned.
    pub fn generate_with(
        &self,
        requests: &[Request],
        between_steps: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Vec<Completion>> {
        let submit = |(index, request): (usize, &Request)| {
            let subject = |e: Error| if requests.len() > 1 { e.with_subject(format!("request {index}")) } else { e };
            self.submit(request.clone()).map_err(subject)
        };
        let mut jobs = requests.iter().enumerate().map(submit).collect::<Result<Vec<_>>>()?;
        requests.iter().zip(&mut jobs).map(|(request, job)| job.complete(request, between_steps)).collect()
    }

    /// Logits of every position of a prompt under a mixture.
    ///
    /// # Errors
    /// As [`Engine::submit`].
    pub fn logits(&self, prompt: &Prompt, adapters: &[(AdapterRef, f32)]) -> Result<Logits> {
        self.logits_with(prompt, adapters, &mut || Ok(()))
    }

    /// As [`Engine::logits`]; `between_steps` may stop it by an error (Ctrl-C).
    ///
    /// # Errors
    /// As [`Engine::logits`], and what `between_steps` returned.
    pub fn logits_with(
        &self,
        prompt: &Prompt,
        adapters: &[(AdapterRef, f32)],
        between_steps: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Logits> {
        let tokens = self.encode(prompt, true)?;
        let (mixture, walk) = self.walk(adapters, &tokens)?;
        let (tokens_len, vocab) = (tokens.len(), walk.vocab);
        let mut job = self.enqueue(tokens, mixture, walk, Purpose::PromptLogits(Vec::new()));
        let mut values = Vec::new();
        while let Some(chunk) = job.next_chunk_with(between_steps)? {
            values = chunk.logits;
        }
        Ok(Logits { values, tokens: tokens_len, vocab })
    }

    /// Counters and resident bytes, now.
    pub fn stats(&self) -> EngineStats {
        let mut scheduler = self.scheduler();
        scheduler.sweep_cancelled();
        let memory = self.model().memory();
        let pool = scheduler.pool();
        EngineStats {
            weights_bytes: memory.weights_bytes,
            adapters_bytes: memory.adapters_bytes,
            adapters_resident: self.model().adapters().resident(),
            leases: self.model().adapters().leases(),
            kv_bytes: memory.kv_bytes,
            kv_pages_total: pool.total(),
            kv_pages_free: pool.free(),
            prefix_pages: pool.prefix_pages(),
            rows_running: scheduler.running(),
            rows_waiting: scheduler.waiting(),
            tokens_prompt: scheduler.tokens_prompt,
            tokens_generated: scheduler.tokens_generated,
        }
    }

    /// Forgets every cached prefix.
    pub fn clear_prefix_cache(&self) {
        self.scheduler().clear_prefixes();
    }

    /// Token ids of a prompt.
    fn encode(&self, prompt: &Prompt, add_special: bool) -> Result<Vec<u32>> {
        let tokens = match prompt {
            Prompt::Tokens(tokens) => tokens.clone(),
            Prompt::Text(text) => self.tokenizer()?.encode(text, add_special, true)?,
            Prompt::Chat(messages) => {
                // The template writes the BOS itself.
                let tokenizer = self.tokenizer()?;
                tokenizer.encode(&tokenizer.apply_chat_template(messages, true)?, false, true)?
            }
        };
        match tokens.is_empty() {
            false => Ok(tokens),
            true => Err(Error::new(ErrorCode::PromptEmpty, "the prompt has no tokens")),
        }
    }

    /// Leases the adapters of a request, and says how they lead a prompt through the model; both are checked.
    fn walk(&self, adapters: &[(AdapterRef, f32)], tokens: &[u32]) -> Result<(Mixture, Walk)> {
        let model = self.model();
        let mixture = request::lease_all(adapters, model)?;
        mixture.check_tokens(tokens, model.config().vocab_size)?;
        let walk = Walk {
            spans: mixture.along(tokens),
            layers: mixture.layers().cloned(),
            kv_groups: model.kv_groups_of(mixture.layers()),
            vocab: mixture.head_rows(model.config().vocab_size),
        };
        self.check_length(tokens.len(), self.max_tokens_of(&walk))?;
        Ok((mixture, walk))
    }

    /// Positions a sequence can reach: repeated layers take more of the cache for each.
    fn max_tokens_of(&self, walk: &Walk) -> usize {
        self.shared.max_tokens.min(self.shared.kv_pages / walk.kv_groups * PAGE_TOKENS)
    }

    fn check_length(&self, prompt_tokens: usize, max_tokens: usize) -> Result<()> {
        if prompt_tokens <= max_tokens {
            return Ok(());
        }
        let positions = self.model().config().max_positions;
        let limit = if max_tokens == positions { "the model's positions" } else { "the KV cache" };
        Err(Error::new(ErrorCode::PromptTooLong, format!("the prompt does not fit {limit}"))
            .with_expected(format!("at most {max_tokens} tokens"))
            .with_found(format!("{prompt_tokens} tokens")))
    }

    fn generation(&self, request: &Request, prompt_tokens: usize, max_tokens: usize) -> Result<Generation> {
        let mut stop_ids = if request.stop_at_eos { self.model().config().eos_token_ids.clone() } else { Vec::new() };
        let mut stop_texts = Vec::new();
        for stop in &request.stop {
            match stop {
                Stop::Token(id) => stop_ids.push(*id),
                Stop::Text(text) if text.is_empty() => {
                    return Err(Error::new(ErrorCode::RequestInvalid, "a stop string is empty"));
                }
                Stop::Text(text) => stop_texts.push(text.clone()),
            }
        }
        let text = match &self.shared.tokenizer {
            Some(tokenizer) => Some((tokenizer.stream(request.skip_special_tokens), StopStrings::new(stop_texts))),
            None if stop_texts.is_empty() => None,
            None => {
                let what = "stop strings need a tokenizer, and the model folder has no tokenizer.json";
                return Err(Error::new(ErrorCode::TokenizerNotFound, what).with_path(self.model().path()));
            }
        };
        Ok(Generation {
            sampling: request.sampling.clone(),
            // The last token needs no position: nothing is computed after it.
            max_tokens: prompt_tokens.saturating_add(request.max_new_tokens).min(max_tokens + 1),
            min_new_tokens: request.min_new_tokens,
            stop_ids,
            text,
            logprobs: request.logprobs,
            returns_logits: request.return_logits,
        })
    }

    fn enqueue(&self, tokens: Vec<u32>, mixture: Mixture, walk: Walk, purpose: Purpose) -> Job {
        let shared = JobShared::new(mixture.into_leases());
        let prompt: Arc<[u32]> = tokens.as_slice().into();
        let sequence = Sequence::new(Arc::clone(&shared), purpose, tokens, walk);
        self.shared.incoming.lock().push_back(sequence);
        Job::new(self.clone(), shared, prompt)
    }

    /// The scheduler, with everything in it that was submitted before.
    fn scheduler(&self) -> MutexGuard<'_, Scheduler> {
        let mut scheduler = self.shared.scheduler.lock();
        for sequence in self.shared.incoming.lock().drain(..) {
            scheduler.queue(sequence);
        }
        scheduler
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("model", &self.shared.model).finish_non_exhaustive()
    }
}
