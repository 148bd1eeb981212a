//! The one catalog of errors: a stable code, what is wrong, where, what was expected and found, what to do.
//!
//! A code never changes its spelling once released; scripts and servers match on it. The sentence around it may improve.
//! Everything that reaches a user is an [`Error`] built here and rendered here, in Rust, in the CLI and in Python.
//!
//! ```
//! use exlora::{Error, ErrorCode};
//!
//! let error = Error::new(ErrorCode::AdapterShapeMismatch, "a tensor has the wrong shape")
//!     .with_subject("adapter 'sql'")
//!     .with_tensor("base_model.model.model.layers.3.self_attn.q_proj.lora_B.weight")
//!     .with_expected("[4096, 16]")
//!     .with_found("[4096, 8]")
//!     .with_hint("r = 16 in adapter_config.json; a rank_pattern would have to name this module");
//! assert_eq!(error.code().as_str(), "adapter_shape_mismatch");
//! assert!(error.to_string().contains("expected [4096, 16], found [4096, 8]"));
//! ```

use std::fmt;
use std::path::{Path, PathBuf};

/// Result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What sort of mistake a code stands for; Python maps it to a builtin exception class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Something named is not there: a file, a tensor, an adapter.
    NotFound,
    /// A value, a file or a request is wrong.
    Invalid,
    /// It is well formed and understood, but this build does not do it.
    Unsupported,
    /// A budget or the machine's memory is too small.
    Memory,
    /// The caller stopped the work.
    Cancelled,
    /// A fault of the machine or of this crate.
    Internal,
}

macro_rules! catalog {
    ($($(#[doc = $summary:literal])+ $variant:ident = $code:literal, $kind:ident, $remedy:literal;)+) => {
        /// Stable identity of an error: [`ErrorCode::as_str`] is what scripts match on.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum ErrorCode {
            $($(#[doc = $summary])+ $variant,)+
        }

        impl ErrorCode {
            /// Every code, in the order of the catalog.
            pub const ALL: &'static [ErrorCode] = &[$(ErrorCode::$variant,)+];

            /// The stable snake_case spelling.
            pub fn as_str(self) -> &'static str {
                match self { $(ErrorCode::$variant => $code,)+ }
            }

            /// What sort of mistake it is.
            pub fn kind(self) -> ErrorKind {
                match self { $(ErrorCode::$variant => ErrorKind::$kind,)+ }
            }

            /// What it means, in one sentence.
            pub fn summary(self) -> &'static str {
                match self { $(ErrorCode::$variant => concat!($($summary),+).trim_ascii(),)+ }
            }

            /// What usually helps, for the table of troubles.
            pub fn remedy(self) -> &'static str {
                match self { $(ErrorCode::$variant => $remedy,)+ }
            }
        }
    };
}

catalog! {
    /// The model folder or one of its files does not exist.
    CheckpointNotFound = "checkpoint_not_found", NotFound, "check the path; a model folder holds config.json and *.safetensors";
    /// A checkpoint file could not be read.
    CheckpointUnreadable = "checkpoint_unreadable", Invalid, "check permissions, and that the path is a regular file";
    /// A safetensors file ends before the data its header announces.
    CheckpointTruncated = "checkpoint_truncated", Invalid, "download the file again";
    /// A safetensors header is not valid.
    CheckpointHeaderInvalid = "checkpoint_header_invalid", Invalid, "the file is damaged or not safetensors; write it again";
    /// A safetensors header or its number of tensors exceeds the cap.
    CheckpointTooLarge = "checkpoint_too_large", Invalid, "no real model needs this; the file is damaged or hostile";
    /// The shard index does not fit the files beside it.
    CheckpointIndexInvalid = "checkpoint_index_invalid", Invalid, "write the checkpoint again, or remove a stale index";
    /// A tensor stands in two shards.
    CheckpointTensorDuplicate = "checkpoint_tensor_duplicate", Invalid, "remove the stale file";
    /// A tensor the model needs is not in the checkpoint.
    CheckpointTensorMissing = "checkpoint_tensor_missing", NotFound, "the checkpoint is incomplete or of another architecture";
    /// A tensor of the checkpoint has a shape that config.json contradicts.
    CheckpointShapeMismatch = "checkpoint_shape_mismatch", Invalid, "config.json and weights are of different models";
    /// A tensor is stored in a data type that is not read here.
    CheckpointDtypeUnsupported = "checkpoint_dtype_unsupported", Unsupported, "convert it to float16, bfloat16 or float32";
    /// A quantization format that is not read here.
    QuantFormatUnsupported = "quant_format_unsupported", Unsupported, "use a GPTQ (gptq, gptq_v2), EXL2 or unquantized checkpoint";
    /// The quantization config is malformed.
    QuantConfigInvalid = "quant_config_invalid", Invalid, "quantize again, or mend quantize_config.json";
    /// A quantized tensor's shape contradicts its bits or group size.
    QuantShapeMismatch = "quant_shape_mismatch", Invalid, "the quantization config belongs to other weights";
    /// A quantized tensor holds a value that means nothing.
    QuantValueInvalid = "quant_value_invalid", Invalid, "the file is damaged; quantize again";
    /// config.json is missing, malformed or contradictory.
    ModelConfigInvalid = "model_config_invalid", Invalid, "use the config.json that came with the weights";
    /// An architecture that is not known here.
    ModelArchitectureUnsupported = "model_architecture_unsupported", Unsupported, "see the README's table of architectures";
    /// The architecture is known, but one of its options is not.
    ModelFeatureUnsupported = "model_feature_unsupported", Unsupported, "see the README's table of architectures";
    /// adapter_config.json or the adapter's folder does not exist.
    AdapterConfigNotFound = "adapter_config_not_found", NotFound, "point at the folder that holds adapter_config.json";
    /// adapter_config.json is malformed.
    AdapterConfigInvalid = "adapter_config_invalid", Invalid, "save the adapter again with PEFT";
    /// The adapter is of another PEFT type than LoRA.
    AdapterTypeUnsupported = "adapter_type_unsupported", Unsupported, "only LoRA adapters are served";
    /// The adapter uses a PEFT feature that is not served here.
    AdapterFeatureUnsupported = "adapter_feature_unsupported", Unsupported, "see the README's table of PEFT features";
    /// The adapter was trained on a base that its initialization changed.
    AdapterBaseChanged = "adapter_base_changed", Unsupported, "convert it: save with path_initial_model_for_weight_conversion";
    /// The folder holds no adapter_model.safetensors.
    AdapterWeightsNotFound = "adapter_weights_not_found", NotFound, "save the adapter with safe_serialization=True";
    /// The weights are in a file format that is not read here.
    AdapterFormatUnsupported = "adapter_format_unsupported", Unsupported, "convert the file to PEFT's safetensors";
    /// A tensor of the adapter belongs to nothing that is known.
    AdapterTensorUnexpected = "adapter_tensor_unexpected", Invalid, "the file was written by another tool, or for another model";
    /// A tensor that the adapter's config or its pair requires is missing.
    AdapterTensorMissing = "adapter_tensor_missing", Invalid, "save the adapter again; the file is incomplete";
    /// The adapter names a module that the base model does not have.
    AdapterSiteNotFound = "adapter_site_not_found", Invalid, "the adapter was made for another base model";
    /// The adapter's config excludes a module for which the file has tensors.
    AdapterSiteExcluded = "adapter_site_excluded", Invalid, "config and weights are of different runs";
    /// A tensor of the adapter has a shape that does not fit the base model.
    AdapterShapeMismatch = "adapter_shape_mismatch", Invalid, "the adapter was made for another base model";
    /// The rank of a tensor contradicts adapter_config.json.
    AdapterRankMismatch = "adapter_rank_mismatch", Invalid, "config and weights are of different runs";
    /// An adapter tensor is stored in a data type that is not read here.
    AdapterDtypeUnsupported = "adapter_dtype_unsupported", Unsupported, "convert it to float16, bfloat16 or float32";
    /// An adapter tensor holds NaN or infinite values.
    AdapterNotFinite = "adapter_not_finite", Invalid, "the training diverged; use an earlier checkpoint";
    /// alpha, rank and request give no finite scale.
    AdapterScaleInvalid = "adapter_scale_invalid", Invalid, "mend lora_alpha or alpha_pattern";
    /// A pattern of the adapter's config is not a valid or affordable regular expression.
    AdapterPatternInvalid = "adapter_pattern_invalid", Invalid, "mend the pattern in adapter_config.json";
    /// No adapter of that name is loaded.
    AdapterNotFound = "adapter_not_found", NotFound, "load it first; the base model is None";
    /// An adapter's name is empty or not printable.
    AdapterNameInvalid = "adapter_name_invalid", Invalid, "choose a non-empty printable name";
    /// The adapter does not fit the adapters' byte or slot budget.
    AdapterBudgetExceeded = "adapter_budget_exceeded", Memory, "unload another adapter or raise the budget";
    /// A mixture's weight is not finite, or is not 1 where the adapter replaces weights, biases or embedding rows.
    AdapterWeightInvalid = "adapter_weight_invalid", Invalid, "give a finite weight, and 1 to an adapter that replaces";
    /// Two adapters of a mixture replace the same part of the model, or walk its layers differently.
    AdapterMixtureInvalid = "adapter_mixture_invalid", Invalid, "name them in separate requests";
    /// The adapter belongs to another model than the one it is used with.
    AdapterModelMismatch = "adapter_model_mismatch", Invalid, "load the adapter on the model that runs the request";
    /// The model folder has no tokenizer.json, and the request needs text.
    TokenizerNotFound = "tokenizer_not_found", NotFound, "add tokenizer.json, or pass token ids";
    /// tokenizer.json or tokenizer_config.json is malformed.
    TokenizerInvalid = "tokenizer_invalid", Invalid, "use the files that came with the model";
    /// The model has no chat template.
    ChatTemplateNotFound = "chat_template_not_found", NotFound, "pass text, or add chat_template to tokenizer_config.json";
    /// The chat template failed on these messages.
    ChatTemplateFailed = "chat_template_failed", Invalid, "check roles and order of the messages";
    /// A request is contradictory or names something unknown.
    RequestInvalid = "request_invalid", Invalid, "see the message";
    /// A prompt has no tokens.
    PromptEmpty = "prompt_empty", Invalid, "give at least one token";
    /// A prompt does not fit the model's positions or the cache.
    PromptTooLong = "prompt_too_long", Invalid, "shorten it, or give the cache more tokens";
    /// A token id is outside the vocabulary.
    TokenOutOfRange = "token_out_of_range", Invalid, "use the model's own tokenizer";
    /// A sampling setting is out of range.
    SamplingInvalid = "sampling_invalid", Invalid, "see the message";
    /// The logits of a request are not finite, so that no token can be chosen.
    LogitsNotFinite = "logits_not_finite", Invalid, "give the adapters smaller weights; the base or an adapter may be damaged";
    /// A setting that exllamav2 has and exlora does not.
    SettingUnsupported = "setting_unsupported", Unsupported, "leave it at its default";
    /// The model object has no weights loaded yet, or no more.
    ModelNotLoaded = "model_not_loaded", Invalid, "call load() or load_autosplit() first";
    /// The work was interrupted by the caller.
    Interrupted = "interrupted", Cancelled, "";
    /// The device is not known or not present.
    DeviceUnavailable = "device_unavailable", Unsupported, "use device=\"cpu\"";
    /// Memory for weights, adapters or cache could not be had.
    MemoryExhausted = "memory_exhausted", Memory, "use a smaller cache or model";
    /// A file could not be read or written.
    IoFailed = "io_failed", Internal, "see the message";
    /// A fault in exlora itself.
    Internal = "internal", Internal, "please report it, with the message";
}

/// What went wrong, where, and what to do. Cheap to move; rendered by `Display`.
#[derive(Clone, PartialEq)]
pub struct Error(Box<Details>);

#[derive(Clone, PartialEq)]
struct Details {
    code: ErrorCode,
    message: String,
    subject: Option<String>,
    path: Option<PathBuf>,
    tensor: Option<String>,
    expected: Option<String>,
    found: Option<String>,
    hint: Option<String>,
    others: Vec<Error>,
}

impl Error {
    /// An error of that code; `message` says what is wrong in a clause without a full stop.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self(Box::new(Details {
            code,
            message: message.into(),
            subject: None,
            path: None,
            tensor: None,
            expected: None,
            found: None,
            hint: None,
            others: Vec::new(),
        }))
    }

    /// What the work was about: `adapter 'sql'`, `request 3`. The caller knows best, so a later name replaces an earlier
    /// one, in all problems that were found together.
    pub fn with_subject(mut self, subject: impl Into<String>) -> Self {
        let subject = subject.into();
        let others = std::mem::take(&mut self.0.others);
        self.0.others = others.into_iter().map(|other| other.with_subject(subject.as_str())).collect();
        self.0.subject = Some(subject);
        self
    }

    /// The file or folder.
    pub fn with_path(mut self, path: impl AsRef<Path>) -> Self {
        self.0.path.get_or_insert_with(|| path.as_ref().to_path_buf());
        self
    }

    /// The tensor, by its full name in the file.
    pub fn with_tensor(mut self, tensor: impl Into<String>) -> Self {
        self.0.tensor.get_or_insert_with(|| tensor.into());
        self
    }

    /// What was expected.
    pub fn with_expected(mut self, expected: impl fmt::Display) -> Self {
        self.0.expected = Some(expected.to_string());
        self
    }

    /// What was found instead.
    pub fn with_found(mut self, found: impl fmt::Display) -> Self {
        self.0.found = Some(found.to_string());
        self
    }

    /// What to do about it; without one the code's usual remedy stands.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Joins all problems found at once into the first of them.
    ///
    /// # Panics
    /// Never: `None` is returned for an empty list.
    pub fn all(problems: Vec<Error>) -> Option<Self> {
        let mut problems = problems.into_iter();
        let mut first = problems.next()?;
        first.0.others.extend(problems);
        Some(first)
    }

    /// The stable code.
    pub fn code(&self) -> ErrorCode {
        self.0.code
    }

    /// The clause that says what is wrong.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The file or folder, if there is one.
    pub fn path(&self) -> Option<&Path> {
        self.0.path.as_deref()
    }

    /// The tensor's name, if there is one.
    pub fn tensor(&self) -> Option<&str> {
        self.0.tensor.as_deref()
    }

    /// What was expected, if that can be said.
    pub fn expected(&self) -> Option<&str> {
        self.0.expected.as_deref()
    }

    /// What was found, if that can be said.
    pub fn found(&self) -> Option<&str> {
        self.0.found.as_deref()
    }

    /// What to do: the hint given here, else the code's usual remedy.
    pub fn remedy(&self) -> &str {
        self.0.hint.as_deref().unwrap_or(self.0.code.remedy())
    }

    /// Further problems found in the same pass.
    pub fn others(&self) -> &[Error] {
        &self.0.others
    }

    /// This problem alone, then each further one: what [`Error::all`] joined.
    pub fn into_list(mut self) -> Vec<Error> {
        let others = std::mem::take(&mut self.0.others);
        std::iter::once(self).chain(others).collect()
    }
}

impl fmt::Display for Error {
    /// `adapter 'sql': a tensor has the wrong shape: tensor 'T' in FILE: expected E, found F. Remedy. [code]`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let d = &*self.0;
        if let Some(subject) = &d.subject {
            write!(f, "{}: ", printable(subject))?;
        }
        write!(f, "{}", printable(&d.message))?;
        match (&d.tensor, &d.path) {
            (Some(tensor), Some(path)) => {
                write!(f, ": tensor '{}' in {}", printable(tensor), printable(&path.display().to_string()))?;
            }
            (Some(tensor), None) => write!(f, ": tensor '{}'", printable(tensor))?,
            (None, Some(path)) => write!(f, ": {}", printable(&path.display().to_string()))?,
            (None, None) => {}
        }
        match (&d.expected, &d.found) {
            (Some(expected), Some(found)) => {
                write!(f, ": expected {}, found {}", printable(expected), printable(found))?;
            }
            (Some(expected), None) => write!(f, ": expected {}", printable(expected))?,
            (None, Some(found)) => write!(f, ": found {}", printable(found))?,
            (None, None) => {}
        }
        let remedy = self.remedy();
        if !remedy.is_empty() {
            write!(f, " ({})", printable(remedy))?;
        }
        write!(f, " [{}]", d.code.as_str())?;
        for other in &d.others {
            write!(f, "\n  also: {other}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Error {}

impl serde::Serialize for Error {
    /// What a program needs to tell errors apart: every part by its name, `null` where there is none.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;

        let d = &*self.0;
        let mut parts = serializer.serialize_struct("Error", 9)?;
        parts.serialize_field("code", d.code.as_str())?;
        parts.serialize_field("message", &d.message)?;
        parts.serialize_field("subject", &d.subject)?;
        parts.serialize_field("path", &d.path.as_deref().map(Path::to_string_lossy))?;
        parts.serialize_field("tensor", &d.tensor)?;
        parts.serialize_field("expected", &d.expected)?;
        parts.serialize_field("found", &d.found)?;
        parts.serialize_field("hint", self.remedy())?;
        parts.serialize_field("others", &d.others)?;
        parts.end()
    }
}

/// Text of a file, made safe to print: control characters are escaped, so that no tensor name can forge a log line.
fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_distinct_snake_case_with_a_noun_prefix() {
        let mut seen = std::collections::HashSet::new();
        for &code in ErrorCode::ALL {
            let text = code.as_str();
            assert!(seen.insert(text), "{text} stands twice");
            assert!(text.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{text}");
            assert!(!code.summary().is_empty());
        }
    }

    #[test]
    fn programs_find_every_part_by_its_name() {
        let error =
            Error::new(ErrorCode::AdapterRankMismatch, "ranks differ").with_tensor("t").with_path("a/b").with_found(8);
        assert_eq!(
            serde_json::to_value(&error).expect("serializes"),
            serde_json::json!({
                "code": "adapter_rank_mismatch", "message": "ranks differ", "subject": null, "path": "a/b",
                "tensor": "t", "expected": null, "found": "8", "hint": "config and weights are of different runs",
                "others": []
            })
        );
    }

    #[test]
    fn control_characters_of_a_file_are_escaped() {
        let error =
            Error::new(ErrorCode::AdapterTensorUnexpected, "a tensor is unknown").with_tensor("a\nroot: \x1b[31mb");
        assert!(!error.to_string().contains('\n'));
        assert!(error.to_string().contains("a\\nroot: \\u{1b}[31mb"));
    }

    #[test]
    fn the_first_problem_carries_the_others() {
        let problem = |n: usize| Error::new(ErrorCode::AdapterTensorMissing, format!("problem {n}"));
        let all = Error::all(vec![problem(1), problem(2), problem(3)]).expect("not empty");
        assert_eq!(all.others().len(), 2);
        assert!(all.to_string().contains("also: problem 3"));
        assert_eq!(all.into_list(), vec![problem(1), problem(2), problem(3)]);
        assert!(Error::all(Vec::new()).is_none());
    }
}
