//! `exlora bench --serve`: speed and latency of a server, exlora's or another one with OpenAI's completions.
//!
//! Threads send streaming requests, each the next as soon as its last one has ended. Prompts are random token ids, so no server
//! finds one in its cache; every request asks for the same number of tokens, whatever the model says.

mod http;
mod report;
mod workload;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};

use self::http::Client;
pub(in crate::cli) use self::http::ServerUrl;
use self::report::{Finished, Latencies, Report};
use self::workload::{AdapterField, Popularity, Random};
use super::counts::check_counts;
use crate::error::{Error, ErrorCode, Result};

/// Token ids of prompts: below every vocabulary's size, above most vocabularies' special tokens.
const PROMPT_IDS: std::ops::Range<u64> = 100..1000;

#[derive(Args)]
#[command(next_help_heading = "A server (--serve)")]
pub(super) struct ServeBenchArgs {
    /// Measure the server at this address instead of a model: exlora's, or another one with OpenAI's completions.
    #[arg(long = "serve", id = "serve", value_name = "URL")]
    url: Option<ServerUrl>,
    /// Adapters of the server that requests name, separated by commas; with --adapter-field lora their ids. None is the base.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', requires = "serve")]
    served_adapters: Vec<String>,
    /// How often requests name each of them.
    #[arg(long, value_name = "HOW", default_value = "uniform", requires = "serve")]
    popularity: Popularity,
    /// The field of a request that names its adapter: model, or for exlora adapters, or for llama.cpp lora.
    #[arg(long, value_name = "FIELD", default_value = "model", requires = "serve")]
    adapter_field: AdapterField,
    /// Name of the base model; by default the first that the server lists.
    #[arg(long, value_name = "NAME", requires = "serve")]
    served_model: Option<String>,
    /// Requests sent.
    #[arg(long, value_name = "N", default_value_t = 64, requires = "serve")]
    num_requests: usize,
    /// Requests in flight at a time.
    #[arg(long, value_name = "N", default_value_t = 8, requires = "serve")]
    concurrency: usize,
    /// The key that the server asks for; by default that of the environment variable EXLORA_API_KEY.
    #[arg(long, value_name = "KEY", requires = "serve")]
    api_key: Option<String>,
    /// Seed of prompts and of drawn adapters.
    #[arg(long, value_name = "N", default_value_t = 0, requires = "serve")]
    seed: u64,
}

/// What the measurement sends.
struct Workload {
    url: ServerUrl,
    key: Option<String>,
    /// The body of each request, and its adapter's place.
    bodies: Vec<(String, Option<usize>)>,
    concurrency: usize,
}

impl ServeBenchArgs {
    /// The options.
    pub(super) fn ids() -> Vec<clap::Id> {
        Self::augment_args(clap::Command::new("")).get_arguments().map(|arg| arg.get_id().clone()).collect()
    }

    /// Whether a server is to be measured.
    pub(super) fn is_given(&self) -> bool {
        self.url.is_some()
    }

    /// Measures the server with prompts of `prompt` tokens and `decode` new ones.
    pub(super) fn measure(&self, prompt: usize, decode: usize) -> Result<Report> {
        let url = self.url.clone().ok_or_else(|| invalid("there is no server to measure"))?;
        check_counts(&[
            ("prompt", prompt),
            ("decode", decode),
            ("num-requests", self.num_requests),
            ("concurrency", self.concurrency),
        ])?;
        let key = self.api_key.clone().or_else(|| std::env::var("EXLORA_API_KEY").ok());
        let mut client = Client::new(url.clone(), key.clone());
        let model = match &self.served_model {
            Some(model) => model.clone(),
            None => first_model(&client.get("/v1/models")?)?,
        };
        let mut random = Random::new(self.seed);
        let bodies = self.bodies(&model, prompt, decode, &mut random)?;
        let work = Workload { bodies, url: url.clone(), key, concurrency: self.concurrency.min(self.num_requests) };
        // Connected and loaded: what comes first is not measured.
        for adapter in std::iter::once(None).chain(self.served_adapters.iter().map(|name| Some(name.as_str()))) {
            let body = self.body(&model, adapter, random_prompt(1, &mut random), 1)?;
            complete(&mut client, &body)?;
        }
        let start = Instant::now();
        let (finished, failures) = work.run();
        let wall = start.elapsed();
        if let (true, Some(error)) = (finished.is_empty(), failures.first()) {
            return Err(error.clone());
        }
        Ok(Report {
            url: url.to_string(),
            model,
            adapters: self.served_adapters.len(),
            popularity: (!self.served_adapters.is_empty()).then_some(self.popularity),
            adapter_field: self.adapter_field,
            concurrency: work.concurrency,
            prompt,
            decode,
            wall_s: wall.as_secs_f64(),
            failed: failures.len(),
            first_failure: failures.first().map(Error::to_string),
            overall: Latencies::of(finished.iter(), wall),
            per_adapter: self.per_adapter(&finished, wall),
        })
    }

    /// Those of the requests that succeeded, by the adapter that they named.
    fn per_adapter(&self, finished: &[Finished], wall: Duration) -> BTreeMap<String, Latencies> {
        let of = |adapter: usize| finished.iter().filter(move |one| one.adapter == Some(adapter));
        let names = self.served_adapters.iter().enumerate();
        let latencies = names.map(|(place, name)| (name.clone(), Latencies::of(of(place), wall)));
        latencies.filter(|(_, latencies)| latencies.requests > 0).collect()
    }

    /// The body of each request, and its adapter's place.
    fn bodies(
        &self,
        model: &str,
        prompt: usize,
        decode: usize,
        random: &mut Random,
    ) -> Result<Vec<(String, Option<usize>)>> {
        let adapters: Vec<Option<usize>> = match self.served_adapters.len() {
            0 => vec![None; self.num_requests],
            all => self.popularity.assign(self.num_requests, all, random).into_iter().map(Some).collect(),
        };
        let body = |adapter: Option<usize>| {
            let name = adapter.map(|place| self.served_adapters[place].as_str());
            Ok((self.body(model, name, random_prompt(prompt, random), decode)?, adapter))
        };
        adapters.into_iter().map(body).collect()
    }

    fn body(&self, model: &str, adapter: Option<&str>, prompt: Vec<u64>, decode: usize) -> Result<String> {
        // Under both names that servers have for it, the end of a text ends none.
        let mut body = json!({
            "model": model, "prompt": prompt, "max_tokens": decode, "temperature": 0, "stream": true,
            "stream_options": {"include_usage": true}, "ignore_eos": true,
        });
        if let Some(name) = adapter {
            let (field, value) = match self.adapter_field {
                AdapterField::Model => ("model", json!(name)),
                AdapterField::Adapters => ("adapters", json!(name)),
                AdapterField::Lora => {
                    let id: usize = name.parse().map_err(|_| invalid("an adapter of the field lora is an id"))?;
                    ("lora", json!([{"id": id, "scale": 1.0}]))
                }
            };
            body[field] = value;
        }
        Ok(body.to_string())
    }
}

impl Workload {
    /// Sends all requests; returns those that succeeded and why others did not.
    fn run(&self) -> (Vec<Finished>, Vec<Error>) {
        let (next, finished, failures) = (AtomicUsize::new(0), Mutex::new(Vec::new()), Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            for _ in 0..self.concurrency {
                scope.spawn(|| {
                    let mut client = Client::new(self.url.clone(), self.key.clone());
                    while let Some((body, adapter)) = self.bodies.get(next.fetch_add(1, Ordering::Relaxed)) {
                        match complete(&mut client, body) {
                            Ok(one) => finished.lock().push(Finished { adapter: *adapter, ..one }),
                            Err(error) => failures.lock().push(error),
                        }
                    }
                });
            }
        });
        (finished.into_inner(), failures.into_inner())
    }
}

/// Sends a request and waits for the end of its stream.
fn complete(client: &mut Client, body: &str) -> Result<Finished> {
    let start = Instant::now();
    let (mut first, mut last, mut tokens, mut usage, mut error) = (None, start, 0, None, None);
    client.post("/v1/completions", body, &mut |line| {
        let Some(event) = line.strip_prefix("data:").and_then(|data| serde_json::from_str(data).ok()) else { return };
        let event: Map<String, Value> = event;
        if let Some(said) = event.get("error") {
            error.get_or_insert_with(|| said.to_string());
        }
        if event.get("choices").and_then(Value::as_array).is_some_and(|choices| !choices.is_empty()) {
            last = Instant::now();
            first.get_or_insert(last);
            tokens += 1;
        }
        let counted = event.get("usage").and_then(|usage| usage.get("completion_tokens")?.as_u64());
        usage = counted.or(usage);
    })?;
    if let Some(said) = error {
        return Err(Error::new(ErrorCode::IoFailed, "the server ended a stream with an error").with_found(said));
    }
    let first = first.ok_or_else(|| Error::new(ErrorCode::IoFailed, "the server sent no token"))?;
    let tokens = usage.map_or(tokens, |tokens| tokens as usize);
    Ok(Finished { adapter: None, tokens, to_first_token: first - start, generating: last - first })
}

fn first_model(models: &str) -> Result<String> {
    let models: Option<Value> = serde_json::from_str(models).ok();
    let first = models.as_ref().and_then(|models| models["data"][0]["id"].as_str());
    first.map(str::to_owned).ok_or_else(|| {
        Error::new(ErrorCode::IoFailed, "the server lists no model").with_hint("name it with --served-model")
    })
}

fn random_prompt(tokens: usize, random: &mut Random) -> Vec<u64> {
    let ids = PROMPT_IDS.end - PROMPT_IDS.start;
    (0..tokens).map(|_| PROMPT_IDS.start + random.next() % ids).collect()
}

fn invalid(what: &str) -> Error {
    Error::new(ErrorCode::RequestInvalid, what)
}
