//! Sampling parameters as a Python object: each keyword, its default and its conversion are written here.

use std::collections::BTreeMap;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::args::{LogitBiasArg, TokenIds};
use super::numbers::{count, float, integer, optional_integer, optional_seed, seed_bits};
use super::returns::NamedValues;
use crate::engine::{Sampler, SamplingParams, random_seed};

/// The most likely ids with their log-probabilities, best first.
type TopLogprobs = Vec<(u32, f32)>;

/// How tokens are chosen.
#[pyclass(frozen, get_all, eq, name = "SamplingParams", module = "exlora._exlora")]
#[derive(Clone, PartialEq)]
pub(super) struct PySamplingParams {
    /// 0 is greedy decoding.
    temperature: f64,
    /// Keep the k most likely tokens; 0 keeps all.
    top_k: usize,
    /// Keep the smallest set of tokens with this probability; 1 keeps all.
    top_p: f64,
    /// Keep tokens of at least this share of the best token's probability; 0 keeps all.
    min_p: f64,
    /// Makes tokens of prompt and output less likely; 1 is off.
    repetition_penalty: f64,
    /// Number of most recent tokens that the repetition penalty looks at; `None` is all.
    repetition_range: Option<usize>,
    /// Subtracted from a token's logit for each occurrence in the output.
    frequency_penalty: f64,
    /// Subtracted from a token's logit if it is in the output.
    presence_penalty: f64,
    /// Token id -> value added to its logit; minus infinity forbids it.
    logit_bias: BTreeMap<u32, f64>,
    /// Seed of the random numbers; `None` draws one for each request.
    seed: Option<i128>,
}

impl PySamplingParams {
    pub(super) fn params(&self) -> SamplingParams {
        SamplingParams {
            temperature: self.temperature as f32,
            top_k: self.top_k,
            top_p: self.top_p as f32,
            min_p: self.min_p as f32,
            repetition_penalty: self.repetition_penalty as f32,
            repetition_range: self.repetition_range,
            frequency_penalty: self.frequency_penalty as f32,
            presence_penalty: self.presence_penalty as f32,
            logit_bias: self.logit_bias.iter().map(|(&id, &bias)| (id, bias as f32)).collect(),
            seed: self.seed.map(seed_bits),
        }
    }

    /// The parameters of `base` (or the defaults) with some keywords changed.
    pub(super) fn with_keywords(
        py: Python<'_>,
        base: Option<&Bound<'_, Self>>,
        keywords: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Self> {
        let all = match base {
            Some(base) => base.get().keywords(py)?,
            None => PyDict::new(py),
        };
        if let Some(keywords) = keywords {
            all.update(keywords.as_mapping())?;
        }
        let params = py.get_type::<Self>().call((), Some(&all))?.cast_into::<Self>()?;
        Ok(params.get().clone())
    }

    /// All parameters by keyword.
    pub(super) fn keywords<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        dict.set_item("temperature", self.temperature)?;
        dict.set_item("top_k", self.top_k)?;
        dict.set_item("top_p", self.top_p)?;
        dict.set_item("min_p", self.min_p)?;
        dict.set_item("repetition_penalty", self.repetition_penalty)?;
        dict.set_item("repetition_range", self.repetition_range)?;
        dict.set_item("frequency_penalty", self.frequency_penalty)?;
        dict.set_item("presence_penalty", self.presence_penalty)?;
        dict.set_item("logit_bias", &self.logit_bias)?;
        dict.set_item("seed", self.seed)?;
        Ok(dict)
    }

    /// The parameters that differ from their defaults, as a call.
    pub(super) fn repr(&self, py: Python<'_>) -> PyResult<String> {
        let defaults = Self::with_keywords(py, None, None)?.keywords(py)?;
        let mut changed = Vec::new();
        for (name, value) in self.keywords(py)? {
            if !defaults.get_item(&name)?.is_some_and(|default| value.eq(default).unwrap_or(false)) {
                changed.push(format!("{name}={}", value.repr()?));
            }
        }
        Ok(format!("SamplingParams({})", changed.join(", ")))
    }
}

#[pymethods]
impl PySamplingParams {
    /// Greedy decoding without penalties, changed by the keywords given.
    #[new]
    #[pyo3(signature = (*, temperature: "SupportsFloat | SupportsIndex"=0.0, top_k: "SupportsIndex"=0,
                        top_p: "SupportsFloat | SupportsIndex"=1.0, min_p: "SupportsFloat | SupportsIndex"=0.0,
                        repetition_penalty: "SupportsFloat | SupportsIndex"=1.0,
                        repetition_range: "SupportsIndex | None"=None,
                        frequency_penalty: "SupportsFloat | SupportsIndex"=0.0,
                        presence_penalty: "SupportsFloat | SupportsIndex"=0.0, logit_bias=None,
                        seed: "SupportsIndex | None"=None))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        #[pyo3(from_py_with = float)] temperature: f64,
        #[pyo3(from_py_with = integer)] top_k: i64,
        #[pyo3(from_py_with = float)] top_p: f64,
        #[pyo3(from_py_with = float)] min_p: f64,
        #[pyo3(from_py_with = float)] repetition_penalty: f64,
        #[pyo3(from_py_with = optional_integer)] repetition_range: Option<i64>,
        #[pyo3(from_py_with = float)] frequency_penalty: f64,
        #[pyo3(from_py_with = float)] presence_penalty: f64,
        logit_bias: Option<LogitBiasArg>,
        #[pyo3(from_py_with = optional_seed)] seed: Option<i128>,
    ) -> PyResult<Self> {
        Ok(Self {
            temperature,
            top_k: count("top_k", top_k)?,
            top_p,
            min_p,
            repetition_penalty,
            repetition_range: repetition_range.map(|range| count("repetition_range", range)).transpose()?,
            frequency_penalty,
            presence_penalty,
            logit_bias: logit_bias.unwrap_or_default().0,
            seed,
        })
    }

    /// Chooses the token that follows `tokens` from `logits` [vocab].
    ///
    /// Returns the id, its log-probability, and the `top` best (id, log-probability), both before penalties and filters.
    /// Frequency and presence penalties count the tokens from `prompt_len` on.
    #[pyo3(signature = (logits, tokens, prompt_len: "SupportsIndex"=0, top: "SupportsIndex"=1))]
    fn sample(
        &self,
        logits: Vec<f32>,
        tokens: TokenIds,
        #[pyo3(from_py_with = integer)] prompt_len: i64,
        #[pyo3(from_py_with = integer)] top: i64,
    ) -> PyResult<(u32, f32, TopLogprobs)> {
        let mut params = self.params();
        params.check(logits.len())?;
        if params.seed.is_none() {
            params.seed = Some(random_seed()?);
        }
        let (prompt_len, top) = (count("prompt_len", prompt_len)?, count("top", top)?);
        let sampled = Sampler::default().sample(&logits, &params, &tokens.0, prompt_len, None, top)?;
        Ok((sampled.id, sampled.logprob, sampled.top_logprobs))
    }

    /// All parameters by keyword.
    fn to_dict<'py>(&self, py: Python<'py>) -> PyResult<NamedValues<'py>> {
        self.keywords(py).map(NamedValues)
    }

    #[pyo3(signature = () -> "tuple[tuple[()], dict[str, object]]")]
    fn __getnewargs_ex__<'py>(&self, py: Python<'py>) -> PyResult<((), Bound<'py, PyDict>)> {
        Ok(((), self.keywords(py)?))
    }

    fn __copy__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    /// Parameters are immutable.
    fn __deepcopy__<'py>(slf: Bound<'py, Self>, memo: &Bound<'py, PyAny>) -> Bound<'py, Self> {
        let _ = memo;
        slf
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        self.repr(py)
    }
}
