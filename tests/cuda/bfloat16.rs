//! A whole model whose weights are bfloat16, and so what its linears read, against the reference backend in float32.

use exlora::{Device, Engine, EngineOptions, Request};
use support::model::{Plain, TinyModel};

use crate::decoder::{assert_same_bits, on_cuda, request};
use crate::kv_dtype::adapter;
use crate::support::find_compiler;

/// Largest norm of the difference of a row of logits, relative to its own: bfloat16 has 8 significant bits.
const TOLERANCE: f64 = 1e-2;

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|value| value * value).sum::<f64>().sqrt()
}

#[test]
fn a_bfloat16_model_agrees_with_the_reference_and_with_itself_alone() {
    find_compiler();
    let model = TinyModel { plain: Plain::BF16, ..TinyModel::default() };
    let folder = tempfile::tempdir().expect("a folder");
    model.write(folder.path());
    let low = adapter(&model, 5, model.layers).write();
    let load = |options| {
        let engine = Engine::load(folder.path(), options).expect("the model loads");
        engine.load_adapter("low", low.path()).expect("the adapter loads");
        engine
    };
    let vocab = model.vocab as u32;
    let batch: Vec<Request> = [(1, 9, 0.0), (2, 4, 1.0), (3, 12, -0.5)]
        .into_iter()
        .map(|(seed, tokens, weight)| {
            let mixture = [("low", weight)];
            let ids: Vec<u32> = (0..tokens).map(|i| 3 + (seed * 31 + i * 17) % (vocab - 3)).collect();
            Request { prompt: ids.into(), ..request(seed, 1, 1, if weight == 0.0 { &[] } else { &mixture }) }
        })
        .collect();
    let expected = load(EngineOptions { device: Device::Reference, ..on_cuda() }).generate(&batch).expect("it runs");
    let engine = load(on_cuda());
    let found = engine.generate(&batch).expect("it runs");
    for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let pairs = || found.logits.iter().zip(&expected.logits).map(|(&a, &b)| (f64::from(a), f64::from(b)));
        let error = norm(pairs().map(|(a, b)| a - b)) / norm(pairs().map(|(_, b)| b));
        assert!(error < TOLERANCE, "request {index}: {error:e}");
        assert!(error > 0.0, "request {index} is computed in bfloat16");
        let alone = engine.generate(std::slice::from_ref(&batch[index])).expect("alone").remove(0);
        assert_same_bits(&alone, found, &format!("request {index} alone"));
    }
}
