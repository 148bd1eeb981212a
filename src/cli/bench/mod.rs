//! `exlora bench`: tokens per second of prefill and of batched decode, with and without adapters.
//!
//! Base and adapters alternate in one process, so a slow spell of the machine affects both. The model's forward pass is
//! driven directly: no sampling, no text, no prefix cache. Prompts are random token ids; logits are computed for the last
//! row of a prompt and for every decoded token, as requests need them. Decode runs after a context of the stated length,
//! with all sequences of the batch in each step.
//!
//! With `--serve` a running server is measured instead (`serve/`).

mod counts;
mod drafts;
mod generation;
mod serve;
mod stream;
mod structured;
mod timing;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use serde::Serialize;

use self::counts::check_counts;
use self::drafts::{DraftArgs, DraftSpeed};
use self::serve::ServeBenchArgs;
use self::stream::{Assignment, Stream, StreamOptions};
use self::structured::{StructuredArgs, StructuredSpeed};
use self::timing::{Speed, Variant, Workload, measure, rounded};
#[cfg(feature = "cuda")]
use super::args::size;
use super::args::{MixtureArg, ModelArgs, NamedAdapter};
use super::output::{print, print_json};
use crate::adapter::mixture::Mixture;
use crate::doctor;
#[cfg(feature = "cuda")]
use crate::doctor::Ceilings;
use crate::error::{Error, ErrorCode, Result};
#[cfg(feature = "cuda")]
use crate::model::Device;
use crate::model::Model;

#[derive(Args)]
pub(super) struct BenchArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Measure a second time with this adapter; repeat the option for several adapters.
    #[arg(long = "adapter", value_name = "NAME=DIR")]
    adapters: Vec<NamedAdapter>,
    /// Sequences decoded together.
    #[arg(long, value_name = "N", default_value_t = 1)]
    batch: usize,
    /// Let the sequences cycle through K adapters. If fewer folders are given, they are loaded again under further names.
    /// By default, as many as there are --adapter options.
    #[arg(long, value_name = "K", conflicts_with = "mixture")]
    distinct_adapters: Option<usize>,
    /// Run every sequence with this mixture of the loaded adapters: sql*0.5+wit*0.5.
    #[arg(long, value_name = "MIXTURE")]
    mixture: Option<MixtureArg>,
    /// Tokens of each prompt.
    #[arg(long, value_name = "TOKENS", default_value_t = 512)]
    prompt: usize,
    /// Tokens in each sequence's KV cache before the first decoded token; the prompt by default.
    #[arg(long, value_name = "TOKENS")]
    context: Option<usize>,
    /// Tokens that each sequence decodes in a round.
    #[arg(long, value_name = "TOKENS", default_value_t = 64)]
    decode: usize,
    /// Rounds; medians and ranges over all of them are reported.
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: usize,
    #[command(flatten)]
    drafts: DraftArgs,
    #[command(flatten)]
    structured: StructuredArgs,
    /// Measure first how fast a CUDA card reads SIZE of its memory, and what a launch costs.
    #[cfg(feature = "cuda")]
    #[arg(long, value_name = "SIZE", num_args = 0..=1, default_missing_value = "1GiB", value_parser = size)]
    ceilings: Option<usize>,
    #[command(flatten)]
    serve: ServeBenchArgs,
}

/// The options that both measurements have.
const SHARED: [&str; 2] = ["prompt", "decode"];

/// The options of a model beside those of a server: one or the other is measured.
pub(super) fn with_serve(command: clap::Command) -> clap::Command {
    let of_server: Vec<clap::Id> = ServeBenchArgs::ids();
    command.mut_args(|arg| match arg.get_id() {
        id if SHARED.contains(&id.as_str()) || id == "serve" => arg,
        // Where --model is given, clap does not ask for --serve: the two exclude each other.
        id if of_server.contains(id) => arg.conflicts_with("model"),
        // Its value is not looked at.
        id if id == "model" => arg
            .required(false)
            .required_unless_present("serve")
            .default_value_if("serve", clap::builder::ArgPredicate::IsPresent, "-")
            .conflicts_with("serve"),
        _ => arg.conflicts_with("serve"),
    })
}

/// The result. Speeds count the tokens of all sequences together.
#[derive(Serialize)]
struct Measurement {
    engine: &'static str,
    version: &'static str,
    model: String,
    device: String,
    threads: Option<usize>,
    load_s: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    lora_load_s: Option<f64>,
    file_mib: f64,
    batch: usize,
    distinct_adapters: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    mixture: Option<MixtureArg>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_rank: Option<usize>,
    prompt: usize,
    context: usize,
    decode: usize,
    rounds: usize,
    kv_dtype: &'static str,
    prefill_chunk: usize,
    weights_mib: f64,
    adapters_mib: f64,
    #[cfg(feature = "cuda")]
    #[serde(skip_serializing_if = "Option::is_none")]
    ceilings: Option<Ceilings>,
    base: Speed,
    #[serde(skip_serializing_if = "Option::is_none")]
    lora: Option<Speed>,
    #[serde(skip_serializing_if = "Option::is_none")]
    drafts: Option<DraftSpeed>,
    #[serde(skip_serializing_if = "Option::is_none")]
    structured: Option<StructuredSpeed>,
    loadavg: Option<f64>,
    peak_rss_mib: Option<f64>,
}

pub(super) fn run(args: &BenchArgs, json: bool) -> Result<()> {
    if args.serve.is_given() {
        let report = args.serve.measure(args.prompt, args.decode)?;
        return if json { print_json(&report) } else { print(&report.table()) };
    }
    let work = Workload {
        batch: args.batch,
        prompt: args.prompt,
        context: args.context.unwrap_or(args.prompt),
        decode: args.decode,
        rounds: args.rounds,
    };
    let adapters = Adapters::choose(args)?;
    check_counts(&[("batch", work.batch), ("prompt", work.prompt), ("decode", work.decode), ("rounds", work.rounds)])?;
    #[cfg(feature = "cuda")]
    let ceilings = args.ceilings.map(|bytes| ceilings(args.model.device()?, bytes)).transpose()?;
    let (model, load_time) = args.model.load()?;
    check_length(&work, model.max_seq_len())?;
    let start = Instant::now();
    let mixtures = adapters.load(&model)?;
    let lora_load_s = mixtures.as_ref().map(|_| rounded(start.elapsed().as_secs_f64(), 3));
    let max_rank = model.adapters().list().iter().map(|adapter| adapter.summary.max_rank).max();

    let mut variants = vec![Variant::new(Assignment::base())];
    if let Some(mixtures) = mixtures {
        variants.push(Variant::new(Assignment::new(mixtures)?));
    }
    let kv_groups = variants.iter().map(|variant| variant.adapters.kv_groups(&model)).max().unwrap_or(1);
    let options = StreamOptions {
        sequences: work.batch,
        tokens: work.tokens(),
        kv_dtype: args.model.kv_dtype,
        prefill_chunk: args.model.prefill_chunk.max(1),
    };
    let mut stream = Stream::new(&model, kv_groups, &options)?;
    measure(&work, &mut stream, &mut variants)?;
    let drafts = args.drafts.measure(&args.model, &model, &adapters.mixtures(), &work)?;
    let structured = args.structured.measure(&args.model, &model, &adapters.mixtures(), &work)?;

    let name = args.model.model.file_name().unwrap_or(args.model.model.as_os_str());
    let measurement = Measurement {
        engine: "exlora",
        version: env!("CARGO_PKG_VERSION"),
        model: name.to_string_lossy().into_owned(),
        device: model.describe_device(),
        threads: args.model.threads,
        load_s: rounded(load_time.as_secs_f64(), 3),
        lora_load_s,
        file_mib: mib(model.file_bytes()),
        batch: work.batch,
        distinct_adapters: adapters.distinct(),
        mixture: adapters.mixture,
        max_rank,
        prompt: work.prompt,
        context: work.context,
        decode: work.decode,
        rounds: work.rounds,
        kv_dtype: args.model.kv_dtype.name(),
        prefill_chunk: options.prefill_chunk,
        weights_mib: mib(model.memory().weights_bytes as u64),
        adapters_mib: mib(model.memory().adapters_bytes as u64),
        #[cfg(feature = "cuda")]
        ceilings,
        base: variants[0].speed(),
        lora: variants.get(1).map(Variant::speed),
        drafts,
        structured,
        loadavg: doctor::load_average(),
        peak_rss_mib: doctor::peak_resident_bytes().map(mib),
    };
    if json { print_json(&measurement) } else { print(&table(&measurement)) }
}

/// The adapters to load, under distinct names, and how the sequences use them.
struct Adapters {
    named: Vec<NamedAdapter>,
    mixture: Option<MixtureArg>,
}

impl Adapters {
    fn choose(args: &BenchArgs) -> Result<Self> {
        let given = &args.adapters;
        if let Some(mixture) = &args.mixture {
            return Ok(Self { named: given.clone(), mixture: Some(mixture.clone()) });
        }
        let count = args.distinct_adapters.unwrap_or(given.len());
        if count > 0 && given.is_empty() {
            return Err(invalid("distinct adapters need a folder").with_hint("add --adapter NAME=DIR"));
        }
        if count > args.batch {
            return Err(invalid("there are more distinct adapters than sequences")
                .with_expected(format!("at most {}, or a larger --batch", args.batch))
                .with_found(count));
        }
        Ok(Self { named: repeated(given, count), mixture: None })
    }

    /// The mixture of each sequence in turn, by name; none for the base.
    fn mixtures(&self) -> Vec<MixtureArg> {
        match &self.mixture {
            Some(mixture) => vec![mixture.clone()],
            None => self.named.iter().map(|one| MixtureArg(vec![(one.name.clone(), 1.0)])).collect(),
        }
    }

    /// How many different adapters act in a step.
    fn distinct(&self) -> usize {
        let Some(MixtureArg(parts)) = &self.mixture else { return self.named.len() };
        parts.iter().map(|(name, _)| name).collect::<BTreeSet<_>>().len()
    }

    /// Loads them; returns the mixture of each sequence in turn, or `None` if there are no adapters.
    fn load(&self, model: &Arc<Model>) -> Result<Option<Vec<Mixture>>> {
        for NamedAdapter { name, dir } in &self.named {
            model.load_adapter(name, dir)?;
        }
        let mixture = |parts: &[(String, f32)]| {
            let lease = |(name, weight): &(String, f32)| Ok((model.adapters().lease(name)?, *weight));
            Mixture::new(parts.iter().map(lease).collect::<Result<_>>()?, model.sites())
        };
        match &self.mixture {
            Some(MixtureArg(parts)) => Ok(Some(vec![mixture(parts)?])),
            None if self.named.is_empty() => Ok(None),
            None => self.named.iter().map(|one| mixture(&[(one.name.clone(), 1.0)])).collect::<Result<_>>().map(Some),
        }
    }
}

/// `count` adapters: those given, in turn, from the second time on under names like `sql#2`.
fn repeated(given: &[NamedAdapter], count: usize) -> Vec<NamedAdapter> {
    let nth = |index: usize| {
        let NamedAdapter { name, dir } = &given[index % given.len()];
        let name = match index / given.len() {
            0 => name.clone(),
            again => format!("{name}#{}", again + 1),
        };
        NamedAdapter { name, dir: dir.clone() }
    };
    (0..count).map(nth).collect()
}

fn check_length(work: &Workload, positions: usize) -> Result<()> {
    let needed = work.tokens();
    if needed <= positions {
        return Ok(());
    }
    Err(Error::new(ErrorCode::PromptTooLong, "prompt, context and decode exceed the model's context length")
        .with_expected(format!("at most {positions} tokens"))
        .with_found(format!("{needed} tokens"))
        .with_hint("measure fewer tokens, or raise --max-seq-len"))
}

#[cfg(feature = "cuda")]
fn ceilings(device: Device, bytes: usize) -> Result<Ceilings> {
    match device {
        Device::Cuda(ordinal) => doctor::measure_ceilings(ordinal, bytes),
        _ => Err(invalid("ceilings are those of a CUDA card").with_hint("add --device cuda")),
    }
}

fn invalid(what: &str) -> Error {
    Error::new(ErrorCode::RequestInvalid, what)
}

fn mib(bytes: u64) -> f64 {
    rounded(bytes as f64 / f64::from(1 << 20), 1)
}

fn table(m: &Measurement) -> String {
    let adapters = match (&m.mixture, m.distinct_adapters) {
        (Some(mixture), _) => format!(", every sequence with {mixture}"),
        (None, 0) => String::new(),
        (None, 1) => ", 1 adapter".to_owned(),
        (None, count) => format!(", {count} distinct adapters"),
    };
    let mut out = format!(
        "{} on {}, loaded in {:.2} s, {:.1} MiB of files\nbatch {}{adapters}, prompt {}, decode {} after {} tokens, \
         {} rounds: medians (ranges), all sequences together\n\n",
        m.model, m.device, m.load_s, m.file_mib, m.batch, m.prompt, m.decode, m.context, m.rounds
    );
    #[cfg(feature = "cuda")]
    if let Some(c) = &m.ceilings {
        out += &format!(
            "memory is read at {:.0} GB/s; a launch takes {:.1} us, {:.1} us if waited for\n\n",
            c.read_gb_s, c.launch_us, c.round_trip_us
        );
    }
    out += &format!("{:<6} {:>26} {:>26}\n", "", "prefill tokens/s", "decode tokens/s");
    let cell = |median: f64, min: f64, max: f64| format!("{median:.1} ({min:.1}..{max:.1})");
    let rows = [("base", Some(m.base)), ("lora", m.lora)];
    for (name, speed) in rows.into_iter().filter_map(|(name, speed)| Some((name, speed?))) {
        let prefill = cell(speed.prefill_tps, speed.prefill_tps_min, speed.prefill_tps_max);
        let decode = cell(speed.decode_tps, speed.decode_tps_min, speed.decode_tps_max);
        out += &format!("{name:<6} {prefill:>26} {decode:>26}\n");
    }
    out += &m.drafts.as_ref().map(DraftSpeed::table).unwrap_or_default();
    out + &m.structured.as_ref().map(StructuredSpeed::table).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_adapters_than_folders_are_loaded_again_under_further_names() {
        let given: Vec<NamedAdapter> = ["a=x", "b=y"].map(|text| text.parse().expect("parses")).into();
        let text = |count| repeated(&given, count).iter().map(|one| one.name.clone()).collect::<Vec<_>>().join(" ");
        assert_eq!((text(1), text(2), text(5)), ("a".into(), "a b".into(), "a b a#2 b#2 a#3".into()));
        assert_eq!(repeated(&given, 4)[3].dir, given[1].dir);
        assert!(repeated(&[], 0).is_empty());
    }
}
