//! Sampling in an engine: on several threads, with drafts, after preemption, and with hooks.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use exlora::{
    Completion, Engine, EngineOptions, Error, ErrorCode, PostSampling, PostSamplingHook, Request, SamplingParams,
};

use super::{engine_with, prompt};

fn settings(seed: u64) -> SamplingParams {
    let plain = SamplingParams { temperature: 1.0, seed: Some(seed), ..SamplingParams::default() };
    match seed % 5 {
        0 => plain,
        1 => SamplingParams { top_p: 0.9, repetition_penalty: 1.2, ..plain },
        2 => SamplingParams { mirostat: true, mirostat_tau: 3.0, ..plain },
        3 => SamplingParams { top_k: 40, typical: 0.8, dry_multiplier: 0.8, ..plain },
        _ => SamplingParams { min_p: 0.02, max_temp: 1.5, xtc_probability: 0.5, skew: -0.2, ..plain },
    }
}

fn request(seed: u64) -> Request {
    let mut request = Request::new(prompt(seed as u32, 8)).max_new_tokens(16).sampling(settings(seed)).probs(2);
    request.stop_at_eos = false;
    request
}

fn tokens(done: &[Completion]) -> Vec<&[u32]> {
    done.iter().map(|completion| &completion.token_ids[..]).collect()
}

/// Each of these tests compares with the tokens of one request at a time.
fn alone(engine: &Engine, requests: &[Request]) -> Vec<Completion> {
    requests.iter().map(|request| engine.generate(std::slice::from_ref(request)).expect("runs").remove(0)).collect()
}

#[test]
fn many_rows_are_sampled_on_several_threads_as_one_by_one() {
    let requests: Vec<Request> = (0..96).map(request).collect();
    // So many rows of a small vocabulary are worth two threads, where the machine has them.
    let engine = engine_with(EngineOptions { max_rows: 96, threads: Some(4), ..EngineOptions::default() });
    let together = engine.generate(&requests).expect("runs");
    let expected = alone(&engine, &requests[..20]);
    assert_eq!(tokens(&together[..20]), tokens(&expected));
    assert!(together.iter().zip(&expected).take(20).all(|(found, expected)| found.probs == expected.probs));
}

#[test]
fn what_the_sampler_keeps_survives_preemption_and_drafts() {
    let requests: Vec<Request> = (0..10).map(request).collect();
    let expected = alone(&engine_with(EngineOptions::default()), &requests);
    // Room for about three of them: the others are preempted, and start over.
    let small = engine_with(EngineOptions { kv_tokens: Some(64), prefix_cache: false, ..EngineOptions::default() });
    assert_eq!(tokens(&small.generate(&requests).expect("runs")), tokens(&expected));
    let drafting: Vec<Request> = requests.into_iter().map(Request::ngram_draft).collect();
    let engine = engine_with(EngineOptions::default());
    assert_eq!(tokens(&engine.generate(&drafting).expect("runs")), tokens(&expected));
}

#[test]
fn hooks_replace_tokens_and_fail_alone() {
    let engine = engine_with(EngineOptions::default());
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let replace = PostSamplingHook::new(move |chosen: &mut PostSampling<'_>| {
        assert!(!chosen.top_probs.is_empty() && chosen.logits.len() == 2048);
        if counted.fetch_add(1, Ordering::Relaxed) == 2 {
            chosen.token = 77;
        }
        Ok(())
    });
    let fail = PostSamplingHook::new(|_| Err(Error::new(ErrorCode::RequestInvalid, "no")));
    let requests = [
        request(0),
        request(1).post_sampling_hook(replace).logprobs(1),
        request(2).post_sampling_hook(fail),
        request(3).post_sampling_hook(PostSamplingHook::new(|chosen| {
            chosen.token = 9999;
            Ok(())
        })),
    ];
    let mut results: Vec<_> = engine.as_completed(requests.clone()).collect();
    results.sort_by_key(|(index, _)| *index);
    let [first, replaced, failed, unknown] = &results[..] else { panic!("four results") };
    let expected = alone(&engine, &[request(0), request(1)]);
    assert_eq!(first.1.as_ref().expect("runs").token_ids, expected[0].token_ids);
    let replaced = replaced.1.as_ref().expect("runs");
    assert_eq!((&replaced.token_ids[..2], replaced.token_ids[2]), (&expected[1].token_ids[..2], 77));
    assert_eq!(calls.load(Ordering::Relaxed), 16);
    assert_eq!(failed.1.as_ref().expect_err("fails").code(), ErrorCode::RequestInvalid);
    assert_eq!(unknown.1.as_ref().expect_err("fails").code(), ErrorCode::TokenOutOfRange);
}

#[test]
fn a_hook_that_asks_its_engine_to_compute_gets_an_error() {
    let engine = engine_with(EngineOptions::default());
    let own = engine.clone();
    let hook = PostSamplingHook::new(move |_| own.generate(&[request(1)]).map(|_| ()));
    let error = engine.generate(&[request(0).post_sampling_hook(hook)]).expect_err("it would wait for itself");
    assert_eq!(error.code(), ErrorCode::RequestInvalid);
    assert!(engine.generate(&[request(0)]).is_ok());
}
