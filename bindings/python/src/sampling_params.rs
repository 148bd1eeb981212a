//! Sampling parameters as a Python object: each keyword, its default and its conversion are written here.

use std::collections::BTreeMap;

use exlora::engine::{Context, Sampler, SamplerState, SamplingParams, TopCounts, guide, random_seed};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::args::{LogitBiasArg, TokenIds};
use crate::errors::Result;
use crate::numbers::{count, float, integer, optional_float, optional_integer, optional_seed, seed_bits};
use crate::returns::{FloatArray, Floats, NamedValues};
use crate::tokenizer::PyTokenizer;

/// The most likely ids with their (log-)probabilities, best first.
type TopTokens = Vec<(u32, f32)>;

/// How tokens are chosen.
#[pyclass(frozen, get_all, eq, name = "SamplingParams", module = "exlora._exlora")]
#[derive(Clone, PartialEq)]
pub(crate) struct PySamplingParams {
    /// Weight of the log-probabilities after the prompt, where there is a negative prompt, whose have 1 less this; 1 is the
    /// prompt alone.
    cfg_scale: Option<f64>,
    /// 0 is greedy decoding.
    temperature: f64,
    /// Keep the k most likely tokens; 0 keeps all.
    top_k: usize,
    /// Keep the smallest set of tokens with this probability; 1 keeps all.
    top_p: f64,
    /// Keep tokens of at least this multiple of the best token's squared probability; 0 keeps all.
    top_a: f64,
    /// Keep tokens of at least this share of the best token's probability; 0 keeps all.
    min_p: f64,
    /// Tail-free sampling: keep tokens up to this share of the curvature of the sorted probabilities; 1 keeps all.
    tfs: f64,
    /// Locally typical sampling: keep the tokens nearest to the expected surprise, with this probability together; 1 keeps
    /// all.
    typical: f64,
    /// Whether Mirostat (2.0) limits the surprise of tokens.
    mirostat: bool,
    /// Mean surprise that Mirostat aims at, in bits.
    mirostat_tau: f64,
    /// How fast Mirostat's limit follows.
    mirostat_eta: f64,
    /// Mirostat's limit for the first token, in bits; `None` is twice `mirostat_tau`.
    mirostat_mu: Option<f64>,
    /// Makes weights fall with the square of the distance from the best logit, times this factor; 0 is off.
    smoothing_factor: f64,
    /// Dynamic temperature: what the filters left gets a temperature from this, if one token is certain, ...
    min_temp: f64,
    /// ... to this, if all are equally likely; off if not above `min_temp`.
    max_temp: f64,
    /// Power of the relative entropy by which dynamic temperature grows.
    temp_exponent: f64,
    /// Whether the temperature acts after the filters instead of before them.
    temperature_last: bool,
    /// XTC: probability that likely tokens are left out, except for the least likely of them; 0 is off.
    xtc_probability: f64,
    /// Probability from which on XTC takes a token for likely.
    xtc_threshold: f64,
    /// Token ids that XTC never leaves out; `None` is those with line breaks, and special tokens.
    xtc_ignore_tokens: Option<Vec<u32>>,
    /// Moves draws towards less likely tokens if above 0, towards more likely ones if below.
    skew: f64,
    /// Makes tokens of prompt and output less likely; 1 is off.
    repetition_penalty: f64,
    /// Number of most recent tokens that the repetition penalty looks at; `None` is all.
    repetition_range: Option<usize>,
    /// Number of tokens before these over which the penalty goes back to nothing.
    repetition_decay: usize,
    /// Subtracted from a token's logit for each occurrence in the output.
    frequency_penalty: f64,
    /// Subtracted from a token's logit if it is in the output.
    presence_penalty: f64,
    /// Whether frequency and presence penalty count the tokens that the repetition penalty looks at, and not the output's.
    penalize_prompt: bool,
    /// DRY: penalty on a token that would continue a repetition of `dry_allowed_length` tokens; 0 is off.
    dry_multiplier: f64,
    /// Factor on that penalty for each token that the repetition is longer.
    dry_base: f64,
    /// Length from which on a repetition is penalized.
    dry_allowed_length: usize,
    /// Length up to which repetitions are compared.
    dry_max_ngram: usize,
    /// Number of most recent tokens among which repetitions are looked for; 0 is all.
    dry_range: usize,
    /// Token ids that no repetition contains or ends with; `None` is those with punctuation, line breaks or tabs, and special
    /// tokens.
    dry_sequence_breakers: Option<Vec<u32>>,
    /// Token id -> value added to its logit; minus infinity forbids it.
    logit_bias: BTreeMap<u32, f64>,
    /// The only token ids that can be chosen; `None` is all.
    allowed_token_ids: Option<Vec<u32>>,
    /// Seed of the random numbers; `None` draws one for each request.
    seed: Option<i128>,
}

impl PySamplingParams {
    pub(crate) fn params(&self) -> SamplingParams {
        SamplingParams {
            cfg_scale: self.cfg_scale.map(|scale| scale as f32),
            temperature: self.temperature as f32,
            top_k: self.top_k,
            top_p: self.top_p as f32,
            top_a: self.top_a as f32,
            min_p: self.min_p as f32,
            tfs: self.tfs as f32,
            typical: self.typical as f32,
            mirostat: self.mirostat,
            mirostat_tau: self.mirostat_tau as f32,
            mirostat_eta: self.mirostat_eta as f32,
            mirostat_mu: self.mirostat_mu.map(|value| value as f32),
            smoothing_factor: self.smoothing_factor as f32,
            min_temp: self.min_temp as f32,
            max_temp: self.max_temp as f32,
            temp_exponent: self.temp_exponent as f32,
            temperature_last: self.temperature_last,
            xtc_probability: self.xtc_probability as f32,
            xtc_threshold: self.xtc_threshold as f32,
            xtc_ignore_tokens: self.xtc_ignore_tokens.clone(),
            skew: self.skew as f32,
            repetition_penalty: self.repetition_penalty as f32,
            repetition_range: self.repetition_range,
            repetition_decay: self.repetition_decay,
            frequency_penalty: self.frequency_penalty as f32,
            presence_penalty: self.presence_penalty as f32,
            penalize_prompt: self.penalize_prompt,
            dry_multiplier: self.dry_multiplier as f32,
            dry_base: self.dry_base as f32,
            dry_allowed_length: self.dry_allowed_length,
            dry_max_ngram: self.dry_max_ngram,
            dry_range: self.dry_range,
            dry_sequence_breakers: self.dry_sequence_breakers.clone(),
            logit_bias: self.logit_bias.iter().map(|(&id, &bias)| (id, bias as f32)).collect(),
            allowed_token_ids: self.allowed_token_ids.clone(),
            seed: self.seed.map(seed_bits),
        }
    }

    /// The parameters of `base` (or the defaults) with some keywords changed.
    pub(crate) fn with_keywords(
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
    pub(crate) fn keywords<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        dict.set_item("cfg_scale", self.cfg_scale)?;
        dict.set_item("temperature", self.temperature)?;
        dict.set_item("top_k", self.top_k)?;
        dict.set_item("top_p", self.top_p)?;
        dict.set_item("top_a", self.top_a)?;
        dict.set_item("min_p", self.min_p)?;
        dict.set_item("tfs", self.tfs)?;
        dict.set_item("typical", self.typical)?;
        dict.set_item("mirostat", self.mirostat)?;
        dict.set_item("mirostat_tau", self.mirostat_tau)?;
        dict.set_item("mirostat_eta", self.mirostat_eta)?;
        dict.set_item("mirostat_mu", self.mirostat_mu)?;
        dict.set_item("smoothing_factor", self.smoothing_factor)?;
        dict.set_item("min_temp", self.min_temp)?;
        dict.set_item("max_temp", self.max_temp)?;
        dict.set_item("temp_exponent", self.temp_exponent)?;
        dict.set_item("temperature_last", self.temperature_last)?;
        dict.set_item("xtc_probability", self.xtc_probability)?;
        dict.set_item("xtc_threshold", self.xtc_threshold)?;
        dict.set_item("xtc_ignore_tokens", &self.xtc_ignore_tokens)?;
        dict.set_item("skew", self.skew)?;
        dict.set_item("repetition_penalty", self.repetition_penalty)?;
        dict.set_item("repetition_range", self.repetition_range)?;
        dict.set_item("repetition_decay", self.repetition_decay)?;
        dict.set_item("frequency_penalty", self.frequency_penalty)?;
        dict.set_item("presence_penalty", self.presence_penalty)?;
        dict.set_item("penalize_prompt", self.penalize_prompt)?;
        dict.set_item("dry_multiplier", self.dry_multiplier)?;
        dict.set_item("dry_base", self.dry_base)?;
        dict.set_item("dry_allowed_length", self.dry_allowed_length)?;
        dict.set_item("dry_max_ngram", self.dry_max_ngram)?;
        dict.set_item("dry_range", self.dry_range)?;
        dict.set_item("dry_sequence_breakers", &self.dry_sequence_breakers)?;
        dict.set_item("logit_bias", &self.logit_bias)?;
        dict.set_item("allowed_token_ids", &self.allowed_token_ids)?;
        dict.set_item("seed", self.seed)?;
        Ok(dict)
    }

    /// The parameters that differ from their defaults, as a call.
    pub(crate) fn repr(&self, py: Python<'_>) -> PyResult<String> {
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
    #[pyo3(signature = (*, cfg_scale: "SupportsFloat | SupportsIndex | None"=None,
                        temperature: "SupportsFloat | SupportsIndex"=0.0, top_k: "SupportsIndex"=0,
                        top_p: "SupportsFloat | SupportsIndex"=1.0, top_a: "SupportsFloat | SupportsIndex"=0.0,
                        min_p: "SupportsFloat | SupportsIndex"=0.0, tfs: "SupportsFloat | SupportsIndex"=1.0,
                        typical: "SupportsFloat | SupportsIndex"=1.0, mirostat=false,
                        mirostat_tau: "SupportsFloat | SupportsIndex"=1.5,
                        mirostat_eta: "SupportsFloat | SupportsIndex"=0.1,
                        mirostat_mu: "SupportsFloat | SupportsIndex | None"=None,
                        smoothing_factor: "SupportsFloat | SupportsIndex"=0.0,
                        min_temp: "SupportsFloat | SupportsIndex"=0.0, max_temp: "SupportsFloat | SupportsIndex"=0.0,
                        temp_exponent: "SupportsFloat | SupportsIndex"=1.0, temperature_last=false,
                        xtc_probability: "SupportsFloat | SupportsIndex"=0.0,
                        xtc_threshold: "SupportsFloat | SupportsIndex"=0.1, xtc_ignore_tokens=None,
                        skew: "SupportsFloat | SupportsIndex"=0.0,
                        repetition_penalty: "SupportsFloat | SupportsIndex"=1.0,
                        repetition_range: "SupportsIndex | None"=None, repetition_decay: "SupportsIndex"=0,
                        frequency_penalty: "SupportsFloat | SupportsIndex"=0.0,
                        presence_penalty: "SupportsFloat | SupportsIndex"=0.0, penalize_prompt=false,
                        dry_multiplier: "SupportsFloat | SupportsIndex"=0.0,
                        dry_base: "SupportsFloat | SupportsIndex"=1.75, dry_allowed_length: "SupportsIndex"=2,
                        dry_max_ngram: "SupportsIndex"=20, dry_range: "SupportsIndex"=0, dry_sequence_breakers=None,
                        logit_bias=None, allowed_token_ids=None, seed: "SupportsIndex | None"=None))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        #[pyo3(from_py_with = optional_float)] cfg_scale: Option<f64>,
        #[pyo3(from_py_with = float)] temperature: f64,
        #[pyo3(from_py_with = integer)] top_k: i64,
        #[pyo3(from_py_with = float)] top_p: f64,
        #[pyo3(from_py_with = float)] top_a: f64,
        #[pyo3(from_py_with = float)] min_p: f64,
        #[pyo3(from_py_with = float)] tfs: f64,
        #[pyo3(from_py_with = float)] typical: f64,
        mirostat: bool,
        #[pyo3(from_py_with = float)] mirostat_tau: f64,
        #[pyo3(from_py_with = float)] mirostat_eta: f64,
        #[pyo3(from_py_with = optional_float)] mirostat_mu: Option<f64>,
        #[pyo3(from_py_with = float)] smoothing_factor: f64,
        #[pyo3(from_py_with = float)] min_temp: f64,
        #[pyo3(from_py_with = float)] max_temp: f64,
        #[pyo3(from_py_with = float)] temp_exponent: f64,
        temperature_last: bool,
        #[pyo3(from_py_with = float)] xtc_probability: f64,
        #[pyo3(from_py_with = float)] xtc_threshold: f64,
        xtc_ignore_tokens: Option<TokenIds>,
        #[pyo3(from_py_with = float)] skew: f64,
        #[pyo3(from_py_with = float)] repetition_penalty: f64,
        #[pyo3(from_py_with = optional_integer)] repetition_range: Option<i64>,
        #[pyo3(from_py_with = integer)] repetition_decay: i64,
        #[pyo3(from_py_with = float)] frequency_penalty: f64,
        #[pyo3(from_py_with = float)] presence_penalty: f64,
        penalize_prompt: bool,
        #[pyo3(from_py_with = float)] dry_multiplier: f64,
        #[pyo3(from_py_with = float)] dry_base: f64,
        #[pyo3(from_py_with = integer)] dry_allowed_length: i64,
        #[pyo3(from_py_with = integer)] dry_max_ngram: i64,
        #[pyo3(from_py_with = integer)] dry_range: i64,
        dry_sequence_breakers: Option<TokenIds>,
        logit_bias: Option<LogitBiasArg>,
        allowed_token_ids: Option<TokenIds>,
        #[pyo3(from_py_with = optional_seed)] seed: Option<i128>,
    ) -> PyResult<Self> {
        Ok(Self {
            cfg_scale,
            temperature,
            top_k: count("top_k", top_k)?,
            top_p,
            top_a,
            min_p,
            tfs,
            typical,
            mirostat,
            mirostat_tau,
            mirostat_eta,
            mirostat_mu,
            smoothing_factor,
            min_temp,
            max_temp,
            temp_exponent,
            temperature_last,
            xtc_probability,
            xtc_threshold,
            xtc_ignore_tokens: xtc_ignore_tokens.map(|ids| ids.0),
            skew,
            repetition_penalty,
            repetition_range: repetition_range.map(|value| count("repetition_range", value)).transpose()?,
            repetition_decay: count("repetition_decay", repetition_decay)?,
            frequency_penalty,
            presence_penalty,
            penalize_prompt,
            dry_multiplier,
            dry_base,
            dry_allowed_length: count("dry_allowed_length", dry_allowed_length)?,
            dry_max_ngram: count("dry_max_ngram", dry_max_ngram)?,
            dry_range: count("dry_range", dry_range)?,
            dry_sequence_breakers: dry_sequence_breakers.map(|ids| ids.0),
            logit_bias: logit_bias.unwrap_or_default().0,
            allowed_token_ids: allowed_token_ids.map(|ids| ids.0),
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
    ) -> Result<(u32, f32, TopTokens)> {
        let mut params = self.params();
        params.check(logits.len())?;
        if params.seed.is_none() {
            params.seed = Some(random_seed()?);
        }
        let (prompt_len, top) = (count("prompt_len", prompt_len)?, count("top", top)?);
        let context = Context { tokens: &tokens.0, prompt_len, ..Context::default() };
        let mut state = SamplerState::new(&params, logits.len(), None);
        let counts = TopCounts { logprobs: top, probs: 0 };
        let sampled = Sampler::default().sample(&logits, &params, context, &mut state, counts)?;
        Ok((sampled.id, sampled.logprob, sampled.top_logprobs))
    }

    /// The probabilities float32 [vocab] that the token after `tokens` is drawn from, given its `logits` [vocab].
    ///
    /// The tokenizer says which tokens break repetitions (DRY) and which XTC ignores, where these settings leave it open.
    #[pyo3(signature = (logits, tokens, prompt_len: "SupportsIndex"=0, tokenizer=None))]
    fn distribution(
        &self,
        py: Python<'_>,
        logits: Vec<f32>,
        tokens: TokenIds,
        #[pyo3(from_py_with = integer)] prompt_len: i64,
        tokenizer: Option<&Bound<'_, PyTokenizer>>,
    ) -> Result<FloatArray> {
        let params = self.params();
        params.check(logits.len())?;
        let context = Context { tokens: &tokens.0, prompt_len: count("prompt_len", prompt_len)?, ..Context::default() };
        let tokenizer = tokenizer.map(|tokenizer| tokenizer.get().tokenizer());
        let state = SamplerState::new(&params, logits.len(), tokenizer.as_deref());
        let values = Sampler::default().distribution(&logits, &params, context, &state)?;
        Ok(FloatArray::new(py, Floats { values, columns: None })?)
    }

    /// Chooses the token that follows `tokens` from `logits` [vocab] by a number in [0, 1) instead of the seed.
    ///
    /// Returns the id, its probability after penalties and filters, the `top` best (id, probability), and Mirostat's limit for
    /// the token that follows it, `None` without Mirostat. `mirostat_mu` is the limit for this token. With `cfg_scale`, the
    /// logits after the negative prompt are `negative_logits` [vocab].
    #[pyo3(signature = (logits, tokens, random, top: "SupportsIndex"=1, tokenizer=None, negative_logits=None))]
    fn draw(
        &self,
        mut logits: Vec<f32>,
        tokens: TokenIds,
        random: f64,
        #[pyo3(from_py_with = integer)] top: i64,
        tokenizer: Option<&Bound<'_, PyTokenizer>>,
        negative_logits: Option<Vec<f32>>,
    ) -> Result<(u32, f32, TopTokens, Option<f64>)> {
        let params = self.params();
        params.check(logits.len())?;
        if let (Some(scale), Some(negative)) = (params.cfg_scale.filter(|&scale| scale != 1.0), &negative_logits) {
            guide(&mut logits, negative, scale);
        }
        let context = Context { tokens: &tokens.0, random: Some(random), ..Context::default() };
        let tokenizer = tokenizer.map(|tokenizer| tokenizer.get().tokenizer());
        let mut state = SamplerState::new(&params, logits.len(), tokenizer.as_deref());
        let counts = TopCounts { logprobs: 0, probs: count("top", top)?.max(1) };
        let sampled = Sampler::default().sample(&logits, &params, context, &mut state, counts)?;
        Ok((sampled.id, sampled.prob, sampled.top_probs, state.mirostat_mu()))
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
