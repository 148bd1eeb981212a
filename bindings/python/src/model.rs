//! A loaded model and a model folder's config as Python objects.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use exlora::model::config::{DecoderConfig, RopeOverrides};
use exlora::model::{Model, ModelOptions};
use exlora::quant::QuantConfig;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::device::parse_device;
use crate::errors::Result;
use crate::gil::detached;
use crate::numbers::{count, optional_integer};
use crate::progress::ProgressReporter;
use crate::returns::NamedValues;

/// A model that several engines may share.
#[pyclass(frozen, name = "Model", module = "exlora._exlora")]
pub(crate) struct PyModel {
    model: Arc<Model>,
}

impl PyModel {
    pub(crate) fn new(model: Arc<Model>) -> Self {
        Self { model }
    }

    pub(crate) fn model(&self) -> Arc<Model> {
        Arc::clone(&self.model)
    }
}

#[pymethods]
impl PyModel {
    /// Loads a model folder. `rope_theta` and `rope_scale` replace the base of the rotary frequencies and what positions are
    /// divided by, `rope_alpha` scales the base (NTK). `progress` is `True` for a bar on stderr, or a callable (done, total).
    #[new]
    #[pyo3(signature = (path, *, device="auto", threads: "SupportsIndex | None"=None, head="stored",
                        activations="f32", max_seq_len: "SupportsIndex | None"=None, rope_theta=None, rope_scale=None,
                        rope_alpha=None, progress=None))]
    #[allow(clippy::too_many_arguments)]
    fn load(
        py: Python<'_>,
        path: PathBuf,
        device: &str,
        #[pyo3(from_py_with = optional_integer)] threads: Option<i64>,
        head: &str,
        activations: &str,
        #[pyo3(from_py_with = optional_integer)] max_seq_len: Option<i64>,
        rope_theta: Option<f64>,
        rope_scale: Option<f64>,
        rope_alpha: Option<f64>,
        progress: Option<&Bound<'_, PyAny>>,
    ) -> Result<Self> {
        let threads = threads.map(|threads| count("threads", threads)).transpose()?;
        let max_seq_len = max_seq_len.map(|tokens| count("max_seq_len", tokens)).transpose()?;
        let options = ModelOptions {
            device: parse_device(py, device)?,
            threads,
            head: head.parse()?,
            activations: activations.parse()?,
            max_seq_len,
            rope: RopeOverrides { theta: rope_theta, scale: rope_scale, alpha: rope_alpha },
            ..ModelOptions::default()
        };
        let reporter = ProgressReporter::new(progress)?;
        let model =
            detached(py, |python| Model::load(&path, &options, &mut |progress| reporter.report(python, progress)));
        reporter.finish();
        Ok(Self { model: model? })
    }

    /// The folder it was loaded from.
    #[getter]
    fn path(&self) -> &Path {
        self.model.path()
    }

    /// What computes: `cpu (avx512, 2 threads)`.
    #[getter]
    fn device(&self, py: Python<'_>) -> String {
        py.detach(|| self.model.describe_device())
    }

    /// Number of token ids.
    #[getter]
    fn vocab_size(&self) -> usize {
        self.model.config().vocab_size
    }

    /// Longest sequence that its config.json is made for, in positions.
    #[getter]
    fn max_positions(&self) -> usize {
        self.model.config().max_positions
    }

    /// Longest sequence that it computes, in positions.
    #[getter]
    fn max_seq_len(&self) -> usize {
        self.model.max_seq_len()
    }

    /// Bytes of its packed weights.
    #[getter]
    fn weights_bytes(&self, py: Python<'_>) -> usize {
        py.detach(|| self.model.memory().weights_bytes)
    }
}

/// What config.json and generation_config.json of a model folder say.
#[pyfunction]
pub(crate) fn read_model_config(py: Python<'_>, path: PathBuf) -> Result<NamedValues<'_>> {
    let (config, json) = DecoderConfig::read(&path)?;
    let is_quantized = QuantConfig::read(&path, &json)?.is_some();
    let rope = config.main_rope().cloned();
    let of_layers: Vec<_> = config.ropes.iter().map(|rope| rope.as_ref().map(|rope| rope.inv_freq.clone())).collect();
    let dict = PyDict::new(py);
    dict.set_item("architecture", config.architecture)?;
    dict.set_item("hidden_size", config.hidden_size)?;
    dict.set_item("intermediate_size", config.intermediate_size)?;
    dict.set_item("num_hidden_layers", config.layers)?;
    dict.set_item("num_attention_heads", config.heads)?;
    dict.set_item("num_key_value_heads", config.kv_heads)?;
    dict.set_item("head_dim", config.head_dim)?;
    dict.set_item("vocab_size", config.vocab_size)?;
    dict.set_item("max_seq_len", config.max_positions)?;
    dict.set_item("norm_eps", config.norms.eps)?;
    dict.set_item("is_quantized", is_quantized)?;
    dict.set_item("tie_word_embeddings", config.tie_word_embeddings)?;
    dict.set_item("qkv_bias", config.biases.qkv)?;
    dict.set_item("o_bias", config.biases.output)?;
    dict.set_item("mlp_bias", config.biases.mlp)?;
    dict.set_item("sliding_windows", config.windows)?;
    dict.set_item("rope_inv_freq", rope.as_ref().map(|rope| rope.inv_freq.clone()))?;
    dict.set_item("layer_rope_inv_freq", of_layers)?;
    dict.set_item("rope_attention_factor", rope.as_ref().map(|rope| rope.factor))?;
    dict.set_item("rotary_embedding_base", config.rope_theta)?;
    dict.set_item("scale_pos_emb", config.rope_scale)?;
    dict.set_item("eos_token_ids", config.eos_token_ids)?;
    dict.set_item("bos_token_id", config.bos_token_id)?;
    dict.set_item("pad_token_id", config.pad_token_id)?;
    Ok(NamedValues(dict))
}
