//! Features of PEFT that are recognized and refused by name.

use std::fmt;

use crate::error::{Error, ErrorCode};

/// A feature that is not supported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Feature {
    /// Factors on parameters that are not linears, such as stacked experts.
    TargetParameters,
    /// A router over other adapters.
    Arrow,
    /// The head of a task other than text generation.
    TaskHead,
    /// An unknown initialization, which may have changed the base.
    Initialization,
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Feature::TargetParameters => "LoRA on parameters (target_parameters)",
            Feature::Arrow => "Arrow routing (arrow_config)",
            Feature::TaskHead => "a task other than text generation (task_type)",
            Feature::Initialization => "an unknown initialization (init_lora_weights)",
        })
    }
}

impl Feature {
    /// The refusal of an adapter that needs it.
    pub(super) fn refusal(self) -> Error {
        unsupported(format!("the adapter needs {self}, which is not supported"))
    }
}

/// A refusal of something that is understood but not supported.
pub(super) fn unsupported(what: impl Into<String>) -> Error {
    Error::new(ErrorCode::AdapterFeatureUnsupported, what)
}
