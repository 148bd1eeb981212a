//! Arguments that select the model and adapters, and loading them.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::backend::KvDType;
use crate::engine::{Engine, EngineOptions, GenerationConfig, GenerationConfigSource, Prompt, Request};
use crate::error::{Error, ErrorCode, Result};
use crate::model::{Device, Model, ModelOptions, Progress};

#[derive(Args)]
pub(super) struct ModelArgs {
    /// Model folder: config.json, *.safetensors, tokenizer.json.
    #[arg(short, long, value_name = "DIR")]
    pub model: PathBuf,
    /// CPU threads; one per physical core by default.
    #[arg(long, value_name = "N", value_parser = threads)]
    pub threads: Option<usize>,
    /// Longest prompt and output together, in tokens; by default that of config.json, stretched by its rope scaling.
    #[arg(long, value_name = "N", visible_alias = "max-tokens")]
    pub max_seq_len: Option<usize>,
    /// Where the model runs: auto, cpu, or reference (plain f32 math, slow).
    #[arg(long, default_value = "auto")]
    pub device: String,
}

#[derive(Args)]
pub(super) struct EngineArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Load an adapter folder under a name; may be repeated.
    #[arg(long = "adapter", value_name = "NAME=DIR")]
    pub adapters: Vec<NamedAdapter>,
    /// Data type of the KV cache.
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = ["f16", "f32"])]
    pub kv_dtype: String,
    /// Defaults of all requests: auto for the model folder's generation_config.json, or the path of another one.
    #[arg(long, value_name = "PATH")]
    pub generation_config: Option<GenerationConfigSource>,
}

/// `NAME=DIR`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct NamedAdapter {
    pub name: String,
    pub dir: PathBuf,
}

impl FromStr for NamedAdapter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, dir)) if !name.is_empty() && !dir.is_empty() => {
                Ok(Self { name: name.to_owned(), dir: PathBuf::from(dir) })
            }
            _ => Err("write NAME=DIR, as in sql=adapters/sql".to_owned()),
        }
    }
}

fn threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n) if (1..=1024).contains(&n) => Ok(n),
        _ => Err("a number from 1 to 1024".to_owned()),
    }
}

impl ModelArgs {
    /// Loads the model without adapters; also returns the time it took.
    pub(super) fn load(&self) -> Result<(Arc<Model>, Duration)> {
        let start = Instant::now();
        let options = ModelOptions {
            device: self.device()?,
            threads: self.threads,
            max_seq_len: self.max_seq_len,
            ..Default::default()
        };
        let bar = LoadBar::new();
        let model = Model::load(&self.model, &options, &mut |progress| bar.show(progress))?;
        Ok((model, start.elapsed()))
    }

    fn device(&self) -> Result<Device> {
        self.device.parse()
    }
}

impl EngineArgs {
    /// A request with the defaults that the generation config sets.
    pub(super) fn request(&self, prompt: impl Into<Prompt>) -> Result<Request> {
        let mut request = Request::new(prompt);
        if let Some(source) = &self.generation_config {
            GenerationConfig::read(source, &self.model.model)?.apply(&mut request);
        }
        Ok(request)
    }

    /// Loads the model and its adapters; also returns the time it took.
    pub(super) fn load(&self) -> Result<(Engine, Duration)> {
        let start = Instant::now();
        if let Some(name) = duplicate_name(&self.adapters) {
            return Err(Error::new(ErrorCode::RequestInvalid, format!("two adapters have the name '{name}'")));
        }
        let options = EngineOptions {
            device: self.model.device()?,
            threads: self.model.threads,
            max_seq_len: self.model.max_seq_len,
            kv_dtype: if self.kv_dtype == "f32" { KvDType::F32 } else { KvDType::F16 },
            generation_config: self.generation_config.clone(),
            ..Default::default()
        };
        let bar = LoadBar::new();
        let engine = Engine::load_with_progress(&self.model.model, options, &mut |progress| bar.show(progress))?;
        for NamedAdapter { name, dir } in &self.adapters {
            engine.load_adapter(name, dir)?;
        }
        Ok((engine, start.elapsed()))
    }
}

fn duplicate_name(adapters: &[NamedAdapter]) -> Option<&str> {
    let repeated = |i: &usize| adapters[..*i].iter().any(|other| other.name == adapters[*i].name);
    (0..adapters.len()).find(repeated).map(|i| adapters[i].name.as_str())
}

/// A progress bar while a model loads, if stderr is a terminal.
struct LoadBar(ProgressBar);

impl LoadBar {
    fn new() -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        let target = if is_terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        if let Ok(style) = ProgressStyle::with_template("loading {wide_bar} {pos}/{len}") {
            bar.set_style(style);
        }
        Self(bar)
    }

    fn show(&self, progress: Progress) -> Result<()> {
        self.0.set_length(progress.total as u64);
        self.0.set_position(progress.done as u64);
        Ok(())
    }
}

impl Drop for LoadBar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adapter_is_a_name_and_a_folder() {
        let adapter: NamedAdapter = "sql=runs/a=b".parse().expect("parses");
        assert_eq!(adapter, NamedAdapter { name: "sql".into(), dir: "runs/a=b".into() });
        for text in ["sql", "=dir", "sql=", ""] {
            assert!(text.parse::<NamedAdapter>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_duplicate_name_is_found() {
        let adapters = ["a=1", "b=2", "a=3"].map(|text| text.parse().expect("parses"));
        assert_eq!(duplicate_name(&adapters), Some("a"));
        assert_eq!(duplicate_name(&adapters[..2]), None);
    }
}
