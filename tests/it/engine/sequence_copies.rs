//! Positions of a sequence copied to others: keys are rotated on, values and all else stay as they are.

use std::fs;
use std::sync::Arc;

use exlora::{
    Device, ErrorCode, KvDType, KvStates, Model, ModelOptions, PromptEmbeds, PromptPart, Result, SequenceCache,
    SequenceChunk,
};
use proptest::prelude::*;
use serde_json::{Value, json};
use support::Rng;
use support::adapters::Adapter;
use support::kv_states::kept;
use support::model::TinyModel;

use super::prefix_cache;
use super::sequence_states::{INVOCATION, adapters, cache, code, follow, tokens};

/// Width of the tiny model's heads, of which it has two for keys.
const HEAD_DIM: usize = 16;
const WIDTH: usize = 2 * HEAD_DIM;

/// What is rotated, and how.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Rotation {
    Plain,
    Yarn,
    /// The first of the two layers is not rotated.
    SecondLayer,
    /// Of sequences of more than 70 tokens.
    Long,
}

fn model(rotation: Rotation, device: Device) -> Arc<Model> {
    let (folder, tiny) = (tempfile::tempdir().expect("a folder"), TinyModel::default());
    tiny.write(folder.path());
    let mut config = tiny.config();
    let members: Value = match rotation {
        Rotation::Plain => json!({}),
        Rotation::Yarn => json!({"rope_scaling": {
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64,
        }}),
        Rotation::SecondLayer => json!({
            "model_type": "smollm3", "architectures": ["SmolLM3ForCausalLM"], "no_rope_layers": [0, 1],
            "pad_token_id": 0,
        }),
        Rotation::Long => json!({"rope_scaling": {
            "rope_type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
            "long_factor": [2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0], "factor": 4.0,
            "original_max_position_embeddings": 70,
        }}),
    };
    members.as_object().expect("members").iter().for_each(|(name, value)| config[name] = value.clone());
    fs::write(folder.path().join("config.json"), config.to_string()).expect("written");
    let options = ModelOptions { device, threads: Some(1), ..ModelOptions::default() };
    Model::load(folder.path(), &options, &mut |_| Ok(())).expect("the tiny model loads")
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Keys `[positions, WIDTH]` turned by plain rope of base 10000 over `by` positions, by the definition in f64.
fn turned(keys: &[f32], by: f64) -> Vec<f32> {
    let turn = |head: &[f32]| {
        let mut out = head.to_vec();
        for i in 0..HEAD_DIM / 2 {
            let (sin, cos) = (by * 10000f64.powf(-2.0 * i as f64 / HEAD_DIM as f64)).sin_cos();
            let [a, b] = [i, i + HEAD_DIM / 2].map(|channel| f64::from(head[channel]));
            (out[i], out[i + HEAD_DIM / 2]) = ((a * cos - b * sin) as f32, (b * cos + a * sin) as f32);
        }
        out
    };
    keys.chunks(HEAD_DIM).flat_map(turn).collect()
}

/// Asserts that each head is off by no more than a part of its size.
fn assert_heads_are_near(found: &[f32], expected: &[f32], part: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let size = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    for (index, (found, expected)) in found.chunks(HEAD_DIM).zip(expected.chunks(HEAD_DIM)).enumerate() {
        let error = size(&mut found.iter().zip(expected).map(|(a, b)| f64::from(a - b)));
        let norm = size(&mut expected.iter().map(|&value| value.into()));
        assert!(error <= part * norm, "{what}: head {index} is off by {error} of {norm}");
    }
}

/// How far a head that was rounded twice may be from one that was rounded once: three times what a rounding does.
fn roundings(dtype: KvDType) -> [f64; 2] {
    match dtype {
        KvDType::F32 => [1e-5; 2],
        KvDType::F16 => [1.5e-3; 2],
        KvDType::Q8 => [0.03; 2],
        KvDType::Q6 => [0.03, 0.45],
        KvDType::Q4 => [0.45; 2],
    }
}

proptest! {
    #![proptest_config(support::cases(10))]

    /// The first layer's keys and values depend on the token and its position alone: they are those of the same tokens computed
    /// at the new positions.
    #[test]
    fn the_first_layer_holds_what_it_would_compute_at_the_new_positions(
        rotation in prop::sample::select(vec![Rotation::Plain, Rotation::Yarn, Rotation::SecondLayer, Rotation::Long]),
        dtype in prop::sample::select(KvDType::ALL.to_vec()),
        start in 0usize..40,
        count in 1usize..24,
        position in 0usize..44,
        is_same_sequence: bool,
        device in prop::sample::select(vec![Device::Cpu, Device::Reference]),
    ) {
        let model = model(rotation, device);
        let (own, before) = (tokens(1, 64), tokens(2, 44));
        let mut moved = cache(&model, 2, 128, dtype);
        follow(&mut moved, 0, 0, &own, &[]);
        follow(&mut moved, 1, 0, &before, &[]);
        let (to, before) = if is_same_sequence { (0, &own) } else { (1, &before) };
        let layers = [0, 1].map(|layer| moved.read_states(0, layer, start..start + count).expect("read"));
        moved.copy_positions(0, start..start + count, &[(to, position)]).expect("copied");
        assert_eq!(moved.computed_tokens(to, 1), if to == 0 && start == position { 64 } else { position + count });

        let all = [&before[..position], &own[start..start + count]].concat();
        let mut fresh = cache(&model, 1, 128, dtype);
        follow(&mut fresh, 0, 0, &all, &[]);
        let what = format!("{rotation:?}, {dtype:?}, {start} to {position}");
        let read = |cache: &SequenceCache, sequence, layer| -> KvStates {
            cache.read_states(sequence, layer, position..position + count).expect("read")
        };
        let (found, expected) = (read(&moved, to, 0), read(&fresh, 0, 0));
        let [key_part, value_part] = roundings(dtype);
        assert_heads_are_near(&found.keys, &expected.keys, key_part, &what);
        assert_heads_are_near(&found.values, &expected.values, value_part, &what);
        for (layer, was) in layers.iter().enumerate() {
            let found = read(&moved, to, layer);
            assert!(bits(&found.values) == bits(&was.values), "{what}: values of layer {layer} keep their bits");
            let is_rotated = (rotation, layer) != (Rotation::SecondLayer, 0);
            let has_same_keys = bits(&found.keys) == bits(&was.keys);
            assert_eq!(has_same_keys, start == position || !is_rotated, "{what}: keys of layer {layer}");
        }
    }

    /// In every layer, keys are those that were there, rotated on and rounded.
    #[test]
    fn keys_are_rotated_on_by_the_difference_and_rounded_again(
        dtype in prop::sample::select(KvDType::ALL.to_vec()),
        start in 0usize..40,
        position in 0usize..40,
    ) {
        let model = model(Rotation::Plain, Device::Cpu);
        let mut moved = cache(&model, 1, 128, dtype);
        follow(&mut moved, 0, 0, &tokens(3, 64), &[]);
        let before = [0, 1].map(|layer| moved.read_states(0, layer, start..64).expect("read"));
        moved.copy_positions(0, start..64, &[(0, position)]).expect("copied");
        for (layer, before) in before.iter().enumerate() {
            let found = moved.read_states(0, layer, position..position + 64 - start).expect("read");
            let turned = turned(&before.keys, position as f64 - start as f64);
            let expected: Vec<f32> = match start == position {
                true => before.keys.clone(),
                false => turned.chunks(HEAD_DIM).flat_map(|head| kept(dtype, 0, head)).collect(),
            };
            // A number close to the middle of two that are stored may be rounded otherwise: of codes, one step.
            let step = match dtype {
                KvDType::F32 => 1e-5,
                KvDType::F16 => 1e-3,
                KvDType::Q8 | KvDType::Q6 => 0.012,
                KvDType::Q4 => 0.2,
            };
            assert_heads_are_near(&found.keys, &expected, step, &format!("{dtype:?}, {start} to {position}"));
            assert!(bits(&found.values) == bits(&before.values));
        }
    }
}

#[test]
fn a_sequence_that_rolls_goes_on_and_ends_with_nothing() {
    let mut rolled = cache(prefix_cache::model(), 1, 96, KvDType::Q6);
    let all = tokens(4, 40);
    follow(&mut rolled, 0, 0, &all, &[]);
    let mut logits = Vec::new();
    for _ in 0..3 {
        rolled.copy_positions(0, 1..40, &[(0, 0)]).expect("rolled");
        logits = follow(&mut rolled, 0, 39, &[9], &[]);
        assert!(logits.iter().all(|&bits| f32::from_bits(bits).is_finite()));
    }
    // A copy holds the same, and goes on alike.
    let mut copy = cache(prefix_cache::model(), 1, 96, KvDType::Q6);
    copy.copy_prefix_from(&rolled, 0, 0, 39).expect("copied");
    assert!(follow(&mut copy, 0, 39, &[9], &[]) == logits);
    rolled.copy_positions(0, 40..40, &[(0, 0)]).expect("nothing");
    assert_eq!(rolled.computed_tokens(0, 0), 0);
}

#[test]
fn positions_that_stay_are_copied_bit_for_bit_behind_other_tokens() {
    for dtype in KvDType::ALL {
        let mut both = cache(prefix_cache::model(), 3, 128, dtype);
        follow(&mut both, 0, 0, &tokens(5, 90), &[]);
        follow(&mut both, 1, 0, &tokens(6, 80), &[]);
        let read = |cache: &SequenceCache, sequence, range| cache.read_states(sequence, 3, range).expect("read");
        let (source, kept) = (read(&both, 0, 20..70), read(&both, 1, 0..20));
        // Of its own positions too, which change nothing there.
        both.copy_positions(0, 20..70, &[(1, 20), (0, 20)]).expect("copied");
        assert_eq!([0, 1].map(|sequence| both.computed_tokens(sequence, 0)), [90, 70]);
        assert!(read(&both, 1, 20..70) == source && read(&both, 1, 0..20) == kept, "{dtype:?}");
    }
}

#[test]
fn tokens_move_along_so_that_an_invocation_is_found_where_it_is_now() {
    let model = prefix_cache::model();
    let prompt = [&tokens(7, 30)[..], &INVOCATION, &tokens(8, 10)].concat();
    let activated: &[(&str, f32)] = &[("activated", 1.0)];
    let continued = |range: std::ops::Range<usize>, mixture| {
        let mut moved = cache(model, 2, 96, KvDType::F16);
        follow(&mut moved, 0, 0, &prompt, &[]);
        let count = range.len();
        moved.copy_positions(0, range, &[(1, 0)]).expect("copied");
        follow(&mut moved, 1, count, &[50, 51, 52], mixture)
    };
    assert!(continued(25..42, activated) != continued(25..42, &[]), "the invocation moved along");
    assert!(continued(31..42, activated) == continued(31..42, &[]), "half of it is no invocation");
}

#[test]
fn vectors_move_along() {
    let model = prefix_cache::model();
    let width = model.config().hidden_size;
    let values = Rng(7).normals(30 * width, 0.3);
    let vectors = |range: std::ops::Range<usize>| {
        let values = values[range.start * width..range.end * width].to_vec();
        PromptPart::Embeds(PromptEmbeds::new(values, width).expect("whole vectors"))
    };
    let parts = [PromptPart::Tokens(tokens(9, 5)), vectors(0..30), PromptPart::Tokens(tokens(10, 5))];
    let [mut one, mut other] = [0, 1].map(|_| cache(model, 2, 96, KvDType::F32));
    for cache in [&mut one, &mut other] {
        let ids = cache.set_parts(0, 0, &parts).expect("known");
        follow(cache, 0, 0, &ids, &[]);
        follow(cache, 1, 0, &tokens(11, 12), &[]);
        cache.copy_positions(0, 10..38, &[(1, 12)]).expect("copied");
    }
    // Vector 5 is at 12 now. From 20 on, they are computed again: from what was copied, and from what is set.
    let ids = vec![exlora::prompt_embeds::EMBEDS_TOKEN; 8];
    let found = follow(&mut one, 1, 20, &ids, &[]);
    let ids = other.set_parts(1, 20, &[vectors(13..21)]).expect("known");
    assert!(found == follow(&mut other, 1, 20, &ids, &[]));
}

#[test]
fn each_token_is_rotated_as_the_layers_that_it_went_through() {
    let model = model(Rotation::SecondLayer, Device::Cpu);
    // The rotated layer first, then the one that is not.
    let mut swapped = Adapter::empty().set("layer_replication", json!([[1, 2], [0, 1]]));
    for layer in 0..2 {
        let module = format!("model.layers.{layer}.self_attn.q_proj");
        let [a, b] = [1, 2].map(|seed| Rng(seed).normals(2 * 64, 0.1));
        swapped = swapped.part(&module, "lora_A.weight", &[2, 64], &a).part(&module, "lora_B.weight", &[64, 2], &b);
    }
    model.load_adapter("swapped", swapped.write().path()).expect("loaded");
    let mut moved = cache(&model, 1, 96, KvDType::F32);
    let all = tokens(12, 50);
    follow(&mut moved, 0, 0, &all[..20], &[]);
    follow(&mut moved, 0, 20, &all[20..], &[("swapped", 1.0)]);
    let before = [0, 1].map(|layer| moved.read_states(0, layer, 10..40).expect("read"));
    moved.copy_positions(0, 10..40, &[(0, 3)]).expect("copied");
    // Twenty of the thirty went through the swapped layers.
    for (layer, rotated) in [(0, 10..30), (1, 0..10)] {
        let found = moved.read_states(0, layer, 3..33).expect("read");
        for position in 0..30 {
            let [found, before] = [&found.keys, &before[layer].keys].map(|keys| &keys[position * WIDTH..][..WIDTH]);
            match rotated.contains(&position) {
                true => assert_heads_are_near(found, &turned(before, -7.0), 1e-5, "rotated"),
                false => assert!(bits(found) == bits(before), "position {position} of layer {layer}"),
            }
        }
    }
}

#[test]
fn layers_of_a_longer_map_are_copied_too_and_a_target_has_those_of_both() {
    let model = prefix_cache::model();
    let deeper: &[(&str, f32)] = &[("deeper", 1.0)];
    let mut moved = cache(model, 3, 96, KvDType::F32);
    follow(&mut moved, 0, 0, &tokens(13, 40), deeper);
    follow(&mut moved, 1, 0, &tokens(14, 40), &[]);
    let before = moved.read_states(0, 5, 8..40).expect("six layers");
    moved.copy_positions(0, 8..40, &[(2, 0), (1, 10)]).expect("copied");
    let found = moved.read_states(2, 5, 0..32).expect("six layers");
    assert!(bits(&found.values) == bits(&before.values));
    assert_heads_are_near(&found.keys, &turned(&before.keys, -8.0), 1e-5, "the sixth layer");
    assert_eq!([1, 2].map(|sequence| moved.computed_tokens(sequence, 4)), [0, 32]);
    follow(&mut moved, 2, 32, &[5], deeper);
    let chunk = SequenceChunk { sequence: 1, position: 42, tokens: &[5], logits: 1 };
    assert_eq!(code(moved.forward(&[chunk], &adapters(deeper)).map(drop)), ErrorCode::RequestInvalid);
    follow(&mut moved, 1, 42, &[5], &[]);
}

#[test]
fn sequences_that_are_rotated_otherwise_do_not_mix() {
    let model = model(Rotation::Long, Device::Cpu);
    let mut moved = cache(&model, 3, 128, KvDType::F32);
    let long = tokens(15, 90);
    follow(&mut moved, 0, 0, &long, &[]);
    follow(&mut moved, 1, 0, &tokens(16, 30), &[]);
    let error = moved.copy_positions(0, 5..10, &[(2, 0), (1, 20)]).expect_err("longrope");
    assert!(error.code() == ErrorCode::RequestInvalid && error.message().contains("longrope"), "{error}");
    assert_eq!([1, 2].map(|sequence| moved.computed_tokens(sequence, 0)), [30, 0], "nothing is copied");
    // A long one that rolls stays a long one.
    moved.copy_positions(0, 1..90, &[(0, 0)]).expect("rolled");
    let mut fresh = cache(&model, 1, 128, KvDType::F32);
    follow(&mut fresh, 0, 0, &long[1..], &[]);
    let [found, expected] = [&moved, &fresh].map(|cache| cache.read_states(0, 0, 0..89).expect("read").keys);
    assert_heads_are_near(&found, &expected, 1e-5, "the first layer");
    follow(&mut moved, 0, 89, &[7], &[]);
}

#[test]
fn what_is_not_computed_does_not_exist_or_does_not_fit_is_refused_and_nothing_is_lost() {
    let model = prefix_cache::model();
    let mut one = cache(model, 2, 96, KvDType::F16);
    follow(&mut one, 0, 0, &tokens(17, 60), &[]);
    follow(&mut one, 1, 0, &tokens(18, 20), &[]);
    let before = [0, 1].map(|sequence| one.read_states(sequence, 1, 0..20).expect("read"));
    let invalid = |result: Result<()>| assert_eq!(code(result), ErrorCode::RequestInvalid);
    invalid(one.copy_positions(0, 50..61, &[(1, 0)]));
    #[expect(clippy::reversed_empty_ranges, reason = "it is to be refused")]
    invalid(one.copy_positions(0, 5..4, &[(1, 0)]));
    invalid(one.copy_positions(2, 0..1, &[(1, 0)]));
    for to in
        [&[(2, 0)][..], &[(1, 21)], &[(1, 0), (1, 3)], &[(1, 0), (0, 61)], &[(1, 20), (0, 57)], &[(1, usize::MAX)]]
    {
        invalid(one.copy_positions(0, 10..50, to));
    }
    let mut quantized = cache(model, 1, 96, KvDType::Q8);
    invalid(quantized.copy_positions_from(&one, 0, 0..1, &[(0, 0)]));
    let computed = [0, 1].map(|sequence| one.computed_tokens(sequence, 0));
    assert_eq!(computed, [60, 20]);
    assert!(before == [0, 1].map(|sequence| one.read_states(sequence, 1, 0..20).expect("read")));
    one.copy_positions(0, 10..50, &[]).expect("to nowhere");
}
