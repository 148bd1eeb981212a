//! Keys and values that a [`SequenceCache`] holds: read as floats, and copied to another sequence.

use std::ops::Range;
use std::sync::Arc;

use super::sequence_cache::SequenceCache;
use crate::backend::KvStates;
use crate::error::{Error, ErrorCode, Result};
use crate::kv_cache::pages_for;
use crate::model::KvStorage;
use crate::prompt_embeds::SequenceEmbeds;

/// The beginning of a sequence, on its way to another one.
struct Prefix {
    tokens: Vec<u32>,
    embeds: SequenceEmbeds,
    pages: Vec<u32>,
    layers: usize,
    has_long_rope: bool,
}

impl SequenceCache {
    /// Layers that have keys and values here, in the order in which they run: those of the model, or more where a layer map has
    /// more.
    pub fn layers(&self) -> usize {
        self.sequences.iter().map(|sequence| sequence.layers).fold(self.shape.layers, usize::max)
    }

    /// Number of leading tokens of a sequence whose keys and values in a layer are here; 0 where there is no such sequence or
    /// layer.
    pub fn computed_tokens(&self, sequence: usize, layer: usize) -> usize {
        let sequence = self.sequences.get(sequence).filter(|sequence| layer < sequence.layers);
        sequence.map_or(0, |sequence| sequence.computed)
    }

    /// Copies of the keys and values of a layer at some positions of a sequence, as attention reads them.
    ///
    /// # Errors
    /// `request_invalid`: they are not computed; `memory_exhausted`; the device failed.
    pub fn read_states(&self, sequence: usize, layer: usize, positions: Range<usize>) -> Result<KvStates> {
        let computed = self.computed_tokens(sequence, layer);
        if positions.is_empty() || positions.end > computed {
            return Err(not_computed(computed, format!("positions {positions:?} of layer {layer}")));
        }
        let (group, layer) = (layer / self.shape.layers, layer % self.shape.layers);
        self.kv_groups[group].read(layer, &self.sequences[sequence].pages, positions)
    }

    /// Whether two sequences, which may be of different caches, begin with the same tokens and vectors.
    pub fn has_same_prefix(&self, sequence: usize, other: &Self, of: usize, tokens: usize) -> bool {
        let (Some(one), Some(other)) = (self.sequences.get(sequence), other.sequences.get(of)) else { return false };
        let known = |tokens_known: &[u32]| tokens <= tokens_known.len();
        known(&one.tokens)
            && known(&other.tokens)
            && one.tokens[..tokens] == other.tokens[..tokens]
            && one.embeds.hashes(0..tokens).eq(other.embeds.hashes(0..tokens))
    }

    /// Replaces sequence `to` by the first tokens of sequence `from`, with their keys and values. The two do not influence each
    /// other afterwards. A sequence copied to itself stays as it is.
    ///
    /// # Errors
    /// `request_invalid`: there is no such sequence, or the tokens are not computed; the device failed, which leaves `to` empty.
    pub fn copy_prefix(&mut self, from: usize, to: usize, tokens: usize) -> Result<()> {
        let prefix = self.prefix(from, tokens)?;
        if from == to { Ok(()) } else { self.receive(to, prefix, None) }
    }

    /// As [`SequenceCache::copy_prefix`], from a sequence of another cache of the same model and element type.
    ///
    /// ```
    /// use exlora::{KvDType, Model, ModelOptions, SequenceCache, SequenceChunk};
    ///
    /// let model = Model::load("tests/fixtures/quill-4m".as_ref(), &ModelOptions::default(), &mut |_| Ok(()))?;
    /// let mut prompt = SequenceCache::new(model.clone(), 1, 64, KvDType::F16)?;
    /// prompt.forward(&[SequenceChunk { sequence: 0, position: 0, tokens: &[17, 291, 5], logits: 0 }], &[])?;
    /// let mut answers = SequenceCache::new(model, 2, 64, KvDType::F16)?;
    /// answers.copy_prefix_from(&prompt, 0, 0, 3)?;
    /// answers.copy_prefix_from(&prompt, 0, 1, 3)?;
    /// # Ok::<(), exlora::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`SequenceCache::copy_prefix`]; `request_invalid`: the cache is of another model or element type, or its tokens do not
    /// fit; `memory_exhausted`.
    pub fn copy_prefix_from(&mut self, source: &Self, from: usize, to: usize, tokens: usize) -> Result<()> {
        let invalid = |what: &str| Error::new(ErrorCode::RequestInvalid, what);
        if !Arc::ptr_eq(&self.model, &source.model) {
            return Err(invalid("the caches belong to different models")
                .with_hint("make both caches of one loaded model; what other weights computed means nothing here"));
        }
        let [expected, found] = [self, source].map(|cache| cache.shape.dtype.name());
        if expected != found {
            return Err(invalid("the caches store keys and values in different types")
                .with_expected(expected)
                .with_found(found)
                .with_hint("make a cache of the same type; its contents are copied as they are"));
        }
        let prefix = source.prefix(from, tokens)?;
        self.receive(to, prefix, Some(&source.kv_groups))
    }

    /// The first tokens of a sequence.
    fn prefix(&self, sequence: usize, tokens: usize) -> Result<Prefix> {
        let found = self.sequences.get(sequence).ok_or_else(no_such_sequence)?;
        if tokens > found.computed {
            return Err(not_computed(found.computed, format!("{tokens} tokens")));
        }
        let mut embeds = found.embeds.clone();
        embeds.truncate(tokens);
        Ok(Prefix {
            tokens: found.tokens[..tokens].to_vec(),
            embeds,
            pages: found.pages[..pages_for(tokens)].to_vec(),
            layers: found.layers,
            has_long_rope: found.has_long_rope,
        })
    }

    /// Replaces a sequence by a prefix whose pages lie in storage of this cache, or of `source`.
    fn receive(&mut self, to: usize, prefix: Prefix, source: Option<&[KvStorage]>) -> Result<()> {
        let limit = self.max_tokens();
        let target = self.sequences.get(to).ok_or_else(no_such_sequence)?;
        let Some(pages) = target.pages.get(..prefix.pages.len()) else {
            return Err(Error::new(ErrorCode::RequestInvalid, "the tokens do not fit the cache")
                .with_expected(format!("at most {limit} tokens"))
                .with_found(format!("{} tokens", prefix.tokens.len()))
                .with_hint("make a cache for longer sequences"));
        };
        let pages = pages.to_vec();
        let groups = prefix.layers.div_ceil(self.shape.layers);
        self.reserve_kv_groups(groups)?;
        self.sequences[to].cut(0);
        for (group, own) in self.kv_groups.iter().take(groups).enumerate() {
            let from = source.map_or(own, |source| &source[group]);
            from.copy_pages(&prefix.pages, own, &pages)?;
        }
        let target = &mut self.sequences[to];
        target.computed = prefix.tokens.len();
        (target.tokens, target.embeds, target.layers) = (prefix.tokens, prefix.embeds, prefix.layers);
        target.has_long_rope = prefix.has_long_rope;
        Ok(())
    }
}

fn no_such_sequence() -> Error {
    Error::new(ErrorCode::RequestInvalid, "there is no such sequence in the cache")
}

fn not_computed(computed: usize, found: String) -> Error {
    Error::new(ErrorCode::RequestInvalid, "the keys and values are not computed")
        .with_expected(format!("some of the first {computed} positions"))
        .with_found(found)
}
