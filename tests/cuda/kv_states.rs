//! Keys and values that are read from a cache on the device, and copied there.

use ::support::kv_states::Case;
use ::support::{Rng, fixtures};
use exlora::{Device, KvDType, Model, ModelOptions, SequenceCache, SequenceChunk};

use crate::compute::{assert_ratio, devices};
use crate::support::device;

#[test]
fn what_is_read_is_what_was_given_and_copies_are_independent() {
    for (index, dtype) in KvDType::ALL.into_iter().enumerate() {
        let (device, _) = devices()[index % 2];
        for (head_dim, page_tokens) in [(64, 8), (80, 5)] {
            Case { dtype, kv_heads: 2, head_dim, page_tokens, seed: index as u64 }.check(device);
        }
    }
}

#[test]
fn heads_of_odd_widths_are_read_from_caches_of_floats() {
    for (dtype, head_dim) in [(KvDType::F16, 12), (KvDType::F32, 5)] {
        Case { dtype, kv_heads: 1, head_dim, page_tokens: 3, seed: 9 }.check(devices()[0].0);
    }
}

#[test]
#[ignore = "make test-slow"]
fn caches_of_random_shapes_are_read_and_copied() {
    let mut rng = Rng(17);
    for round in 0..40 {
        let (kv_heads, head_dim, page_tokens) = (1 + rng.below(3), 16 * (1 + rng.below(16)), 2 + rng.below(32));
        let dtype = KvDType::ALL[round % KvDType::ALL.len()];
        Case { dtype, kv_heads, head_dim, page_tokens, seed: round as u64 }.check(devices()[round % 2].0);
    }
}

#[test]
fn tokens_of_a_sequence_move_on_the_device() {
    device();
    for dtype in [KvDType::F16, KvDType::Q4] {
        let [cuda, reference] = [Device::Cuda(0), Device::Reference].map(|device| {
            let options = ModelOptions { device, max_seq_len: Some(96), ..ModelOptions::default() };
            let model = Model::load(&fixtures().join("quill-4m"), &options, &mut |_| Ok(())).expect("the model loads");
            SequenceCache::new(model, 2, 96, dtype).expect("a small cache")
        });
        let tokens: Vec<u32> = (0..40).map(|i| 3 + i * 17 % 500).collect();
        let run = |mut cache: SequenceCache| {
            let chunk = |position, tokens| SequenceChunk { sequence: 0, position, tokens, logits: 1 };
            cache.forward(&[chunk(0, &tokens)], &[]).expect("computed");
            cache.copy_positions(0, 1..40, &[(0, 0), (1, 0)]).expect("rolled");
            let states = [0, 1].map(|sequence| cache.read_states(sequence, 0, 0..39).expect("read"));
            (states, cache.forward(&[chunk(39, &tokens[..1])], &[]).expect("it goes on").values)
        };
        let ((found, logits), (expected, expected_logits)) = (run(cuda), run(reference));
        assert!(found[0] == found[1], "{dtype:?}: both rows");
        let limit = if dtype == KvDType::F16 { 5e-3 } else { 0.1 };
        let width = found[0].keys.len() / 39;
        assert_ratio("keys", width, &found[0].keys, &expected[0].keys, limit);
        assert_ratio("values", width, &found[0].values, &expected[0].values, limit);
        assert_ratio("logits", logits.len(), &logits, &expected_logits, limit);
    }
}
