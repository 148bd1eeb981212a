//! Which adapter each request of a measurement names, and how.

use clap::ValueEnum;
use serde::Serialize;

/// How often each adapter is named, as multi-LoRA systems are compared (Punica's four workloads).
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::cli::bench) enum Popularity {
    /// Each request another adapter, in turn.
    Distinct,
    /// Drawn, all equally likely.
    Uniform,
    /// Drawn, the k-th with a probability proportional to k^-1.5 (Zipf).
    Skewed,
    /// All requests the first adapter.
    Identical,
}

/// Exponent of the skewed workload.
const ZIPF_EXPONENT: f64 = 1.5;

impl Popularity {
    /// The adapter of each request, by its place among `adapters` (at least 1).
    pub(super) fn assign(self, requests: usize, adapters: usize, random: &mut Random) -> Vec<usize> {
        let weight = |place: usize| match self {
            Self::Skewed => (place as f64 + 1.0).powf(-ZIPF_EXPONENT),
            _ => 1.0,
        };
        let total: f64 = (0..adapters).map(weight).sum();
        let draw = |random: &mut Random| {
            let mut left = random.fraction() * total;
            let drawn = (0..adapters).find(|&place| {
                left -= weight(place);
                left < 0.0
            });
            drawn.unwrap_or(adapters - 1)
        };
        let place = |request: usize| match self {
            Self::Distinct => request % adapters,
            Self::Identical => 0,
            Self::Uniform | Self::Skewed => draw(random),
        };
        (0..requests).map(place).collect()
    }
}

/// The field of a request that names its adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::cli::bench) enum AdapterField {
    /// `{"model": "NAME"}`, as vLLM has it.
    Model,
    /// `{"adapters": "NAME"}`.
    Adapters,
    /// `{"lora": [{"id": ID, "scale": 1}]}`, as llama.cpp has it.
    Lora,
}

/// Random numbers that are the same for the same seed (splitmix64).
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// At least 0 and less than 1.
    fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often each of five adapters is named.
    fn counts(popularity: Popularity, requests: usize) -> [usize; 5] {
        let mut counts = [0; 5];
        popularity.assign(requests, 5, &mut Random::new(1)).into_iter().for_each(|place| counts[place] += 1);
        counts
    }

    #[test]
    fn each_workload_names_adapters_as_often_as_it_says() {
        assert_eq!(Popularity::Distinct.assign(7, 3, &mut Random::new(1)), [0, 1, 2, 0, 1, 2, 0]);
        assert_eq!(counts(Popularity::Identical, 9), [9, 0, 0, 0, 0]);
        let uniform = counts(Popularity::Uniform, 10_000);
        assert!(uniform.iter().all(|count| (1850..2150).contains(count)), "{uniform:?}");
        let total: f64 = (1..=5).map(|k| f64::from(k).powf(-1.5)).sum();
        for (k, count) in (1..).zip(counts(Popularity::Skewed, 10_000)) {
            let expected = 10_000.0 * f64::from(k).powf(-1.5) / total;
            assert!((count as f64 - expected).abs() < 200.0, "{k}: {count} and {expected}");
        }
    }

    #[test]
    fn the_same_seed_draws_the_same() {
        let draw = |seed| Popularity::Uniform.assign(20, 5, &mut Random::new(seed));
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }
}
