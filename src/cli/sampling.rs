//! Arguments that say how a text is continued.

use clap::Args;

use crate::engine::{Prompt, Request, SamplingParams, Stop};

#[derive(Args)]
pub(super) struct SamplingArgs {
    /// Largest number of new tokens.
    #[arg(long, value_name = "N", default_value_t = 128)]
    max_new_tokens: usize,
    /// Flattens or sharpens the distribution; 0 always takes the likeliest token.
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f32,
    /// Keep the K likeliest tokens; 0 keeps all.
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,
    /// Keep the likeliest tokens up to this probability; 1 keeps all.
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f32,
    /// Keep tokens of at least this share of the likeliest one's probability; 0 keeps all.
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    min_p: f32,
    /// Makes tokens that stand in the prompt or the output less likely; 1 is off.
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    repetition_penalty: f32,
    /// Seed of the random numbers; the same seed gives the same text.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// End the text before this string; may be given several times.
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
}

impl SamplingArgs {
    /// A request for the continuation of `prompt` by the base model.
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
