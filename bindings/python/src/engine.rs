//! The engine as a Python object. `exlora/engine.py` has the class that users see.

use std::collections::BTreeMap;
use std::path::PathBuf;

use exlora::engine::{DraftModelSource, Engine, EngineOptions, GenerationConfigSource, Refused, Request, with_index};
use exlora::model::Progress;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::args::{MixtureArg, PromptArg};
use crate::device::parse_device;
use crate::errors::{Result, py_err};
use crate::gil::{PythonCalls, detached};
use crate::job::PyJob;
use crate::model::PyModel;
use crate::numbers::{count, integer, optional_integer};
use crate::progress::ProgressReporter;
use crate::request::PyRequest;
use crate::results::{PyAdapterInfo, ResultOut};
use crate::returns::{Floats, NamedInts, NamedValues};
use crate::tokenizer::PyTokenizer;

/// A model, a KV cache and a scheduler.
#[pyclass(frozen, name = "Engine", module = "exlora._exlora")]
pub(crate) struct PyEngine {
    engine: Engine,
}

impl PyEngine {
    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }
}

/// Options that both constructors share.
#[allow(clippy::too_many_arguments)]
fn options(
    kv_dtype: &str,
    max_seq_len: Option<i64>,
    kv_tokens: Option<i64>,
    max_batch_size: i64,
    prefill_chunk: i64,
    prefix_cache: bool,
    generation_config: Option<PathBuf>,
    draft_model: Option<DraftModelSource>,
    num_draft_tokens: i64,
) -> Result<EngineOptions> {
    Ok(EngineOptions {
        kv_dtype: kv_dtype.parse()?,
        max_seq_len: max_seq_len.map(|tokens| count("max_seq_len", tokens)).transpose()?,
        kv_tokens: kv_tokens.map(|tokens| count("kv_tokens", tokens)).transpose()?,
        max_rows: count("max_batch_size", max_batch_size)?,
        prefill_chunk: count("prefill_chunk", prefill_chunk)?,
        prefix_cache,
        generation_config: generation_config.map(GenerationConfigSource::from),
        draft_model,
        num_draft_tokens: count("num_draft_tokens", num_draft_tokens)?,
        ..EngineOptions::default()
    })
}

/// The exception of a refused request, with its index.
fn error_of(py: Python<'_>, refused: Refused) -> PyErr {
    let error = py_err(refused.error);
    // The attribute exists, so this does not fail.
    let _ = error.value(py).setattr("request_index", refused.index);
    error
}

#[pymethods]
impl PyEngine {
    /// Loads a model folder and its tokenizer. `progress` is `True` for a bar on stderr, or a callable (done, total).
    #[new]
    #[pyo3(signature = (model, *, device="auto", threads: "SupportsIndex | None"=None, head="stored",
                        activations="f32", kv_dtype="f16", max_seq_len: "SupportsIndex | None"=None, kv_tokens: "SupportsIndex | None"=None,
                        max_batch_size: "SupportsIndex"=32, prefill_chunk: "SupportsIndex"=512, prefix_cache=true,
                        generation_config=None, draft_model=None, num_draft_tokens: "SupportsIndex"=4, progress=None))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        py: Python<'_>,
        model: PathBuf,
        device: &str,
        #[pyo3(from_py_with = optional_integer)] threads: Option<i64>,
        head: &str,
        activations: &str,
        kv_dtype: &str,
        #[pyo3(from_py_with = optional_integer)] max_seq_len: Option<i64>,
        #[pyo3(from_py_with = optional_integer)] kv_tokens: Option<i64>,
        #[pyo3(from_py_with = integer)] max_batch_size: i64,
        #[pyo3(from_py_with = integer)] prefill_chunk: i64,
        prefix_cache: bool,
        generation_config: Option<PathBuf>,
        draft_model: Option<PathBuf>,
        #[pyo3(from_py_with = integer)] num_draft_tokens: i64,
        progress: Option<&Bound<'_, PyAny>>,
    ) -> Result<Self> {
        let shared = options(
            kv_dtype,
            max_seq_len,
            kv_tokens,
            max_batch_size,
            prefill_chunk,
            prefix_cache,
            generation_config,
            draft_model.map(DraftModelSource::from),
            num_draft_tokens,
        )?;
        let options = EngineOptions {
            device: parse_device(py, device)?,
            threads: threads.map(|threads| count("threads", threads)).transpose()?,
            head: head.parse()?,
            activations: activations.parse()?,
            ..shared
        };
        let reporter = ProgressReporter::new(progress)?;
        let engine = detached(py, |python| {
            Engine::load_with_progress(model, options, &mut |progress| reporter.report(python, progress))
        });
        reporter.finish();
        Ok(Self { engine: engine? })
    }

    /// An engine with its own KV cache over a loaded model; `draft_model` is loaded too.
    #[staticmethod]
    #[pyo3(signature = (model, tokenizer=None, *, kv_dtype="f16", max_seq_len: "SupportsIndex | None"=None,
                        kv_tokens: "SupportsIndex | None"=None, max_batch_size: "SupportsIndex"=32,
                        prefill_chunk: "SupportsIndex"=512, prefix_cache=true, generation_config=None,
                        draft_model=None, num_draft_tokens: "SupportsIndex"=4))]
    #[allow(clippy::too_many_arguments)]
    fn from_model(
        py: Python<'_>,
        model: &Bound<'_, PyModel>,
        tokenizer: Option<&Bound<'_, PyTokenizer>>,
        kv_dtype: &str,
        #[pyo3(from_py_with = optional_integer)] max_seq_len: Option<i64>,
        #[pyo3(from_py_with = optional_integer)] kv_tokens: Option<i64>,
        #[pyo3(from_py_with = integer)] max_batch_size: i64,
        #[pyo3(from_py_with = integer)] prefill_chunk: i64,
        prefix_cache: bool,
        generation_config: Option<PathBuf>,
        draft_model: Option<&Bound<'_, PyModel>>,
        #[pyo3(from_py_with = integer)] num_draft_tokens: i64,
    ) -> Result<Self> {
        let options = options(
            kv_dtype,
            max_seq_len,
            kv_tokens,
            max_batch_size,
            prefill_chunk,
            prefix_cache,
            generation_config,
            draft_model.map(|model| DraftModelSource::Loaded(model.get().model())),
            num_draft_tokens,
        )?;
        let model = model.get().model();
        let tokenizer = tokenizer.map(|tokenizer| tokenizer.get().tokenizer());
        Ok(Self { engine: detached(py, |_| Engine::from_model(model, tokenizer, options))? })
    }

    /// Runs `n[i]` samples of each request, one by default, to their end in one batch. Returns the results of the samples of
    /// each request: completions, and exceptions.
    ///
    /// If `run_none_if_refused`, a request that is refused raises its exception, with its `request_index`, before any is run.
    /// `progress` is `True` for a bar on stderr, or a callable (requests done, requests in total).
    #[pyo3(signature = (requests: "list[Request]", n: "list[int] | None"=None, *, run_none_if_refused=true,
                        progress=None))]
    fn generate<'py>(
        &self,
        py: Python<'py>,
        requests: Vec<Bound<'py, PyRequest>>,
        #[pyo3(from_py_with = samples_of_each)] n: Option<Vec<usize>>,
        run_none_if_refused: bool,
        progress: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Vec<Vec<ResultOut<'py>>>> {
        let samples = |i: usize| n.as_ref().and_then(|n| n.get(i)).map_or(1, |n| *n);
        let requests: Vec<Request> =
            requests.iter().enumerate().map(|(i, request)| request.get().samples(samples(i))).collect();
        let reporter = ProgressReporter::new(progress)?;
        let outcome = detached(py, |python| {
            let mut reported = 0;
            let mut between_steps = |done: usize| {
                if done == reported {
                    return python.check_signals();
                }
                reported = done;
                reporter.report(python, Progress { done, total: requests.len() })
            };
            if !run_none_if_refused {
                return Ok(Ok(self.engine.generate_each_with(&requests, &mut between_steps)?));
            }
            match self.engine.check_all(&requests) {
                Ok(checked) => {
                    self.engine.run_to_end(checked.into_iter().map(Ok), &requests, &mut between_steps).map(Ok)
                }
                Err(refused) => Ok(Err(refused)),
            }
        });
        reporter.finish();
        let results = outcome?.map_err(|refused| error_of(py, refused))?;
        let of_request = |(index, results): (usize, Vec<_>)| {
            let named = results
                .into_iter()
                .map(|result: exlora::Result<_>| result.map_err(|e| with_index(e, index, &requests)));
            named.map(|result| ResultOut::new(py, result)).collect()
        };
        results.into_iter().enumerate().map(of_request).collect()
    }

    /// Checks requests without running them. One that would be refused raises its exception, with its `request_index`.
    #[pyo3(signature = (requests: "list[Request]"))]
    fn check(&self, py: Python<'_>, requests: Vec<Bound<'_, PyRequest>>) -> PyResult<()> {
        let requests: Vec<Request> = requests.iter().map(|request| request.get().request()).collect();
        detached(py, |_| Ok(self.engine.check_all(&requests).map(drop)))?.map_err(|refused| error_of(py, refused))
    }

    /// Checks a request and queues it. Steps are computed by the threads that ask for chunks.
    fn submit(&self, py: Python<'_>, request: &Bound<'_, PyRequest>) -> PyResult<PyJob> {
        let request = request.get().request();
        Ok(PyJob::new(detached(py, |_| self.engine.submit(request))?))
    }

    /// Computes one step for all requests; `False` if there was nothing to do.
    fn step(&self, py: Python<'_>) -> PyResult<bool> {
        detached(py, |_| self.engine.step())
    }

    /// Logits of every position of a prompt, float32 [tokens, vocab].
    #[pyo3(signature = (prompt, adapter=None))]
    fn logits(&self, py: Python<'_>, prompt: PromptArg, adapter: Option<MixtureArg>) -> PyResult<Floats> {
        let logits = detached(py, |python| {
            self.engine.logits_with(&prompt.0, &adapter.unwrap_or_default().0, &mut || python.check_signals())
        })?;
        Ok(Floats { values: logits.values, columns: Some(logits.vocab) })
    }

    /// Loads an adapter under a name, or replaces the adapter of that name.
    fn load_adapter(&self, py: Python<'_>, name: &str, path: PathBuf) -> PyResult<PyAdapterInfo> {
        let load = |python: &mut PythonCalls| self.engine.load_adapter_with(name, path, &mut || python.check_signals());
        Ok(detached(py, load)?.into())
    }

    /// Removes an adapter's name.
    fn unload_adapter(&self, py: Python<'_>, name: &str) -> PyResult<()> {
        detached(py, |_| self.engine.unload_adapter(name))
    }

    /// The named adapters, sorted by name.
    fn adapters(&self, py: Python<'_>) -> Vec<PyAdapterInfo> {
        py.detach(|| self.engine.adapters()).into_iter().map(PyAdapterInfo::from).collect()
    }

    /// Loads an adapter of the draft model under a name, or replaces the adapter of that name.
    fn load_draft_adapter(&self, py: Python<'_>, name: &str, path: PathBuf) -> PyResult<PyAdapterInfo> {
        let load =
            |python: &mut PythonCalls| self.engine.load_draft_adapter_with(name, path, &mut || python.check_signals());
        Ok(detached(py, load)?.into())
    }

    /// Removes the name of an adapter of the draft model.
    fn unload_draft_adapter(&self, py: Python<'_>, name: &str) -> PyResult<()> {
        detached(py, |_| self.engine.unload_draft_adapter(name))
    }

    /// The named adapters of the draft model, sorted by name.
    fn draft_adapters(&self, py: Python<'_>) -> Vec<PyAdapterInfo> {
        let list = || self.engine.draft_model().map_or_else(Vec::new, |model| model.adapters().list());
        py.detach(list).into_iter().map(PyAdapterInfo::from).collect()
    }

    /// Counters and resident bytes. Never waits for a step.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<NamedInts<'py>> {
        let stats = py.detach(|| self.engine.stats());
        let dict = PyDict::new(py);
        dict.set_item("weights_bytes", stats.weights_bytes)?;
        dict.set_item("adapters_bytes", stats.adapters_bytes)?;
        dict.set_item("adapters_resident", stats.adapters_resident)?;
        dict.set_item("leases", stats.leases)?;
        dict.set_item("kv_bytes", stats.kv_bytes)?;
        dict.set_item("kv_pages_total", stats.kv_pages_total)?;
        dict.set_item("kv_pages_free", stats.kv_pages_free)?;
        dict.set_item("prefix_pages", stats.prefix_pages)?;
        dict.set_item("rows_running", stats.rows_running)?;
        dict.set_item("rows_waiting", stats.rows_waiting)?;
        dict.set_item("tokens_prompt", stats.tokens_prompt)?;
        dict.set_item("tokens_generated", stats.tokens_generated)?;
        dict.set_item("steps", stats.steps)?;
        dict.set_item("accepted_draft_tokens", stats.accepted_draft_tokens)?;
        dict.set_item("rejected_draft_tokens", stats.rejected_draft_tokens)?;
        if let Some(device) = stats.device {
            dict.set_item("device_buffers_bytes", device.buffers_bytes)?;
            dict.set_item("device_free_bytes", device.free_bytes)?;
            dict.set_item("device_total_bytes", device.total_bytes)?;
        }
        Ok(NamedInts(dict))
    }

    /// Forgets all cached prefixes.
    fn clear_prefix_cache(&self, py: Python<'_>) {
        py.detach(|| self.engine.clear_prefix_cache());
    }

    /// The keywords that the generation config sets, with their values.
    #[getter]
    fn request_defaults<'py>(&self, py: Python<'py>) -> PyResult<NamedValues<'py>> {
        let config = self.engine.generation_config();
        let dict = PyDict::new(py);
        let set_float =
            |name: &str, value: Option<f32>| value.map_or(Ok(()), |value| dict.set_item(name, f64::from(value)));
        set_float("temperature", config.temperature)?;
        set_float("top_p", config.top_p)?;
        set_float("min_p", config.min_p)?;
        set_float("typical", config.typical_p)?;
        set_float("repetition_penalty", config.repetition_penalty)?;
        let set_count = |name: &str, value: Option<usize>| value.map_or(Ok(()), |value| dict.set_item(name, value));
        set_count("top_k", config.top_k)?;
        set_count("max_new_tokens", config.new_tokens())?;
        set_count("min_new_tokens", config.min_new_tokens)?;
        set_count("n", config.n)?;
        if !config.suppressed_tokens.is_empty() {
            let bias = config.suppressed_tokens.iter().map(|&token| (token, f64::NEG_INFINITY));
            dict.set_item("logit_bias", bias.collect::<BTreeMap<u32, f64>>())?;
        }
        if !config.stop_strings.is_empty() {
            dict.set_item("stop", &config.stop_strings)?;
        }
        Ok(NamedValues(dict))
    }

    /// The tokenizer of the model's folder.
    #[getter]
    fn tokenizer(&self) -> Result<PyTokenizer> {
        Ok(PyTokenizer::new(self.engine.tokenizer()?.clone()))
    }

    /// The tokenizer of requests with these adapters: the first adapter's that has one, else the model's.
    fn tokenizer_for(&self, py: Python<'_>, adapter: MixtureArg) -> Result<PyTokenizer> {
        Ok(PyTokenizer::new(py.detach(|| self.engine.tokenizer_for(&adapter.0))?))
    }

    /// The model.
    #[getter]
    fn model(&self) -> PyModel {
        PyModel::new(self.engine.model().clone())
    }

    /// Positions that a sequence can reach: those of the model, or of the cache if that is smaller.
    #[getter]
    fn max_tokens(&self) -> usize {
        self.engine.max_tokens()
    }
}

/// The numbers of samples, `n`, of requests.
fn samples_of_each(value: &Bound<'_, PyAny>) -> PyResult<Option<Vec<usize>>> {
    if value.is_none() {
        return Ok(None);
    }
    value.try_iter()?.map(|n| count("n", integer(&n?)?)).collect::<PyResult<_>>().map(Some)
}
