//! A KV cache that Python drives by itself: what `model.forward(ids, cache)` stands on.
//!
//! Each sequence owns its pages for good, sequence `i` the pages `i * n .. (i + 1) * n`: no pool, no sharing. So a caller
//! may go back to any earlier length and write on from there. The tokens are kept too: an activated adapter acts from the
//! last place on where its invocation stands in them.

use parking_lot::Mutex;
use pyo3::prelude::*;

use super::convert::{Floats, Mixture};
use super::detach::detached;
use super::engine::kv_dtype;
use super::model::PyModel;
use crate::adapter::mixture::MixtureSpans;
use crate::backend::{KvShape, StepRows};
use crate::engine::request::lease_all;
use crate::error::{Error, ErrorCode, Result};
use crate::kv::{PAGE_TOKENS, pages_for};
use crate::model::{ForwardBatch, KvStorage, Model};

/// Keys and values of some sequences of a model.
#[pyclass(frozen, name = "KvCache", module = "exlora._exlora")]
pub(super) struct PyKvCache {
    state: Mutex<State>,
    model: std::sync::Arc<Model>,
    pages_each: usize,
    sequences: usize,
    shape: KvShape,
}

/// What a step changes.
struct State {
    /// Storage of each kv_group; further ones are made for the first adapter whose layers repeat.
    kv_groups: Vec<KvStorage>,
    /// The tokens of each sequence, by position, those that were announced included.
    tokens: Vec<Vec<u32>>,
    /// Buffers of a step, kept from call to call.
    batch: ForwardBatch,
}

#[pymethods]
impl PyKvCache {
    /// Room for `sequences` sequences of at most `max_tokens` tokens each.
    #[new]
    #[pyo3(signature = (model, sequences, max_tokens, dtype="f16"))]
    fn new(
        py: Python<'_>,
        model: &Bound<'_, PyModel>,
        sequences: usize,
        max_tokens: usize,
        dtype: &str,
    ) -> PyResult<Self> {
        let (model, dtype, pages_each) = (model.get().model(), kv_dtype(dtype)?, pages_for(max_tokens).max(1));
        let pages = pages_each
            .checked_mul(sequences)
            .filter(|&pages| u32::try_from(pages).is_ok())
            .ok_or_else(|| Error::new(ErrorCode::MemoryExhausted, "the KV cache is too large"))?;
        let storage = detached(py, |_| model.create_kv(pages, dtype))?;
        let shape = *storage.shape();
        let tokens = vec![Vec::new(); sequences];
        let state = Mutex::new(State { kv_groups: vec![storage], tokens, batch: ForwardBatch::default() });
        Ok(Self { state, model, pages_each, sequences, shape })
    }

    /// Tells the tokens that a sequence goes on with from a position on, before they are computed in steps.
    fn announce(&self, sequence: usize, position: usize, tokens: Vec<u32>) -> PyResult<()> {
        let mut state = self.state.lock();
        let Some(known) = state.tokens.get_mut(sequence).filter(|known| known.len() >= position) else {
            return Err(Error::new(ErrorCode::RequestInvalid, "tokens before the announced ones are missing").into());
        };
        known.truncate(position);
        known.extend(tokens);
        Ok(())
    }

    /// Computes tokens of several sequences in one step and returns the logits of those picked, float32 [picked, vocab].
    ///
    /// Token `i` is `tokens[i]` at `positions[i]` of sequence `sequences[i]`; a sequence's tokens stand in ascending order
    /// of position, and everything before them must be in the cache. `picked` are indices of tokens.
    #[pyo3(signature = (tokens, positions, sequences, picked, adapter=Mixture::default()))]
    fn forward(
        &self,
        py: Python<'_>,
        tokens: Vec<u32>,
        positions: Vec<u32>,
        sequences: Vec<u32>,
        picked: Vec<u32>,
        adapter: Mixture,
    ) -> PyResult<Floats> {
        self.check(&tokens, &positions, &sequences, &picked)?;
        let (values, columns) = detached(py, |_| {
            // Held until the step is over.
            let mixture = lease_all(&adapter.0, &self.model)?;
            mixture.check_tokens(&tokens, self.model.config().vocab_size)?;
            let mut state = self.state.lock();
            let State { kv_groups, tokens: known, batch } = &mut *state;
            remember(known, &tokens, &positions, &sequences);
            while kv_groups.len() < self.model.kv_groups_of(mixture.layers()) {
                kv_groups.push(self.model.create_kv(self.shape.pages, self.shape.dtype)?);
            }
            let spans: Vec<MixtureSpans> = known.iter().map(|known| mixture.along(known)).collect();
            let acting = |row: usize| spans[sequences[row] as usize].at(positions[row] as usize);
            batch.adapters.rebuild((0..tokens.len()).map(acting));
            batch.logit_adapters.rebuild(picked.iter().map(|&row| acting(row as usize)));
            (batch.tokens, batch.logit_rows) = (tokens, picked);
            batch.layers = mixture.layers().cloned();
            batch.logit_width = mixture.head_rows(self.model.config().vocab_size);
            let block_tables = (0..self.sequences).map(|sequence| self.pages_of(sequence)).collect();
            batch.kv_groups = vec![StepRows { positions, sequences, block_tables }];
            let mut logits = Vec::new();
            self.model.forward(batch, &kv_groups.iter().collect::<Vec<_>>(), &mut logits)?;
            Ok((logits, batch.logit_width))
        })?;
        Ok(Floats { values, columns: Some(columns) })
    }

    /// Tokens a sequence can hold.
    #[getter]
    fn max_tokens(&self) -> usize {
        self.pages_each * PAGE_TOKENS
    }

    /// Bytes of its keys and values.
    #[getter]
    fn bytes(&self) -> usize {
        self.shape.bytes().unwrap_or(0) * self.state.lock().kv_groups.len()
    }
}

impl PyKvCache {
    fn pages_of(&self, sequence: usize) -> Vec<u32> {
        let first = sequence * self.pages_each;
        (first..first + self.pages_each).map(|page| page as u32).collect()
    }

    /// Everything the device relies on.
    fn check(&self, tokens: &[u32], positions: &[u32], sequences: &[u32], picked: &[u32]) -> Result<()> {
        let config = self.model.config();
        if tokens.is_empty() {
            return Err(Error::new(ErrorCode::PromptEmpty, "there are no tokens to compute"));
        }
        if positions.len() != tokens.len() || sequences.len() != tokens.len() {
            return Err(Error::new(ErrorCode::RequestInvalid, "tokens, positions and sequences differ in length"));
        }
        let room = config.max_positions.min(self.pages_each * PAGE_TOKENS);
        if let Some(position) = positions.iter().find(|&&position| position as usize >= room) {
            return Err(Error::new(ErrorCode::PromptTooLong, "the tokens do not fit the model or the cache")
                .with_expected(format!("at most {room} tokens"))
                .with_found(format!("{} tokens", u64::from(*position) + 1)));
        }
        let is_known = |list: &[u32], bound: usize| list.iter().all(|&index| (index as usize) < bound);
        if !is_known(sequences, self.sequences) || !is_known(picked, tokens.len()) {
            return Err(Error::new(ErrorCode::RequestInvalid, "an index is outside the cache or the step"));
        }
        let mut last = vec![None; self.sequences];
        for (&sequence, &position) in sequences.iter().zip(positions) {
            if last[sequence as usize].replace(position).is_some_and(|before| before >= position) {
                return Err(Error::new(ErrorCode::RequestInvalid, "positions of a sequence do not ascend"));
            }
        }
        Ok(())
    }
}

/// Takes down the tokens of a step where they stand in their sequences.
fn remember(known: &mut [Vec<u32>], tokens: &[u32], positions: &[u32], sequences: &[u32]) {
    for ((&token, &position), &sequence) in tokens.iter().zip(positions).zip(sequences) {
        let (known, position) = (&mut known[sequence as usize], position as usize);
        if known.get(position) != Some(&token) {
            // What was there came after another token: it is computed again, if at all.
            known.resize(position, 0);
            known.push(token);
        }
    }
}
