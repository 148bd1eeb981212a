//! The table of PEFT features: supported, refused, or without effect. It is documentation as data.
//!
//! The rows of fields come from the table in [`config`](super::config), which also decides what happens to them. The rows
//! here cover everything else: other adapter types, formats, spellings, combinations.

use std::fmt;

use crate::adapter::config::fields::{FIELDS, Rule};
use crate::error::ErrorCode;

/// What happens to a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is supported, with PEFT's results.
    Yes,
    /// An adapter that needs it is refused under this code.
    Refused(ErrorCode),
    /// It cannot change a result.
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
    /// What happens to it.
    pub verdict: Verdict,
    /// A note in one line.
    pub note: &'static str,
}

const fn row(feature: &'static str, verdict: Verdict, note: &'static str) -> FeatureRow {
    FeatureRow { feature, verdict, note }
}

/// Features that are not fields of a config, or only some values of one.
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
        "true, a text that is no label, or a list or object that is not empty: it may change the result",
    ),
    row("LoRA on embeddings (`lora_embedding_A`, `lora_embedding_B`)", Verdict::Yes, "with DoRA too"),
    row("LoRA on `lm_head`", Verdict::Yes, "on a tied head too; the embedding then keeps its weight"),
    row(
        "a resized vocabulary (`save_embedding_layers`)",
        Verdict::Yes,
        "weights with more rows replace the base's; copies of the base's weights are dropped",
    ),
    row(
        "fewer embedding or head rows than the base has",
        Verdict::Refused(ErrorCode::AdapterShapeMismatch),
        "the base's vocabulary is padded, or the adapter's was truncated",
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
        "two of DoRA, BD-LoRA, aLoRA, KaSA, VeLoRA, MonteCLoRA, MiCA",
        Verdict::Refused(ErrorCode::AdapterConfigInvalid),
        "PEFT refuses it too; all else combines with each of them",
    ),
    row(
        "`lora_bias` with DoRA or a named initialization; DoRA with `megatron_config`; a text as `target_modules` with `layers_*`",
        Verdict::Refused(ErrorCode::AdapterConfigInvalid),
        "PEFT refuses it too",
    ),
    row(
        "QA-LoRA with DoRA, aLoRA, KaSA or VeLoRA",
        Verdict::Yes,
        "where A is not pooled, as PEFT saves it for a base that is not GPTQ; a pooled A is refused",
    ),
    row(
        "`trainable_token_indices` with LoRA or `modules_to_save` on one module; LoRA on an embedding with `lora_bias` or a \
            variant other than DoRA or MiCA",
        Verdict::Refused(ErrorCode::AdapterFeatureUnsupported),
        "PEFT refuses it too",
    ),
    row("`adapter_model.safetensors` in float32, float16, bfloat16", Verdict::Yes, "mixed within a file too"),
    row("any other data type", Verdict::Refused(ErrorCode::AdapterDtypeUnsupported), "float64, float8, integers"),
    row("values that are not finite", Verdict::Refused(ErrorCode::AdapterNotFinite), "the message counts them"),
    row(
        "`adapter_model.bin`, shards, mlx-lm, diffusers, kohya",
        Verdict::Refused(ErrorCode::AdapterFormatUnsupported),
        "a pickle is never opened; the message says how to convert",
    ),
    row(
        "names without `base_model.model.`, from torch.compile, DDP or FSDP, or with an adapter's name",
        Verdict::Yes,
        "one spelling over the whole file",
    ),
    row(
        "names of a multimodal model (`model.language_model.`, `language_model.model.`)",
        Verdict::Yes,
        "on the text model under any of its spellings; one over the whole file",
    ),
    row(
        "LoRA on modules of vision or audio",
        Verdict::NoEffect,
        "left out and counted, beside what acts on text; alone it is refused",
    ),
    row(
        "a mixture of adapters, each with a weight",
        Verdict::Yes,
        "like `set_adapter([...])` and `set_scale`; with DoRA the order matters",
    ),
    row(
        "a weight other than 1 on an adapter that replaces weights, biases or rows",
        Verdict::Refused(ErrorCode::AdapterWeightInvalid),
        "PEFT does not define it",
    ),
    row(
        "two adapters of a mixture that replace or truncate the same part",
        Verdict::Refused(ErrorCode::AdapterMixtureInvalid),
        "PEFT refuses it too",
    ),
];

/// Every feature and what happens to it: the fields of adapter_config.json, then the rest.
pub fn table() -> Vec<FeatureRow> {
    let field_row = |&(feature, rule, note): &(&'static str, Rule, &'static str)| {
        let verdict = match rule {
            Rule::Read(_) | Rule::Checked => Verdict::Yes,
            Rule::NoEffect | Rule::Noted => Verdict::NoEffect,
            Rule::Refused(feature, _) => Verdict::Refused(feature.refusal().code()),
        };
        row(feature, verdict, note)
    };
    FIELDS.iter().map(field_row).chain(OTHERS.iter().copied()).collect()
}
