//! Arguments that select the model and adapters, and loading them.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{ArgAction, Args, ValueHint};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::mixture_arg::MixtureArg;
use super::path_arg::{expand_home, path};
use crate::adapter::pool::{AdapterInfo, AdapterLimits};
use crate::backend::{ActivationDType, KvDType};
use crate::engine::{DraftModelSource, Engine, EngineOptions, GenerationConfigSource};
use crate::error::{Error, ErrorCode, Result};
use crate::model::{Device, HeadDType, Model, ModelOptions, Progress};

#[derive(Args)]
#[command(next_help_heading = "Model")]
pub(in crate::cli) struct ModelArgs {
    /// Model folder: config.json, *.safetensors, tokenizer.json.
    #[arg(short, long, value_name = "DIR", value_parser = path(), value_hint = ValueHint::DirPath)]
    pub model: PathBuf,
    /// CPU threads; one per physical core by default.
    #[arg(long, value_name = "N", value_parser = threads)]
    pub threads: Option<usize>,
    /// Longest prompt and output together, in tokens; by default that of config.json, stretched by its rope scaling.
    #[arg(long, value_name = "N", visible_alias = "max-tokens")]
    pub max_seq_len: Option<usize>,
    /// Where the model runs: auto (the first CUDA card, else the CPU), cpu, cuda, cuda:NUMBER, or reference (plain f32 math, slow).
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// The output head: as it is stored, or rounded to 8 bits (faster decoding; logits move by about 0.6 %).
    #[arg(long, value_name = "TYPE", default_value = "stored", value_parser = head_dtype())]
    pub head: HeadDType,
    /// Activations of quantized linears on the CPU: as exact as f32, or rounded to 8 bits (all logits move).
    #[arg(long, value_name = "TYPE", default_value = "f32", value_parser = activation_dtype())]
    pub activations: ActivationDType,
    /// Data type of the KV cache.
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = kv_dtype(), help_heading = "Engine")]
    pub kv_dtype: KvDType,
    /// Largest number of prompt tokens in one step.
    #[arg(long, value_name = "N", default_value_t = EngineOptions::default().prefill_chunk, help_heading = "Engine")]
    pub prefill_chunk: usize,
    /// Largest number of adapters in memory.
    #[arg(long, value_name = "N", default_value_t = AdapterLimits::default().max_adapters)]
    pub max_adapters: usize,
    /// Largest memory of all adapters' weights: a number of bytes, or as in 512MiB and 8GiB.
    #[arg(long, value_name = "SIZE", default_value = "8GiB", value_parser = size)]
    pub max_adapter_bytes: usize,
}

#[derive(Args)]
pub(in crate::cli) struct EngineArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Load an adapter folder under a name; may be repeated.
    #[arg(long = "adapter", value_name = "NAME=DIR", help_heading = "Adapters")]
    pub adapters: Vec<NamedAdapter>,
    /// Defaults of all requests: auto for the model folder's generation_config.json, or the path of another one.
    #[arg(long, value_name = "PATH", value_parser = generation_config(), help_heading = "Sampling")]
    generation_config: Option<GenerationConfigSource>,
    /// Tokens that the KV cache holds over all requests; by default 8192, or --max-seq-len if that is more.
    #[arg(long, value_name = "N", help_heading = "Engine")]
    kv_tokens: Option<usize>,
    /// Largest number of requests that run at once; others wait.
    #[arg(long, value_name = "N", default_value_t = EngineOptions::default().max_rows, help_heading = "Engine")]
    max_batch_size: usize,
    /// Whether prompts reuse what the cache holds of their beginnings.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = ArgAction::Set, help_heading = "Engine")]
    prefix_cache: bool,
    /// Smaller model with the same tokenizer: it drafts tokens, which the model verifies several at a time. Changes no token.
    #[arg(long, value_name = "DIR", value_parser = path(), value_hint = ValueHint::DirPath, help_heading = "Drafts")]
    draft_model: Option<PathBuf>,
    /// Load an adapter folder for the draft model under a name; may be repeated.
    #[arg(long = "draft-adapter", value_name = "NAME=DIR", requires = "draft_model", help_heading = "Drafts")]
    draft_adapters: Vec<NamedAdapter>,
}

/// The adapters of requests that name none themselves.
#[derive(Args)]
pub(in crate::cli) struct UseArgs {
    /// Adapter or mixture to use: sql, sql*0.7, or sql*0.7+wit*0.3. Repeated options are joined in order.
    #[arg(long = "use", value_name = "MIXTURE", help_heading = "Adapters")]
    mixture: Vec<MixtureArg>,
    /// Adapter or mixture of the draft model, as --use.
    #[arg(long = "draft-use", value_name = "MIXTURE", requires = "draft_model", help_heading = "Drafts")]
    draft_mixture: Vec<MixtureArg>,
}

/// `NAME=DIR`.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::cli) struct NamedAdapter {
    pub name: String,
    pub dir: PathBuf,
}

impl NamedAdapter {
    /// Loads it under its name, or replaces the adapter of that name.
    pub(in crate::cli) fn load(&self, engine: &Engine) -> Result<AdapterInfo> {
        engine.load_adapter(&self.name, &self.dir).map_err(|e| explained(e, &self.dir))
    }

    /// As [`NamedAdapter::load`], for the draft model.
    fn load_for_drafts(&self, engine: &Engine) -> Result<AdapterInfo> {
        engine.load_draft_adapter(&self.name, &self.dir).map_err(|e| explained(e, &self.dir))
    }
}

impl FromStr for NamedAdapter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, dir)) if !name.is_empty() && !dir.is_empty() => {
                Ok(Self { name: name.to_owned(), dir: expand_home(Path::new(dir)) })
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

fn kv_dtype() -> impl TypedValueParser<Value = KvDType> {
    PossibleValuesParser::new(KvDType::ALL.map(KvDType::name)).try_map(|text| text.parse::<KvDType>())
}

fn activation_dtype() -> impl TypedValueParser<Value = ActivationDType> {
    PossibleValuesParser::new(ActivationDType::ALL.map(ActivationDType::name)).try_map(|text| text.parse())
}

fn head_dtype() -> impl TypedValueParser<Value = HeadDType> {
    PossibleValuesParser::new(["stored", "int8"])
        .map(|text| if text == "int8" { HeadDType::Int8 } else { HeadDType::Stored })
}

fn generation_config() -> impl TypedValueParser<Value = GenerationConfigSource> {
    path().map(GenerationConfigSource::from)
}

/// A number of bytes, perhaps with a binary unit.
pub(in crate::cli) fn size(text: &str) -> Result<usize, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err("a number of bytes, or one with KiB, MiB or GiB".to_owned()),
    };
    let number: Option<usize> = digits.parse().ok();
    number.and_then(|number| number.checked_mul(unit)).ok_or_else(|| "a number, as in 8GiB".to_owned())
}

impl ModelArgs {
    /// Loads the model without adapters; also returns the time it took.
    pub(in crate::cli) fn load(&self) -> Result<(Arc<Model>, Duration)> {
        let start = Instant::now();
        let options = ModelOptions {
            device: self.device()?,
            threads: self.threads,
            head: self.head,
            activations: self.activations,
            max_seq_len: self.max_seq_len,
            adapter_limits: self.adapter_limits(),
            ..ModelOptions::default()
        };
        let bar = LoadBar::new();
        let model = Model::load(&self.model, &options, &mut |progress| bar.show(progress));
        Ok((model.map_err(|e| explained(e, &self.model))?, start.elapsed()))
    }

    /// The device's name, parsed.
    pub(in crate::cli) fn device(&self) -> Result<Device> {
        self.device.parse()
    }

    fn adapter_limits(&self) -> AdapterLimits {
        AdapterLimits { max_bytes: self.max_adapter_bytes, max_adapters: self.max_adapters }
    }
}

/// Adds to an error about a folder that does not exist how to fetch it, if its path may be a name on the Hugging Face Hub.
fn explained(error: Error, path: &Path) -> Error {
    match error.code() {
        ErrorCode::CheckpointNotFound | ErrorCode::AdapterConfigNotFound if !path.exists() && is_hub_name(path) => {
            let name = path.display();
            error.with_hint(format!(
                "check the path: models and adapters are local folders; if {name} is a name on the Hugging Face Hub, \
                 fetch it with: hf download {name} --local-dir {name}"
            ))
        }
        _ => error,
    }
}

/// Whether a path may be meant as a name on the Hugging Face Hub: `owner/name`.
fn is_hub_name(path: &Path) -> bool {
    let is_part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    path.to_str().and_then(|path| path.split_once('/')).is_some_and(|(owner, name)| is_part(owner) && is_part(name))
}

impl EngineArgs {
    /// Loads the model and its adapters; also returns the time it took.
    pub(in crate::cli) fn load(&self) -> Result<(Engine, Duration)> {
        let start = Instant::now();
        if let Some(name) = duplicate_name(&self.adapters).or_else(|| duplicate_name(&self.draft_adapters)) {
            return Err(Error::new(ErrorCode::RequestInvalid, format!("two adapters have the name '{name}'")));
        }
        let options = EngineOptions {
            device: self.model.device()?,
            threads: self.model.threads,
            head: self.model.head,
            activations: self.model.activations,
            kv_dtype: self.model.kv_dtype,
            max_seq_len: self.model.max_seq_len,
            generation_config: self.generation_config.clone(),
            kv_tokens: self.kv_tokens,
            max_rows: self.max_batch_size,
            prefill_chunk: self.model.prefill_chunk,
            prefix_cache: self.prefix_cache,
            adapter_limits: self.model.adapter_limits(),
            draft_model: self.draft_model.clone().map(DraftModelSource::from),
            ..EngineOptions::default()
        };
        let bar = LoadBar::new();
        let engine = Engine::load_with_progress(&self.model.model, options, &mut |progress| bar.show(progress))
            .map_err(|e| explained(e, &self.model.model))?;
        self.adapters.iter().try_for_each(|adapter| adapter.load(&engine).map(drop))?;
        self.draft_adapters.iter().try_for_each(|adapter| adapter.load_for_drafts(&engine).map(drop))?;
        Ok((engine, start.elapsed()))
    }
}

impl UseArgs {
    /// The mixture of `--use`.
    pub(in crate::cli) fn mixture(&self) -> MixtureArg {
        MixtureArg::joined(&self.mixture)
    }

    /// The mixture of `--draft-use`.
    pub(in crate::cli) fn draft_mixture(&self) -> MixtureArg {
        MixtureArg::joined(&self.draft_mixture)
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
    fn a_size_is_bytes_or_has_a_binary_unit() {
        let sizes = ["0", "17", "3KiB", "512MiB", "8GiB"].map(|text| size(text).expect(text));
        assert_eq!(sizes, [0, 17, 3 << 10, 512 << 20, 8 << 30]);
        for text in ["", "GiB", "8GB", "8 GiB", "-1", "1.5GiB", "99999999999999999999", "18446744073709551615KiB"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_name_on_the_hub_is_told_from_a_path() {
        for name in ["Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", "gpt2/x"] {
            assert!(is_hub_name(Path::new(name)), "{name}");
        }
        for path in ["models/qwen/", "./qwen", "a/b/c", "/models", "~/qwen", "qwen", "", "../qwen"] {
            assert!(!is_hub_name(Path::new(path)), "{path}");
        }
    }

    #[test]
    fn a_duplicate_name_is_found() {
        let adapters = ["a=1", "b=2", "a=3"].map(|text| text.parse().expect("parses"));
        assert_eq!(duplicate_name(&adapters), Some("a"));
        assert_eq!(duplicate_name(&adapters[..2]), None);
    }
}
