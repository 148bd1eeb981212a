//! A KV cache that the caller drives position by position, without a scheduler.
//!
//! Each sequence owns its pages permanently, sequence `i` the pages `i * n .. (i + 1) * n`: nothing is shared. So a caller may
//! return to any earlier position and continue from there. The tokens are kept too, because an aLoRA adapter acts from the
//! last place where its invocation appears in them.

use std::sync::Arc;

use super::output::Logits;
use super::request::{AdapterRef, lease_all};
use crate::backend::{KvDType, KvShape};
use crate::error::{Error, ErrorCode, Result};
use crate::kv_cache::{PAGE_TOKENS, pages_for};
use crate::model::batch::{SequenceRows, StepBatch};
use crate::model::{KvStorage, Model};

/// Consecutive tokens of one sequence to compute.
#[derive(Clone, Copy, Debug)]
pub struct SequenceChunk<'a> {
    /// Index of the sequence in the cache.
    pub sequence: usize,
    /// Position of the first token; everything before it must have been computed.
    pub position: usize,
    /// The tokens.
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
    model: Arc<Model>,
    shape: KvShape,
    pages_per_sequence: usize,
    sequences: Vec<CachedSequence>,
    /// Storage of each KV group; more are added for the first adapter whose layer map needs them.
    kv_groups: Vec<KvStorage>,
    batch: StepBatch,
}

#[derive(Default)]
struct CachedSequence {
    pages: Vec<u32>,
    /// Tokens by position, including those that were set but not computed.
    tokens: Vec<u32>,
    /// Number of leading tokens whose keys and values are in the cache.
    computed: usize,
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
        let sequence = |index: usize| {
            let pages = index * pages_per_sequence..(index + 1) * pages_per_sequence;
            CachedSequence { pages: pages.map(|page| page as u32).collect(), ..CachedSequence::default() }
        };
        Ok(Self {
            shape: *storage.shape(),
            model,
            pages_per_sequence,
            sequences: (0..sequences).map(sequence).collect(),
            kv_groups: vec![storage],
            batch: StepBatch::default(),
        })
    }

    /// Sets the tokens of a sequence from a position on, before they are computed in several steps, so that an invocation is
    /// found in all of them.
    ///
    /// # Errors
    /// `request_invalid`: there is no such sequence, or tokens before `position` are missing.
    pub fn set_tokens(&mut self, sequence: usize, position: usize, tokens: &[u32]) -> Result<()> {
        let Some(known) = self.sequences.get_mut(sequence).filter(|known| known.tokens.len() >= position) else {
            return Err(Error::new(ErrorCode::RequestInvalid, "tokens before the position are missing"));
        };
        known.tokens.truncate(position);
        known.tokens.extend_from_slice(tokens);
        known.computed = known.computed.min(position);
        Ok(())
    }

    /// Computes chunks of several sequences in one step and returns the logits asked for, in the order of the chunks. All rows
    /// have the same mixture of adapters.
    ///
    /// # Errors
    /// `adapter_*` as for [`Engine::submit`](crate::Engine::submit); `prompt_empty`, `prompt_too_long`, `request_invalid`,
    /// `token_out_of_range`; `kv_overflow`; the device failed.
    pub fn forward(&mut self, chunks: &[SequenceChunk<'_>], adapters: &[(AdapterRef, f32)]) -> Result<Logits> {
        self.check(chunks)?;
        // The mixture holds its leases until the step is over.
        let mixture = lease_all(adapters, &self.model)?;
        let vocab = self.model.config().vocab_size;
        for chunk in chunks {
            mixture.check_tokens(chunk.tokens, vocab)?;
        }
        while self.kv_groups.len() < self.model.kv_groups_of(mixture.layers()) {
            self.kv_groups.push(self.model.create_kv(self.shape.pages, self.shape.dtype)?);
        }
        // One table of pages serves all KV groups, each of which has storage of its own.
        self.batch.begin(mixture.layers(), 1, mixture.head_rows(vocab));
        for chunk in chunks {
            let sequence = &mut self.sequences[chunk.sequence];
            sequence.write(chunk.position, chunk.tokens);
            let spans = mixture.along(&sequence.tokens);
            let SequenceChunk { position, tokens, logits, .. } = *chunk;
            let rows = SequenceRows { tokens, position, pages: &sequence.pages, logits };
            self.batch.push_sequence(rows, spans.over(position..position + tokens.len()));
        }
        self.batch.finish();
        let (mut values, vocab) = (Vec::new(), self.batch.logit_width());
        let storages: Vec<&KvStorage> = self.kv_groups.iter().collect();
        self.model.forward(&mut self.batch, &storages, &mut values)?;
        let mut end = 0;
        for chunk in chunks {
            let rows = end..end + chunk.tokens.len();
            end = rows.end;
            let of_sequence = |error: Error| error.with_subject(format!("sequence {}", chunk.sequence));
            self.batch.check_kv(rows).map_err(of_sequence)?;
        }
        for chunk in chunks {
            self.sequences[chunk.sequence].computed = chunk.position + chunk.tokens.len();
        }
        Ok(Logits { tokens: values.len() / vocab.max(1), values, vocab })
    }

    /// Largest number of tokens of a sequence.
    pub fn max_tokens(&self) -> usize {
        self.pages_per_sequence * PAGE_TOKENS
    }

    /// Bytes of all keys and values.
    pub fn bytes(&self) -> usize {
        self.shape.bytes().unwrap_or(0) * self.kv_groups.len()
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
        let is_same = self.tokens.get(position..position + tokens.len()) == Some(tokens);
        if !is_same {
            self.tokens.truncate(position);
            self.tokens.extend_from_slice(tokens);
        }
    }
}
