//! The timed part of `exlora bench`: rounds that alternate between base and adapters, and the statistics.

use std::ops::Range;
use std::time::Instant;

use serde::Serialize;

use super::stream::{Assignment, Stream};
use crate::engine::{Engine, Request};
use crate::error::Result;

/// Untimed steps before each timed part.
const WARM_STEPS: usize = 2;
/// Tokens of the untimed prompt before the first round.
const WARM_PROMPT: usize = 16;
/// Parts in which a round decodes, so that a slow spell of the machine affects base and adapters alike.
const PARTS: usize = 4;

/// How much is computed. All counts are tokens of one sequence.
#[derive(Clone, Copy)]
pub(super) struct Workload {
    /// Sequences computed together.
    pub batch: usize,
    /// Tokens of each prompt.
    pub prompt: usize,
    /// Tokens in the cache before the first decoded one.
    pub context: usize,
    /// Tokens decoded in a round.
    pub decode: usize,
    /// Rounds.
    pub rounds: usize,
}

impl Workload {
    /// The longest that a sequence gets.
    pub(super) fn tokens(&self) -> usize {
        self.prompt.max(self.context + self.decode)
    }

    /// The positions of each timed part of a round's decoding, in order; none is empty.
    fn parts(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (parts, decode, context) = (PARTS.min(self.decode), self.decode, self.context);
        (0..parts).map(move |part| context + part * decode / parts..context + (part + 1) * decode / parts)
    }
}

/// Base or adapters, and the tokens per second measured so far, over all sequences together.
pub(super) struct Variant {
    pub adapters: Assignment,
    prefill: Vec<f64>,
    decode: Vec<f64>,
}

/// Tokens per second over all sequences together: medians and ranges.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Speed {
    pub prefill_tps: f64,
    pub prefill_tps_min: f64,
    pub prefill_tps_max: f64,
    pub decode_tps: f64,
    pub decode_tps_min: f64,
    pub decode_tps_max: f64,
}

impl Variant {
    pub(super) fn new(adapters: Assignment) -> Self {
        Self { adapters, prefill: Vec::new(), decode: Vec::new() }
    }

    pub(super) fn speed(&self) -> Speed {
        let [prefill, decode] = [&self.prefill, &self.decode].map(|values| Spread::of(values));
        Speed {
            prefill_tps: prefill.median,
            prefill_tps_min: prefill.min,
            prefill_tps_max: prefill.max,
            decode_tps: decode.median,
            decode_tps_min: decode.min,
            decode_tps_max: decode.max,
        }
    }
}

/// Runs all rounds. Each prefills once with every variant, then decodes in short parts, alternating between them.
pub(super) fn measure(work: &Workload, stream: &mut Stream<'_>, variants: &mut [Variant]) -> Result<()> {
    for variant in variants.iter() {
        stream.prefill(&variant.adapters, WARM_PROMPT.min(work.tokens()))?;
    }
    if work.context > work.prompt
        && let Some(variant) = variants.last()
    {
        // The rounds' prompts do not fill the cache this far. Its length affects speed, its contents do not, so one pass
        // serves all variants; the last one has the most KV groups.
        stream.prefill(&variant.adapters, work.context)?;
    }
    for _ in 0..work.rounds {
        for variant in variants.iter_mut() {
            let start = Instant::now();
            stream.prefill(&variant.adapters, work.prompt)?;
            variant.prefill.push((work.batch * work.prompt) as f64 / start.elapsed().as_secs_f64());
        }
        for part in work.parts() {
            for variant in variants.iter_mut() {
                stream.decode(&variant.adapters, part.start..part.end.min(part.start + WARM_STEPS))?;
                let start = Instant::now();
                stream.decode(&variant.adapters, part.clone())?;
                variant.decode.push((work.batch * part.len()) as f64 / start.elapsed().as_secs_f64());
            }
        }
    }
    Ok(())
}

pub(super) struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// The median is the upper of the two middle values, as in the other engines' benchmarks.
    pub(super) fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |index: usize| sorted.get(index).copied().map_or(0.0, |value| rounded(value, 2));
        Self { median: at(sorted.len() / 2), min: at(0), max: at(sorted.len().saturating_sub(1)) }
    }
}

/// A number rounded to some decimals.
pub(super) fn rounded(value: f64, decimals: i32) -> f64 {
    let scale = 10f64.powi(decimals);
    (value * scale).round() / scale
}

/// Tokens that requests generate in a second, all of them together.
///
/// # Errors
/// Those of the engine.
pub(super) fn tokens_per_second(engine: &Engine, requests: &[Request]) -> Result<f64> {
    let start = Instant::now();
    let tokens: usize = engine.generate(requests)?.iter().map(|completion| completion.token_ids.len()).sum();
    Ok(tokens as f64 / start.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work(prompt: usize, context: usize, decode: usize) -> Workload {
        Workload { batch: 1, prompt, context, decode, rounds: 1 }
    }

    #[test]
    fn the_parts_decode_each_token_after_the_context_exactly_once() {
        for decode in [1, 2, 3, 4, 7, 64, 66] {
            let parts: Vec<_> = work(8, 100, decode).parts().collect();
            assert!(parts.len() == decode.min(PARTS) && parts.iter().all(|part| !part.is_empty()), "{parts:?}");
            assert_eq!(parts.into_iter().flatten().collect::<Vec<_>>(), (100..100 + decode).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_sequence_has_room_for_its_prompt_and_for_what_is_decoded_after_the_context() {
        assert_eq!((work(512, 512, 64).tokens(), work(512, 16, 64).tokens()), (576, 512));
        assert_eq!(work(8, 4096, 4).tokens(), 4100);
    }

    #[test]
    fn speeds_are_medians_with_their_ranges() {
        let mut variant = Variant::new(Assignment::base());
        variant.prefill = vec![3.0, 1.0, 2.0];
        variant.decode = vec![4.0, 1.004, 3.0, 2.0];
        let speed = variant.speed();
        assert_eq!((speed.prefill_tps, speed.prefill_tps_min, speed.prefill_tps_max), (2.0, 1.0, 3.0));
        assert_eq!((speed.decode_tps, speed.decode_tps_min, speed.decode_tps_max), (3.0, 1.0, 4.0));
    }
}
