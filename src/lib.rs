//! Any PEFT LoRA, on any quantized LLM, chosen per request.
//!
//! One quantized base model (GPTQ, EXL2, or plain float16, bfloat16, float32) and many adapters: every request of a batch names
//! its own adapter, or a weighted mixture of several, without restarts, without merging, and without wrong answers.
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
//! # What it promises
//! 1. **Faithful.** What PEFT computes for an adapter on the dequantized base, exlora computes; what it cannot honor it
//!    refuses by name. Never silently the base.
//! 2. **Per row.** Each row of a batch has its own list of (adapter, weight); a row without one is bit-equal to the base.
//! 3. **Same bits.** A row's result does not depend on who shares the batch, nor on whether its prefix was cached.
//! 4. **Flat cost.** Work grows with the distinct adapters' true ranks.
//! 5. **Honest failure.** Damaged files end in an [`Error`] with a stable [`ErrorCode`]; nothing loaded before is lost.
//!
//! # Where to find what
//! | concept | module |
//! |---|---|
//! | files: safetensors, shards | [`checkpoint`] |
//! | what a stored weight means | [`quant`] |
//! | PEFT's files, slots, routing to rows | [`adapter`] |
//! | six operations on a device | [`backend`] |
//! | pages and prefixes | [`kv_cache`] |
//! | config.json, the walk over the layers | [`model`] |
//! | requests, scheduling, sampling, text | [`engine`] |
//!
//! # Features
//! `python` builds the extension module `exlora._exlora`; nothing is on by default.
//!
//! # Safety
//! `unsafe` stands in two places: `checkpoint` maps files (a file that another process truncates while it is mapped ends
//! this process; replace model files by renaming), and `backend::cpu` uses vector instructions behind run-time detection.

#![deny(missing_docs)]
#![deny(unsafe_op_in_unsafe_fn)]
#![warn(clippy::undocumented_unsafe_blocks)]

pub mod adapter;
pub mod backend;
pub mod checkpoint;
pub mod cli;
pub mod doctor;
pub mod engine;
pub mod error;
pub mod inspect;
pub mod kv_cache;
pub mod model;
#[cfg(feature = "python")]
mod python;
pub mod quant;
pub mod sites;
pub mod tensor;

pub use adapter::pool::{AdapterInfo, AdapterLease, AdapterLimits};
pub use backend::KvDType;
pub use engine::{
    AdapterRef, CancelHandle, ChatMessage, Chunk, Completion, Engine, EngineOptions, EngineStats, Finish, FinishReason,
    Job, Logits, Prompt, Request, SamplingParams, SequenceCache, SequenceChunk, Stop, StopMatch, TokenLogprobs,
    Tokenizer, Usage,
};
pub use error::{Error, ErrorCode, ErrorKind, Result};
pub use model::{Device, Model, ModelOptions, Progress};
