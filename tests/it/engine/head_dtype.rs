//! An output head that is rounded to 8 bits: how far logits move, and that rows stay independent.

use exlora::{Completion, Device, Engine, EngineOptions, HeadDType};

use super::{BASE, assert_same_bits, engine_with, fixture, mixed_batch, request};

fn options(head: HeadDType) -> EngineOptions {
    EngineOptions { head, prefix_cache: false, ..EngineOptions::default() }
}

/// The logits of the first token of each request.
fn first_logits(engine: &Engine) -> Vec<Vec<f32>> {
    let requests: Vec<_> = (0..6).map(|seed| request(seed, 20, &[]).max_new_tokens(1)).collect();
    engine.generate(&requests).expect("it runs").into_iter().map(|Completion { logits, .. }| logits).collect()
}

/// The root mean square of the differences, of that of the values.
fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
    let differences = &mut found.iter().zip(expected).map(|(&a, &b)| f64::from(a) - f64::from(b));
    (square(differences) / square(&mut expected.iter().map(|&value| f64::from(value)))).sqrt()
}

#[test]
fn logits_of_a_rounded_head_are_off_by_less_than_a_percent() {
    let stored = first_logits(&Engine::load(fixture(BASE), options(HeadDType::Stored)).expect("it loads"));
    let rounded = first_logits(&Engine::load(fixture(BASE), options(HeadDType::Int8)).expect("it loads"));
    let reference = EngineOptions { device: Device::Reference, ..options(HeadDType::Int8) };
    let reference = first_logits(&Engine::load(fixture(BASE), reference).expect("it loads"));
    for ((stored, rounded), reference) in stored.iter().zip(&rounded).zip(&reference) {
        let error = relative_error(rounded, stored);
        assert!((1e-4..0.01).contains(&error), "off by {error}");
        assert!(relative_error(rounded, reference) < 1e-3, "the device computes something else");
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_among_others_with_a_rounded_head() {
    let engine = engine_with(options(HeadDType::Int8));
    let together = engine.generate(&mixed_batch()).expect("together");
    for (i, request) in mixed_batch().iter().enumerate() {
        let alone = engine.generate(std::slice::from_ref(request)).expect("alone").remove(0);
        assert_same_bits(&alone, &together[i], &format!("row {i}"));
    }
}
