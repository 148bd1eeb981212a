//! Choosing a token from logits.
//!
//! The order is fixed: repetition, frequency and presence penalties, logit bias and mask, temperature, top-k, top-p, min-p,
//! draw.
//! The three filters each keep the head of one and the same ranking (larger logit first, then lower id), so each is a cut
//! and the strictest wins; top-p counts shares of what top-k left.
//!
//! The random number of a draw is a hash of (seed, position), not the next number of a generator: position n of a seed draws
//! the same number no matter how the request is batched. A NaN logit counts as minus infinity; a token with such a logit is
//! never chosen.

use std::cmp::Ordering;

use super::sampling_params::SamplingParams;
use super::token_mask::TokenMask;
use crate::error::{Error, ErrorCode, Result};

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
pub struct Sampler {
    /// Logits after penalties, bias and mask, if the request has any.
    modified: Vec<f32>,
    /// Occurrences per id; all zero between calls.
    counts: Vec<u32>,
    candidates: Vec<Candidate>,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    id: u32,
    logit: f32,
    /// Probability relative to the best token's.
    weight: f64,
}

impl Candidate {
    /// The ranking: larger logit first, then lower id. No logit here is NaN.
    fn rank(&self, other: &Self) -> Ordering {
        other.logit.total_cmp(&self.logit).then(self.id.cmp(&other.id))
    }
}

impl Sampler {
    /// Chooses the token that follows `tokens` (prompt, then output from `prompt_len` on).
    ///
    /// The random number depends on the seed (0 if there is none) and on `tokens.len()` alone, so batching changes nothing.
    /// `mask` has the ids that may be chosen; `None` allows all. `logprobs` is the number of top log-probabilities wanted,
    /// 0 for none.
    ///
    /// # Errors
    /// `sampling_invalid`: every token is forbidden, that is, has a logit of minus infinity or NaN, or is not in the mask.
    pub fn sample(
        &mut self,
        logits: &[f32],
        params: &SamplingParams,
        tokens: &[u32],
        prompt_len: usize,
        mask: Option<&TokenMask>,
        logprobs: usize,
    ) -> Result<Sampled> {
        let mut modified = std::mem::take(&mut self.modified);
        let id = if params.changes_logits() || mask.is_some() {
            modified.clear();
            modified.extend_from_slice(logits);
            self.penalize(&mut modified, params, tokens, tokens.get(prompt_len..).unwrap_or_default());
            if let Some(mask) = mask {
                mask.apply(&mut modified);
            }
            self.choose(&modified, params, tokens.len())
        } else {
            self.choose(logits, params, tokens.len())
        };
        self.modified = modified;
        let id = id.ok_or_else(|| {
            Error::new(ErrorCode::SamplingInvalid, "every token is forbidden, so that none can be chosen")
                .with_hint("logit_bias may forbid tokens, and min_new_tokens forbids those that end the text")
        })?;
        let (logprob, top_logprobs) =
            if logprobs > 0 { self.logprobs(logits, id, logprobs) } else { (0.0, Vec::new()) };
        Ok(Sampled { id, logprob, top_logprobs })
    }

    fn choose(&mut self, logits: &[f32], params: &SamplingParams, position: usize) -> Option<u32> {
        if params.is_greedy() { argmax(logits) } else { self.draw(logits, params, position) }
    }

    /// Penalties and bias. An id outside the logits (a token the model has no row for) is skipped.
    fn penalize(&mut self, logits: &mut [f32], params: &SamplingParams, tokens: &[u32], output: &[u32]) {
        self.counts.resize(logits.len().max(self.counts.len()), 0);
        if params.repetition_penalty != 1.0 {
            let recent = params.repetition_range.map_or(0, |range| tokens.len().saturating_sub(range));
            self.for_each_distinct(&tokens[recent..], logits, |logit, _| {
                if *logit > 0.0 { *logit / params.repetition_penalty } else { *logit * params.repetition_penalty }
            });
        }
        if params.frequency_penalty != 0.0 || params.presence_penalty != 0.0 {
            self.for_each_distinct(output, logits, |logit, count| {
                *logit - params.frequency_penalty * count as f32 - params.presence_penalty
            });
        }
        for &(id, bias) in &params.logit_bias {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit += bias;
            }
        }
    }

    /// Replaces the logit of each distinct token by `change(logit, number of occurrences)`.
    fn for_each_distinct(&mut self, tokens: &[u32], logits: &mut [f32], change: impl Fn(&f32, u32) -> f32) {
        let vocab = logits.len();
        let known = || tokens.iter().map(|&id| id as usize).filter(|&id| id < vocab);
        for id in known() {
            self.counts[id] += 1;
        }
        for id in known() {
            let count = std::mem::take(&mut self.counts[id]);
            if count > 0 {
                logits[id] = change(&logits[id], count);
            }
        }
    }

    fn draw(&mut self, logits: &[f32], params: &SamplingParams, position: usize) -> Option<u32> {
        let candidates = &mut self.candidates;
        collect(candidates, logits);
        if params.top_k > 0 {
            keep_best(candidates, params.top_k);
        }
        let best = candidates.iter().map(|candidate| candidate.logit).fold(f32::NEG_INFINITY, f32::max);
        let mut total = 0.0;
        for candidate in candidates.iter_mut() {
            // The difference of two infinities would be NaN.
            let distance = if candidate.logit == best { 0.0 } else { f64::from(candidate.logit) - f64::from(best) };
            candidate.weight = (distance / f64::from(params.temperature)).exp();
            total += candidate.weight;
        }
        if params.top_p > 0.0 && params.top_p < 1.0 {
            keep_nucleus(candidates, total * f64::from(params.top_p));
        }
        if params.min_p > 0.0 {
            candidates.retain(|candidate| candidate.weight >= f64::from(params.min_p));
        }

        let total: f64 = candidates.iter().map(|candidate| candidate.weight).sum();
        let target = unit(hash(params.seed.unwrap_or_default(), position as u64)) * total;
        let mut sum = 0.0;
        let mut drawn = None;
        for candidate in candidates.iter().filter(|candidate| candidate.weight > 0.0) {
            drawn = Some(candidate.id);
            sum += candidate.weight;
            if sum > target {
                break;
            }
        }
        drawn
    }

    /// Log-probabilities of one id and of the `n` best, by a softmax summed in f64.
    fn logprobs(&mut self, logits: &[f32], id: u32, n: usize) -> (f32, Vec<(u32, f32)>) {
        let best = argmax(logits).map_or(f32::NEG_INFINITY, |id| logits[id as usize]);
        let relative = |logit: f32| if logit == best { 0.0 } else { f64::from(logit) - f64::from(best) };
        let sum: f64 = logits.iter().filter(|logit| !logit.is_nan()).map(|&logit| relative(logit).exp()).sum();
        let logprob = |logit: f32| if logit.is_nan() { f32::NEG_INFINITY } else { (relative(logit) - sum.ln()) as f32 };
        collect(&mut self.candidates, logits);
        keep_best(&mut self.candidates, n);
        let top = self.candidates.iter().map(|candidate| (candidate.id, logprob(candidate.logit))).collect();
        (logits.get(id as usize).map_or(f32::NEG_INFINITY, |&logit| logprob(logit)), top)
    }
}

/// The id of the largest logit, the lowest such id; `None` if all are NaN or minus infinity.
fn argmax(logits: &[f32]) -> Option<u32> {
    // Lanes, so that finding the maximum is limited by memory alone; a comparison with NaN is false.
    let (chunks, rest) = logits.as_chunks::<16>();
    let mut lanes = [f32::NEG_INFINITY; 16];
    for chunk in chunks {
        for (lane, &logit) in lanes.iter_mut().zip(chunk) {
            *lane = if logit > *lane { logit } else { *lane };
        }
    }
    let best = lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |best, &logit| if logit > best { logit } else { best });
    if best == f32::NEG_INFINITY {
        return None;
    }
    logits.iter().position(|&logit| logit == best).map(|id| id as u32)
}

/// Collects all tokens that can be chosen, by id.
fn collect(candidates: &mut Vec<Candidate>, logits: &[f32]) {
    candidates.clear();
    let possible = (0..).zip(logits).filter(|(_, logit)| **logit > f32::NEG_INFINITY);
    // Adding 0 makes -0 and 0 the same rank.
    candidates.extend(possible.map(|(id, &logit)| Candidate { id, logit: logit + 0.0, weight: 0.0 }));
}

/// Keeps the `k` best, in order of rank.
fn keep_best(candidates: &mut Vec<Candidate>, k: usize) {
    if k < candidates.len() {
        candidates.select_nth_unstable_by(k, Candidate::rank);
        candidates.truncate(k);
    }
    candidates.sort_unstable_by(Candidate::rank);
}

/// Keeps the shortest head of the ranking whose weights reach `mass`, at least one.
///
/// The head is usually short, so it is sorted in growing parts rather than the whole vocabulary at once.
fn keep_nucleus(candidates: &mut Vec<Candidate>, mass: f64) {
    let (mut sorted, mut part, mut sum) = (0, 128, 0.0);
    while sorted < candidates.len() {
        let rest = &mut candidates[sorted..];
        let part_len = part.min(rest.len());
        if part_len < rest.len() {
            rest.select_nth_unstable_by(part_len, Candidate::rank);
        }
        rest[..part_len].sort_unstable_by(Candidate::rank);
        for (i, candidate) in rest[..part_len].iter().enumerate() {
            sum += candidate.weight;
            if sum >= mass {
                candidates.truncate(sorted + i + 1);
                return;
            }
        }
        sorted += part_len;
        part *= 8;
    }
}

/// A random number of (seed, position): the finalizer of SplitMix64 twice, so that neighboring seeds and positions, and
/// seeds that differ by the generator's own increment, are uncorrelated.
///
/// Source: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014; constants of Stafford's Mix13.
pub(super) fn hash(seed: u64, position: u64) -> u64 {
    const INCREMENT: u64 = 0x9E37_79B9_7F4A_7C15;
    let mix = |z: u64| {
        let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    };
    let stream = mix(seed.wrapping_add(INCREMENT));
    mix(stream.wrapping_add(INCREMENT.wrapping_mul(position.wrapping_add(1))))
}

/// The upper 53 bits as a number in `[0, 1)`.
fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(temperature: f32) -> SamplingParams {
        SamplingParams { temperature, ..Default::default() }
    }

    fn choose(logits: &[f32], params: &SamplingParams) -> u32 {
        Sampler::default().sample(logits, params, &[], 0, None, 0).expect("a token can be chosen").id
    }

    /// How often each token is drawn over `n` positions.
    fn histogram(logits: &[f32], params: &SamplingParams, n: usize) -> Vec<usize> {
        let mut sampler = Sampler::default();
        let tokens = vec![0; n];
        let mut counts = vec![0; logits.len()];
        for position in 0..n {
            let sampled = sampler.sample(logits, params, &tokens[..position], position, None, 0);
            counts[sampled.expect("a token can be chosen").id as usize] += 1;
        }
        counts
    }

    /// The distribution by definition: softmax over the kept tokens, with whole-vocabulary sorts.
    fn distribution(logits: &[f32], params: &SamplingParams) -> Vec<f64> {
        let mut ids: Vec<usize> = (0..logits.len()).filter(|&i| logits[i] > f32::NEG_INFINITY).collect();
        ids.sort_by(|&a, &b| logits[b].partial_cmp(&logits[a]).expect("no NaN").then(a.cmp(&b)));
        if params.top_k > 0 {
            ids.truncate(params.top_k);
        }
        let best = f64::from(logits[ids[0]]);
        let weight = |&i: &usize| ((f64::from(logits[i]) - best) / f64::from(params.temperature)).exp();
        let total: f64 = ids.iter().map(weight).sum();
        let mut kept = Vec::new();
        let mut sum = 0.0;
        for &i in &ids {
            let in_nucleus = params.top_p == 0.0 || params.top_p == 1.0 || sum < total * f64::from(params.top_p);
            sum += weight(&i);
            if in_nucleus && weight(&i) >= f64::from(params.min_p) {
                kept.push(i);
            }
        }
        let total: f64 = kept.iter().map(weight).sum();
        let mut out = vec![0.0; logits.len()];
        for i in kept {
            out[i] = weight(&i) / total;
        }
        out
    }

    /// Pearson's statistic stays under its mean by five of its deviations; no forbidden token is drawn.
    fn fits(counts: &[usize], expected: &[f64]) -> bool {
        let n: usize = counts.iter().sum();
        let mut statistic = 0.0;
        let mut freedom = -1.0f64;
        for (&count, &p) in counts.iter().zip(expected) {
            if p == 0.0 {
                if count > 0 {
                    return false;
                }
                continue;
            }
            let mean = p * n as f64;
            statistic += (count as f64 - mean).powi(2) / mean;
            freedom += 1.0;
        }
        statistic <= freedom + 5.0 * f64::sqrt(2.0 * freedom.max(0.0)) + 1e-9
    }

    #[test]
    fn greedy_takes_the_largest_logit_and_the_lowest_id_of_equals() {
        let mut logits = vec![0.0; 100];
        logits[70] = 2.0;
        logits[33] = 2.0;
        assert_eq!(choose(&logits, &at(0.0)), 33);
        assert_eq!(choose(&logits, &SamplingParams { top_k: 1, ..at(1.0) }), 33);
    }

    #[test]
    fn nan_and_minus_infinity_are_never_chosen() {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        for params in [at(0.0), at(1.0), SamplingParams { top_k: 2, top_p: 0.9, min_p: 0.1, ..at(0.7) }] {
            assert_eq!(choose(&[nan, -inf, -5.0, nan], &params), 2);
            for all_forbidden in [&[nan, -inf, nan][..], &[]] {
                let error =
                    Sampler::default().sample(all_forbidden, &params, &[], 0, None, 0).expect_err("none is possible");
                assert_eq!(error.code(), ErrorCode::SamplingInvalid);
            }
            assert_eq!(choose(&[1.0, inf, nan], &params), 1);
        }
        let sampled = Sampler::default().sample(&[nan, 1.0, -inf], &at(0.0), &[], 0, None, 3).expect("chosen");
        assert_eq!((sampled.id, sampled.logprob, sampled.top_logprobs), (1, 0.0, vec![(1, 0.0)]));
    }

    #[test]
    fn only_ids_in_the_mask_are_chosen_and_logprobs_stay_those_of_all() {
        let logits = [3.0, 2.0, 1.0, 0.0];
        let mut mask = TokenMask::none(3);
        [1, 2].iter().for_each(|&id| mask.allow(id));
        for params in [at(0.0), at(1.0), SamplingParams { top_k: 1, ..at(1.0) }] {
            let mut chosen = [0; 4];
            for position in 0..200 {
                let tokens = vec![0; position];
                let sampled = Sampler::default().sample(&logits, &params, &tokens, 0, Some(&mask), 2).expect("chosen");
                let free = Sampler::default().sample(&logits, &params, &tokens, 0, None, 2).expect("chosen");
                assert_eq!(sampled.top_logprobs, free.top_logprobs);
                chosen[sampled.id as usize] += 1;
            }
            assert_eq!((chosen[0], chosen[3], chosen[2] > 0), (0, 0, !params.is_greedy()));
        }
        let none = TokenMask::none(4);
        let error = Sampler::default().sample(&logits, &at(0.0), &[], 0, Some(&none), 0).expect_err("none is allowed");
        assert_eq!(error.code(), ErrorCode::SamplingInvalid);
    }

    #[test]
    fn draws_follow_the_softmax() {
        let logits = [0.0, 1.0, 2.0, -1.0, 0.5, 0.5];
        for temperature in [0.5, 1.0, 2.0] {
            let params = at(temperature);
            assert!(fits(&histogram(&logits, &params, 20_000), &distribution(&logits, &params)));
        }
        assert!(!fits(&histogram(&logits, &at(1.0), 20_000), &distribution(&logits, &at(1.1))), "the test can fail");
    }

    #[test]
    fn a_draw_does_not_depend_on_earlier_samples() {
        let logits: Vec<f32> = (0..50).map(|i| (i as f32 * 0.7).sin()).collect();
        let params = SamplingParams { seed: Some(7), ..at(1.0) };
        let fresh = Sampler::default().sample(&logits, &params, &[1, 2, 3], 1, None, 0).expect("chosen");
        let mut used = Sampler::default();
        let _ = used.sample(&[1.0; 90], &SamplingParams { repetition_penalty: 2.0, ..at(0.3) }, &[5, 80], 0, None, 4);
        assert_eq!(used.sample(&logits, &params, &[9, 9, 9], 2, None, 0).expect("chosen"), fresh);
    }

    #[test]
    fn seeds_draw_independently() {
        let logits = [0.0; 16];
        let draws = |seed| {
            let params = SamplingParams { seed: Some(seed), ..at(1.0) };
            let mut sampler = Sampler::default();
            (0..256)
                .map(|n| sampler.sample(&logits, &params, &vec![0; n], 0, None, 0).expect("chosen").id)
                .collect::<Vec<_>>()
        };
        let first = draws(0);
        // A seed that differs by the increment of SplitMix64 would shift a stream that is not mixed twice.
        for seed in [1, 2, 1 << 40, 0x9E37_79B9_7F4A_7C15] {
            let other = draws(seed);
            for shift in 0..3 {
                let equal = first.iter().skip(shift).zip(&other).filter(|(a, b)| a == b).count();
                assert!(equal < 40, "seed {seed} agrees in {equal} of 256 places at shift {shift}");
            }
        }
    }

    /// The first output of the generator for seed 0 is widely published: 0xE220A8397B1DCDAF.
    #[test]
    fn the_mixer_is_splitmix64() {
        let first = hash_of_state(0x9E37_79B9_7F4A_7C15);
        assert_eq!(first, 0xE220_A839_7B1D_CDAF);
        assert_eq!(hash(0, 0), hash_of_state(first.wrapping_add(0x9E37_79B9_7F4A_7C15)));
    }

    fn hash_of_state(mut z: u64) -> u64 {
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }

    #[test]
    fn penalties_follow_their_formulas() {
        let params = SamplingParams {
            repetition_penalty: 2.0,
            frequency_penalty: 0.5,
            presence_penalty: 0.25,
            logit_bias: vec![(3, 1.0), (4, f32::NEG_INFINITY)],
            ..at(0.0)
        };
        let mut sampler = Sampler::default();
        let mut logits = [4.0, -4.0, 1.0, 0.0, 9.0, 3.0];
        // 0 in the prompt; 1 twice and 2 once in the output; 99 is not a token of the model.
        let tokens = [0, 99, 1, 2, 1];
        sampler.counts.resize(6, 0);
        sampler.penalize(&mut logits, &params, &tokens, &tokens[2..]);
        assert_eq!(logits, [2.0, -9.25, -0.25, 1.0, f32::NEG_INFINITY, 3.0]);
        assert!(sampler.counts.iter().all(|&count| count == 0));

        let mut logits = [4.0, -4.0, 1.0];
        let params = SamplingParams { repetition_penalty: 2.0, repetition_range: Some(2), ..at(0.0) };
        sampler.penalize(&mut logits, &params, &[0, 1, 2, 1], &[]);
        assert_eq!(logits, [4.0, -8.0, 0.5], "only the last two tokens count");
    }

    #[test]
    fn logprobs_are_of_the_unmodified_distribution() {
        let logits = [1.0f32, 3.0, 2.0, -1.0];
        let params = SamplingParams { logit_bias: vec![(0, 100.0)], ..at(0.5) };
        let sampled = Sampler::default().sample(&logits, &params, &[], 0, None, 2).expect("chosen");
        let sum: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
        let expected = |id: usize| (f64::from(logits[id]) - sum.ln()) as f32;
        assert_eq!(sampled.id, 0);
        assert!((sampled.logprob - expected(0)).abs() < 1e-6);
        assert_eq!(sampled.top_logprobs.iter().map(|top| top.0).collect::<Vec<_>>(), [1, 2]);
        assert!(sampled.top_logprobs.iter().all(|&(id, logprob)| (logprob - expected(id as usize)).abs() < 1e-6));
    }

    proptest! {
        #[test]
        fn every_filter_matches_its_definition(
            logits in prop::collection::vec(-40i32..40, 1..600),
            temperature in 0.2f32..3.0,
            top_k in 0usize..20,
            top_p in prop::sample::select(vec![0.0f32, 0.3, 0.8, 0.95, 1.0]),
            min_p in prop::sample::select(vec![0.0f32, 0.05, 0.5, 1.0]),
        ) {
            prop_assume!(top_k != 1);
            let logits: Vec<f32> = logits.into_iter().map(|l| l as f32 / 8.0).collect();
            let params = SamplingParams { top_k, top_p, min_p, ..at(temperature) };
            let mut sampler = Sampler::default();
            sampler.draw(&logits, &params, 0);
            let total: f64 = sampler.candidates.iter().map(|c| c.weight).sum();
            let mut found = vec![0.0; logits.len()];
            for c in &sampler.candidates {
                found[c.id as usize] = c.weight / total;
            }
            for (id, (found, expected)) in found.iter().zip(distribution(&logits, &params)).enumerate() {
                prop_assert!((found - expected).abs() < 1e-9, "token {}: {} instead of {}", id, found, expected);
            }
        }

        #[test]
        fn argmax_equals_a_plain_scan(logits in prop::collection::vec(
            prop_oneof![8 => -4i8..4, 1 => Just(100i8), 1 => Just(101i8)], 0..70)) {
            let logits: Vec<f32> = logits
                .into_iter()
                .map(|l| match l { 100 => f32::NAN, 101 => f32::NEG_INFINITY, l => f32::from(l) })
                .collect();
            let mut best = (None, f32::NEG_INFINITY);
            for (id, &logit) in logits.iter().enumerate() {
                if logit > best.1 {
                    best = (Some(id as u32), logit);
                }
            }
            prop_assert_eq!(argmax(&logits), best.0);
        }
    }
}
