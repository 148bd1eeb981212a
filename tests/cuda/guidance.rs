//! Classifier-free guidance on the device: both prompts of a text in one batch with other requests, with adapters and a mixture.

use exlora::{Completion, Device, EngineOptions, Request};

use crate::decoder::{DEVIL, JARGON, SQLITE, TOLERANCE, assert_same_bits, engine, mixed_batch, on_cuda, request};

const MODEL: &str = "quill-4m";

fn guided(seed: u32, tokens: u32, negative: u32, scale: f32, mixture: &[(&str, f32)]) -> Request {
    let other = request(seed + 50, negative, 1, &[]).prompt;
    request(seed, tokens, 4, mixture).negative_prompt(other, scale)
}

/// Guided texts among others; their prompts differ in length by nothing, a little and much.
fn requests() -> Vec<Request> {
    let guided = [
        guided(21, 9, 9, 1.5, &[(JARGON, 0.3), (SQLITE, 0.7)]),
        guided(22, 1, 20, 2.0, &[]),
        guided(23, 18, 1, -1.0, &[(DEVIL, 1.0)]),
        guided(24, 3, 2, 0.5, &[(JARGON, 1.0)]),
    ];
    let [base, lora, _, mixture, ..] = <[Request; 6]>::try_from(mixed_batch(2)).expect("six");
    let [first, second, third, fourth] = guided;
    vec![first, second, base, lora, mixture, third, fourth]
}

/// Compares the tokens with those of the CPU, as long as the same ones come before and the CPU's choice is clear; returns how many
/// were.
fn assert_same_choices(found: &Completion, expected: &Completion, scale: f32, what: &str) -> usize {
    let vocab = expected.logits.len() / expected.token_ids.len();
    // Two log-probabilities, each off by the tolerance, are weighted by the scale and by what is left of 1.
    let tolerance = TOLERANCE * (scale.abs() + (1.0 - scale).abs());
    for (step, (row, found_row)) in expected.logits.chunks(vocab).zip(found.logits.chunks(vocab)).enumerate() {
        let largest = row.iter().fold(0f32, |largest, logit| largest.max(logit.abs()));
        let error = found_row.iter().zip(row).fold(0f32, |error, (a, b)| error.max((a - b).abs()));
        assert!(error <= tolerance * largest, "{what}, step {step}: {error} of {largest}");
        let best = row[expected.token_ids[step] as usize];
        let second = (0..).zip(row).filter(|(id, _)| *id != expected.token_ids[step]).map(|(_, &logit)| logit);
        if best - second.fold(f32::NEG_INFINITY, f32::max) <= 2.0 * tolerance * largest {
            return step;
        }
        assert_eq!(found.token_ids[step], expected.token_ids[step], "{what}, step {step}");
    }
    expected.token_ids.len()
}

#[test]
fn a_guided_text_is_the_cpus_where_its_choices_are_clear() {
    let requests = requests();
    let expected = engine(MODEL, EngineOptions { device: Device::Cpu, ..EngineOptions::default() })
        .generate(&requests)
        .expect("the CPU runs");
    let found = engine(MODEL, on_cuda()).generate(&requests).expect("the device runs");
    let mut compared = 0;
    for (index, ((found, expected), request)) in found.iter().zip(&expected).zip(&requests).enumerate() {
        let scale = request.sampling.cfg_scale.unwrap_or(1.0);
        let same = assert_same_choices(found, expected, scale, &format!("request {index}"));
        compared += if request.negative_prompt.is_some() { same } else { 0 };
    }
    assert!(compared >= 5, "only {compared} choices of guided texts are clear");
}

#[test]
#[ignore = "make test-slow"]
fn a_guided_text_has_the_same_bits_alone_in_a_batch_in_chunks_and_after_preemption() {
    let requests: Vec<Request> =
        requests().into_iter().map(|request| Request { max_new_tokens: 2, ..request }).collect();
    let options = || EngineOptions { prefix_cache: false, ..on_cuda() };
    let whole = engine(MODEL, options());
    let together = whole.generate(&requests).expect("together");
    let cramped = engine(MODEL, EngineOptions { kv_tokens: Some(128), prefill_chunk: 7, ..options() });
    let short = cramped.generate(&requests).expect("short of pages, in chunks");
    for (index, request) in requests.iter().enumerate() {
        assert_same_bits(&short[index], &together[index], &format!("request {index} in chunks"));
        if request.negative_prompt.is_some() {
            let alone = whole.generate(std::slice::from_ref(request)).expect("alone").remove(0);
            assert_same_bits(&alone, &together[index], &format!("request {index} alone"));
        }
    }
}
