//! How a step's budget of prompt tokens is shared, counted in steps.

use exlora::{Engine, EngineOptions, Job, Request};

use super::{engine_with, prompt};

fn engine() -> Engine {
    engine_with(EngineOptions { prefix_cache: false, ..EngineOptions::default() })
}

/// A request for one token.
fn one_token(seed: u32, tokens: usize) -> Request {
    let mut request = Request::new(prompt(seed, tokens)).max_new_tokens(1);
    request.stop_at_eos = false;
    request
}

fn submit(engine: &Engine, request: Request) -> Job {
    engine.submit(request).expect("submitted")
}

/// Steps until each job has its token; the step at which it came.
fn steps(engine: &Engine, jobs: &mut [Job]) -> Vec<usize> {
    let mut ended = vec![0; jobs.len()];
    for step in 1.. {
        if !engine.step().expect("a step") {
            break;
        }
        for (ended, job) in ended.iter_mut().zip(&mut *jobs) {
            if job.poll_chunk().expect("no error").is_some() {
                *ended = step;
            }
        }
    }
    ended
}

#[test]
fn a_short_prompt_does_not_wait_for_long_ones_before_it() {
    let engine = engine();
    let mut jobs: Vec<Job> =
        [900, 900, 900, 3].into_iter().map(|tokens| submit(&engine, one_token(1, tokens))).collect();
    let ended = steps(&engine, &mut jobs);
    assert_eq!(ended[3], 1, "{ended:?}");
    assert!(ended[0] < ended[1] && ended[1] < ended[2], "{ended:?}");
    // No more steps than the budget of 512 makes necessary.
    assert_eq!(ended[2], (3 * 900 + 3usize).div_ceil(512));
}

#[test]
fn a_long_prompt_is_not_starved_by_short_ones_that_keep_coming() {
    let engine = engine();
    let mut long = submit(&engine, one_token(1, 1000));
    let mut others = Vec::new();
    for step in 1.. {
        others.push(submit(&engine, one_token(2, 500)));
        engine.step().expect("a step");
        if long.poll_chunk().expect("no error").is_some() {
            assert!(step <= 4, "half of each step is for the oldest, but it took {step}");
            break;
        }
    }
}

#[test]
fn a_decoding_request_gets_a_token_in_every_step() {
    let engine = engine();
    let mut decoding = submit(&engine, one_token(1, 3).max_new_tokens(100));
    engine.step().expect("a step");
    let _long: Vec<Job> = (0..3).map(|seed| submit(&engine, one_token(seed, 900))).collect();
    for _ in 0..6 {
        assert!(decoding.poll_chunk().expect("no error").is_some());
        engine.step().expect("a step");
    }
}

#[test]
fn a_mixture_of_many_adapters_is_computed_in_smaller_chunks() {
    let engine = engine();
    let many = |tokens: usize| (0..64).fold(one_token(1, tokens), |request, _| request.adapter("jargon", 1e-3));
    let job = submit(&engine, many(600));
    let (few, hidden) =
        (submit(&engine, one_token(2, 600).adapter("jargon", 1.0)), engine.model().config().hidden_size);
    engine.step().expect("a step");
    let computed = job.prefill_progress().0;
    assert!(0 < computed && computed * 64 * 8 / hidden <= 512, "{computed} tokens");
    assert!(few.prefill_progress().0 >= 512 / 2 - 64, "the rest of the budget is for others");
    drop((job, few));
    // Smaller chunks change no bit.
    let whole = engine_with(EngineOptions { prefill_chunk: 100_000, ..EngineOptions::default() });
    let mut request = many(300);
    request.return_logits = true;
    assert_eq!(
        engine.generate(std::slice::from_ref(&request)).expect("in chunks"),
        whole.generate(&[request]).expect("at once")
    );
}

#[test]
fn a_mixture_of_too_many_adapters_is_refused() {
    let request = (0..65).fold(one_token(1, 3), |request, _| request.adapter("jargon", 1e-3));
    let error = engine().submit(request).err().expect("refused");
    assert_eq!(error.code(), exlora::ErrorCode::AdapterMixtureInvalid);
    assert_eq!((error.expected(), error.found()), (Some("at most 64"), Some("65")));
}

#[test]
fn adapters_take_turns_among_the_requests_that_wait() {
    let engine = engine_with(EngineOptions { max_rows: 1, prefix_cache: false, ..EngineOptions::default() });
    // Weights make no other adapter.
    let adapters = [
        ("jargon", 1.0),
        ("jargon", 0.5),
        ("jargon", 0.25),
        ("sqlite", 1.0),
        ("jargon", 1.0),
        ("", 0.0),
        ("sqlite", 0.5),
    ];
    let request = |(seed, (name, weight)): (usize, (&str, f32))| match name {
        "" => one_token(seed as u32, 3),
        name => one_token(seed as u32, 3).adapter(name, weight),
    };
    let mut jobs: Vec<Job> = adapters.into_iter().enumerate().map(|it| submit(&engine, request(it))).collect();
    assert_eq!(steps(&engine, &mut jobs), [1, 4, 6, 2, 7, 3, 5]);
}

#[test]
fn a_request_is_not_kept_waiting_by_any_number_of_another_adapter() {
    let engine = engine_with(EngineOptions { max_rows: 1, prefix_cache: false, ..EngineOptions::default() });
    let _flood: Vec<Job> = (0..50).map(|seed| submit(&engine, one_token(seed, 3).adapter("jargon", 1.0))).collect();
    engine.step().expect("a step");
    let mut jobs = [submit(&engine, one_token(1, 3).adapter("sqlite", 1.0)), submit(&engine, one_token(2, 3))];
    assert_eq!(steps(&engine, &mut jobs), [2, 3], "one of the others starts before them");
}

#[test]
fn a_preempted_request_starts_again_before_those_that_never_ran() {
    // Five pages: two requests have room for their prompts, and one of them for all its tokens.
    let options = EngineOptions { max_rows: 2, prefix_cache: false, kv_tokens: Some(160), ..EngineOptions::default() };
    let engine = engine_with(options);
    let long = |seed| one_token(seed, 33).adapter("jargon", 1.0).max_new_tokens(60);
    let mut long = [submit(&engine, long(1)), submit(&engine, long(2))];
    engine.step().expect("a step");
    let short = submit(&engine, one_token(3, 3));
    let mut steps_of_one_alone = 0;
    loop {
        let [first, second] = long.each_mut().map(|job| job.poll_chunk().expect("no error").is_some());
        steps_of_one_alone += usize::from(first && !second);
        assert!(!short.has_started() || long[0].is_finished(), "the second waits for the first's pages");
        if !engine.step().expect("a step") {
            break;
        }
    }
    assert!(steps_of_one_alone > 10, "the second was preempted");
    assert!(long[1].is_finished() && short.has_started());
}
