//! Choosing a token from logits.
//!
//! The order is exllamav2's: guidance by a negative prompt, repetition, frequency and presence penalties, logit bias, DRY, the allowed tokens,
//! temperature and smoothing, top-k, top-p, top-a, min-p, tail-free, typical, Mirostat, then dynamic temperature or the
//! temperature if it comes last, XTC, and the draw with its skew. Each filter counts shares of what the one before left.
//! Top-k and top-p keep the head of one and the same ranking: larger logit first, then lower id.
//!
//! The random number of a draw is a hash of (seed, position), not the next number of a generator: position n of a seed draws
//! the same number no matter how the request is batched. A NaN logit counts as minus infinity; a token with such a logit is
//! never chosen.
//!
//! Where exllamav2 differs from the definition of a setting, the definition holds: typical sampling keeps the token with
//! which the share is reached and has no other term in the surprise; a tail-free or dynamic-temperature step of equal or
//! certain tokens does not divide by zero; XTC's threshold is compared with each token's own probability; DRY penalizes each
//! token by the length of its own repetition, also beyond `dry_max_ngram`, and however often it occurred.

mod candidates;
mod cuts;
mod dry;
mod exp;
mod guidance;
mod logprobs;
mod penalties;
mod random;
mod selection;
mod state;
mod temperature;
#[cfg(test)]
mod tests;
mod xtc;

use super::sampling_params::SamplingParams;
use super::token_mask::TokenMask;
use crate::error::{Error, ErrorCode, Result};
use candidates::Candidates;
use dry::Dry;
use exp::argmax;
use penalties::Penalties;
use random::{skewed, unit};

pub(in crate::engine) use exp::{first_not_finite, largest_logit};
pub use guidance::guide;
pub(in crate::engine) use random::hash;
pub use state::SamplerState;

/// The chosen token and, if asked for, how likely it was.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// The token.
    pub id: u32,
    /// Its log-probability before penalties and filters (0 if not asked for).
    pub logprob: f32,
    /// The n most likely ids, best first.
    pub top_logprobs: Vec<(u32, f32)>,
    /// Its probability after penalties and filters, in the distribution that it was drawn from (0 if not asked for).
    pub prob: f32,
    /// The n most likely ids of that distribution, best first; then those cut off, with a probability of 0.
    pub top_probs: Vec<(u32, f32)>,
}

impl Sampled {
    /// A token of which nothing is reported.
    pub(in crate::engine) fn of(id: u32) -> Self {
        Self { id, logprob: 0.0, top_logprobs: Vec::new(), prob: 0.0, top_probs: Vec::new() }
    }
}

/// What a token follows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Context<'a> {
    /// Prompt, then output.
    pub tokens: &'a [u32],
    /// Tokens of the prompt.
    pub prompt_len: usize,
    /// The tokens that a grammar allows; `None` is all.
    pub mask: Option<&'a TokenMask>,
    /// A number in `[0, 1)` that decides the draw; `None` is that of the seed and the number of tokens.
    pub random: Option<f64>,
}

/// How many of the most likely tokens are reported; 0 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TopCounts {
    /// By log-probability before penalties and filters.
    pub logprobs: usize,
    /// By probability after them.
    pub probs: usize,
}

/// Chooses tokens; keeps scratch memory between calls.
#[derive(Default)]
pub struct Sampler {
    /// Logits after penalties and biases, if the request has any.
    modified: Vec<f32>,
    penalties: Penalties,
    dry: Dry,
    candidates: Candidates,
    /// Ids of the best log-probabilities.
    best: Vec<u32>,
}

impl Sampler {
    /// Chooses the token that follows `context`, and lets the state learn from it.
    ///
    /// The random number depends on the seed (0 if there is none) and on the number of tokens alone, so batching changes
    /// nothing.
    ///
    /// # Errors
    /// `sampling_invalid`: every token is forbidden, that is, has a logit of minus infinity or NaN.
    pub fn sample(
        &mut self,
        logits: &[f32],
        params: &SamplingParams,
        context: Context<'_>,
        state: &mut SamplerState,
        top: TopCounts,
    ) -> Result<Sampled> {
        let mut modified = std::mem::take(&mut self.modified);
        let values = self.modify(&mut modified, logits, params, context, state);
        let chosen = self.choose(values, params, context, state, top.probs);
        self.modified = modified;
        let mut sampled = chosen.ok_or_else(all_forbidden)?;
        (sampled.logprob, sampled.top_logprobs) = self.logprobs(logits, sampled.id, top);
        Ok(sampled)
    }

    /// Replaces the token that was just chosen from `logits`.
    ///
    /// # Errors
    /// `token_out_of_range`.
    pub fn replace(&mut self, sampled: &mut Sampled, id: u32, logits: &[f32], top: TopCounts) -> Result<()> {
        if id as usize >= logits.len() {
            return Err(Error::new(ErrorCode::TokenOutOfRange, "a hook chose a token that the model does not have")
                .with_expected(format!("an id below {}", logits.len()))
                .with_found(id));
        }
        let Candidates { ids, weights, total, .. } = &self.candidates;
        let place = ids.iter().position(|&candidate| candidate == id);
        sampled.prob = place.map_or(0.0, |place| (weights[place] / total) as f32);
        sampled.id = id;
        (sampled.logprob, sampled.top_logprobs) = self.logprobs(logits, id, top);
        Ok(())
    }

    fn logprobs(&mut self, logits: &[f32], id: u32, top: TopCounts) -> (f32, Vec<(u32, f32)>) {
        match top.logprobs {
            0 => (0.0, Vec::new()),
            n => logprobs::logprobs(&mut self.candidates.selection, &mut self.best, logits, id, n),
        }
    }

    /// The probabilities [vocab] that [`Sampler::sample`] draws from.
    ///
    /// # Errors
    /// `sampling_invalid`: every token is forbidden.
    pub fn distribution(
        &mut self,
        logits: &[f32],
        params: &SamplingParams,
        context: Context<'_>,
        state: &SamplerState,
    ) -> Result<Vec<f32>> {
        let mut modified = std::mem::take(&mut self.modified);
        let values = self.modify(&mut modified, logits, params, context, state);
        let is_possible = match (params.is_greedy(), argmax(values)) {
            (_, None) => false,
            (true, Some(id)) => {
                self.candidates.keep_only(id);
                true
            }
            (false, _) => self.distribute(values, params, state.mu(params), &state.xtc_ignored),
        };
        self.modified = modified;
        if !is_possible {
            return Err(all_forbidden());
        }
        let mut probs = vec![0.0; logits.len()];
        for (&id, weight) in self.candidates.ids.iter().zip(&self.candidates.weights) {
            probs[id as usize] = (weight / self.candidates.total) as f32;
        }
        Ok(probs)
    }

    /// The logits after penalties, biases and masks, in `modified` if there are any.
    fn modify<'a>(
        &mut self,
        modified: &'a mut Vec<f32>,
        logits: &'a [f32],
        params: &SamplingParams,
        context: Context<'_>,
        state: &SamplerState,
    ) -> &'a [f32] {
        if !params.changes_logits() && context.mask.is_none() {
            return logits;
        }
        modified.clear();
        modified.extend_from_slice(logits);
        self.penalties.apply(modified, params, context.tokens, context.prompt_len);
        penalties::bias(modified, params);
        if params.dry_multiplier > 0.0 {
            self.dry.apply(modified, params, context.tokens, &state.dry_breakers);
        }
        for mask in context.mask.into_iter().chain(state.allowed.as_deref()) {
            mask.apply(modified);
        }
        modified
    }

    /// A token, without log-probabilities; its probability and the most likely ones if asked for.
    fn choose(
        &mut self,
        logits: &[f32],
        params: &SamplingParams,
        context: Context<'_>,
        state: &mut SamplerState,
        top_probs: usize,
    ) -> Option<Sampled> {
        let (id, prob) = if params.is_greedy() {
            let id = argmax(logits)?;
            self.candidates.keep_only(id);
            (id, 1.0)
        } else {
            self.draw(logits, params, context, state)?
        };
        let mut sampled = Sampled::of(id);
        if top_probs > 0 {
            sampled.prob = prob as f32;
            sampled.top_probs = logprobs::top_probs(&mut self.candidates, logits, top_probs);
        }
        Some(sampled)
    }

    /// Draws a token, and lets the state learn its probability.
    fn draw(
        &mut self,
        logits: &[f32],
        params: &SamplingParams,
        context: Context<'_>,
        state: &mut SamplerState,
    ) -> Option<(u32, f64)> {
        let mu = state.mu(params);
        if !self.distribute(logits, params, mu, &state.xtc_ignored) {
            return None;
        }
        let random = context.random.unwrap_or_else(|| {
            let position = context.tokens.len() as u64;
            unit(hash(params.seed.unwrap_or_default(), position))
        });
        // The sum of weights exceeds a number if it reaches the next one.
        let mass = (skewed(random, params.skew) * self.candidates.total).next_up();
        let candidates = &mut self.candidates;
        let drawn = if params.draws_by_rank() { candidates.reach_by_rank(mass) } else { candidates.reach_by_id(mass) }?;
        let (id, prob) = (candidates.ids[drawn], candidates.weights[drawn] / candidates.total);
        if let Some(mu) = mu {
            state.observe(params, mu, prob);
        }
        Some((id, prob))
    }

    /// Fills the candidates with the distribution that a token is drawn from; `false` if no token is possible.
    fn distribute(&mut self, logits: &[f32], params: &SamplingParams, mu: Option<f64>, xtc_ignored: &[u32]) -> bool {
        let candidates = &mut self.candidates;
        if !candidates.collect(logits, params.top_k, temperature::softmax(params)) {
            return false;
        }
        cuts::cut(candidates, params, mu);
        temperature::soften(candidates, params);
        if params.xtc_probability > 0.0 {
            let (probability, threshold) = (f64::from(params.xtc_probability), f64::from(params.xtc_threshold));
            xtc::exclude_top_choices(candidates, probability, threshold, xtc_ignored);
        }
        true
    }
}

fn all_forbidden() -> Error {
    Error::new(ErrorCode::SamplingInvalid, "every token is forbidden, so that none can be chosen")
        .with_hint("logit_bias may forbid tokens, and min_new_tokens forbids those that end the text")
}
