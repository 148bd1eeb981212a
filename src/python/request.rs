//! A request as a Python object: every keyword of generation, its default and its check in one place.

use pyo3::prelude::*;

use super::convert::{LogitBias, Mixture, PromptArg, Stops, TokenIds, count};
use crate::engine::request::Request;
use crate::engine::sampler::{Sampler, SamplingParams};

/// The most likely ids with their log-probabilities, best first.
type TopLogprobs = Vec<(u32, f32)>;

/// One prompt and how to continue it.
#[pyclass(frozen, name = "Request", module = "exlora._exlora")]
pub(super) struct PyRequest {
    pub request: Request,
}

#[pymethods]
impl PyRequest {
    /// A request; adapters are looked up when it is submitted.
    #[new]
    #[pyo3(signature = (prompt, adapter=Mixture::default(), *, max_new_tokens=128, min_new_tokens=0, temperature=0.0,
                        top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, repetition_range=None,
                        frequency_penalty=0.0, presence_penalty=0.0, logit_bias=LogitBias::default(), seed=0,
                        stop=Stops::default(), stop_at_eos=true, logprobs=0, return_logits=false,
                        skip_special_tokens=true, add_special_tokens=true))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        prompt: PromptArg,
        adapter: Mixture,
        max_new_tokens: i64,
        min_new_tokens: i64,
        temperature: f32,
        top_k: i64,
        top_p: f32,
        min_p: f32,
        repetition_penalty: f32,
        repetition_range: Option<i64>,
        frequency_penalty: f32,
        presence_penalty: f32,
        logit_bias: LogitBias,
        seed: i64,
        stop: Stops,
        stop_at_eos: bool,
        logprobs: i64,
        return_logits: bool,
        skip_special_tokens: bool,
        add_special_tokens: bool,
    ) -> PyResult<Self> {
        let sampling = SamplingParams {
            temperature,
            top_k: count("top_k", top_k)?,
            top_p,
            min_p,
            repetition_penalty,
            repetition_range: repetition_range.map(|range| count("repetition_range", range)).transpose()?,
            frequency_penalty,
            presence_penalty,
            logit_bias: logit_bias.0,
            seed: seed.cast_unsigned(),
        };
        let request = Request {
            adapters: adapter.0,
            max_new_tokens: count("max_new_tokens", max_new_tokens)?,
            min_new_tokens: count("min_new_tokens", min_new_tokens)?,
            sampling,
            stop: stop.0,
            stop_at_eos,
            logprobs: count("logprobs", logprobs)?,
            return_logits,
            skip_special_tokens,
            add_special_tokens,
            ..Request::new(prompt.0)
        };
        Ok(Self { request })
    }

    /// Chooses the token that follows `tokens` from `logits` [vocab], by this request's sampling.
    ///
    /// Returns the id, its log-probability, and the `top` best (id, log-probability), both before penalties and filters.
    /// Frequency and presence penalties count the tokens from `prompt_len` on.
    #[pyo3(signature = (logits, tokens, prompt_len=0, top=1))]
    fn sample(
        &self,
        logits: Vec<f32>,
        tokens: TokenIds,
        prompt_len: usize,
        top: usize,
    ) -> PyResult<(u32, f32, TopLogprobs)> {
        self.request.sampling.check(logits.len())?;
        let sampled = Sampler::default().sample(&logits, &self.request.sampling, &tokens.0, prompt_len, top);
        Ok((sampled.id, sampled.logprob, sampled.top_logprobs))
    }

    fn __repr__(&self) -> String {
        let names: Vec<_> = self.request.adapters.iter().map(|(adapter, weight)| (adapter.label(), weight)).collect();
        format!("Request(max_new_tokens={}, adapters={names:?})", self.request.max_new_tokens)
    }
}
