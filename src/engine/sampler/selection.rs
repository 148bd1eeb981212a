//! Finding a place in an order without sorting all of it.
//!
//! The order of tokens is their *rank*: larger logit first, then lower id. Only the part of it around the place that is asked
//! for is ever sorted: of the vocabulary, the blocks whose largest logit can be among the k best; of weighted elements, those
//! that share the leading bits of their key with the one where a sum is reached.

/// Elements at most that are sorted at once.
const SORTED_AT_ONCE: usize = 256;
/// Logits in a block of [`Selection::best`].
const BLOCK: usize = 32;
/// Bits of a key that are looked at in one pass.
const DIGIT_BITS: u32 = 11;

/// Scratch memory of selections.
#[derive(Default)]
pub(super) struct Selection {
    /// Largest logit of each block, and a copy that is partitioned.
    maxima: Vec<f32>,
    partitioned: Vec<f32>,
    /// Ids with their rank in the upper half.
    ranked: Vec<u64>,
    /// Sum of the weights of each digit.
    histogram: Vec<f64>,
    /// Indices with the same leading digits.
    members: Vec<u32>,
}

/// A number that orders logits from the largest down; no logit here is NaN.
#[inline(always)]
pub(super) fn rank_key(logit: f32) -> u32 {
    // Adding 0 makes -0 and 0 the same rank.
    let bits = (logit + 0.0).to_bits();
    // Descending: positive numbers have their bits flipped, negative ones only the sign.
    if bits >> 31 == 0 { !bits ^ (1 << 31) } else { bits }
}

/// A number that orders distances of at least 0 from the smallest up.
#[inline(always)]
pub(super) fn distance_key(distance: f64) -> u64 {
    distance.to_bits()
}

impl Selection {
    /// Replaces `ids` by those of the `k` best logits, in order of rank; fewer if no more are above minus infinity.
    pub(super) fn best(&mut self, logits: &[f32], k: usize, ids: &mut Vec<u32>) {
        ids.clear();
        self.maxima.clear();
        self.maxima.extend(
            logits.chunks(BLOCK).map(|block| {
                block.iter().fold(f32::NEG_INFINITY, |best, &logit| if logit > best { logit } else { best })
            }),
        );
        // As many blocks have a logit of at least this as tokens are wanted, so the k best are not below it.
        let bound = if k == 0 {
            return;
        } else if k < self.maxima.len() {
            self.partitioned.clear();
            self.partitioned.extend_from_slice(&self.maxima);
            *self.partitioned.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1
        } else {
            f32::NEG_INFINITY
        };
        self.ranked.clear();
        for (index, (block, &largest)) in logits.chunks(BLOCK).zip(&self.maxima).enumerate() {
            if largest >= bound && largest > f32::NEG_INFINITY {
                let first = (index * BLOCK) as u64;
                let possible =
                    (first..).zip(block).filter(|(_, logit)| **logit >= bound && **logit > f32::NEG_INFINITY);
                self.ranked.extend(possible.map(|(id, &logit)| u64::from(rank_key(logit)) << 32 | id));
            }
        }
        if k < self.ranked.len() {
            self.ranked.select_nth_unstable(k);
            self.ranked.truncate(k);
        }
        self.ranked.sort_unstable();
        ids.extend(self.ranked.iter().map(|&ranked| ranked as u32));
    }

    /// Finds the element with which the sum of `weights`, added from the lowest of `keys` up (equal ones by index), reaches
    /// `mass`; the last one with a weight above 0 if rounding keeps the sum below. `None` if no weight is above 0.
    pub(super) fn reach(&mut self, keys: &[u64], weights: &[f64], mass: f64) -> Option<usize> {
        self.members.clear();
        let mut missing = mass;
        if keys.len() <= SORTED_AT_ONCE {
            self.members.extend((0..keys.len() as u32).filter(|&index| weights[index as usize] > 0.0));
            return self.reach_sorted(keys, weights, missing);
        }
        self.histogram.clear();
        self.histogram.resize(1 << DIGIT_BITS, 0.0);
        let mut shift = u64::BITS - DIGIT_BITS;
        for (&key, weight) in keys.iter().zip(weights) {
            self.histogram[(key >> shift) as usize] += weight;
        }
        let digit = take_digit(&self.histogram, &mut missing)?;
        let matching = (0..).zip(keys.iter().zip(weights));
        let matching = matching.filter(|(_, (key, weight))| **key >> shift == digit && **weight > 0.0);
        self.members.extend(matching.map(|(index, _)| index));
        while self.members.len() > SORTED_AT_ONCE && shift > 0 {
            shift = shift.saturating_sub(DIGIT_BITS);
            let digit_of = |index: u32| keys[index as usize] >> shift & ((1 << DIGIT_BITS) - 1);
            self.histogram.fill(0.0);
            for &index in &self.members {
                self.histogram[digit_of(index) as usize] += weights[index as usize];
            }
            let digit = take_digit(&self.histogram, &mut missing)?;
            self.members.retain(|&index| digit_of(index) == digit);
        }
        self.reach_sorted(keys, weights, missing)
    }

    /// As [`Selection::reach`], among the members.
    fn reach_sorted(&mut self, keys: &[u64], weights: &[f64], mass: f64) -> Option<usize> {
        self.members.sort_unstable_by_key(|&index| (keys[index as usize], index));
        let mut sum = 0.0;
        let reached = self.members.iter().find(|&&index| {
            sum += weights[index as usize];
            sum >= mass
        });
        reached.or(self.members.last()).map(|&index| index as usize)
    }
}

/// The digit where the sum reaches what is `missing`, which is reduced by the sum before it; else the last with a sum.
fn take_digit(histogram: &[f64], missing: &mut f64) -> Option<u64> {
    let mut before = 0.0;
    let mut last = None;
    for (digit, &sum) in histogram.iter().enumerate().filter(|(_, sum)| **sum > 0.0) {
        last = Some((digit, before));
        before += sum;
        if before >= *missing {
            break;
        }
    }
    let (digit, before) = last?;
    *missing -= before;
    Some(digit as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// All indices in the order of (key, index).
    fn sorted<K: Ord + Copy>(keys: &[K]) -> Vec<usize> {
        let mut order: Vec<usize> = (0..keys.len()).collect();
        order.sort_by_key(|&index| (keys[index], index));
        order
    }

    #[test]
    fn keys_have_the_order_of_their_numbers() {
        let descending = [f32::INFINITY, f32::MAX, 1.0, 1e-45, 0.0, -1e-45, -2.5, f32::MIN, f32::NEG_INFINITY];
        assert!(descending.windows(2).all(|pair| rank_key(pair[0]) < rank_key(pair[1])));
        assert_eq!(rank_key(0.0), rank_key(-0.0));
        assert!([0.0, 1e-300, 0.5, 2.0, f64::INFINITY].windows(2).all(|p| distance_key(p[0]) < distance_key(p[1])));
    }

    proptest! {
        #[test]
        fn the_best_are_the_head_of_a_sorted_vocabulary(
            logits in prop::collection::vec(prop_oneof![9 => -40i32..40, 1 => Just(99)], 0..2000),
            k in 0usize..300,
        ) {
            let logits: Vec<f32> = logits
                .into_iter()
                .map(|logit| match logit { 99 => f32::NAN, -40 => f32::NEG_INFINITY, logit => logit as f32 / 8.0 })
                .collect();
            let possible: Vec<usize> = (0..logits.len()).filter(|&id| logits[id] > f32::NEG_INFINITY).collect();
            let keys: Vec<i32> = possible.iter().map(|&id| (-logits[id] * 8.0) as i32).collect();
            let expected: Vec<u32> = sorted(&keys).into_iter().map(|index| possible[index] as u32).take(k).collect();
            let mut ids = vec![7];
            Selection::default().best(&logits, k, &mut ids);
            prop_assert_eq!(ids, expected);
        }

        #[test]
        fn a_sum_is_reached_where_a_sorted_list_reaches_it(
            elements in prop::collection::vec((0u64..50, 0u32..5), 0..1500),
            scale in prop::sample::select(vec![1u64, 1 << 7, 1 << 20, 1 << 58]),
            share in 0.0f64..1.1,
        ) {
            let keys: Vec<u64> = elements.iter().map(|element| element.0 * scale).collect();
            // Sums of small integers are exact in any order.
            let weights: Vec<f64> = elements.iter().map(|element| f64::from(element.1)).collect();
            let mass = (weights.iter().sum::<f64>() * share).ceil().max(1.0);
            let mut sum = 0.0;
            let order: Vec<usize> = sorted(&keys).into_iter().filter(|&index| weights[index] > 0.0).collect();
            let reached = order.iter().find(|&&index| { sum += weights[index]; sum >= mass }).or(order.last());
            prop_assert_eq!(Selection::default().reach(&keys, &weights, mass), reached.copied());
        }
    }
}
