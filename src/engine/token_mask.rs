//! A set of token ids: those that may be chosen next.

/// Ids in a word of a mask.
const BITS: usize = u32::BITS as usize;

/// A set of token ids below a vocabulary size, one bit for each. Ids outside the vocabulary are forbidden.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenMask {
    /// Bit `id % 32` of word `id / 32` is 1 if the id is allowed. Bits beyond the vocabulary are 0.
    words: Vec<u32>,
    vocab: usize,
}

impl TokenMask {
    /// A mask that forbids all of `vocab` ids.
    pub fn none(vocab: usize) -> Self {
        Self { words: vec![0; vocab.div_ceil(BITS)], vocab }
    }

    /// A mask that allows all of `vocab` ids.
    pub fn all(vocab: usize) -> Self {
        let mut mask = Self { words: vec![u32::MAX; vocab.div_ceil(BITS)], vocab };
        mask.clear_beyond_vocab();
        mask
    }

    /// A mask of `vocab` ids from words of 32 ids each, the lowest id in the lowest bit. Missing words forbid their ids.
    pub fn from_words(words: &[u32], vocab: usize) -> Self {
        let mut mask = Self { words: words.to_vec(), vocab };
        mask.words.resize(vocab.div_ceil(BITS), 0);
        mask.clear_beyond_vocab();
        mask
    }

    fn clear_beyond_vocab(&mut self) {
        if let Some(last) = self.words.last_mut()
            && !self.vocab.is_multiple_of(BITS)
        {
            *last &= (1 << (self.vocab % BITS)) - 1;
        }
    }

    /// Number of ids that it decides about.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// Allows an id; one outside the vocabulary stays forbidden.
    pub fn allow(&mut self, id: u32) {
        if (id as usize) < self.vocab {
            self.words[id as usize / BITS] |= 1 << (id as usize % BITS);
        }
    }

    /// Forbids an id.
    pub fn forbid(&mut self, id: u32) {
        if let Some(word) = self.words.get_mut(id as usize / BITS) {
            *word &= !(1 << (id as usize % BITS));
        }
    }

    /// Whether an id is allowed.
    pub fn allows(&self, id: u32) -> bool {
        self.words.get(id as usize / BITS).is_some_and(|word| word >> (id as usize % BITS) & 1 == 1)
    }

    /// Keeps the ids that both masks allow.
    pub fn intersect(&mut self, other: &Self) {
        for (index, word) in self.words.iter_mut().enumerate() {
            *word &= other.words.get(index).copied().unwrap_or(0);
        }
    }

    /// The allowed ids, ascending.
    pub fn allowed(&self) -> impl Iterator<Item = u32> {
        self.words.iter().enumerate().flat_map(|(index, &word)| {
            let bits = (0..BITS).filter(move |bit| word >> bit & 1 == 1);
            bits.map(move |bit| (index * BITS + bit) as u32)
        })
    }

    /// Number of allowed ids.
    pub fn count(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Sets the logits [vocab] of forbidden ids to minus infinity.
    pub(super) fn apply(&self, logits: &mut [f32]) {
        let mut chunks = logits.chunks_mut(BITS);
        for (&word, chunk) in self.words.iter().zip(&mut chunks) {
            match word {
                u32::MAX => {}
                0 => chunk.fill(f32::NEG_INFINITY),
                _ => {
                    let forbidden = chunk.iter_mut().enumerate().filter(|(bit, _)| word >> bit & 1 == 0);
                    forbidden.for_each(|(_, logit)| *logit = f32::NEG_INFINITY);
                }
            }
        }
        chunks.for_each(|chunk| chunk.fill(f32::NEG_INFINITY));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ids_outside_the_vocabulary_are_forbidden() {
        let mut mask = TokenMask::all(33);
        assert_eq!((mask.count(), mask.allows(32), mask.allows(33), mask.allows(u32::MAX)), (33, true, false, false));
        mask.allow(33);
        mask.forbid(1000);
        assert_eq!(mask, TokenMask::all(33));
        assert_eq!(TokenMask::from_words(&[u32::MAX; 4], 33), mask);
        assert_eq!(TokenMask::from_words(&[], 33), TokenMask::none(33));
    }

    proptest! {
        #[test]
        fn it_is_a_set_of_ids(
            vocab in 1usize..200,
            first in prop::collection::btree_set(0u32..220, 0..80),
            second in prop::collection::btree_set(0u32..220, 0..80),
        ) {
            let mask_of = |ids: &std::collections::BTreeSet<u32>| {
                let mut mask = TokenMask::none(vocab);
                ids.iter().for_each(|&id| mask.allow(id));
                mask
            };
            let mut both = mask_of(&first);
            both.intersect(&mask_of(&second));
            let known = |id: &u32| (*id as usize) < vocab;
            let expected: Vec<u32> = first.intersection(&second).copied().filter(known).collect();
            prop_assert_eq!(both.allowed().collect::<Vec<_>>(), expected.clone());
            prop_assert_eq!(both.count(), expected.len());
            let mut logits = vec![1.0; vocab + 40];
            both.apply(&mut logits);
            for (id, logit) in (0..).zip(logits) {
                prop_assert_eq!(logit == 1.0, expected.contains(&id));
                prop_assert_eq!(both.allows(id), expected.contains(&id));
            }
            let mut without = TokenMask::all(vocab);
            first.iter().for_each(|&id| without.forbid(id));
            prop_assert_eq!(without.count(), vocab - first.iter().filter(|id| known(id)).count());
        }
    }
}
