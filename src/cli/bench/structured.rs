//! Generation with and without a JSON schema: tokens per second.
//!
//! The texts differ, so speeds count the tokens that each has; a schema that goes on for as long as it may lets both have the same.

use std::sync::Arc;

use clap::Args;
use serde::Serialize;

use super::generation::{Generation, GenerationSpeed};
use super::timing::Workload;
use crate::cli::args::{MixtureArg, ModelArgs};
use crate::engine::{EngineOptions, Grammar};
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

/// The result.
#[derive(Serialize)]
pub(super) struct StructuredSpeed {
    #[serde(flatten)]
    speed: GenerationSpeed,
}

impl StructuredArgs {
    /// Measures, if a schema is given.
    pub(super) fn measure(
        &self,
        args: &ModelArgs,
        model: &Arc<Model>,
        mixtures: &[MixtureArg],
        work: &Workload,
    ) -> Result<Option<StructuredSpeed>> {
        let Some(schema) = &self.json_schema else { return Ok(None) };
        let generation = Generation::new(args, model, mixtures, work, EngineOptions::default())?;
        let with = generation.requests(TEXT, |request| request.grammar = Some(Grammar::JsonSchema(schema.clone())));
        let speed = generation.compare(&with, &generation.requests(TEXT, |_| {}))?.speed;
        Ok(Some(StructuredSpeed { speed }))
    }
}

impl StructuredSpeed {
    /// Lines of the table.
    pub(super) fn table(&self) -> String {
        let [without, with] = self.speed.cells();
        format!("\ngeneration tokens/s\nwithout a schema {without:>24}\nwith a schema    {with:>24}\n")
    }
}
