//! Generation with and without drafts: tokens per second, and how many drafted tokens were accepted.
//!
//! Unlike the rest of the benchmark this runs an engine on a text, because what is accepted depends on what is said: greedy
//! continuations of one prompt, whose prefix is cached, in rounds that alternate between the two.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use serde::Serialize;

use super::timing::{Spread, Workload, rounded, tokens_per_second};
use crate::cli::args::{MixtureArg, ModelArgs};
use crate::engine::{DraftModelSource, Engine, EngineOptions, Request, Tokenizer};
use crate::error::Result;
use crate::model::Model;

/// What is continued by default.
const TEXT: &str = "A table has rows and columns. The first row has names of columns, and each row after it has a value in \
                    each column. The first column has names of rows, and each column after it has a value in each row.";

#[derive(Args)]
#[command(next_help_heading = "Drafts")]
pub(super) struct DraftArgs {
    /// Measure generation a second time with a smaller model that drafts tokens.
    #[arg(long, value_name = "DIR", value_parser = crate::cli::args::path())]
    draft_model: Option<PathBuf>,
    /// Measure generation a second time with drafts from the text itself.
    #[arg(long, conflicts_with = "draft_model")]
    ngram_draft: bool,
    /// Largest number of tokens drafted for a step.
    #[arg(long, value_name = "N", default_value_t = EngineOptions::default().num_draft_tokens)]
    num_draft_tokens: usize,
    /// The text that is continued.
    #[arg(long, value_name = "TEXT", default_value = TEXT, hide_default_value = true)]
    draft_prompt: String,
}

/// The result. Speeds count the tokens of all sequences together, over whole generations: prompt, steps, sampling and text.
#[derive(Serialize)]
pub(super) struct DraftSpeed {
    /// Where the drafts came from: `ngram` or `model`.
    source: &'static str,
    num_draft_tokens: usize,
    tps: f64,
    tps_min: f64,
    tps_max: f64,
    tps_without: f64,
    tps_without_min: f64,
    tps_without_max: f64,
    accepted_draft_tokens: u64,
    rejected_draft_tokens: u64,
    tokens_per_step: f64,
}

impl DraftArgs {
    /// Measures, if drafts are asked for. Sequence i has the mixture `i % mixtures.len()`.
    pub(super) fn measure(
        &self,
        args: &ModelArgs,
        model: &Arc<Model>,
        mixtures: &[MixtureArg],
        work: &Workload,
    ) -> Result<Option<DraftSpeed>> {
        if self.draft_model.is_none() && !self.ngram_draft {
            return Ok(None);
        }
        let tokenizer = Tokenizer::open(model.path())?.map(Arc::new);
        let options = EngineOptions {
            device: args.device()?,
            threads: args.threads,
            kv_dtype: args.kv_dtype,
            prefill_chunk: args.prefill_chunk,
            max_rows: work.batch,
            draft_model: self.draft_model.clone().map(DraftModelSource::from),
            num_draft_tokens: self.num_draft_tokens,
            ..EngineOptions::default()
        };
        let engine = Engine::from_model(Arc::clone(model), tokenizer, options)?;
        let request = |index: usize, drafts: bool| {
            let mut request = Request::new(self.draft_prompt.as_str()).max_new_tokens(work.decode);
            request.adapters = mixtures.get(index % mixtures.len().max(1)).map(MixtureArg::refs).unwrap_or_default();
            request.stop_at_eos = false;
            request.ngram_draft = self.ngram_draft && drafts;
            request.num_draft_tokens = (!drafts).then_some(0);
            request
        };
        let requests = |drafts| -> Vec<Request> { (0..work.batch).map(|index| request(index, drafts)).collect() };
        let (with, without) = (requests(true), requests(false));
        // Fills the prefix caches.
        engine.generate(&with)?;
        let before = engine.stats();
        let (mut tps, mut tps_without, mut steps) = (Vec::new(), Vec::new(), 0);
        for _ in 0..work.rounds {
            let steps_before = engine.stats().steps;
            tps.push(tokens_per_second(&engine, &with)?);
            steps += engine.stats().steps - steps_before;
            tps_without.push(tokens_per_second(&engine, &without)?);
        }
        let after = engine.stats();
        let (speed, speed_without) = (Spread::of(&tps), Spread::of(&tps_without));
        Ok(Some(DraftSpeed {
            source: if self.ngram_draft { "ngram" } else { "model" },
            num_draft_tokens: self.num_draft_tokens,
            tps: speed.median,
            tps_min: speed.min,
            tps_max: speed.max,
            tps_without: speed_without.median,
            tps_without_min: speed_without.min,
            tps_without_max: speed_without.max,
            accepted_draft_tokens: after.accepted_draft_tokens - before.accepted_draft_tokens,
            rejected_draft_tokens: after.rejected_draft_tokens - before.rejected_draft_tokens,
            tokens_per_step: rounded((work.rounds * work.decode) as f64 / steps.max(1) as f64, 2),
        }))
    }
}

impl DraftSpeed {
    /// Lines of the table.
    pub(super) fn table(&self) -> String {
        let cell = |median: f64, min: f64, max: f64| format!("{median:.1} ({min:.1}..{max:.1})");
        let drafted = (self.accepted_draft_tokens + self.rejected_draft_tokens).max(1);
        format!(
            "\ngeneration tokens/s\nwithout drafts {:>26}\nwith drafts    {:>26}, {:.0}% of the drafted tokens accepted, \
             {:.2} tokens of a sequence in a step\n",
            cell(self.tps_without, self.tps_without_min, self.tps_without_max),
            cell(self.tps, self.tps_min, self.tps_max),
            100.0 * self.accepted_draft_tokens as f64 / drafted as f64,
            self.tokens_per_step,
        )
    }
}
