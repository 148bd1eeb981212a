//! Whole models on the device, through the engine: against the reference backend, and bit for bit against themselves in other
//! batches, chunks and caches.

use exlora::{Completion, Device, DraftModelSource, Engine, EngineOptions, KvDType, Request, SamplingParams};
use support::fixtures;

use crate::support::device;

/// Largest difference of a logit from that of float32 activations, relative to the largest magnitude of its row.
pub const TOLERANCE: f32 = 5e-3;

/// The bundled model in one of its formats, with every bundled adapter.
pub fn engine(model: &str, options: EngineOptions) -> Engine {
    device();
    let options = EngineOptions { max_seq_len: Some(64), ..options };
    let engine = Engine::load(fixtures().join(model), options).expect("the model loads");
    for adapter in ["jargon-lora-r8", "sqlite-rslora-r16", "devil-dora-r8"] {
        engine.load_adapter(adapter, fixtures().join("adapters").join(adapter)).expect("the adapter loads");
    }
    engine
}

pub fn on_cuda() -> EngineOptions {
    EngineOptions { device: Device::Cuda(0), kv_tokens: Some(512), ..EngineOptions::default() }
}

/// A request whose prompt depends on `seed`.
pub fn request(seed: u32, tokens: u32, new_tokens: usize, mixture: &[(&str, f32)]) -> Request {
    let ids: Vec<u32> = (0..tokens).map(|i| 3 + (seed * 7919 + i * 104_729) % 500).collect();
    let mut request = Request::new(ids).max_new_tokens(new_tokens);
    for (name, weight) in mixture {
        request = request.adapter(name, *weight);
    }
    request.return_logits = true;
    request.stop_at_eos = false;
    request
}

pub const JARGON: &str = "jargon-lora-r8";
pub const SQLITE: &str = "sqlite-rslora-r16";
pub const DEVIL: &str = "devil-dora-r8";

/// Rows of every kind: base, LoRA, DoRA, and mixtures in either order.
pub fn mixed_batch(new_tokens: usize) -> Vec<Request> {
    vec![
        request(1, 5, new_tokens, &[]),
        request(2, 12, new_tokens, &[(JARGON, 1.0)]),
        request(3, 7, new_tokens, &[(DEVIL, 1.0)]),
        request(4, 1, new_tokens, &[(JARGON, 0.3), (SQLITE, 0.7)]),
        request(5, 9, new_tokens, &[(SQLITE, 0.7), (DEVIL, 0.5), (JARGON, -0.25)]),
        request(6, 18, new_tokens, &[]),
    ]
}

/// Compares the logits of each token, as long as the same tokens come before it.
pub fn assert_close(found: &Completion, expected: &Completion, what: &str) {
    let vocab = expected.logits.len() / expected.token_ids.len();
    for (step, (found_row, row)) in found.logits.chunks(vocab).zip(expected.logits.chunks(vocab)).enumerate() {
        let scale = row.iter().fold(0f32, |largest, logit| largest.max(logit.abs()));
        let error = found_row.iter().zip(row).fold(0f32, |error, (a, b)| error.max((a - b).abs()));
        assert!(error <= TOLERANCE * scale, "{what}, step {step}: {error} of {scale}");
        if found.token_ids[step] != expected.token_ids[step] {
            return;
        }
    }
}

pub fn assert_same_bits(a: &Completion, b: &Completion, what: &str) {
    let bits = |completion: &Completion| completion.logits.iter().map(|logit| logit.to_bits()).collect::<Vec<_>>();
    assert_eq!(a.token_ids, b.token_ids, "{what}");
    assert!(bits(a) == bits(b), "{what}: logits differ");
}

fn check(model: &str, kv_dtype: KvDType) {
    let reference = engine(model, EngineOptions { device: Device::Reference, kv_dtype, ..EngineOptions::default() });
    let expected = reference.generate(&mixed_batch(3)).expect("the reference runs");
    let found =
        engine(model, EngineOptions { kv_dtype, ..on_cuda() }).generate(&mixed_batch(3)).expect("the device runs");
    for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert_close(found, expected, &format!("{model}, request {index}"));
    }
}

#[test]
fn a_dense_model_with_every_kind_of_row_agrees_with_the_reference() {
    check("quill-4m", KvDType::F16);
}

#[test]
fn a_symmetric_gptq_model_agrees_with_the_reference() {
    check("quill-4m-gptq-4bit-g128-sym", KvDType::F16);
}

#[test]
fn an_asymmetric_gptq_model_with_act_order_agrees_with_the_reference() {
    check("quill-4m-gptq-4bit-g32-asym-actorder", KvDType::F32);
}

#[test]
fn an_8_bit_gptq_model_agrees_with_the_reference() {
    check("quill-4m-gptq-8bit-g128-sym", KvDType::F16);
}

#[test]
fn an_exl2_model_of_mixed_widths_agrees_with_the_reference() {
    check("quill-4m-exl2-mixed", KvDType::F16);
}

#[test]
fn a_row_has_the_same_bits_alone_in_a_batch_and_in_chunks() {
    const MODEL: &str = "quill-4m-gptq-4bit-g128-sym";
    let whole = engine(MODEL, EngineOptions { prefix_cache: false, ..on_cuda() });
    let chunked = engine(MODEL, EngineOptions { prefix_cache: false, prefill_chunk: 5, ..on_cuda() });
    let together = whole.generate(&mixed_batch(2)).expect("together");
    let in_chunks = chunked.generate(&mixed_batch(2)).expect("in chunks");
    for (index, request) in mixed_batch(2).iter().enumerate() {
        let alone = whole.generate(std::slice::from_ref(request)).expect("alone").remove(0);
        assert_same_bits(&alone, &together[index], &format!("request {index} in a batch"));
        assert_same_bits(&alone, &in_chunks[index], &format!("request {index} in chunks"));
    }
}

#[test]
fn cached_prefixes_and_preemption_change_no_bits() {
    const MODEL: &str = "quill-4m";
    // Each needs two pages in the end, and the small cache has four.
    let requests: Vec<Request> = [(1, &[][..]), (2, &[(JARGON, 1.0)][..]), (3, &[(DEVIL, 1.0)][..])]
        .map(|(seed, mixture)| request(seed, 30, 6, mixture))
        .to_vec();
    let roomy = engine(MODEL, EngineOptions { prefix_cache: false, ..on_cuda() });
    let expected = roomy.generate(&requests).expect("with room for all");
    let cramped = engine(MODEL, EngineOptions { kv_tokens: Some(128), ..on_cuda() });
    for (found, expected) in cramped.generate(&requests).expect("with room for two").iter().zip(&expected) {
        assert_same_bits(found, expected, "in a small cache");
    }

    let caching = engine(MODEL, on_cuda());
    let long = request(9, 40, 2, &[(SQLITE, 1.0)]);
    let [first, second] = [(); 2].map(|()| caching.generate(std::slice::from_ref(&long)).expect("runs").remove(0));
    assert_eq!((first.finish.usage.cached_tokens, second.finish.usage.cached_tokens), (0, 32));
    assert_same_bits(&second, &first, "with a cached prefix");
}

#[test]
#[ignore = "make test-slow"]
fn drafts_change_no_bits() {
    const MODEL: &str = "quill-4m";
    let prompt: Vec<u32> = (0..12).map(|i| 40 + i % 3).collect();
    let mixtures = [&[][..], &[(JARGON, 0.5)], &[(DEVIL, 1.0), (SQLITE, 0.5)]];
    // Only tokens of the prompt can be chosen, so that each has appeared before and something is drafted after it.
    let sampling = SamplingParams { allowed_token_ids: Some(vec![40, 41, 42]), ..SamplingParams::default() };
    let of = |mixture: &&[(&str, f32)]| {
        let request = request(1, 1, 6, mixture);
        Request { prompt: prompt.clone().into(), sampling: sampling.clone(), ..request }
    };
    let requests: Vec<Request> = mixtures.iter().map(of).collect();
    let expected = engine(MODEL, on_cuda()).generate(&requests).expect("without drafts");
    let drafting: Vec<Request> =
        requests.iter().map(|request| Request { ngram_draft: true, max_ngram: 1, ..request.clone() }).collect();
    let draft_model = Some(DraftModelSource::Path(fixtures().join(MODEL)));
    let with_model = engine(MODEL, EngineOptions { draft_model, ..on_cuda() });
    let counts = [&drafting, &requests].map(|requests| {
        let found = with_model.generate(requests).expect("with drafts");
        for (found, expected) in found.iter().zip(&expected) {
            assert_same_bits(found, expected, "with drafts");
        }
        let usage = || found.iter().map(|completion| completion.finish.usage);
        (
            usage().map(|usage| usage.accepted_draft_tokens).sum::<usize>(),
            usage().map(|usage| usage.rejected_draft_tokens).sum::<usize>(),
        )
    });
    let [of_the_text, of_the_model] = counts;
    assert!(of_the_text.0 + of_the_text.1 > 0 && of_the_model.0 > 0, "{counts:?}");
}

#[test]
fn resident_bytes_are_those_of_the_device() {
    let engine = engine("quill-4m-gptq-4bit-g128-sym", on_cuda());
    let stats = engine.stats();
    assert!(stats.weights_bytes > 1 << 20 && stats.adapters_bytes > 1 << 16, "{stats:?}");
    assert!(stats.kv_bytes > 0 && engine.model().describe_device().starts_with("cuda:0 ("), "{stats:?}");
}
