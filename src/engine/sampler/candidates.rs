//! The tokens that can still be chosen, and their weights.

use super::exp::{Softmax, fill_logarithms, largest, sum, weigh, weigh_logarithms, weighted_sum};
use super::selection::{Selection, rank_key};

/// Elements that are looked at together when few of them are kept.
const CHUNK: usize = 16;
/// Weights that are summed before it is looked where a sum is reached.
const SUMMED_AT_ONCE: usize = 256;

/// Tokens with their weights, which are probabilities up to a common factor. A token of weight 0 cannot be chosen.
///
/// They lie in order of id, or of rank where only the k best were taken. What a cut removes goes from the lists.
#[derive(Default)]
pub(super) struct Candidates {
    pub ids: Vec<u32>,
    pub logits: Vec<f32>,
    pub weights: Vec<f64>,
    /// Sum of the weights.
    pub total: f64,
    /// The largest logit, whose token's weight was 1 after the softmax.
    best: f32,
    softmax: Softmax,
    /// By which an order is looked up, and indices in that of rank, in the lower half.
    keys: Vec<u64>,
    order: Vec<u64>,
    logarithms: Vec<f64>,
    pub selection: Selection,
}

impl Candidates {
    /// Takes the `k` best tokens (0 for all), with their weights. `false` if there is none.
    pub(super) fn collect(&mut self, logits: &[f32], k: usize, softmax: Softmax) -> bool {
        self.logits.clear();
        if 0 < k && k < logits.len() {
            self.selection.best(logits, k, &mut self.ids);
            self.logits.extend(self.ids.iter().map(|&id| logits[id as usize]));
        } else {
            self.ids.clear();
            self.ids.extend(0..logits.len() as u32);
            self.logits.extend_from_slice(logits);
        }
        self.best = largest(&self.logits);
        if self.best == f32::NEG_INFINITY {
            return false;
        }
        self.total = weigh(&mut self.weights, &self.logits, self.best, softmax);
        self.softmax = softmax;
        true
    }

    /// Number of tokens that can be chosen.
    pub(super) fn possible(&self) -> usize {
        self.weights.iter().map(|&weight| usize::from(weight > 0.0)).sum()
    }

    /// The largest weight.
    pub(super) fn largest_weight(&self) -> f64 {
        self.weights.iter().fold(0.0, |largest, &weight| if weight > largest { weight } else { largest })
    }

    /// Keeps the tokens with at least this weight.
    pub(super) fn keep_weights_from(&mut self, least: f64) {
        let mut kept = 0;
        for start in (0..self.weights.len()).step_by(CHUNK) {
            let end = (start + CHUNK).min(self.weights.len());
            if !self.weights[start..end].iter().fold(false, |any, &weight| any | (weight >= least)) {
                continue;
            }
            for index in start..end {
                (self.ids[kept], self.logits[kept]) = (self.ids[index], self.logits[index]);
                self.weights[kept] = self.weights[index];
                kept += usize::from(self.weights[index] >= least);
            }
        }
        self.truncate(kept);
    }

    /// Keeps the tokens up to the one at `last`, in the order of (key, index) of what was given to `reach`.
    fn keep_to(&mut self, last: usize) {
        let end = (self.keys[last], last);
        let mut kept = 0;
        for index in 0..self.keys.len() {
            (self.ids[kept], self.logits[kept]) = (self.ids[index], self.logits[index]);
            self.weights[kept] = self.weights[index];
            kept += usize::from((self.keys[index], index) <= end);
        }
        self.truncate(kept);
    }

    fn truncate(&mut self, kept: usize) {
        self.ids.truncate(kept);
        self.logits.truncate(kept);
        self.weights.truncate(kept);
        self.total = sum(&self.weights);
    }

    /// The index of the token with which the sum of weights reaches `mass`, in order of rank.
    pub(super) fn reach_by_rank(&mut self, mass: f64) -> Option<usize> {
        self.fill_rank_keys();
        self.selection.reach(&self.keys, &self.weights, mass)
    }

    /// The index of the token with which the sum of weights reaches `mass`, in the order of the lists.
    pub(super) fn reach_by_id(&self, mass: f64) -> Option<usize> {
        let mut before = 0.0;
        let mut start = 0;
        for block in self.weights.chunks(SUMMED_AT_ONCE) {
            let block_sum = sum(block);
            if before + block_sum >= mass {
                break;
            }
            before += block_sum;
            start += block.len();
        }
        let possible = || (start..).zip(&self.weights[start..]).filter(|(_, weight)| **weight > 0.0);
        let reached = possible().find(|(_, weight)| {
            before += **weight;
            before >= mass
        });
        // Rounding may keep the sum below.
        let last = || self.weights.iter().rposition(|&weight| weight > 0.0);
        reached.map(|(index, _)| index).or_else(last)
    }

    /// Leaves one token.
    pub(super) fn keep_only(&mut self, id: u32) {
        self.ids.clear();
        self.ids.push(id);
        self.logits.clear();
        self.logits.push(0.0);
        self.weights.clear();
        self.weights.push(1.0);
        self.total = 1.0;
    }

    /// Keeps the shortest head of the ranking whose weights reach `mass`, at least one token.
    pub(super) fn keep_head(&mut self, mass: f64) {
        // What is cut here has less mass than may be left out, even if all of it were at the limit.
        self.keep_weights_from((self.total - mass) / self.weights.len() as f64 * 0.5);
        if let Some(last) = self.reach_by_rank(mass) {
            self.keep_to(last);
        }
    }

    /// Fills `logarithms` with those of the weights, as they were after the softmax; minus infinity for a weight of 0.
    pub(super) fn take_logarithms(&mut self) {
        fill_logarithms(&mut self.logarithms, &self.logits, &self.weights, self.best, self.softmax);
    }

    /// The mean logarithm of a weight, after `take_logarithms`.
    pub(super) fn mean_logarithm(&self) -> f64 {
        weighted_sum(&self.weights, &self.logarithms) / self.total
    }

    /// Keeps the shortest head, in the order of `key` of the logarithm of a weight, whose weights reach `mass`, at least one
    /// token. After `take_logarithms`.
    pub(super) fn keep_head_by(&mut self, mass: f64, key: impl Fn(f64) -> u64) {
        self.keys.clear();
        self.keys.extend(self.logarithms.iter().map(|&logarithm| key(logarithm)));
        if let Some(last) = self.selection.reach(&self.keys, &self.weights, mass) {
            self.keep_to(last);
        }
    }

    /// Sorts the tokens into `order`, by rank. The lists keep theirs.
    pub(super) fn rank_all(&mut self) {
        let ranked = |(index, &logit): (u64, &f32)| u64::from(rank_key(logit)) << 32 | index;
        self.order.clear();
        self.order.extend((0..).zip(&self.logits).map(ranked));
        self.order.sort_unstable();
    }

    /// The weights in order of rank, after `rank_all`.
    pub(super) fn ranked_weights(&self) -> impl Iterator<Item = f64> + Clone {
        self.order.iter().map(|&ranked| self.weights[ranked as u32 as usize])
    }

    /// Keeps the first `n` in order of rank, after `rank_all`.
    pub(super) fn keep_ranked(&mut self, n: usize) {
        let Some(&last) = self.order.get(n.saturating_sub(1)) else { return };
        self.fill_rank_keys();
        self.keep_to(last as u32 as usize);
    }

    fn fill_rank_keys(&mut self) {
        self.keys.clear();
        self.keys.extend(self.logits.iter().map(|&logit| u64::from(rank_key(logit)) << 32));
    }

    /// Replaces each weight by its power of 1 / `temperature`; at a temperature of 0 only the best tokens keep a weight.
    pub(super) fn soften(&mut self, temperature: f64) {
        self.take_logarithms();
        self.total = weigh_logarithms(&mut self.weights, &self.logarithms, temperature);
    }
}
