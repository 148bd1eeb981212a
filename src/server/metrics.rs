//! What is counted, in Prometheus' text form.
//!
//! A server has a recorder of its own, so several in one process do not mix. Whatever is counted for an adapter has the label
//! `adapter`: the adapter's name, `base`, or `mixture` for a request with several. Only names of adapters that were loaded
//! become labels, and no more than a thousand; those beyond share the label `other`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use metrics::{Counter, Histogram, Key, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use parking_lot::Mutex;

use super::exposition::ordered;
use crate::engine::Usage;

/// Most values of the label `adapter`.
const MAX_LABELS: usize = 1000;

/// The label of what belongs to adapters beyond [`MAX_LABELS`].
const OTHER: &str = "other";

/// Measured times are kept one by one until a scrape, or until there are this many.
const MAX_UNREAD_TIMES: usize = 4096;

const METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, None);

const REQUESTS: &str = "exlora_requests_total";
const FAILED: &str = "exlora_requests_failed_total";
const REJECTED: &str = "exlora_requests_rejected_total";
const PROMPT_TOKENS: &str = "exlora_prompt_tokens_total";
const CACHED_TOKENS: &str = "exlora_prompt_tokens_cached_total";
const GENERATED_TOKENS: &str = "exlora_generated_tokens_total";
const FIRST_TOKEN: &str = "exlora_time_to_first_token_seconds";
const PER_TOKEN: &str = "exlora_time_per_token_seconds";
const USES: &str = "exlora_adapter_uses_total";
const LOADS: &str = "exlora_adapter_load_seconds";
const FAILED_LOADS: &str = "exlora_adapter_loads_failed_total";
const EVICTIONS: &str = "exlora_adapter_evictions_total";

/// Names and meanings of the counters.
const COUNTERS: [(&str, &str); 9] = [
    (REQUESTS, "Requests that were accepted"),
    (FAILED, "Accepted requests that failed or whose client went away"),
    (REJECTED, "Requests that were refused because too many waited"),
    (PROMPT_TOKENS, "Prompt tokens of completions that ended"),
    (CACHED_TOKENS, "Those of them that were found in the prefix cache"),
    (GENERATED_TOKENS, "Tokens that were generated, counted as they come"),
    (USES, "Requests that named an adapter, alone or in a mixture"),
    (FAILED_LOADS, "Loads of adapters that failed, but for those for want of room"),
    (EVICTIONS, "Times an adapter was unloaded because another one needed the room"),
];

/// Names, meanings and buckets, in seconds, of the histograms.
const HISTOGRAMS: [(&str, &str, &[f64]); 3] = [
    (
        FIRST_TOKEN,
        "From accepting a request to a completion's first token",
        &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0],
    ),
    (
        PER_TOKEN,
        "Between the tokens of a completion after its first",
        &[0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5],
    ),
    (LOADS, "Loading an adapter", &[0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0]),
];

/// Counters of a server. Clones are the same ones.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    rejected: Counter,
    failed_loads: Counter,
    /// What requests count, by the label of their adapters.
    requests: Mutex<HashMap<String, RequestMetrics>>,
    /// What is counted of an adapter, by its label.
    adapters: Mutex<HashMap<String, AdapterMetrics>>,
    /// The adapters that have gauges.
    gauge_labels: Mutex<BTreeSet<String>>,
    /// Measured times that may not have gone into their histograms yet.
    unread_times: AtomicUsize,
}

#[derive(Clone)]
struct RequestMetrics {
    requests: Counter,
    failed: Counter,
    prompt_tokens: Counter,
    cached_tokens: Counter,
    generated_tokens: Counter,
    first_token: Histogram,
    per_token: Histogram,
}

#[derive(Clone)]
struct AdapterMetrics {
    uses: Counter,
    loads: Histogram,
    evictions: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut builder = PrometheusBuilder::new();
        for (name, _, buckets) in HISTOGRAMS {
            // It refuses an empty list alone.
            builder = builder.set_buckets_for_metric(Matcher::Full(name.to_owned()), buckets).unwrap_or_default();
        }
        let recorder = builder.build_recorder();
        for (name, meaning) in COUNTERS {
            recorder.describe_counter(name.into(), None, meaning.into());
        }
        for (name, meaning, _) in HISTOGRAMS {
            recorder.describe_histogram(name.into(), None, meaning.into());
        }
        let counter = |name: &'static str| recorder.register_counter(&Key::from_static_name(name), &METADATA);
        Self(Arc::new(Inner {
            handle: recorder.handle(),
            rejected: counter(REJECTED),
            failed_loads: counter(FAILED_LOADS),
            recorder,
            requests: Mutex::default(),
            adapters: Mutex::default(),
            gauge_labels: Mutex::default(),
            unread_times: AtomicUsize::new(0),
        }))
    }
}

impl Metrics {
    /// A request was refused because of the queue.
    pub fn rejected(&self) {
        self.0.rejected.increment(1);
    }

    /// A request was accepted; `label` names its adapters.
    pub fn accepted(&self, label: &str) {
        self.0.of_requests(label).requests.increment(1);
    }

    /// A sample of a request has its first token.
    pub fn first_token(&self, label: &str, since_accepted: Duration) {
        self.0.record(&self.0.of_requests(label).first_token, since_accepted);
    }

    /// A sample of a request has further tokens.
    pub fn generated(&self, label: &str, tokens: usize) {
        self.0.of_requests(label).generated_tokens.increment(tokens as u64);
    }

    /// A sample of a request, whose tokens were counted, ended with these token counts; `generating` is the time since its first
    /// token.
    pub fn finished(&self, label: &str, usage: &Usage, generating: Duration) {
        let metrics = self.0.of_requests(label);
        metrics.prompt_tokens.increment(usage.prompt_tokens as u64);
        metrics.cached_tokens.increment(usage.cached_tokens as u64);
        if let Some(further) = u32::try_from(usage.completion_tokens).ok().and_then(|tokens| tokens.checked_sub(1))
            && further > 0
        {
            self.0.record(&metrics.per_token, generating / further);
        }
    }

    /// A request failed, or its client went away.
    pub fn failed(&self, label: &str) {
        self.0.of_requests(label).failed.increment(1);
    }

    /// A request named an adapter, alone or in a mixture.
    pub fn adapter_used(&self, name: &str) {
        self.0.of_adapter(name).uses.increment(1);
    }

    /// An adapter was loaded.
    pub fn adapter_loaded(&self, name: &str, time: Duration) {
        self.0.record(&self.0.of_adapter(name).loads, time);
    }

    /// An adapter could not be loaded.
    pub fn adapter_load_failed(&self) {
        self.0.failed_loads.increment(1);
    }

    /// An adapter was unloaded to make room for another one.
    pub fn adapter_evicted(&self, name: &str) {
        self.0.of_adapter(name).evictions.increment(1);
    }

    /// Sets what has a value at each time.
    pub fn set(&self, name: &'static str, meaning: &'static str, value: f64) {
        self.0.recorder.describe_gauge(name.into(), None, meaning.into());
        self.0.recorder.register_gauge(&Key::from_static_name(name), &METADATA).set(value);
    }

    /// The same with a value for each adapter. Adapters that had one before and now have none get 0.
    pub fn set_of_adapters(&self, name: &'static str, meaning: &'static str, values: &BTreeMap<&str, f64>) {
        self.0.recorder.describe_gauge(name.into(), None, meaning.into());
        let mut labels = self.0.gauge_labels.lock();
        for adapter in values.keys() {
            if labels.len() < MAX_LABELS && !labels.contains(*adapter) {
                labels.insert((*adapter).to_owned());
            }
        }
        for adapter in &*labels {
            let gauge = self.0.recorder.register_gauge(&labeled(name, adapter), &METADATA);
            gauge.set(values.get(adapter.as_str()).copied().unwrap_or(0.0));
        }
    }

    /// Everything in Prometheus' text form, in one order.
    pub fn render(&self) -> String {
        self.0.unread_times.store(0, Ordering::Relaxed);
        ordered(&self.0.handle.render())
    }
}

impl Inner {
    fn of_requests(&self, label: &str) -> RequestMetrics {
        let counter = |name, label: &str| self.recorder.register_counter(&labeled(name, label), &METADATA);
        let histogram = |name, label: &str| self.recorder.register_histogram(&labeled(name, label), &METADATA);
        bounded(&mut self.requests.lock(), label, |label| RequestMetrics {
            requests: counter(REQUESTS, label),
            failed: counter(FAILED, label),
            prompt_tokens: counter(PROMPT_TOKENS, label),
            cached_tokens: counter(CACHED_TOKENS, label),
            generated_tokens: counter(GENERATED_TOKENS, label),
            first_token: histogram(FIRST_TOKEN, label),
            per_token: histogram(PER_TOKEN, label),
        })
    }

    fn of_adapter(&self, name: &str) -> AdapterMetrics {
        bounded(&mut self.adapters.lock(), name, |label| AdapterMetrics {
            uses: self.recorder.register_counter(&labeled(USES, label), &METADATA),
            loads: self.recorder.register_histogram(&labeled(LOADS, label), &METADATA),
            evictions: self.recorder.register_counter(&labeled(EVICTIONS, label), &METADATA),
        })
    }

    /// Adds a time to a histogram. Times are sorted into buckets when they are read, or once many have come together.
    fn record(&self, histogram: &Histogram, time: Duration) {
        histogram.record(time.as_secs_f64());
        if self.unread_times.fetch_add(1, Ordering::Relaxed) >= MAX_UNREAD_TIMES {
            self.unread_times.store(0, Ordering::Relaxed);
            self.handle.run_upkeep();
        }
    }
}

/// What belongs to a label, made if it is new, as long as there are not too many.
fn bounded<M: Clone>(known: &mut HashMap<String, M>, label: &str, make: impl FnOnce(&str) -> M) -> M {
    if let Some(found) = known.get(label) {
        return found.clone();
    }
    let label = if known.len() < MAX_LABELS { label } else { OTHER };
    known.entry(label.to_owned()).or_insert_with(|| make(label)).clone()
}

fn labeled(name: &'static str, adapter: &str) -> Key {
    Key::from_parts(name, vec![Label::new("adapter", adapter.to_owned())])
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value of a sample by its name and labels as written.
    fn value(text: &str, sample: &str) -> Option<f64> {
        text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' ')?.parse().ok())
    }

    #[test]
    fn requests_are_counted_for_each_adapter() {
        let metrics = Metrics::default();
        metrics.rejected();
        for label in ["sql", "sql", "base"] {
            metrics.accepted(label);
            metrics.first_token(label, Duration::from_millis(30));
        }
        let usage = Usage { prompt_tokens: 10, cached_tokens: 4, completion_tokens: 5, ..Usage::default() };
        for tokens in [1, 4] {
            metrics.generated("sql", tokens);
        }
        metrics.finished("sql", &usage, Duration::from_millis(40));
        metrics.failed("base");
        let text = metrics.render();
        for (sample, expected) in [
            ("exlora_requests_rejected_total", 1.0),
            ("exlora_requests_total{adapter=\"sql\"}", 2.0),
            ("exlora_requests_total{adapter=\"base\"}", 1.0),
            ("exlora_requests_failed_total{adapter=\"base\"}", 1.0),
            ("exlora_prompt_tokens_total{adapter=\"sql\"}", 10.0),
            ("exlora_prompt_tokens_cached_total{adapter=\"sql\"}", 4.0),
            ("exlora_generated_tokens_total{adapter=\"sql\"}", 5.0),
            ("exlora_time_to_first_token_seconds_count{adapter=\"sql\"}", 2.0),
            ("exlora_time_to_first_token_seconds_bucket{adapter=\"sql\",le=\"0.025\"}", 0.0),
            ("exlora_time_to_first_token_seconds_bucket{adapter=\"sql\",le=\"0.05\"}", 2.0),
            ("exlora_time_per_token_seconds_sum{adapter=\"sql\"}", 0.01),
        ] {
            assert_eq!(value(&text, sample), Some(expected), "{sample} in\n{text}");
        }
    }

    #[test]
    fn a_completion_of_one_token_has_no_time_between_tokens() {
        let metrics = Metrics::default();
        metrics.finished("base", &Usage { completion_tokens: 1, ..Usage::default() }, Duration::ZERO);
        metrics.finished("base", &Usage::default(), Duration::ZERO);
        let count = value(&metrics.render(), "exlora_time_per_token_seconds_count{adapter=\"base\"}");
        assert!(count.is_none_or(|count| count == 0.0));
    }

    #[test]
    fn two_servers_do_not_mix() {
        let [one, other] = [(); 2].map(|()| Metrics::default());
        one.adapter_evicted("sql");
        one.adapter_loaded("sql", Duration::from_millis(1));
        one.set("exlora_kv_pages_free", "Free pages", 3.0);
        for values in [[("sql", 7.0), ("wit", 8.0)], [("sql", 9.0), ("new", 1.0)]] {
            one.set_of_adapters("exlora_adapter_bytes", "Bytes", &values.into());
        }
        let text = one.render();
        assert_eq!(value(&text, "exlora_adapter_evictions_total{adapter=\"sql\"}"), Some(1.0));
        assert_eq!(value(&text, "exlora_adapter_load_seconds_count{adapter=\"sql\"}"), Some(1.0));
        assert_eq!(value(&text, "exlora_kv_pages_free"), Some(3.0));
        for (adapter, bytes) in [("sql", 9.0), ("wit", 0.0), ("new", 1.0)] {
            assert_eq!(value(&text, &format!("exlora_adapter_bytes{{adapter=\"{adapter}\"}}")), Some(bytes));
        }
        assert!(!other.render().contains("sql"));
    }

    #[test]
    fn labels_are_bounded_and_their_text_is_escaped() {
        let metrics = Metrics::default();
        metrics.accepted("a\"b\\c");
        for index in 0..2 * MAX_LABELS {
            metrics.accepted(&format!("adapter-{index}"));
        }
        let text = metrics.render();
        let labels = text.lines().filter(|line| line.starts_with(REQUESTS)).count();
        assert_eq!(labels, MAX_LABELS + 1);
        assert_eq!(value(&text, "exlora_requests_total{adapter=\"other\"}"), Some(MAX_LABELS as f64 + 1.0));
        assert!(text.contains(r#"adapter="a\"b\\c""#));
    }

    #[test]
    fn times_that_nobody_reads_do_not_pile_up() {
        let metrics = Metrics::default();
        for _ in 0..3 * MAX_UNREAD_TIMES {
            metrics.first_token("base", Duration::from_millis(1));
        }
        assert!(metrics.0.unread_times.load(Ordering::Relaxed) <= MAX_UNREAD_TIMES);
        let count = value(&metrics.render(), "exlora_time_to_first_token_seconds_count{adapter=\"base\"}");
        assert_eq!(count, Some(3.0 * MAX_UNREAD_TIMES as f64));
    }
}
