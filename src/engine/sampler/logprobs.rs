//! What is reported of a distribution: log-probabilities before penalties and filters, probabilities after them.

use super::candidates::Candidates;
use super::exp::{largest, sum_of_exponentials};
use super::selection::Selection;

/// Log-probabilities of one id and of the `n` best.
pub(super) fn logprobs(
    selection: &mut Selection,
    ids: &mut Vec<u32>,
    logits: &[f32],
    id: u32,
    n: usize,
) -> (f32, Vec<(u32, f32)>) {
    let best = largest(logits);
    let normalizer = sum_of_exponentials(logits, best).ln();
    let logprob = |logit: f32| match logit {
        logit if logit.is_nan() => f32::NEG_INFINITY,
        logit if logit == best => -normalizer as f32,
        logit => (f64::from(logit) - f64::from(best) - normalizer) as f32,
    };
    selection.best(logits, n, ids);
    let top = ids.iter().map(|&id| (id, logprob(logits[id as usize]))).collect();
    (logits.get(id as usize).map_or(f32::NEG_INFINITY, |&logit| logprob(logit)), top)
}

/// The `n` most likely tokens after all filters; then, with a probability of 0, the best of those that were cut off.
pub(super) fn top_probs(candidates: &mut Candidates, logits: &[f32], n: usize) -> Vec<(u32, f32)> {
    let possible = candidates.ids.iter().copied().zip(candidates.weights.iter().copied());
    let mut kept: Vec<(u32, f64)> = possible.filter(|(_, weight)| *weight > 0.0).collect();
    let order = |a: &(u32, f64), b: &(u32, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if n < kept.len() {
        kept.select_nth_unstable_by(n, order);
        kept.truncate(n);
    }
    kept.sort_unstable_by(order);
    let mut top: Vec<(u32, f32)> = kept.iter().map(|&(id, weight)| (id, (weight / candidates.total) as f32)).collect();
    if top.len() < n {
        let mut best = Vec::new();
        candidates.selection.best(logits, n, &mut best);
        kept.sort_unstable_by_key(|&(id, _)| id);
        best.retain(|id| kept.binary_search_by_key(id, |&(id, _)| id).is_err());
        top.extend(best.into_iter().take(n - top.len()).map(|id| (id, 0.0)));
    }
    top
}
