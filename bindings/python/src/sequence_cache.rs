//! A KV cache that Python drives itself, for `model.forward(ids, cache)`.

use exlora::engine::{Prompt, PromptPart, SequenceCache, SequenceChunk};
use parking_lot::Mutex;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;

use crate::args::{MixtureArg, PromptArg, TokenIds};
use crate::errors::Result;
use crate::gil::detached;
use crate::model::PyModel;
use crate::numbers::{count, integer};
use crate::returns::Floats;

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
pub(crate) struct PySequenceCache {
    cache: Mutex<SequenceCache>,
    max_tokens: usize,
    hidden_size: usize,
    /// Values of a position's keys.
    states_width: usize,
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
    ) -> Result<Self> {
        let (model, dtype) = (model.get().model(), dtype.parse()?);
        let (sequences, max_tokens) = (count("sequences", sequences)?, count("max_tokens", max_tokens)?);
        let config = model.config();
        let (hidden_size, states_width) = (config.hidden_size, config.kv_heads * config.head_dim);
        let cache = detached(py, |_| SequenceCache::new(model, sequences, max_tokens, dtype))?;
        Ok(Self { max_tokens: cache.max_tokens(), hidden_size, states_width, cache: Mutex::new(cache) })
    }

    /// Sets the tokens of a sequence from a position on, before they are computed in several steps.
    fn set_tokens(&self, py: Python<'_>, sequence: usize, position: usize, tokens: TokenIds) -> PyResult<()> {
        detached(py, |_| self.cache.lock().set_tokens(sequence, position, &tokens.0))
    }

    /// As `set_tokens`, of token ids, or a dict `prompt_embeds` with ids and arrays of vectors in place of ids. Returns the
    /// tokens to compute.
    fn set_parts(&self, py: Python<'_>, sequence: usize, position: usize, prompt: PromptArg) -> PyResult<Vec<u32>> {
        let parts = match prompt.0 {
            Prompt::Parts(parts) => parts,
            Prompt::Tokens(tokens) => vec![PromptPart::Tokens(tokens)],
            Prompt::Text(_) | Prompt::Chat(_) => {
                return Err(PyTypeError::new_err("a cache takes token ids and vectors"));
            }
        };
        detached(py, |_| self.cache.lock().set_parts(sequence, position, &parts))
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

    /// As `forward`, and the residual stream behind the last layer, before the final norm: of all tokens of the chunks,
    /// float32 [tokens, hidden_size].
    #[pyo3(signature = (chunks, adapter=None))]
    fn forward_with_last_states(
        &self,
        py: Python<'_>,
        chunks: Vec<Chunk>,
        adapter: Option<MixtureArg>,
    ) -> PyResult<(Floats, Floats)> {
        let (logits, states) = detached(py, |python| {
            let chunks: Vec<_> = chunks.iter().map(as_chunk).collect();
            let mixture = adapter.unwrap_or_default().0;
            self.cache.lock().forward_with_last_states(&chunks, &mixture, &mut || python.check_signals())
        })?;
        let logits = Floats { values: logits.values, columns: Some(logits.vocab) };
        Ok((logits, Floats { values: states, columns: Some(self.hidden_size) }))
    }

    /// Number of leading tokens of a sequence whose keys and values in a layer are here.
    fn computed_tokens(&self, py: Python<'_>, sequence: usize, layer: usize) -> usize {
        py.detach(|| self.cache.lock().computed_tokens(sequence, layer))
    }

    /// Copies of the keys and of the values of a layer at the positions from `start` to `end` of a sequence, codes dequantized:
    /// each float32 [positions, kv_heads * head_dim].
    fn read_states(
        &self,
        py: Python<'_>,
        sequence: usize,
        layer: usize,
        start: usize,
        end: usize,
    ) -> PyResult<(Floats, Floats)> {
        let states = detached(py, |_| self.cache.lock().read_states(sequence, layer, start..end))?;
        let floats = |values| Floats { values, columns: Some(self.states_width) };
        Ok((floats(states.keys), floats(states.values)))
    }

    /// Copies the positions from `start` to `end` of a sequence to sequences of a cache, which may be this one: `to` has for each
    /// its index and the position of the first. What precedes it there must be computed, what was behind is dropped. Keys are
    /// rotated on where their positions change.
    fn copy_positions(
        &self,
        py: Python<'_>,
        sequence: usize,
        start: usize,
        end: usize,
        target: &Bound<'_, Self>,
        to: Vec<(usize, usize)>,
    ) -> PyResult<()> {
        let target = target.get();
        detached(py, |_| {
            if std::ptr::eq(self, target) {
                return self.cache.lock().copy_positions(sequence, start..end, &to);
            }
            // Always the same one first, so that two threads cannot wait for each other.
            let is_first = std::ptr::from_ref(self) < std::ptr::from_ref(target);
            let (mut cache, source) = if is_first {
                let source = self.cache.lock();
                (target.cache.lock(), source)
            } else {
                (target.cache.lock(), self.cache.lock())
            };
            cache.copy_positions_from(&source, sequence, start..end, &to)
        })
    }

    /// Layers that have keys and values here: those of the model, or of the longest layer map so far.
    #[getter]
    fn layers(&self, py: Python<'_>) -> usize {
        py.detach(|| self.cache.lock().layers())
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
