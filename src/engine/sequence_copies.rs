//! Positions of a [`SequenceCache`]'s sequence copied to other positions or sequences.
//!
//! A token keeps its value, and its key is rotated on from its position to the new one (a *shift*), by the rotation that it was
//! computed with. Both still hold what the token saw when it was computed, whatever precedes it now: computing it again is exact, a
//! copy behind other tokens is not. Positions that stay the same are copied bit for bit.

use std::ops::Range;
use std::sync::Arc;

use super::sequence_cache::{CachedSequence, SequenceCache};
use super::sequence_states::{no_such_sequence, not_computed};
use crate::error::{Error, ErrorCode, Result};
use crate::kv_cache::pages_for;
use crate::model::KvStorage;
use crate::prompt_embeds::SequenceEmbeds;

/// Successive positions of a sequence, on their way to others.
struct Stretch {
    positions: Range<usize>,
    tokens: Vec<u32>,
    /// By position in the sequence, which may have more of them.
    embeds: SequenceEmbeds,
    layer_maps: Vec<Option<Arc<[u32]>>>,
    /// All pages of the sequence.
    pages: Vec<u32>,
    layers: usize,
    has_long_rope: bool,
}

impl SequenceCache {
    /// Replaces sequence `to` by the first tokens of sequence `from`, with their keys and values. The two do not influence each
    /// other afterwards. A sequence copied to itself stays as it is.
    ///
    /// # Errors
    /// `request_invalid`: there is no such sequence, or the tokens are not computed; the device failed, which leaves `to` empty.
    pub fn copy_prefix(&mut self, from: usize, to: usize, tokens: usize) -> Result<()> {
        self.copy_positions(from, 0..tokens, &[(to, 0)])
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
        self.copy_positions_from(source, from, 0..tokens, &[(to, 0)])
    }

    /// Copies positions of sequence `from` to other sequences, or to other positions of the same one, which may overlap: `to` has
    /// for each its index and the position of the first token. What precedes that there must have been computed and stays; what
    /// was behind is dropped. Positions that are copied to themselves leave the sequence as it is.
    ///
    /// Values keep their bits; keys are rotated on where the position changes, and rounded again as the cache stores them. All
    /// of them still hold what their tokens saw when they were computed.
    ///
    /// ```
    /// use exlora::{KvDType, Model, ModelOptions, SequenceCache, SequenceChunk};
    ///
    /// let model = Model::load("tests/fixtures/quill-4m".as_ref(), &ModelOptions::default(), &mut |_| Ok(()))?;
    /// let mut cache = SequenceCache::new(model, 1, 64, KvDType::F16)?;
    /// cache.forward(&[SequenceChunk { sequence: 0, position: 0, tokens: &[17, 291, 5, 9], logits: 0 }], &[])?;
    /// // Forgets the second token.
    /// cache.copy_positions(0, 2..4, &[(0, 1)])?;
    /// let logits = cache.forward(&[SequenceChunk { sequence: 0, position: 3, tokens: &[8], logits: 1 }], &[])?;
    /// assert_eq!(logits.tokens, 1);
    /// # Ok::<(), exlora::Error>(())
    /// ```
    ///
    /// # Errors
    /// `request_invalid`, and nothing is copied: there is no such sequence, or one appears twice; positions, or those that precede
    /// them in a target, are not computed; they do not fit; the target's tokens are rotated as those of sequences of another length
    /// (longrope). `memory_exhausted`; `kv_overflow`, or the device failed, which leaves in `to` what precedes the first position.
    pub fn copy_positions(&mut self, from: usize, positions: Range<usize>, to: &[(usize, usize)]) -> Result<()> {
        let stretch = self.stretch(from, positions)?;
        self.check_targets(&stretch, to)?;
        // The source itself is overwritten last.
        for &(sequence, position) in to.iter().filter(|(sequence, _)| *sequence != from) {
            self.receive(sequence, position, &stretch, None)?;
        }
        match to.iter().find(|(sequence, _)| *sequence == from) {
            Some(&(_, position)) if position != stretch.positions.start => self.receive(from, position, &stretch, None),
            _ => Ok(()),
        }
    }

    /// As [`SequenceCache::copy_positions`], from a sequence of another cache of the same model and element type.
    ///
    /// # Errors
    /// As [`SequenceCache::copy_positions`]; `request_invalid`: the cache is of another model or element type.
    pub fn copy_positions_from(
        &mut self,
        source: &Self,
        from: usize,
        positions: Range<usize>,
        to: &[(usize, usize)],
    ) -> Result<()> {
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
        let stretch = source.stretch(from, positions)?;
        self.check_targets(&stretch, to)?;
        to.iter()
            .try_for_each(|&(sequence, position)| self.receive(sequence, position, &stretch, Some(&source.kv_groups)))
    }

    fn stretch(&self, sequence: usize, positions: Range<usize>) -> Result<Stretch> {
        let found = self.sequences.get(sequence).ok_or_else(no_such_sequence)?;
        if positions.start > positions.end || positions.end > found.computed {
            return Err(not_computed(found.computed, format!("positions {positions:?}")));
        }
        Ok(Stretch {
            tokens: found.tokens[positions.clone()].to_vec(),
            embeds: found.embeds.clone(),
            layer_maps: found.layer_maps[positions.clone()].to_vec(),
            pages: found.pages.clone(),
            layers: found.layers,
            has_long_rope: found.has_long_rope,
            positions,
        })
    }

    /// Checks that each of the targets can receive a stretch at its position.
    fn check_targets(&self, stretch: &Stretch, to: &[(usize, usize)]) -> Result<()> {
        let invalid = |what: &str| Error::new(ErrorCode::RequestInvalid, what);
        let limit = self.max_tokens().min(self.model.max_seq_len());
        for (index, &(sequence, position)) in to.iter().enumerate() {
            let target = self.sequences.get(sequence).ok_or_else(no_such_sequence)?;
            if to[..index].iter().any(|(other, _)| *other == sequence) {
                return Err(invalid("a sequence appears twice among the targets"));
            }
            let end = position.saturating_add(stretch.tokens.len());
            if end > limit {
                return Err(invalid("the tokens do not fit the cache")
                    .with_expected(format!("at most {limit} tokens"))
                    .with_found(format!("{end} tokens"))
                    .with_hint("make a cache for longer sequences"));
            }
            if position > target.computed {
                return Err(invalid("the tokens before the copied ones are not computed in the target")
                    .with_expected(format!("a position up to {}", target.computed))
                    .with_found(position)
                    .with_hint("compute the tokens before it, or copy them too"));
            }
            if position > 0 && target.has_long_rope != stretch.has_long_rope {
                return Err(invalid(
                    "the target's tokens are rotated as those of sequences of another length (longrope)",
                )
                .with_hint("compute the tokens again behind those of the target"));
            }
        }
        Ok(())
    }

    /// Replaces what a sequence has from a position on by a stretch whose pages lie in storage of this cache, or of `source`.
    fn receive(&mut self, to: usize, position: usize, stretch: &Stretch, source: Option<&[KvStorage]>) -> Result<()> {
        let target = &self.sequences[to];
        let layers = if position == 0 { stretch.layers } else { stretch.layers.min(target.layers) };
        let pages = target.pages.clone();
        self.reserve_kv_groups(layers.div_ceil(self.shape.layers))?;
        self.sequences[to].cut(position);
        if stretch.tokens.is_empty() {
            return Ok(());
        }
        if (stretch.positions.start, position) == (0, 0) {
            self.copy_whole_pages(stretch, &pages, layers, source)?;
        } else {
            for layer in 0..layers {
                self.copy_layer(layer, stretch, (&pages, position), source)?;
            }
        }
        let target = &mut self.sequences[to];
        target.layers = layers;
        target.has_long_rope = stretch.has_long_rope;
        target.append(stretch);
        Ok(())
    }

    /// Copies the pages that have the first positions to those of another sequence.
    fn copy_whole_pages(
        &self,
        stretch: &Stretch,
        pages: &[u32],
        layers: usize,
        source: Option<&[KvStorage]>,
    ) -> Result<()> {
        let count = pages_for(stretch.tokens.len());
        for (group, own) in self.kv_groups.iter().take(layers.div_ceil(self.shape.layers)).enumerate() {
            let from = source.map_or(own, |source| &source[group]);
            from.copy_pages(&stretch.pages[..count], own, &pages[..count])?;
        }
        Ok(())
    }

    /// Copies the keys and values of a stretch in one of the layers that its tokens went through to positions of the sequence
    /// that has those pages.
    fn copy_layer(
        &self,
        layer: usize,
        stretch: &Stretch,
        (pages, position): (&[u32], usize),
        source: Option<&[KvStorage]>,
    ) -> Result<()> {
        let (group, within) = (layer / self.shape.layers, layer % self.shape.layers);
        let own = &self.kv_groups[group];
        let from = source.map_or(own, |source| &source[group]);
        let keys = match position == stretch.positions.start {
            true => None,
            false => self.shifted_keys(layer, stretch, position, from)?,
        };
        let fits = from.copy_positions(
            within,
            (&stretch.pages, stretch.positions.clone()),
            own,
            (pages, position..position + stretch.tokens.len()),
            keys.as_deref(),
        )?;
        match fits {
            true => Ok(()),
            false => Err(Error::new(ErrorCode::KvOverflow, "a key is too large for the KV cache at its new position")
                .with_hint("compute the tokens again, or use a cache of kv_dtype \"f32\"")),
        }
    }

    /// The keys of a stretch in a layer, rotated on to positions from `position` on; `None` where no token is rotated.
    fn shifted_keys(
        &self,
        layer: usize,
        stretch: &Stretch,
        position: usize,
        storage: &KvStorage,
    ) -> Result<Option<Vec<f32>>> {
        let config = self.model.config();
        let rope_of = |layer_map: &Option<Arc<[u32]>>| {
            let base = layer_map.as_ref().map_or(layer, |layer_map| layer_map[layer] as usize);
            config.rope(base, stretch.has_long_rope)
        };
        if stretch.layer_maps.iter().all(|layer_map| rope_of(layer_map).is_none()) {
            return Ok(None);
        }
        let within = layer % self.shape.layers;
        let mut keys = storage.read(within, &stretch.pages, stretch.positions.clone())?.keys;
        let width = self.shape.kv_heads * self.shape.head_dim;
        for (index, (heads, layer_map)) in keys.chunks_exact_mut(width).zip(&stretch.layer_maps).enumerate() {
            if let Some(rope) = rope_of(layer_map) {
                rope.shift(stretch.positions.start + index, position + index, self.shape.head_dim, heads);
            }
        }
        Ok(Some(keys))
    }
}

impl CachedSequence {
    /// Appends a stretch whose keys and values were copied behind all that is known.
    fn append(&mut self, stretch: &Stretch) {
        self.embeds.append(self.tokens.len(), &stretch.embeds, stretch.positions.clone());
        self.tokens.extend_from_slice(&stretch.tokens);
        self.layer_maps.extend_from_slice(&stretch.layer_maps);
        (self.computed, self.set_end) = (self.tokens.len(), 0);
    }
}
