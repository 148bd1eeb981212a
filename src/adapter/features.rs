//! PEFT's features and what becomes of each: the table that users read, and the refusals of what is not served.
//!
//! What a field of adapter_config.json means stands in one row of `config`, which also decides it; the rows here are what
//! is no field: other types, formats, spellings, combinations. [`table`] is both.

use std::fmt;

use crate::adapter::config;
use crate::error::{Error, ErrorCode};

/// What becomes of a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is served as PEFT computes it.
    Yes,
    /// An adapter that needs it is refused under this code.
    Refused(ErrorCode),
    /// It can't change a result.
    NoEffect,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verdict::Yes => "yes",
            Verdict::Refused(_) => "refused",
            Verdict::NoEffect => "no effect",
        })
    }
}

/// A feature of PEFT.
#[derive(Clone, Copy, Debug)]
pub struct FeatureRow {
    /// Its name: a field of adapter_config.json, or what users call it.
    pub feature: &'static str,
    /// What becomes of it.
    pub verdict: Verdict,
    /// What it means, in a line.
    pub note: &'static str,
}

const fn row(feature: &'static str, verdict: Verdict, note: &'static str) -> FeatureRow {
    FeatureRow { feature, verdict, note }
}

/// What is no field of a config, or only some values of one.
const OTHERS: &[FeatureRow] = &[
    row(
        "`init_lora_weights`: pissa, olora, corda, loftq, lora_ga",
        Verdict::Refused(ErrorCode::AdapterBaseChanged),
        "the initialization changed the base; convert the adapter back to the original base",
    ),
    row(
        "`init_lora_weights`: an unknown name",
        Verdict::Refused(ErrorCode::AdapterFeatureUnsupported),
        "it may have changed the base",
    ),
    row(
        "any other `peft_type`",
        Verdict::Refused(ErrorCode::AdapterTypeUnsupported),
        "AdaLoRA, IA3, LoHa, LoKr, VeRA, OFT, prompt tuning and so on",
    ),
    row(
        "a field PEFT 0.21 does not know, switched on",
        Verdict::Refused(ErrorCode::AdapterFeatureUnsupported),
        "true, or a list or object that is not empty: it may change the result",
    ),
    row("LoRA on embeddings (`lora_embedding_A`, `lora_embedding_B`)", Verdict::Yes, "with DoRA too"),
    row("LoRA on `lm_head`", Verdict::Yes, "on a tied head too; then the embedding keeps its weight"),
    row(
        "a resized vocabulary (`save_embedding_layers`)",
        Verdict::Yes,
        "weights with more rows than the base's stand in its place; a copy of the base's own is dropped",
    ),
    row(
        "fewer embedding or head rows than the base has",
        Verdict::Refused(ErrorCode::AdapterShapeMismatch),
        "the base's vocabulary is padded, or the adapter's was cut",
    ),
    row(
        "fused projections (`qkv_proj`, `gate_up_proj`)",
        Verdict::Yes,
        "on a base that has them split, and the reverse",
    ),
    row(
        "DoRA, a replaced weight or bias on some parts of a fused projection",
        Verdict::Refused(ErrorCode::AdapterFeatureUnsupported),
        "on a base that has the projection fused: on all parts, or on none",
    ),
    row(
        "DoRA with `lora_bias`, aLoRA, BD-LoRA, QA-LoRA or KaSA",
        Verdict::Refused(ErrorCode::AdapterConfigInvalid),
        "PEFT refuses it too",
    ),
    row(
        "LoRA and `trainable_token_indices` on one module; aLoRA on an embedding",
        Verdict::Refused(ErrorCode::AdapterFeatureUnsupported),
        "PEFT refuses it too",
    ),
    row("`adapter_model.safetensors` in float32, float16, bfloat16", Verdict::Yes, "mixed within a file too"),
    row("any other data type", Verdict::Refused(ErrorCode::AdapterDtypeUnsupported), "float64, float8, integers"),
    row("values that are not finite", Verdict::Refused(ErrorCode::AdapterNotFinite), "the message counts them"),
    row(
        "`adapter_model.bin`, shards, mlx-lm, diffusers, kohya",
        Verdict::Refused(ErrorCode::AdapterFormatUnsupported),
        "a pickle is never opened; the message tells how to convert",
    ),
    row(
        "names without `base_model.model.`, of torch.compile, DDP, FSDP, or with an adapter's name",
        Verdict::Yes,
        "one spelling over the whole file",
    ),
    row(
        "a mixture of adapters, each with a weight",
        Verdict::Yes,
        "as `set_adapter([...])` and `set_scale`; their order matters with DoRA",
    ),
    row(
        "a weight other than 1 on an adapter that replaces weights, biases or rows",
        Verdict::Refused(ErrorCode::AdapterWeightInvalid),
        "PEFT has no meaning for it",
    ),
    row(
        "two adapters of a mixture that replace or truncate the same part",
        Verdict::Refused(ErrorCode::AdapterMixtureInvalid),
        "PEFT refuses it too",
    ),
];

/// Every feature and what becomes of it: the fields of adapter_config.json, then the rest.
pub fn table() -> Vec<FeatureRow> {
    config::rows().chain(OTHERS.iter().copied()).collect()
}

/// A feature that is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Feature {
    /// Factors on parameters that are no linears, such as stacked experts.
    TargetParameters,
    /// A router over other adapters.
    Arrow,
    /// A head of another task than text generation.
    TaskHead,
    /// An initialization that is not known, and may have changed the base.
    Initialization,
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Feature::TargetParameters => "LoRA on parameters (target_parameters)",
            Feature::Arrow => "Arrow routing (arrow_config)",
            Feature::TaskHead => "another task than text generation (task_type)",
            Feature::Initialization => "an unknown initialization (init_lora_weights)",
        })
    }
}

impl Feature {
    /// The refusal of an adapter that needs it.
    pub(super) fn refusal(self) -> Error {
        unsupported(format!("the adapter needs {self}; it is not served"))
    }
}

/// A refusal of something that is understood and not served.
pub(super) fn unsupported(what: impl Into<String>) -> Error {
    Error::new(ErrorCode::AdapterFeatureUnsupported, what)
}
