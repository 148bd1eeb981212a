//! Multi-LoRA inference: any PEFT LoRA, on any quantized LLM, chosen per request.
//!
//! One quantized base model (GPTQ, EXL2, or plain float16, bfloat16, float32) and many adapters: every request of a batch
//! names its own adapter, or a weighted mixture of several, without restarts, without merging, and without wrong answers.
//!
//! ```
//! use exlora::{Engine, EngineOptions, Request};
//!
//! let engine = Engine::load("tests/fixtures/quill-4m-gptq-4bit-g128-sym", EngineOptions::default())?;
//! let sql = engine.load_adapter("sql", "tests/fixtures/adapters/sqlite-rslora-r16")?;
//! let wit = engine.load_adapter("wit", "tests/fixtures/adapters/jargon-lora-r8")?;
//! let out = engine.generate(&[
//!     Request::new("The sqlite3_prepare() interface").adapter(&sql, 1.0).max_new_tokens(16),
//!     Request::new("hacker n.\n").adapter(&sql, 0.5).adapter(&wit, 0.5).max_new_tokens(16),
//!     Request::new("Emma was very much pleased with the").max_new_tokens(16),
//! ])?;
//! assert_eq!(out.len(), 3);
//! assert!(out.iter().all(|completion| !completion.text.is_empty()));
//! # Ok::<(), exlora::Error>(())
//! ```
//!
//! # Guarantees
//! 1. **Faithful.** What PEFT computes for an adapter on the dequantized base, exlora computes. What it cannot compute it
//!    refuses by name. It never silently falls back to the base.
//! 2. **Per row.** Each row of a batch has its own list of (adapter, weight). A row without one is bit-identical to the base.
//! 3. **Batch invariance.** A row's bits depend neither on the rest of the batch, nor on chunking, thread count or the prefix
//!    cache.
//! 4. **Flat cost.** Work grows with the true ranks of the distinct adapters in a batch.
//! 5. **Honest failure.** Damaged files end in an [`Error`] with a stable [`ErrorCode`]; nothing that was loaded before is
//!    lost.
//!
//! # Where to start
//! | to | use |
//! |---|---|
//! | answer requests in batches | [`Engine`], [`Request`], [`SamplingParams`], [`Completion`] |
//! | take results as they complete | [`Engine::as_completed`], [`Engine::generate_each`] |
//! | stream | [`Engine::submit`], [`Job::next_chunk`], [`Chunk`] |
//! | load, replace and unload adapters at run time | [`Engine::load_adapter`], [`AdapterInfo`], [`AdapterLease`] |
//! | share one model between engines | [`Model`], [`Engine::from_model`] |
//! | run the forward pass yourself | [`SequenceCache`] |
//! | handle errors | [`Error`], [`ErrorCode`], [`ErrorKind`] |
//!
//! # Threads
//! Nothing runs in the background: a thread that waits for a result computes steps for all requests. All methods of
//! [`Engine`] and [`Model`] may be called from any thread. Submitting a request, reading [`Engine::stats`] and dropping a
//! [`Job`] never wait for a step.
//!
//! # Stability
//! Semantic versioning covers what these pages show: the items at the root of the crate. The modules are public for the
//! command, the tests and the benchmarks, hidden from these pages, and may change in any release. The spelling of error codes
//! never changes.
//!
//! # Features
//! - `cuda` (default): the CUDA backend, which is not finished. Nothing of CUDA is needed to build or to run the rest.
//! - `kasa` (default): KaSA adapters, which need a singular value decomposition; without it they are refused by name.
//! - `cli`: the command `exlora`.
//! - `server`: the HTTP server, which `cli` brings along.
//!
//! # Safety
//! Three modules contain `unsafe` code: `checkpoint` maps files (a file that another process truncates while it is mapped ends
//! this process; replace model files by renaming), `backend::cpu` uses vector instructions after run-time detection, and
//! `backend::cuda` calls NVIDIA's libraries.

// The command writes to its streams; nothing else prints.
#![warn(clippy::print_stderr, clippy::print_stdout)]

#[doc(hidden)]
pub mod adapter;
#[doc(hidden)]
pub mod backend;
#[doc(hidden)]
pub mod checkpoint;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
#[doc(hidden)]
pub mod doctor;
#[doc(hidden)]
pub mod engine;
#[doc(hidden)]
pub mod error;
mod files;
mod fork_safe_mutex;
#[doc(hidden)]
pub mod guard;
#[doc(hidden)]
pub mod inspect;
mod jinja;
#[doc(hidden)]
pub mod kv_cache;
#[doc(hidden)]
pub mod model;
#[doc(hidden)]
pub mod prompt_embeds;
#[doc(hidden)]
pub mod quant;
#[cfg(feature = "server")]
#[doc(hidden)]
pub mod request_settings;
#[cfg(feature = "server")]
#[doc(hidden)]
pub mod server;
#[doc(hidden)]
pub mod sites;
#[doc(hidden)]
pub mod tensor;
#[doc(hidden)]
pub mod text_prefix;
mod unique_value;

pub use adapter::plan::AdapterSummary;
pub use adapter::pool::{AdapterInfo, AdapterLease, AdapterLimits};
pub use backend::{ActivationDType, KvDType, KvStates};
pub use engine::{
    AdapterRef, AsCompleted, CancelHandle, ChatMessage, ChatOptions, Chunk, Completion, DeviceStats, DraftModelSource,
    Engine, EngineOptions, EngineStats, FilterTokens, Filters, Finish, FinishReason, GenerationConfig,
    GenerationConfigSource, Grammar, Job, Logits, PostSampling, PostSamplingHook, Prompt, PromptPart, Request,
    SamplingParams, SequenceCache, SequenceChunk, Stop, StopMatch, TokenFilter, TokenLogprobs, TokenProbs, Tokenizer,
    Usage,
};
pub use error::{Error, ErrorCode, ErrorKind, Result};
pub use model::{Device, HeadDType, KvStorage, Model, ModelOptions, Progress};
pub use prompt_embeds::PromptEmbeds;
