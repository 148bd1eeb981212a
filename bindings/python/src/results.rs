//! The results of generation as Python objects: immutable, comparable, picklable, with `to_dict()`.

use exlora::adapter::pool::AdapterInfo;
use exlora::engine::{
    AdapterRef, Chunk, Completion, Finish, FinishReason, Stop, StopMatch, TokenLogprobs, TokenProbs, Usage,
};
use exlora::error::Error;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::args::{FloatArrayArg, MixtureArg, StopsArg, TokenIds};
use crate::errors::Exception;
use crate::numbers::{count, in_range, integer, optional_seed, seed_bits};
use crate::returns::{FloatArray, Floats, NamedInts, NamedMixture, NamedValues, StopOut};

/// The most likely (id, log-probability) of each token, best first.
type TopTokens = Vec<Vec<(u32, f32)>>;

/// Token counts of a request.
#[pyclass(frozen, get_all, eq, hash, name = "Usage", module = "exlora._exlora")]
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct PyUsage {
    /// Tokens of the prompt.
    prompt_tokens: usize,
    /// Prompt tokens whose keys and values were found in the prefix cache.
    cached_tokens: usize,
    /// New tokens, including a stop token.
    completion_tokens: usize,
    /// Drafted tokens that were chosen: of the new tokens, those that took no step of their own.
    accepted_draft_tokens: usize,
    /// Drafted tokens that were computed and not chosen.
    rejected_draft_tokens: usize,
}

impl From<Usage> for PyUsage {
    fn from(usage: Usage) -> Self {
        Self {
            prompt_tokens: usage.prompt_tokens,
            cached_tokens: usage.cached_tokens,
            completion_tokens: usage.completion_tokens,
            accepted_draft_tokens: usage.accepted_draft_tokens,
            rejected_draft_tokens: usage.rejected_draft_tokens,
        }
    }
}

impl From<&PyUsage> for Usage {
    fn from(usage: &PyUsage) -> Self {
        Self {
            prompt_tokens: usage.prompt_tokens,
            cached_tokens: usage.cached_tokens,
            completion_tokens: usage.completion_tokens,
            accepted_draft_tokens: usage.accepted_draft_tokens,
            rejected_draft_tokens: usage.rejected_draft_tokens,
        }
    }
}

impl PyUsage {
    fn keywords<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        dict.set_item("prompt_tokens", self.prompt_tokens)?;
        dict.set_item("cached_tokens", self.cached_tokens)?;
        dict.set_item("completion_tokens", self.completion_tokens)?;
        dict.set_item("accepted_draft_tokens", self.accepted_draft_tokens)?;
        dict.set_item("rejected_draft_tokens", self.rejected_draft_tokens)?;
        Ok(dict)
    }
}

#[pymethods]
impl PyUsage {
    /// Made by the engine; the constructor is for tests and unpickling.
    #[new]
    #[pyo3(signature = (*, prompt_tokens: "SupportsIndex"=0, cached_tokens: "SupportsIndex"=0,
                        completion_tokens: "SupportsIndex"=0, accepted_draft_tokens: "SupportsIndex"=0,
                        rejected_draft_tokens: "SupportsIndex"=0))]
    fn new(
        #[pyo3(from_py_with = integer)] prompt_tokens: i64,
        #[pyo3(from_py_with = integer)] cached_tokens: i64,
        #[pyo3(from_py_with = integer)] completion_tokens: i64,
        #[pyo3(from_py_with = integer)] accepted_draft_tokens: i64,
        #[pyo3(from_py_with = integer)] rejected_draft_tokens: i64,
    ) -> PyResult<Self> {
        Ok(Self {
            prompt_tokens: count("prompt_tokens", prompt_tokens)?,
            cached_tokens: count("cached_tokens", cached_tokens)?,
            completion_tokens: count("completion_tokens", completion_tokens)?,
            accepted_draft_tokens: count("accepted_draft_tokens", accepted_draft_tokens)?,
            rejected_draft_tokens: count("rejected_draft_tokens", rejected_draft_tokens)?,
        })
    }

    /// All counts by name.
    fn to_dict<'py>(&self, py: Python<'py>) -> PyResult<NamedInts<'py>> {
        self.keywords(py).map(NamedInts)
    }

    #[pyo3(signature = () -> "tuple[tuple[()], dict[str, object]]")]
    fn __getnewargs_ex__<'py>(&self, py: Python<'py>) -> PyResult<((), Bound<'py, PyDict>)> {
        Ok(((), self.keywords(py)?))
    }

    fn __repr__(&self) -> String {
        let Self { prompt_tokens, cached_tokens, completion_tokens, accepted_draft_tokens, rejected_draft_tokens } =
            self;
        let drafts = match accepted_draft_tokens + rejected_draft_tokens {
            0 => String::new(),
            _ => format!(
                ", accepted_draft_tokens={accepted_draft_tokens}, rejected_draft_tokens={rejected_draft_tokens}"
            ),
        };
        format!(
            "Usage(prompt_tokens={prompt_tokens}, cached_tokens={cached_tokens}, \
             completion_tokens={completion_tokens}{drafts})"
        )
    }
}

/// What is reported of the tokens of a completion or chunk; `None` where it was not asked for.
#[derive(Default)]
struct Arrays {
    logprobs: Option<FloatArray>,
    top_logprobs: Option<TopTokens>,
    probs: Option<FloatArray>,
    top_probs: Option<TopTokens>,
    logits: Option<FloatArray>,
}

impl Arrays {
    fn new(
        py: Python<'_>,
        logprobs: Vec<TokenLogprobs>,
        probs: Vec<TokenProbs>,
        logits: Vec<f32>,
        tokens: usize,
    ) -> PyResult<Self> {
        let mut arrays = Self::default();
        if !logprobs.is_empty() {
            let values = logprobs.iter().map(|token| token.chosen).collect();
            arrays.logprobs = Some(FloatArray::new(py, Floats { values, columns: None })?);
            arrays.top_logprobs = Some(logprobs.into_iter().map(|token| token.top).collect());
        }
        if !probs.is_empty() {
            let values = probs.iter().map(|token| token.chosen).collect();
            arrays.probs = Some(FloatArray::new(py, Floats { values, columns: None })?);
            arrays.top_probs = Some(probs.into_iter().map(|token| token.top).collect());
        }
        if !logits.is_empty() {
            let columns = Some(logits.len() / tokens.max(1));
            arrays.logits = Some(FloatArray::new(py, Floats { values: logits, columns })?);
        }
        Ok(arrays)
    }

    fn from_arguments(
        (logprobs, top_logprobs): (Option<FloatArrayArg<'_>>, Option<TopTokens>),
        (probs, top_probs): (Option<FloatArrayArg<'_>>, Option<TopTokens>),
        logits: Option<FloatArrayArg<'_>>,
    ) -> Self {
        let array = |array: Option<FloatArrayArg<'_>>| array.map(|array| array.0.into());
        Self { logprobs: array(logprobs), top_logprobs, probs: array(probs), top_probs, logits: array(logits) }
    }

    /// Adds the arrays to a dict, as arrays or, if `as_lists`, as lists of floats.
    fn set_items(&self, dict: &Bound<'_, PyDict>, as_lists: bool) -> PyResult<()> {
        let py = dict.py();
        let set = |name: &str, array: &Option<FloatArray>| match array {
            Some(array) if as_lists => dict.set_item(name, array.to_list(py)?),
            array => dict.set_item(name, array.as_ref().map(|array| array.clone_ref(py))),
        };
        set("logprobs", &self.logprobs)?;
        dict.set_item("top_logprobs", &self.top_logprobs)?;
        set("probs", &self.probs)?;
        dict.set_item("top_probs", &self.top_probs)?;
        set("logits", &self.logits)
    }
}

fn finish_reason(name: &str) -> PyResult<FinishReason> {
    [FinishReason::Stop, FinishReason::Length, FinishReason::Cancelled]
        .into_iter()
        .find(|reason| reason.as_str() == name)
        .ok_or_else(|| PyValueError::new_err(format!("finish_reason is stop, length or cancelled, not {name}")))
}

fn stop_match(stops: Option<StopsArg>) -> PyResult<Option<StopMatch>> {
    let mut stops = stops.unwrap_or_default();
    match (stops.0.pop(), stops.0.is_empty()) {
        (None, _) => Ok(None),
        (Some(Stop::Token(id)), true) => Ok(Some(StopMatch::Token(id))),
        (Some(Stop::Text(text)), true) => Ok(Some(StopMatch::Text(text))),
        (Some(_), false) => Err(PyTypeError::new_err("stop_match is one token id or string")),
    }
}

fn quoted(text: Option<&str>) -> String {
    text.map_or_else(|| "None".to_owned(), |text| format!("'{text}'"))
}

/// A finished request.
#[pyclass(frozen, name = "Completion", module = "exlora._exlora")]
pub(crate) struct PyCompletion {
    /// Without logprobs, probs and logits, which are in `arrays`.
    completion: Completion,
    arrays: Arrays,
}

impl PyCompletion {
    pub(crate) fn new(py: Python<'_>, mut completion: Completion) -> PyResult<Self> {
        let (logprobs, probs) = (std::mem::take(&mut completion.logprobs), std::mem::take(&mut completion.probs));
        let arrays =
            Arrays::new(py, logprobs, probs, std::mem::take(&mut completion.logits), completion.token_ids.len())?;
        Ok(Self { completion, arrays })
    }

    /// All fields by keyword.
    fn keywords<'py>(&self, py: Python<'py>, as_lists: bool) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        dict.set_item("text", self.text())?;
        dict.set_item("token_ids", self.token_ids())?;
        dict.set_item("finish_reason", self.finish_reason())?;
        dict.set_item("stop_match", self.stop_match())?;
        dict.set_item("suppressed_text", self.suppressed_text())?;
        dict.set_item("suppressed_token_ids", self.suppressed_token_ids())?;
        let usage = self.usage();
        if as_lists {
            dict.set_item("usage", usage.keywords(py)?)?;
        } else {
            dict.set_item("usage", usage)?;
        }
        dict.set_item("seed", self.completion.finish.seed)?;
        dict.set_item("sample", self.completion.sample)?;
        dict.set_item("adapter", self.adapter(py)?)?;
        self.arrays.set_items(&dict, as_lists)?;
        Ok(dict)
    }
}

#[pymethods]
impl PyCompletion {
    /// Made by the engine; the constructor is for tests and unpickling.
    #[new]
    #[pyo3(signature = (*, text="", token_ids=TokenIds(Vec::new()), finish_reason="stop", stop_match=None, usage=None,
                        seed: "SupportsIndex | None"=None, sample: "SupportsIndex"=0, adapter=None, logprobs=None,
                        top_logprobs: "list[list[tuple[int, float]]] | None"=None, probs=None,
                        top_probs: "list[list[tuple[int, float]]] | None"=None, logits=None, suppressed_text="",
                        suppressed_token_ids=TokenIds(Vec::new())))]
    #[allow(clippy::too_many_arguments)]
    fn py_new(
        text: &str,
        token_ids: TokenIds,
        finish_reason: &str,
        stop_match: Option<StopsArg>,
        usage: Option<&Bound<'_, PyUsage>>,
        #[pyo3(from_py_with = optional_seed)] seed: Option<i128>,
        #[pyo3(from_py_with = integer)] sample: i64,
        adapter: Option<MixtureArg>,
        logprobs: Option<FloatArrayArg<'_>>,
        #[pyo3(from_py_with = in_range)] top_logprobs: Option<TopTokens>,
        probs: Option<FloatArrayArg<'_>>,
        #[pyo3(from_py_with = in_range)] top_probs: Option<TopTokens>,
        logits: Option<FloatArrayArg<'_>>,
        suppressed_text: &str,
        suppressed_token_ids: TokenIds,
    ) -> PyResult<Self> {
        let finish = Finish {
            reason: self::finish_reason(finish_reason)?,
            matched: self::stop_match(stop_match)?,
            usage: usage.map(|usage| usage.get().into()).unwrap_or_default(),
            seed: seed.map_or(0, seed_bits),
        };
        let name = |(adapter, weight): (AdapterRef, f32)| (adapter.label(), weight);
        let completion = Completion {
            text: text.to_owned(),
            token_ids: token_ids.0,
            suppressed_text: suppressed_text.to_owned(),
            suppressed_token_ids: suppressed_token_ids.0,
            finish,
            sample: count("sample", sample)?,
            adapter: adapter.unwrap_or_default().0.into_iter().map(name).collect(),
            logprobs: Vec::new(),
            probs: Vec::new(),
            logits: Vec::new(),
        };
        Ok(Self { completion, arrays: Arrays::from_arguments((logprobs, top_logprobs), (probs, top_probs), logits) })
    }

    /// The new text, without the prompt and the stop.
    #[getter]
    fn text(&self) -> &str {
        &self.completion.text
    }

    /// The new tokens, including a stop token.
    #[getter]
    fn token_ids(&self) -> Vec<u32> {
        self.completion.token_ids.clone()
    }

    /// `stop`, `length` or `cancelled`.
    #[getter]
    fn finish_reason(&self) -> &'static str {
        self.completion.finish.reason.as_str()
    }

    /// The token id or string that ended the text, if one did.
    #[getter]
    fn stop_match(&self) -> Option<StopOut> {
        self.completion.finish.matched.as_ref().map(StopOut::from)
    }

    /// Text that was given up because it contained a banned string, joined; no part of `text`.
    #[getter]
    fn suppressed_text(&self) -> &str {
        &self.completion.suppressed_text
    }

    /// The tokens of that text; no part of `token_ids`.
    #[getter]
    fn suppressed_token_ids(&self) -> Vec<u32> {
        self.completion.suppressed_token_ids.clone()
    }

    /// Token counts.
    #[getter]
    fn usage(&self) -> PyUsage {
        self.completion.finish.usage.into()
    }

    /// Seed of its random numbers: the one it was given, or the one drawn for it. The same seed gives the same text.
    #[getter]
    fn seed(&self) -> u64 {
        self.completion.finish.seed
    }

    /// Which of the request's `n` samples it is, from 0.
    #[getter]
    fn sample(&self) -> usize {
        self.completion.sample
    }

    /// The mixture: `None` for the base, a name for one adapter of weight 1, else a dict of name to weight (a list of pairs
    /// if a name appears twice).
    #[getter]
    fn adapter<'py>(&self, py: Python<'py>) -> PyResult<Option<NamedMixture<'py>>> {
        NamedMixture::new(py, &self.completion.adapter)
    }

    /// Log-probability of each chosen id, float32 [tokens]; `None` unless asked for.
    #[getter]
    fn logprobs(&self, py: Python<'_>) -> Option<FloatArray> {
        self.arrays.logprobs.as_ref().map(|array| array.clone_ref(py))
    }

    /// For each token, the most likely (id, log-probability), best first; `None` unless asked for.
    #[getter]
    fn top_logprobs(&self) -> Option<TopTokens> {
        self.arrays.top_logprobs.clone()
    }

    /// Probability of each chosen id after penalties and filters, float32 [tokens]; `None` unless asked for.
    #[getter]
    fn probs(&self, py: Python<'_>) -> Option<FloatArray> {
        self.arrays.probs.as_ref().map(|array| array.clone_ref(py))
    }

    /// For each token, the most likely (id, probability) after penalties and filters, best first; `None` unless asked for.
    #[getter]
    fn top_probs(&self) -> Option<TopTokens> {
        self.arrays.top_probs.clone()
    }

    /// The logits each token was chosen from, float32 [tokens, vocab]; `None` unless asked for.
    #[getter]
    fn logits(&self, py: Python<'_>) -> Option<FloatArray> {
        self.arrays.logits.as_ref().map(|array| array.clone_ref(py))
    }

    /// All fields by name, as plain values that JSON can represent.
    fn to_dict<'py>(&self, py: Python<'py>) -> PyResult<NamedValues<'py>> {
        self.keywords(py, true).map(NamedValues)
    }

    #[pyo3(signature = () -> "tuple[tuple[()], dict[str, object]]")]
    fn __getnewargs_ex__<'py>(&self, py: Python<'py>) -> PyResult<((), Bound<'py, PyDict>)> {
        Ok(((), self.keywords(py, false)?))
    }

    fn __eq__(&self, py: Python<'_>, other: &Self) -> PyResult<bool> {
        self.keywords(py, true)?.eq(other.keywords(py, true)?)
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

/// The result of a request on its way to Python: its completion, or the exception that it ended with.
#[derive(IntoPyObject)]
pub(crate) enum ResultOut<'py> {
    Completion(Bound<'py, PyCompletion>),
    Exception(Exception<'py>),
}

impl<'py> ResultOut<'py> {
    pub(crate) fn new(py: Python<'py>, result: Result<Completion, Error>) -> PyResult<Self> {
        match result {
            Ok(completion) => Bound::new(py, PyCompletion::new(py, completion)?).map(Self::Completion),
            Err(error) => Exception::new(py, &error).map(Self::Exception),
        }
    }
}

/// A piece of a running request: usually one token and the text it completed.
#[pyclass(frozen, name = "Chunk", module = "exlora._exlora")]
pub(crate) struct PyChunk {
    /// Without logprobs, probs and logits, which are in `arrays`.
    chunk: Chunk,
    arrays: Arrays,
}

impl PyChunk {
    pub(crate) fn new(py: Python<'_>, mut chunk: Chunk) -> PyResult<Self> {
        let (logprobs, probs) = (std::mem::take(&mut chunk.logprobs), std::mem::take(&mut chunk.probs));
        let arrays = Arrays::new(py, logprobs, probs, std::mem::take(&mut chunk.logits), chunk.token_ids.len())?;
        Ok(Self { chunk, arrays })
    }

    /// All fields by keyword.
    fn keywords<'py>(&self, py: Python<'py>, as_lists: bool) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        dict.set_item("text", self.text())?;
        dict.set_item("token_ids", self.token_ids())?;
        dict.set_item("finish_reason", self.finish_reason())?;
        dict.set_item("stop_match", self.stop_match())?;
        match self.usage() {
            Some(usage) if as_lists => dict.set_item("usage", usage.keywords(py)?)?,
            usage => dict.set_item("usage", usage)?,
        }
        dict.set_item("seed", self.seed())?;
        self.arrays.set_items(&dict, as_lists)?;
        dict.set_item("suppressed_text", self.suppressed_text())?;
        dict.set_item("suppressed_token_ids", self.suppressed_token_ids())?;
        Ok(dict)
    }
}

#[pymethods]
impl PyChunk {
    /// Made by the engine; the constructor is for tests and unpickling.
    #[new]
    #[pyo3(signature = (*, text="", token_ids=TokenIds(Vec::new()), finish_reason=None, stop_match=None, usage=None,
                        seed: "SupportsIndex | None"=None, logprobs=None,
                        top_logprobs: "list[list[tuple[int, float]]] | None"=None, probs=None,
                        top_probs: "list[list[tuple[int, float]]] | None"=None, logits=None, suppressed_text="",
                        suppressed_token_ids=TokenIds(Vec::new())))]
    #[allow(clippy::too_many_arguments)]
    fn py_new(
        text: &str,
        token_ids: TokenIds,
        finish_reason: Option<&str>,
        stop_match: Option<StopsArg>,
        usage: Option<&Bound<'_, PyUsage>>,
        #[pyo3(from_py_with = optional_seed)] seed: Option<i128>,
        logprobs: Option<FloatArrayArg<'_>>,
        #[pyo3(from_py_with = in_range)] top_logprobs: Option<TopTokens>,
        probs: Option<FloatArrayArg<'_>>,
        #[pyo3(from_py_with = in_range)] top_probs: Option<TopTokens>,
        logits: Option<FloatArrayArg<'_>>,
        suppressed_text: &str,
        suppressed_token_ids: TokenIds,
    ) -> PyResult<Self> {
        let matched = self::stop_match(stop_match)?;
        let usage = usage.map(|usage| usage.get().into()).unwrap_or_default();
        let seed = seed.map_or(0, seed_bits);
        let finish = |name| Ok::<_, PyErr>(Finish { reason: self::finish_reason(name)?, matched, usage, seed });
        let finish = finish_reason.map(finish).transpose()?;
        let chunk = Chunk {
            text: text.to_owned(),
            token_ids: token_ids.0,
            suppressed_text: suppressed_text.to_owned(),
            suppressed_token_ids: suppressed_token_ids.0,
            finish,
            ..Chunk::default()
        };
        Ok(Self { chunk, arrays: Arrays::from_arguments((logprobs, top_logprobs), (probs, top_probs), logits) })
    }

    /// New text. The texts of all chunks joined are the text of the completion.
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

    /// On the last chunk, the token id or string that ended the text, if one did.
    #[getter]
    fn stop_match(&self) -> Option<StopOut> {
        self.chunk.finish.as_ref()?.matched.as_ref().map(StopOut::from)
    }

    /// Token counts, on the last chunk.
    #[getter]
    fn usage(&self) -> Option<PyUsage> {
        self.chunk.finish.as_ref().map(|finish| finish.usage.into())
    }

    /// Seed of the request's random numbers, on the last chunk.
    #[getter]
    fn seed(&self) -> Option<u64> {
        self.chunk.finish.as_ref().map(|finish| finish.seed)
    }

    /// Log-probability of each chosen id, float32 [tokens]; `None` unless asked for.
    #[getter]
    fn logprobs(&self, py: Python<'_>) -> Option<FloatArray> {
        self.arrays.logprobs.as_ref().map(|array| array.clone_ref(py))
    }

    /// For each token, the most likely (id, log-probability), best first; `None` unless asked for.
    #[getter]
    fn top_logprobs(&self) -> Option<TopTokens> {
        self.arrays.top_logprobs.clone()
    }

    /// Probability of each chosen id after penalties and filters, float32 [tokens]; `None` unless asked for.
    #[getter]
    fn probs(&self, py: Python<'_>) -> Option<FloatArray> {
        self.arrays.probs.as_ref().map(|array| array.clone_ref(py))
    }

    /// For each token, the most likely (id, probability) after penalties and filters, best first; `None` unless asked for.
    #[getter]
    fn top_probs(&self) -> Option<TopTokens> {
        self.arrays.top_probs.clone()
    }

    /// The logits each token was chosen from, float32 [tokens, vocab]; `None` unless asked for.
    #[getter]
    fn logits(&self, py: Python<'_>) -> Option<FloatArray> {
        self.arrays.logits.as_ref().map(|array| array.clone_ref(py))
    }

    /// Text that was given up because it contained a banned string; it is not part of `text`.
    #[getter]
    fn suppressed_text(&self) -> &str {
        &self.chunk.suppressed_text
    }

    /// The tokens of that text.
    #[getter]
    fn suppressed_token_ids(&self) -> Vec<u32> {
        self.chunk.suppressed_token_ids.clone()
    }

    /// All fields by name, as plain values that JSON can represent.
    fn to_dict<'py>(&self, py: Python<'py>) -> PyResult<NamedValues<'py>> {
        self.keywords(py, true).map(NamedValues)
    }

    #[pyo3(signature = () -> "tuple[tuple[()], dict[str, object]]")]
    fn __getnewargs_ex__<'py>(&self, py: Python<'py>) -> PyResult<((), Bound<'py, PyDict>)> {
        Ok(((), self.keywords(py, false)?))
    }

    fn __eq__(&self, py: Python<'_>, other: &Self) -> PyResult<bool> {
        self.keywords(py, true)?.eq(other.keywords(py, true)?)
    }

    fn __repr__(&self) -> String {
        let Chunk { text, token_ids, finish, .. } = &self.chunk;
        let reason = finish.as_ref().map(|finish| finish.reason.as_str());
        format!("Chunk(text={text:?}, token_ids={token_ids:?}, finish_reason={})", quoted(reason))
    }
}

/// A resident adapter.
#[pyclass(frozen, get_all, eq, hash, name = "AdapterInfo", module = "exlora._exlora")]
#[derive(PartialEq, Eq, Hash)]
pub(crate) struct PyAdapterInfo {
    /// Name under which requests find it.
    name: String,
    /// Folder it was read from.
    path: String,
    /// Number of this adapter version; higher for each adapter loaded later.
    generation: u64,
    /// SHA-256 of config and weights.
    content_hash: String,
    /// Largest rank at a site.
    rank: usize,
    /// Number of sites where it acts.
    sites: usize,
    /// Bytes it occupies.
    bytes: usize,
    /// Leases that requests held on it at the time of the call.
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

impl PyAdapterInfo {
    fn keywords<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        dict.set_item("name", &self.name)?;
        dict.set_item("path", &self.path)?;
        dict.set_item("generation", self.generation)?;
        dict.set_item("content_hash", &self.content_hash)?;
        dict.set_item("rank", self.rank)?;
        dict.set_item("sites", self.sites)?;
        dict.set_item("bytes", self.bytes)?;
        dict.set_item("leases", self.leases)?;
        Ok(dict)
    }
}

#[pymethods]
impl PyAdapterInfo {
    /// Made by the engine; the constructor is for tests and unpickling.
    #[new]
    #[pyo3(signature = (*, name, path, generation: "SupportsIndex", content_hash, rank: "SupportsIndex",
                        sites: "SupportsIndex", bytes: "SupportsIndex", leases: "SupportsIndex"=0))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        name: String,
        path: String,
        #[pyo3(from_py_with = in_range)] generation: u64,
        content_hash: String,
        #[pyo3(from_py_with = in_range)] rank: usize,
        #[pyo3(from_py_with = in_range)] sites: usize,
        #[pyo3(from_py_with = in_range)] bytes: usize,
        #[pyo3(from_py_with = in_range)] leases: usize,
    ) -> Self {
        Self { name, path, generation, content_hash, rank, sites, bytes, leases }
    }

    /// All fields by name.
    fn to_dict<'py>(&self, py: Python<'py>) -> PyResult<NamedValues<'py>> {
        self.keywords(py).map(NamedValues)
    }

    #[pyo3(signature = () -> "tuple[tuple[()], dict[str, object]]")]
    fn __getnewargs_ex__<'py>(&self, py: Python<'py>) -> PyResult<((), Bound<'py, PyDict>)> {
        Ok(((), self.keywords(py)?))
    }

    fn __repr__(&self) -> String {
        let Self { name, generation, rank, sites, bytes, leases, .. } = self;
        format!(
            "AdapterInfo({name:?}, generation={generation}, rank={rank}, sites={sites}, bytes={bytes}, leases={leases})"
        )
    }
}
