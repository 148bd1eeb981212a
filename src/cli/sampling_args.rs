//! Arguments that control generation.

use clap::Args;

use crate::engine::{Request, Stop};

#[derive(Args)]
pub(super) struct SamplingArgs {
    /// Maximum number of new tokens; 128 by default.
    #[arg(long, value_name = "N")]
    max_new_tokens: Option<usize>,
    /// Sampling temperature; 0, the default, is greedy.
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Sample from the K most likely tokens; 0, the default, is off.
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Nucleus sampling: the most likely tokens up to this total probability; 1, the default, is off.
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Drop tokens less likely than this fraction of the most likely one; 0, the default, is off.
    #[arg(long, value_name = "P")]
    min_p: Option<f32>,
    /// Penalty on tokens that occur in the prompt or the output; 1, the default, is off.
    #[arg(long, value_name = "X")]
    repetition_penalty: Option<f32>,
    /// Random seed; the same seed gives the same text. A random one by default.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Stop before this string; may be repeated.
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
}

impl SamplingArgs {
    /// Changes what is given in a request.
    pub(super) fn apply(&self, request: &mut Request) {
        set(&mut request.max_new_tokens, self.max_new_tokens);
        if !self.stop.is_empty() {
            request.stop = self.stop.iter().cloned().map(Stop::Text).collect();
        }
        let sampling = &mut request.sampling;
        set(&mut sampling.temperature, self.temperature);
        set(&mut sampling.top_k, self.top_k);
        set(&mut sampling.top_p, self.top_p);
        set(&mut sampling.min_p, self.min_p);
        set(&mut sampling.repetition_penalty, self.repetition_penalty);
        set(&mut sampling.seed, self.seed.map(Some));
    }
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}
