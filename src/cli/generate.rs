//! `exlora generate`: completes one prompt, or a file of requests in one batch.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};

use super::json_requests::{self, JsonRequest};
use super::mixture_arg::MixtureArg;
use super::model_args::EngineArgs;
use super::output::{note, print, print_json};
use super::sampling_args::SamplingArgs;
use crate::engine::{AdapterRef, Completion, Engine, Request, TokenLogprobs};
use crate::error::Result;

#[derive(Args)]
pub(super) struct GenerateArgs {
    #[command(flatten)]
    engine: EngineArgs,
    /// Adapter or mixture to use: sql, sql*0.7, or sql*0.7+wit*0.3. Repeated options are joined in order. Requests that name
    /// no adapter use it too.
    #[arg(long = "use", value_name = "MIXTURE")]
    mixture: Vec<MixtureArg>,
    #[command(flatten)]
    input: Input,
    #[command(flatten)]
    sampling: SamplingArgs,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Input {
    /// The text to complete.
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Requests to run in one batch, one JSON object per line; - reads stdin.
    #[arg(long, value_name = "FILE")]
    requests: Option<PathBuf>,
}

pub(super) fn run(args: &GenerateArgs, json: bool) -> Result<()> {
    let mixture = MixtureArg(args.mixture.iter().flat_map(|mixture| mixture.0.clone()).collect());
    let mut request = args.engine.request(args.input.prompt.as_deref().unwrap_or_default())?;
    args.sampling.apply(&mut request);
    request.adapters = mixture.0.iter().map(|(name, weight)| (AdapterRef::Name(name.clone()), *weight)).collect();
    let (requests, is_single) = match &args.input.requests {
        Some(source) => (json_requests::read(source, &request, &mixture)?, false),
        None => (vec![JsonRequest { id: None, mixture, request }], true),
    };

    let (engine, load_time) = args.engine.load()?;
    note(&format!("loaded in {:.2} s: {}", load_time.as_secs_f64(), engine.model().describe_device()));
    match &requests[..] {
        [one] if is_single && !json => stream(&engine, &one.request),
        requests => batch(&engine, requests, json),
    }
}

/// Prints the text as it is generated.
fn stream(engine: &Engine, request: &Request) -> Result<()> {
    let start = Instant::now();
    let mut first_token = None;
    let mut new_tokens = 0;
    let mut job = engine.submit(request.clone())?;
    let mut usage = None;
    while let Some(chunk) = job.next_chunk()? {
        print(&chunk.text)?;
        new_tokens += chunk.token_ids.len();
        if new_tokens > 0 {
            first_token.get_or_insert_with(|| (start.elapsed(), new_tokens));
        }
        if let Some(finish) = chunk.finish {
            usage = Some((finish.usage, finish.reason));
        }
    }
    print("\n")?;
    if let (Some((prefill, first)), Some((usage, reason))) = (first_token, usage) {
        let prefill = prefill.as_secs_f64();
        let decode = start.elapsed().as_secs_f64() - prefill;
        note(&format!(
            "{} prompt tokens ({} cached) in {prefill:.2} s; {new_tokens} new tokens, {:.1} tokens/s; ended by {}",
            usage.prompt_tokens,
            usage.cached_tokens,
            per_second(new_tokens - first, decode),
            reason.as_str(),
        ));
    }
    Ok(())
}

/// Runs the requests in one batch and prints the results in their order.
fn batch(engine: &Engine, requests: &[JsonRequest], json: bool) -> Result<()> {
    let start = Instant::now();
    let plain: Vec<Request> = requests.iter().map(|request| request.request.clone()).collect();
    let completions = engine.generate(&plain)?;
    let seconds = start.elapsed().as_secs_f64();
    for (i, (request, completion)) in requests.iter().zip(&completions).enumerate() {
        if json {
            print_json(&result_line(request.id.as_ref(), &request.mixture, completion))?;
        } else {
            print(&readable(i, request, completion))?;
        }
    }
    let new_tokens: usize = completions.iter().map(|completion| completion.token_ids.len()).sum();
    let prompt_tokens: usize = completions.iter().map(|completion| completion.finish.usage.prompt_tokens).sum();
    note(&format!(
        "{} requests, {prompt_tokens} prompt tokens, {new_tokens} new tokens in {seconds:.2} s: {:.1} tokens/s",
        completions.len(),
        per_second(new_tokens, seconds),
    ));
    Ok(())
}

/// A header and the text.
fn readable(index: usize, request: &JsonRequest, completion: &Completion) -> String {
    let id = match &request.id {
        Some(Value::String(id)) => id.clone(),
        Some(id) => id.to_string(),
        None => index.to_string(),
    };
    let tokens = completion.token_ids.len();
    let reason = completion.finish.reason.as_str();
    format!("== {id} [{}] {tokens} tokens, {reason}\n{}\n", request.mixture, completion.text)
}

fn per_second(tokens: usize, seconds: f64) -> f64 {
    if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 }
}

/// A result as JSON.
#[derive(Serialize)]
pub(super) struct ResultLine<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a Value>,
    text: &'a str,
    token_ids: &'a [u32],
    finish_reason: &'static str,
    usage: Value,
    adapter: &'a MixtureArg,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<Vec<f32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_logprobs: Option<Vec<&'a [(u32, f32)]>>,
}

pub(super) fn result_line<'a>(id: Option<&'a Value>, adapter: &'a MixtureArg, done: &'a Completion) -> ResultLine<'a> {
    let usage = done.finish.usage;
    let present = |logprobs: &'a [TokenLogprobs]| (!logprobs.is_empty()).then_some(logprobs);
    ResultLine {
        id,
        text: &done.text,
        token_ids: &done.token_ids,
        finish_reason: done.finish.reason.as_str(),
        usage: json!({
            "prompt_tokens": usage.prompt_tokens,
            "cached_tokens": usage.cached_tokens,
            "completion_tokens": usage.completion_tokens,
        }),
        adapter,
        logprobs: present(&done.logprobs).map(|tokens| tokens.iter().map(|token| token.chosen).collect()),
        top_logprobs: present(&done.logprobs).map(|tokens| tokens.iter().map(|token| &token.top[..]).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Finish, FinishReason, Usage};

    #[test]
    fn a_result_is_one_object_in_a_fixed_order() {
        let usage = Usage { prompt_tokens: 3, cached_tokens: 0, completion_tokens: 2 };
        let mut done = Completion {
            text: "a\n".into(),
            token_ids: vec![5, 6],
            finish: Finish { reason: FinishReason::Length, matched: None, usage, seed: 0 },
            sample: 0,
            adapter: Vec::new(),
            logprobs: Vec::new(),
            logits: Vec::new(),
        };
        let mixture: MixtureArg = "sql*0.5".parse().expect("parses");
        assert_eq!(
            serde_json::to_string(&result_line(Some(&json!(7)), &mixture, &done)).expect("serializes"),
            r#"{"id":7,"text":"a\n","token_ids":[5,6],"finish_reason":"length","usage":{"prompt_tokens":3,"cached_tokens":0,"completion_tokens":2},"adapter":{"sql":0.5}}"#
        );
        done.logprobs = vec![TokenLogprobs { chosen: -0.5, top: vec![(5, -0.5)] }];
        let base = MixtureArg::default();
        let text = serde_json::to_string(&result_line(None, &base, &done)).expect("serializes");
        assert!(text.ends_with(r#""adapter":null,"logprobs":[-0.5],"top_logprobs":[[[5,-0.5]]]}"#), "{text}");
    }
}
