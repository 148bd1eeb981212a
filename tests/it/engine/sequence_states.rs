//! What a sequence cache holds, read and copied: copies continue as the original would, neither changes the other, and what is
//! read does not depend on how it was computed.

use std::sync::Arc;

use exlora::{
    AdapterRef, Device, ErrorCode, KvDType, Model, PromptEmbeds, PromptPart, Result, SequenceCache, SequenceChunk,
};
use support::Rng;

use super::prefix_cache::{load, model};

/// Layers of the model.
const LAYERS: usize = 4;
/// Tokens that activate its aLoRA adapters.
pub(super) const INVOCATION: [u32; 2] = [7, 8];
/// Adapters of several kinds: low-rank ones, activated ones, layer maps that are shorter, longer, and in another order.
const MIXTURES: [&[(&str, f32)]; 6] = [
    &[],
    &[("plain", 1.0), ("other", 0.5)],
    &[("activated", 1.0)],
    &[("shallower", 1.0)],
    &[("activated swapped", 0.5)],
    &[("activated deeper", 1.0)],
];

pub(super) fn adapters(mixture: &[(&str, f32)]) -> Vec<(AdapterRef, f32)> {
    mixture.iter().map(|(name, weight)| (AdapterRef::Name((*name).into()), *weight)).collect()
}

pub(super) fn tokens(seed: u64, count: usize) -> Vec<u32> {
    let mut rng = Rng(seed);
    (0..count).map(|_| 10 + rng.below(80) as u32).collect()
}

/// A prompt that activates, of three pages.
fn prompt() -> Vec<u32> {
    [&tokens(1, 40)[..], &INVOCATION, &tokens(2, 30)].concat()
}

pub(super) fn cache(model: &Arc<Model>, sequences: usize, tokens: usize, dtype: KvDType) -> SequenceCache {
    SequenceCache::new(Arc::clone(model), sequences, tokens, dtype).expect("a small cache")
}

/// Bits of the logits of tokens that follow what is in a sequence.
pub(super) fn follow(
    cache: &mut SequenceCache,
    sequence: usize,
    position: usize,
    tokens: &[u32],
    mixture: &[(&str, f32)],
) -> Vec<u32> {
    let chunk = SequenceChunk { sequence, position, tokens, logits: tokens.len() };
    let logits = cache.forward(&[chunk], &adapters(mixture)).expect("computed");
    logits.values.iter().map(|logit| logit.to_bits()).collect()
}

/// Bits of the logits of the last tokens, of all computed in a cache of their own.
fn whole(model: &Arc<Model>, dtype: KvDType, all: &[u32], last: usize, mixture: &[(&str, f32)]) -> Vec<u32> {
    let mut fresh = cache(model, 1, 128, dtype);
    let chunk = SequenceChunk { sequence: 0, position: 0, tokens: all, logits: last };
    let logits = fresh.forward(&[chunk], &adapters(mixture)).expect("computed");
    logits.values.iter().map(|logit| logit.to_bits()).collect()
}

pub(super) fn code(result: Result<()>) -> ErrorCode {
    result.expect_err("refused").code()
}

/// Copies of a prompt and of a part of it, in this cache and another, continued in turns.
fn check_copies(model: &Arc<Model>, dtype: KvDType, mixture: &[(&str, f32)]) {
    let (prompt, part) = (prompt(), 50);
    let tails = [tokens(3, 9), tokens(4, 9), tokens(5, 9)];
    let mut original = cache(model, 2, 128, dtype);
    let mut other = cache(model, 3, 96, dtype);
    follow(&mut original, 0, 0, &prompt, mixture);
    // What was there before is dropped.
    follow(&mut other, 2, 0, &tokens(6, 90), &[]);
    other.copy_prefix_from(&original, 0, 2, prompt.len()).expect("copied");
    original.copy_prefix(0, 1, part).expect("copied");

    let from_part = [&prompt[..part], &tails[2]].concat();
    let expected = [&tails[0], &tails[1]].map(|tail| whole(model, dtype, &[&prompt[..], tail].concat(), 9, mixture));
    let expected_of_part = whole(model, dtype, &from_part, 9, mixture);
    let what = format!("{dtype:?}, {mixture:?}");
    let mut found = [Vec::new(), Vec::new(), Vec::new()];
    for range in [0..4, 4..9] {
        let at = prompt.len() + range.start;
        found[0].extend(follow(&mut original, 0, at, &tails[0][range.clone()], mixture));
        found[1].extend(follow(&mut other, 2, at, &tails[1][range.clone()], mixture));
        found[2].extend(follow(&mut original, 1, part + range.start, &tails[2][range], mixture));
    }
    assert!(found[0] == expected[0], "{what}: the original goes on");
    assert!(found[1] == expected[1], "{what}: a copy in another cache goes on");
    assert!(found[2] == expected_of_part, "{what}: a part in the same cache goes on");
}

#[test]
fn copies_continue_with_the_same_bits_and_do_not_influence_each_other() {
    for (index, dtype) in KvDType::ALL.into_iter().enumerate() {
        for mixture in [MIXTURES[0], MIXTURES[1 + index]] {
            check_copies(model(), dtype, mixture);
        }
    }
}

#[test]
fn copies_of_the_reference_continue_with_the_same_bits() {
    let model = load(Device::Reference);
    for (index, dtype) in KvDType::ALL.into_iter().enumerate() {
        check_copies(&model, dtype, MIXTURES[index]);
    }
}

#[test]
#[ignore = "make test-slow"]
fn copies_under_every_kind_of_adapter_continue_with_the_same_bits() {
    for dtype in KvDType::ALL {
        for mixture in MIXTURES {
            check_copies(model(), dtype, mixture);
        }
    }
}

#[test]
fn vectors_in_place_of_tokens_are_copied_too() {
    let width = model().config().hidden_size;
    let vectors = PromptEmbeds::new(Rng(7).normals(40 * width, 0.3), width).expect("whole vectors");
    let parts = [PromptPart::Tokens(tokens(8, 5)), PromptPart::Embeds(vectors), PromptPart::Tokens(tokens(9, 5))];
    let (mut one, mut other) = (cache(model(), 1, 96, KvDType::Q6), cache(model(), 1, 96, KvDType::Q6));
    let ids = one.set_parts(0, 0, &parts).expect("known");
    follow(&mut one, 0, 0, &ids, &[]);
    other.copy_prefix_from(&one, 0, 0, 20).expect("copied");
    // The vectors of the copy are still known where it is computed again.
    let again = follow(&mut other, 0, 10, &ids[10..20], &[]);
    assert!(again == follow(&mut one, 0, 10, &ids[10..20], &[]));
}

#[test]
fn what_is_read_does_not_depend_on_chunks_rows_or_copies() {
    for (dtype, mixture) in KvDType::ALL.into_iter().zip(MIXTURES.into_iter().rev()) {
        let prompt = prompt();
        let mut whole = cache(model(), 1, 96, dtype);
        follow(&mut whole, 0, 0, &prompt, mixture);
        let mut chunked = cache(model(), 3, 96, dtype).with_prefill_chunk(11);
        chunked.set_tokens(1, 0, &prompt).expect("known");
        follow(&mut chunked, 1, 0, &prompt[..45], mixture);
        follow(&mut chunked, 1, 45, &prompt[45..], mixture);
        chunked.copy_prefix(1, 2, 70).expect("copied");
        let layers = match mixture {
            [("shallower", _)] => LAYERS - 1,
            [("activated deeper", _)] => LAYERS + 2,
            _ => LAYERS,
        };
        assert_eq!(whole.layers(), layers.max(LAYERS));
        for layer in 0..layers {
            let all = whole.read_states(0, layer, 0..72).expect("read");
            let width = all.keys.len() / 72;
            assert!(all.keys.iter().chain(&all.values).all(|value| value.is_finite()));
            assert!(all.keys != all.values);
            assert!(all == chunked.read_states(1, layer, 0..72).expect("read"), "{dtype:?}, layer {layer}");
            let copied = chunked.read_states(2, layer, 30..70).expect("read");
            assert!(copied.keys == all.keys[30 * width..70 * width], "{dtype:?}, layer {layer}");
            assert!(copied.values == all.values[30 * width..70 * width], "{dtype:?}, layer {layer}");
            let computed = [0, 1, 2, 3].map(|sequence| chunked.computed_tokens(sequence, layer));
            assert_eq!(computed, [0, 72, 70, 0]);
        }
        assert_eq!(chunked.computed_tokens(1, layers), 0);
        assert_eq!(code(chunked.read_states(1, layers, 0..1).map(drop)), ErrorCode::RequestInvalid);
    }
}

#[test]
fn adapters_change_what_is_read_where_they_act() {
    let mut cache = cache(model(), 2, 96, KvDType::F32);
    follow(&mut cache, 0, 0, &prompt(), &[]);
    follow(&mut cache, 1, 0, &prompt(), &[("activated", 1.0)]);
    let [base, activated] = [0, 1].map(|sequence| cache.read_states(sequence, LAYERS - 1, 0..72).expect("read"));
    let width = base.keys.len() / 72;
    assert!(base.keys[..40 * width] == activated.keys[..40 * width], "before the invocation");
    assert!(base.values[40 * width..41 * width] != activated.values[40 * width..41 * width]);
}

#[test]
fn what_is_not_computed_does_not_exist_or_does_not_fit_is_refused_and_nothing_is_lost() {
    let mut one = cache(model(), 2, 96, KvDType::F16);
    let prompt = prompt();
    follow(&mut one, 0, 0, &prompt, &[]);
    one.set_tokens(0, prompt.len(), &[5, 6]).expect("known");
    let invalid = |result: Result<()>| assert_eq!(code(result), ErrorCode::RequestInvalid);
    invalid(one.copy_prefix(0, 1, 73));
    invalid(one.copy_prefix(0, 2, 1));
    invalid(one.copy_prefix(2, 0, 1));
    for (sequence, layer, positions) in [(0, 0, 70..73), (0, LAYERS, 0..1), (1, 0, 0..1), (2, 0, 0..1), (0, 0, 3..3)] {
        invalid(one.read_states(sequence, layer, positions).map(drop));
    }
    let mut small = cache(model(), 1, 64, KvDType::F16);
    follow(&mut small, 0, 0, &prompt[..10], &[]);
    invalid(small.copy_prefix_from(&one, 0, 0, 65));
    invalid(small.copy_prefix_from(&one, 0, 1, 1));
    let mut quantized = cache(model(), 1, 96, KvDType::Q8);
    let error = quantized.copy_prefix_from(&one, 0, 0, 1).expect_err("another type");
    assert_eq!((error.code(), error.expected(), error.found()), (ErrorCode::RequestInvalid, Some("q8"), Some("f16")));
    let other = load(Device::Cpu);
    let error = cache(&other, 1, 96, KvDType::F16).copy_prefix_from(&one, 0, 0, 1).expect_err("another model");
    assert!(error.code() == ErrorCode::RequestInvalid && error.message().contains("models"), "{error}");

    let expected = whole(model(), KvDType::F16, &prompt[..12], 2, &[]);
    assert!(follow(&mut small, 0, 10, &prompt[10..12], &[]) == expected, "the target is as it was");
    one.copy_prefix(0, 0, 20).expect("a copy of itself");
    assert_eq!(one.computed_tokens(0, 0), prompt.len());
    one.copy_prefix(0, 1, 72).expect("all");
    one.copy_prefix(0, 1, 0).expect("nothing");
    assert_eq!(one.computed_tokens(1, 0), 0);
}

#[test]
fn a_sequence_is_not_continued_through_layers_that_it_did_not_go_through() {
    let mut cache = cache(model(), 1, 96, KvDType::F16);
    let prompt = prompt();
    let chunk = |position: usize| [SequenceChunk { sequence: 0, position, tokens: &prompt[position..], logits: 1 }];
    let deeper = adapters(&[("deeper", 1.0)]);
    cache.forward(&chunk(0), &adapters(&[("shallower", 1.0)])).expect("three layers");
    for mixture in [&[][..], &deeper] {
        let error = cache.forward(&chunk(50), mixture).expect_err("the prompt went through three layers");
        assert_eq!(error.code(), ErrorCode::RequestInvalid);
    }
    cache.forward(&chunk(0), &deeper).expect("from the beginning");
    cache.forward(&chunk(50), &deeper).expect("and on");
    cache.forward(&chunk(60), &[]).expect("through fewer layers");
    assert_eq!(cache.computed_tokens(0, LAYERS), 0);
    assert!(cache.forward(&chunk(65), &deeper).is_err());
}
