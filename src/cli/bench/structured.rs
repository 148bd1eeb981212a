//! Generation with and without a JSON schema: tokens per second.
//!
//! As with drafts this runs an engine, on greedy continuations of one prompt, in rounds that alternate between the two. The texts
//! differ, so speeds count the tokens that each has; a schema that goes on for as long as it may lets both have the same.

use std::sync::Arc;

use clap::Args;
use serde::Serialize;

use super::timing::{Spread, Workload, tokens_per_second};
use crate::cli::args::{MixtureArg, ModelArgs};
use crate::engine::{Engine, EngineOptions, Grammar, Request, Tokenizer};
use crate::error::Result;
use crate::model::Model;

/// What is continued.
const TEXT: &str = "A list of whole numbers as JSON:";

/// The schema by default: numbers for as long as there is room.
const NUMBERS: &str = r#"{"type": "array", "items": {"type": "integer"}, "minItems": 100000}"#;

#[derive(Args)]
#[command(next_help_heading = "Structured output")]
pub(super) struct StructuredArgs {
    /// Measure generation a second time under a JSON schema, by default one of an endless list of numbers.
    #[arg(long, value_name = "SCHEMA", num_args = 0..=1, default_missing_value = NUMBERS, hide_default_value = true)]
    json_schema: Option<String>,
}

/// The result. Speeds count the tokens of all sequences together, over whole generations: prompt, steps, sampling and text.
#[derive(Serialize)]
pub(super) struct StructuredSpeed {
    tps: f64,
    tps_min: f64,
    tps_max: f64,
    tps_without: f64,
    tps_without_min: f64,
    tps_without_max: f64,
}

impl StructuredArgs {
    /// Measures, if a schema is given. Sequence i has the mixture `i % mixtures.len()`.
    pub(super) fn measure(
        &self,
        args: &ModelArgs,
        model: &Arc<Model>,
        mixtures: &[MixtureArg],
        work: &Workload,
    ) -> Result<Option<StructuredSpeed>> {
        let Some(schema) = &self.json_schema else { return Ok(None) };
        let tokenizer = Tokenizer::open(model.path())?.map(Arc::new);
        let options = EngineOptions {
            device: args.device()?,
            threads: args.threads,
            kv_dtype: args.kv_dtype,
            prefill_chunk: args.prefill_chunk,
            max_rows: work.batch,
            ..EngineOptions::default()
        };
        let engine = Engine::from_model(Arc::clone(model), tokenizer, options)?;
        let request = |index: usize, grammar: Option<Grammar>| {
            let mut request = Request::new(TEXT).max_new_tokens(work.decode);
            request.adapters = mixtures.get(index % mixtures.len().max(1)).map(MixtureArg::refs).unwrap_or_default();
            request.stop_at_eos = false;
            request.grammar = grammar;
            request
        };
        let requests = |grammar: Option<Grammar>| -> Vec<Request> {
            (0..work.batch).map(|index| request(index, grammar.clone())).collect()
        };
        let (with, without) = (requests(Some(Grammar::JsonSchema(schema.clone()))), requests(None));
        // Fills the prefix cache, and indexes the vocabulary.
        engine.generate(&with)?;
        let (mut tps, mut tps_without) = (Vec::new(), Vec::new());
        for _ in 0..work.rounds {
            tps.push(tokens_per_second(&engine, &with)?);
            tps_without.push(tokens_per_second(&engine, &without)?);
        }
        let (speed, speed_without) = (Spread::of(&tps), Spread::of(&tps_without));
        Ok(Some(StructuredSpeed {
            tps: speed.median,
            tps_min: speed.min,
            tps_max: speed.max,
            tps_without: speed_without.median,
            tps_without_min: speed_without.min,
            tps_without_max: speed_without.max,
        }))
    }
}

impl StructuredSpeed {
    /// Lines of the table.
    pub(super) fn table(&self) -> String {
        let cell = |median: f64, min: f64, max: f64| format!("{median:.1} ({min:.1}..{max:.1})");
        format!(
            "\ngeneration tokens/s\nwithout a schema {:>24}\nwith a schema    {:>24}\n",
            cell(self.tps_without, self.tps_without_min, self.tps_without_max),
            cell(self.tps, self.tps_min, self.tps_max),
        )
    }
}
