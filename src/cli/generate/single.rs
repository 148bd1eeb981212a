//! One prompt: streamed, or as JSON, or in several samples.

use std::time::Instant;

use crate::cli::exit_status::{INTERRUPTED, SUCCESS};
use crate::cli::interrupt::Interrupt;
use crate::cli::output::{note, print, print_json};
use crate::cli::result_line::ResultLine;
use crate::engine::{Engine, FinishReason, InFlight, Request, Usage};
use crate::error::Result;

/// Returns the exit status.
pub(super) fn run(engine: &Engine, request: Request, json: bool) -> Result<u8> {
    let interrupt = Interrupt::catch()?;
    let outcome = if request.n == 1 && !json {
        stream(engine, request, &interrupt)
    } else {
        samples(engine, request, json, &interrupt)
    };
    match outcome {
        Err(_) if interrupt.is_set() => Ok(INTERRUPTED),
        outcome => outcome.map(|()| SUCCESS),
    }
}

/// Prints the text as it is generated.
fn stream(engine: &Engine, request: Request, interrupt: &Interrupt) -> Result<()> {
    let start = Instant::now();
    let is_random = request.sampling.temperature > 0.0;
    let mut first_token = None;
    let mut new_tokens = 0;
    let mut job = engine.submit(request)?;
    let mut end = None;
    let outcome = loop {
        let chunk = match job.next_chunk_with(&mut || interrupt.check()) {
            Ok(Some(chunk)) => chunk,
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        };
        print(&chunk.text)?;
        new_tokens += chunk.token_ids.len();
        if new_tokens > 0 {
            first_token.get_or_insert_with(|| (start.elapsed(), new_tokens));
        }
        if let Some(finish) = chunk.finish {
            end = Some((finish.usage, finish.reason));
        }
    };
    print("\n")?;
    if interrupt.is_set() {
        let usage = Usage { prompt_tokens: job.prompt_tokens().len(), ..Default::default() };
        end = Some((usage, FinishReason::Cancelled));
    }
    if let (Some((prefill, first)), Some((usage, reason))) = (first_token, end) {
        let prefill = prefill.as_secs_f64();
        let decode = start.elapsed().as_secs_f64() - prefill;
        let seed = if is_random { format!("; seed {}", job.seed()) } else { String::new() };
        note(&format!(
            "{} prompt tokens ({} cached) in {prefill:.2} s; {new_tokens} new tokens, {:.1} tokens/s{}; ended by {}{seed}",
            usage.prompt_tokens,
            usage.cached_tokens,
            if decode > 0.0 { (new_tokens - first) as f64 / decode } else { 0.0 },
            drafts(&usage),
            reason.as_str(),
        ));
    }
    outcome
}

/// How many drafted tokens were accepted, if any were drafted.
fn drafts(usage: &Usage) -> String {
    match usage.accepted_draft_tokens + usage.rejected_draft_tokens {
        0 => String::new(),
        drafted => format!("; {} of {drafted} drafted tokens accepted", usage.accepted_draft_tokens),
    }
}

/// Prints each sample as it completes.
fn samples(engine: &Engine, request: Request, json: bool, interrupt: &Interrupt) -> Result<()> {
    let mut in_flight = InFlight::new(engine);
    in_flight.submit(0, request);
    while let Some(done) = in_flight.next_with(&mut || interrupt.check())? {
        let completion = done.result?;
        if json {
            print_json(&ResultLine::new(&completion))?;
        } else {
            let (sample, seed) = (completion.sample, completion.finish.seed);
            let reason = completion.finish.reason.as_str();
            let tokens = completion.token_ids.len();
            print(&format!("== sample {sample}, seed {seed}: {tokens} tokens, {reason}\n{}\n", completion.text))?;
        }
    }
    Ok(())
}
