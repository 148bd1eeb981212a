//! Prompts that contain vectors in place of token ids: *prompt embeds*, which transformers calls `inputs_embeds`.
//!
//! A vector takes the place of what the embedding table has for a token, before the first layer. No adapter changes it, as
//! with PEFT, whose embedding layers act on ids. In the tokens of a sequence such positions have the id [`EMBEDS_TOKEN`].

use std::ops::Range;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::error::{Error, ErrorCode, Result};

/// The id that stands in a sequence's tokens for a vector. No vocabulary has it, so nothing mistakes it for a token.
pub const EMBEDS_TOKEN: u32 = u32::MAX;

/// Consecutive vectors of a prompt, `[tokens, hidden_size]`. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PromptEmbeds {
    hidden_size: usize,
    values: Arc<[f32]>,
    /// Of each vector, a SHA-256 of its bits: what identifies it in the prefix cache.
    hashes: Arc<[[u8; 32]]>,
}

impl PromptEmbeds {
    /// Vectors of `hidden_size` values each, one after another.
    ///
    /// # Errors
    /// `prompt_embeds_invalid`: there are none, the last one is not complete, or a value is not finite.
    pub fn new(values: Vec<f32>, hidden_size: usize) -> Result<Self> {
        if values.is_empty() || hidden_size == 0 || !values.len().is_multiple_of(hidden_size) {
            return Err(Error::new(ErrorCode::PromptEmbedsInvalid, "prompt embeds are no whole vectors")
                .with_expected(format!("a multiple of {hidden_size} values, at least one vector"))
                .with_found(format!("{} values", values.len())));
        }
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            let (token, channel) = (index / hidden_size, index % hidden_size);
            return Err(Error::new(ErrorCode::PromptEmbedsInvalid, "prompt embeds have a value that is not finite")
                .with_expected("finite values")
                .with_found(format!("{} in channel {channel} of vector {token}", values[index])));
        }
        let hash = |vector: &[f32]| -> [u8; 32] {
            let mut hasher = Sha256::new();
            vector.iter().for_each(|value| hasher.update(value.to_bits().to_le_bytes()));
            hasher.finalize().into()
        };
        let hashes = values.chunks_exact(hidden_size).map(hash).collect();
        Ok(Self { hidden_size, values: values.into(), hashes })
    }

    /// Number of vectors, each of which takes the place of a token.
    pub fn tokens(&self) -> usize {
        self.hashes.len()
    }

    /// Values of a vector.
    pub fn hidden_size(&self) -> usize {
        self.hidden_size
    }

    /// All vectors, `[tokens, hidden_size]`.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Some of the vectors.
    fn part(&self, tokens: Range<usize>) -> Self {
        let width = self.hidden_size;
        Self {
            hidden_size: width,
            values: self.values[tokens.start * width..tokens.end * width].into(),
            hashes: self.hashes[tokens].into(),
        }
    }

    /// That a model with vectors of `hidden_size` values can take them.
    ///
    /// # Errors
    /// `prompt_embeds_invalid`.
    pub fn check_width(&self, hidden_size: usize) -> Result<()> {
        if self.hidden_size == hidden_size {
            return Ok(());
        }
        Err(Error::new(ErrorCode::PromptEmbedsInvalid, "prompt embeds have another width than the model")
            .with_expected(format!("[{}, {hidden_size}], the model's hidden_size", self.tokens()))
            .with_found(format!("[{}, {}]", self.tokens(), self.hidden_size)))
    }
}

impl PartialEq for PromptEmbeds {
    /// They are equal if their bits are.
    fn eq(&self, other: &Self) -> bool {
        (self.hidden_size, &self.hashes) == (other.hidden_size, &other.hashes)
    }
}

/// Those of a sequence without any.
pub static NO_EMBEDS: SequenceEmbeds = SequenceEmbeds { spans: Vec::new() };

/// Where in a sequence vectors take the place of tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SequenceEmbeds {
    /// Each with the position of its first vector, ascending and disjoint.
    spans: Vec<(usize, PromptEmbeds)>,
}

impl SequenceEmbeds {
    /// Appends vectors whose first one is at `position`, behind all there are.
    pub fn push(&mut self, position: usize, embeds: PromptEmbeds) {
        debug_assert!(self.end() <= position, "spans are ascending and disjoint");
        self.spans.push((position, embeds));
    }

    /// Appends the vectors that another sequence has at some positions, the first of which becomes `position`.
    pub fn append(&mut self, position: usize, source: &Self, positions: Range<usize>) {
        let start = positions.start;
        for (first, embeds, tokens) in source.overlaps(positions) {
            self.push(position + first + tokens.start - start, embeds.part(tokens));
        }
    }

    /// The position after the last vector; 0 if there is none.
    pub fn end(&self) -> usize {
        self.spans.last().map_or(0, |(first, embeds)| first + embeds.tokens())
    }

    /// Whether there is a vector at a position.
    pub fn has(&self, position: usize) -> bool {
        let after = self.spans.partition_point(|(first, _)| *first <= position);
        self.spans[..after].last().is_some_and(|(first, embeds)| position < first + embeds.tokens())
    }

    /// Forgets the vectors at `position` and beyond.
    pub fn truncate(&mut self, position: usize) {
        self.spans.retain(|(first, _)| *first < position);
        if let Some((first, embeds)) = self.spans.last_mut()
            && *first + embeds.tokens() > position
        {
            *embeds = embeds.part(0..position - *first);
        }
    }

    /// The vectors at some positions: for each stretch the position of the first, and their values `[tokens, hidden_size]`.
    pub fn over(&self, positions: Range<usize>) -> impl Iterator<Item = (usize, &[f32])> {
        self.overlaps(positions).map(|(first, embeds, tokens)| {
            let width = embeds.hidden_size;
            (first + tokens.start, &embeds.values[tokens.start * width..tokens.end * width])
        })
    }

    /// What identifies the vectors at some positions: for each its place among the positions, and its hash.
    pub fn hashes(&self, positions: Range<usize>) -> impl Iterator<Item = (usize, &[u8; 32])> {
        let start = positions.start;
        self.overlaps(positions).flat_map(move |(first, embeds, tokens)| {
            let of_token = move |token: usize| (first + token - start, &embeds.hashes[token]);
            tokens.map(of_token)
        })
    }

    /// The spans that have vectors at some positions, and which of theirs these are.
    fn overlaps(&self, positions: Range<usize>) -> impl Iterator<Item = (usize, &PromptEmbeds, Range<usize>)> {
        self.spans.iter().filter_map(move |(first, embeds)| {
            let tokens = positions.start.max(*first)..positions.end.min(first + embeds.tokens());
            (tokens.start < tokens.end).then(|| (*first, embeds, tokens.start - first..tokens.end - first))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn embeds(values: &[f32]) -> PromptEmbeds {
        PromptEmbeds::new(values.to_vec(), 2).expect("whole vectors")
    }

    /// Two vectors at 3 and 4, one at 7.
    fn sequence() -> SequenceEmbeds {
        let mut sequence = SequenceEmbeds::default();
        sequence.push(3, embeds(&[1.0, 2.0, 3.0, 4.0]));
        sequence.push(7, embeds(&[5.0, 6.0]));
        sequence
    }

    #[test]
    fn vectors_are_found_by_position() {
        let sequence = sequence();
        let over = |positions| sequence.over(positions).collect::<Vec<_>>();
        assert_eq!(over(0..10), [(3, &[1.0, 2.0, 3.0, 4.0][..]), (7, &[5.0, 6.0])]);
        assert_eq!(over(4..7), [(4, &[3.0, 4.0][..])]);
        assert!(over(5..7).is_empty() && over(8..20).is_empty());
        assert_eq!(sequence.end(), 8);
        assert_eq!((0..10).filter(|&position| sequence.has(position)).collect::<Vec<_>>(), [3, 4, 7]);
    }

    #[test]
    fn equal_vectors_have_equal_hashes_at_their_own_places() {
        let (one, mut other) = (sequence(), SequenceEmbeds::default());
        other.push(3, embeds(&[1.0, 2.0, 3.5, 4.0]));
        let hashes = |of: &SequenceEmbeds| of.hashes(2..8).map(|(place, hash)| (place, *hash)).collect::<Vec<_>>();
        let (one, other) = (hashes(&one), hashes(&other));
        assert_eq!(one.iter().map(|(place, _)| *place).collect::<Vec<_>>(), [1, 2, 5]);
        assert_eq!(one[0], other[0]);
        assert_ne!(one[1].1, other[1].1);
        // Zeros of different sign are different inputs.
        assert_ne!(embeds(&[0.0, 0.0]), embeds(&[-0.0, 0.0]));
    }

    #[test]
    fn vectors_of_another_sequence_are_appended_at_their_new_positions() {
        let mut other = SequenceEmbeds::default();
        other.push(0, embeds(&[9.0, 9.0]));
        other.append(5, &sequence(), 4..8);
        assert_eq!(other.over(0..20).collect::<Vec<_>>(), [(0, &[9.0, 9.0][..]), (5, &[3.0, 4.0]), (8, &[5.0, 6.0])]);
        assert_eq!(
            other.hashes(8..9).next().map(|(_, hash)| *hash),
            sequence().hashes(7..8).next().map(|(_, hash)| *hash)
        );
    }

    #[test]
    fn truncating_keeps_what_is_before() {
        for (position, end) in [(8, 8), (7, 5), (4, 4), (3, 0), (0, 0)] {
            let mut cut = sequence();
            cut.truncate(position);
            assert_eq!(cut.end(), end);
            assert!(cut.over(0..10).eq(sequence().over(0..position)));
        }
    }

    #[test]
    fn what_is_no_vector_of_numbers_is_refused() {
        for (values, expected) in [
            (vec![], "whole"),
            (vec![1.0], "whole"),
            (vec![1.0, f32::NAN], "not finite"),
            (vec![f32::INFINITY, 0.0], "not finite"),
        ] {
            let error = PromptEmbeds::new(values, 2).expect_err("refused");
            assert_eq!(error.code(), ErrorCode::PromptEmbedsInvalid);
            assert!(error.to_string().contains(expected), "{error}");
        }
        assert!(embeds(&[1.0, 2.0]).check_width(2).is_ok());
        assert_eq!(
            embeds(&[1.0, 2.0]).check_width(3).expect_err("another width").code(),
            ErrorCode::PromptEmbedsInvalid
        );
    }
}
