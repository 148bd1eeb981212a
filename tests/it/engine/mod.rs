//! The engine on the bundled model: batch invariance, pages, leases, stops, threads, and errors that leave it running.

mod activation_dtype;
mod banned_strings;
mod fairness;
mod greedy;
mod guidance;
mod head_dtype;
mod kv_dtype;
mod longrope;
mod many_requests;
mod prefix_cache;
mod prompt_embeds;
mod sampling;
mod sequence_cache;
mod sequence_copies;
mod sequence_states;
mod speculation;

use std::path::PathBuf;

use exlora::{
    AdapterRef, Completion, Engine, EngineOptions, ErrorCode, FinishReason, KvDType, Prompt, Request, Stop, StopMatch,
};

const BASE: &str = "quill-4m-gptq-4bit-g128-sym";

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn engine_with(options: EngineOptions) -> Engine {
    let engine = Engine::load(fixture(BASE), options).expect("the bundled model loads");
    engine.load_adapter("jargon", fixture("adapters/jargon-lora-r8")).expect("jargon loads");
    engine.load_adapter("sqlite", fixture("adapters/sqlite-rslora-r16")).expect("sqlite loads");
    engine
}

fn engine() -> Engine {
    engine_with(EngineOptions::default())
}

/// Prompt tokens that differ between seeds.
fn prompt(seed: u32, tokens: usize) -> Prompt {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let ids = (0..tokens).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        3 + (state >> 8) % 2000
    });
    Prompt::Tokens(ids.collect())
}

fn request(seed: u32, tokens: usize, mixture: &[(&str, f32)]) -> Request {
    let mut request = Request::new(prompt(seed, tokens)).max_new_tokens(12);
    for (name, weight) in mixture {
        request = request.adapter(name, *weight);
    }
    request.return_logits = true;
    request.stop_at_eos = false;
    request
}

fn mixed_batch() -> Vec<Request> {
    vec![
        request(1, 45, &[("jargon", 0.3), ("sqlite", 0.7)]),
        request(2, 3, &[]),
        request(3, 70, &[("sqlite", 1.0)]),
        request(4, 1, &[("sqlite", 0.7), ("jargon", 0.3)]),
        request(5, 33, &[("jargon", 1.0)]),
        request(6, 64, &[("jargon", -0.5)]),
        request(7, 20, &[("jargon", 1.0), ("jargon", 1.0)]),
        request(8, 31, &[]),
    ]
}

fn assert_same_bits(a: &Completion, b: &Completion, what: &str) {
    assert_eq!(a.token_ids, b.token_ids, "{what}");
    let bits = |c: &Completion| c.logits.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert!(bits(a) == bits(b), "{what}: logits differ");
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_any_batch() {
    let engine = engine_with(EngineOptions { prefix_cache: false, ..EngineOptions::default() });
    let together = engine.generate(&mixed_batch()).expect("together");
    let mut reversed = engine.generate(&mixed_batch().into_iter().rev().collect::<Vec<_>>()).expect("reversed");
    reversed.reverse();
    for (i, request) in mixed_batch().iter().enumerate() {
        let alone = engine.generate(std::slice::from_ref(request)).expect("alone").remove(0);
        assert_same_bits(&alone, &together[i], &format!("row {i} among others"));
        assert_same_bits(&alone, &reversed[i], &format!("row {i} in reversed order"));
    }
}

#[test]
fn a_cached_prefix_and_a_chunked_prompt_change_no_bit() {
    for kv_dtype in [KvDType::F16, KvDType::F32] {
        let whole = engine_with(EngineOptions { kv_dtype, prefix_cache: false, ..EngineOptions::default() });
        let chunked =
            engine_with(EngineOptions { kv_dtype, prefix_cache: false, prefill_chunk: 7, ..EngineOptions::default() });
        let cached = engine_with(EngineOptions { kv_dtype, ..EngineOptions::default() });
        let expected = whole.generate(&mixed_batch()).expect("whole");
        let chunks = chunked.generate(&mixed_batch()).expect("chunked");
        let first = cached.generate(&mixed_batch()).expect("first");
        let second = cached.generate(&mixed_batch()).expect("second");
        assert!(second.iter().map(|c| c.finish.usage.cached_tokens).sum::<usize>() > 0, "nothing was found");
        for i in 0..expected.len() {
            assert_same_bits(&expected[i], &chunks[i], &format!("{kv_dtype:?}: row {i} in chunks"));
            assert_same_bits(&expected[i], &first[i], &format!("{kv_dtype:?}: row {i} computed"));
            assert_same_bits(&expected[i], &second[i], &format!("{kv_dtype:?}: row {i} found"));
        }
    }
}

#[test]
fn a_base_row_has_the_bits_of_an_engine_without_adapters() {
    let bare = Engine::load(fixture(BASE), EngineOptions::default()).expect("loads");
    let with_adapters = engine();
    let base = request(2, 40, &[]);
    let expected = bare.generate(std::slice::from_ref(&base)).expect("bare").remove(0);
    let mut among = mixed_batch();
    among.push(base);
    let found = with_adapters.generate(&among).expect("among").pop().expect("one");
    assert_same_bits(&expected, &found, "base row");
}

#[test]
fn prefixes_are_never_shared_between_mixtures() {
    let engine = engine();
    let long = |mixture: &[(&str, f32)]| request(9, 100, mixture);
    let cached = |request: Request| engine.generate(&[request]).expect("runs")[0].finish.usage.cached_tokens;
    assert_eq!(cached(long(&[])), 0);
    assert_eq!(cached(long(&[("jargon", 1.0)])), 0);
    assert_eq!(cached(long(&[("jargon", 0.5)])), 0);
    assert_eq!(cached(long(&[("jargon", 1.0)])), 96);
    engine.load_adapter("jargon", fixture("adapters/sqlite-rslora-r16")).expect("replaced");
    assert_eq!(cached(long(&[("jargon", 1.0)])), 0, "another adapter under the same name");
    engine.load_adapter("jargon", fixture("adapters/jargon-lora-r8")).expect("back");
    assert_eq!(cached(long(&[("jargon", 1.0)])), 96, "the same adapter loaded again is the same computation");
}

#[test]
fn a_cache_too_small_for_all_requests_gives_the_same_texts() {
    let roomy = engine();
    let tight = engine_with(EngineOptions { kv_tokens: Some(160), ..EngineOptions::default() });
    let mut requests = mixed_batch();
    for request in &mut requests {
        request.max_new_tokens = 60;
    }
    let expected = roomy.generate(&requests).expect("roomy");
    let found = tight.generate(&requests).expect("tight");
    for (i, (a, b)) in expected.iter().zip(&found).enumerate() {
        assert_same_bits(a, b, &format!("row {i}"));
    }
    let stats = tight.stats();
    assert_eq!(stats.kv_pages_free, stats.kv_pages_total);
}

#[test]
fn logits_of_a_prompt_are_those_a_token_is_chosen_from() {
    let engine = engine();
    let request = request(3, 50, &[("sqlite", 1.0)]);
    let chosen = engine.generate(std::slice::from_ref(&request)).expect("runs").remove(0);
    let logits = engine.logits(&request.prompt, &[(AdapterRef::Name("sqlite".into()), 1.0)]).expect("logits");
    assert_eq!((logits.tokens, logits.values.len()), (50, 50 * logits.vocab));
    assert_eq!(logits.values[49 * logits.vocab..], chosen.logits[..logits.vocab]);
}

#[test]
fn a_stop_token_is_counted_but_is_not_text_and_a_stop_string_ends_the_text_before_it() {
    let engine = engine();
    let free = engine.generate(&[Request::new("Emma was very much").max_new_tokens(24)]).expect("free").remove(0);
    let third = free.token_ids[2];
    let by_token = Request::new("Emma was very much").max_new_tokens(24).stop(Stop::Token(third));
    let by_token = engine.generate(&[by_token]).expect("token").remove(0);
    let position = free.token_ids.iter().position(|&id| id == third).expect("there");
    assert_eq!(by_token.token_ids, free.token_ids[..=position]);
    assert_eq!(by_token.finish.matched, Some(StopMatch::Token(third)));
    assert!(free.text.starts_with(&by_token.text) && by_token.text.len() < free.text.len());

    let middle: String = free.text.chars().skip(7).take(4).collect();
    let by_text = Request::new("Emma was very much").max_new_tokens(24).stop(Stop::Text(middle.clone()));
    let by_text = engine.generate(&[by_text]).expect("text").remove(0);
    assert_eq!(by_text.text, free.text[..free.text.find(&middle).expect("there")]);
    assert_eq!(by_text.finish.matched, Some(StopMatch::Text(middle)));
    assert_eq!(by_text.finish.reason, FinishReason::Stop);
}

#[test]
fn stop_tokens_are_not_chosen_before_the_minimum_length() {
    let engine = engine();
    let free = engine.generate(&[Request::new("Emma was").max_new_tokens(8)]).expect("free").remove(0);
    let mut request = Request::new("Emma was").max_new_tokens(8).stop(Stop::Token(free.token_ids[0]));
    request.min_new_tokens = 4;
    let held = engine.generate(&[request]).expect("held").remove(0);
    assert!(held.token_ids.len() >= 4);
    assert!(!held.token_ids[..4].contains(&free.token_ids[0]));
}

#[test]
fn chunks_joined_are_the_completion() {
    let engine = engine();
    let request = Request::new("Élan: “the naïve café”, 3.14 —").adapter("jargon", 1.0).max_new_tokens(40);
    let whole = engine.generate(std::slice::from_ref(&request)).expect("whole").remove(0);
    let mut job = engine.submit(request).expect("submitted");
    let (mut text, mut ids) = (String::new(), Vec::new());
    while let Some(chunk) = job.next_chunk().expect("chunk") {
        text += &chunk.text;
        ids.extend(chunk.token_ids);
    }
    assert_eq!((text, ids), (whole.text, whole.token_ids));
}

#[test]
fn a_dropped_or_cancelled_job_releases_everything() {
    let engine = engine();
    let idle = engine.stats();
    let mut running = engine.submit(request(1, 100, &[("jargon", 1.0)])).expect("running");
    running.next_chunk().expect("a chunk");
    let waiting = engine.submit(request(2, 100, &[("sqlite", 1.0)])).expect("waiting");
    assert_eq!(engine.stats().leases, idle.leases + 2);
    drop(waiting);
    running.cancel();
    let mut last = None;
    while let Some(chunk) = running.next_chunk().expect("chunk") {
        last = chunk.finish;
    }
    assert_eq!(last.expect("finished").reason, FinishReason::Cancelled);
    let after = engine.stats();
    assert_eq!((after.leases, after.rows_running, after.rows_waiting), (idle.leases, 0, 0));
    assert_eq!(after.kv_pages_free, after.kv_pages_total);
}

#[test]
fn a_running_request_keeps_the_adapter_version_it_started_with() {
    let engine = engine();
    let wanted = request(5, 20, &[("jargon", 1.0)]);
    let expected = engine.generate(std::slice::from_ref(&wanted)).expect("before").remove(0);
    let loaded = engine.stats().adapters_bytes;

    let mut job = engine.submit(wanted).expect("submitted");
    let mut ids = job.next_chunk().expect("chunk").expect("one").token_ids;
    engine.load_adapter("jargon", fixture("adapters/sqlite-rslora-r16")).expect("replaced");
    engine.unload_adapter("sqlite").expect("unloaded");
    engine.unload_adapter("jargon").expect("unloaded");
    while let Some(chunk) = job.next_chunk().expect("chunk") {
        ids.extend(chunk.token_ids);
    }
    assert_eq!(ids, expected.token_ids);
    assert!(loaded > 0);
    assert_eq!(engine.stats().adapters_bytes, 0, "no request holds an adapter");
    let error = engine.submit(request(5, 20, &[("jargon", 1.0)])).err().expect("unknown now");
    assert_eq!(error.code(), ErrorCode::AdapterNotFound);
}

#[test]
fn a_refused_request_leaves_the_engine_running() {
    let engine = engine();
    let code = |request: Request| engine.generate(&[request]).expect_err("refused").code();
    assert_eq!(code(request(1, 5, &[("nobody", 1.0)])), ErrorCode::AdapterNotFound);
    assert_eq!(code(request(1, 5, &[("jargon", f32::NAN)])), ErrorCode::AdapterWeightInvalid);
    assert_eq!(code(request(1, 0, &[])), ErrorCode::PromptEmpty);
    assert_eq!(code(request(1, 1025, &[])), ErrorCode::PromptTooLong);
    assert_eq!(code(Request::new(vec![5, 2048])), ErrorCode::TokenOutOfRange);
    assert_eq!(code(Request::new("a").max_new_tokens(0)), ErrorCode::RequestInvalid);
    assert_eq!(code(Request::new("a").stop(Stop::Text(String::new()))), ErrorCode::RequestInvalid);
    assert_eq!(engine.unload_adapter("nobody").expect_err("unknown").code(), ErrorCode::AdapterNotFound);

    let before = engine.stats().tokens_generated;
    let mixed = [request(1, 5, &[]), request(1, 5, &[("nobody", 1.0)])];
    engine.generate(&mixed).expect_err("one is refused");
    assert_eq!(engine.stats().tokens_generated, before, "then none is run");
    let longest = engine.generate(&[request(1, 1024, &[])]).expect("the longest").remove(0);
    assert_eq!((longest.token_ids.len(), longest.finish.reason), (1, FinishReason::Length));
}

#[test]
fn adapters_are_loaded_and_unloaded_while_sixteen_jobs_stream() {
    let engine = engine();
    let wanted = |i: u32| request(i, 10 + i as usize, &mixture(i));
    let alone: Vec<_> = (0..16).map(|i| engine.generate(&[wanted(i)]).expect("alone").remove(0)).collect();
    engine.clear_prefix_cache();
    let resident = engine.stats().adapters_bytes;
    std::thread::scope(|scope| {
        let stream = |i: u32| {
            let engine = engine.clone();
            scope.spawn(move || engine.generate(&[wanted(i)]).expect("streams").remove(0))
        };
        let streams: Vec<_> = (0..16).map(stream).collect();
        let churn = scope.spawn(|| {
            for round in 0..20 {
                let other = ["adapters/jargon-lora-r8", "adapters/sqlite-rslora-r16"][round % 2];
                engine.load_adapter("guest", fixture(other)).expect("guest loads");
                engine.load_adapter("jargon", fixture("adapters/jargon-lora-r8")).expect("jargon again");
                if round % 3 == 2 {
                    engine.unload_adapter("guest").expect("guest goes");
                }
            }
        });
        churn.join().expect("churn");
        for (i, stream) in streams.into_iter().enumerate() {
            assert_same_bits(&alone[i], &stream.join().expect("joins"), &format!("stream {i}"));
        }
    });
    engine.unload_adapter("guest").expect("the last guest");
    let after = engine.stats();
    assert_eq!((after.adapters_bytes, after.leases, after.adapters_resident), (resident, 0, 2));
    assert_eq!(after.kv_pages_free, after.kv_pages_total);
}

fn mixture(i: u32) -> Vec<(&'static str, f32)> {
    match i % 4 {
        0 => vec![],
        1 => vec![("jargon", 1.0)],
        2 => vec![("sqlite", 0.5)],
        _ => vec![("jargon", 0.3), ("sqlite", 0.7)],
    }
}
