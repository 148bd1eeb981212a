//! exlora: any PEFT LoRA, on any quantised LLM, chosen per request.

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
pub mod kv;
pub mod model;
#[cfg(feature = "python")]
mod python;
pub mod quant;
pub mod sites;
pub mod tensor;

pub use adapter::pool::{AdapterInfo, AdapterLease, AdapterLimits};
pub use backend::KvDType;
pub use engine::job::{AdapterRef, Chunk, Completion, FinishReason, Prompt, Request, Stop, StopMatch, Usage};
pub use engine::sampler::SamplingParams;
pub use engine::text::{ChatMessage, Tokenizer};
pub use engine::{Engine, EngineOptions, EngineStats, Job, Logits};
pub use error::{Error, ErrorCode, ErrorKind, Result};
pub use model::{Device, Model, ModelOptions, Progress};
