//! exllamav2's adapter object over a lease: it lives as long as the object, or until `unload()`.

use std::path::PathBuf;

use parking_lot::Mutex;
use pyo3::inspect::PyStaticExpr;
use pyo3::prelude::*;
use pyo3::type_hint_identifier;
use pyo3::types::PyType;

use super::detach::detached;
use super::model::PyModel;
use crate::adapter::mixture::Mixture;
use crate::adapter::plan::AdapterSummary;
use crate::adapter::pool::AdapterLease;
use crate::engine::request::AdapterRef;
use crate::error::{Error, ErrorCode};

/// The loaded `ExLlamaV2` an adapter is for.
struct ModelArg<'py>(Bound<'py, PyAny>);

impl<'py> FromPyObject<'_, 'py> for ModelArg<'py> {
    type Error = PyErr;

    const INPUT_TYPE: PyStaticExpr = type_hint_identifier!("exlora.model", "ExLlamaV2");

    fn extract(value: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        Ok(Self(value.to_owned()))
    }
}

/// A LoRA adapter of a loaded model, to be given to `set_loras`, to jobs, or to `forward`.
#[pyclass(frozen, module = "exlora._exlora")]
pub(super) struct ExLlamaV2Lora {
    lease: Mutex<Option<AdapterLease>>,
    summary: AdapterSummary,
    /// The user's multiplier on top of the adapter's own scaling.
    weight: f64,
    model: Py<PyAny>,
}

impl ExLlamaV2Lora {
    /// The adapter and the user's multiplier, for a mixture.
    pub(super) fn leased(&self) -> PyResult<(AdapterRef, f32)> {
        match &*self.lease.lock() {
            Some(lease) => Ok((AdapterRef::Lease(lease.clone()), self.weight as f32)),
            None => Err(Error::new(ErrorCode::AdapterNotFound, "the adapter was unloaded")
                .with_path(&self.summary.path)
                .with_hint("load it again; the base model is None")
                .into()),
        }
    }

    fn admit(py: Python<'_>, model: ModelArg<'_>, directory: PathBuf, weight: f64) -> PyResult<Self> {
        if !weight.is_finite() {
            return Err(Error::new(ErrorCode::AdapterWeightInvalid, "lora_scaling is not finite")
                .with_found(weight)
                .into());
        }
        let ModelArg(model) = model;
        let native = model.call_method0("native_model")?.cast_into::<PyModel>()?.get().model();
        let lease = detached(py, |_| native.load_anonymous_adapter(&directory))?;
        Mixture::new(vec![(lease.clone(), weight as f32)], native.sites())?;
        Ok(Self { summary: lease.summary().clone(), lease: Mutex::new(Some(lease)), weight, model: model.unbind() })
    }
}

#[pymethods]
impl ExLlamaV2Lora {
    /// Loads an adapter by its two files, which stand in one folder under PEFT's names. Mind `from_directory`.
    #[new]
    #[pyo3(signature = (model, lora_config_path, lora_path, lora_scaling=1.0))]
    fn new(
        py: Python<'_>,
        model: ModelArg<'_>,
        lora_config_path: PathBuf,
        lora_path: PathBuf,
        lora_scaling: f64,
    ) -> PyResult<Self> {
        let is_named = |path: &PathBuf, name: &str| path.file_name().is_some_and(|file| file == name);
        let directory = lora_path.parent().filter(|&parent| {
            lora_config_path.parent() == Some(parent)
                && is_named(&lora_config_path, "adapter_config.json")
                && is_named(&lora_path, "adapter_model.safetensors")
        });
        match directory {
            Some(directory) => Self::admit(py, model, directory.to_path_buf(), lora_scaling),
            None => Err(Error::new(ErrorCode::SettingUnsupported, "an adapter is read from one folder")
                .with_path(&lora_path)
                .with_expected("adapter_config.json and adapter_model.safetensors side by side")
                .with_hint("use ExLlamaV2Lora.from_directory")
                .into()),
        }
    }

    /// Loads the adapter of a folder; `lora_scaling` multiplies the scaling its config asks for.
    #[classmethod]
    #[pyo3(signature = (model, directory, lora_scaling=1.0))]
    fn from_directory(
        _cls: &Bound<'_, PyType>,
        py: Python<'_>,
        model: ModelArg<'_>,
        directory: PathBuf,
        lora_scaling: f64,
    ) -> PyResult<Self> {
        Self::admit(py, model, directory, lora_scaling)
    }

    /// Lets go of the adapter. Jobs that use it keep it to their end; its memory returns with the last of them.
    fn unload(&self, py: Python<'_>) {
        py.detach(|| drop(self.lease.lock().take()));
    }

    /// Whether it can still be used.
    #[getter]
    fn is_loaded(&self) -> bool {
        self.lease.lock().is_some()
    }

    /// `r` of adapter_config.json.
    #[getter]
    fn lora_r(&self) -> usize {
        self.summary.rank
    }

    /// `lora_alpha` of adapter_config.json, times the root of r where it asks for rank-stabilized scaling.
    #[getter]
    fn lora_alpha(&self) -> f64 {
        let root = if self.summary.use_rslora { (self.summary.rank as f64).sqrt() } else { 1.0 };
        self.summary.alpha * root
    }

    /// The effective multiplier, `weight * lora_alpha / lora_r`. Patterns of the config may differ from it site by site.
    #[getter]
    fn lora_scaling(&self) -> f64 {
        self.weight * self.lora_alpha() / self.summary.rank as f64
    }

    /// The multiplier given as `lora_scaling` when it was loaded.
    #[getter]
    fn weight(&self) -> f64 {
        self.weight
    }

    /// Names of the modules it targets, as adapter_config.json writes them.
    #[getter]
    fn target_modules(&self) -> Vec<String> {
        self.summary.target_modules.clone()
    }

    /// The config's file.
    #[getter]
    fn lora_config_path(&self) -> String {
        self.summary.path.join("adapter_config.json").to_string_lossy().into_owned()
    }

    /// The weights' file.
    #[getter]
    fn lora_path(&self) -> String {
        self.summary.path.join("adapter_model.safetensors").to_string_lossy().into_owned()
    }

    /// SHA-256 over config and weights.
    #[getter]
    fn content_hash(&self) -> &str {
        &self.summary.content_hash
    }

    /// The model it was loaded on.
    #[getter]
    fn model(&self, py: Python<'_>) -> Py<PyAny> {
        self.model.clone_ref(py)
    }

    /// That model's config.
    #[getter]
    fn config<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.model.bind(py).getattr("config")
    }

    /// Always `False`: a bias that cannot be served is refused when the adapter is loaded.
    #[getter]
    fn bias_ignored(&self) -> bool {
        false
    }

    fn __repr__(&self) -> String {
        let AdapterSummary { path, rank, sites, .. } = &self.summary;
        format!("ExLlamaV2Lora({:?}, r={rank}, sites={sites}, weight={})", path.display().to_string(), self.weight)
    }
}
