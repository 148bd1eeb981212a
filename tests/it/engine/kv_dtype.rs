//! Quantized KV caches: what they take, and that a row's bits depend on nothing but the row.

use exlora::{Engine, EngineOptions, KvDType};

use super::{BASE, assert_same_bits, engine_with, fixture, mixed_batch};

const QUANTIZED: [KvDType; 3] = [KvDType::Q8, KvDType::Q6, KvDType::Q4];

#[test]
fn a_quantized_row_has_the_same_bits_alone_in_a_batch_in_chunks_and_from_the_cache() {
    for kv_dtype in QUANTIZED {
        let options = EngineOptions { kv_dtype, prefix_cache: false, ..EngineOptions::default() };
        let whole = engine_with(options.clone());
        let expected = whole.generate(&mixed_batch()).expect("whole");
        let chunked = engine_with(EngineOptions { prefill_chunk: 7, ..options.clone() });
        let chunks = chunked.generate(&mixed_batch()).expect("chunked");
        let cached = engine_with(EngineOptions { prefix_cache: true, ..options });
        let first = cached.generate(&mixed_batch()).expect("first");
        let second = cached.generate(&mixed_batch()).expect("second");
        assert!(second.iter().map(|c| c.finish.usage.cached_tokens).sum::<usize>() > 0, "nothing was found");
        for (i, request) in mixed_batch().iter().enumerate() {
            let alone = whole.generate(std::slice::from_ref(request)).expect("alone").remove(0);
            assert_same_bits(&alone, &expected[i], &format!("{kv_dtype:?}: row {i} among others"));
            assert_same_bits(&alone, &chunks[i], &format!("{kv_dtype:?}: row {i} in chunks"));
            assert_same_bits(&alone, &first[i], &format!("{kv_dtype:?}: row {i} computed"));
            assert_same_bits(&alone, &second[i], &format!("{kv_dtype:?}: row {i} found"));
        }
    }
}

#[test]
fn preemption_and_drafts_do_not_change_a_quantized_row() {
    for kv_dtype in QUANTIZED {
        let options = EngineOptions { kv_dtype, prefix_cache: false, ..EngineOptions::default() };
        let expected = engine_with(options.clone()).generate(&mixed_batch()).expect("with room");
        let short = engine_with(EngineOptions { kv_tokens: Some(160), ..options });
        let mut requests = mixed_batch();
        for request in &mut requests {
            request.ngram_draft = true;
        }
        let found = short.generate(&requests).expect("short of pages");
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert_same_bits(expected, found, &format!("{kv_dtype:?}: row {i}"));
        }
    }
}

#[test]
fn stats_show_what_a_quantized_cache_saves() {
    let kv_bytes = |kv_dtype| {
        let options = EngineOptions { kv_dtype, kv_tokens: Some(4096), ..EngineOptions::default() };
        Engine::load(fixture(BASE), options).expect("loads").stats().kv_bytes as f64
    };
    let f16 = kv_bytes(KvDType::F16);
    for (kv_dtype, most) in [(KvDType::Q8, 0.54), (KvDType::Q6, 0.41), (KvDType::Q4, 0.29)] {
        let part = kv_bytes(kv_dtype) / f16;
        assert!(part <= most && part > 0.9 * most, "{kv_dtype:?}: {part} of f16");
    }
}
