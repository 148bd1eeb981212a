//! Norms that adapters replace, through the backend: against the reference backend, and against a model that has them.

use std::sync::Arc;

use exlora::adapter::batch::{AdapterBatch, SlotId};
use exlora::backend::{
    AttentionSpec, HeadNorm, HeadSpec, KvDType, KvShape, LogitRows, NormSpec, Rope, StepRows, Write,
};
use exlora::tensor::DType;
use support::Rng;
use support::deltas::{Change, Low, random_low};
use support::harness::{Device, Harness, Member, Mixture, Tensor, Weight, bits, oracle, route};
use support::random_adapters::{Adapter, random_mixtures, route_in, upload_all};

use crate::compute::{assert_ratio, cuda};

/// Rows, a norm's weight, and those of three adapters; the second one's is for repeat 1 of a layer.
struct Norms {
    width: usize,
    x: Vec<f32>,
    base: Vec<f32>,
    replaced: [Vec<f32>; 3],
    linear: Member,
    low: Low,
}

impl Norms {
    fn random(rng: &mut Rng, width: usize, rows: usize) -> Self {
        let values = rng.normals(width * 24, (width as f32).powf(-0.5));
        Self {
            width,
            x: rng.normals(rows * width, 2.0),
            base: rng.normals(width, 1.0),
            replaced: [(); 3].map(|()| rng.normals(width, 1.0)),
            linear: Member { weight: Weight::Dense(Tensor::new(DType::F16, &[24, width], &values)), bias: None },
            low: random_low(rng, DType::F16, 4, 24, width),
        }
    }

    /// The adapters' changes; sites are the norm and the linear, on which all have the same low-rank part.
    fn adapters(&self) -> Vec<Adapter> {
        let of_slot = |slot: u32| {
            let repeat = slot % 2;
            let weight = Some(Tensor::new(DType::F32, &[self.width], &self.replaced[slot as usize]));
            let low = Change { repeat, ..Change::low(1, self.low.clone()) };
            (SlotId(slot), vec![Change { weight, repeat, ..Change::default() }, low])
        };
        (0..3).map(of_slot).collect()
    }

    /// The norm's weight for a row in some repeat.
    fn weight_of(&self, mixture: &Mixture, repeat: u32) -> &[f32] {
        let last = mixture.iter().rev().find(|(slot, _)| repeat < 2 && slot.0 % 2 == repeat);
        last.map_or(&self.base, |(slot, _)| &self.replaced[slot.0 as usize])
    }

    /// The rows normed and read back, and the linear of the normed rows, some of them picked.
    fn run(&self, device: Device, batch: &AdapterBatch, picked: &[u32], head: &AdapterBatch) -> [Vec<f32>; 3] {
        let rows = self.x.len() / self.width;
        let mut harness = Harness::open(device);
        let (group, sites) = harness.group(std::slice::from_ref(&self.linear));
        let (norm, site) = harness.norm_weight(&self.base);
        upload_all(&mut harness, &[site, sites[0]], &self.adapters());
        let x = harness.put(self.width, &self.x);
        let [normed, y] = [self.width, 24].map(|width| harness.buffer(width, rows));
        let compute = harness.compute();
        compute.norm(&NormSpec::rms(norm, 1e-5), x, rows, batch, normed, Write::Replace).expect("the norm runs");
        compute.linear(group, normed, rows, batch, y, Write::Replace).expect("the linear runs");
        let mut logits = vec![0.0; picked.len() * 24];
        compute
            .head(&HeadSpec::of(group), normed, LogitRows::all(picked, head), &mut logits, 24)
            .expect("the head runs");
        [harness.get(normed, self.width, rows), harness.get(y, 24, rows), logits]
    }
}

#[test]
fn rows_are_normed_by_the_weights_of_their_last_adapters_that_bring_one() {
    let adapters: Vec<Adapter> = (0..3).map(|slot| (SlotId(slot), Vec::new())).collect();
    for (seed, (width, rows)) in (0..).zip([(64, 5), (100, 9), (33, 12), (320, 20), (7, 70)]) {
        let mut rng = Rng(seed);
        let case = Norms::random(&mut rng, width, rows);
        let mixtures = random_mixtures(&mut rng, &adapters, rows);
        // The head's rows have the adapters of the rows that they are, in another order.
        let picked: Vec<u32> = (0..rows as u32).rev().step_by(2).collect();
        let of_picked: Vec<Mixture> = picked.iter().map(|&row| mixtures[row as usize].clone()).collect();
        for repeat in 0..3 {
            let (batch, head) = (route_in(repeat, &mixtures), route_in(repeat, &of_picked));
            let found = case.run(cuda(), &batch, &picked, &head);
            let expected = case.run(oracle(), &batch, &picked, &head);
            let limits = [1e-6, 1e-3, 1e-3];
            for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let what = format!("seed {seed}, repeat {repeat}, result {index}");
                let width = if index == 0 { width } else { 24 };
                assert_ratio(&what, width, found, expected, limits[index]);
            }
        }
    }
}

#[test]
fn a_norm_with_an_offset_is_added_with_what_adapters_bring() {
    let (width, rows) = (300, 7);
    let mut rng = Rng(13);
    let [x, y] = [(); 2].map(|()| rng.normals(rows * width, 2.0));
    let [base, replaced] = [(); 2].map(|()| Tensor::new(DType::BF16, &[width], &rng.normals(width, 0.3)));
    let change = Change { weight: Some(replaced), ..Change::default() };
    let mixtures: Vec<Mixture> =
        (0..rows).map(|row| if row % 2 == 0 { vec![] } else { vec![(SlotId(0), 1.0)] }).collect();
    let run = |device: Device| {
        let mut harness = Harness::open(device);
        let (norm, site) = harness.norm_with(&base, None, 1.0);
        harness.upload(SlotId(0), &[site], std::slice::from_ref(&change)).expect("the adapter uploads");
        let (x, y) = (harness.put(width, &x), harness.put(width, &y));
        let add = Write::Add { factor: 0.22 };
        harness.compute().norm(&NormSpec::rms(norm, 1e-5), x, rows, &route(&mixtures), y, add).expect("the norm runs");
        harness.get(y, width, rows)
    };
    assert_ratio("sums", width, &run(cuda()), &run(oracle()), 1e-6);
}

#[test]
fn a_row_has_the_bits_of_a_model_that_has_its_norm() {
    for (seed, rows) in [(7, 6), (8, 40)] {
        let mut rng = Rng(seed);
        let case = Norms::random(&mut rng, 96, rows);
        let adapters: Vec<Adapter> = (0..3).map(|slot| (SlotId(slot), Vec::new())).collect();
        let mixtures = random_mixtures(&mut rng, &adapters, rows);
        let together = case.run(cuda(), &route(&mixtures), &[], &AdapterBatch::default());
        for row in [0, 1, 2, rows - 1] {
            // Its low-rank part is that of a mixture without the norms: alone, with the weight as the base's.
            let alone = Norms {
                width: 96,
                x: case.x[row * 96..(row + 1) * 96].to_vec(),
                base: case.weight_of(&mixtures[row], 0).to_vec(),
                replaced: [(); 3].map(|()| case.weight_of(&mixtures[row], 0).to_vec()),
                linear: case.linear.clone(),
                low: case.low.clone(),
            };
            let alone = alone.run(cuda(), &route(&mixtures[row..=row]), &[], &AdapterBatch::default());
            for (index, width) in [(0, 96), (1, 24)] {
                let among = &together[index][row * width..(row + 1) * width];
                assert_eq!(bits(&alone[index]), bits(among), "seed {seed}, row {row}, result {index}");
            }
        }
    }
}

#[test]
fn a_linear_takes_the_norms_of_the_batch_that_was_normed_and_not_of_its_own() {
    let case = Norms::random(&mut Rng(9), 40, 4);
    let normed =
        route(&[vec![(SlotId(0), 1.0)], vec![], vec![(SlotId(2), 1.0)], vec![(SlotId(2), 1.0), (SlotId(0), 0.5)]]);
    let run = |device: Device| {
        let mut harness = Harness::open(device);
        let (group, sites) = harness.group(std::slice::from_ref(&case.linear));
        let (norm, site) = harness.norm_weight(&case.base);
        upload_all(&mut harness, &[site, sites[0]], &case.adapters());
        let x = harness.put(40, &case.x);
        let [out, y] = [40, 24].map(|width| harness.buffer(width, 4));
        let compute = harness.compute();
        compute.norm(&NormSpec::rms(norm, 1e-5), x, 4, &normed, out, Write::Replace).expect("the norm runs");
        let other = route(&[vec![(SlotId(2), 1.0)], vec![(SlotId(0), 1.0)], vec![], vec![]]);
        compute.linear(group, out, 4, &other, y, Write::Replace).expect("the linear runs");
        harness.get(y, 24, 4)
    };
    assert_ratio("products", 24, &run(cuda()), &run(oracle()), 1e-3);
}

#[test]
fn replaced_head_norms_equal_those_of_a_model_that_has_them() {
    for (seed, dim) in [(1, 24), (2, 64), (3, 128)] {
        let mut rng = Rng(seed);
        let [q, k, new_q, new_k] = [(); 4].map(|()| rng.normals(dim, 1.0));
        let qkv = rng.normals(4 * 4 * dim, 1.0);
        let rope = Arc::new(Rope::halves(vec![1.0, 0.1, 0.01], 1.0));
        let vector = |values: &[f32]| Tensor::new(DType::F32, &[dim], values);
        let attend = |q: &[f32], k: &[f32], batch: &AdapterBatch| {
            let mut harness = Harness::open(cuda());
            let ((q, q_site), (k, k_site)) = (harness.norm_weight(q), harness.norm_weight(k));
            let sites = [q_site, k_site];
            // A second adapter brings the norm of the keys alone.
            let of = |site: usize, weight: &[f32]| Change { site, weight: Some(vector(weight)), ..Change::default() };
            harness.upload(SlotId(0), &sites, &[of(0, &new_q), of(1, &new_q)]).expect("the adapter uploads");
            harness.upload(SlotId(1), &sites, &[of(1, &new_k)]).expect("the adapter uploads");
            let [q_norm, k_norm] = [q, k].map(|id| Some(HeadNorm::rms(id, 1e-6)));
            let rope = Some(Arc::clone(&rope));
            let spec = AttentionSpec { scale: 0.2, q_norm, k_norm, rope, ..AttentionSpec::new(2, 1, dim) };
            let (kv_heads, head_dim, dtype) = (1, dim, KvDType::F32);
            let shape = KvShape { layers: 1, pages: 2, page_tokens: 16, kv_heads, head_dim, dtype };
            let kv = harness.compute().create_kv(shape).expect("the cache fits");
            // Two sequences of two positions.
            let rows = StepRows {
                positions: vec![0, 1, 0, 1],
                sequences: vec![0, 0, 1, 1],
                block_tables: vec![vec![0], vec![1]],
            };
            let (x, out) = (harness.put(4 * dim, &qkv), harness.buffer(2 * dim, 4));
            harness.compute().attend(&spec, kv, &rows, batch, x, out).expect("attention runs");
            harness.get(out, 2 * dim, 4)
        };
        let both: Mixture = vec![(SlotId(0), 1.0), (SlotId(1), 1.0)];
        let found = attend(&q, &k, &route(&[both.clone(), both, vec![], vec![]]));
        let base = AdapterBatch::default();
        let (new, base) = (attend(&new_q, &new_k, &base), attend(&q, &k, &base));
        assert_eq!(bits(&found), [bits(&new[..4 * dim]), bits(&base[4 * dim..])].concat(), "seed {seed}");
    }
}
