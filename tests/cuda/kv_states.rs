//! Keys and values that are read from a cache on the device, and copied there.

use ::support::Rng;
use ::support::kv_states::Case;
use exlora::backend::KvDType;

use crate::compute::devices;

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
