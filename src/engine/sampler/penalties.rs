//! Penalties on tokens that occurred, and values added to single logits.

use crate::engine::sampling_params::SamplingParams;

/// Scratch memory of the penalties.
#[derive(Default)]
pub(super) struct Penalties {
    /// By id; all zero between calls.
    seen: Vec<Seen>,
}

/// How much a token occurred.
#[derive(Clone, Copy, Default)]
struct Seen {
    /// Share of the penalty that its most recent occurrence has.
    latest: f32,
    /// Sum of the shares of all occurrences.
    sum: f32,
}

impl Penalties {
    /// Repetition, frequency and presence penalties. An id outside the logits (a token the model has no row for) is skipped.
    pub(super) fn apply(&mut self, logits: &mut [f32], params: &SamplingParams, tokens: &[u32], prompt_len: usize) {
        let window = Window::of(params, tokens.len());
        if params.repetition_penalty != 1.0 {
            self.for_each_distinct(tokens, window, logits, |logit, seen| {
                let penalty = match seen.latest {
                    1.0 => params.repetition_penalty,
                    share => 1.0 + (params.repetition_penalty - 1.0) * share,
                };
                if *logit > 0.0 { *logit / penalty } else { *logit * penalty }
            });
        }
        if params.frequency_penalty != 0.0 || params.presence_penalty != 0.0 {
            let change = |logit: &f32, seen: Seen| {
                *logit - params.frequency_penalty * seen.sum - params.presence_penalty * seen.latest
            };
            if params.penalize_prompt {
                self.for_each_distinct(tokens, window, logits, change);
            } else {
                let output = tokens.get(prompt_len..).unwrap_or_default();
                self.for_each_distinct(output, Window { full: output.len(), decay: 0 }, logits, change);
            }
        }
    }

    /// Whether nothing is left of earlier calls.
    #[cfg(test)]
    pub(super) fn is_clean(&self) -> bool {
        self.seen.iter().all(|seen| (seen.latest, seen.sum) == (0.0, 0.0))
    }

    /// Replaces the logit of each distinct token in a window.
    fn for_each_distinct(
        &mut self,
        tokens: &[u32],
        window: Window,
        logits: &mut [f32],
        change: impl Fn(&f32, Seen) -> f32,
    ) {
        let vocab = logits.len();
        self.seen.resize(vocab.max(self.seen.len()), Seen::default());
        let recent = tokens.iter().rev().take(window.full.saturating_add(window.decay)).map(|&id| id as usize);
        for (age, id) in recent.clone().enumerate().filter(|(_, id)| *id < vocab) {
            let (seen, share) = (&mut self.seen[id], window.share(age));
            if seen.sum == 0.0 {
                seen.latest = share;
            }
            seen.sum += share;
        }
        for id in recent.filter(|id| *id < vocab) {
            let seen = std::mem::take(&mut self.seen[id]);
            if seen.sum > 0.0 {
                let changed = change(&logits[id], seen);
                // A huge penalty is not a ban, which an infinite logit would be.
                logits[id] = if logits[id].is_finite() { changed.clamp(f32::MIN, f32::MAX) } else { changed };
            }
        }
    }
}

/// The most recent tokens, which a penalty looks at.
#[derive(Clone, Copy)]
struct Window {
    /// Number of tokens that have all of the penalty.
    full: usize,
    /// Number of tokens before these over which the penalty goes back to nothing.
    decay: usize,
}

impl Window {
    fn of(params: &SamplingParams, tokens: usize) -> Self {
        Self { full: params.repetition_range.unwrap_or(tokens), decay: params.repetition_decay }
    }

    /// Share of the penalty of the token that is `age` tokens before the last one.
    fn share(self, age: usize) -> f32 {
        if age < self.full { 1.0 } else { (self.decay - (age - self.full)) as f32 / self.decay as f32 }
    }
}

/// Adds the biases.
pub(super) fn bias(logits: &mut [f32], params: &SamplingParams) {
    for &(id, bias) in &params.logit_bias {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit += bias;
        }
    }
}
