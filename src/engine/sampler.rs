//! From logits to a token. SKELETON

use crate::error::Result;

/// How tokens are chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy.
    pub temperature: f32,
    /// Keep the k most likely; 0 keeps all.
    pub top_k: usize,
    /// Keep the smallest set of this probability; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens of at least this share of the best one's probability; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen in prompt or output; 1 is off.
    pub repetition_penalty: f32,
    /// How many of the last tokens the repetition penalty looks at; `None` is all.
    pub repetition_range: Option<usize>,
    /// Subtracted per occurrence in the output.
    pub frequency_penalty: f32,
    /// Subtracted once if the token stands in the output.
    pub presence_penalty: f32,
    /// Added to single logits.
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of this request's random numbers.
    pub seed: u64,
}

impl Default for SamplingParams {
    /// Greedy, nothing penalised.
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            repetition_range: None,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

impl SamplingParams {
    /// Checks every range; `vocab` bounds the ids of `logit_bias`.
    ///
    /// # Errors
    /// `sampling_invalid` naming the setting.
    pub fn check(&self, _vocab: usize) -> Result<()> {
        todo!()
    }
}

/// The chosen token and, if asked for, log-probabilities of the unmodified distribution.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// The token.
    pub id: u32,
    /// Its log-probability before penalties and filters (0 if not asked for).
    pub logprob: f32,
    /// The n most likely ids, best first.
    pub top_logprobs: Vec<(u32, f32)>,
}

/// Chooses tokens; keeps scratch memory between calls.
#[derive(Default)]
pub struct Sampler {}

impl Sampler {
    /// Chooses the token that follows `tokens` (prompt, then output from `prompt_len` on).
    ///
    /// The random number depends on the seed and on `tokens.len()` alone, so batching changes nothing.
    /// `logprobs` is the number of top log-probabilities wanted, 0 for none.
    pub fn sample(
        &mut self,
        _logits: &[f32],
        _params: &SamplingParams,
        _tokens: &[u32],
        _prompt_len: usize,
        _logprobs: usize,
    ) -> Sampled {
        todo!()
    }
}
