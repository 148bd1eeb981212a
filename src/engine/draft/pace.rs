//! How many tokens a sequence drafts in its next step.

/// Longest pause after steps in which nothing was accepted, in steps.
const LONGEST_PAUSE: usize = 16;

/// Adapts the number of drafted tokens to how many were accepted, by this rule:
///
/// - It begins with the most allowed. After a step that accepted all, it is two more than before; after any other, as many as
///   were accepted, but at least one.
/// - If nothing was accepted in several steps one after the other, the next 1, 3, 7 and so on steps up to [`LONGEST_PAUSE`]
///   draft nothing.
#[derive(Clone, Debug)]
pub(super) struct DraftPace {
    most: usize,
    limit: usize,
    /// Steps that drafted and accepted nothing, since one that accepted something.
    misses: u32,
    /// Steps without drafts to go.
    pause: usize,
}

impl DraftPace {
    pub(super) fn new(most: usize) -> Self {
        Self { most, limit: most, misses: 0, pause: 0 }
    }

    /// Number of tokens to draft.
    pub(super) fn wanted(&self) -> usize {
        if self.pause > 0 { 0 } else { self.limit }
    }

    /// A step has verified `drafted` tokens (0 if it drafted none) and accepted that many.
    pub(super) fn record(&mut self, drafted: usize, accepted: usize) {
        if drafted == 0 {
            self.pause = self.pause.saturating_sub(1);
            return;
        }
        self.limit = match accepted {
            all if all == drafted => (self.limit + 2).min(self.most),
            some => some.max(1),
        };
        self.misses = if accepted == 0 { self.misses + 1 } else { 0 };
        let missed_before = self.misses.saturating_sub(1).min(LONGEST_PAUSE.ilog2());
        self.pause = (1 << missed_before) - 1 + usize::from(missed_before == LONGEST_PAUSE.ilog2());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is wanted after each of these (accepted) steps, when all that is wanted is drafted.
    fn wanted(most: usize, accepted: &[usize]) -> Vec<usize> {
        let mut pace = DraftPace::new(most);
        let after = |&accepted: &usize| {
            let drafted = pace.wanted();
            pace.record(drafted, accepted.min(drafted));
            pace.wanted()
        };
        accepted.iter().map(after).collect()
    }

    #[test]
    fn drafts_get_shorter_when_fewer_are_accepted_and_longer_again() {
        assert_eq!(wanted(8, &[8, 8]), [8, 8]);
        assert_eq!(wanted(8, &[3, 3, 5, 7, 8]), [3, 5, 7, 8, 8]);
        assert_eq!(wanted(8, &[3, 1, 1]), [3, 1, 3]);
        assert_eq!(wanted(1, &[1, 1]), [1, 1]);
    }

    #[test]
    fn steps_that_accept_nothing_are_followed_by_longer_and_longer_pauses() {
        let mut pace = DraftPace::new(4);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            assert!(pace.wanted() > 0);
            pace.record(pace.wanted(), 0);
            let mut pause = 0;
            while pace.wanted() == 0 {
                pace.record(0, 0);
                pause += 1;
            }
            pauses.push(pause);
        }
        assert_eq!(pauses, [0, 1, 3, 7, 16, 16, 16, 16]);
        pace.record(1, 1);
        assert_eq!(pace.wanted(), 3, "a hit ends the pauses");
    }
}
