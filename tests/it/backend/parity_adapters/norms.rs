//! Norms that adapters replace: a row's is that of a model which has it.

use std::sync::Arc;

use exlora::adapter::batch::{AdapterBatch, SlotId};
use exlora::backend::{AttentionSpec, HeadNorm, KvDType, KvShape, NormSpec, Rope, StepRows, Write};
use exlora::tensor::DType;
use proptest::prelude::*;

use support::Rng;
use support::deltas::Change;
use support::harness::{Harness, Mixture, Tensor, bits, fast, isas, oracle, route};
use support::random_adapters::{Adapter, random_mixtures, route_in, upload_all};

proptest! {
    #![proptest_config(support::cases(32))]

    #[test]
    fn replaced_norms_equal_those_of_a_model_that_has_them(seed: u64, width in 1usize..200, rows in 1usize..12) {
        let mut rng = Rng(seed);
        let (base, x) = (rng.normals(width, 1.0), rng.normals(rows * width, 2.0));
        let replaced = [(); 3].map(|()| rng.normals(width, 1.0));
        let adapters: Vec<Adapter> = (0u32..3).map(|slot| {
            let weight = Some(Tensor::new(DType::F32, &[width], &replaced[slot as usize]));
            (SlotId(slot), vec![Change { weight, repeat: slot % 2, ..Change::default() }])
        }).collect();
        let mixtures = random_mixtures(&mut rng, &adapters, rows);
        for device in isas().map(|isa| fast(isa, 2)).chain([oracle()]) {
            let norm = |weight: &[f32], adapters: &[Adapter], batch: &AdapterBatch| {
                let mut harness = Harness::open(device);
                let (vector, site) = harness.norm_weight(weight);
                let (x, out) = (harness.put(width, &x), harness.buffer(width, rows));
                upload_all(&mut harness, &[site], adapters);
                harness.compute().norm(&NormSpec::rms(vector, 1e-5), x, rows, batch, out, Write::Replace).expect("the norm runs");
                harness.get(out, width, rows)
            };
            for repeat in 0..3 {
                let found = norm(&base, &adapters, &route_in(repeat, &mixtures));
                for (row, mixture) in mixtures.iter().enumerate() {
                    let last = mixture.iter().rev().find(|(slot, _)| repeat < 2 && slot.0 % 2 == repeat);
                    let weight = last.map_or(&base, |(slot, _)| &replaced[slot.0 as usize]);
                    let expected = norm(weight, &[], &AdapterBatch::default());
                    let range = row * width..(row + 1) * width;
                    prop_assert_eq!(bits(&found[range.clone()]), bits(&expected[range]));
                }
            }
        }
    }

    #[test]
    fn replaced_head_norms_equal_those_of_a_model_that_has_them(seed: u64) {
        const DIM: usize = 24;
        let mut rng = Rng(seed);
        let [q, k, new_q, new_k] = [(); 4].map(|()| rng.normals(DIM, 1.0));
        let qkv = rng.normals(4 * 4 * DIM, 1.0);
        let rope = Arc::new(Rope::halves(vec![1.0, 0.1, 0.01], 1.0));
        let vector = |values: &[f32]| Tensor::new(DType::F32, &[DIM], values);
        for device in isas().map(|isa| fast(isa, 2)).chain([oracle()]) {
            let attend = |q: &[f32], k: &[f32], batch: &AdapterBatch| {
                let mut harness = Harness::open(device);
                let ((q, q_site), (k, k_site)) = (harness.norm_weight(q), harness.norm_weight(k));
                let sites = [q_site, k_site];
                let changes = [0, 1].map(|site| Change { site, weight: Some(vector([&new_q, &new_k][site])), ..Change::default() });
                harness.upload(SlotId(0), &sites, &changes).expect("the adapter uploads");
                let [q_norm, k_norm] = [q, k].map(|id| Some(HeadNorm::rms(id, 1e-6)));
                let rope = Some(Arc::clone(&rope));
                let spec = AttentionSpec { scale: 0.2, q_norm, k_norm, rope, ..AttentionSpec::new(2, 1, DIM) };
                let shape = KvShape { layers: 1, pages: 2, page_tokens: 16, kv_heads: 1, head_dim: DIM, dtype: KvDType::F32 };
                let kv = harness.compute().create_kv(shape).expect("the cache fits");
                // Two sequences of two positions.
                let rows = StepRows {
                    positions: vec![0, 1, 0, 1], sequences: vec![0, 0, 1, 1], block_tables: vec![vec![0], vec![1]],
                };
                let (x, out) = (harness.put(4 * DIM, &qkv), harness.buffer(2 * DIM, 4));
                harness.compute().attend(&spec, kv, &rows, batch, x, out).expect("attention runs");
                harness.get(out, 2 * DIM, 4)
            };
            let one: Mixture = vec![(SlotId(0), 1.0)];
            let found = attend(&q, &k, &route(&[one.clone(), one, vec![], vec![]]));
            let (new, base) = (attend(&new_q, &new_k, &AdapterBatch::default()), attend(&q, &k, &AdapterBatch::default()));
            prop_assert_eq!(bits(&found), [bits(&new[..4 * DIM]), bits(&base[4 * DIM..])].concat());
        }
    }
}
