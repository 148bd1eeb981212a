//! The native part of the classes that have exllamav2's names: the model of an `ExLlamaV2`, and `ExLlamaV2Lora`.

use std::path::PathBuf;
use std::sync::Arc;

use exlora::adapter::mixture::Mixture;
use exlora::adapter::plan::AdapterSummary;
use exlora::adapter::pool::AdapterLease;
use exlora::engine::{AdapterRef, AdapterTokenizer};
use exlora::error::{Error, ErrorCode};
use exlora::model::Model;
use parking_lot::Mutex;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple, PyType};

use crate::errors::{Result, py_err};
use crate::gil::detached;
use crate::model::PyModel;

/// Base class of `ExLlamaV2`: its config and, while it is loaded, its model.
#[pyclass(frozen, subclass, name = "ExLlamaV2Base", module = "exlora._exlora")]
pub(crate) struct PyExLlamaV2Base {
    config: Py<PyAny>,
    model: Mutex<Option<Arc<Model>>>,
}

impl PyExLlamaV2Base {
    fn model(&self) -> exlora::Result<Arc<Model>> {
        self.model
            .lock()
            .clone()
            .ok_or_else(|| Error::new(ErrorCode::ModelNotLoaded, "the model is not loaded, or was unloaded"))
    }
}

#[pymethods]
impl PyExLlamaV2Base {
    /// A model that is not loaded. Further arguments are those of the derived class.
    #[new]
    #[pyo3(signature = (config, *args: "object", **kwargs: "object"))]
    fn new(config: Py<PyAny>, args: &Bound<'_, PyTuple>, kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        let _ = (args, kwargs);
        Self { config, model: Mutex::new(None) }
    }

    /// The config it was made with.
    #[getter]
    fn config(&self, py: Python<'_>) -> Py<PyAny> {
        self.config.clone_ref(py)
    }

    /// Sets the loaded model; `None` unloads it.
    fn set_native_model(&self, py: Python<'_>, model: Option<&Bound<'_, PyModel>>) {
        let model = model.map(|model| model.get().model());
        // The last reference frees the weights.
        py.detach(|| drop(std::mem::replace(&mut *self.model.lock(), model)));
    }

    /// The loaded model, which caches, adapters and generators use.
    fn native_model(&self) -> Result<PyModel> {
        Ok(PyModel::new(self.model()?))
    }

    /// Whether it is loaded.
    #[getter]
    fn loaded(&self) -> bool {
        self.model.lock().is_some()
    }
}

/// A LoRA adapter of a loaded model, for `set_loras`, jobs and `forward`.
#[pyclass(frozen, module = "exlora._exlora")]
pub(crate) struct ExLlamaV2Lora {
    /// `None` after `unload()`.
    lease: Mutex<Option<AdapterLease>>,
    summary: AdapterSummary,
    /// The user's multiplier on top of the adapter's own scaling.
    weight: f64,
    model: Py<PyExLlamaV2Base>,
}

impl ExLlamaV2Lora {
    /// The adapter and its weight, for a mixture.
    pub(crate) fn leased(&self) -> PyResult<(AdapterRef, f32)> {
        match &*self.lease.lock() {
            Some(lease) => Ok((AdapterRef::Lease(lease.clone()), self.weight as f32)),
            None => {
                let error = Error::new(ErrorCode::AdapterNotFound, "the adapter was unloaded");
                Err(py_err(error.with_path(&self.summary.path).with_hint("load it again; the base model is None")))
            }
        }
    }

    fn load(model: &Bound<'_, PyExLlamaV2Base>, directory: PathBuf, weight: f64) -> Result<Self> {
        if !weight.is_finite() {
            return Err(Error::new(ErrorCode::AdapterWeightInvalid, "lora_scaling is not finite")
                .with_found(weight)
                .into());
        }
        let native = model.get().model()?;
        let lease = detached(model.py(), |python| {
            // Its jobs know the base's tokenizer, and share it if this one is the same.
            let tokenizer = || AdapterTokenizer::attachment(&directory, None);
            native.load_anonymous_adapter_attaching(&directory, &mut || python.check_signals(), tokenizer)
        })?;
        Mixture::new(vec![(lease.clone(), weight as f32)], native.sites())?;
        let model = model.clone().unbind();
        Ok(Self { summary: lease.summary().clone(), lease: Mutex::new(Some(lease)), weight, model })
    }
}

#[pymethods]
impl ExLlamaV2Lora {
    /// Loads an adapter from its two files, which must be in one folder under PEFT's names. See also `from_directory`.
    #[new]
    #[pyo3(signature = (model, lora_config_path, lora_path, lora_scaling=1.0))]
    fn new(
        model: &Bound<'_, PyExLlamaV2Base>,
        lora_config_path: PathBuf,
        lora_path: PathBuf,
        lora_scaling: f64,
    ) -> Result<Self> {
        let is_named = |path: &PathBuf, name: &str| path.file_name().is_some_and(|file| file == name);
        let directory = lora_path.parent().filter(|&parent| {
            lora_config_path.parent() == Some(parent)
                && is_named(&lora_config_path, "adapter_config.json")
                && is_named(&lora_path, "adapter_model.safetensors")
        });
        match directory {
            Some(directory) => Self::load(model, directory.to_path_buf(), lora_scaling),
            None => Err(Error::new(ErrorCode::SettingUnsupported, "an adapter is read from one folder")
                .with_path(&lora_path)
                .with_expected("adapter_config.json and adapter_model.safetensors side by side")
                .with_hint("use ExLlamaV2Lora.from_directory")
                .into()),
        }
    }

    /// Loads the adapter in a folder; `lora_scaling` multiplies the scaling that its config asks for.
    #[classmethod]
    #[pyo3(signature = (model, directory, lora_scaling=1.0))]
    fn from_directory(
        _cls: &Bound<'_, PyType>,
        model: &Bound<'_, PyExLlamaV2Base>,
        directory: PathBuf,
        lora_scaling: f64,
    ) -> Result<Self> {
        Self::load(model, directory, lora_scaling)
    }

    /// Unloads the adapter. Jobs that use it keep it to their end; its memory is freed with the last of them.
    fn unload(&self, py: Python<'_>) {
        py.detach(|| drop(self.lease.lock().take()));
    }

    /// Whether it can be used.
    #[getter]
    fn is_loaded(&self) -> bool {
        self.lease.lock().is_some()
    }

    /// `r` of adapter_config.json.
    #[getter]
    fn lora_r(&self) -> usize {
        self.summary.rank
    }

    /// `lora_alpha` of adapter_config.json, times the square root of r if it asks for rank-stabilized scaling.
    #[getter]
    fn lora_alpha(&self) -> f64 {
        let root = if self.summary.use_rslora { (self.summary.rank as f64).sqrt() } else { 1.0 };
        self.summary.alpha * root
    }

    /// The effective multiplier, `weight * lora_alpha / lora_r`. Patterns in the config may change it for single modules.
    #[getter]
    fn lora_scaling(&self) -> f64 {
        self.weight * self.lora_alpha() / self.summary.rank as f64
    }

    /// The multiplier given as `lora_scaling` when it was loaded.
    #[getter]
    fn weight(&self) -> f64 {
        self.weight
    }

    /// Names of the modules it targets, as in adapter_config.json.
    #[getter]
    fn target_modules(&self) -> Vec<String> {
        self.summary.target_modules.clone()
    }

    /// Path of the config.
    #[getter]
    fn lora_config_path(&self) -> String {
        self.summary.path.join("adapter_config.json").to_string_lossy().into_owned()
    }

    /// Path of the weights.
    #[getter]
    fn lora_path(&self) -> String {
        self.summary.path.join("adapter_model.safetensors").to_string_lossy().into_owned()
    }

    /// SHA-256 of config and weights.
    #[getter]
    fn content_hash(&self) -> &str {
        &self.summary.content_hash
    }

    /// The model it was loaded on.
    #[getter]
    fn model(&self, py: Python<'_>) -> Py<PyExLlamaV2Base> {
        self.model.clone_ref(py)
    }

    /// The config of that model.
    #[getter]
    fn config(&self, py: Python<'_>) -> Py<PyAny> {
        self.model.get().config.clone_ref(py)
    }

    /// Always `False`: a bias that cannot be applied is an error when the adapter is loaded.
    #[getter]
    fn bias_ignored(&self) -> bool {
        false
    }

    fn __repr__(&self) -> String {
        let AdapterSummary { path, rank, sites, .. } = &self.summary;
        format!("ExLlamaV2Lora({:?}, r={rank}, sites={sites}, weight={})", path.display().to_string(), self.weight)
    }
}
