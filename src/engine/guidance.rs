//! Classifier-free guidance: a request with a negative prompt.
//!
//! Its sequence computes two contexts in the same steps, the prompt and the negative prompt, each followed by the same output.
//! Each token is chosen from the logits of both (`sampler/guidance.rs`) and appended to both. They have the request's adapters,
//! and pages of their own, which prefixes share as those of any prompt do. A draft is verified after both.

use std::sync::Arc;

use super::sequence_kv::{SequenceKv, SequencePlan};

/// The negative prompt of a request, before its first token.
pub(super) struct NegativePrompt {
    /// What is weighted is the log-probabilities after the prompt, by this, and after the negative prompt, by 1 less this.
    pub scale: f32,
    pub tokens: Arc<[u32]>,
    pub plan: SequencePlan,
}

/// The context of a sequence that its tokens are guided away from.
pub(super) struct Guidance {
    pub scale: f32,
    /// Negative prompt, then output.
    pub tokens: Vec<u32>,
    pub prompt_len: usize,
    /// What is computed of them.
    pub kv: SequenceKv,
}

impl Guidance {
    pub(super) fn new(negative: &NegativePrompt) -> Self {
        let kv = SequenceKv::new(negative.plan.clone());
        let tokens = negative.tokens.to_vec();
        Self { scale: negative.scale, prompt_len: tokens.len(), tokens, kv }
    }
}
