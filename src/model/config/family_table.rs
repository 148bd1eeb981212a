//! The supported model families, as data. All facts are those of transformers 5.23, `configuration_*.py` and `modeling_*.py`.

use super::description::{Block, Mlp};
use super::family::{
    ActivationRule, BiasRule, BiasRules, DefaultSizes, DefaultTokens, EmbedRule, Family, HeadDimRule, KvHeadsRule,
    LogitRule, NormRule, QkNormRule, RopeParametersRule, RotatedLayers, RotationRule, ScaleRule, WindowRule,
    WrappedText, Wrapper,
};
use super::fields::FieldType;
use crate::backend::{Activation, HeadNormScope, MlpShape, NormKind, RopeLayout};

type Unused = &'static [(&'static str, FieldType, bool)];

const UNUSED: Unused = &[
    ("initializer_range", FieldType::Float, false),
    ("use_cache", FieldType::Flag, false),
    ("attention_dropout", FieldType::Number, false),
];
const UNUSED_NULLABLE_DROPOUT: Unused = &[
    ("initializer_range", FieldType::Float, false),
    ("use_cache", FieldType::Flag, false),
    ("attention_dropout", FieldType::Number, true),
];
/// Of Gemma 3, which never applies its cap of scores.
const UNUSED_BY_GEMMA3: Unused = &[
    ("initializer_range", FieldType::Float, false),
    ("use_cache", FieldType::Flag, false),
    ("attention_dropout", FieldType::Number, true),
    ("attn_logit_softcapping", FieldType::Float, true),
];
const UNUSED_BY_LLAMA: Unused = &[
    ("initializer_range", FieldType::Float, false),
    ("use_cache", FieldType::Flag, false),
    ("attention_dropout", FieldType::Number, true),
    ("pretraining_tp", FieldType::Integer, true),
];
const UNUSED_BY_PHI3: Unused = &[
    ("initializer_range", FieldType::Float, false),
    ("use_cache", FieldType::Flag, false),
    ("attention_dropout", FieldType::Number, false),
    ("resid_pdrop", FieldType::Number, false),
    ("embd_pdrop", FieldType::Number, false),
];
const UNUSED_BY_STARCODER2: Unused = &[
    ("initializer_range", FieldType::Float, false),
    ("use_cache", FieldType::Flag, false),
    ("attention_dropout", FieldType::Number, false),
    ("residual_dropout", FieldType::Number, false),
    ("embedding_dropout", FieldType::Number, false),
];

const NO_BIASES: BiasRules = BiasRules { qkv: BiasRule::Never, output: BiasRule::Never, mlp: BiasRule::Never };
/// `attention_bias` for q, k, v and o.
const ATTENTION_BIASES: BiasRules = BiasRules {
    qkv: BiasRule::Read("attention_bias", false),
    output: BiasRule::Read("attention_bias", false),
    mlp: BiasRule::Never,
};
/// The same, and `mlp_bias`.
const ALL_BIASES: BiasRules = BiasRules { mlp: BiasRule::Read("mlp_bias", false), ..ATTENTION_BIASES };

const SILU: ActivationRule = ActivationRule { key: "hidden_act", gelu_is_tanh: false };

const RMS_NORMS: NormRule =
    NormRule { kind: NormKind::Rms, eps: ("rms_norm_eps", 1e-6), offset: 0.0, has_bias: false, qk: QkNormRule::Never };

const ROTATION: RotationRule = RotationRule {
    layout: RopeLayout::Halves,
    theta: 10_000.0,
    is_partial: false,
    share: 1.0,
    parameters: RopeParametersRule::Shared,
    layers: RotatedLayers::All,
    has_query_temperature: false,
};

const LLAMA: Family = Family {
    model_type: "llama",
    architecture: "LlamaForCausalLM",
    models: "Llama 2, 3, 3.1, 3.2 and 3.3 (text), SmolLM 1 and 2, TinyLlama, Yi and others of that form",
    sizes: DefaultSizes { hidden: 4096, intermediate: 11008, layers: 32, heads: 32, vocab: 32000, positions: 2048 },
    kv_heads: KvHeadsRule { default: None, is_nullable: true },
    head_dim: HeadDimRule::Nullable,
    heads_divide_hidden: true,
    norms: RMS_NORMS,
    block: Block::PRE_NORMS,
    mlp: Mlp::gated(Activation::Silu),
    activation: SILU,
    biases: ALL_BIASES,
    window: WindowRule::None,
    default_window: None,
    rotation: ROTATION,
    scale: ScaleRule::HeadDim,
    score_cap: None,
    embed: EmbedRule::One,
    has_residual_multiplier: false,
    logits: LogitRule::Nothing,
    is_head_tied: false,
    tokens: DefaultTokens { bos: Some(1), eos: &[2], null_is_default_eos: false, pad: None },
    unused: UNUSED_BY_LLAMA,
};

const MISTRAL: Family = Family {
    model_type: "mistral",
    architecture: "MistralForCausalLM",
    models: "Mistral 7B, Nemo, Small (text), Zephyr",
    sizes: DefaultSizes { intermediate: 14336, positions: 131_072, ..LLAMA.sizes },
    kv_heads: KvHeadsRule { default: Some(8), is_nullable: false },
    head_dim: HeadDimRule::NullableOrZero,
    heads_divide_hidden: false,
    biases: NO_BIASES,
    window: WindowRule::Every,
    default_window: Some(4096),
    unused: UNUSED,
    ..LLAMA
};

const MINISTRAL: Family = Family {
    model_type: "ministral",
    architecture: "MinistralForCausalLM",
    models: "Ministral 8B",
    head_dim: HeadDimRule::Required,
    window: WindowRule::ByLayerType,
    ..MISTRAL
};

const MINISTRAL3: Family = Family {
    model_type: "ministral3",
    architecture: "Ministral3ForCausalLM",
    models: "Ministral 3 (text)",
    sizes: DefaultSizes { layers: 34, vocab: 131_072, positions: 262_144, ..MISTRAL.sizes },
    head_dim: HeadDimRule::Fixed(128),
    norms: NormRule { eps: ("rms_norm_eps", 1e-5), ..RMS_NORMS },
    default_window: None,
    rotation: RotationRule {
        parameters: RopeParametersRule::SharedOr(
            r#"{"type": "yarn", "rope_theta": 1000000.0, "factor": 16.0, "original_max_position_embeddings": 16384,
                "beta_fast": 32.0, "beta_slow": 1.0, "mscale_all_dim": 1.0, "mscale": 1.0, "llama_4_scaling_beta": 0.1}"#,
        ),
        has_query_temperature: true,
        ..ROTATION
    },
    tokens: DefaultTokens { pad: Some(11), ..LLAMA.tokens },
    ..MISTRAL
};

const QWEN2: Family = Family {
    model_type: "qwen2",
    architecture: "Qwen2ForCausalLM",
    models: "Qwen2, Qwen2.5, QwQ, DeepSeek-R1-Distill-Qwen",
    sizes: DefaultSizes { intermediate: 22016, vocab: 151_936, positions: 32768, ..LLAMA.sizes },
    kv_heads: KvHeadsRule { default: Some(32), is_nullable: true },
    head_dim: HeadDimRule::Undeclared,
    heads_divide_hidden: false,
    biases: BiasRules { qkv: BiasRule::Always, ..NO_BIASES },
    window: WindowRule::BySwitch,
    default_window: Some(4096),
    tokens: DefaultTokens { bos: None, eos: &[], ..LLAMA.tokens },
    unused: UNUSED,
    ..LLAMA
};

const QWEN3: Family = Family {
    model_type: "qwen3",
    architecture: "Qwen3ForCausalLM",
    models: "Qwen3 (dense)",
    head_dim: HeadDimRule::Fixed(128),
    norms: NormRule { qk: QkNormRule::Always(HeadNormScope::Head), ..RMS_NORMS },
    biases: ATTENTION_BIASES,
    ..QWEN2
};

const GRANITE: Family = Family {
    model_type: "granite",
    architecture: "GraniteForCausalLM",
    models: "Granite 3 (dense)",
    head_dim: HeadDimRule::Undeclared,
    heads_divide_hidden: false,
    scale: ScaleRule::Multiplier,
    embed: EmbedRule::Multiplier,
    has_residual_multiplier: true,
    logits: LogitRule::Divided,
    unused: UNUSED,
    ..LLAMA
};

const SMOLLM3: Family = Family {
    model_type: "smollm3",
    architecture: "SmolLM3ForCausalLM",
    models: "SmolLM3",
    sizes: DefaultSizes { hidden: 2048, layers: 36, heads: 16, vocab: 128_256, positions: 32768, ..LLAMA.sizes },
    kv_heads: KvHeadsRule { default: Some(4), is_nullable: true },
    head_dim: HeadDimRule::Undeclared,
    heads_divide_hidden: false,
    window: WindowRule::BySwitchUnrotated,
    rotation: RotationRule { theta: 2_000_000.0, layers: RotatedLayers::Listed { unrotated_every: 4 }, ..ROTATION },
    is_head_tied: true,
    tokens: DefaultTokens { bos: Some(128_000), eos: &[128_001], null_is_default_eos: false, pad: Some(128_004) },
    unused: UNUSED,
    ..LLAMA
};

const GEMMA: Family = Family {
    model_type: "gemma",
    architecture: "GemmaForCausalLM",
    models: "Gemma 1",
    sizes: DefaultSizes { hidden: 3072, intermediate: 24576, layers: 28, heads: 16, vocab: 256_000, positions: 8192 },
    kv_heads: KvHeadsRule { default: Some(16), is_nullable: false },
    head_dim: HeadDimRule::Fixed(256),
    heads_divide_hidden: false,
    norms: NormRule { offset: 1.0, ..RMS_NORMS },
    mlp: Mlp::gated(Activation::GeluTanh),
    activation: ActivationRule { key: "hidden_act", gelu_is_tanh: true },
    biases: ATTENTION_BIASES,
    embed: EmbedRule::RootOfWidth,
    is_head_tied: true,
    tokens: DefaultTokens { bos: Some(2), eos: &[1], null_is_default_eos: false, pad: Some(0) },
    unused: UNUSED,
    ..LLAMA
};

/// The block of Gemma 2 and 3: a norm before and after each branch.
const SANDWICH_NORMS: Block = Block {
    pre_attention: Some("input_layernorm"),
    post_attention: Some("post_attention_layernorm"),
    pre_mlp: Some("pre_feedforward_layernorm"),
    post_mlp: Some("post_feedforward_layernorm"),
    is_parallel: false,
};

const GEMMA2: Family = Family {
    model_type: "gemma2",
    architecture: "Gemma2ForCausalLM",
    models: "Gemma 2",
    sizes: DefaultSizes { hidden: 2304, intermediate: 9216, layers: 26, heads: 8, ..GEMMA.sizes },
    kv_heads: KvHeadsRule { default: Some(4), is_nullable: false },
    heads_divide_hidden: true,
    block: SANDWICH_NORMS,
    activation: ActivationRule { key: "hidden_activation", gelu_is_tanh: false },
    window: WindowRule::Pattern { key: None, full_every: 2 },
    default_window: Some(4096),
    scale: ScaleRule::QueryScalar(256),
    score_cap: Some(50.0),
    logits: LogitRule::Capped(Some(30.0)),
    unused: UNUSED_NULLABLE_DROPOUT,
    ..GEMMA
};

const GEMMA3: Family = Family {
    model_type: "gemma3_text",
    architecture: "Gemma3ForCausalLM",
    models: "Gemma 3 270M and 1B, the text of the larger ones",
    sizes: DefaultSizes { vocab: 262_208, positions: 131_072, ..GEMMA2.sizes },
    norms: NormRule { qk: QkNormRule::Always(HeadNormScope::Head), ..GEMMA.norms },
    window: WindowRule::Pattern { key: Some("sliding_window_pattern"), full_every: 6 },
    score_cap: None,
    rotation: RotationRule {
        theta: 1_000_000.0,
        parameters: RopeParametersRule::ByLayerType { local_theta: (Some("rope_local_base_freq"), 10_000.0) },
        ..ROTATION
    },
    logits: LogitRule::Capped(None),
    unused: UNUSED_BY_GEMMA3,
    ..GEMMA2
};

const GLM: Family = Family {
    model_type: "glm",
    architecture: "GlmForCausalLM",
    models: "GLM-4 9B (`-hf`), GLM-Edge",
    sizes: DefaultSizes { intermediate: 13696, layers: 40, vocab: 151_552, positions: 131_072, ..LLAMA.sizes },
    kv_heads: KvHeadsRule { default: Some(2), is_nullable: false },
    head_dim: HeadDimRule::Fixed(128),
    heads_divide_hidden: false,
    norms: NormRule { eps: ("rms_norm_eps", 1.5625e-7), ..RMS_NORMS },
    biases: BiasRules { qkv: BiasRule::Read("attention_bias", true), ..NO_BIASES },
    rotation: RotationRule { layout: RopeLayout::Pairs, is_partial: true, share: 0.5, ..ROTATION },
    tokens: DefaultTokens {
        bos: None,
        eos: &[151_329, 151_336, 151_338],
        null_is_default_eos: true,
        pad: Some(151_329),
    },
    unused: UNUSED_NULLABLE_DROPOUT,
    ..LLAMA
};

const GLM4: Family = Family {
    model_type: "glm4",
    architecture: "Glm4ForCausalLM",
    models: "GLM-4-0414 9B and 32B, GLM-Z1",
    block: Block {
        post_attention: Some("post_self_attn_layernorm"),
        post_mlp: Some("post_mlp_layernorm"),
        ..Block::PRE_NORMS
    },
    unused: UNUSED,
    ..GLM
};

const OLMO2: Family = Family {
    model_type: "olmo2",
    architecture: "Olmo2ForCausalLM",
    models: "OLMo 2",
    sizes: DefaultSizes { vocab: 50304, ..LLAMA.sizes },
    head_dim: HeadDimRule::Undeclared,
    heads_divide_hidden: false,
    norms: NormRule { eps: ("rms_norm_eps", 1e-5), qk: QkNormRule::Always(HeadNormScope::All), ..RMS_NORMS },
    block: Block { pre_attention: None, pre_mlp: None, ..SANDWICH_NORMS },
    biases: ATTENTION_BIASES,
    tokens: DefaultTokens { bos: None, eos: &[50279], null_is_default_eos: false, pad: Some(1) },
    unused: UNUSED,
    ..LLAMA
};

const OLMO3: Family = Family {
    model_type: "olmo3",
    architecture: "Olmo3ForCausalLM",
    models: "OLMo 3",
    window: WindowRule::Pattern { key: None, full_every: 4 },
    default_window: Some(4096),
    rotation: RotationRule {
        theta: 500_000.0,
        // `rope_theta` is that of the layers without a window.
        parameters: RopeParametersRule::ByLayerType { local_theta: (None, 500_000.0) },
        ..ROTATION
    },
    ..OLMO2
};

const PHI3: Family = Family {
    model_type: "phi3",
    architecture: "Phi3ForCausalLM",
    models: "Phi-3 and 3.5 mini and medium, Phi-4, Phi-4-mini",
    sizes: DefaultSizes { hidden: 3072, intermediate: 8192, vocab: 32064, positions: 4096, ..LLAMA.sizes },
    head_dim: HeadDimRule::Undeclared,
    heads_divide_hidden: false,
    norms: NormRule { eps: ("rms_norm_eps", 1e-5), ..RMS_NORMS },
    biases: NO_BIASES,
    window: WindowRule::Every,
    rotation: RotationRule {
        is_partial: true,
        parameters: RopeParametersRule::Longrope { original_positions: 4096 },
        ..ROTATION
    },
    tokens: DefaultTokens { bos: Some(1), eos: &[32000], null_is_default_eos: false, pad: Some(32000) },
    unused: UNUSED_BY_PHI3,
    ..LLAMA
};

const COHERE: Family = Family {
    model_type: "cohere",
    architecture: "CohereForCausalLM",
    models: "Command R and R+, Aya 23 and Expanse",
    sizes: DefaultSizes { hidden: 8192, intermediate: 22528, layers: 40, heads: 64, vocab: 256_000, positions: 8192 },
    head_dim: HeadDimRule::Undeclared,
    heads_divide_hidden: false,
    norms: NormRule {
        kind: NormKind::Layer,
        eps: ("layer_norm_eps", 1e-5),
        qk: QkNormRule::BySwitch(HeadNormScope::HeadOwn),
        ..RMS_NORMS
    },
    block: Block { pre_mlp: None, is_parallel: true, ..Block::PRE_NORMS },
    biases: ATTENTION_BIASES,
    rotation: RotationRule { layout: RopeLayout::Pairs, theta: 500_000.0, ..ROTATION },
    logits: LogitRule::Scaled(0.0625),
    is_head_tied: true,
    tokens: DefaultTokens { bos: Some(5), eos: &[255_001], null_is_default_eos: false, pad: Some(0) },
    unused: UNUSED_NULLABLE_DROPOUT,
    ..LLAMA
};

const COHERE2: Family = Family {
    model_type: "cohere2",
    architecture: "Cohere2ForCausalLM",
    models: "Command R7B and A",
    norms: NormRule { qk: QkNormRule::Never, ..COHERE.norms },
    window: WindowRule::Pattern { key: Some("sliding_window_pattern"), full_every: 4 },
    default_window: Some(4096),
    rotation: RotationRule { theta: 10_000.0, layers: RotatedLayers::Windowed, ..COHERE.rotation },
    unused: UNUSED,
    ..COHERE
};

const STARCODER2: Family = Family {
    model_type: "starcoder2",
    architecture: "Starcoder2ForCausalLM",
    models: "StarCoder2",
    sizes: DefaultSizes { hidden: 3072, intermediate: 12288, layers: 30, heads: 24, vocab: 49152, positions: 4096 },
    kv_heads: KvHeadsRule { default: Some(2), is_nullable: false },
    head_dim: HeadDimRule::NullableOrZero,
    heads_divide_hidden: false,
    norms: NormRule { kind: NormKind::Layer, eps: ("norm_epsilon", 1e-5), has_bias: true, ..RMS_NORMS },
    mlp: Mlp { shape: MlpShape::Plain, activation: Activation::GeluTanh, inputs: &["mlp.c_fc"], output: "mlp.c_proj" },
    biases: BiasRules {
        qkv: BiasRule::Read("use_bias", true),
        output: BiasRule::Read("use_bias", true),
        mlp: BiasRule::Read("use_bias", true),
    },
    window: WindowRule::Every,
    is_head_tied: true,
    tokens: DefaultTokens { bos: Some(50256), eos: &[50256], ..LLAMA.tokens },
    unused: UNUSED_BY_STARCODER2,
    ..LLAMA
};

/// Every family.
pub(super) const FAMILIES: &[Family] = &[
    LLAMA, MISTRAL, MINISTRAL, MINISTRAL3, QWEN2, QWEN3, GEMMA, GEMMA2, GEMMA3, PHI3, GRANITE, GLM, GLM4, OLMO2, OLMO3,
    COHERE, COHERE2, STARCODER2, SMOLLM3,
];

/// Multimodal models of which the text model is served.
pub(super) const WRAPPERS: &[Wrapper] = &[
    Wrapper {
        model_type: "gemma3",
        architecture: "Gemma3ForConditionalGeneration",
        models: "Gemma 3 4B, 12B and 27B: text",
        text: WrappedText::Always("gemma3_text"),
    },
    Wrapper {
        model_type: "mistral3",
        architecture: "Mistral3ForConditionalGeneration",
        models: "Mistral Small 3.1 and 3.2, Ministral 3: text",
        text: WrappedText::Named("mistral"),
    },
];

/// Architectures that are not served, by what their names contain in small letters, and why. The first that fits counts.
pub(super) const REFUSED: &[(&str, &str)] = &[
    ("gemma3n", "Gemma 3n has several residual streams and embeddings of each layer"),
    ("gemma4", "Gemma 4 has heads of several widths and values without a projection"),
    ("deepseek", "multi-head latent attention is not supported"),
    ("mamba", RECURRENT),
    ("hybrid", RECURRENT),
    ("qwen3next", RECURRENT),
    ("qwen35", RECURRENT),
    ("falconh1", RECURRENT),
    ("lfm2", RECURRENT),
    ("jamba", RECURRENT),
    ("moe", EXPERTS),
    ("mixtral", EXPERTS),
    ("gptoss", EXPERTS),
    ("llama4", EXPERTS),
];
const RECURRENT: &str = "layers with a recurrent state are not supported";
const EXPERTS: &str = "mixtures of experts are not supported yet";
