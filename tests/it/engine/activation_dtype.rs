//! Activations that are rounded to 8 bits: how far logits move, and that rows stay independent.

use exlora::{ActivationDType, Completion, Device, Engine, EngineOptions, ErrorCode};

use super::{BASE, assert_same_bits, engine_with, fixture, mixed_batch, request};

fn options(activations: ActivationDType) -> EngineOptions {
    EngineOptions { activations, prefix_cache: false, ..EngineOptions::default() }
}

/// The logits of the first token of each request.
fn first_logits(activations: ActivationDType) -> Vec<Vec<f32>> {
    let engine = Engine::load(fixture(BASE), options(activations)).expect("it loads");
    let requests: Vec<_> = (0..12).map(|seed| request(seed, 20, &[]).max_new_tokens(1)).collect();
    engine.generate(&requests).expect("it runs").into_iter().map(|Completion { logits, .. }| logits).collect()
}

/// The probabilities' logarithms.
fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().fold(f64::MIN, |largest, &logit| largest.max(f64::from(logit)));
    let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - largest).exp()).sum();
    logits.iter().map(|&logit| f64::from(logit) - largest - sum.ln()).collect()
}

#[test]
fn rounded_activations_move_the_probabilities_by_little_on_average() {
    let [exact, rounded] = [ActivationDType::F32, ActivationDType::Int8].map(first_logits);
    let (mut divergence, mut difference, mut size) = (0.0, 0.0, 0.0);
    for (exact, rounded) in exact.iter().zip(&rounded) {
        let logarithms = log_softmax(exact).into_iter().zip(log_softmax(rounded));
        divergence += logarithms.map(|(p, q)| p.exp() * (p - q)).sum::<f64>() / 12.0;
        for (&exact, &rounded) in exact.iter().zip(rounded) {
            difference += f64::from(exact - rounded).powi(2);
            size += f64::from(exact).powi(2);
        }
    }
    let error = (difference / size).sqrt();
    println!("logits off by {error:.5} of their size, a divergence of {divergence:.6}");
    assert!((1e-4..0.05).contains(&error), "logits are off by {error}");
    assert!((1e-9..0.02).contains(&divergence), "a divergence of {divergence}");
}

#[test]
fn a_row_has_the_same_bits_alone_and_among_others_with_rounded_activations() {
    let engine = engine_with(options(ActivationDType::Int8));
    let together = engine.generate(&mixed_batch()).expect("together");
    for (i, request) in mixed_batch().iter().enumerate() {
        let alone = engine.generate(std::slice::from_ref(request)).expect("alone").remove(0);
        assert_same_bits(&alone, &together[i], &format!("row {i}"));
    }
}

#[test]
fn a_device_that_does_not_round_activations_says_so() {
    let reference = EngineOptions { device: Device::Reference, ..options(ActivationDType::Int8) };
    let error = Engine::load(fixture(BASE), reference).expect_err("it is refused");
    assert_eq!(error.code(), ErrorCode::RequestInvalid);
    assert!(error.to_string().contains("int8"), "{error}");
    let unknown = "int4".parse::<ActivationDType>().unwrap_err().to_string();
    assert!(unknown.contains("f32 or int8"), "{unknown}");
}
