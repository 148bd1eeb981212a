//! Filters: each cuts tokens off the distribution that the one before left, and keeps at least one.

use super::candidates::Candidates;
use super::selection::distance_key;
use crate::engine::sampling_params::{SamplingParams, is_share};

/// Applies all filters but top-k, in their order. `mu` is Mirostat's limit on the surprise of a token, in bits.
pub(super) fn cut(candidates: &mut Candidates, params: &SamplingParams, mu: Option<f64>) {
    if is_share(params.top_p) {
        candidates.keep_head(candidates.total * f64::from(params.top_p));
    }
    if params.top_a > 0.0 {
        let best = candidates.largest_weight();
        candidates.keep_weights_from((f64::from(params.top_a) * best * (best / candidates.total)).min(best));
    }
    if params.min_p > 0.0 {
        candidates.keep_weights_from(f64::from(params.min_p) * candidates.largest_weight());
    }
    if is_share(params.tfs) {
        cut_tail(candidates, f64::from(params.tfs));
    }
    if is_share(params.typical) {
        keep_typical(candidates, f64::from(params.typical));
    }
    if let Some(mu) = mu {
        let least = (-mu).exp2() * candidates.total;
        candidates.keep_weights_from(least.min(candidates.largest_weight()));
    }
}

/// Tail-free sampling: keeps the head of the ranking up to where the curvature of the sorted probabilities, as a share of all
/// of it, exceeds `limit`, and one token more. A distribution without curvature has no tail.
///
/// Source: Bricken, "Tail Free Sampling", 2019.
fn cut_tail(candidates: &mut Candidates, limit: f64) {
    // The curvature is that of the tokens which can be chosen.
    candidates.keep_weights_from(f64::MIN_POSITIVE);
    candidates.rank_all();
    if let Some(kept) = head_of_curvature(candidates.ranked_weights(), limit) {
        candidates.keep_ranked(kept + 1);
    }
}

/// Number of triples before their curvature, as a share of all of it, exceeds `limit`; `None` if there is no curvature.
fn head_of_curvature(weights: impl Iterator<Item = f64> + Clone, limit: f64) -> Option<usize> {
    let triples = weights.clone().zip(weights.clone().skip(1)).zip(weights.skip(2));
    let curvatures = triples.map(|((a, b), c)| (a - 2.0 * b + c).abs());
    let total: f64 = curvatures.clone().sum();
    let mut sum = 0.0;
    let head = curvatures.take_while(|curvature| {
        sum += curvature;
        sum <= limit * total
    });
    (total > 0.0).then(|| head.count())
}

/// Locally typical sampling: keeps the tokens whose surprise is nearest to the expected one, up to this share of the
/// probability. The most likely token may be among those that go.
///
/// Source: Meister, Pimentel, Wiher and Cotterell, "Locally Typical Sampling", 2023.
fn keep_typical(candidates: &mut Candidates, share: f64) {
    candidates.take_logarithms();
    // The surprise is the logarithm of the total, less that of the weight; the expected one is their mean.
    let expected = candidates.mean_logarithm();
    candidates.keep_head_by(candidates.total * share, |logarithm| distance_key((logarithm - expected).abs()));
}
