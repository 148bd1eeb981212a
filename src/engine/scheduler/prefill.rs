//! How the prompt tokens of a step are shared among the sequences in prefill.
//!
//! A step computes no more than a budget of prompt tokens (`prefill_chunk`). It is counted in rows of the base model: a row
//! that adapters of large ranks, or very many of them, make more expensive counts as several, so that no request makes a
//! step much longer than others do.
//!
//! Half of the budget goes to the oldest sequence, so that each gets its turn. The rest goes to those that need least, so that
//! a short prompt does not wait for long ones before it. Sequences of equal length are served in their order.

/// A sequence in prefill.
#[derive(Clone, Copy, Debug)]
pub(super) struct Prefill {
    /// Its index in the caller's list.
    pub index: usize,
    /// Tokens to compute, at least one.
    pub pending: usize,
    /// What one of them costs, at least 1.
    pub row_cost: usize,
}

impl Prefill {
    /// As many of its `pending` tokens as `budget` pays for, which they are taken from.
    fn take(&mut self, budget: &mut usize) -> usize {
        let tokens = self.pending.min(*budget / self.row_cost);
        self.pending -= tokens;
        *budget -= tokens * self.row_cost;
        tokens
    }
}

/// Shares `budget` among sequences, oldest first: `grant(index, tokens)` adds tokens to what a sequence computes in this
/// step. The oldest gets at least one token, whatever it costs. Reorders the list.
pub(super) fn share(budget: usize, prefills: &mut [Prefill], mut grant: impl FnMut(usize, usize)) {
    let Some(oldest) = prefills.first_mut() else { return };
    let mut guaranteed = budget.div_ceil(2).max(oldest.row_cost);
    let mut rest = budget.saturating_sub(guaranteed);
    grant(oldest.index, oldest.take(&mut guaranteed));
    rest += guaranteed;
    prefills.sort_unstable_by_key(|prefill| (prefill.pending.saturating_mul(prefill.row_cost), prefill.index));
    for prefill in prefills {
        grant(prefill.index, prefill.take(&mut rest));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The tokens that each sequence of (pending tokens, cost of a row) gets.
    fn shared(budget: usize, sequences: &[(usize, usize)]) -> Vec<usize> {
        let prefill = |(index, &(pending, row_cost))| Prefill { index, pending, row_cost };
        let mut prefills: Vec<_> = sequences.iter().enumerate().map(prefill).collect();
        let mut tokens = vec![0; sequences.len()];
        share(budget, &mut prefills, |index, granted| tokens[index] += granted);
        tokens
    }

    /// Steps until each sequence has computed all its tokens.
    fn steps(budget: usize, sequences: &[(usize, usize)]) -> Vec<usize> {
        let mut left = sequences.to_vec();
        let mut ended = vec![0; left.len()];
        for step in 1.. {
            let (running, current): (Vec<_>, Vec<_>) =
                left.iter().copied().enumerate().filter(|(_, (pending, _))| *pending > 0).unzip();
            if running.is_empty() {
                return ended;
            }
            for (index, tokens) in running.into_iter().zip(shared(budget, &current)) {
                left[index].0 -= tokens;
                if left[index].0 == 0 {
                    ended[index] = step;
                }
            }
        }
        unreachable!("some step is the last")
    }

    #[test]
    fn a_short_prompt_does_not_wait_for_long_ones() {
        assert_eq!(steps(512, &[(900, 1), (900, 1), (900, 1), (3, 1)]), [2, 4, 6, 1]);
    }

    #[test]
    fn a_long_prompt_is_not_starved_by_short_ones() {
        let mut left = 2000;
        for _ in 0..8 {
            // New short ones arrive in every step.
            left -= shared(512, &[(left, 1), (400, 1), (400, 1), (400, 1)])[0];
        }
        assert_eq!(left, 0);
    }

    #[test]
    fn prompts_of_equal_length_are_served_in_their_order() {
        assert_eq!(steps(100, &[(100, 1), (100, 1), (100, 1)]), [1, 2, 3]);
    }

    #[test]
    fn expensive_rows_get_smaller_chunks() {
        assert_eq!(shared(512, &[(300, 10)]), [51]);
        assert_eq!(shared(512, &[(300, 10), (100, 1)]), [41, 100]);
        assert_eq!(shared(512, &[(300, 10_000), (100, 1)]), [1, 0]);
        assert_eq!(shared(1, &[(5, 1), (5, 1)]), [1, 0]);
    }

    proptest! {
        #[test]
        fn the_budget_is_used_up_and_never_exceeded(
            budget in 1usize..600,
            sequences in prop::collection::vec((1usize..700, 1usize..20), 1..12),
        ) {
            let tokens = shared(budget, &sequences);
            let cost: usize = tokens.iter().zip(&sequences).map(|(tokens, (_, row_cost))| tokens * row_cost).sum();
            prop_assert!(cost <= budget.max(sequences[0].1));
            // Nobody who could still be paid for is left with less than all its tokens.
            for (tokens, (pending, row_cost)) in tokens.iter().zip(&sequences) {
                prop_assert!(tokens <= pending);
                prop_assert!(tokens == pending || cost + row_cost > budget);
            }
            prop_assert!(tokens[0] >= sequences[0].0.min((budget.div_ceil(2) / sequences[0].1).max(1)));
        }
    }
}
