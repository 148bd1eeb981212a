//! What generation returns.

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::convert::{Floats, FloatsOf, NamedFloats};
use crate::adapter::pool::AdapterInfo;
use crate::engine::request::{Chunk, Completion, Finish, StopMatch, TokenLogprobs, Usage};

/// Tokens of a request.
#[pyclass(frozen, get_all, eq, name = "Usage", module = "exlora._exlora")]
#[derive(Clone, PartialEq)]
pub(super) struct PyUsage {
    /// Tokens of the prompt.
    prompt_tokens: usize,
    /// Of those, tokens whose keys and values were found in the cache.
    cached_tokens: usize,
    /// New tokens, a stop token included.
    completion_tokens: usize,
}

impl From<Usage> for PyUsage {
    fn from(usage: Usage) -> Self {
        Self {
            prompt_tokens: usage.prompt_tokens,
            cached_tokens: usage.cached_tokens,
            completion_tokens: usage.completion_tokens,
        }
    }
}

#[pymethods]
impl PyUsage {
    fn __repr__(&self) -> String {
        let Self { prompt_tokens, cached_tokens, completion_tokens } = self;
        format!(
            "Usage(prompt_tokens={prompt_tokens}, cached_tokens={cached_tokens}, completion_tokens={completion_tokens})"
        )
    }
}

/// What a text ran into: the id of a stop token, or a stop string.
#[derive(Clone, IntoPyObject)]
pub(super) enum Matched {
    Token(u32),
    Text(String),
}

fn matched(finish: &Finish) -> Option<Matched> {
    finish.matched.as_ref().map(|matched| match matched {
        StopMatch::Token(id) => Matched::Token(*id),
        StopMatch::Text(text) => Matched::Text(text.clone()),
    })
}

/// A mixture as its request named it.
#[derive(IntoPyObject)]
pub(super) enum Requested<'py> {
    Name(String),
    Weights(NamedFloats<'py>),
    Pairs(Vec<(String, f64)>),
}

/// The weight with the digits its user wrote: 0.3, not the 0.30000001192092896 it is as f32.
fn as_written(weight: f32) -> f64 {
    weight.to_string().parse().unwrap_or(f64::from(weight))
}

/// Log-probabilities of chosen ids, and the best ids of each position; `None` where they were not asked for.
#[derive(Default)]
struct Logprobs {
    chosen: Option<FloatsOf>,
    top: Option<Vec<Vec<(u32, f32)>>>,
}

impl Logprobs {
    fn new(py: Python<'_>, logprobs: Vec<TokenLogprobs>) -> PyResult<Self> {
        if logprobs.is_empty() {
            return Ok(Self::default());
        }
        let values = logprobs.iter().map(|token| token.chosen).collect();
        let chosen = FloatsOf::new(py, Floats { values, columns: None })?;
        Ok(Self { chosen: Some(chosen), top: Some(logprobs.into_iter().map(|token| token.top).collect()) })
    }
}

fn logits_array(py: Python<'_>, logits: Vec<f32>, tokens: usize) -> PyResult<Option<FloatsOf>> {
    if logits.is_empty() {
        return Ok(None);
    }
    let columns = Some(logits.len() / tokens.max(1));
    FloatsOf::new(py, Floats { values: logits, columns }).map(Some)
}

/// A finished request.
#[pyclass(frozen, name = "Completion", module = "exlora._exlora")]
pub(super) struct PyCompletion {
    completion: Completion,
    logprobs: Logprobs,
    logits: Option<FloatsOf>,
}

impl PyCompletion {
    pub(super) fn new(py: Python<'_>, mut completion: Completion) -> PyResult<Self> {
        let logprobs = Logprobs::new(py, std::mem::take(&mut completion.logprobs))?;
        let logits = logits_array(py, std::mem::take(&mut completion.logits), completion.token_ids.len())?;
        Ok(Self { completion, logprobs, logits })
    }
}

#[pymethods]
impl PyCompletion {
    /// The new text, without prompt and stop.
    #[getter]
    fn text(&self) -> &str {
        &self.completion.text
    }

    /// The new tokens, a stop token included.
    #[getter]
    fn token_ids(&self) -> Vec<u32> {
        self.completion.token_ids.clone()
    }

    /// `stop`, `length` or `cancelled`.
    #[getter]
    fn finish_reason(&self) -> &'static str {
        self.completion.finish.reason.as_str()
    }

    /// The token id or string that stopped it, if one did.
    #[getter]
    fn stop_match(&self) -> Option<Matched> {
        matched(&self.completion.finish)
    }

    /// Tokens used.
    #[getter]
    fn usage(&self) -> PyUsage {
        self.completion.finish.usage.into()
    }

    /// The mixture: `None` for the base, a name for one adapter of weight 1, else a dict of name to weight (a list of
    /// pairs where a name stands twice).
    #[getter]
    fn adapter<'py>(&self, py: Python<'py>) -> PyResult<Option<Requested<'py>>> {
        match self.completion.adapter.as_slice() {
            [] => Ok(None),
            [(name, 1.0)] => Ok(Some(Requested::Name(name.clone()))),
            mixture => {
                let weights = PyDict::new(py);
                for (name, weight) in mixture {
                    weights.set_item(name, as_written(*weight))?;
                }
                let is_repeated = weights.len() < mixture.len();
                Ok(Some(if is_repeated {
                    Requested::Pairs(mixture.iter().map(|(name, weight)| (name.clone(), as_written(*weight))).collect())
                } else {
                    Requested::Weights(NamedFloats(weights))
                }))
            }
        }
    }

    /// Log-probability of each chosen id, float32 [tokens]; `None` unless asked for.
    #[getter]
    fn logprobs(&self, py: Python<'_>) -> Option<FloatsOf> {
        self.logprobs.chosen.as_ref().map(|array| array.clone_ref(py))
    }

    /// Per token, the most likely (id, log-probability), best first; `None` unless asked for.
    #[getter]
    fn top_logprobs(&self) -> Option<Vec<Vec<(u32, f32)>>> {
        self.logprobs.top.clone()
    }

    /// The logits each token was chosen from, float32 [tokens, vocab]; `None` unless asked for.
    #[getter]
    fn logits(&self, py: Python<'_>) -> Option<FloatsOf> {
        self.logits.as_ref().map(|array| array.clone_ref(py))
    }

    fn __repr__(&self) -> String {
        let Completion { text, finish, adapter, .. } = &self.completion;
        let adapter = match &adapter[..] {
            [] => "None".to_owned(),
            [(name, 1.0)] => format!("{name:?}"),
            mixture => {
                let entries: Vec<_> = mixture.iter().map(|(name, weight)| format!("{name:?}: {weight}")).collect();
                format!("{{{}}}", entries.join(", "))
            }
        };
        format!("Completion(text={text:?}, finish_reason='{}', adapter={adapter})", finish.reason.as_str())
    }
}

/// A piece of a running request: usually one token, and the text that became certain with it.
#[pyclass(frozen, name = "Chunk", module = "exlora._exlora")]
pub(super) struct PyChunk {
    chunk: Chunk,
    logprobs: Logprobs,
    logits: Option<FloatsOf>,
}

impl PyChunk {
    pub(super) fn new(py: Python<'_>, mut chunk: Chunk) -> PyResult<Self> {
        let logprobs = Logprobs::new(py, std::mem::take(&mut chunk.logprobs))?;
        let logits = logits_array(py, std::mem::take(&mut chunk.logits), chunk.token_ids.len())?;
        Ok(Self { chunk, logprobs, logits })
    }
}

#[pymethods]
impl PyChunk {
    /// Text that became certain; the texts of all chunks joined are the completion's text.
    #[getter]
    fn text(&self) -> &str {
        &self.chunk.text
    }

    /// New tokens.
    #[getter]
    fn token_ids(&self) -> Vec<u32> {
        self.chunk.token_ids.clone()
    }

    /// `stop`, `length` or `cancelled` on the last chunk, else `None`.
    #[getter]
    fn finish_reason(&self) -> Option<&'static str> {
        self.chunk.finish.as_ref().map(|finish| finish.reason.as_str())
    }

    /// On the last chunk, the token id or string that stopped it, if one did.
    #[getter]
    fn stop_match(&self) -> Option<Matched> {
        self.chunk.finish.as_ref().and_then(matched)
    }

    /// Tokens used, on the last chunk.
    #[getter]
    fn usage(&self) -> Option<PyUsage> {
        self.chunk.finish.as_ref().map(|finish| finish.usage.into())
    }

    /// Log-probability of each chosen id, float32 [tokens]; `None` unless asked for.
    #[getter]
    fn logprobs(&self, py: Python<'_>) -> Option<FloatsOf> {
        self.logprobs.chosen.as_ref().map(|array| array.clone_ref(py))
    }

    /// Per token, the most likely (id, log-probability), best first; `None` unless asked for.
    #[getter]
    fn top_logprobs(&self) -> Option<Vec<Vec<(u32, f32)>>> {
        self.logprobs.top.clone()
    }

    /// The logits each token was chosen from, float32 [tokens, vocab]; `None` unless asked for.
    #[getter]
    fn logits(&self, py: Python<'_>) -> Option<FloatsOf> {
        self.logits.as_ref().map(|array| array.clone_ref(py))
    }

    fn __repr__(&self) -> String {
        let Chunk { text, token_ids, finish, .. } = &self.chunk;
        let reason = finish.as_ref().map(|finish| finish.reason.as_str());
        format!("Chunk(text={text:?}, token_ids={token_ids:?}, finish_reason={})", quoted(reason))
    }
}

fn quoted(text: Option<&str>) -> String {
    text.map_or_else(|| "None".to_owned(), |text| format!("'{text}'"))
}

/// A resident adapter.
#[pyclass(frozen, get_all, name = "AdapterInfo", module = "exlora._exlora")]
pub(super) struct PyAdapterInfo {
    /// Name under which requests find it.
    name: String,
    /// Folder it was read from.
    path: String,
    /// Counts up with every adapter that becomes resident.
    generation: u64,
    /// SHA-256 over config and weights.
    content_hash: String,
    /// Largest rank of a site.
    rank: usize,
    /// Number of sites it acts on.
    sites: usize,
    /// Bytes it occupies.
    bytes: usize,
    /// Leases that requests held on it when this was asked.
    leases: usize,
}

impl From<AdapterInfo> for PyAdapterInfo {
    fn from(info: AdapterInfo) -> Self {
        Self {
            name: info.name,
            path: info.summary.path.to_string_lossy().into_owned(),
            generation: info.generation,
            content_hash: info.summary.content_hash,
            rank: info.summary.max_rank,
            sites: info.summary.sites,
            bytes: info.resident_bytes,
            leases: info.leases,
        }
    }
}

#[pymethods]
impl PyAdapterInfo {
    fn __repr__(&self) -> String {
        let Self { name, generation, rank, sites, bytes, leases, .. } = self;
        format!(
            "AdapterInfo({name:?}, generation={generation}, rank={rank}, sites={sites}, bytes={bytes}, leases={leases})"
        )
    }
}
