//! The supported model families: what each architecture fixes, which members of config.json it reads, and their defaults. All
//! facts are those of transformers 5.23, `configuration_*.py` and `modeling_*.py`.

use serde_json::Value;

use super::fields::{FieldType, Fields, invalid, wrong};
use crate::error::{Error, ErrorCode, Result};

/// A model family. `model_type` of config.json selects it.
pub(super) struct Family {
    pub model_type: &'static str,
    pub architecture: &'static str,
    /// q, k and v have biases, whatever `attention_bias` says.
    pub fixed_qkv_bias: bool,
    /// `attention_bias` is read, for q, k, v and o.
    pub optional_attention_bias: bool,
    /// `mlp_bias` is read.
    pub optional_mlp_bias: bool,
    pub has_qk_norm: bool,
    pub window: WindowRule,
    pub head_dim: HeadDimRule,
    /// Whether `hidden_size` must be a multiple of the number of heads.
    pub heads_divide_hidden: bool,
    /// `num_key_value_heads`, if it is absent; `None` is the number of heads.
    pub default_kv_heads: Option<i64>,
    /// Whether `num_key_value_heads` may be null, which is the number of heads.
    pub nullable_kv_heads: bool,
    pub default_intermediate_size: usize,
    pub default_vocab_size: usize,
    pub default_positions: usize,
    pub default_bos: Option<i64>,
    pub default_eos: Option<i64>,
    /// Members that transformers checks and exlora does not need: name, type, whether they may be null.
    pub unused: &'static [(&'static str, FieldType, bool)],
}

/// Which layers have an attention window.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum WindowRule {
    /// None; `layer_types` may only say so.
    None,
    /// All, if `sliding_window` is not null.
    Every,
    /// Those that `layer_types` names; by default all, if `sliding_window` is not null.
    ByLayerType,
    /// Those that `layer_types` names, by default from `max_window_layers` on; `use_sliding_window` switches `sliding_window` on.
    BySwitch,
}

/// How `head_dim` is read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum HeadDimRule {
    /// Null and absent mean `hidden_size / num_attention_heads`.
    Nullable,
    /// The same, and so does 0.
    NullableOrZero,
    /// Absent means this; it cannot be null.
    Fixed(i64),
    /// Absent means `hidden_size / num_attention_heads`; it cannot be null.
    Undeclared,
    /// It must be given.
    Required,
}

const UNUSED: &[(&str, FieldType, bool)] = &[
    ("initializer_range", FieldType::Float, false),
    ("use_cache", FieldType::Flag, false),
    ("attention_dropout", FieldType::Number, false),
];
const UNUSED_BY_LLAMA: &[(&str, FieldType, bool)] = &[
    ("initializer_range", FieldType::Float, false),
    ("use_cache", FieldType::Flag, false),
    ("attention_dropout", FieldType::Number, true),
    ("pretraining_tp", FieldType::Integer, true),
];

const LLAMA: Family = Family {
    model_type: "llama",
    architecture: "LlamaForCausalLM",
    fixed_qkv_bias: false,
    optional_attention_bias: true,
    optional_mlp_bias: true,
    has_qk_norm: false,
    window: WindowRule::None,
    head_dim: HeadDimRule::Nullable,
    heads_divide_hidden: true,
    default_kv_heads: None,
    nullable_kv_heads: true,
    default_intermediate_size: 11008,
    default_vocab_size: 32000,
    default_positions: 2048,
    default_bos: Some(1),
    default_eos: Some(2),
    unused: UNUSED_BY_LLAMA,
};

const MISTRAL: Family = Family {
    model_type: "mistral",
    architecture: "MistralForCausalLM",
    optional_attention_bias: false,
    optional_mlp_bias: false,
    window: WindowRule::Every,
    head_dim: HeadDimRule::NullableOrZero,
    heads_divide_hidden: false,
    default_kv_heads: Some(8),
    nullable_kv_heads: false,
    default_intermediate_size: 14336,
    default_positions: 131_072,
    unused: UNUSED,
    ..LLAMA
};

const MINISTRAL: Family = Family {
    model_type: "ministral",
    architecture: "MinistralForCausalLM",
    window: WindowRule::ByLayerType,
    head_dim: HeadDimRule::Required,
    ..MISTRAL
};

const QWEN2: Family = Family {
    model_type: "qwen2",
    architecture: "Qwen2ForCausalLM",
    fixed_qkv_bias: true,
    optional_attention_bias: false,
    optional_mlp_bias: false,
    window: WindowRule::BySwitch,
    head_dim: HeadDimRule::Undeclared,
    heads_divide_hidden: false,
    default_kv_heads: Some(32),
    default_intermediate_size: 22016,
    default_vocab_size: 151_936,
    default_positions: 32768,
    default_bos: None,
    default_eos: None,
    unused: UNUSED,
    ..LLAMA
};

const QWEN3: Family = Family {
    model_type: "qwen3",
    architecture: "Qwen3ForCausalLM",
    fixed_qkv_bias: false,
    optional_attention_bias: true,
    has_qk_norm: true,
    head_dim: HeadDimRule::Fixed(128),
    ..QWEN2
};

const FAMILIES: &[Family] = &[LLAMA, MISTRAL, MINISTRAL, QWEN2, QWEN3];

/// The supported architectures, by their names in config.json.
pub fn architectures() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|family| family.architecture)
}

impl Family {
    /// The family that transformers' `AutoModelForCausalLM` would build: that of `model_type`. `architectures` must not name
    /// anything else than a supported one, since the weights would be those of something else.
    pub(super) fn of(fields: &Fields<'_>) -> Result<&'static Self> {
        let architecture = fields.get("architectures").and_then(|list| list.get(0)).and_then(Value::as_str);
        let is_supported = |name: &str| FAMILIES.iter().any(|family| family.architecture.eq_ignore_ascii_case(name));
        if let Some(name) = architecture.filter(|name| !is_supported(name)) {
            return Err(unsupported_architecture(name));
        }
        let model_type = match fields.get("model_type") {
            None => {
                return Err(invalid("model_type").with_expected("the name of the model family").with_found("nothing"));
            }
            Some(Value::String(name)) => name.as_str(),
            Some(value) => return Err(wrong("model_type", "the name of the model family", value)),
        };
        // As AutoConfig does: a Mistral whose layers differ is a Ministral.
        let model_type = match model_type {
            "mistral" if fields.get("layer_types").is_some() => "ministral",
            other => other,
        };
        let family = FAMILIES.iter().find(|family| family.model_type == model_type);
        let family = family.ok_or_else(|| unsupported_architecture(model_type))?;
        if let Some(name) = architecture.filter(|name| !family.architecture.eq_ignore_ascii_case(name)) {
            tracing::warn!(architecture = name, family.model_type, "model_type decides, not architectures");
        }
        Ok(family)
    }
}

fn unsupported_architecture(name: &str) -> Error {
    Error::new(ErrorCode::ModelArchitectureUnsupported, format!("unsupported architecture '{name}'"))
        .with_expected(architectures().collect::<Vec<_>>().join(", "))
        .with_found(name)
}
