//! The engine as a Python object. `exlora/engine.py` gives it the face users see.

use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::convert::{Floats, Mixture, NamedInts, PromptArg, count};
use super::detach::{Listener, detached};
use super::job::PyJob;
use super::model::PyModel;
use super::request::PyRequest;
use super::results::{PyAdapterInfo, PyCompletion};
use super::tokenizer::PyTokenizer;
use crate::backend::KvDType;
use crate::engine::{Engine, EngineOptions};
use crate::error::{Error, ErrorCode};

/// A model, a KV cache and a scheduler.
#[pyclass(frozen, name = "Engine", module = "exlora._exlora")]
pub(super) struct PyEngine {
    engine: Engine,
}

/// The element type of a KV cache by its name.
pub(super) fn kv_dtype(name: &str) -> PyResult<KvDType> {
    match name {
        "f16" => Ok(KvDType::F16),
        "f32" => Ok(KvDType::F32),
        other => Err(Error::new(ErrorCode::RequestInvalid, "the cache has no such element type")
            .with_expected("f16 or f32")
            .with_found(other)
            .into()),
    }
}

/// Options that both constructors share.
fn options(
    kv_dtype_name: &str,
    kv_tokens: Option<i64>,
    max_batch_size: i64,
    prefill_chunk: i64,
    prefix_cache: bool,
) -> PyResult<EngineOptions> {
    Ok(EngineOptions {
        kv_dtype: kv_dtype(kv_dtype_name)?,
        kv_tokens: kv_tokens.map(|tokens| count("kv_tokens", tokens)).transpose()?,
        max_rows: count("max_batch_size", max_batch_size)?,
        prefill_chunk: count("prefill_chunk", prefill_chunk)?,
        prefix_cache,
        ..EngineOptions::default()
    })
}

#[pymethods]
impl PyEngine {
    /// Loads a model folder and its tokenizer. `progress` is `True` for a bar on stderr, or a callable (done, total).
    #[new]
    #[pyo3(signature = (model, *, device="auto", threads=None, kv_dtype="f16", kv_tokens=None, max_batch_size=32,
                        prefill_chunk=512, prefix_cache=true, progress=None))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        py: Python<'_>,
        model: PathBuf,
        device: &str,
        threads: Option<usize>,
        kv_dtype: &str,
        kv_tokens: Option<i64>,
        max_batch_size: i64,
        prefill_chunk: i64,
        prefix_cache: bool,
        progress: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let options = EngineOptions {
            device: device.parse()?,
            threads,
            ..options(kv_dtype, kv_tokens, max_batch_size, prefill_chunk, prefix_cache)?
        };
        let listener = Listener::new(progress)?;
        let engine = detached(py, |link| {
            Engine::load_with_progress(model, options, &mut |progress| listener.report(link, progress))
        });
        listener.finish();
        Ok(Self { engine: engine? })
    }

    /// An engine over a model that is loaded already, with a cache of its own.
    #[staticmethod]
    #[pyo3(signature = (model, tokenizer=None, *, kv_dtype="f16", kv_tokens=None, max_batch_size=32, prefill_chunk=512,
                        prefix_cache=true))]
    #[allow(clippy::too_many_arguments)]
    fn over(
        py: Python<'_>,
        model: &Bound<'_, PyModel>,
        tokenizer: Option<&Bound<'_, PyTokenizer>>,
        kv_dtype: &str,
        kv_tokens: Option<i64>,
        max_batch_size: i64,
        prefill_chunk: i64,
        prefix_cache: bool,
    ) -> PyResult<Self> {
        let options = options(kv_dtype, kv_tokens, max_batch_size, prefill_chunk, prefix_cache)?;
        let model = model.get().model();
        let tokenizer = tokenizer.map(|tokenizer| tokenizer.get().tokenizer());
        Ok(Self { engine: detached(py, |_| Engine::from_model(model, tokenizer, options))? })
    }

    /// Runs requests to their end in one batch; results stand in the order of the requests.
    #[pyo3(signature = (requests: "list[Request]"))]
    fn generate(&self, py: Python<'_>, requests: Vec<Bound<'_, PyRequest>>) -> PyResult<Vec<PyCompletion>> {
        let requests: Vec<_> = requests.iter().map(|request| request.get().request.clone()).collect();
        let completions = detached(py, |link| self.engine.generate_with(&requests, &mut || link.check_signals()))?;
        completions.into_iter().map(|completion| PyCompletion::new(py, completion)).collect()
    }

    /// Checks a request and queues it; whoever asks for chunks computes.
    fn submit(&self, py: Python<'_>, request: &Bound<'_, PyRequest>) -> PyResult<PyJob> {
        let request = request.get().request.clone();
        Ok(PyJob::new(detached(py, |_| self.engine.submit(request))?))
    }

    /// Computes one step for all requests; `False` if there was nothing to do.
    fn step(&self, py: Python<'_>) -> PyResult<bool> {
        detached(py, |_| self.engine.step())
    }

    /// Logits of every position of a prompt, float32 [tokens, vocab].
    #[pyo3(signature = (prompt, adapter=Mixture::default()))]
    fn logits(&self, py: Python<'_>, prompt: PromptArg, adapter: Mixture) -> PyResult<Floats> {
        let logits = detached(py, |link| self.engine.logits_with(&prompt.0, &adapter.0, &mut || link.check_signals()))?;
        Ok(Floats { values: logits.values, columns: Some(logits.vocab) })
    }

    /// Loads an adapter under a name, or replaces the one that has it.
    fn load_adapter(&self, py: Python<'_>, name: &str, path: PathBuf) -> PyResult<PyAdapterInfo> {
        Ok(detached(py, |_| self.engine.load_adapter(name, path))?.into())
    }

    /// Forgets an adapter's name.
    fn unload_adapter(&self, py: Python<'_>, name: &str) -> PyResult<()> {
        detached(py, |_| self.engine.unload_adapter(name))
    }

    /// The named adapters, by name.
    fn adapters(&self, py: Python<'_>) -> Vec<PyAdapterInfo> {
        py.detach(|| self.engine.adapters()).into_iter().map(PyAdapterInfo::from).collect()
    }

    /// Counters and resident bytes, now.
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
        Ok(NamedInts(dict))
    }

    /// Forgets every cached prefix.
    fn clear_prefix_cache(&self, py: Python<'_>) {
        py.detach(|| self.engine.clear_prefix_cache());
    }

    /// The tokenizer of the model's folder.
    #[getter]
    fn tokenizer(&self) -> PyResult<PyTokenizer> {
        Ok(PyTokenizer::new(self.engine.model().path(), self.engine.tokenizer()?.clone()))
    }

    /// The model.
    #[getter]
    fn model(&self) -> PyModel {
        PyModel::new(self.engine.model().clone())
    }

    /// Positions a sequence can reach: the model's, or the cache's if that is smaller.
    #[getter]
    fn max_tokens(&self) -> usize {
        self.engine.max_tokens()
    }
}
