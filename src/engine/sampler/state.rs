//! What the sampler keeps of a sequence between its tokens.

use std::sync::Arc;

use crate::engine::sampling_params::SamplingParams;
use crate::engine::text::Tokenizer;
use crate::engine::token_mask::TokenMask;

/// What the sampler keeps of a sequence between its tokens: a function of settings, logits and tokens so far, so preempting a
/// sequence or going back in it changes no token.
#[derive(Clone, Debug, Default)]
pub struct SamplerState {
    /// Mirostat's limit on the surprise of the next token, in bits, after each token of the output.
    mu: Vec<f64>,
    /// The tokens that the settings allow; `None` is all.
    pub(super) allowed: Option<Arc<TokenMask>>,
    /// Sequence breakers of DRY, sorted.
    pub(super) dry_breakers: Arc<[u32]>,
    /// Tokens that XTC ignores, sorted.
    pub(super) xtc_ignored: Arc<[u32]>,
}

impl SamplerState {
    /// The state before the first token, for `vocab` logits. Where the settings leave them open, DRY's sequence breakers and
    /// the tokens that XTC ignores are those of the tokenizer; none without one.
    pub fn new(params: &SamplingParams, vocab: usize, tokenizer: Option<&Tokenizer>) -> Self {
        let mut state = Self::default();
        if let Some(ids) = &params.allowed_token_ids {
            let mut mask = TokenMask::none(vocab);
            ids.iter().for_each(|&id| mask.allow(id));
            state.allowed = Some(Arc::new(mask));
        }
        if params.dry_multiplier > 0.0 {
            let default = || tokenizer.map(Tokenizer::punctuation_and_special_ids);
            state.dry_breakers = sorted(&params.dry_sequence_breakers).or_else(default).unwrap_or_default();
        }
        if params.xtc_probability > 0.0 {
            let default = || tokenizer.map(Tokenizer::newline_and_special_ids);
            state.xtc_ignored = sorted(&params.xtc_ignore_tokens).or_else(default).unwrap_or_default();
        }
        state
    }

    /// Goes back to when the output had `tokens` tokens.
    pub fn rewind(&mut self, tokens: usize) {
        self.mu.truncate(tokens);
    }

    /// Mirostat's limit after the last token, in bits; `None` before the first, and if Mirostat is off.
    pub fn mirostat_mu(&self) -> Option<f64> {
        self.mu.last().copied()
    }

    /// Mirostat's limit for the next token; `None` if it is off.
    pub(super) fn mu(&self, params: &SamplingParams) -> Option<f64> {
        let first = || params.mirostat_mu.map_or(2.0 * f64::from(params.mirostat_tau), f64::from);
        params.mirostat.then(|| self.mu.last().copied().unwrap_or_else(first))
    }

    /// Learns the probability of the token that was chosen under the limit `mu`.
    pub(super) fn observe(&mut self, params: &SamplingParams, mu: f64, probability: f64) {
        let surprise = -probability.log2();
        self.mu.push(mu + f64::from(params.mirostat_eta) * (f64::from(params.mirostat_tau) - surprise));
    }
}

fn sorted(ids: &Option<Vec<u32>>) -> Option<Arc<[u32]>> {
    let mut ids = ids.clone()?;
    ids.sort_unstable();
    Some(ids.into())
}
