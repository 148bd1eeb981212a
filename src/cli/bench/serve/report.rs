//! What a measurement of a server found: percentiles of latencies, overall and for each adapter.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::workload::{AdapterField, Popularity};
use crate::cli::bench::timing::rounded;

/// A request that has ended.
pub(super) struct Finished {
    /// Its adapter's place in the list.
    pub adapter: Option<usize>,
    pub tokens: usize,
    pub to_first_token: Duration,
    /// From the first token to the last.
    pub generating: Duration,
}

/// The result of a measurement.
#[derive(Serialize)]
pub(in crate::cli::bench) struct Report {
    pub url: String,
    pub model: String,
    pub adapters: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub popularity: Option<Popularity>,
    pub adapter_field: AdapterField,
    pub concurrency: usize,
    pub prompt: usize,
    pub decode: usize,
    pub wall_s: f64,
    pub failed: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_failure: Option<String>,
    #[serde(flatten)]
    pub overall: Latencies,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub per_adapter: BTreeMap<String, Latencies>,
}

/// Speed and latencies of some of the requests.
#[derive(Serialize)]
pub(in crate::cli::bench) struct Latencies {
    pub requests: usize,
    /// New tokens.
    pub tokens: usize,
    pub requests_per_s: f64,
    pub tokens_per_s: f64,
    /// From sending a request to its first token.
    pub time_to_first_token_ms: Percentiles,
    /// Between the tokens of a request after the first; none if no request has two.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_per_token_ms: Option<Percentiles>,
}

/// Percentiles by nearest rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(in crate::cli::bench) struct Percentiles {
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
}

impl Percentiles {
    /// `None` if there are no values.
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let count = values.len();
        let percentile = |percent: usize| values.get((count * percent).div_ceil(100).max(1) - 1).copied();
        let [p50, p90, p99] = [50, 90, 99].map(|percent| percentile(percent).map(|value| rounded(value, 3)));
        Some(Self { mean: rounded(values.iter().sum::<f64>() / count as f64, 3), p50: p50?, p90: p90?, p99: p99? })
    }
}

impl Latencies {
    /// Of requests that ended within `wall`.
    pub(super) fn of<'a>(finished: impl Iterator<Item = &'a Finished>, wall: Duration) -> Self {
        let finished: Vec<&Finished> = finished.collect();
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        let to_first = finished.iter().map(|one| milliseconds(one.to_first_token)).collect();
        let several = finished.iter().filter(|one| one.tokens > 1);
        let per_token = several.map(|one| milliseconds(one.generating) / (one.tokens - 1) as f64).collect();
        let (requests, tokens) = (finished.len(), finished.iter().map(|one| one.tokens).sum::<usize>());
        let per_s = |count: usize| rounded(count as f64 / wall.as_secs_f64(), 3);
        Self {
            requests,
            tokens,
            requests_per_s: per_s(requests),
            tokens_per_s: per_s(tokens),
            time_to_first_token_ms: Percentiles::of(to_first).unwrap_or_default(),
            time_per_token_ms: Percentiles::of(per_token),
        }
    }
}

impl Report {
    /// It in words and numbers.
    pub(in crate::cli::bench) fn table(&self) -> String {
        let adapters = match (self.adapters, self.popularity) {
            (0, _) | (_, None) => "the base alone".to_owned(),
            (1, _) => "1 adapter".to_owned(),
            (all, Some(popularity)) => format!("{all} adapters, {popularity:?}").to_lowercase(),
        };
        let mut out = format!(
            "{} ({}), {adapters}\n{} requests, {} in flight, prompt {}, {} new tokens: {:.2} s\n\n{:<16} {:>8} {:>8} {:>8}  \
             {:>26}  {:>26}\n{:<16} {:>8} {:>8} {:>8}  {:>26}  {:>26}\n",
            self.url,
            self.model,
            self.overall.requests,
            self.concurrency,
            self.prompt,
            self.decode,
            self.wall_s,
            "",
            "requests",
            "requests",
            "tokens",
            "first token, ms",
            "each further token, ms",
            "",
            "",
            "/s",
            "/s",
            "p50 / p90 / p99",
            "p50 / p90 / p99",
        );
        let rows = std::iter::once(("all", &self.overall));
        for (name, row) in rows.chain(self.per_adapter.iter().map(|(name, row)| (name.as_str(), row))) {
            let cell = |p: Percentiles| format!("{:.1} / {:.1} / {:.1}", p.p50, p.p90, p.p99);
            let per_token = row.time_per_token_ms.map_or_else(String::new, cell);
            out += &format!(
                "{name:<16} {:>8} {:>8.2} {:>8.1}  {:>26}  {per_token:>26}\n",
                row.requests,
                row.requests_per_s,
                row.tokens_per_s,
                cell(row.time_to_first_token_ms),
            );
        }
        if let Some(failure) = &self.first_failure {
            out += &format!("\n{} requests failed, the first with: {failure}\n", self.failed);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let of = |values: &[f64]| Percentiles::of(values.to_vec()).expect("values");
        let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(of(&hundred), Percentiles { mean: 50.5, p50: 50.0, p90: 90.0, p99: 99.0 });
        assert_eq!(of(&[3.0, 1.0]), Percentiles { mean: 2.0, p50: 1.0, p90: 3.0, p99: 3.0 });
        assert_eq!(of(&[7.0]), Percentiles { mean: 7.0, p50: 7.0, p90: 7.0, p99: 7.0 });
        assert!(Percentiles::of(Vec::new()).is_none());
    }

    #[test]
    fn the_first_token_does_not_count_as_time_per_token() {
        let finished = |tokens, generating| Finished {
            adapter: None,
            tokens,
            to_first_token: Duration::from_millis(30),
            generating: Duration::from_millis(generating),
        };
        let all = [finished(5, 40), finished(1, 0)];
        let found = Latencies::of(all.iter(), Duration::from_secs(2));
        assert_eq!((found.requests_per_s, found.tokens_per_s), (1.0, 3.0));
        assert_eq!(found.time_to_first_token_ms.p99, 30.0);
        assert_eq!(found.time_per_token_ms, Percentiles::of(vec![10.0]));
    }
}
