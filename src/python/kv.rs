//! A KV cache that Python drives by itself: what `model.forward(ids, cache)` stands on.
//!
//! Each sequence owns its pages for good, sequence `i` the pages `i * n .. (i + 1) * n`: no pool, no sharing. So a caller
//! may go back to any earlier length and write on from there.

use parking_lot::Mutex;
use pyo3::prelude::*;

use super::convert::{Floats, Mixture};
use super::detach::detached;
use super::engine::kv_dtype;
use super::model::PyModel;
use crate::adapter::batch::SlotId;
use crate::adapter::pool::AdapterLease;
use crate::engine::request::AdapterRef;
use crate::error::{Error, ErrorCode, Result};
use crate::kv::{PAGE_TOKENS, pages_for};
use crate::model::{ForwardBatch, KvStorage, Model};

/// Keys and values of some sequences of a model.
#[pyclass(frozen, name = "KvCache", module = "exlora._exlora")]
pub(super) struct PyKvCache {
    storage: KvStorage,
    model: std::sync::Arc<Model>,
    pages_each: usize,
    sequences: usize,
    /// Buffers of a step, kept from call to call.
    scratch: Mutex<ForwardBatch>,
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
        Ok(Self { storage, model, pages_each, sequences, scratch: Mutex::default() })
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
        let values = detached(py, |_| {
            // Held until the step is over.
            let leases = self.lease_all(&adapter.0)?;
            let mixture: Vec<(SlotId, f32)> =
                leases.iter().zip(&adapter.0).map(|(lease, (_, weight))| (lease.slot(), *weight)).collect();
            let mut batch = self.scratch.lock();
            batch.adapters.rebuild(std::iter::repeat_n(mixture.as_slice(), tokens.len()));
            batch.logit_adapters.rebuild(std::iter::repeat_n(mixture.as_slice(), picked.len()));
            (batch.tokens, batch.logit_rows) = (tokens, picked);
            (batch.rows.positions, batch.rows.sequences) = (positions, sequences);
            batch.rows.block_tables = (0..self.sequences).map(|sequence| self.pages_of(sequence)).collect();
            let mut logits = Vec::new();
            self.model.forward(&batch, &self.storage, &mut logits)?;
            Ok(logits)
        })?;
        Ok(Floats { values, columns: Some(self.model.config().vocab_size) })
    }

    /// Tokens a sequence can hold.
    #[getter]
    fn max_tokens(&self) -> usize {
        self.pages_each * PAGE_TOKENS
    }

    /// Bytes of its keys and values.
    #[getter]
    fn bytes(&self) -> usize {
        let shape = self.storage.shape();
        2 * shape.layers * shape.pages * shape.page_tokens * shape.kv_heads * shape.head_dim * shape.dtype.bytes()
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
        if let Some(id) = tokens.iter().find(|&&id| id as usize >= config.vocab_size) {
            return Err(Error::new(ErrorCode::TokenOutOfRange, "a token id is outside the vocabulary")
                .expected(format!("0..{}", config.vocab_size))
                .found(id));
        }
        let room = config.max_positions.min(self.pages_each * PAGE_TOKENS);
        if let Some(position) = positions.iter().find(|&&position| position as usize >= room) {
            return Err(Error::new(ErrorCode::PromptTooLong, "the tokens do not fit the model or the cache")
                .expected(format!("at most {room} tokens"))
                .found(format!("{} tokens", u64::from(*position) + 1)));
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

    fn lease_all(&self, adapters: &[(AdapterRef, f32)]) -> Result<Vec<AdapterLease>> {
        let pool = self.model.adapters();
        let lease = |(adapter, weight): &(AdapterRef, f32)| {
            if !weight.is_finite() {
                return Err(Error::new(ErrorCode::AdapterWeightInvalid, "a weight is not finite").found(weight));
            }
            match adapter {
                AdapterRef::Name(name) => pool.lease(name),
                AdapterRef::Lease(lease) if lease.is_of(pool) => Ok(lease.clone()),
                AdapterRef::Lease(lease) => {
                    Err(Error::new(ErrorCode::AdapterModelMismatch, "the adapter was loaded on another model")
                        .path(&lease.info().summary.path))
                }
            }
        };
        adapters.iter().map(lease).collect()
    }
}
