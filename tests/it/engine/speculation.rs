//! Drafts change no bit of any result: drafted tokens are verified, whoever drafts them, beside whatever else runs.

use std::sync::Arc;

use exlora::{
    Completion, DraftModelSource, Engine, EngineOptions, ErrorCode, FinishReason, Request, SamplingParams, Stop,
};
use serde_json::Value;
use support::model::TinyModel;

use super::{BASE, assert_same_bits, engine_with, fixture, mixed_batch, prefix_cache};

/// Without a prefix cache, so that the second of two equal runs computes what the first does.
fn options() -> EngineOptions {
    EngineOptions { prefix_cache: false, ..EngineOptions::default() }
}

fn with_draft_model() -> EngineOptions {
    EngineOptions { draft_model: Some(DraftModelSource::Path(fixture(BASE))), ..options() }
}

/// Requests of all kinds, for longer texts, which repeat themselves sooner or later.
fn requests() -> Vec<Request> {
    let mut requests = mixed_batch();
    requests.push(Request::new("la la la la la").adapter("devil", 1.0));
    let sampled = SamplingParams { temperature: 0.7, top_p: 0.9, seed: Some(5), ..SamplingParams::default() };
    requests.push(Request::new("Emma was very much").sampling(sampled.clone()));
    let penalized = SamplingParams { repetition_penalty: 1.05, frequency_penalty: 0.1, ..sampled };
    requests.push(Request::new("Emma was very much").adapter("jargon", 1.0).sampling(penalized).logprobs(3));
    for request in &mut requests {
        (request.max_new_tokens, request.stop_at_eos, request.return_logits) = (60, false, true);
    }
    requests.push(Request { n: 3, ..requests[9].clone() });
    requests
}

fn drafting(requests: &[Request]) -> Vec<Request> {
    let drafts = |(i, request): (usize, &Request)| Request {
        ngram_draft: true,
        max_ngram: 1 + i % 3,
        num_draft_tokens: Some(1 + i % 7),
        ..request.clone()
    };
    requests.iter().enumerate().map(drafts).collect()
}

fn engine(options: EngineOptions) -> Engine {
    let engine = engine_with(options);
    engine.load_adapter("devil", fixture("adapters/devil-dora-r8")).expect("devil loads");
    engine
}

fn assert_same(expected: &[Completion], found: &[Completion], what: &str) {
    assert_eq!(expected.len(), found.len());
    for (i, (expected, found)) in expected.iter().zip(found).enumerate() {
        assert_same_bits(expected, found, &format!("{what}: result {i}"));
        assert_eq!((&expected.text, &expected.logprobs), (&found.text, &found.logprobs), "{what}: result {i}");
        let ended = |c: &Completion| (c.finish.reason, c.finish.matched.clone(), c.finish.seed, c.sample);
        assert_eq!(ended(expected), ended(found), "{what}: result {i}");
    }
}

/// Accepted and rejected draft tokens of all results.
fn drafted(completions: &[Completion]) -> (usize, usize) {
    let usage = || completions.iter().map(|completion| completion.finish.usage);
    (usage().map(|u| u.accepted_draft_tokens).sum(), usage().map(|u| u.rejected_draft_tokens).sum())
}

#[test]
fn drafts_from_the_text_change_no_bit_in_a_mixed_batch() {
    let requests = requests();
    let expected = engine(options()).generate(&requests).expect("without drafts");
    for prefix_cache in [false, true] {
        let engine = engine(EngineOptions { prefix_cache, ..options() });
        for run in ["first", "again"] {
            let before = engine.stats();
            let found = engine.generate(&drafting(&requests)).expect("with drafts");
            assert_same(&expected, &found, run);
            let (accepted, rejected) = drafted(&found);
            assert!(accepted > 50 && rejected > 50, "{accepted} accepted, {rejected} rejected");
            let after = engine.stats();
            let counted = (
                after.accepted_draft_tokens - before.accepted_draft_tokens,
                after.rejected_draft_tokens - before.rejected_draft_tokens,
            );
            assert_eq!(counted, (accepted as u64, rejected as u64));
            assert_eq!(after.kv_pages_free, after.kv_pages_total);
        }
    }
}

#[test]
fn drafts_change_no_bit_when_pages_run_out() {
    let requests = requests();
    let expected = engine(options()).generate(&requests).expect("roomy");
    for draft_model in [None, with_draft_model().draft_model] {
        let engine = engine(EngineOptions { kv_tokens: Some(160), draft_model, ..EngineOptions::default() });
        let requests = if engine.draft_model().is_some() { requests.clone() } else { drafting(&requests) };
        let found = engine.generate(&requests).expect("tight");
        assert_same(&expected, &found, "tight");
        assert!(drafted(&found).0 > 50);
        let stats = engine.stats();
        assert_eq!((stats.kv_pages_free, stats.leases), (stats.kv_pages_total, 0));
    }
}

#[test]
fn a_draft_ends_with_the_text() {
    let free = Request { stop_at_eos: false, ..Request::new("la la la la la la").max_new_tokens(40) };
    let engine = engine(options());
    let whole = engine.generate(std::slice::from_ref(&free)).expect("free").remove(0);
    let middle: String = whole.text.chars().skip(30).take(5).collect();
    let last_new =
        whole.token_ids.iter().rev().find(|id| whole.token_ids.iter().filter(|other| other == id).count() == 1);
    let mut requests = vec![free.clone().stop(Stop::Text(middle)), free.clone().max_new_tokens(2), free.clone()];
    requests.extend(last_new.map(|&id| free.clone().stop(Stop::Token(id))));
    requests.push(Request { min_new_tokens: 35, ..requests[0].clone() });
    let expected = engine.generate(&requests).expect("without drafts");
    let found = engine.generate(&drafting(&requests)).expect("with drafts");
    assert_same(&expected, &found, "stops");
    for completion in &found {
        let usage = completion.finish.usage;
        assert_eq!(usage.completion_tokens, completion.token_ids.len());
        assert!(usage.accepted_draft_tokens < completion.token_ids.len());
    }
    assert_eq!(expected[0].finish.reason, FinishReason::Stop);
}

#[test]
fn a_draft_model_like_the_model_saves_most_steps_greedy_and_sampled() {
    let (plain, speculating) = (engine(options()), engine(with_draft_model()));
    let sampled = SamplingParams { temperature: 1.0, seed: Some(11), ..SamplingParams::default() };
    for sampling in [SamplingParams::default(), sampled] {
        let mut request = Request::new("Emma was very much").max_new_tokens(61).sampling(sampling);
        (request.stop_at_eos, request.return_logits) = (false, true);
        let expected = plain.generate(std::slice::from_ref(&request)).expect("without drafts");
        let before = speculating.stats();
        let found = speculating.generate(&[request]).expect("with drafts");
        assert_same(&expected, &found, "draft model");
        let after = speculating.stats();
        assert_eq!(after.tokens_generated - before.tokens_generated, 61);
        // The prompt's step chooses one token, and each step after that five.
        assert_eq!(after.steps - before.steps, 13);
        assert_eq!(drafted(&found), (48, 0));
    }
}

#[test]
fn a_draft_model_changes_no_bit_in_a_mixed_batch_whatever_its_adapters() {
    let requests = requests();
    let expected = engine(options()).generate(&requests).expect("without drafts");
    for prefix_cache in [false, true] {
        let engine = engine(EngineOptions { prefix_cache, ..with_draft_model() });
        engine.load_draft_adapter("helper", fixture("adapters/jargon-lora-r8")).expect("it loads");
        let with_adapters = requests.iter().enumerate().map(|(i, request)| match i % 3 {
            0 => request.clone(),
            1 => request.clone().draft_adapter("helper", 1.0),
            _ => Request { ngram_draft: true, ..request.clone() },
        });
        let with_adapters: Vec<Request> = with_adapters.collect();
        for run in ["first", "again"] {
            let found = engine.generate(&with_adapters).expect("with drafts");
            assert_same(&expected, &found, run);
            let (accepted, rejected) = drafted(&found);
            assert!(accepted > 200 && rejected > 50, "{accepted} accepted, {rejected} rejected");
        }
        assert_eq!(engine.stats().leases, 0);
        engine.unload_draft_adapter("helper").expect("unloaded");
        let error = engine.generate(&with_adapters).expect_err("it is not loaded");
        assert_eq!(error.code(), ErrorCode::AdapterNotFound);
    }
}

#[test]
fn drafts_change_no_bit_under_layer_maps_and_activated_adapters() {
    let mixtures = prefix_cache::mixtures();
    let prompts = prefix_cache::prompts();
    let request = |(i, mixture): (usize, &prefix_cache::Mixture)| {
        prefix_cache::request(&prompts[i % prompts.len()], mixture).max_new_tokens(24)
    };
    let requests: Vec<Request> = mixtures.iter().enumerate().step_by(2).map(request).collect();
    let expected = prefix_cache::engine(false).generate(&requests).expect("without drafts");
    let found = prefix_cache::engine(true).generate(&drafting(&requests)).expect("with drafts");
    assert_same(&expected, &found, "from the text");
    let (accepted, rejected) = drafted(&found);
    assert!(accepted > 0 && rejected > 0, "{accepted} accepted, {rejected} rejected");

    // The draft model has the adapters of the target.
    let model = prefix_cache::model();
    let draft_model = Some(DraftModelSource::Loaded(Arc::clone(model)));
    let options = EngineOptions { draft_model, kv_tokens: Some(4096), ..EngineOptions::default() };
    let engine = Engine::from_model(Arc::clone(model), None, options).expect("an engine");
    let with_adapters = |(i, request): (usize, &Request)| Request {
        draft_adapters: if i % 3 == 0 { Vec::new() } else { request.adapters.clone() },
        ..request.clone()
    };
    let requests: Vec<Request> = requests.iter().enumerate().map(with_adapters).collect();
    for run in ["first", "again"] {
        let found = engine.generate(&requests).expect("with drafts");
        assert_same(&expected, &found, run);
        let (accepted, rejected) = drafted(&found);
        assert!(accepted > 200 && rejected > 0, "{accepted} accepted, {rejected} rejected");
    }
}

#[test]
fn nothing_is_drafted_where_a_step_has_no_rows_to_spare() {
    let request = Request { stop_at_eos: false, ..Request::new("la la la la la la").max_new_tokens(20) };
    let drafted_with = |prefill_chunk: usize, rows: usize| {
        let engine = engine(EngineOptions { prefill_chunk, ..with_draft_model() });
        drafted(&engine.generate(&vec![request.clone(); rows]).expect("runs"))
    };
    assert_eq!(drafted_with(1, 1), (0, 0));
    assert_eq!(drafted_with(4, 4), (0, 0));
    assert!(drafted_with(8, 4).0 > 0);
}

#[test]
fn a_request_may_draft_nothing() {
    let engine = engine(with_draft_model());
    let found = engine.generate(&[Request::new("la la la").num_draft_tokens(0)]).expect("runs");
    assert_eq!(drafted(&found), (0, 0));
}

#[test]
fn wrong_draft_settings_are_refused() {
    let engine = engine(options());
    let code = |request: Request| engine.generate(&[request]).expect_err("refused").code();
    assert_eq!(code(Request { max_ngram: 0, ..Request::new("a") }), ErrorCode::RequestInvalid);
    assert_eq!(code(Request { max_ngram: 17, ..Request::new("a") }), ErrorCode::RequestInvalid);
    assert_eq!(code(Request::new("a").num_draft_tokens(65)), ErrorCode::RequestInvalid);
    assert_eq!(code(Request::new("a").draft_adapter("jargon", 1.0)), ErrorCode::RequestInvalid);
    let error = engine.load_draft_adapter("jargon", fixture("adapters/jargon-lora-r8")).expect_err("no draft model");
    assert_eq!(error.code(), ErrorCode::RequestInvalid);
}

#[test]
fn a_draft_model_with_another_vocabulary_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    TinyModel::default().write(folder.path());
    let open = || {
        let draft_model = Some(DraftModelSource::Path(folder.path().to_owned()));
        Engine::load(fixture(BASE), EngineOptions { draft_model, ..options() }).expect_err("it does not fit")
    };
    let error = open();
    assert_eq!(error.code(), ErrorCode::DraftModelMismatch);
    assert!(error.to_string().contains("different vocabularies"), "{error}");

    let text = std::fs::read_to_string(fixture(BASE).join("tokenizer.json")).expect("a tokenizer");
    let mut tokenizer: Value = serde_json::from_str(&text).expect("JSON");
    let ids = tokenizer["model"]["vocab"].as_object_mut().expect("a vocabulary");
    ids.values_mut().for_each(|id| match id.as_u64() {
        Some(1000) => *id = 1001.into(),
        Some(1001) => *id = 1000.into(),
        _ => {}
    });
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).expect("written");
    let error = open();
    assert_eq!(error.code(), ErrorCode::DraftModelMismatch);
    assert!(error.to_string().contains("token 1000"), "{error}");
}
