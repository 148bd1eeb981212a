//! Generation with and without drafts: tokens per second, and how many drafted tokens were accepted.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use serde::Serialize;

use super::generation::{Generation, GenerationSpeed};
use super::timing::{Workload, rounded};
use crate::cli::args::{MixtureArg, ModelArgs};
use crate::engine::{DraftModelSource, EngineOptions, Request};
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
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, default_value = TEXT, hide_default_value = true)]
    draft_prompt: String,
}

/// The result.
#[derive(Serialize)]
pub(super) struct DraftSpeed {
    /// Where the drafts came from: `ngram` or `model`.
    source: &'static str,
    num_draft_tokens: usize,
    #[serde(flatten)]
    speed: GenerationSpeed,
    accepted_draft_tokens: u64,
    rejected_draft_tokens: u64,
    tokens_per_step: f64,
}

impl DraftArgs {
    /// Measures, if drafts are asked for.
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
        let options = EngineOptions {
            draft_model: self.draft_model.clone().map(DraftModelSource::from),
            num_draft_tokens: self.num_draft_tokens,
            ..EngineOptions::default()
        };
        let generation = Generation::new(args, model, mixtures, work, options)?;
        let requests = |drafts: bool| {
            generation.requests(&self.draft_prompt, |request: &mut Request| {
                request.ngram_draft = self.ngram_draft && drafts;
                request.num_draft_tokens = (!drafts).then_some(0);
            })
        };
        let compared = generation.compare(&requests(true), &requests(false))?;
        Ok(Some(DraftSpeed {
            source: if self.ngram_draft { "ngram" } else { "model" },
            num_draft_tokens: self.num_draft_tokens,
            speed: compared.speed,
            accepted_draft_tokens: compared.accepted_draft_tokens,
            rejected_draft_tokens: compared.rejected_draft_tokens,
            tokens_per_step: rounded((work.rounds * work.decode) as f64 / compared.steps.max(1) as f64, 2),
        }))
    }
}

impl DraftSpeed {
    /// Lines of the table.
    pub(super) fn table(&self) -> String {
        let [without, with] = self.speed.cells();
        let drafted = (self.accepted_draft_tokens + self.rejected_draft_tokens).max(1);
        format!(
            "\ngeneration tokens/s\nwithout drafts {without:>26}\nwith drafts    {with:>26}, {:.0}% of the drafted tokens accepted, \
             {:.2} tokens of a sequence in a step\n",
            100.0 * self.accepted_draft_tokens as f64 / drafted as f64,
            self.tokens_per_step,
        )
    }
}
