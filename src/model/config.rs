//! config.json. SKELETON

/// A decoder as config.json describes it.
#[derive(Clone, Debug)]
pub struct DecoderConfig {
    /// `architectures[0]`: `LlamaForCausalLM`.
    pub architecture: String,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Rows of embedding and head.
    pub vocab_size: usize,
    /// Positions the model was made for.
    pub max_positions: usize,
    /// Epsilon of the norms.
    pub norm_eps: f32,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
    /// Ids that end a text: config.json's and generation_config.json's.
    pub eos_token_ids: Vec<u32>,
    /// Id that begins a text, if config.json names one.
    pub bos_token_id: Option<u32>,
    /// Padding id, if config.json names one.
    pub pad_token_id: Option<u32>,
}
