//! The bundled models on the device against what transformers and peft computed in float32: logits after the stored prompts, and the
//! tokens that follow where no rounding can change which is the largest.

use exlora::{EngineOptions, KvDType, Request};
use support::reference::{Item, reference};

use crate::decoder::{DEVIL, JARGON, SQLITE, TOLERANCE, engine, on_cuda};

/// All chosen items of a model in one batch: the base's and every adapter's. `tolerance` is relative to the largest magnitude of a
/// vector of logits.
pub fn check(
    model: &str,
    kv_dtype: KvDType,
    tolerance: f32,
    new_tokens: usize,
    is_chosen: impl Fn(usize, &Item) -> bool,
) {
    let (reference, logits) = reference();
    let of_model = reference.items.iter().filter(|item| item.model == model);
    let chosen = of_model.enumerate().filter(|(index, item)| is_chosen(*index, item));
    let items: Vec<&Item> = chosen.map(|(_, item)| item).collect();
    let has = |adapter: Option<&str>| items.iter().any(|item| item.adapter.as_deref() == adapter);
    assert!([None, Some(JARGON), Some(SQLITE), Some(DEVIL)].into_iter().all(has));
    let request = |item: &&Item| {
        let mut request = Request::new(reference.prompts[&item.prompt].ids.clone()).max_new_tokens(new_tokens);
        if let Some(adapter) = &item.adapter {
            request = request.adapter(adapter, item.lora_scaling);
        }
        request.return_logits = true;
        request
    };
    let engine = engine(model, EngineOptions { kv_dtype, kv_tokens: Some(8192), ..on_cuda() });
    let vocab = engine.model().config().vocab_size;
    let found = engine.generate(&items.iter().map(request).collect::<Vec<_>>()).expect("runs");
    for (item, found) in items.iter().zip(found) {
        let what = format!("{model}, {kv_dtype:?}, {:?} at {}, '{}'", item.adapter, item.lora_scaling, item.prompt);
        let first = &found.logits[..vocab];
        let scale = first.iter().fold(0f32, |largest, logit| largest.max(logit.abs()));
        if let Some(key) = &item.logits_key {
            let expected = logits.tensor(key).expect("stored").to_f32();
            let error = first.iter().zip(&expected).fold(0f32, |most, (a, b)| most.max((a - b).abs())) / scale;
            assert_eq!(first.len(), expected.len());
            assert!(error < tolerance, "{what}: logits differ by {error:e} of the largest");
        }
        // Two logits may each be off by the tolerance before a smaller margin lets them change places.
        if item.min_margin > 2.0 * tolerance * scale {
            assert!(item.ids.starts_with(&found.token_ids), "{what}: {:?}, not {:?}", found.token_ids, item.ids);
        }
    }
}

macro_rules! models {
    ($($name:ident: $model:literal,)+) => {
        mod first_tokens {
            use super::*;

            $(#[test]
            fn $name() {
                check($model, KvDType::F16, TOLERANCE, 2, |index, _| index % 4 == 0);
            })+
        }

        mod all {
            use super::*;

            $(#[test]
            #[ignore = "make test-slow"]
            fn $name() {
                check($model, KvDType::F16, TOLERANCE, 8, |_, _| true);
            })+
        }
    };
}

models! {
    of_a_dense_model: "quill-4m",
    of_a_symmetric_gptq_model: "quill-4m-gptq-4bit-g128-sym",
    of_an_asymmetric_gptq_model_with_act_order: "quill-4m-gptq-4bit-g32-asym-actorder",
    of_an_8_bit_gptq_model: "quill-4m-gptq-8bit-g128-sym",
    of_an_exl2_model: "quill-4m-exl2-mixed",
}
