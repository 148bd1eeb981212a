//! The parts of a decoder's description that are data of its family: biases, norms, how a block is put together, attention, MLP,
//! multipliers. Every name is a module's path below its layer.

use crate::backend::{Activation, HeadNormScope, MlpShape, NormKind, QueryTemperature};

/// Which linears of a layer have a bias.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Biases {
    /// q, k and v.
    pub qkv: bool,
    /// o.
    pub output: bool,
    /// Those of the MLP.
    pub mlp: bool,
}

/// What all norms of a decoder have in common, those of queries and keys included.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norms {
    /// What they divide by.
    pub kind: NormKind,
    /// Added to the mean of squares.
    pub eps: f32,
    /// Added to every stored weight, the base's and an adapter's: 1 for Gemma, else 0.
    pub offset: f32,
    /// Whether they have biases.
    pub has_bias: bool,
    /// The norm of queries and keys (`q_norm`, `k_norm`), where they have one.
    pub qk: Option<HeadNormScope>,
}

/// Which norms a block has, by name, and how its branches join the residual stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Of what attention reads; without it, attention reads the residual stream.
    pub pre_attention: Option<&'static str>,
    /// Of what attention adds.
    pub post_attention: Option<&'static str>,
    /// Of what the MLP reads; without it, the MLP reads the residual stream.
    pub pre_mlp: Option<&'static str>,
    /// Of what the MLP adds.
    pub post_mlp: Option<&'static str>,
    /// Whether the MLP reads what attention reads, `x + attention(n) + mlp(n)`; there is then only the one norm before them.
    pub is_parallel: bool,
}

impl Block {
    /// One norm before each branch, as most families have.
    pub const PRE_NORMS: Self = Self {
        pre_attention: Some("input_layernorm"),
        post_attention: None,
        pre_mlp: Some("post_attention_layernorm"),
        post_mlp: None,
        is_parallel: false,
    };
}

/// The MLP of every layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mlp {
    /// Gated or plain.
    pub shape: MlpShape,
    /// Its function.
    pub activation: Activation,
    /// The linears that read its input, in the order in which the activation reads their outputs.
    pub inputs: &'static [&'static str],
    /// The linear that writes its output.
    pub output: &'static str,
}

impl Mlp {
    /// Gate and up, then down.
    pub const fn gated(activation: Activation) -> Self {
        Self { shape: MlpShape::Gated, activation, inputs: &["mlp.gate_proj", "mlp.up_proj"], output: "mlp.down_proj" }
    }
}

/// What attention does with scores, in every layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionScores {
    /// Factor on the scores.
    pub scale: f32,
    /// Bound of the scaled scores, `cap * tanh(score / cap)`.
    pub cap: Option<f32>,
    /// A factor on queries that grows with their position.
    pub query_temperature: Option<QueryTemperature>,
}

impl AttentionScores {
    /// Scaled by `1 / sqrt(head_dim)`.
    pub fn of_width(head_dim: usize) -> Self {
        Self { scale: 1.0 / (head_dim as f32).sqrt(), cap: None, query_temperature: None }
    }
}

/// Constant factors along the residual stream, and the bound of the logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Multipliers {
    /// On embeddings, what adapters change included.
    pub embed: f32,
    /// Whether that factor belongs to the embedding table, as Gemma's: it is rounded to the type in which the table is stored, as
    /// transformers does, and vectors in place of tokens have it already.
    pub is_embed_of_table: bool,
    /// On what attention and MLP add to the residual stream.
    pub residual: f32,
    /// On the logits.
    pub logit: f32,
    /// Bound of the logits after that, `cap * tanh(logit / cap)`.
    pub logit_cap: Option<f32>,
}

impl Default for Multipliers {
    fn default() -> Self {
        Self { embed: 1.0, is_embed_of_table: false, residual: 1.0, logit: 1.0, logit_cap: None }
    }
}
