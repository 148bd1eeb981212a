//! Arguments that control generation.

use clap::Args;

use crate::engine::{Prompt, Request, SamplingParams, Stop};

#[derive(Args)]
pub(super) struct SamplingArgs {
    /// Maximum number of new tokens.
    #[arg(long, value_name = "N", default_value_t = 128)]
    max_new_tokens: usize,
    /// Sampling temperature; 0 is greedy.
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f32,
    /// Sample from the K most likely tokens; 0 is off.
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,
    /// Nucleus sampling: the most likely tokens up to this total probability; 1 is off.
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f32,
    /// Drop tokens less likely than this fraction of the most likely one; 0 is off.
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    min_p: f32,
    /// Penalty on tokens that occur in the prompt or the output; 1 is off.
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    repetition_penalty: f32,
    /// Random seed; the same seed gives the same text. A random one by default.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Stop before this string; may be repeated.
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
}

impl SamplingArgs {
    /// A request that completes `prompt` with the base model.
    pub(super) fn request(&self, prompt: impl Into<Prompt>) -> Request {
        let sampling = SamplingParams {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
            ..Default::default()
        };
        let request = Request::new(prompt).max_new_tokens(self.max_new_tokens).sampling(sampling);
        self.stop.iter().fold(request, |request, stop| request.stop(Stop::Text(stop.clone())))
    }
}
