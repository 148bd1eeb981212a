//! DRY ("don't repeat yourself"): penalties on tokens that would continue a repetition, which grow with its length.
//!
//! A token's repetition is the longest end of the text that was followed by that token before. Sequence breakers end what is
//! compared, and are never penalized.

use crate::engine::sampling_params::SamplingParams;

/// No penalty is larger, so that no logit becomes minus infinity, which would forbid the token.
const LARGEST: f64 = 1e30;

/// Scratch memory of the penalty.
#[derive(Default)]
pub(super) struct Dry {
    /// Length of the end of the text that ends at each token too, the last token first.
    lengths: Vec<u32>,
    /// Longest repetition that each token would continue; all zero between calls.
    longest: Vec<u32>,
    /// The tokens that have one.
    continuing: Vec<u32>,
}

impl Dry {
    /// Subtracts the penalties. `breakers` are sorted.
    pub(super) fn apply(&mut self, logits: &mut [f32], params: &SamplingParams, tokens: &[u32], breakers: &[u32]) {
        let range = if params.dry_range == 0 { tokens.len() } else { params.dry_range.min(tokens.len()) };
        let tokens = &tokens[tokens.len() - range..];
        let is_breaker = |id: &u32| breakers.binary_search(id).is_ok();
        let unbroken = tokens.iter().rev().take(params.dry_max_ngram).take_while(|id| !is_breaker(id)).count();
        let allowed = params.dry_allowed_length;
        if unbroken < allowed {
            return;
        }
        self.find_repeated_ends(tokens, unbroken);
        self.longest.resize(self.longest.len().max(logits.len()), 0);
        self.continuing.clear();
        // The token after the one with the same end; the last token itself has none.
        for (back, &length) in
            self.lengths.iter().enumerate().skip(1).filter(|(_, length)| **length as usize >= allowed)
        {
            let next = tokens[tokens.len() - back];
            if (next as usize) < logits.len() && !is_breaker(&next) {
                let longest = &mut self.longest[next as usize];
                if *longest == 0 {
                    self.continuing.push(next);
                }
                *longest = length.max(*longest);
            }
        }
        for &id in &self.continuing {
            let length = std::mem::take(&mut self.longest[id as usize]);
            let beyond = (length as usize - allowed) as f64;
            let penalty = f64::from(params.dry_multiplier) * f64::from(params.dry_base).powf(beyond);
            logits[id as usize] -= penalty.min(LARGEST) as f32;
        }
    }

    /// For each token, the last one first: how many tokens up to it equal those at the end, at most `limit`. This is the
    /// Z-function of the reversed text, so the time is linear however often it repeats itself.
    fn find_repeated_ends(&mut self, tokens: &[u32], limit: usize) {
        let n = tokens.len();
        let at = |back: usize| tokens[n - 1 - back];
        self.lengths.clear();
        self.lengths.resize(n, 0);
        // The rightmost stretch that is known to equal the beginning.
        let (mut start, mut end) = (0, 0);
        for back in 1..n {
            let known = if back < end { (self.lengths[back - start] as usize).min(end - back) } else { 0 };
            let mut length = known;
            while length < limit && back + length < n && at(length) == at(back + length) {
                length += 1;
            }
            self.lengths[back] = length as u32;
            if back + length > end {
                (start, end) = (back, back + length);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn params() -> SamplingParams {
        SamplingParams { dry_multiplier: 1.0, dry_base: 2.0, dry_allowed_length: 2, ..SamplingParams::default() }
    }

    /// The definition: for each place, the number of equal tokens, one by one.
    fn penalties(params: &SamplingParams, tokens: &[u32], breakers: &[u32], vocab: usize) -> Vec<f32> {
        let range = if params.dry_range == 0 { tokens.len() } else { params.dry_range };
        let tokens = &tokens[tokens.len().saturating_sub(range)..];
        let n = tokens.len();
        let mut longest = vec![0; vocab];
        for next in 1..n {
            let same = |back: usize| {
                back < next
                    && tokens[next - 1 - back] == tokens[n - 1 - back]
                    && !breakers.contains(&tokens[n - 1 - back])
            };
            let length = (0..params.dry_max_ngram).take_while(|&back| same(back)).count();
            if !breakers.contains(&tokens[next]) {
                longest[tokens[next] as usize] = length.max(longest[tokens[next] as usize]);
            }
        }
        let penalty = |&length: &usize| match length.checked_sub(params.dry_allowed_length) {
            Some(beyond) => params.dry_multiplier * params.dry_base.powi(beyond as i32),
            None => 0.0,
        };
        longest.iter().map(penalty).collect()
    }

    fn apply(params: &SamplingParams, tokens: &[u32], breakers: &[u32]) -> Vec<f32> {
        let mut logits = vec![0.0; 6];
        Dry::default().apply(&mut logits, params, tokens, breakers);
        logits.into_iter().map(|logit| -logit).collect()
    }

    #[test]
    fn a_repetition_costs_more_the_longer_it_is() {
        // "1 2 3" occurred before and was followed by 4; "2 3" also before 5.
        let tokens = [1, 2, 3, 4, 2, 3, 5, 1, 2, 3];
        assert_eq!(apply(&params(), &tokens, &[]), [0.0, 0.0, 0.0, 0.0, 2.0, 1.0]);
        assert_eq!(apply(&params(), &tokens, &[2]), [0.0; 6], "a breaker ends what is compared");
        assert_eq!(apply(&params(), &tokens, &[4]), [0.0, 0.0, 0.0, 0.0, 0.0, 1.0], "a breaker is not penalized");
        assert_eq!(apply(&SamplingParams { dry_max_ngram: 2, ..params() }, &tokens, &[])[4], 1.0);
        assert_eq!(apply(&SamplingParams { dry_range: 6, ..params() }, &tokens, &[]), [0.0, 0.0, 0.0, 0.0, 0.0, 1.0]);
        for short in [&[][..], &[1], &[1, 1]] {
            assert_eq!(apply(&params(), short, &[]), [0.0; 6]);
        }
    }

    #[test]
    fn no_penalty_forbids_a_token() {
        let long = SamplingParams { dry_base: 1e30, dry_max_ngram: usize::MAX, ..params() };
        assert!(apply(&long, &[1; 10_000], &[])[1].is_finite());
    }

    proptest! {
        #[test]
        fn penalties_match_the_definition(
            tokens in prop::collection::vec(0u32..4, 0..60),
            breakers in prop::sample::select(vec![&[][..], &[0], &[1, 3]]),
            (allowed, max_ngram, range) in (1usize..4, 1usize..12, 0usize..40),
        ) {
            let params = SamplingParams {
                dry_allowed_length: allowed,
                dry_max_ngram: max_ngram,
                dry_range: range,
                ..params()
            };
            prop_assert_eq!(apply(&params, &tokens, breakers), penalties(&params, &tokens, breakers, 6));
        }
    }
}
