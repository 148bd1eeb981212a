//! Exclude top choices (XTC): tokens that are likely, but not the least likely of these, are sometimes left out.

use super::candidates::Candidates;
use super::selection::rank_key;

/// Scales the weights as if, with `probability`, every token of at least the probability `threshold` had been left out, except
/// for the least likely of them and those that are `ignored` (sorted ids).
///
/// Leaving them out by a second random number gives the same distribution as this, which needs none.
pub(super) fn exclude_top_choices(candidates: &mut Candidates, probability: f64, threshold: f64, ignored: &[u32]) {
    let total = candidates.total;
    let is_top =
        |id: u32, weight: f64| weight > 0.0 && weight >= threshold * total && ignored.binary_search(&id).is_err();
    let (mut mass, mut rest): (f64, f64) = (0.0, 0.0);
    let mut least: Option<(u32, u32, f64)> = None;
    for ((&id, &logit), &weight) in candidates.ids.iter().zip(&candidates.logits).zip(&candidates.weights) {
        if is_top(id, weight) {
            // Of this token and the least likely one so far, the more likely one is left out.
            let this = (rank_key(logit), id, weight);
            let (left_out, stays) = match least {
                None => (0.0, this),
                Some(least) if (least.0, least.1) < (this.0, this.1) => (least.2, this),
                Some(least) => (weight, least),
            };
            mass += left_out;
            least = Some(stays);
        } else {
            rest += weight;
        }
    }
    let Some((_, kept, weight)) = least else { return };
    rest += weight;
    if mass <= 0.0 {
        return;
    }
    candidates.total = 0.0;
    for (&id, weight) in candidates.ids.iter().zip(&mut candidates.weights) {
        // Where tokens are left out, the rest shares all of the total.
        let share_of_rest = if id != kept && is_top(id, *weight) { 0.0 } else { *weight / rest };
        *weight = *weight * (1.0 - probability) + probability * total * share_of_rest;
        candidates.total += *weight;
    }
}
