//! Adapters that change more than a low-rank part of the layers' linears, through the engine: KaSA, trained tokens of the head,
//! against the reference backend, each row alone and beside the others.

use exlora::{Completion, Device, Engine, EngineOptions, Request};
use serde_json::json;
use support::Rng;
use support::adapters::{Adapter, Folder};
use support::gptq::GptqSpec;
use support::model::{Plain, TinyModel};

use crate::decoder::{assert_close, assert_same_bits, request};
use crate::support::find_compiler;

const Q_PROJ: &str = "self_attn.q_proj";
const DOWN_PROJ: &str = "mlp.down_proj";
const HEAD: &str = "lm_head";

/// An adapter to write, with random tensors.
struct Writer<'a> {
    model: &'a TinyModel,
    rng: Rng,
    adapter: Adapter,
}

impl<'a> Writer<'a> {
    fn new(model: &'a TinyModel, seed: u64) -> Self {
        Self { model, rng: Rng(seed), adapter: Adapter::empty() }
    }

    fn tensor(mut self, module: &str, suffix: &str, shape: &[usize], scale: f32) -> Self {
        let values = self.rng.normals(shape.iter().product(), scale);
        self.adapter = self.adapter.part(module, suffix, shape, &values);
        self
    }

    /// Factors of rank 2, and the diagonal of KaSA between them.
    fn factors(self, module: &str, inputs: usize, outputs: usize, has_diagonal: bool) -> Self {
        let writer = self.tensor(module, "lora_A.weight", &[2, inputs], (inputs as f32).powf(-0.5)).tensor(
            module,
            "lora_B.weight",
            &[outputs, 2],
            0.3,
        );
        if has_diagonal { writer.tensor(module, "lora_diag", &[2], 1.0) } else { writer }
    }

    /// Factors at some linears of both layers.
    fn in_layers(self, linears: &[&str], has_diagonal: bool) -> Self {
        let TinyModel { hidden, intermediate, heads, head_dim, .. } = *self.model;
        (0..self.model.layers).fold(self, |writer, layer| {
            linears.iter().fold(writer, |writer, linear| {
                let (inputs, outputs) = match *linear {
                    Q_PROJ => (hidden, heads * head_dim),
                    _ => (intermediate, hidden),
                };
                writer.factors(&format!("model.layers.{layer}.{linear}"), inputs, outputs, has_diagonal)
            })
        })
    }

    fn set(mut self, field: &str, value: serde_json::Value) -> Self {
        self.adapter = self.adapter.set(field, value);
        self
    }

    /// Trained tokens of the head.
    fn head_tokens(self, tokens: &[u32]) -> Self {
        let shape = [tokens.len(), self.model.hidden];
        let suffix = "token_adapter.trainable_tokens_delta";
        self.set("trainable_token_indices", json!({HEAD: tokens})).tensor(HEAD, suffix, &shape, 0.2)
    }

    fn write(self) -> Folder {
        self.adapter.write()
    }
}

/// Names and folders of adapters on a model.
fn adapters(model: &TinyModel) -> Vec<(&'static str, Folder)> {
    let writer = |seed| Writer::new(model, seed);
    let kasa = |seed| writer(seed).set("kasa_config", json!({}));
    vec![
        ("lora", writer(1).in_layers(&[Q_PROJ, DOWN_PROJ], false).write()),
        ("kasa on q", kasa(2).in_layers(&[Q_PROJ], true).write()),
        ("kasa on down", kasa(3).in_layers(&[DOWN_PROJ], true).write()),
        ("tokens", writer(4).in_layers(&[Q_PROJ], false).head_tokens(&[0, 7, 31, 32, 511]).write()),
        ("other tokens", writer(5).head_tokens(&[1, 8]).write()),
        ("head", writer(6).factors(HEAD, model.hidden, model.vocab, false).write()),
    ]
}

/// Rows of every kind.
fn requests() -> Vec<Request> {
    let mixtures: &[&[(&str, f32)]] = &[
        &[],
        &[("kasa on q", 1.0)],
        &[("kasa on q", 0.5), ("lora", 1.0)],
        &[("kasa on down", -1.0), ("kasa on q", 0.25)],
        &[("tokens", 1.0)],
        &[("other tokens", 1.0), ("lora", 0.5), ("tokens", 1.0)],
        &[("head", 0.75), ("tokens", 1.0), ("kasa on down", 1.0)],
        &[],
    ];
    (1..).zip(mixtures).map(|(seed, mixture)| request(seed, 3 + seed, 3, mixture)).collect()
}

/// A tiny model whose layers are quantized.
pub fn gptq_model() -> TinyModel {
    let gptq = Some(GptqSpec { sym: true, ..GptqSpec::new(4, 32) });
    TinyModel { plain: Plain::F16, vocab: 512, gptq, ..TinyModel::default() }
}

/// A model with every adapter of [`adapters`].
pub fn engine(model: &TinyModel, device: Device) -> Engine {
    find_compiler();
    let folder = tempfile::tempdir().expect("a folder");
    model.write(folder.path());
    let options = EngineOptions { device, max_seq_len: Some(64), kv_tokens: Some(512), ..EngineOptions::default() };
    let engine = Engine::load(folder.path(), options).expect("the model loads");
    for (name, adapter) in adapters(model) {
        engine.load_adapter(name, adapter.path()).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    engine
}

/// Compares every row of a batch with the reference, and with the same row alone.
fn check(model: &TinyModel) {
    let expected = engine(model, Device::Reference).generate(&requests()).expect("the reference runs");
    let engine = engine(model, Device::Cuda(0));
    let found: Vec<Completion> = engine.generate(&requests()).expect("the device runs");
    for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert_close(found, expected, &format!("request {index}"));
        let alone = engine.generate(&requests()[index..=index]).expect("a row runs alone").remove(0);
        assert_same_bits(&alone, found, &format!("request {index}"));
    }
    // Adapters change what they should.
    let base = engine.generate(&[request(5, 8, 3, &[])]).expect("the base runs").remove(0);
    let rows = [&base, &found[4]].map(|completion| &completion.logits[..model.vocab]);
    assert!(rows[0] != rows[1]);
}

#[test]
#[ignore = "make test-slow"]
fn kasa_and_trained_tokens_of_the_head_agree_with_the_reference_on_a_gptq_model() {
    check(&gptq_model());
}

#[test]
fn kasa_and_trained_tokens_of_a_tied_head_agree_with_the_reference() {
    check(&TinyModel { plain: Plain::F16, vocab: 512, tied: true, ..TinyModel::default() });
}
