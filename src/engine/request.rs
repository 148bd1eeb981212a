//! What a user asks and gets: requests, chunks, completions.

use crate::adapter::mixture::Mixture;
use crate::adapter::pool::{AdapterLease, AdapterPool};
use crate::engine::sampler::SamplingParams;
use crate::engine::text::ChatMessage;
use crate::error::{Error, ErrorCode, Result};
use crate::model::Model;

/// What to continue.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// Text, encoded by the model's tokenizer with its special tokens recognized.
    Text(String),
    /// Token ids.
    Tokens(Vec<u32>),
    /// A chat, rendered by the model's template.
    Chat(Vec<ChatMessage>),
}

impl From<&str> for Prompt {
    fn from(text: &str) -> Self {
        Prompt::Text(text.to_owned())
    }
}

impl From<String> for Prompt {
    fn from(text: String) -> Self {
        Prompt::Text(text)
    }
}

impl From<Vec<u32>> for Prompt {
    fn from(tokens: Vec<u32>) -> Self {
        Prompt::Tokens(tokens)
    }
}

impl From<Vec<ChatMessage>> for Prompt {
    fn from(messages: Vec<ChatMessage>) -> Self {
        Prompt::Chat(messages)
    }
}

/// An adapter of a request: by name when it is submitted, or one generation held by a lease.
#[derive(Clone)]
pub enum AdapterRef {
    /// The generation that has this name when the request is submitted.
    Name(String),
    /// This generation.
    Lease(AdapterLease),
}

impl AdapterRef {
    /// The adapter's name; of an anonymous one its folder's name.
    pub fn label(&self) -> String {
        match self {
            AdapterRef::Name(name) => name.clone(),
            AdapterRef::Lease(lease) => lease.label(),
        }
    }

    /// A lease on the generation it means.
    ///
    /// # Errors
    /// `adapter_not_found`, `adapter_model_mismatch`.
    pub fn lease(&self, pool: &AdapterPool) -> Result<AdapterLease> {
        match self {
            AdapterRef::Name(name) => pool.lease(name),
            AdapterRef::Lease(lease) if lease.is_of(pool) => Ok(lease.clone()),
            AdapterRef::Lease(lease) => {
                Err(Error::new(ErrorCode::AdapterModelMismatch, "the adapter was loaded on another model")
                    .with_path(&lease.summary().path))
            }
        }
    }
}

/// Leases the adapters of a request on a model and checks that they can act on one row.
///
/// # Errors
/// `adapter_not_found`, `adapter_model_mismatch`, `adapter_weight_invalid`, `adapter_mixture_invalid`.
pub(crate) fn lease_all(adapters: &[(AdapterRef, f32)], model: &Model) -> Result<Mixture> {
    let lease = |(adapter, weight): &(AdapterRef, f32)| Ok((adapter.lease(model.adapters())?, *weight));
    Mixture::new(adapters.iter().map(lease).collect::<Result<_>>()?, model.sites())
}

/// What ends a text early.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// This token; it is counted and returned in `token_ids`, its text is not.
    Token(u32),
    /// This text, wherever token borders fall; neither it nor what follows is in the text.
    Text(String),
}

/// One prompt and how to continue it. Built by chaining; see the crate's example.
#[derive(Clone)]
pub struct Request {
    /// What to continue.
    pub prompt: Prompt,
    /// Ordered mixture of (adapter, weight); empty is the base model.
    pub adapters: Vec<(AdapterRef, f32)>,
    /// Largest number of new tokens.
    pub max_new_tokens: usize,
    /// Stops are ignored (their tokens are not chosen) before so many new tokens.
    pub min_new_tokens: usize,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// What ends the text, besides the model's own end ids.
    pub stop: Vec<Stop>,
    /// Whether the model's end ids (config.json, generation_config.json) end the text.
    pub stop_at_eos: bool,
    /// Number of top log-probabilities a token; 0 for none at all.
    pub logprobs: usize,
    /// Whether chunks carry the logits that each token was chosen from.
    pub return_logits: bool,
    /// Whether special tokens are left out of the text.
    pub skip_special_tokens: bool,
    /// Whether the tokenizer adds its own special tokens (a BOS) to a text prompt.
    pub add_special_tokens: bool,
}

impl Request {
    /// A greedy request for at most 128 new tokens from the base model.
    pub fn new(prompt: impl Into<Prompt>) -> Self {
        Self {
            prompt: prompt.into(),
            adapters: Vec::new(),
            max_new_tokens: 128,
            min_new_tokens: 0,
            sampling: SamplingParams::default(),
            stop: Vec::new(),
            stop_at_eos: true,
            logprobs: 0,
            return_logits: false,
            skip_special_tokens: true,
            add_special_tokens: true,
        }
    }

    /// Adds an adapter, by name or by what loading it returned, to the end of the mixture.
    pub fn adapter(mut self, name: impl AsRef<str>, weight: f32) -> Self {
        self.adapters.push((AdapterRef::Name(name.as_ref().to_owned()), weight));
        self
    }

    /// Adds a leased adapter to the end of the mixture.
    pub fn leased_adapter(mut self, lease: AdapterLease, weight: f32) -> Self {
        self.adapters.push((AdapterRef::Lease(lease), weight));
        self
    }

    /// Sets the largest number of new tokens.
    pub fn max_new_tokens(mut self, tokens: usize) -> Self {
        self.max_new_tokens = tokens;
        self
    }

    /// Sets how tokens are chosen.
    pub fn sampling(mut self, sampling: SamplingParams) -> Self {
        self.sampling = sampling;
        self
    }

    /// Adds a stop.
    pub fn stop(mut self, stop: Stop) -> Self {
        self.stop.push(stop);
        self
    }

    /// Asks for the n best log-probabilities of each token.
    pub fn logprobs(mut self, n: usize) -> Self {
        self.logprobs = n;
        self
    }
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FinishReason {
    /// A stop token, a stop string, or the model's end id.
    Stop,
    /// `max_new_tokens`, or the end of the cache.
    Length,
    /// It was cancelled.
    Cancelled,
}

impl FinishReason {
    /// As users see it: `stop`, `length`, `cancelled`.
    pub fn as_str(self) -> &'static str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Cancelled => "cancelled",
        }
    }
}

/// What a finished text ran into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopMatch {
    /// This token of `stop` or of the model's end ids.
    Token(u32),
    /// This string of `stop`.
    Text(String),
}

/// Tokens of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of those, tokens whose keys and values were found in the cache.
    pub cached_tokens: usize,
    /// New tokens, a stop token included.
    pub completion_tokens: usize,
}

/// Log-probabilities of one token.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// Of the chosen id.
    pub chosen: f32,
    /// The n most likely ids, best first.
    pub top: Vec<(u32, f32)>,
}

/// A piece of a running request: usually one token, and the text that became certain with it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chunk {
    /// Text that became certain; the texts of all chunks joined are the completion's text.
    pub text: String,
    /// New tokens.
    pub token_ids: Vec<u32>,
    /// Their log-probabilities, if asked for.
    pub logprobs: Vec<TokenLogprobs>,
    /// The logits each of them was chosen from, `[token_ids, vocab]`, if asked for.
    pub logits: Vec<f32>,
    /// Set on the last chunk.
    pub finish: Option<Finish>,
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finish {
    /// Why.
    pub reason: FinishReason,
    /// What it ran into, where the reason is a stop.
    pub matched: Option<StopMatch>,
    /// Tokens used.
    pub usage: Usage,
}

/// A finished request.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// The new text, without prompt and stop.
    pub text: String,
    /// The new tokens, a stop token included.
    pub token_ids: Vec<u32>,
    /// How it ended.
    pub finish: Finish,
    /// The mixture as requested: (name, weight); a leased adapter has its folder's name.
    pub adapter: Vec<(String, f32)>,
    /// Log-probabilities of each token, if asked for.
    pub logprobs: Vec<TokenLogprobs>,
    /// Logits of each token, `[token_ids, vocab]`, if asked for.
    pub logits: Vec<f32>,
}
