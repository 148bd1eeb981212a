//! What goes wrong for one sequence ends that one alone, and nobody waits forever.

use std::sync::Arc;

use crate::engine::draft::Drafts;
use crate::engine::faulty_compute::{FAIL, FaultyCompute, PANIC};
use crate::engine::job::Job;
use crate::engine::sequence::{Purpose, Sequence};
use crate::engine::{Engine, EngineOptions};
use crate::error::{ErrorCode, Result};
use crate::{Completion, DraftModelSource, FinishReason, Request};

fn fixture(name: &str) -> String {
    format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn sound_engine() -> Engine {
    engine_with(EngineOptions { prefix_cache: false, ..EngineOptions::default() })
}

fn engine_with(options: EngineOptions) -> Engine {
    let engine = Engine::load(fixture("quill-4m"), options).expect("the bundled model loads");
    engine.load_adapter("jargon", fixture("adapters/jargon-lora-r8")).expect("it loads");
    engine
}

fn faulty_engine(max_rows: usize) -> Engine {
    let engine = sound_engine();
    engine.model().wrap_compute(|inner| Box::new(FaultyCompute { inner, max_rows }));
    engine
}

fn request(tokens: Vec<u32>) -> Request {
    let mut request = Request::new(tokens).adapter("jargon", 0.5).max_new_tokens(6);
    (request.stop_at_eos, request.return_logits) = (false, true);
    request
}

/// Prompts of different lengths; more tokens than fit one step.
fn innocents() -> Vec<Request> {
    let prompt = |index: u32| request((0..90 * index + 1).map(|i| 3 + (i * i + 7 * index) % 1900).collect());
    (0..5).map(prompt).collect()
}

fn submit(engine: &Engine, requests: &[Request]) -> Vec<Job> {
    requests.iter().map(|request| engine.submit(request.clone()).expect("submitted")).collect()
}

fn complete(job: &mut Job) -> Result<Completion> {
    let mut completion = Completion::unfinished(vec![("jargon".to_owned(), 0.5)], 0);
    while let Some(chunk) = job.next_chunk()? {
        completion.append(chunk)?;
    }
    Ok(completion)
}

fn assert_idle(engine: &Engine) {
    let stats = engine.stats();
    assert_eq!((stats.rows_running, stats.rows_waiting, stats.leases), (0, 0, 0));
    assert_eq!(stats.kv_pages_free, stats.kv_pages_total);
}

/// Runs innocent requests with `culprit` among them: they complete as in an engine without faults, whoever steps.
fn assert_fails_alone(engine: &Engine, culprit: &Request, expected: ErrorCode, said: &str) {
    let expected_results = sound_engine().generate(&innocents()).expect("no faults");
    for culprit_steps in [false, true] {
        let mut before = submit(engine, &innocents()[..3]);
        let mut job = engine.submit(culprit.clone()).expect("submitted");
        let mut after = submit(engine, &innocents()[3..]);
        let error = culprit_steps.then(|| complete(&mut job));
        for (job, result) in before.iter_mut().chain(&mut after).zip(&expected_results) {
            assert_eq!(&complete(job).expect("an innocent request"), result);
        }
        let error = error.unwrap_or_else(|| complete(&mut job)).expect_err("the culprit");
        assert_eq!(error.code(), expected);
        assert!(error.message().contains(said), "{error}");
        drop((before, job, after));
        assert_idle(engine);
    }
}

#[test]
fn a_panic_in_a_step_ends_only_the_request_that_causes_it() {
    for position in [0, 300] {
        let mut tokens = vec![5; 400];
        tokens[position] = PANIC;
        assert_fails_alone(&faulty_engine(512), &request(tokens), ErrorCode::Internal, "this token is right out");
    }
}

#[test]
fn an_error_of_a_step_ends_only_the_request_that_causes_it() {
    assert_fails_alone(&faulty_engine(512), &request(vec![5, FAIL]), ErrorCode::MemoryExhausted, "no memory");
}

#[test]
fn several_requests_that_cannot_be_computed_each_fail() {
    let engine = faulty_engine(512);
    let requests: Vec<Request> =
        (0..12).map(|index| request(vec![5, 6, if index % 3 == 0 { PANIC } else { 7 }, index])).collect();
    let mut jobs = submit(&engine, &requests);
    let expected = sound_engine();
    for (index, (job, request)) in jobs.iter_mut().zip(&requests).enumerate() {
        match complete(job) {
            Err(error) => assert_eq!((index % 3, error.code()), (0, ErrorCode::Internal)),
            Ok(found) => assert_eq!(vec![found], expected.generate(std::slice::from_ref(request)).expect("sound")),
        }
    }
    assert_idle(&engine);
}

#[test]
fn requests_whose_step_lacks_memory_run_in_smaller_ones() {
    let engine = faulty_engine(20);
    assert_eq!(
        engine.generate(&innocents()).expect("smaller steps"),
        sound_engine().generate(&innocents()).expect("ok")
    );
    let prompt = innocents()[3].prompt.clone();
    assert_eq!(engine.logits(&prompt, &[]).expect("ok"), sound_engine().logits(&prompt, &[]).expect("ok"));
    assert_idle(&engine);
}

#[test]
fn a_batch_says_which_request_failed() {
    let requests = [request(vec![5]), request(vec![5, FAIL]), request(vec![6])];
    let error = faulty_engine(512).generate(&requests).expect_err("one fails");
    assert!(error.to_string().contains("request 1"), "{error}");
}

/// Queues a sequence that is not as the engine makes them.
fn submit_broken(engine: &Engine, break_it: impl FnOnce(&mut Sequence)) -> Job {
    let checked = engine.check(request(vec![5, 6, 7])).expect("valid");
    let state = engine.core.new_job(checked.mixture.into_leases(), &Arc::default());
    let purpose = Purpose::Generate(Box::new(checked.decode));
    let prompt = checked.prompt.to_vec();
    let mut sequence = Sequence::new(Arc::clone(&state), purpose, prompt, checked.plan, Drafts::off());
    break_it(&mut sequence);
    engine.core.submit(sequence);
    let prefill_tokens = checked.prompt.len();
    Job::new(Arc::clone(&engine.core), state, checked.prompt, prefill_tokens, 0)
}

#[test]
fn a_panic_while_a_token_is_chosen_ends_only_that_request() {
    let engine = sound_engine();
    let expected = engine.generate(&innocents()).expect("ok");
    let mut jobs = submit(&engine, &innocents());
    // Its number of new tokens would be negative.
    let mut broken = submit_broken(&engine, |sequence| sequence.prompt_len += 1);
    let error = complete(&mut broken).expect_err("it panics");
    assert_eq!(error.code(), ErrorCode::Internal);
    for (job, expected) in jobs.iter_mut().zip(expected) {
        let found = complete(job).expect("an innocent request");
        assert_eq!((found.token_ids, found.logits), (expected.token_ids, expected.logits));
    }
    assert_idle(&engine);
}

#[test]
fn a_panic_of_the_scheduler_ends_every_request_and_leaves_an_engine_that_works() {
    let engine = engine_with(EngineOptions::default());
    let expected = engine.generate(&innocents()).expect("ok");
    let mut jobs = submit(&engine, &innocents());
    // Pages are counted in KV groups.
    let mut broken = submit_broken(&engine, |sequence| sequence.kv.plan.kv_groups = 0);
    let said = engine.step().expect_err("it panics");
    assert!(said.message().contains("the scheduler panicked"), "{said}");
    for job in jobs.iter_mut().chain([&mut broken]) {
        let error = complete(job).expect_err("ended");
        assert_eq!(error.code(), ErrorCode::Internal);
    }
    assert_idle(&engine);
    let again = engine.generate(&innocents()).expect("it works");
    assert!(again.iter().all(|completion| completion.finish.usage.cached_tokens == 0), "the cache is empty");
    for (again, expected) in again.iter().zip(&expected) {
        assert_eq!((&again.token_ids, &again.logits), (&expected.token_ids, &expected.logits));
    }
}

#[test]
fn the_job_of_a_sequence_that_is_gone_fails() {
    let engine = sound_engine();
    let mut job = submit(&engine, &innocents()[..1]).remove(0);
    engine.core.drop_incoming();
    assert_eq!(job.next_chunk().expect_err("gone").code(), ErrorCode::Internal);
    assert_idle(&engine);
}

#[test]
fn a_cancelled_request_ends_whether_it_waits_or_runs() {
    let engine = sound_engine();
    let mut jobs = submit(&engine, &innocents());
    engine.step().expect("a step");
    jobs.extend(submit(&engine, &innocents()));
    for job in &jobs {
        job.cancel();
        job.cancel();
    }
    for job in &mut jobs {
        let mut last = None;
        while let Some(chunk) = job.next_chunk().expect("a chunk") {
            last = chunk.finish;
        }
        assert_eq!(last.expect("finished").reason, FinishReason::Cancelled);
    }
    assert_idle(&engine);
}

/// An engine that drafts with the model itself, whose steps fail where a test wants them to.
fn faulty_draft_engine(max_rows: usize) -> Engine {
    let draft = faulty_engine(max_rows).model().clone();
    engine_with(EngineOptions { draft_model: Some(DraftModelSource::Loaded(draft)), ..EngineOptions::default() })
}

#[test]
fn a_request_whose_drafts_fail_goes_on_without() {
    for token in [PANIC, FAIL] {
        let engine = faulty_draft_engine(512);
        let mut requests = innocents();
        requests.insert(2, request(vec![5, 6, token]));
        let expected = sound_engine().generate(&requests).expect("no drafts");
        let found = engine.generate(&requests).expect("no request fails");
        for (index, (expected, found)) in expected.iter().zip(&found).enumerate() {
            assert_eq!((&expected.token_ids, &expected.logits), (&found.token_ids, &found.logits));
            let usage = found.finish.usage;
            assert_eq!(usage.accepted_draft_tokens + usage.rejected_draft_tokens > 0, index != 2, "request {index}");
        }
        assert_idle(&engine);
    }
}

#[test]
fn a_request_does_not_fail_for_tokens_that_are_drafted() {
    // What follows 5, 6 is drafted, and cannot be computed.
    for token in [PANIC, FAIL] {
        let prompt = vec![5, 6, token, 9, 5, 6];
        let engine = sound_engine();
        let mut job = engine.submit(Request { ngram_draft: true, ..request(prompt) }).expect("submitted");
        // The prompt is computed before steps fail.
        let first = job.next_chunk().expect("no error").expect("a chunk");
        engine.model().wrap_compute(|inner| Box::new(FaultyCompute { inner, max_rows: 512 }));
        let rest = complete(&mut job).expect("only drafts fail");
        assert_eq!(first.token_ids.len() + rest.token_ids.len(), 6);
    }
}
