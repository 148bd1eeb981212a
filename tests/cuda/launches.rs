//! How many kernels a step launches, as the emulated driver counts them. On a card these tests count nothing and pass.

use exlora::{Device, Engine, EngineOptions, Prompt, Request};
use support::fixtures;

use crate::adapters;
use crate::embedding_adapters;
use crate::emulated::counter;
use crate::support::device;

/// Layers of the bundled model.
const LAYERS: u64 = 4;
/// linear(qkv), rope and KV, attention, linear(o), residual, linear(gate, up), activation, linear(down), residual.
const LAUNCHES_OF_A_ROW: u64 = 9;
/// The norms of a layer: a row alone is normed by what reads it.
const NORMS_OF_A_LAYER: u64 = 2;
/// The embedding before the layers; the head and the expansion of its products after them.
const OTHER_LAUNCHES: u64 = 3;

/// Launches of a layer for so many rows.
pub fn launches_of_a_layer(rows: usize) -> u64 {
    LAUNCHES_OF_A_ROW + if rows > 1 { NORMS_OF_A_LAYER } else { 0 }
}

/// Launches of a step with that many rows in all, a logit of each request, and layers.
fn launches_of_a_step(rows: usize, requests: usize, layers: u64) -> u64 {
    launches_of_a_layer(rows) * layers + OTHER_LAUNCHES + u64::from(requests > 1)
}

/// Rows of the only step of a batch.
fn rows_of(batch: &[Request]) -> usize {
    let tokens = |request: &Request| match &request.prompt {
        Prompt::Tokens(tokens) => tokens.len(),
        _ => panic!("the requests have token ids"),
    };
    batch.iter().map(tokens).sum()
}

/// A request of one step.
fn request(tokens: u32, mixture: &[(&str, f32)]) -> Request {
    let request = Request::new((0..tokens).map(|i| 3 + i * 7).collect::<Vec<u32>>()).max_new_tokens(1);
    mixture.iter().fold(request, |request, (name, weight)| request.adapter(name, *weight))
}

#[test]
fn a_layer_has_as_many_launches_whatever_adapters_its_rows_have() {
    device();
    let options = EngineOptions { device: Device::Cuda(0), kv_tokens: Some(512), ..EngineOptions::default() };
    let options = EngineOptions { max_seq_len: Some(64), prefix_cache: false, ..options };
    let engine = Engine::load(fixtures().join("quill-4m-gptq-4bit-g128-sym"), options).expect("the model loads");
    let (jargon, sqlite, devil) = ("jargon-lora-r8", "sqlite-rslora-r16", "devil-dora-r8");
    for adapter in [jargon, sqlite, devil] {
        engine.load_adapter(adapter, fixtures().join("adapters").join(adapter)).expect("the adapter loads");
    }
    let batches = [
        vec![request(1, &[])],
        vec![request(9, &[]), request(4, &[])],
        vec![request(1, &[(jargon, 1.0)])],
        vec![request(5, &[]), request(3, &[(devil, 1.0)]), request(1, &[(jargon, 0.5), (sqlite, 0.5), (devil, 1.0)])],
    ];
    assert_launches(&engine, LAYERS, &batches);
}

#[test]
fn a_layer_has_as_many_launches_with_truncated_weights_and_replaced_rows() {
    let model = adapters::gptq_model();
    let engine = adapters::engine(&model, Device::Cuda(0));
    let batches = [
        vec![request(1, &[("tokens", 1.0)])],
        vec![request(3, &[("kasa on q", 0.5), ("lora", 1.0)]), request(5, &[])],
        vec![request(2, &[("kasa on down", 1.0), ("tokens", 1.0)]), request(1, &[("head", 1.0)]), request(4, &[])],
    ];
    assert_launches(&engine, model.layers as u64, &batches);
}

/// Fails unless each batch, of one step, has the launches that a step without adapters has.
fn assert_launches(engine: &Engine, layers: u64, batches: &[Vec<Request>]) {
    for (index, batch) in batches.iter().enumerate() {
        let Some(before) = counter("launches") else { return };
        engine.generate(batch).expect("the batch runs");
        let count = counter("launches").expect("the driver counts") - before;
        assert_eq!(count, launches_of_a_step(rows_of(batch), batch.len(), layers), "batch {index}");
    }
}

#[test]
fn adapters_of_embeddings_and_norms_take_no_launch_of_their_own() {
    device();
    let engine = embedding_adapters::engine(false, Device::Cuda(0));
    let requests = embedding_adapters::requests_of_one_layer_map();
    let requests: Vec<Request> = requests.into_iter().map(|request| request.max_new_tokens(1)).collect();
    let Some(before) = counter("launches") else { return };
    engine.generate(&requests).expect("the batch runs");
    let count = counter("launches").expect("the driver counts") - before;
    let expected = launches_of_a_step(rows_of(&requests), requests.len(), embedding_adapters::LAYERS as u64);
    assert_eq!(count, expected);
}
