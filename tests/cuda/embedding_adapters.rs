//! Whole models under adapters of embeddings and norms, each row with another one, against the reference backend, and bit for bit
//! against themselves alone.

use std::sync::LazyLock;

use exlora::{Device, Engine, EngineOptions, Request};
use serde_json::json;
use support::Rng;
use support::adapters::Adapter;
use support::model::{Plain, TinyModel};

use crate::decoder::{assert_close, assert_same_bits};
use crate::support::device;

const HIDDEN: usize = 64;
const VOCAB: usize = 96;
/// Layers of the model.
pub const LAYERS: usize = 2;
/// Tokens of the adapter that brings a larger table.
const LARGER_VOCAB: usize = 100;
const EMBEDDING: &str = "model.embed_tokens";

/// A model with norms over heads, whose head is tied to its embedding or not.
fn model(tied: bool) -> TinyModel {
    TinyModel {
        architecture: "Qwen3ForCausalLM",
        model_type: "qwen3",
        qk_norms: true,
        tied,
        plain: Plain::F16,
        layers: LAYERS,
        ..TinyModel::default()
    }
}

/// Values around `center`, in f32.
fn part(rng: &mut Rng, adapter: Adapter, module: &str, suffix: &str, shape: &[usize], center: f32) -> Adapter {
    let values: Vec<f32> = rng.normals(shape.iter().product(), 0.3).into_iter().map(|value| center + value).collect();
    adapter.part(module, suffix, shape, &values)
}

/// Low-rank parts of an embedding and of a linear.
fn low_rank(rng: &mut Rng) -> Adapter {
    let adapter = part(rng, Adapter::empty(), EMBEDDING, "lora_embedding_A", &[2, VOCAB], 0.0);
    let adapter = part(rng, adapter, EMBEDDING, "lora_embedding_B", &[HIDDEN, 2], 0.0);
    let adapter = part(rng, adapter, "model.layers.0.self_attn.q_proj", "lora_A.weight", &[2, HIDDEN], 0.0);
    part(rng, adapter, "model.layers.0.self_attn.q_proj", "lora_B.weight", &[HIDDEN, 2], 0.0)
}

/// Replaces every norm of the model, with those over heads; `layers` are those of the adapter.
fn norms(rng: &mut Rng, layers: usize) -> Adapter {
    let mut adapter = Adapter::empty().set("modules_to_save", json!(["norm", "layernorm"]));
    for layer in 0..layers {
        for (name, width) in [
            ("input_layernorm", HIDDEN),
            ("post_attention_layernorm", HIDDEN),
            ("self_attn.q_norm", 16),
            ("self_attn.k_norm", 16),
        ] {
            adapter = part(rng, adapter, &format!("model.layers.{layer}.{name}"), "weight", &[width], 1.0);
        }
    }
    part(rng, adapter, "model.norm", "weight", &[HIDDEN], 1.0)
}

/// One adapter of each kind.
fn adapters() -> Vec<(&'static str, Adapter)> {
    let mut rng = Rng(5);
    let rng = &mut rng;
    let plain = low_rank(rng);
    let dora = low_rank(rng).set("use_dora", json!(true));
    let dora = part(rng, dora, EMBEDDING, "lora_magnitude_vector", &[HIDDEN], 6.0);
    let dora = part(rng, dora, "model.layers.0.self_attn.q_proj", "lora_magnitude_vector", &[HIDDEN], 1.0);
    let table = Adapter::empty().set("modules_to_save", json!(["embed_tokens"]));
    let table = part(rng, table, EMBEDDING, "weight", &[LARGER_VOCAB, HIDDEN], 0.0);
    let rows = Adapter::empty().set("trainable_token_indices", json!([3, 17, 40]));
    let rows = part(rng, rows, EMBEDDING, "token_adapter.trainable_tokens_delta", &[3, HIDDEN], 0.0);
    // Layer 1 runs twice, with norms of its own each time.
    let replicated = norms(rng, 3).set("layer_replication", json!([[0, 2], [1, 2]]));
    let norms = norms(rng, LAYERS);
    vec![("low", plain), ("dora", dora), ("table", table), ("rows", rows), ("norms", norms), ("replicated", replicated)]
}

/// The model with all adapters.
pub fn engine(tied: bool, device: Device) -> Engine {
    static FOLDERS: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a temporary folder"));
    let folder = FOLDERS.path().join(format!("tied-{tied}"));
    model(tied).write(&folder);
    let options = EngineOptions { device, kv_tokens: Some(512), prefix_cache: false, ..EngineOptions::default() };
    let engine = Engine::load(folder, EngineOptions { max_seq_len: Some(64), ..options }).expect("the model loads");
    for (name, adapter) in adapters() {
        engine.load_adapter(name, adapter.write().path()).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    engine
}

/// A request whose prompt has trained tokens in it, and `last` at its end.
fn request(seed: u32, tokens: u32, last: u32, mixture: &[(&str, f32)]) -> Request {
    let token = |i: u32| if i % 4 == 1 { 17 } else { (seed * 7919 + i * 104_729) % VOCAB as u32 };
    let ids: Vec<u32> = (0..tokens).map(token).chain([last]).collect();
    let request = Request::new(ids).max_new_tokens(3);
    let mut request = mixture.iter().fold(request, |request, (name, weight)| request.adapter(name, *weight));
    request.return_logits = true;
    request.stop_at_eos = false;
    request
}

/// Rows of every kind: base, each adapter, mixtures.
pub fn requests() -> Vec<Request> {
    let mut requests = requests_of_one_layer_map();
    requests.push(request(7, 6, 3, &[("replicated", 1.0)]));
    requests
}

/// The same, but for the one whose adapter runs a layer twice.
pub fn requests_of_one_layer_map() -> Vec<Request> {
    vec![
        request(1, 6, 3, &[]),
        request(2, 9, 40, &[("low", 1.0)]),
        request(3, 5, 17, &[("dora", 1.0)]),
        request(4, 7, LARGER_VOCAB as u32 - 1, &[("table", 1.0)]),
        request(5, 8, 40, &[("rows", 1.0)]),
        request(6, 4, 1, &[("norms", 1.0)]),
        request(8, 3, 17, &[("low", 0.5), ("norms", 1.0), ("dora", -0.25)]),
        request(9, 5, 40, &[("norms", 1.0), ("rows", 1.0)]),
        request(10, 4, LARGER_VOCAB as u32 - 2, &[("table", 1.0), ("norms", 1.0)]),
    ]
}

fn check(tied: bool) {
    device();
    let expected = engine(tied, Device::Reference).generate(&requests()).expect("the reference runs");
    let on_cuda = engine(tied, Device::Cuda(0));
    let together = on_cuda.generate(&requests()).expect("the device runs");
    for (index, request) in requests().iter().enumerate() {
        assert_close(&together[index], &expected[index], &format!("request {index}"));
        let alone = on_cuda.generate(std::slice::from_ref(request)).expect("the device runs").remove(0);
        assert_same_bits(&alone, &together[index], &format!("request {index} alone"));
    }
}

#[test]
fn rows_under_adapters_of_embeddings_and_norms_agree_with_the_reference_together_and_alone() {
    check(false);
}

#[test]
fn a_head_that_is_tied_to_the_embedding_takes_its_trained_rows_and_nothing_else_of_it() {
    check(true);
}
