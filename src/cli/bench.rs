//! `exlora bench`: prefill and decode of one sequence, without an adapter and with one.
//!
//! Both are measured by turns in one process, so that a slow spell of the machine hits both: each round prefills once
//! with each, then decodes in four short parts, alternating. Medians are reported. The model's forward pass is driven
//! directly: no sampling, no text, no prefix found in a cache. Prompts are random token ids; logits are computed for the
//! last row alone, as a request needs them. Every row of the "lora" part has the adapter at weight 1.

use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use serde::Serialize;

use super::load::{ModelArgs, NamedAdapter};
use super::output::{print, print_json};
use crate::adapter::mixture::Mixture;
use crate::backend::KvDType;
use crate::doctor;
use crate::engine::EngineOptions;
use crate::error::{Error, ErrorCode, Result};
use crate::kv_cache::pages_for;
use crate::model::batch::{SequenceRows, StepBatch};
use crate::model::{KvStorage, Model};

/// Steps before a part is timed.
const WARM_STEPS: usize = 2;
const WARM_PREFILL: usize = 16;
/// Parts in which a round decodes.
const PARTS: usize = 4;

#[derive(Args)]
pub(super) struct BenchArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Measure a second time with this adapter on every row.
    #[arg(long, value_name = "NAME=DIR")]
    adapter: Option<NamedAdapter>,
    /// Tokens of the prompt.
    #[arg(long, value_name = "N", default_value_t = 512)]
    prompt: usize,
    /// Tokens to decode in a round.
    #[arg(long, value_name = "N", default_value_t = 64)]
    decode: usize,
    /// Rounds to take the median of.
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: usize,
}

#[derive(Serialize)]
struct Measurement {
    engine: &'static str,
    model: String,
    device: String,
    threads: Option<usize>,
    load_s: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    lora_load_s: Option<f64>,
    file_mib: f64,
    prompt: usize,
    decode: usize,
    rounds: usize,
    base: Speed,
    #[serde(skip_serializing_if = "Option::is_none")]
    lora: Option<Speed>,
    loadavg: Option<f64>,
    peak_rss_mib: Option<f64>,
}

/// Medians, in tokens per second.
#[derive(Clone, Copy, Serialize)]
struct Speed {
    prefill_tps: f64,
    decode_tps: f64,
}

pub(super) fn run(args: &BenchArgs, json: bool) -> Result<()> {
    let (model, load_time) = args.model.load()?;
    check(args, model.config().max_positions)?;
    let start = Instant::now();
    let lease = match &args.adapter {
        None => None,
        Some(NamedAdapter { name, dir }) => {
            model.load_adapter(name, dir)?;
            Some(model.adapters().lease(name)?)
        }
    };
    let lora_load_s = lease.as_ref().map(|_| rounded(start.elapsed().as_secs_f64(), 3));
    let mut variants = vec![Variant::new(Mixture::default())];
    if let Some(lease) = lease {
        variants.push(Variant::new(Mixture::new(vec![(lease, 1.0)], model.sites())?));
    }
    let kv_groups = variants.iter().map(|variant| model.kv_groups_of(variant.mixture.layers())).max().unwrap_or(1);
    measure(args, &mut Stream::new(&model, args, kv_groups)?, &mut variants)?;

    let name = args.model.model.file_name().unwrap_or(args.model.model.as_os_str());
    let measurement = Measurement {
        engine: "exlora",
        model: name.to_string_lossy().into_owned(),
        device: model.describe_device(),
        threads: args.model.threads,
        load_s: rounded(load_time.as_secs_f64(), 3),
        lora_load_s,
        file_mib: mib(model.file_bytes()),
        prompt: args.prompt,
        decode: args.decode,
        rounds: args.rounds,
        base: variants[0].speed(),
        lora: variants.get(1).map(Variant::speed),
        loadavg: doctor::load_average(),
        peak_rss_mib: doctor::peak_resident_bytes().map(mib),
    };
    if json { print_json(&measurement) } else { print(&table(&measurement)) }
}

fn check(args: &BenchArgs, positions: usize) -> Result<()> {
    let wrong = |what: &str| Error::new(ErrorCode::RequestInvalid, what.to_owned());
    if args.prompt == 0 || args.rounds == 0 {
        return Err(wrong("prompt and rounds must be at least 1"));
    }
    if args.decode < PARTS {
        return Err(wrong("decode is measured in four parts").with_expected("at least 4").with_found(args.decode));
    }
    let needed = args.prompt.max(args.decode / PARTS + WARM_STEPS).max(WARM_PREFILL + WARM_STEPS);
    if needed > positions {
        return Err(Error::new(ErrorCode::PromptTooLong, "the measurement does not fit the model's positions")
            .with_expected(format!("at most {positions} tokens"))
            .with_found(format!("{needed} tokens")));
    }
    Ok(())
}

/// The base, or an adapter on every row, and what was measured with it in tokens per second.
struct Variant {
    mixture: Mixture,
    prefill: Vec<f64>,
    decode: Vec<f64>,
}

impl Variant {
    fn new(mixture: Mixture) -> Self {
        Self { mixture, prefill: Vec::new(), decode: Vec::new() }
    }

    fn speed(&self) -> Speed {
        Speed { prefill_tps: rounded(median(&self.prefill), 2), decode_tps: rounded(median(&self.decode), 2) }
    }
}

fn measure(args: &BenchArgs, stream: &mut Stream<'_>, variants: &mut [Variant]) -> Result<()> {
    for variant in variants.iter() {
        stream.prefill(&variant.mixture, WARM_PREFILL)?;
        stream.decode(&variant.mixture, WARM_STEPS)?;
    }
    for _ in 0..args.rounds {
        for variant in variants.iter_mut() {
            let start = Instant::now();
            stream.prefill(&variant.mixture, args.prompt)?;
            variant.prefill.push(args.prompt as f64 / start.elapsed().as_secs_f64());
        }
        for _ in 0..PARTS {
            for variant in variants.iter_mut() {
                stream.clear();
                stream.decode(&variant.mixture, WARM_STEPS)?;
                let start = Instant::now();
                stream.decode(&variant.mixture, args.decode / PARTS)?;
                variant.decode.push((args.decode / PARTS) as f64 / start.elapsed().as_secs_f64());
            }
        }
    }
    Ok(())
}

/// One sequence, fed with random tokens.
struct Stream<'a> {
    model: &'a Arc<Model>,
    kv: KvStorage,
    pages_of_kv_group: usize,
    position: usize,
    batch: StepBatch,
    logits: Vec<f32>,
    random: u32,
}

impl<'a> Stream<'a> {
    fn new(model: &'a Arc<Model>, args: &BenchArgs, kv_groups: usize) -> Result<Self> {
        let pages_of_kv_group = pages_for(args.prompt.max(args.decode).max(WARM_PREFILL) + WARM_STEPS);
        let kv = model.create_kv(pages_of_kv_group * kv_groups, KvDType::F16)?;
        let batch = StepBatch::default();
        Ok(Self { model, kv, pages_of_kv_group, position: 0, batch, logits: Vec::new(), random: 1 })
    }

    fn clear(&mut self) {
        self.position = 0;
    }

    /// Feeds a new sequence of `tokens`, in the chunks in which the engine would.
    fn prefill(&mut self, mixture: &Mixture, tokens: usize) -> Result<()> {
        self.clear();
        let chunk = EngineOptions::default().prefill_chunk;
        let mut done = 0;
        while done < tokens {
            let rows = chunk.min(tokens - done);
            done += rows;
            self.feed(mixture, rows, done == tokens)?;
        }
        Ok(())
    }

    fn decode(&mut self, mixture: &Mixture, tokens: usize) -> Result<()> {
        (0..tokens).try_for_each(|_| self.feed(mixture, 1, true))
    }

    /// One step over the next positions; logits of the last row if they are wanted.
    fn feed(&mut self, mixture: &Mixture, rows: usize, wants_logits: bool) -> Result<()> {
        let vocab = self.model.config().vocab_size;
        let tokens: Vec<u32> = (0..rows)
            .map(|_| {
                // Numerical Recipes' linear congruential generator: any spread of ids will do.
                self.random = self.random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (self.random >> 8) % vocab as u32
            })
            .collect();
        let kv_groups = self.model.kv_groups_of(mixture.layers());
        let pages: Vec<u32> = (0..self.pages_of_kv_group * kv_groups).map(|page| page as u32).collect();
        let (entries, batch) = (mixture.entries(), &mut self.batch);
        batch.begin(mixture.layers(), kv_groups, mixture.head_rows(vocab));
        let logits = usize::from(wants_logits);
        let sequence = SequenceRows { tokens: &tokens, position: self.position, pages: &pages, logits };
        batch.push_sequence(sequence, std::iter::repeat_n(&entries[..], rows));
        batch.finish();
        self.position += rows;
        self.model.forward(batch, &[&self.kv], &mut self.logits)
    }
}

/// The upper of the two in the middle, as peers take it.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

fn mib(bytes: u64) -> f64 {
    rounded(bytes as f64 / f64::from(1 << 20), 1)
}

fn rounded(value: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}

fn table(m: &Measurement) -> String {
    let mut out = format!(
        "{} on {}, loaded in {:.2} s, {:.1} MiB of files, prompt {}, decode {}, median of {}\n\n",
        m.model, m.device, m.load_s, m.file_mib, m.prompt, m.decode, m.rounds
    );
    out += &format!("{:<6} {:>14} {:>14}\n", "", "prefill tok/s", "decode tok/s");
    let rows = [("base", Some(m.base)), ("lora", m.lora)];
    for (name, speed) in rows.into_iter().filter_map(|(name, speed)| Some((name, speed?))) {
        out += &format!("{name:<6} {:>14.1} {:>14.1}\n", speed.prefill_tps, speed.decode_tps);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_that_of_the_peers() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), 3.0);
    }
}
