//! Options of an engine and their defaults.

use super::draft_source::DraftModelSource;
use super::generation_config::GenerationConfigSource;
use super::request::MAX_DRAFT_TOKENS;
use crate::adapter::pool::AdapterLimits;
use crate::backend::{ActivationDType, KvDType};
use crate::error::{Error, ErrorCode, Result};
use crate::model::{Device, HeadDType, ModelOptions};

/// Tokens that the KV cache of an engine holds by default.
pub const DEFAULT_KV_TOKENS: usize = 8192;

/// Largest number of prompt tokens in one step by default.
pub const DEFAULT_PREFILL_CHUNK: usize = 512;

/// Largest number of tokens drafted for a step by default.
pub const DEFAULT_DRAFT_TOKENS: usize = 4;

/// Options of [`Engine::load`](crate::Engine::load).
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// The device to run on.
    pub device: Device,
    /// CPU threads; all physical cores by default.
    pub threads: Option<usize>,
    /// How the output head is kept.
    pub head: HeadDType,
    /// How quantized linears take their activations; only the CPU rounds them.
    pub activations: ActivationDType,
    /// Element type of cached keys and values.
    pub kv_dtype: KvDType,
    /// Longest sequence, prompt and output, in tokens. By default it is that of the model's config, stretched by its rope
    /// scaling; a longer one is allowed, except with dynamic rope scaling.
    pub max_seq_len: Option<usize>,
    /// Tokens that the KV cache holds over all requests; by default [`DEFAULT_KV_TOKENS`], or `max_seq_len` if that is more.
    /// Memory is committed as it is used. On a device with memory of its own the default is what its free memory holds, but at
    /// most `max_rows` sequences of the longest length.
    pub kv_tokens: Option<usize>,
    /// Largest number of requests that run at once; others wait. One with a negative prompt counts as two.
    pub max_rows: usize,
    /// Largest number of prompt tokens in one step (chunked prefill). Tokens whose adapters have ranks that exceed the model's
    /// width together, or run its layers several times, count as several.
    pub prefill_chunk: usize,
    /// Whether cached prefixes of prompts are reused.
    pub prefix_cache: bool,
    /// Where the defaults of [`Engine::request`](crate::Engine::request) come from; by default they are those of
    /// [`Request::new`](crate::Request::new).
    pub generation_config: Option<GenerationConfigSource>,
    /// A smaller model with the same tokenizer, which drafts tokens for requests that don't draft from their own text. A draft
    /// changes no token, only the number of steps. It runs where the model does, with as many adapters of its own.
    pub draft_model: Option<DraftModelSource>,
    /// Largest number of tokens that a request drafts for a step, unless it says otherwise.
    pub num_draft_tokens: usize,
    /// Limits on resident adapters.
    pub adapter_limits: AdapterLimits,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            device: Device::Auto,
            threads: None,
            head: HeadDType::Stored,
            activations: ActivationDType::F32,
            kv_dtype: KvDType::F16,
            max_seq_len: None,
            kv_tokens: None,
            max_rows: 32,
            prefill_chunk: DEFAULT_PREFILL_CHUNK,
            prefix_cache: true,
            generation_config: None,
            draft_model: None,
            num_draft_tokens: DEFAULT_DRAFT_TOKENS,
            adapter_limits: AdapterLimits::default(),
        }
    }
}

impl EngineOptions {
    /// Checks the numbers.
    ///
    /// # Errors
    /// `request_invalid`.
    pub(super) fn check(&self) -> Result<()> {
        let wrong = |setting: &str, expected: String, found: usize| {
            let error = Error::new(ErrorCode::RequestInvalid, format!("{setting} is out of range"));
            Err(error.with_setting(setting).with_expected(expected).with_found(found))
        };
        let counts = [
            ("max_batch_size", Some(self.max_rows)),
            ("prefill_chunk", Some(self.prefill_chunk)),
            ("kv_tokens", self.kv_tokens),
        ];
        if let Some((setting, _)) = counts.into_iter().find(|(_, count)| *count == Some(0)) {
            return wrong(setting, "at least 1".to_owned(), 0);
        }
        if self.num_draft_tokens > MAX_DRAFT_TOKENS {
            return wrong("num_draft_tokens", format!("at most {MAX_DRAFT_TOKENS}"), self.num_draft_tokens);
        }
        Ok(())
    }

    /// The options of a model that they load.
    pub(super) fn model_options(&self) -> ModelOptions {
        ModelOptions {
            device: self.device,
            threads: self.threads,
            head: self.head,
            activations: self.activations,
            max_seq_len: self.max_seq_len,
            adapter_limits: self.adapter_limits,
            ..ModelOptions::default()
        }
    }
}
