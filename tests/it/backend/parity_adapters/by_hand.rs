//! Numbers computed by hand, errors, bytes, and what the base holds.

use exlora::ErrorCode;
use exlora::adapter::batch::SlotId;
use exlora::backend::{HeadSpec, LogitRows, PrepareError, Write};
use exlora::quant::QuantGroup;
use exlora::sites::{SiteId, SitePart};
use exlora::tensor::DType;

use support::Rng;
use support::deltas::{Change, Low};
use support::harness::{
    Device, FLOATS, Harness, Member, Mixture, Tensor, Weight, assert_close, fast, isas, oracle, route,
};
use support::random_adapters::{Place, random_adapters};
use support::random_weights::RandomCodes;

/// With DoRA's magnitude.
fn rescaled(low: Low, magnitude: &[f32]) -> Low {
    Low { magnitude: Some(Tensor::new(DType::F32, &[magnitude.len()], magnitude)), ..low }
}

/// Bytes of a change's tensors.
fn bytes_of(change: &Change) -> usize {
    change.delta(&[SiteId(0)]).tensors().map(|tensor| tensor.bytes().len()).sum()
}

/// The identity times 2 with a bias, `[2, 2]`.
fn small_linear() -> Member {
    let weight = Weight::Dense(Tensor::new(DType::F32, &[2, 2], &[2.0, 0.0, 0.0, 2.0]));
    Member { weight, bias: Some(Tensor::new(DType::F32, &[2], &[0.5, -1.0])) }
}

#[test]
fn dora_by_hand() {
    // W = 2 I, s B A = [1 4; 0 0], so that V = [3 4; 0 2] has norms 5 and 2 at a weight of 1, and 2 and 2 at 0.
    // V x = (7, 2) for x = (1, 1); y = b + m / n V x with m = (10, 3).
    let dora = rescaled(Low::of(&[&[1.0, 4.0]], &[&[2.0], &[0.0]], 0.5), &[10.0, 3.0]);
    let plain = Low::of(&[&[1.0, 0.0]], &[&[1.0], &[1.0]], 1.0);
    let (d, p) = (SlotId(0), SlotId(1));
    let cases: [(Mixture, [f32; 2]); 6] = [
        (vec![], [2.5, 1.0]),
        (vec![(d, 1.0)], [14.5, 2.0]),
        (vec![(d, 0.0)], [10.5, 2.0]),
        // V = [1 -4; 0 2], V x = (-3, 2)
        (vec![(d, -1.0)], [0.5 - 30.0 / 17f32.sqrt(), 2.0]),
        // What comes before is rescaled, what comes after is not.
        (vec![(p, 1.0), (d, 1.0)], [16.5, 3.5]),
        (vec![(d, 1.0), (p, 1.0)], [15.5, 3.0]),
    ];
    for device in isas().map(|isa| fast(isa, 2)).chain([oracle()]) {
        let mut harness = Harness::open(device);
        let (group, sites) = harness.group(&[small_linear()]);
        harness.upload(d, &sites, &[Change::low(0, dora.clone())]).expect("the adapter uploads");
        harness.upload(p, &sites, &[Change::low(0, plain.clone())]).expect("the adapter uploads");
        let (x, y) = (harness.put(2, &vec![1.0; 2 * cases.len()]), harness.buffer(2, cases.len()));
        let batch = route(&cases.clone().map(|(mixture, _)| mixture));
        harness.compute().linear(group, x, cases.len(), &batch, y, Write::Replace).expect("the linear runs");
        assert_close("by hand", 2, &harness.get(y, 2, cases.len()), &cases.clone().map(|(_, y)| y).concat(), 1e-7);
    }
}

#[test]
fn a_truncated_weight_by_hand() {
    // W = [2 1; 1 2] without its smaller singular value is [1.5 1.5; 1.5 1.5], whatever the weight.
    let weight = Weight::Dense(Tensor::new(DType::F32, &[2, 2], &[2.0, 1.0, 1.0, 2.0]));
    let bias = Some(Tensor::new(DType::F32, &[2], &[0.5, -1.0]));
    let low = Low::of(&[&[1.0, 0.0]], &[&[1.0], &[2.0]], 0.5);
    let removed = Some(Low::of(&[&[0.5, -0.5]], &[&[1.0], &[-1.0]], -1.0));
    let (slot, plain) = (SlotId(0), SlotId(1));
    let mixtures: [Mixture; 4] = [vec![], vec![(slot, 1.0)], vec![(slot, 0.0)], vec![(plain, 1.0), (slot, -2.0)]];
    // x = (2, 0): W x = (4, 2), truncated (3, 3); B A x = (2, 4).
    let expected = [[4.5, 1.0], [4.5, 4.0], [3.5, 2.0], [2.5, 0.0]];
    for device in isas().map(|isa| fast(isa, 2)).chain([oracle()]) {
        let mut harness = Harness::open(device);
        let (group, sites) = harness.group(&[Member { weight: weight.clone(), bias: bias.clone() }]);
        let truncating = Change { removed: removed.clone(), ..Change::low(0, low.clone()) };
        harness.upload(slot, &sites, &[truncating]).expect("the adapter uploads");
        harness.upload(plain, &sites, &[Change::low(0, low.clone())]).expect("the adapter uploads");
        let (x, y) = (harness.put(2, &[2.0, 0.0].repeat(4)), harness.buffer(2, 4));
        harness.compute().linear(group, x, 4, &route(&mixtures), y, Write::Replace).expect("the linear runs");
        assert_close("by hand", 2, &harness.get(y, 2, 4), &expected.concat(), 1e-6);
    }
}

#[test]
fn a_dequantized_weight_agrees_with_the_oracle() {
    // A permutation, short groups, and more outputs than a tile.
    let mut rng = Rng(7);
    let groups = [(4, 96), (3, 40), (8, 64)].map(|(bits, inputs)| QuantGroup { bits, inputs });
    let codes = Weight::Coded(RandomCodes::new(&mut rng, 70, groups.to_vec(), false, true));
    let dense = Weight::Dense(Tensor::new(DType::F16, &[3, 200], &rng.normals(600, 1.0)));
    let run = |device: Device| {
        let mut harness = Harness::open(device);
        let members = [&codes, &dense].map(|weight| Member { weight: weight.clone(), bias: None });
        let (_, sites) = harness.group(&members);
        [0, 1].map(|member| harness.backend().adapters.dense_weight(sites[member]).expect("a linear"))
    };
    let expected = run(oracle());
    for isa in isas() {
        for (found, expected) in run(fast(isa, 2)).iter().zip(&expected) {
            assert_close("unpacked", 200, found, expected, 1e-7);
        }
    }
}

#[test]
fn an_embedding_is_rescaled_by_norms_over_the_vocabulary() {
    // E = [3 0; 0 0], s (B A)^T = [0 0; 4 1], so that the channels of V have norms 5 and 1.
    let table = Tensor::new(DType::F32, &[2, 2], &[3.0, 0.0, 0.0, 0.0]);
    let low = rescaled(Low::of(&[&[0.0, 1.0]], &[&[4.0], &[1.0]], 1.0), &[10.0, 2.0]);
    for device in isas().map(|isa| fast(isa, 2)).chain([oracle()]) {
        let mut harness = Harness::open(device);
        let (id, site) = harness.table(&table);
        harness.upload(SlotId(0), &[site], &[Change::low(0, low.clone())]).expect("the adapter uploads");
        let out = harness.buffer(2, 2);
        let batch = route(&[vec![(SlotId(0), 1.0)], vec![(SlotId(0), 1.0)]]);
        harness.compute().embed(id, &[0, 1], 1.0, &batch, out).expect("tokens embed");
        assert_eq!(harness.get(out, 2, 2), [6.0, 0.0, 8.0, 2.0]);
    }
}

#[test]
fn a_norm_of_zero_is_an_error_that_names_the_output_and_leaves_the_slot_free() {
    let cancelling = Change::low(0, rescaled(Low::of(&[&[0.0, 1.0]], &[&[0.0], &[-2.0]], 1.0), &[1.0, 1.0]));
    for device in isas().map(|isa| fast(isa, 2)).chain([oracle()]) {
        let mut harness = Harness::open(device);
        let (_, sites) = harness.group(&[small_linear()]);
        let before = harness.memory();
        let error = harness.upload(SlotId(0), &sites, std::slice::from_ref(&cancelling)).unwrap_err();
        assert_eq!(error, PrepareError::ZeroNorm { site: sites[0], output: 1 });
        assert_eq!(harness.memory(), before);
        let plain = Low { magnitude: None, ..cancelling.low.clone().expect("low") };
        harness.upload(SlotId(0), &sites, &[Change::low(0, plain)]).expect("the adapter uploads");
    }
}

#[test]
fn a_delta_that_does_not_fit_its_site_is_an_error_that_leaves_the_slot_free() {
    let tensor = |shape: &[usize]| Tensor::new(DType::F32, shape, &vec![1.0; shape.iter().product()]);
    let low = Low::of(&[&[0.0, 1.0]], &[&[0.0], &[-2.0]], 1.0);
    let misfits: Vec<Vec<Change>> = vec![
        vec![Change::default()],
        vec![Change::low(0, low.clone()), Change::low(0, low.clone())],
        vec![Change { weight: Some(tensor(&[1, 2])), ..Change::default() }],
        vec![Change { weight: Some(tensor(&[2, 3])), ..Change::default() }],
        vec![Change { weight: Some(tensor(&[4])), ..Change::default() }],
        vec![Change { bias: Some(tensor(&[3])), ..Change::default() }],
        vec![Change { rows: Some((vec![2], tensor(&[1, 2]))), ..Change::default() }],
        vec![Change { rows: Some((vec![1, 0], tensor(&[2, 2]))), ..Change::default() }],
        vec![Change { rows: Some((vec![1, 1], tensor(&[2, 2]))), ..Change::default() }],
        vec![Change::low(0, Low { b: tensor(&[3, 1]), ..low.clone() })],
        vec![Change::low(0, Low { a: tensor(&[2, 2]), ..low.clone() })],
        vec![Change::low(0, Low { b_bias: Some(tensor(&[1])), ..low.clone() })],
        vec![Change::low(0, rescaled(low.clone(), &[1.0]))],
        vec![Change { removed: Some(low.clone()), ..Change::low(0, rescaled(low.clone(), &[1.0, 1.0])) }],
    ];
    for isa in isas() {
        let mut harness = Harness::open(fast(isa, 2));
        let (_, sites) = harness.group(&[small_linear()]);
        for (i, changes) in misfits.iter().enumerate() {
            match harness.upload(SlotId(0), &sites, changes) {
                Err(PrepareError::Failed(error)) => assert_eq!(error.code(), ErrorCode::Internal, "{i}: {error}"),
                other => panic!("{i}: {other:?}"),
            }
        }
        harness.upload(SlotId(0), &sites, &[Change::low(0, low.clone())]).expect("the adapter uploads");
    }
}

#[test]
fn a_token_that_only_another_rows_adapter_has_is_an_error() {
    let tensor = |rows: usize| Tensor::new(DType::F16, &[rows, 2], &vec![1.0; 2 * rows]);
    for device in isas().map(|isa| fast(isa, 2)).chain([oracle()]) {
        let mut harness = Harness::open(device);
        let (table, site) = harness.table(&tensor(3));
        let wider = Change { weight: Some(tensor(5)), ..Change::default() };
        harness.upload(SlotId(0), &[site], &[wider]).expect("the adapter uploads");
        let out = harness.buffer(2, 2);
        let batch = route(&[vec![(SlotId(0), 1.0)], vec![]]);
        harness.compute().embed(table, &[4, 2], 1.0, &batch, out).expect("its own rows have the tokens");
        for tokens in [[4, 3], [5, 2]] {
            let error = harness.compute().embed(table, &tokens, 1.0, &batch, out).unwrap_err();
            assert_eq!(error.code(), ErrorCode::TokenOutOfRange);
        }
    }
}

#[test]
fn a_wider_head_than_the_buffer_is_an_error() {
    for device in isas().map(|isa| fast(isa, 2)).chain([oracle()]) {
        let mut harness = Harness::open(device);
        let (group, sites) = harness.group(&[small_linear()]);
        let wider = Change { weight: Some(Tensor::new(DType::F32, &[3, 2], &[1.0; 6])), ..Change::default() };
        harness.upload(SlotId(0), &sites, &[wider]).expect("the adapter uploads");
        let (x, batch) = (harness.put(2, &[1.0; 2]), route(&[vec![(SlotId(0), 1.0)]]));
        let (spec, row) = (HeadSpec::of(group), LogitRows::all(&[0], &batch));
        let error = harness.compute().head(&spec, x, row, &mut [0.0; 2], 2).unwrap_err();
        assert_eq!(error.code(), ErrorCode::Internal);
        let mut logits = [0.0; 4];
        harness.compute().head(&spec, x, row, &mut logits, 4).expect("the head runs");
        // Rows of ones on ones, the base's bias on its two outputs, and one output that the row does not have.
        assert_eq!(logits, [2.5, 1.0, 2.0, 0.0]);
    }
}

#[test]
fn resident_bytes_of_every_kind_of_delta_return() {
    for device in [Device::CPU, oracle()] {
        let mut rng = Rng(21);
        let mut harness = Harness::open(device);
        let place = Place { inputs: 40, outputs: 60, is_table: false, spare_rows: 7 };
        let weight = Weight::Dense(Tensor::new(DType::F16, &[60, 40], &rng.normals(60 * 40, 0.1)));
        let (_, sites) = harness.group(&[Member { weight, bias: None }]);
        let before = harness.memory();
        for _ in 0..16 {
            let adapters = random_adapters(&mut rng, &[place]);
            let mut resident = 0;
            for (slot, changes) in &adapters {
                let bytes = harness.upload(*slot, &sites, changes).expect("the adapter uploads");
                assert!(bytes >= changes.iter().map(bytes_of).sum());
                resident += bytes;
                assert_eq!(harness.memory().adapters_bytes, resident);
            }
            adapters.iter().for_each(|(slot, _)| harness.compute().drop_adapter(*slot));
            assert_eq!(harness.memory(), before);
        }
    }
}

#[test]
fn equals_base_accepts_the_loaded_values_alone() {
    let mut rng = Rng(4);
    let (dense, vector) = (rng.normals(21 * 40, 1.0), rng.normals(21, 1.0));
    let coded = Weight::Coded(RandomCodes::new(&mut rng, 21, vec![QuantGroup { bits: 4, inputs: 40 }], true, false));
    for device in isas().map(|isa| fast(isa, 2)).chain([oracle()]) {
        for dtype in FLOATS {
            let mut harness = Harness::open(device);
            let weight = Tensor::new(dtype, &[21, 40], &dense);
            let bias = Tensor::new(dtype, &[21], &vector);
            let member = |weight: Weight| Member { weight, bias: Some(bias.clone()) };
            let (_, sites) = harness.group(&[member(Weight::Dense(weight.clone())), member(coded.clone())]);
            let ((_, table), (_, norm)) = (harness.table(&weight), harness.norm_weight_of(&bias));
            // As another type, of the same values.
            let widened = Tensor::new(DType::F32, &[21, 40], &weight.view().to_f32());
            let mut other = widened.clone();
            other.bytes[4 * (20 * 40 + 39) + 3] ^= 0x80;
            let adapters = &harness.backend().adapters;
            let equals_base = |site, part, tensor: &Tensor| adapters.equals_base(site, part, tensor.view());
            for site in [sites[0], table] {
                assert!(equals_base(site, SitePart::Weight, &weight) && equals_base(site, SitePart::Weight, &widened));
                assert!(!equals_base(site, SitePart::Weight, &other) && !equals_base(site, SitePart::Weight, &bias));
            }
            assert!(equals_base(sites[0], SitePart::Bias, &bias) && equals_base(sites[1], SitePart::Bias, &bias));
            assert!(equals_base(norm, SitePart::Weight, &bias) && !equals_base(norm, SitePart::Weight, &weight));
            assert!(!equals_base(sites[1], SitePart::Weight, &weight) && !equals_base(table, SitePart::Bias, &bias));
            assert!(!equals_base(SiteId(99), SitePart::Weight, &weight));
        }
    }
}
