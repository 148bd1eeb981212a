//! The engine: requests in, chunks out. SKELETON of bodies

pub mod job;
pub mod sampler;
pub mod text;

use std::path::Path;
use std::sync::Arc;

use crate::adapter::pool::{AdapterInfo, AdapterLimits};
use crate::backend::KvDType;
use crate::engine::job::{AdapterRef, Chunk, Completion, Prompt, Request};
use crate::engine::text::Tokenizer;
use crate::error::Result;
use crate::model::{Device, Model, Progress};

/// Options of [`Engine::load`].
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Where the model runs.
    pub device: Device,
    /// CPU threads; all physical cores by default.
    pub threads: Option<usize>,
    /// Element type of cached keys and values.
    pub kv_dtype: KvDType,
    /// Tokens the KV cache holds over all requests; by default the model's positions, at most 8192.
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
pub struct Engine {}

impl Engine {
    /// Loads a model folder and its tokenizer.
    ///
    /// # Errors
    /// Anything of `checkpoint_*`, `quant_*`, `model_*`, `tokenizer_invalid`.
    pub fn load(_model: impl AsRef<Path>, _options: EngineOptions) -> Result<Self> {
        todo!()
    }

    /// As [`Engine::load`], telling how far it is; an error from `progress` stops it.
    ///
    /// # Errors
    /// As [`Engine::load`], and what `progress` returned.
    pub fn load_with_progress(
        _model: impl AsRef<Path>,
        _options: EngineOptions,
        _progress: &mut dyn FnMut(Progress) -> Result<()>,
    ) -> Result<Self> {
        todo!()
    }

    /// An engine over a model that is loaded already, with a cache of its own.
    ///
    /// # Errors
    /// `memory_exhausted`.
    pub fn over(_model: Arc<Model>, _tokenizer: Option<Arc<Tokenizer>>, _options: EngineOptions) -> Result<Self> {
        todo!()
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        todo!()
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// `tokenizer_not_found`.
    pub fn tokenizer(&self) -> Result<&Arc<Tokenizer>> {
        todo!()
    }

    /// Loads an adapter under a name, or replaces the one that has it; running requests keep theirs.
    ///
    /// # Errors
    /// Anything of `adapter_*`; nothing changed then.
    pub fn load_adapter(&self, _name: &str, _dir: impl AsRef<Path>) -> Result<AdapterInfo> {
        todo!()
    }

    /// Forgets an adapter's name; running requests keep it.
    ///
    /// # Errors
    /// `adapter_not_found`.
    pub fn unload_adapter(&self, _name: &str) -> Result<()> {
        todo!()
    }

    /// The named adapters, by name.
    pub fn adapters(&self) -> Vec<AdapterInfo> {
        todo!()
    }

    /// Checks a request and queues it. Adapters are leased here.
    ///
    /// # Errors
    /// `adapter_not_found`, `prompt_*`, `sampling_invalid`, `token_out_of_range`, `request_invalid`, `tokenizer_not_found`.
    pub fn submit(&self, _request: Request) -> Result<Job> {
        todo!()
    }

    /// Computes one step for all requests; `false` if there was nothing to do.
    ///
    /// # Errors
    /// The device failed; every running request then ends with that error.
    pub fn step(&self) -> Result<bool> {
        todo!()
    }

    /// Runs requests to their end, in one batch with whatever else runs. Results stand in the order of the requests.
    ///
    /// # Errors
    /// As [`Engine::submit`]; if one request is refused none is run.
    pub fn generate(&self, _requests: &[Request]) -> Result<Vec<Completion>> {
        todo!()
    }

    /// As [`Engine::generate`]; `between_steps` may stop all of them by an error (Ctrl-C).
    ///
    /// # Errors
    /// As [`Engine::generate`], and what `between_steps` returned.
    pub fn generate_with(
        &self,
        _requests: &[Request],
        _between_steps: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Vec<Completion>> {
        todo!()
    }

    /// Logits of every position of a prompt under a mixture.
    ///
    /// # Errors
    /// As [`Engine::submit`].
    pub fn logits(&self, _prompt: &Prompt, _adapters: &[(AdapterRef, f32)]) -> Result<Logits> {
        todo!()
    }

    /// Counters and resident bytes, now.
    pub fn stats(&self) -> EngineStats {
        todo!()
    }
}

/// A submitted request. Dropping it cancels the request.
pub struct Job {}

impl Job {
    /// The next chunk, stepping the engine as needed; `None` after the last.
    ///
    /// # Errors
    /// The request failed.
    pub fn next_chunk(&mut self) -> Result<Option<Chunk>> {
        todo!()
    }

    /// The next chunk if one is ready; never steps.
    ///
    /// # Errors
    /// The request failed.
    pub fn poll_chunk(&mut self) -> Result<Option<Chunk>> {
        todo!()
    }

    /// Whether the last chunk has been handed out.
    pub fn is_finished(&self) -> bool {
        todo!()
    }

    /// Prompt tokens computed so far, and in all.
    pub fn prefill_progress(&self) -> (usize, usize) {
        todo!()
    }

    /// Ends the request; its last chunk says `cancelled`.
    pub fn cancel(&self) {
        todo!()
    }

    /// The prompt's token ids.
    pub fn prompt_tokens(&self) -> &[u32] {
        todo!()
    }
}
