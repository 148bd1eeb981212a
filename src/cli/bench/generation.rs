//! Generation in two ways by turns, with an engine: what drafts and structured output are measured with.
//!
//! Unlike the rest of the benchmark this continues a text, because what is accepted or allowed depends on what is said: greedy
//! continuations of one prompt, whose prefix is cached, in rounds that alternate between the two ways.

use std::sync::Arc;

use serde::Serialize;

use super::timing::{Spread, Workload, tokens_per_second};
use crate::cli::args::{MixtureArg, ModelArgs};
use crate::engine::{Engine, EngineOptions, Request, Tokenizer};
use crate::error::Result;
use crate::model::Model;

/// An engine, and the requests that it is given.
pub(super) struct Generation<'a> {
    engine: Engine,
    mixtures: &'a [MixtureArg],
    work: &'a Workload,
}

/// Tokens of all sequences together per second, over whole generations: prompt, steps, sampling and text. With what is measured,
/// and without it.
#[derive(Serialize)]
pub(super) struct GenerationSpeed {
    tps: f64,
    tps_min: f64,
    tps_max: f64,
    tps_without: f64,
    tps_without_min: f64,
    tps_without_max: f64,
}

/// What was measured.
pub(super) struct Comparison {
    pub(super) speed: GenerationSpeed,
    /// Steps of the generations with what is measured.
    pub(super) steps: u64,
    pub(super) accepted_draft_tokens: u64,
    pub(super) rejected_draft_tokens: u64,
}

impl<'a> Generation<'a> {
    /// An engine over a loaded model. `options` has what the command's options don't say.
    ///
    /// # Errors
    /// As [`Engine::from_model`]; `tokenizer_invalid`.
    pub(super) fn new(
        args: &ModelArgs,
        model: &Arc<Model>,
        mixtures: &'a [MixtureArg],
        work: &'a Workload,
        options: EngineOptions,
    ) -> Result<Self> {
        let tokenizer = Tokenizer::open(model.path())?.map(Arc::new);
        let options = EngineOptions {
            device: args.device()?,
            threads: args.threads,
            kv_dtype: args.kv_dtype,
            prefill_chunk: args.prefill_chunk,
            max_rows: work.batch,
            ..options
        };
        let engine = Engine::from_model(Arc::clone(model), tokenizer, options)?;
        Ok(Self { engine, mixtures, work })
    }

    /// A request for each sequence, which continues the text; `change` makes it what is measured. Sequence i has the mixture
    /// `i % mixtures.len()`.
    pub(super) fn requests(&self, text: &str, change: impl Fn(&mut Request)) -> Vec<Request> {
        let request = |index: usize| {
            let mut request = Request::new(text).max_new_tokens(self.work.decode);
            let mixture = self.mixtures.get(index % self.mixtures.len().max(1));
            request.adapters = mixture.map(MixtureArg::refs).unwrap_or_default();
            request.stop_at_eos = false;
            change(&mut request);
            request
        };
        (0..self.work.batch).map(request).collect()
    }

    /// Measures both in turn.
    ///
    /// # Errors
    /// That of a request.
    pub(super) fn compare(&self, with: &[Request], without: &[Request]) -> Result<Comparison> {
        // Fills the prefix caches, and indexes the vocabulary for a grammar.
        self.engine.generate(with)?;
        let before = self.engine.stats();
        let (mut tps, mut tps_without, mut steps) = (Vec::new(), Vec::new(), 0);
        for _ in 0..self.work.rounds {
            let steps_before = self.engine.stats().steps;
            tps.push(tokens_per_second(&self.engine, with)?);
            steps += self.engine.stats().steps - steps_before;
            tps_without.push(tokens_per_second(&self.engine, without)?);
        }
        let after = self.engine.stats();
        let (speed, speed_without) = (Spread::of(&tps), Spread::of(&tps_without));
        let speed = GenerationSpeed {
            tps: speed.median,
            tps_min: speed.min,
            tps_max: speed.max,
            tps_without: speed_without.median,
            tps_without_min: speed_without.min,
            tps_without_max: speed_without.max,
        };
        Ok(Comparison {
            speed,
            steps,
            accepted_draft_tokens: after.accepted_draft_tokens - before.accepted_draft_tokens,
            rejected_draft_tokens: after.rejected_draft_tokens - before.rejected_draft_tokens,
        })
    }
}

impl GenerationSpeed {
    /// The cells of a table: without and with what is measured.
    pub(super) fn cells(&self) -> [String; 2] {
        let cell = |median: f64, min: f64, max: f64| format!("{median:.1} ({min:.1}..{max:.1})");
        [cell(self.tps_without, self.tps_without_min, self.tps_without_max), cell(self.tps, self.tps_min, self.tps_max)]
    }
}
