//! Keys and values that are read from a cache and copied to another, on every instruction set and the reference.

use exlora::ErrorCode;
use exlora::adapter::batch::AdapterBatch;
use exlora::backend::{AttentionSpec, KvDType, KvId, KvPositions, KvShape, StepRows};
use proptest::prelude::*;
use support::harness::{Device, Harness, fast, isas, oracle};
use support::kv_states::Case;

fn devices() -> impl Iterator<Item = Device> {
    isas().map(|isa| fast(isa, 2)).chain([oracle()])
}

proptest! {
    #![proptest_config(support::cases(24))]

    #[test]
    fn what_is_read_is_what_was_given_and_copies_are_independent(
        dtype in prop::sample::select(KvDType::ALL.to_vec()),
        kv_heads in 1usize..3,
        groups in 1usize..6,
        page_tokens in 2usize..40,
        seed: u64,
    ) {
        for device in devices() {
            Case { dtype, kv_heads, head_dim: 16 * groups, page_tokens, seed }.check(device);
        }
    }

    #[test]
    fn heads_of_any_width_are_read_from_caches_of_floats(head_dim in 1usize..70, page_tokens in 2usize..20, seed: u64) {
        for dtype in [KvDType::F16, KvDType::F32] {
            for device in devices() {
                Case { dtype, kv_heads: 2, head_dim, page_tokens, seed }.check(device);
            }
        }
    }
}

#[test]
fn a_cache_of_every_type_is_read_in_pages_of_the_engines_size() {
    for dtype in KvDType::ALL {
        for device in devices() {
            Case { dtype, kv_heads: 2, head_dim: 64, page_tokens: 32, seed: 5 }.check(device);
        }
    }
}

const SHAPE: KvShape = KvShape { layers: 1, pages: 3, page_tokens: 4, kv_heads: 1, head_dim: 32, dtype: KvDType::F16 };

#[test]
fn what_the_cache_could_not_hold_is_read_as_nan() {
    for dtype in KvDType::ALL.into_iter().filter(|&dtype| dtype != KvDType::F32) {
        for device in devices() {
            let mut harness = Harness::open(device);
            let kv = harness.compute().create_kv(KvShape { dtype, ..SHAPE }).expect("a small cache");
            let mut rows = StepRows::default();
            rows.push(0..2, [1]);
            // The second key, and the first value.
            let mut qkv = vec![1.0; 2 * 96];
            (qkv[96 + 32], qkv[64]) = (1e30, -1e30);
            let [x, y] = [96, 32].map(|width| harness.buffer(width, 2));
            harness.compute().write_rows(x, 0, &qkv).expect("rows fit");
            let spec = AttentionSpec {
                layer: 0,
                heads: 1,
                kv_heads: 1,
                head_dim: 32,
                scale: 1.0,
                window: None,
                q_norm: None,
                k_norm: None,
                score_cap: None,
                rope: None,
                query_temperature: None,
            };
            harness.compute().attend(&spec, kv, &rows, &AdapterBatch::default(), x, y).expect("attention runs");
            let states = harness.compute().read_kv(kv, 0, &[1], 0..2).expect("it is read");
            let is_nan = |states: &[f32]| [states[0], states[32]].map(f32::is_nan);
            assert_eq!((is_nan(&states.keys), is_nan(&states.values)), ([false, true], [true, false]), "{device:?}");
        }
    }
}

#[test]
fn what_does_not_exist_or_fit_is_an_internal_error() {
    for device in devices() {
        let mut harness = Harness::open(device);
        let compute = harness.compute();
        let mut create = |shape| compute.create_kv(shape).expect("a small cache");
        let kv = create(SHAPE);
        let (wider, rounded) =
            (create(KvShape { head_dim: 64, ..SHAPE }), create(KvShape { dtype: KvDType::Q4, ..SHAPE }));
        let gone = create(SHAPE);
        compute.drop_kv(gone);
        let read = |kv: KvId, layer, table: &[u32], positions| compute.read_kv(kv, layer, table, positions).err();
        for error in [
            read(gone, 0, &[0], 0..1),
            read(KvId(99), 0, &[0], 0..1),
            read(kv, 1, &[0], 0..1),
            read(kv, 0, &[0], 3..5),
            read(kv, 0, &[0, 3], 0..5),
        ] {
            assert_eq!(error.expect("refused").code(), ErrorCode::Internal);
        }
        let mut assert_refused = |from, from_pages: &[u32], to, to_pages: &[u32]| {
            let error = compute.copy_kv_pages(from, from_pages, to, to_pages).expect_err("refused");
            assert_eq!(error.code(), ErrorCode::Internal);
        };
        for (from, to) in [(gone, kv), (kv, gone), (kv, KvId(99)), (kv, wider), (kv, rounded)] {
            assert_refused(from, &[0], to, &[0]);
        }
        assert_refused(kv, &[3], kv, &[0]);
        assert_refused(kv, &[0], kv, &[3]);
        assert_refused(kv, &[0, 1], kv, &[2]);
        assert_refused(kv, &[0, 1], kv, &[2, 0]);
    }
}

#[test]
fn positions_that_do_not_exist_or_fit_are_an_internal_error_and_keys_that_overflow_are_told() {
    for device in devices() {
        let mut harness = Harness::open(device);
        let compute = harness.compute();
        let mut create = |shape| compute.create_kv(shape).expect("a small cache");
        let (kv, wider) = (create(SHAPE), create(KvShape { head_dim: 64, ..SHAPE }));
        let at = |kv, block_table: &'static [u32], positions| KvPositions { kv, block_table, positions };
        let keys = [0.5; 3 * 32];
        for (layer, from, to, keys) in [
            (1, at(kv, &[0], 0..1), at(kv, &[1], 0..1), None),
            (0, at(KvId(9), &[0], 0..1), at(kv, &[1], 0..1), None),
            (0, at(kv, &[0], 0..1), at(KvId(9), &[1], 0..1), None),
            (0, at(kv, &[0], 0..1), at(wider, &[1], 0..1), None),
            (0, at(kv, &[0], 0..5), at(kv, &[1, 2], 0..5), None),
            (0, at(kv, &[0, 3], 0..5), at(kv, &[1, 2], 0..5), None),
            (0, at(kv, &[0], 0..3), at(kv, &[1], 0..2), None),
            (0, at(kv, &[0], 0..2), at(kv, &[1], 0..2), Some(&keys[..])),
        ] {
            let error = compute.copy_kv_positions(layer, from, to, keys).expect_err("refused");
            assert_eq!(error.code(), ErrorCode::Internal);
        }
        let mut fits = |keys: &[f32]| {
            compute.copy_kv_positions(0, at(kv, &[0], 0..1), at(kv, &[1], 3..4), Some(keys)).expect("copied")
        };
        let mut keys = [1.0; 32];
        assert!(fits(&keys));
        keys[31] = f32::NAN;
        assert!(fits(&keys), "what is not finite did not overflow");
        keys[31] = 1e6;
        assert!(!fits(&keys));
        let key = compute.read_kv(kv, 0, &[1], 3..4).expect("read").keys;
        assert!(key[31].is_nan() && key[0] == 1.0);
    }
}
