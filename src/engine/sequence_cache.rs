//! A KV cache that the caller drives position by position, without a scheduler.
//!
//! Each sequence owns its pages permanently, sequence `i` the pages `i * n .. (i + 1) * n`: nothing is shared. So a caller may
//! return to any earlier position and continue from there. The tokens are kept too, because an aLoRA adapter acts from the
//! last place where its invocation appears in them.
//!
//! A model may rotate all positions of a sequence otherwise once it has passed a length (longrope). Under which adapters its tokens
//! were computed is the caller's business, so a sequence that crosses that length has to be computed again by the caller.
//!
//! However many tokens are computed at once, a step has no more of them than the scheduler's steps have prompt tokens, and
//! the result is the same bit by bit.

use std::sync::Arc;

use super::encoded_prompt::EncodedPrompt;
use super::options::DEFAULT_PREFILL_CHUNK;
use super::output::{Logits, no_memory_for_logits};
use super::request::{AdapterRef, PromptPart, lease_all};
use crate::adapter::mixture::Mixture;
use crate::backend::{KvDType, KvShape};
use crate::error::{Error, ErrorCode, Result};
use crate::kv_cache::{PAGE_TOKENS, pages_for};
use crate::model::batch::{SequenceRows, StepBatch};
use crate::model::{KvStorage, Model};
use crate::prompt_embeds::{EMBEDS_TOKEN, SequenceEmbeds};

/// Consecutive tokens of one sequence to compute.
#[derive(Clone, Copy, Debug)]
pub struct SequenceChunk<'a> {
    /// Index of the sequence in the cache.
    pub sequence: usize,
    /// Position of the first token; everything before it must have been computed.
    pub position: usize,
    /// The tokens; what [`SequenceCache::set_parts`] made of them where some are vectors.
    pub tokens: &'a [u32],
    /// Number of tokens, counted from the last one, whose logits are returned.
    pub logits: usize,
}

/// Keys and values of a fixed number of sequences of a model.
///
/// ```
/// use exlora::{KvDType, Model, ModelOptions, SequenceCache, SequenceChunk};
///
/// let model = Model::load("tests/fixtures/quill-4m".as_ref(), &ModelOptions::default(), &mut |_| Ok(()))?;
/// let mut cache = SequenceCache::new(model, 1, 64, KvDType::F16)?;
/// let prompt = SequenceChunk { sequence: 0, position: 0, tokens: &[17, 291, 5], logits: 1 };
/// let logits = cache.forward(&[prompt], &[])?;
/// assert_eq!((logits.tokens, logits.values.len()), (1, logits.vocab));
/// # Ok::<(), exlora::Error>(())
/// ```
pub struct SequenceCache {
    pub(super) model: Arc<Model>,
    pub(super) shape: KvShape,
    pages_per_sequence: usize,
    pub(super) sequences: Vec<CachedSequence>,
    /// Storage of each KV group; more are added for the first adapter whose layer map needs them.
    pub(super) kv_groups: Vec<KvStorage>,
    /// Largest number of tokens in one step, in rows of the base.
    prefill_chunk: usize,
    batch: StepBatch,
    /// Logits of one step.
    logits: Vec<f32>,
}

/// One sequence of a cache.
#[derive(Default)]
pub(super) struct CachedSequence {
    pub(super) pages: Vec<u32>,
    /// Tokens by position, including those that were set but not computed.
    pub(super) tokens: Vec<u32>,
    /// The vectors in place of some of them.
    pub(super) embeds: SequenceEmbeds,
    /// Where the tokens end that were set before they are computed; 0 once all of them are.
    pub(super) set_end: usize,
    /// Number of leading tokens whose keys and values are in the cache.
    pub(super) computed: usize,
    /// Of each of them the base layers that it went through, where an adapter decides that.
    pub(super) layer_maps: Vec<Option<Arc<[u32]>>>,
    /// Number of layers, in the order in which they ran, that all of them went through.
    pub(super) layers: usize,
    /// Whether those are rotated as tokens of a long sequence.
    pub(super) has_long_rope: bool,
}

impl SequenceCache {
    /// A cache for `sequences` sequences of at most `max_tokens` tokens each.
    ///
    /// # Errors
    /// `memory_exhausted`.
    pub fn new(model: Arc<Model>, sequences: usize, max_tokens: usize, dtype: KvDType) -> Result<Self> {
        let pages_per_sequence = pages_for(max_tokens).max(1);
        let pages = pages_per_sequence
            .checked_mul(sequences)
            .filter(|&pages| u32::try_from(pages).is_ok())
            .ok_or_else(|| Error::new(ErrorCode::MemoryExhausted, "the KV cache is too large"))?;
        let storage = model.create_kv(pages, dtype)?;
        let exhausted = |_| Error::new(ErrorCode::MemoryExhausted, format!("cannot keep track of {pages} KV pages"));
        let mut cached = Vec::new();
        cached.try_reserve_exact(sequences).map_err(exhausted)?;
        for index in 0..sequences {
            let mut sequence = CachedSequence::default();
            sequence.pages.try_reserve_exact(pages_per_sequence).map_err(exhausted)?;
            sequence
                .pages
                .extend((index * pages_per_sequence..(index + 1) * pages_per_sequence).map(|page| page as u32));
            cached.push(sequence);
        }
        Ok(Self {
            shape: *storage.shape(),
            model,
            pages_per_sequence,
            sequences: cached,
            kv_groups: vec![storage],
            prefill_chunk: DEFAULT_PREFILL_CHUNK,
            batch: StepBatch::default(),
            logits: Vec::new(),
        })
    }

    /// Computes at most this many tokens in one step, as [`EngineOptions::prefill_chunk`](crate::EngineOptions) counts them;
    /// by default [`DEFAULT_PREFILL_CHUNK`]. The results are the same.
    #[must_use]
    pub fn with_prefill_chunk(mut self, tokens: usize) -> Self {
        self.prefill_chunk = tokens.max(1);
        self
    }

    /// Sets the tokens of a sequence from a position on, before they are computed in several steps, so that an invocation is
    /// found in all of them.
    ///
    /// # Errors
    /// `request_invalid`: there is no such sequence, or tokens before `position` are missing.
    pub fn set_tokens(&mut self, sequence: usize, position: usize, tokens: &[u32]) -> Result<()> {
        let known = self.known_up_to(sequence, position)?;
        known.cut(position);
        known.tokens.extend_from_slice(tokens);
        known.set_end = known.tokens.len();
        Ok(())
    }

    /// As [`SequenceCache::set_tokens`], with vectors in place of some tokens. Returns the tokens to compute, in which an id
    /// beyond any vocabulary stands for each vector.
    ///
    /// # Errors
    /// As [`SequenceCache::set_tokens`]; `prompt_embeds_invalid`: the model's vectors have another width.
    pub fn set_parts(&mut self, sequence: usize, position: usize, parts: &[PromptPart]) -> Result<Vec<u32>> {
        let hidden_size = self.model.config().hidden_size;
        self.known_up_to(sequence, position)?;
        let encoded = EncodedPrompt::of_parts(parts, hidden_size)?;
        self.set_tokens(sequence, position, &encoded.tokens)?;
        let known = &mut self.sequences[sequence];
        let mut first = position;
        for part in parts {
            match part {
                PromptPart::Tokens(ids) => first += ids.len(),
                PromptPart::Embeds(vectors) => {
                    known.embeds.push(first, vectors.clone());
                    first += vectors.tokens();
                }
            }
        }
        Ok(encoded.tokens)
    }

    /// A sequence whose tokens before `position` are known.
    fn known_up_to(&mut self, sequence: usize, position: usize) -> Result<&mut CachedSequence> {
        let known = self.sequences.get_mut(sequence).filter(|known| known.tokens.len() >= position);
        known.ok_or_else(|| Error::new(ErrorCode::RequestInvalid, "tokens before the position are missing"))
    }

    /// Computes chunks of several sequences, in as many steps as they need, and returns the logits asked for, in the order of
    /// the chunks. All rows have the same mixture of adapters.
    ///
    /// # Errors
    /// `adapter_*` as for [`Engine::submit`](crate::Engine::submit); `prompt_empty`, `prompt_too_long`, `request_invalid`,
    /// `token_out_of_range`; `kv_overflow`; `memory_exhausted`; the device failed.
    pub fn forward(&mut self, chunks: &[SequenceChunk<'_>], adapters: &[(AdapterRef, f32)]) -> Result<Logits> {
        self.forward_with(chunks, adapters, &mut || Ok(()))
    }

    /// As [`SequenceCache::forward`]; an error from `between_steps` (Ctrl-C) ends it.
    ///
    /// # Errors
    /// As [`SequenceCache::forward`], and what `between_steps` returned.
    pub fn forward_with(
        &mut self,
        chunks: &[SequenceChunk<'_>],
        adapters: &[(AdapterRef, f32)],
        between_steps: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Logits> {
        self.compute(chunks, adapters, None, between_steps)
    }

    /// As [`SequenceCache::forward_with`], with the residual stream behind the last layer, which the final norm has not yet been
    /// applied to: of all tokens of the chunks, `[tokens, hidden_size]`.
    ///
    /// # Errors
    /// As [`SequenceCache::forward_with`].
    pub fn forward_with_last_states(
        &mut self,
        chunks: &[SequenceChunk<'_>],
        adapters: &[(AdapterRef, f32)],
        between_steps: &mut dyn FnMut() -> Result<()>,
    ) -> Result<(Logits, Vec<f32>)> {
        let mut states = Vec::new();
        let logits = self.compute(chunks, adapters, Some(&mut states), between_steps)?;
        Ok((logits, states))
    }

    fn compute(
        &mut self,
        chunks: &[SequenceChunk<'_>],
        adapters: &[(AdapterRef, f32)],
        mut last_states: Option<&mut Vec<f32>>,
        between_steps: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Logits> {
        self.check(chunks)?;
        // The mixture holds its leases until the last step is over.
        let mixture = lease_all(adapters, &self.model)?;
        let vocab = self.model.config().vocab_size;
        for chunk in chunks {
            mixture.check_tokens(self.sequences[chunk.sequence].ids_among(chunk.position, chunk.tokens), vocab)?;
        }
        self.check_layers(chunks, self.layers_under(&mixture))?;
        self.check_ropes(chunks)?;
        self.reserve_kv_groups(self.model.kv_groups_of(mixture.layers()))?;
        let (tokens, vocab) = (chunks.iter().map(|chunk| chunk.logits).sum::<usize>(), mixture.head_rows(vocab));
        let mut values = Vec::new();
        values.try_reserve_exact(tokens.saturating_mul(vocab)).map_err(|_| no_memory_for_logits())?;
        // All of them first, so that an invocation is found wherever a step begins.
        for chunk in chunks {
            let sequence = &mut self.sequences[chunk.sequence];
            sequence.write(chunk.position, chunk.tokens);
            let is_long = self.model.config().has_long_rope(sequence.len_with(chunk.position, chunk.tokens));
            // From its beginning, it may become what it was not; otherwise it was checked.
            if sequence.has_long_rope != is_long && chunk.position == 0 {
                (sequence.computed, sequence.has_long_rope) = (0, is_long);
            }
        }
        for step in split_into_steps(chunks, self.prefill_chunk / self.model.row_cost(&mixture)) {
            between_steps()?;
            let passes = step.chunk_by(|a, b| self.has_long_rope(a) == self.has_long_rope(b));
            let passes: Vec<_> = passes.filter(|pass| pass.iter().any(|chunk| !chunk.tokens.is_empty())).collect();
            for pass in passes {
                self.step(pass, &mixture, vocab, last_states.is_some())?;
                values.extend_from_slice(&self.logits);
                if let Some(states) = last_states.as_deref_mut() {
                    states.extend_from_slice(&self.batch.last_states);
                }
            }
        }
        Ok(Logits { tokens, values, vocab })
    }

    /// Computes chunks, all of which are rotated alike, in one step.
    fn step(
        &mut self,
        chunks: &[SequenceChunk<'_>],
        mixture: &Mixture,
        vocab: usize,
        wants_last_states: bool,
    ) -> Result<()> {
        // One table of pages serves all KV groups, each of which has storage of its own.
        self.batch.begin(mixture.layers(), 1, vocab);
        self.batch.wants_last_states = wants_last_states;
        self.batch.has_long_rope = chunks.first().is_some_and(|chunk| self.has_long_rope(chunk));
        for &SequenceChunk { sequence, tokens, position, logits } in chunks {
            let sequence = &self.sequences[sequence];
            let spans = mixture.along(&sequence.tokens);
            let CachedSequence { embeds, pages, .. } = sequence;
            let rows = SequenceRows { tokens, embeds, position, pages, logits };
            self.batch.push_sequence(rows, spans.over(position..position + tokens.len()));
        }
        self.batch.finish();
        // Should the step fail, it may have overwritten some of what follows.
        for chunk in chunks {
            let sequence = &mut self.sequences[chunk.sequence];
            sequence.computed = sequence.computed.min(chunk.position);
        }
        let storages: Vec<&KvStorage> = self.kv_groups.iter().collect();
        self.model.forward(&mut self.batch, &storages, &mut self.logits)?;
        let mut end = 0;
        for chunk in chunks {
            let rows = end..end + chunk.tokens.len();
            end = rows.end;
            let of_sequence = |error: Error| error.with_subject(format!("sequence {}", chunk.sequence));
            self.batch.check_overflows(rows).map_err(of_sequence)?;
        }
        let layers = self.layers_under(mixture);
        for chunk in chunks {
            let sequence = &mut self.sequences[chunk.sequence];
            sequence.layers = if chunk.position == 0 { layers } else { sequence.layers.min(layers) };
            sequence.computed = chunk.position + chunk.tokens.len();
            sequence.layer_maps.truncate(chunk.position);
            sequence.layer_maps.resize(sequence.computed, mixture.layers().cloned());
            sequence.set_end = if sequence.computed < sequence.set_end { sequence.set_end } else { 0 };
        }
        Ok(())
    }

    /// Storage for at least that many KV groups.
    pub(super) fn reserve_kv_groups(&mut self, groups: usize) -> Result<()> {
        while self.kv_groups.len() < groups {
            self.kv_groups.push(self.model.create_kv(self.shape.pages, self.shape.dtype)?);
        }
        Ok(())
    }

    /// Largest number of tokens of a sequence.
    pub fn max_tokens(&self) -> usize {
        self.pages_per_sequence * PAGE_TOKENS
    }

    /// Bytes of all keys and values.
    pub fn bytes(&self) -> usize {
        self.shape.bytes().unwrap_or(0) * self.kv_groups.len()
    }

    /// Layers that a token goes through under a mixture.
    fn layers_under(&self, mixture: &Mixture) -> usize {
        mixture.layers().map_or(self.shape.layers, |layers| layers.len())
    }

    /// Checks that what precedes the chunks has keys and values in each of that many layers.
    fn check_layers(&self, chunks: &[SequenceChunk<'_>], layers: usize) -> Result<()> {
        let continued = chunks.iter().filter(|chunk| chunk.position > 0);
        match continued.map(|chunk| self.sequences[chunk.sequence].layers).min() {
            Some(computed) if computed < layers => {
                Err(Error::new(ErrorCode::RequestInvalid, "tokens before the position went through fewer layers")
                    .with_expected(format!("{layers} layers, those of the adapters' layer map"))
                    .with_found(format!("{computed} layers"))
                    .with_hint("compute the sequence with the adapters from its beginning"))
            }
            _ => Ok(()),
        }
    }

    /// Whether a chunk is rotated as part of a long sequence.
    fn has_long_rope(&self, chunk: &SequenceChunk<'_>) -> bool {
        self.sequences[chunk.sequence].has_long_rope
    }

    /// Checks that what precedes the chunks is rotated as they are.
    fn check_ropes(&self, chunks: &[SequenceChunk<'_>]) -> Result<()> {
        let config = self.model.config();
        for chunk in chunks.iter().filter(|chunk| chunk.position > 0) {
            let sequence = &self.sequences[chunk.sequence];
            let tokens = sequence.len_with(chunk.position, chunk.tokens);
            if config.has_long_rope(tokens) != sequence.has_long_rope {
                let original = config.long_ropes.as_ref().map_or(0, |long| long.original_positions);
                let what =
                    "all positions of longer sequences are rotated otherwise (longrope), also those computed before";
                return Err(Error::new(ErrorCode::RequestInvalid, what)
                    .with_expected(format!("a sequence that stays on its side of {original} tokens"))
                    .with_found(format!("{tokens} tokens"))
                    .with_hint("compute the sequence from its beginning"));
            }
        }
        Ok(())
    }

    /// Checks everything that the backend relies on.
    fn check(&self, chunks: &[SequenceChunk<'_>]) -> Result<()> {
        let invalid = |what: &str| Err(Error::new(ErrorCode::RequestInvalid, what));
        if chunks.iter().all(|chunk| chunk.tokens.is_empty()) {
            return Err(Error::new(ErrorCode::PromptEmpty, "there are no tokens to compute"));
        }
        let limit = self.model.max_seq_len().min(self.max_tokens());
        for (index, chunk) in chunks.iter().enumerate() {
            let end = chunk.position.saturating_add(chunk.tokens.len());
            if end > limit {
                let (what, hint) = match self.max_tokens() == limit {
                    true => ("the tokens do not fit the cache", "make a cache for longer sequences"),
                    false => (
                        "the sequence is longer than the model's max_seq_len",
                        "load the model with a larger max_seq_len",
                    ),
                };
                return Err(Error::new(ErrorCode::PromptTooLong, what)
                    .with_expected(format!("at most {limit} tokens"))
                    .with_found(format!("{end} tokens"))
                    .with_hint(hint));
            }
            match self.sequences.get(chunk.sequence) {
                None => return invalid("there is no such sequence in the cache"),
                Some(sequence) if sequence.computed < chunk.position => {
                    return invalid("tokens before the position were not computed");
                }
                Some(_) => {}
            }
            if chunk.logits > chunk.tokens.len() {
                return invalid("more logits than tokens");
            }
            if chunks[..index].iter().any(|other| other.sequence == chunk.sequence) {
                return invalid("a sequence appears twice in one step");
            }
        }
        Ok(())
    }
}

impl CachedSequence {
    /// Records tokens at a position. What followed other tokens there is dropped.
    fn write(&mut self, position: usize, tokens: &[u32]) {
        if !self.has(position, tokens) {
            self.cut(position);
            self.tokens.extend_from_slice(tokens);
        }
    }

    /// Whether it has these tokens at a position.
    fn has(&self, position: usize, tokens: &[u32]) -> bool {
        self.tokens.get(position..position + tokens.len()) == Some(tokens)
    }

    /// Where a sequence ends that these tokens are part of: with them, or with what was set to follow them.
    fn len_with(&self, position: usize, tokens: &[u32]) -> usize {
        let end = position + tokens.len();
        if self.has(position, tokens) { end.max(self.set_end) } else { end }
    }

    /// Forgets the tokens at a position and beyond.
    pub(super) fn cut(&mut self, position: usize) {
        self.tokens.truncate(position);
        self.embeds.truncate(position);
        self.layer_maps.truncate(position);
        self.computed = self.computed.min(position);
        self.set_end = self.set_end.min(position);
    }

    /// The ids of tokens at a position that are no vectors. Where a vector is known, its tokens stay as they are.
    fn ids_among<'a>(&self, position: usize, tokens: &'a [u32]) -> impl Iterator<Item = &'a u32> {
        let keeps = self.has(position, tokens);
        let is_id =
            move |(place, id): &(usize, &u32)| **id != EMBEDS_TOKEN || !(keeps && self.embeds.has(position + place));
        tokens.iter().enumerate().filter(is_id).map(|(_, id)| id)
    }
}

/// Splits chunks, in their order, into steps of at most `rows` tokens, or of one.
fn split_into_steps<'a>(chunks: &[SequenceChunk<'a>], rows: usize) -> Vec<Vec<SequenceChunk<'a>>> {
    let rows = rows.max(1);
    let (mut steps, mut step, mut room) = (Vec::new(), Vec::new(), rows);
    for &(mut chunk) in chunks {
        while chunk.tokens.len() > room {
            let (tokens, rest) = chunk.tokens.split_at(room);
            if !tokens.is_empty() {
                step.push(SequenceChunk { tokens, logits: chunk.logits.saturating_sub(rest.len()), ..chunk });
            }
            chunk = SequenceChunk {
                position: chunk.position + tokens.len(),
                tokens: rest,
                logits: chunk.logits.min(rest.len()),
                ..chunk
            };
            steps.push(std::mem::take(&mut step));
            room = rows;
        }
        room -= chunk.tokens.len();
        step.push(chunk);
    }
    steps.push(step);
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::faulty_compute::{FAIL, FaultyCompute};
    use crate::{Engine, EngineOptions};

    fn engine() -> Engine {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/quill-4m");
        Engine::load(folder, EngineOptions::default()).expect("the bundled model loads")
    }

    #[test]
    fn a_step_has_no_more_tokens_than_asked_for() {
        let tokens: Vec<u32> = (0..12).collect();
        let chunk =
            |sequence, position, len, logits| SequenceChunk { sequence, position, tokens: &tokens[..len], logits };
        let chunks = [chunk(0, 0, 7, 5), chunk(1, 3, 0, 0), chunk(2, 9, 2, 1), chunk(3, 0, 12, 1)];
        let shape = |rows| -> Vec<Vec<_>> {
            let of = |chunk: &SequenceChunk<'_>| (chunk.sequence, chunk.position, chunk.tokens.to_vec(), chunk.logits);
            split_into_steps(&chunks, rows).iter().map(|step| step.iter().map(of).collect()).collect()
        };
        let part = |sequence, position, tokens: &[u32], logits| (sequence, position, tokens.to_vec(), logits);
        let expected = [
            vec![part(0, 0, &[0, 1, 2, 3], 2)],
            vec![part(0, 4, &[4, 5, 6], 3), part(1, 3, &[], 0), part(2, 9, &[0], 0)],
            vec![part(2, 10, &[1], 1), part(3, 0, &[0, 1, 2], 0)],
            vec![part(3, 3, &[3, 4, 5, 6], 0)],
            vec![part(3, 7, &[7, 8, 9, 10], 0)],
            vec![part(3, 11, &[11], 1)],
        ];
        assert_eq!(shape(4), expected);
        assert_eq!(shape(21).len(), 1);
        assert_eq!(shape(0).len(), 21);
    }

    #[test]
    fn a_long_input_is_computed_in_steps_of_the_default_size() {
        let (engine, faulty) = (engine(), engine());
        // Larger steps fail.
        let max_rows = DEFAULT_PREFILL_CHUNK;
        faulty.model().wrap_compute(|inner| Box::new(FaultyCompute { inner, max_rows }));
        let tokens: Vec<u32> = (0..700).map(|i| 3 + i * i % 1900).collect();
        let (long, short) = (&tokens[..], &tokens[500..]);
        let chunk = |sequence, tokens, logits| SequenceChunk { sequence, position: 0, tokens, logits };
        let mut cache = SequenceCache::new(faulty.model().clone(), 2, 700, KvDType::F16).expect("a cache");
        let logits = cache.forward(&[chunk(0, long, 300), chunk(1, short, 2)], &[]).expect("in several steps");
        let whole = |tokens: &[u32]| engine.logits(&tokens.to_vec().into(), &[]).expect("logits").values;
        let (long, short, vocab) = (whole(long), whole(short), logits.vocab);
        assert_eq!(logits.tokens, 302);
        assert!(logits.values[..300 * vocab] == long[400 * vocab..]);
        assert!(logits.values[300 * vocab..] == short[198 * vocab..]);
    }

    #[test]
    fn an_interrupted_input_can_be_computed_again() {
        let engine = engine();
        let mut cache =
            SequenceCache::new(engine.model().clone(), 1, 64, KvDType::F16).expect("a cache").with_prefill_chunk(10);
        let tokens: Vec<u32> = (3..43).collect();
        let chunk = |position: usize| [SequenceChunk { sequence: 0, position, tokens: &tokens[position..], logits: 1 }];
        let mut steps = 0;
        let mut interrupt = || {
            steps += 1;
            if steps == 3 { Err(Error::new(ErrorCode::Interrupted, "Ctrl-C was pressed")) } else { Ok(()) }
        };
        let error = cache.forward_with(&chunk(0), &[], &mut interrupt).expect_err("interrupted");
        assert_eq!(error.code(), ErrorCode::Interrupted);
        // Two of four steps were computed.
        assert_eq!(cache.forward(&chunk(21), &[]).expect_err("a gap").code(), ErrorCode::RequestInvalid);
        let rest = cache.forward(&chunk(20), &[]).expect("the rest");
        assert_eq!(rest, cache.forward(&chunk(0), &[]).expect("all of it"));
    }

    #[test]
    fn what_a_failed_step_may_have_overwritten_is_no_longer_there() {
        let engine = engine();
        engine.model().wrap_compute(|inner| Box::new(FaultyCompute { inner, max_rows: 64 }));
        let mut cache = SequenceCache::new(engine.model().clone(), 2, 64, KvDType::F16).expect("a cache");
        let chunk = |position, tokens| [SequenceChunk { sequence: 0, position, tokens, logits: 0 }];
        cache.forward(&chunk(0, &[5, 6, 7, 8, 9]), &[]).expect("five tokens");
        let error = cache.forward(&chunk(3, &[FAIL]), &[]).expect_err("the step fails");
        assert_eq!(error.code(), ErrorCode::MemoryExhausted);
        assert_eq!(cache.computed_tokens(0, 0), 3);
        assert_eq!(cache.copy_prefix(0, 1, 4).expect_err("not computed").code(), ErrorCode::RequestInvalid);
        cache.copy_prefix(0, 1, 3).expect("what is left");
        cache.forward(&chunk(3, &[8, 9]), &[]).expect("the rest again");
    }
}
