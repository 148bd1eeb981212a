//! Batches of requests: a result for each, results as they complete, several samples of a prompt, seeds.

use std::cell::Cell;
use std::collections::HashSet;
use std::path::PathBuf;

use exlora::{Completion, Engine, EngineOptions, Error, ErrorCode, Request, SamplingParams};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn engine(max_rows: usize) -> Engine {
    let options = EngineOptions { max_rows, ..EngineOptions::default() };
    let engine = Engine::load(fixture("quill-4m-gptq-4bit-g128-sym"), options).expect("the bundled model loads");
    engine.load_adapter("jargon", fixture("adapters/jargon-lora-r8")).expect("jargon loads");
    engine
}

fn greedy(prompt: &str, tokens: usize) -> Request {
    let mut request = Request::new(prompt).max_new_tokens(tokens);
    request.stop_at_eos = false;
    request
}

fn sampled(prompt: &str, seed: Option<u64>) -> Request {
    greedy(prompt, 12).sampling(SamplingParams { temperature: 1.0, seed, ..SamplingParams::default() })
}

/// Refused when it is submitted.
fn refused() -> Request {
    greedy("The king", 4).adapter("nobody", 1.0)
}

/// Its logits overflow in the first step.
fn failing() -> Request {
    greedy("The king", 4).adapter("jargon", 1e38)
}

fn code(result: &Result<Completion, Error>) -> Option<ErrorCode> {
    result.as_ref().err().map(Error::code)
}

#[test]
fn each_request_of_a_batch_has_its_own_result() {
    let engine = engine(32);
    let expected = engine.generate(&[greedy("The queen", 8)]).expect("runs").remove(0);
    let results = engine.generate_each(&[refused(), greedy("The queen", 8), failing(), greedy("", 4)]);
    assert_eq!(code(&results[0]), Some(ErrorCode::AdapterNotFound));
    assert_eq!(results[1].as_ref().map(|completion| &completion.text), Ok(&expected.text));
    assert_eq!(code(&results[2]), Some(ErrorCode::KvOverflow));
    assert_eq!(code(&results[3]), Some(ErrorCode::PromptEmpty));
    assert!(engine.generate_each(&[]).is_empty());
    assert_eq!((engine.stats().rows_running, engine.stats().leases), (0, 0));
}

#[test]
fn the_error_of_a_batch_names_its_request() {
    let engine = engine(32);
    for failed in [refused(), failing()] {
        let error = engine.generate(&[greedy("a", 2), failed.clone()]).expect_err("an error");
        assert!(error.to_string().starts_with("request 1: "), "{error}");
        let error = engine.generate(&[failed]).expect_err("an error");
        assert!(!error.to_string().contains("request 0"), "{error}");
    }
}

#[test]
fn results_come_as_they_complete_and_equal_those_of_one_batch() {
    let engine = engine(4);
    let requests: Vec<Request> =
        [40, 5, 30, 10, 20, 1, 15, 25].into_iter().map(|tokens| greedy("The file", tokens)).collect();
    let expected = engine.generate(&requests).expect("runs");
    let mut order = Vec::new();
    for (index, result) in engine.as_completed(requests.clone()) {
        assert_eq!(result.expect("runs").token_ids, expected[index].token_ids);
        order.push(index);
    }
    assert_eq!(order[0], 1, "the shortest of the first four");
    assert_eq!(order.iter().collect::<HashSet<_>>().len(), requests.len());
    assert!(engine.as_completed([]).next().is_none());
}

#[test]
fn requests_are_taken_only_as_results_are_awaited() {
    let engine = engine(3);
    let taken = Cell::new(0);
    let requests = (0..100).map(|_| {
        taken.set(taken.get() + 1);
        if taken.get() % 5 == 0 { refused() } else { greedy("The file", 2) }
    });
    let mut returned = 0;
    let mut results = engine.as_completed(requests);
    assert_eq!(taken.get(), 0);
    while results.next().is_some() {
        returned += 1;
        assert!(taken.get() <= returned + 6, "{} taken, {returned} returned", taken.get());
    }
    assert_eq!((returned, taken.get()), (100, 100));
}

#[test]
fn dropping_the_iterator_ends_its_requests() {
    let engine = engine(2);
    let mut results = engine.as_completed((0..50).map(|_| greedy("The file", 500).adapter("jargon", 1.0)));
    let mut steps = 0;
    let interrupted = results.next_with(&mut || {
        steps += 1;
        if steps > 3 { Err(Error::new(ErrorCode::Interrupted, "enough")) } else { Ok(()) }
    });
    assert_eq!(interrupted.expect_err("interrupted").code(), ErrorCode::Interrupted);
    drop(results);
    let stats = engine.stats();
    assert_eq!((stats.rows_running, stats.rows_waiting, stats.leases), (0, 0, 0));
}

#[test]
fn a_request_without_a_seed_draws_one_and_reports_it() {
    let engine = engine(32);
    let drawn = engine.generate(&vec![sampled("The king", None); 8]).expect("runs");
    assert_eq!(drawn.iter().map(|completion| &completion.text).collect::<HashSet<_>>().len(), 8);
    for completion in &drawn[..3] {
        let again = engine.generate(&[sampled("The king", Some(completion.finish.seed))]).expect("runs").remove(0);
        assert_eq!((again.text, again.finish.seed), (completion.text.clone(), completion.finish.seed));
    }
    let job = engine.submit(sampled("The king", Some(u64::MAX))).expect("submitted");
    assert_eq!(job.seed(), u64::MAX);
}

#[test]
fn samples_of_a_request_are_independent_reproducible_and_in_order() {
    let engine = engine(3);
    let two = [sampled("The king", Some(7)).n(5), sampled("The queen", Some(7)).n(2)];
    let samples = engine.generate(&two).expect("runs");
    assert_eq!(samples.iter().map(|completion| completion.sample).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 0, 1]);
    assert_eq!(samples[..5].iter().map(|completion| &completion.text).collect::<HashSet<_>>().len(), 5);
    assert_eq!(samples, engine.generate(&two).expect("runs again"));
    // Each sample alone, by its seed; the first has the request's own.
    assert_eq!(samples[0].finish.seed, 7);
    for (completion, prompt) in samples.iter().zip(["The king"; 5].into_iter().chain(["The queen"; 2])) {
        let alone = engine.generate(&[sampled(prompt, Some(completion.finish.seed))]).expect("runs").remove(0);
        assert_eq!(alone.token_ids, completion.token_ids);
    }
}

#[test]
fn the_prompt_of_several_samples_is_computed_once() {
    let engine = engine(32);
    let prompt: Vec<u32> = (0..200).map(|i| 3 + i * 7 % 2000).collect();
    let samples = engine.generate(&[Request::new(prompt).max_new_tokens(2).n(4)]).expect("runs");
    let cached: Vec<usize> = samples.iter().map(|completion| completion.finish.usage.cached_tokens).collect();
    assert_eq!(cached, [0, 192, 192, 192]);
}

#[test]
fn every_sample_of_a_refused_request_has_its_error() {
    let engine = engine(2);
    let results = engine.generate_each(&[refused().n(3), greedy("a", 1), failing().n(2)]);
    let codes: Vec<_> = results.iter().map(code).collect();
    let (unknown, infinite) = (Some(ErrorCode::AdapterNotFound), Some(ErrorCode::KvOverflow));
    assert_eq!(codes, [unknown, unknown, unknown, None, infinite, infinite]);
    let completed: Vec<_> = engine.as_completed([refused().n(3)]).map(|(index, _)| index).collect();
    assert_eq!(completed, [0, 0, 0]);
}

#[test]
fn numbers_out_of_range_are_refused() {
    let engine = engine(2);
    for request in [
        greedy("a", 4).n(0),
        greedy("a", 4).n(1_000_000_000_000),
        greedy("a", 4).n(usize::MAX),
        greedy("a", 0),
        greedy("a", 4).logprobs(1_000_000_000),
    ] {
        let requests = [request];
        assert_eq!(code(&engine.generate_each(&requests)[0]), Some(ErrorCode::RequestInvalid));
        assert_eq!(engine.generate(&requests).expect_err("refused").code(), ErrorCode::RequestInvalid);
    }
    let most = engine.generate(&[greedy("a", usize::MAX)]).expect("up to the model's length").remove(0);
    assert_eq!(most.finish.usage.completion_tokens + most.finish.usage.prompt_tokens, engine.max_tokens() + 1);
    assert_eq!(engine.submit(greedy("a", 4).n(2)).err().expect("one job").code(), ErrorCode::RequestInvalid);
}
