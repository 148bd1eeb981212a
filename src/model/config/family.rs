//! What a model family is: what its architecture fixes, which members of config.json it reads, and what they are where they are
//! absent. The rows are in `family_table`.

use super::description::{Block, Mlp};
use super::fields::FieldType;
use crate::backend::{HeadNormScope, NormKind, RopeLayout};

/// A model family. `model_type` of config.json selects it.
pub(super) struct Family {
    pub model_type: &'static str,
    pub architecture: &'static str,
    /// The models that have it, for users.
    pub models: &'static str,
    pub sizes: DefaultSizes,
    pub kv_heads: KvHeadsRule,
    pub head_dim: HeadDimRule,
    /// Whether `hidden_size` must be a multiple of the number of heads.
    pub heads_divide_hidden: bool,
    pub norms: NormRule,
    pub block: Block,
    /// The MLP, with the activation that is meant where none is given.
    pub mlp: Mlp,
    pub activation: ActivationRule,
    pub biases: BiasRules,
    pub window: WindowRule,
    /// `sliding_window`, if it is absent.
    pub default_window: Option<i64>,
    pub rotation: RotationRule,
    pub scale: ScaleRule,
    /// `attn_logit_softcapping` is read; what it is if it is absent.
    pub score_cap: Option<f64>,
    pub embed: EmbedRule,
    /// `residual_multiplier` is read.
    pub has_residual_multiplier: bool,
    pub logits: LogitRule,
    /// `tie_word_embeddings`, if it is absent.
    pub is_head_tied: bool,
    pub tokens: DefaultTokens,
    /// Members that transformers checks and exlora does not need: name, type, whether they may be null.
    pub unused: &'static [(&'static str, FieldType, bool)],
}

/// Sizes that are meant where config.json has none.
#[derive(Clone, Copy)]
pub(super) struct DefaultSizes {
    pub hidden: usize,
    pub intermediate: usize,
    pub layers: usize,
    pub heads: usize,
    pub vocab: usize,
    pub positions: usize,
}

/// How `num_key_value_heads` is read.
#[derive(Clone, Copy)]
pub(super) struct KvHeadsRule {
    /// What it is if it is absent; `None` is the number of heads.
    pub default: Option<i64>,
    /// Whether it may be null, which is the number of heads.
    pub is_nullable: bool,
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

/// The norms of a family.
#[derive(Clone, Copy)]
pub(super) struct NormRule {
    pub kind: NormKind,
    /// The member with their epsilon, and what it is if it is absent.
    pub eps: (&'static str, f64),
    pub offset: f32,
    pub has_bias: bool,
    pub qk: QkNormRule,
}

/// Whether queries and keys have norms.
#[derive(Clone, Copy)]
pub(super) enum QkNormRule {
    Never,
    Always(HeadNormScope),
    /// If `use_qk_norm` says so.
    BySwitch(HeadNormScope),
}

/// Which member names the MLP's activation.
#[derive(Clone, Copy)]
pub(super) struct ActivationRule {
    pub key: &'static str,
    /// Whether `gelu` means its approximation by a tanh.
    pub gelu_is_tanh: bool,
}

/// Whether a linear has a bias.
#[derive(Clone, Copy)]
pub(super) enum BiasRule {
    Never,
    Always,
    /// As this member says, or else this.
    Read(&'static str, bool),
}

/// The biases of a layer's linears.
#[derive(Clone, Copy)]
pub(super) struct BiasRules {
    pub qkv: BiasRule,
    pub output: BiasRule,
    pub mlp: BiasRule,
}

/// Which layers have an attention window.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum WindowRule {
    /// None; `layer_types` may only say so.
    None,
    /// All, if `sliding_window` is not null; `layer_types` may only say so.
    Every,
    /// Those that `layer_types` names; by default all.
    ByLayerType,
    /// Those that `layer_types` names, by default from `max_window_layers` on; `use_sliding_window` switches `sliding_window` on.
    BySwitch,
    /// Those that `layer_types` names, by default all but every n-th. The number may have a member.
    Pattern { key: Option<&'static str>, full_every: i64 },
    /// Those that `layer_types` names, by default those that are not rotated; `use_sliding_window` switches `sliding_window` on.
    BySwitchUnrotated,
}

/// How queries and keys are rotated.
#[derive(Clone, Copy)]
pub(super) struct RotationRule {
    pub layout: RopeLayout,
    /// `rope_theta`, if it is absent.
    pub theta: f64,
    /// Whether a part of a head may be rotated.
    pub is_partial: bool,
    /// `partial_rotary_factor`, if it is absent.
    pub share: f64,
    pub parameters: RopeParametersRule,
    pub layers: RotatedLayers,
    /// Whether queries have a temperature, by `llama_4_scaling_beta` of the rope parameters.
    pub has_query_temperature: bool,
}

/// How rope parameters are spelled.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum RopeParametersRule {
    /// One set for all layers.
    Shared,
    /// One set for all layers, which is this JSON where there is none.
    SharedOr(&'static str),
    /// As `Shared`; original positions have a member of their own, which is this if it is absent, and the only scaling is longrope,
    /// also under the names `su` and `yarn`.
    Longrope { original_positions: usize },
    /// A set for layers with a window and one for those without. The base of the former is that of the member, or this.
    ByLayerType { local_theta: (Option<&'static str>, f64) },
}

/// Which layers are rotated.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum RotatedLayers {
    All,
    /// Those with an attention window.
    Windowed,
    /// Those that `no_rope_layers` has no 0 for, by default all but every n-th, where n is `no_rope_layer_interval`.
    Listed {
        unrotated_every: i64,
    },
}

/// What attention's scores are multiplied by.
#[derive(Clone, Copy)]
pub(super) enum ScaleRule {
    /// `1 / sqrt(head_dim)`.
    HeadDim,
    /// `1 / sqrt(query_pre_attn_scalar)`, which is this if it is absent.
    QueryScalar(i64),
    /// `attention_multiplier`, 1 if it is absent.
    Multiplier,
}

/// What embeddings are multiplied by.
#[derive(Clone, Copy)]
pub(super) enum EmbedRule {
    One,
    /// `sqrt(hidden_size)`, rounded to the type of the embedding table.
    RootOfWidth,
    /// `embedding_multiplier`, 1 if it is absent.
    Multiplier,
}

/// What is done with the logits.
#[derive(Clone, Copy)]
pub(super) enum LogitRule {
    Nothing,
    /// Multiplied by `logit_scale`, which is this if it is absent.
    Scaled(f64),
    /// Divided by `logits_scaling`, 1 if it is absent.
    Divided,
    /// Bounded by `final_logit_softcapping`, which is this if it is absent.
    Capped(Option<f64>),
}

/// Token ids that are meant where config.json has none.
#[derive(Clone, Copy)]
pub(super) struct DefaultTokens {
    pub bos: Option<i64>,
    pub eos: &'static [i64],
    /// Whether null means those end ids too.
    pub null_is_default_eos: bool,
    pub pad: Option<i64>,
}

/// A multimodal model whose text model is one of the families. Its config.json has that in `text_config`.
pub(super) struct Wrapper {
    pub model_type: &'static str,
    pub architecture: &'static str,
    pub models: &'static str,
    pub text: WrappedText,
}

/// The family of a wrapped text model.
#[derive(Clone, Copy)]
pub(super) enum WrappedText {
    /// This one.
    Always(&'static str),
    /// That of `model_type` in `text_config`, or this one.
    Named(&'static str),
}
