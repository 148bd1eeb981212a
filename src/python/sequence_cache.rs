//! A KV cache that Python drives itself, for `model.forward(ids, cache)`.

use parking_lot::Mutex;
use pyo3::prelude::*;

use super::args::{MixtureArg, TokenIds, kv_dtype};
use super::gil::detached;
use super::model::PyModel;
use super::numbers::{count, integer};
use super::returns::Floats;
use crate::engine::{SequenceCache, SequenceChunk};

/// Consecutive tokens of one sequence: its index, the position of the first token, the tokens, and the number of tokens,
/// counted from the last one, whose logits are returned.
type Chunk = (usize, usize, TokenIds, usize);

fn as_chunk((sequence, position, tokens, logits): &Chunk) -> SequenceChunk<'_> {
    SequenceChunk { sequence: *sequence, position: *position, tokens: &tokens.0, logits: *logits }
}

/// Keys and values of a fixed number of sequences of a model.
///
/// The lock is only taken without the interpreter's lock, so the two cannot wait for each other.
#[pyclass(frozen, name = "SequenceCache", module = "exlora._exlora")]
pub(super) struct PySequenceCache {
    cache: Mutex<SequenceCache>,
    max_tokens: usize,
}

#[pymethods]
impl PySequenceCache {
    /// Room for `sequences` sequences of at most `max_tokens` tokens each.
    #[new]
    #[pyo3(signature = (model, sequences: "SupportsIndex", max_tokens: "SupportsIndex", dtype="f16"))]
    fn new(
        py: Python<'_>,
        model: &Bound<'_, PyModel>,
        #[pyo3(from_py_with = integer)] sequences: i64,
        #[pyo3(from_py_with = integer)] max_tokens: i64,
        dtype: &str,
    ) -> PyResult<Self> {
        let (model, dtype) = (model.get().model(), kv_dtype(dtype)?);
        let (sequences, max_tokens) = (count("sequences", sequences)?, count("max_tokens", max_tokens)?);
        let cache = detached(py, |_| SequenceCache::new(model, sequences, max_tokens, dtype))?;
        Ok(Self { max_tokens: cache.max_tokens(), cache: Mutex::new(cache) })
    }

    /// Sets the tokens of a sequence from a position on, before they are computed in several steps.
    fn set_tokens(&self, py: Python<'_>, sequence: usize, position: usize, tokens: TokenIds) -> PyResult<()> {
        detached(py, |_| self.cache.lock().set_tokens(sequence, position, &tokens.0))
    }

    /// Computes chunks of several sequences and returns the logits asked for, float32 [rows, vocab].
    ///
    /// A chunk is (sequence, position of the first token, tokens, number of last tokens whose logits are returned).
    #[pyo3(signature = (chunks, adapter=None))]
    fn forward(&self, py: Python<'_>, chunks: Vec<Chunk>, adapter: Option<MixtureArg>) -> PyResult<Floats> {
        let logits = detached(py, |python| {
            let chunks: Vec<_> = chunks.iter().map(as_chunk).collect();
            let mixture = adapter.unwrap_or_default().0;
            self.cache.lock().forward_with(&chunks, &mixture, &mut || python.check_signals())
        })?;
        Ok(Floats { values: logits.values, columns: Some(logits.vocab) })
    }

    /// Largest number of tokens of a sequence.
    #[getter]
    fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Bytes of all keys and values.
    #[getter]
    fn bytes(&self, py: Python<'_>) -> usize {
        py.detach(|| self.cache.lock().bytes())
    }
}
