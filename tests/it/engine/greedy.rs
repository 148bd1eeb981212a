//! Greedy requests, of which a device tells the largest logit of a row in place of its logits: the tokens, texts and errors are
//! those of requests that look at their logits. The reference device tells them; the CPU scans.

use exlora::{
    Completion, Device, DraftModelSource, Engine, EngineOptions, ErrorCode, FinishReason, Job, KvDType, Request,
    Result, SamplingParams,
};

use super::{engine_with, fixture, mixed_batch, prompt, request};

const DEVICES: [Device; 2] = [Device::Reference, Device::Cpu];

fn engine(device: Device) -> Engine {
    engine_with(EngineOptions { device, prefix_cache: false, ..EngineOptions::default() })
}

/// The same requests, which say nothing of their logits.
fn greedy(requests: &[Request]) -> Vec<Request> {
    requests.iter().map(|request| Request { return_logits: false, ..request.clone() }).collect()
}

/// Fails unless results are the same but for their logits.
fn assert_same(expected: &[Completion], found: &[Completion], what: &str) {
    assert_eq!(expected.len(), found.len());
    for (index, (expected, found)) in expected.iter().zip(found).enumerate() {
        let expected = Completion { logits: found.logits.clone(), ..expected.clone() };
        assert_eq!(&expected, found, "{what}: result {index}");
    }
}

/// Requests that need more of their logits than the largest, each for a reason of its own.
fn others() -> Vec<Request> {
    let with = |sampling: SamplingParams| request(11, 9, &[("jargon", 1.0)]).sampling(sampling);
    let plain = || with(SamplingParams::default());
    vec![
        plain().logprobs(2),
        plain().probs(2),
        plain().negative_prompt(prompt(12, 5), 1.5),
        Request { min_new_tokens: 3, stop_at_eos: true, ..plain() },
        with(SamplingParams { repetition_penalty: 1.3, ..SamplingParams::default() }),
        with(SamplingParams { logit_bias: vec![(40, 100.0)], ..SamplingParams::default() }),
        with(SamplingParams { allowed_token_ids: Some(vec![40, 41, 42]), ..SamplingParams::default() }),
        with(SamplingParams { temperature: 0.8, seed: Some(3), ..SamplingParams::default() }),
    ]
}

#[test]
fn a_greedy_text_is_that_of_a_request_that_returns_its_logits() {
    for device in DEVICES {
        let engine = engine(device);
        let short = |request: Request| request.max_new_tokens(4);
        let mut requests: Vec<Request> = mixed_batch().into_iter().map(short).collect();
        requests.extend(others().into_iter().map(short));
        let expected = engine.generate(&requests).expect("with logits");
        assert!(expected.iter().all(|completion| completion.finish.reason == FinishReason::Length));
        assert_same(&expected, &engine.generate(&greedy(&requests)).expect("without"), &format!("{device:?}"));
        // Greedy rows and others in one step.
        let mut mixed = greedy(&requests);
        mixed.iter_mut().step_by(3).for_each(|request| request.return_logits = true);
        assert_same(&expected, &engine.generate(&mixed).expect("some with"), &format!("{device:?}, mixed"));
    }
}

#[test]
fn drafts_are_verified_by_the_largest_logits_of_their_rows() {
    for device in DEVICES {
        let draft_model = Some(DraftModelSource::Path(fixture(super::BASE)));
        let options = EngineOptions { device, prefix_cache: false, ..EngineOptions::default() };
        let drafting = engine_with(EngineOptions { draft_model, ..options });
        let texts = ["la la la la la", "Emma was very much"];
        let mut requests: Vec<Request> = texts.map(|text| Request::new(text).max_new_tokens(16)).to_vec();
        requests.iter_mut().for_each(|request| request.stop_at_eos = false);
        let undrafted: Vec<Request> = requests.iter().cloned().map(|r| r.num_draft_tokens(0)).collect();
        let expected = drafting.generate(&undrafted).expect("without drafts");
        let ngram: Vec<Request> = requests.iter().cloned().map(Request::ngram_draft).collect();
        for (drafts, requests) in [("model", requests), ("n-gram", ngram)] {
            let found = drafting.generate(&requests).expect("with drafts");
            let accepted: usize = found.iter().map(|c| c.finish.usage.accepted_draft_tokens).sum();
            assert!(accepted > 0, "{device:?}, {drafts}");
            for (expected, found) in expected.iter().zip(&found) {
                assert_eq!((&expected.token_ids, &expected.text), (&found.token_ids, &found.text), "{drafts}");
            }
        }
    }
}

#[test]
fn a_forbidden_token_is_not_chosen_by_a_greedy_request() {
    for device in DEVICES {
        let engine = engine(device);
        let request = greedy(&[request(3, 6, &[])]).remove(0).max_new_tokens(2);
        let free = engine.generate(std::slice::from_ref(&request)).expect("runs").remove(0).token_ids;
        let mut job = engine.submit(request).expect("submitted");
        job.forbid_next(&free[..1]);
        let first = job.next_chunk().expect("no error").expect("a chunk").token_ids;
        assert_ne!(first[0], free[0], "{device:?}");
    }
}

/// Runs a request to its end: the number of its tokens, or its error.
fn run(job: Result<Job>) -> Result<usize> {
    let (mut job, mut tokens) = (job?, 0);
    while let Some(chunk) = job.next_chunk()? {
        tokens += chunk.token_ids.len();
    }
    Ok(tokens)
}

#[test]
fn a_greedy_request_whose_logits_are_not_finite_fails_alone_with_the_error_of_one_that_returns_them() {
    for device in DEVICES {
        // Keys and values are as large as the logits.
        let options = EngineOptions { device, kv_dtype: KvDType::F32, ..EngineOptions::default() };
        let engine = engine_with(options);
        let mut broken = request(5, 3, &[("jargon", 1e38)]);
        let expected = run(engine.submit(broken.clone())).expect_err("with logits");
        assert_eq!(expected.code(), ErrorCode::LogitsNotFinite, "{device:?}: {expected}");
        broken.return_logits = false;
        let sound = greedy(&[request(2, 3, &[])]).remove(0);
        let jobs = [&sound, &broken].map(|request| engine.submit(request.clone()));
        let [sound_result, broken_result] = jobs.map(run);
        assert_eq!(sound_result, Ok(sound.max_new_tokens), "{device:?}");
        assert_eq!(broken_result, Err(expected), "{device:?}");
    }
}
