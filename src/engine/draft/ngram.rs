//! Drafts from the sequence itself (prompt lookup): what followed where its last tokens appeared before.

use std::collections::HashMap;

/// Shortest n-gram that is looked up, unless a shorter one is the longest allowed: single tokens recur by chance.
const MIN_NGRAM: usize = 2;

/// The n-grams of a sequence's tokens, and where each appeared last.
///
/// Grows with the sequence: each token adds one entry for each length.
pub(in crate::engine) struct NgramIndex {
    shortest: usize,
    /// For each length from the shortest on: the position after the last appearance of an n-gram, by its hash.
    positions: Vec<HashMap<u64, u32>>,
    /// The tokens before this position are in the index, as what follows an n-gram.
    indexed: usize,
}

impl NgramIndex {
    /// An empty index of n-grams of up to `max_ngram` tokens, which is at least 1.
    pub(super) fn new(max_ngram: usize) -> Self {
        let lengths = max_ngram.saturating_sub(MIN_NGRAM) + 1;
        Self { shortest: max_ngram.clamp(1, MIN_NGRAM), positions: vec![HashMap::new(); lengths], indexed: 0 }
    }

    /// Appends up to `limit` tokens that may follow `tokens`: those after the last place where their longest ending that
    /// appeared before did so. Where what followed then reaches the end of the tokens, it goes on with the draft itself.
    pub(super) fn propose(&mut self, tokens: &[u32], limit: usize, proposed: &mut Vec<u32>) {
        self.update(tokens);
        let end = tokens.len();
        let appearance = |(i, positions): (usize, &HashMap<u64, u32>)| {
            let n = self.shortest + i;
            let ending = &tokens[end.checked_sub(n)?..];
            let next = *positions.get(&hash(ending))? as usize;
            // Hashes may collide, and what was there may have been replaced.
            (tokens.get(next.checked_sub(n)?..next)? == ending && next < end).then_some(next)
        };
        let Some(next) = self.positions.iter().enumerate().rev().find_map(appearance) else { return };
        let start = proposed.len();
        for position in next..next + limit {
            let token = tokens.get(position).copied().unwrap_or_else(|| proposed[start + position - end]);
            proposed.push(token);
        }
    }

    /// Adds what is new up to the last token, or begins anew if the tokens have become fewer.
    fn update(&mut self, tokens: &[u32]) {
        if tokens.len() < self.indexed {
            self.positions.iter_mut().for_each(HashMap::clear);
            self.indexed = 0;
        }
        for (n, positions) in (self.shortest..).zip(&mut self.positions) {
            for next in self.indexed.max(n)..tokens.len() {
                positions.insert(hash(&tokens[next - n..next]), next as u32);
            }
        }
        self.indexed = tokens.len();
    }
}

/// FNV-1a over whole tokens, with a last mix so that all bits depend on all tokens.
fn hash(tokens: &[u32]) -> u64 {
    let sum = tokens
        .iter()
        .fold(0xCBF2_9CE4_8422_2325, |sum: u64, &token| (sum ^ u64::from(token)).wrapping_mul(0x0000_0100_0000_01B3));
    sum ^ (sum >> 29)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn proposed(max_ngram: usize, tokens: &[u32], limit: usize) -> Vec<u32> {
        let mut proposed = Vec::new();
        NgramIndex::new(max_ngram).propose(tokens, limit, &mut proposed);
        proposed
    }

    #[test]
    fn what_followed_the_longest_ending_last_is_proposed() {
        assert_eq!(proposed(4, &[1, 2, 3, 4, 9, 1, 2, 3], 2), [4, 9]);
        assert_eq!(proposed(4, &[1, 2, 3, 2, 4, 1, 2], 1), [3]);
        assert_eq!(proposed(4, &[1, 2, 3, 1, 2, 4, 1, 2], 1), [4], "the last appearance counts");
        assert_eq!(proposed(3, &[5, 1, 2, 3, 6, 1, 2, 4, 5, 1, 2], 1), [3], "a longer ending counts more");
    }

    #[test]
    fn a_draft_longer_than_what_followed_repeats_it() {
        assert_eq!(proposed(4, &[7, 8, 7, 8], 5), [7, 8, 7, 8, 7]);
        assert_eq!(proposed(1, &[7, 7], 3), [7, 7, 7]);
    }

    #[test]
    fn without_an_ending_that_appeared_before_nothing_is_proposed() {
        for tokens in [&[][..], &[1], &[1, 2, 3], &[1, 2, 1]] {
            assert!(proposed(4, tokens, 4).is_empty());
        }
    }

    /// By definition.
    fn oracle(max_ngram: usize, tokens: &[u32], limit: usize) -> Vec<u32> {
        for n in (2.min(max_ngram)..=max_ngram).rev().filter(|&n| n < tokens.len()) {
            let ending = &tokens[tokens.len() - n..];
            if let Some(start) = (0..tokens.len() - n).rev().find(|&start| &tokens[start..start + n] == ending) {
                let mut longer = tokens.to_vec();
                (0..limit).for_each(|i| longer.push(longer[start + n + i]));
                return longer.split_off(tokens.len());
            }
        }
        Vec::new()
    }

    proptest! {
        #[test]
        fn an_index_that_grew_or_went_back_proposes_as_by_definition(
            tokens in prop::collection::vec(0u32..3, 0..60),
            lengths in prop::collection::vec(0usize..60, 1..6),
            max_ngram in 1usize..6,
        ) {
            let mut index = NgramIndex::new(max_ngram);
            for length in lengths {
                let tokens = &tokens[..length.min(tokens.len())];
                let mut found = Vec::new();
                index.propose(tokens, 5, &mut found);
                prop_assert_eq!(found, oracle(max_ngram, tokens, 5));
            }
        }
    }
}
