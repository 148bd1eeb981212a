//! The stored values that transformers and peft computed in float32 on the dequantized weights (tests/fixtures/README.md).

use exlora::{Device, Engine, EngineOptions, KvDType, Request};
use support::fixtures;
use support::reference::{Item, reference};

/// Largest difference of a logit, relative to the vector's largest magnitude.
const TOLERANCE_F16_KV: f32 = 2e-3;
/// With keys and values of 8 bits; measured 6.0e-3.
const TOLERANCE_Q8_KV: f32 = 1e-2;
/// With values of 4 bits, or keys too; measured 6.8e-2 and 6.6e-2.
const TOLERANCE_Q4_KV: f32 = 8e-2;
/// With keys and values in f32 nothing is rounded but f32 sums.
const TOLERANCE_F32_KV: f32 = 2e-5;
/// An EXL2 weight is a product rounded to float16, which the fast kernels leave unrounded (src/quant/exl2.rs); measured 6.3e-4.
const TOLERANCE_UNROUNDED: f32 = 1e-3;

/// All items of a model that need no DoRA, in one batch.
fn check(model: &str, device: Device, kv_dtype: KvDType, tolerance: f32) {
    let (reference, logits) = reference();
    let engine = Engine::load(fixtures().join(model), EngineOptions { device, kv_dtype, ..EngineOptions::default() });
    let engine = engine.expect("the model loads");
    for adapter in ["jargon-lora-r8", "sqlite-rslora-r16"] {
        engine.load_adapter(adapter, fixtures().join("adapters").join(adapter)).expect("the adapter loads");
    }

    let is_plain = |item: &&Item| item.model == model && item.adapter.as_deref() != Some("devil-dora-r8");
    let items: Vec<&Item> = reference.items.iter().filter(is_plain).collect();
    assert_eq!(items.len(), 6 * (1 + 2 * 2));
    let request = |item: &&Item| {
        let mut request = Request::new(reference.prompts[&item.prompt].ids.clone()).max_new_tokens(48);
        if let Some(adapter) = &item.adapter {
            request = request.adapter(adapter, item.lora_scaling);
        }
        request.return_logits = true;
        request
    };
    let found = engine.generate(&items.iter().map(request).collect::<Vec<_>>()).expect("runs");

    let vocab = engine.model().config().vocab_size;
    for (item, found) in items.iter().zip(found) {
        let what = format!("{model}, {:?} at {}, '{}'", item.adapter, item.lora_scaling, item.prompt);
        let first = &found.logits[..vocab];
        let scale = first.iter().fold(0f32, |m, x| m.max(x.abs()));
        if let Some(key) = &item.logits_key {
            let expected = logits.tensor(key).expect("stored").to_f32();
            let error = first.iter().zip(&expected).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / scale;
            assert!(error < tolerance, "{what}: logits differ by {error:e} of the largest");
        }
        // Two logits may each be off by the tolerance before a smaller margin lets them change places.
        if item.min_margin > 2.0 * tolerance * scale {
            assert_eq!(found.token_ids, item.ids, "{what}");
        }
    }
}

macro_rules! models {
    ($($name:ident: $model:literal,)+) => {$(
        #[test]
        fn $name() {
            check($model, Device::Cpu, KvDType::F16, TOLERANCE_F16_KV);
            check($model, Device::Cpu, KvDType::F32, TOLERANCE_F32_KV);
        }
    )+};
}

models! {
    dense_f16: "quill-4m",
    gptq_4bit_symmetric: "quill-4m-gptq-4bit-g128-sym",
    gptq_4bit_asymmetric_with_act_order: "quill-4m-gptq-4bit-g32-asym-actorder",
    gptq_8bit_symmetric: "quill-4m-gptq-8bit-g128-sym",
}

#[test]
fn exl2_mixed() {
    let model = "quill-4m-exl2-mixed";
    check(model, Device::Cpu, KvDType::F16, TOLERANCE_F16_KV);
    check(model, Device::Cpu, KvDType::F32, TOLERANCE_UNROUNDED);
    check(model, Device::Reference, KvDType::F32, TOLERANCE_F32_KV);
}

#[test]
fn quantized_caches_move_logits_by_no_more_than_stated() {
    for model in ["quill-4m", "quill-4m-gptq-4bit-g128-sym"] {
        check(model, Device::Cpu, KvDType::Q8, TOLERANCE_Q8_KV);
        check(model, Device::Cpu, KvDType::Q6, TOLERANCE_Q4_KV);
        check(model, Device::Cpu, KvDType::Q4, TOLERANCE_Q4_KV);
    }
}
