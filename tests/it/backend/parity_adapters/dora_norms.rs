//! DoRA's norms where they are hard: W and BA that nearly cancel, and ranks beyond the weight's own.

use exlora::adapter::batch::SlotId;
use exlora::backend::{PrepareError, Write};
use exlora::tensor::DType;
use exlora::{Error, ErrorCode};
use proptest::prelude::*;

use support::Rng;
use support::allocator::with_peak;
use support::deltas::{Change, Low, random_low};
use support::harness::{
    Device, Harness, Member, Tensor, Weight, assert_close, fast, isas, oracle, random_member, route,
};

const SLOT: SlotId = SlotId(3);

/// With magnitudes around 1.
fn dora(rng: &mut Rng, low: Low) -> Low {
    let magnitude: Vec<f32> = (0..low.b.shape[0]).map(|_| 0.5 + rng.below(100) as f32 * 0.01).collect();
    Low { magnitude: Some(Tensor::new(DType::F32, &[magnitude.len()], &magnitude)), ..low }
}

/// `f s B A = -W` up to `ratio` of W's size in each row of W `[outputs, inputs]`: A is the identity.
fn cancelling(rng: &mut Rng, w: &[f32], inputs: usize, weight: f32, ratio: f32) -> Low {
    let scale = 0.5;
    let mut b = Vec::new();
    for row in w.chunks_exact(inputs) {
        let size = (row.iter().map(|w| w * w).sum::<f32>() / inputs as f32).sqrt();
        let noise = rng.normals(inputs, ratio * size);
        b.extend(row.iter().zip(noise).map(|(w, noise)| (noise - w) / (weight * scale)));
    }
    let identity: Vec<f32> = (0..inputs * inputs).map(|i| f32::from(u8::from(i % (inputs + 1) == 0))).collect();
    let a = Tensor::new(DType::F32, &[inputs, inputs], &identity);
    let low =
        Low { a, b: Tensor::new(DType::F32, &[w.len() / inputs, inputs], &b), scale, b_bias: None, magnitude: None };
    dora(rng, low)
}

/// The outputs of one linear with a delta, for rows x at a request weight.
fn run_linear(device: Device, member: &Member, low: &Low, x: &[f32], weight: f32) -> Vec<f32> {
    let (inputs, outputs) = (low.a.shape[1], low.b.shape[0]);
    let rows = x.len() / inputs;
    let mut harness = Harness::open(device);
    let (group, sites) = harness.group(std::slice::from_ref(member));
    harness.upload(SLOT, &sites, &[Change::low(0, low.clone())]).expect("the adapter uploads");
    let (x, y) = (harness.put(inputs, x), harness.buffer(outputs, rows));
    let batch = route(&vec![vec![(SLOT, weight)]; rows]);
    harness.compute().linear(group, x, rows, &batch, y, Write::Replace).expect("the linear runs");
    harness.get(y, outputs, rows)
}

/// Where W x and BA x cancel, what is left of their own rounding grows with 1 / ratio; the norms must add nothing to it.
fn tolerance(ratio: f32) -> f32 {
    1e-5 + 3e-6 / ratio
}

proptest! {
    #![proptest_config(support::cases(48))]

    #[test]
    fn norms_of_a_linear_agree_where_the_delta_cancels_the_weight(
        seed: u64, inputs in 32usize..100, outputs in 1usize..40, exponent in 1i32..5, weight in prop::sample::select(vec![1.0f32, 0.5, -1.0])
    ) {
        let mut rng = Rng(seed);
        let ratio = 10f32.powi(-exponent);
        let member = Member { bias: None, ..random_member(&mut rng, inputs, outputs) };
        let mut harness = Harness::open(oracle());
        let (_, sites) = harness.group(std::slice::from_ref(&member));
        let w = harness.backend().adapters.dense_weight(sites[0]).expect("a linear");
        let low = cancelling(&mut rng, &w, inputs, weight, ratio);
        let x = rng.normals(3 * inputs, 1.0);
        let expected = run_linear(oracle(), &member, &low, &x, weight);
        for isa in isas() {
            let found = run_linear(fast(isa, 2), &member, &low, &x, weight);
            assert_close(&format!("{isa} at {ratio}"), outputs, &found, &expected, tolerance(ratio));
        }
    }

    #[test]
    fn norms_of_an_embedding_agree_where_the_delta_cancels_the_table(seed: u64, tokens in 8usize..60, hidden in 1usize..90, exponent in 1i32..5) {
        let mut rng = Rng(seed);
        let ratio = 10f32.powi(-exponent);
        let table = Tensor::new(DType::F32, &[tokens, hidden], &rng.normals(tokens * hidden, 1.0));
        let by_channel: Vec<f32> = (0..hidden * tokens).map(|i| table.view().to_f32()[i % tokens * hidden + i / tokens]).collect();
        let low = cancelling(&mut rng, &by_channel, tokens, 1.0, ratio);
        let run = |device: Device| {
            let mut harness = Harness::open(device);
            let (id, site) = harness.table(&table);
            harness.upload(SLOT, &[site], &[Change::low(0, low.clone())]).expect("the adapter uploads");
            let out = harness.buffer(hidden, tokens);
            let ids: Vec<u32> = (0..tokens as u32).collect();
            harness.compute().embed(id, &ids, 1.0, &route(&vec![vec![(SLOT, 1.0)]; tokens]), out).expect("tokens embed");
            harness.get(out, hidden, tokens)
        };
        let expected = run(oracle());
        for isa in isas() {
            assert_close(&format!("{isa} at {ratio}"), hidden, &run(fast(isa, 2)), &expected, tolerance(ratio));
        }
    }

    #[test]
    fn norms_agree_at_ranks_beyond_the_weights_own(seed: u64, inputs in 32usize..70, outputs in 1usize..40, rank in 60usize..700) {
        let mut rng = Rng(seed);
        let member = Member { bias: None, ..random_member(&mut rng, inputs, outputs) };
        let low = random_low(&mut rng, DType::F16, rank, outputs, inputs);
        let low = dora(&mut rng, low);
        let x = rng.normals(2 * inputs, 1.0);
        let expected = run_linear(oracle(), &member, &low, &x, 0.5);
        for isa in isas() {
            assert_close(&isa.to_string(), outputs, &run_linear(fast(isa, 2), &member, &low, &x, 0.5), &expected, 1e-5);
        }
    }
}

/// A linear of 32 inputs and outputs, and a DoRA of that rank on it.
fn wide_dora(rank: usize) -> (Member, Change) {
    let mut rng = Rng(5);
    let weight = Weight::Dense(Tensor::new(DType::F16, &[32, 32], &rng.normals(32 * 32, 0.1)));
    let low = random_low(&mut rng, DType::F16, rank, 32, 32);
    (Member { weight, bias: None }, Change::low(0, dora(&mut rng, low)))
}

#[test]
fn norms_take_memory_in_proportion_to_the_factors() {
    let rank = 20_000;
    let (member, change) = wide_dora(rank);
    let mut harness = Harness::open(Device::Cpu { isa: None, threads: Some(1) });
    let (_, sites) = harness.group(&[member]);
    harness.backend();
    let (outcome, peak) = with_peak(|| harness.upload(SLOT, &sites, &[change]));
    outcome.expect("the adapter uploads");
    // Both factors in float32, A once more in the order of the packed inputs.
    assert!(peak < 4 * rank * (32 + 32) * size_of::<f32>(), "{peak} bytes");
}

#[test]
fn preparing_ends_where_it_is_interrupted() {
    for device in [Device::CPU, oracle()] {
        let (member, change) = wide_dora(3000);
        let mut harness = Harness::open(device);
        let (_, sites) = harness.group(&[member]);
        let before = harness.memory();
        let deltas = [change.delta(&sites)];
        let mut prepare = |limit: usize| {
            let mut calls = 0;
            let outcome = harness.backend().adapters.prepare(&deltas, &mut || {
                calls += 1;
                match calls > limit {
                    true => Err(Error::new(ErrorCode::Interrupted, "enough")),
                    false => Ok(()),
                }
            });
            (outcome.map(drop), calls)
        };
        let (outcome, parts) = prepare(usize::MAX);
        assert_eq!((outcome, parts > 0), (Ok(()), true));
        for limit in 0..parts {
            match prepare(limit) {
                (Err(PrepareError::Failed(error)), calls) => {
                    assert_eq!((error.code(), calls), (ErrorCode::Interrupted, limit + 1));
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(harness.memory(), before);
    }
}
