//! Whole models over quantized KV caches on the device: against the stored values of transformers and peft, and bit for bit against
//! themselves in other batches, chunks and caches.

use exlora::{Device, Engine, EngineOptions, KvDType, Request};
use serde_json::json;
use support::Rng;
use support::adapters::{Adapter, Folder};
use support::model::{Plain, TinyModel};

use crate::decoder::{DEVIL, SQLITE, assert_same_bits, engine, mixed_batch, on_cuda, request};
use crate::stored_items;
use crate::support::find_compiler;

const MODEL: &str = "quill-4m-gptq-4bit-g128-sym";

/// Every second stored vector of logits, within the CPU's tolerance for such a cache (tests/it/reference.rs).
fn check_some(kv_dtype: KvDType, tolerance: f32) {
    stored_items::check(MODEL, kv_dtype, tolerance, 1, |index, item| index % 2 == 0 && item.logits_key.is_some());
}

#[test]
fn a_cache_of_8_bits_moves_stored_logits_by_no_more_than_on_the_cpu() {
    check_some(KvDType::Q8, 1e-2);
}

#[test]
fn a_cache_of_8_and_4_bits_moves_stored_logits_by_no_more_than_on_the_cpu() {
    check_some(KvDType::Q6, 8e-2);
}

#[test]
fn a_cache_of_4_bits_moves_stored_logits_by_no_more_than_on_the_cpu() {
    check_some(KvDType::Q4, 8e-2);
}

/// Rows of the base, of DoRA and of a mixture, alone, in a batch, in chunks, short of pages, and from the prefix cache.
fn check_bits(kv_dtype: KvDType) {
    let options = || EngineOptions { kv_dtype, prefix_cache: false, ..on_cuda() };
    let long = request(9, 34, 2, &[(SQLITE, 0.5), (DEVIL, 1.0)]);
    let [base, _, dora, _, mixture, _] = <[Request; 6]>::try_from(mixed_batch(2)).expect("six");
    let requests = [base, dora, mixture, long];
    let whole = engine(MODEL, options());
    let expected = whole.generate(&requests).expect("together");
    for (index, request) in requests[1..].iter().enumerate() {
        let alone = whole.generate(std::slice::from_ref(request)).expect("alone").remove(0);
        assert_same_bits(&alone, &expected[index + 1], &format!("{kv_dtype:?}: request {index} alone"));
    }
    // Four pages for requests that need five.
    let cramped = engine(MODEL, EngineOptions { kv_tokens: Some(128), prefill_chunk: 11, ..options() });
    let caching = engine(MODEL, EngineOptions { prefix_cache: true, ..options() });
    caching.generate(&requests[3..]).expect("the prefix");
    for (what, engine) in [("short of pages, in chunks", &cramped), ("from the cache", &caching)] {
        let found = engine.generate(&requests).expect(what);
        for (found, expected) in found.iter().zip(&expected) {
            assert_same_bits(found, expected, &format!("{kv_dtype:?}, {what}"));
        }
        let cached = found.iter().map(|completion| completion.finish.usage.cached_tokens).sum::<usize>();
        assert_eq!(cached, if what == "from the cache" { 32 } else { 0 });
    }
}

#[test]
fn a_row_of_4_bits_has_the_same_bits_however_it_is_computed() {
    check_bits(KvDType::Q4);
}

#[test]
#[ignore = "make test-slow"]
fn a_row_of_8_bits_has_the_same_bits_however_it_is_computed() {
    check_bits(KvDType::Q8);
}

#[test]
#[ignore = "make test-slow"]
fn a_row_of_8_and_4_bits_has_the_same_bits_however_it_is_computed() {
    check_bits(KvDType::Q6);
}

/// Random factors at two linears of each layer, which are as many as the adapter runs.
pub fn adapter(model: &TinyModel, seed: u64, layers: usize) -> Adapter {
    let mut rng = Rng(seed);
    let sizes =
        [("self_attn.v_proj", model.hidden, model.kv_heads * model.head_dim), ("mlp.down_proj", 128, model.hidden)];
    (0..layers).flat_map(|layer| sizes.map(|size| (layer, size))).fold(
        Adapter::empty(),
        |adapter, (layer, (name, inputs, outputs))| {
            let module = format!("model.layers.{layer}.{name}");
            let (a, b) = (rng.normals(2 * inputs, (inputs as f32).powf(-0.5)), rng.normals(2 * outputs, 0.3));
            let adapter = adapter.part(&module, "lora_A.weight", &[2, inputs], &a);
            adapter.part(&module, "lora_B.weight", &[outputs, 2], &b)
        },
    )
}

#[test]
fn activated_adapters_and_layer_maps_have_the_same_bits_from_a_prefix_cache_of_8_and_4_bits() {
    check_activated_adapters_and_layer_maps(KvDType::Q6);
}

#[test]
#[ignore = "make test-slow"]
fn activated_adapters_and_layer_maps_have_the_same_bits_from_a_prefix_cache_of_8_or_4_bits() {
    check_activated_adapters_and_layer_maps(KvDType::Q8);
    check_activated_adapters_and_layer_maps(KvDType::Q4);
}

fn check_activated_adapters_and_layer_maps(kv_dtype: KvDType) {
    find_compiler();
    // Heads of 16 channels: groups of 16.
    let model = TinyModel { plain: Plain::F16, ..TinyModel::default() };
    let folder = tempfile::tempdir().expect("a folder");
    model.write(folder.path());
    let adapters: [(&str, Folder); 2] = [
        ("activated", adapter(&model, 5, 2).set("alora_invocation_tokens", json!([7, 9])).write()),
        ("deeper", adapter(&model, 6, 3).set("layer_replication", json!([[0, 2], [1, 2]])).write()),
    ];
    let prompt = |tail: &[u32]| (0..34).map(|i| 10 + i * 31 % 80).chain(tail.iter().copied()).collect::<Vec<u32>>();
    let with = |tail: &[u32], mixture: &[(&str, f32)]| {
        let request = Request { prompt: prompt(tail).into(), ..request(1, 1, 3, mixture) };
        Request { stop_at_eos: false, ..request }
    };
    let requests = [
        with(&[3], &[]),
        with(&[7, 9, 4], &[("activated", 1.0)]),
        with(&[7, 9, 4], &[]),
        with(&[5], &[("deeper", 1.0)]),
        with(&[5, 6], &[("deeper", 0.5)]),
    ];
    let load = |prefix_cache| {
        let options = EngineOptions { kv_dtype, prefix_cache, ..on_cuda() };
        let engine = Engine::load(folder.path(), options).expect("the model loads");
        for (name, adapter) in &adapters {
            engine.load_adapter(name, adapter.path()).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        engine
    };
    let (bare, caching) = (load(false), load(true));
    let expected = bare.generate(&requests).expect("together");
    assert!(expected[1].logits != expected[2].logits, "the invocation changes something");
    for (index, request) in requests.iter().enumerate() {
        let alone = bare.generate(std::slice::from_ref(request)).expect("alone").remove(0);
        assert_same_bits(&alone, &expected[index], &format!("{kv_dtype:?}, request {index} alone"));
        let found = caching.generate(std::slice::from_ref(request)).expect("cached").remove(0);
        assert_same_bits(&found, &expected[index], &format!("{kv_dtype:?}, request {index} cached"));
        // Until it is invoked, an activated adapter's prefix is the base's; another weight is another prefix.
        let cached = if [1, 2].contains(&index) { 32 } else { 0 };
        assert_eq!(found.finish.usage.cached_tokens, cached, "{kv_dtype:?}, request {index}");
    }
}

#[test]
fn a_quantized_cache_takes_its_part_of_float16() {
    let kv_bytes = |kv_dtype| engine(MODEL, EngineOptions { kv_dtype, ..on_cuda() }).stats().kv_bytes as f64;
    let f16 = kv_bytes(KvDType::F16);
    for (kv_dtype, part) in [(KvDType::Q8, 0.53125), (KvDType::Q6, 0.40625), (KvDType::Q4, 0.28125)] {
        assert_eq!(kv_bytes(kv_dtype) / f16, part, "{kv_dtype:?}");
    }
}

#[test]
fn heads_without_whole_groups_are_refused_by_name() {
    find_compiler();
    let folder = tempfile::tempdir().expect("a folder");
    TinyModel { plain: Plain::F16, head_dim: 8, ..TinyModel::default() }.write(folder.path());
    let options = EngineOptions { device: Device::Cuda(0), kv_dtype: KvDType::Q4, ..EngineOptions::default() };
    let error = Engine::load(folder.path(), options).expect_err("heads of 8 channels");
    assert_eq!(error.code(), exlora::ErrorCode::ModelFeatureUnsupported);
    assert!(error.to_string().contains("\"q4\""), "{error}");
}
