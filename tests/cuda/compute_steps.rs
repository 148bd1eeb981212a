//! What operations leave to each other and to the next step: pending norms and products, tables, slots, flags.

use exlora::ErrorCode;
use exlora::adapter::batch::{AdapterBatch, SlotId};
use exlora::backend::{Compute, GroupId, NormSpec, Write};
use exlora::sites::SiteId;
use exlora::tensor::DType;
use support::Rng;
use support::deltas::{Change, random_low};
use support::harness::{Device, Harness, Member, Mixture, Tensor, Weight, oracle, route};

use crate::compute::{assert_ratio, devices};

const WIDTH: usize = 64;

/// A square linear without a bias, alone in its group.
fn square_linear(harness: &mut Harness, seed: u64) -> (GroupId, Vec<SiteId>) {
    let values = Rng(seed).normals(WIDTH * WIDTH, (WIDTH as f32).powf(-0.5));
    let weight = Weight::Dense(Tensor::new(DType::F16, &[WIDTH, WIDTH], &values));
    harness.group(&[Member { weight, bias: None }])
}

/// A low-rank change of such a linear.
fn low_rank(seed: u64) -> Change {
    Change::low(0, random_low(&mut Rng(seed), DType::F16, 3, WIDTH, WIDTH))
}

/// Fails unless both kinds of activations give what the reference gives.
fn assert_as_the_reference(what: &str, run: impl Fn(Device) -> Vec<f32>) {
    let expected = run(oracle());
    for (device, limit) in devices() {
        assert_ratio(&format!("{what}, {device:?}"), WIDTH, &run(device), &expected, limit);
    }
}

#[test]
fn a_norm_of_small_values_adds_its_epsilon_wherever_it_is_applied() {
    let x: Vec<f32> = Rng(1).normals(3 * WIDTH, 2e-3);
    assert_as_the_reference("norm", |device| {
        let mut harness = Harness::open(device);
        let (norm, _) = harness.norm_weight(&Rng(2).normals(WIDTH, 1.0));
        let (group, _) = square_linear(&mut harness, 3);
        let x = harness.put(WIDTH, &x);
        let [normed, y] = [(); 2].map(|()| harness.buffer(WIDTH, 3));
        let base = AdapterBatch::default();
        let compute = harness.compute();
        compute.norm(&NormSpec::rms(norm, 1e-5), x, 3, &base, normed, Write::Replace).expect("runs");
        // The linear applies the norm; reading it back does, too.
        compute.linear(group, normed, 3, &base, y, Write::Replace).expect("runs");
        let mut found = harness.get(y, WIDTH, 3);
        found.extend(harness.get(normed, WIDTH, 3));
        found
    });
}

#[test]
fn a_linear_may_replace_what_its_input_is_the_norm_of() {
    let y = Rng(4).normals(9 * WIDTH, 1.0);
    assert_as_the_reference("in place", |device| {
        let mut harness = Harness::open(device);
        let (norm, _) = harness.norm_weight(&Rng(5).normals(WIDTH, 1.0));
        let (group, _) = square_linear(&mut harness, 6);
        let (y, normed) = (harness.put(WIDTH, &y), harness.buffer(WIDTH, 9));
        let base = AdapterBatch::default();
        let compute = harness.compute();
        compute.norm(&NormSpec::rms(norm, 1e-5), y, 9, &base, normed, Write::Replace).expect("runs");
        compute.linear(group, normed, 9, &base, y, Write::Replace).expect("runs");
        harness.get(y, WIDTH, 9)
    });
}

#[test]
fn products_that_wait_for_their_reader_keep_their_low_rank_part() {
    let x = Rng(16).normals(2 * WIDTH, 1.0);
    let batch = route(&[vec![(SlotId(0), 1.0)], vec![(SlotId(0), -0.5)]]);
    assert_as_the_reference("pending", |device| {
        let mut harness = Harness::open(device);
        let (first, sites) = square_linear(&mut harness, 17);
        let (second, more_sites) = square_linear(&mut harness, 18);
        let changes = [low_rank(19), Change { site: 1, ..low_rank(20) }];
        harness.upload(SlotId(0), &[sites, more_sites].concat(), &changes).expect("the adapter uploads");
        let x = harness.put(WIDTH, &x);
        let out = [(); 2].map(|()| harness.buffer(WIDTH, 2));
        for (group, out) in [first, second].into_iter().zip(out) {
            harness.compute().linear(group, x, 2, &batch, out, Write::Replace).expect("runs");
        }
        out.map(|out| harness.get(out, WIDTH, 2)).concat()
    });
}

#[test]
fn a_step_larger_than_all_before_finds_larger_buffers() {
    let rows = 150;
    let x = Rng(21).normals(rows * WIDTH, 1.0);
    assert_as_the_reference("larger", |device| {
        let mut harness = Harness::open(device);
        let (group, sites) = square_linear(&mut harness, 22);
        harness.upload(SlotId(0), &sites, &[low_rank(23)]).expect("the adapter uploads");
        let x = harness.put(WIDTH, &x);
        let out = harness.buffer(WIDTH, rows);
        for rows in [1, rows] {
            let batch = route(&vec![vec![(SlotId(0), 0.5)]; rows]);
            harness.compute().linear(group, x, rows, &batch, out, Write::Replace).expect("runs");
            // Reading the result ends the step.
            harness.get(out, WIDTH, rows);
        }
        harness.get(out, WIDTH, rows)
    });
}

#[test]
fn tables_that_outgrow_their_buffer_keep_those_that_are_there() {
    // Twelve entries of each row need more than the buffer has at first.
    let rows = 200;
    let x = Rng(7).normals(rows * WIDTH, 1.0);
    let few = route(&vec![vec![(SlotId(0), 0.5)]; rows]);
    let many = route(&vec![[(SlotId(0), 0.25), (SlotId(1), -0.125)].repeat(6); rows]);
    let run = |device: Device| {
        let mut harness = Harness::open(device);
        let (group, sites) = square_linear(&mut harness, 8);
        for slot in 0..2 {
            harness.upload(SlotId(slot), &sites, &[low_rank(9 + u64::from(slot))]).expect("the adapter uploads");
        }
        let x = harness.put(WIDTH, &x);
        let out = [(); 3].map(|()| harness.buffer(WIDTH, rows));
        for (batch, out) in [&few, &many, &few].into_iter().zip(out) {
            harness.compute().linear(group, x, rows, batch, out, Write::Replace).expect("runs");
        }
        out.map(|out| harness.get(out, WIDTH, rows)).concat()
    };
    let (device, limit) = devices()[0];
    assert_ratio("grown", WIDTH, &run(device), &run(oracle()), limit);
}

#[test]
fn a_slot_serves_the_adapter_that_is_in_it_now() {
    let mixtures: [Mixture; 2] = [vec![(SlotId(3), 1.0)], vec![]];
    let x = Rng(11).normals(2 * WIDTH, 1.0);
    assert_as_the_reference("slot 3", |device| {
        let mut harness = Harness::open(device);
        let (group, sites) = square_linear(&mut harness, 12);
        let (x, y) = (harness.put(WIDTH, &x), harness.buffer(WIDTH, 2));
        let batch = route(&mixtures);
        let mut found = Vec::new();
        for seed in [13, 14] {
            harness.upload(SlotId(3), &sites, &[low_rank(seed)]).expect("the adapter uploads");
            harness.compute().linear(group, x, 2, &batch, y, Write::Replace).expect("runs");
            found.extend(harness.get(y, WIDTH, 2));
            harness.compute().drop_adapter(SlotId(3));
        }
        let error = harness.compute().linear(group, x, 2, &batch, y, Write::Replace).unwrap_err();
        assert_eq!(error.code(), ErrorCode::Internal, "the slot is empty");
        found
    });
}

#[test]
fn an_overflow_is_reported_once_and_not_in_the_next_step() {
    let (device, _) = devices()[0];
    let mut harness = Harness::open(device);
    let (group, _) = square_linear(&mut harness, 15);
    let [x, y] = [(); 2].map(|()| harness.buffer(WIDTH, 2));
    let compute = harness.compute();
    let step = |compute: &mut dyn Compute, value: f32| {
        compute.reserve_rows(2).expect("there is room");
        compute.write_rows(x, 0, &[value; 2 * WIDTH]).expect("rows fit");
        compute.linear(group, x, 2, &AdapterBatch::default(), y, Write::Replace).expect("runs");
    };
    // What is not taken is forgotten.
    step(compute, 1e5);
    for (value, reported) in [(1.0, vec![]), (1e5, vec![0, 1])] {
        step(compute, value);
        for reported in [reported, vec![]] {
            assert!(compute.take_kv_overflows().expect("read").is_empty());
            assert_eq!(compute.take_activation_overflows().expect("read"), reported);
        }
    }
}
