//! Operations called one by one, in orders that fuse and in orders that do not, against the reference backend.

use exlora::ErrorCode;
use exlora::adapter::batch::{AdapterBatch, SlotId};
use exlora::backend::cuda::layout::ElementType;
use exlora::backend::cuda::{CudaOptions, open};
use exlora::backend::{Activation, BackendBuilder, HeadSpec, LogitRows, MlpShape, NormSpec, PrepareError, Write};
use exlora::tensor::DType;
use support::Rng;
use support::adapter_cases::LinearsCase;
use support::deltas::{Change, random_low};
use support::harness::{Device, Harness, Member, Mixture, Tensor, Weight, bits, oracle, random_member, route};
use support::random_adapters::{Adapter, Place, random_adapters, random_mixtures, route_in, upload_all};

use crate::support::device;

fn open_f16() -> Box<dyn BackendBuilder> {
    open(&CudaOptions { ordinal: 0, element: Some(ElementType::F16) }).expect("the card opens")
}

fn open_bf16() -> Box<dyn BackendBuilder> {
    open(&CudaOptions { ordinal: 0, element: Some(ElementType::Bf16) }).expect("the card opens")
}

/// The device with half-precision activations, and with bfloat16; and the norm ratio that each is allowed.
pub fn devices() -> [(Device, f64); 2] {
    device();
    [(Device::Other(open_f16), 1e-3), (Device::Other(open_bf16), 1e-2)]
}

/// The device with half-precision activations.
pub fn cuda() -> Device {
    devices()[0].0
}

/// Asserts that each row's difference is small beside the row.
pub fn assert_ratio(what: &str, width: usize, found: &[f32], expected: &[f32], limit: f64) {
    assert_eq!(found.len(), expected.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    for (row, (found, expected)) in found.chunks(width).zip(expected.chunks(width)).enumerate() {
        let difference = norm(&mut found.iter().zip(expected).map(|(a, b)| f64::from(*a) - f64::from(*b)));
        let size = norm(&mut expected.iter().map(|value| f64::from(*value)));
        assert!(difference <= limit * size.max(1e-3), "{what}, row {row}: {difference:e} of {size:e}");
    }
}

/// A group of linears, adapters on it, and rows with their mixtures.
#[derive(Clone)]
struct Linears {
    inputs: usize,
    outputs: usize,
    members: Vec<Member>,
    adapters: Vec<Adapter>,
    x: Vec<f32>,
    y: Vec<f32>,
    mixtures: Vec<Mixture>,
    write: Write,
    repeat: u32,
}

impl Linears {
    fn random(seed: u64, inputs: usize, rows: usize) -> Self {
        let mut rng = Rng(seed);
        let rng = &mut rng;
        let widths: Vec<usize> = (0..1 + rng.below(3)).map(|_| 1 + rng.below(90)).collect();
        let outputs = widths.iter().sum();
        let members = widths.iter().map(|&width| random_member(rng, inputs, width)).collect();
        let place = |&outputs: &usize| Place { inputs, outputs, is_table: false, spare_rows: 0 };
        let adapters = random_adapters(rng, &widths.iter().map(place).collect::<Vec<_>>());
        let mixtures = random_mixtures(rng, &adapters, rows);
        let write = [Write::Replace, Write::ADD, Write::Add { factor: 0.22 }][rng.below(3)];
        let (x, y) = (rng.normals(rows * inputs, 1.0), rng.normals(rows * outputs, 1.0));
        Self { inputs, outputs, members, adapters, x, y, mixtures, write, repeat: rng.below(3) as u32 }
    }

    fn only(&self, row: usize) -> Self {
        Self {
            x: self.x[row * self.inputs..(row + 1) * self.inputs].to_vec(),
            y: self.y[row * self.outputs..(row + 1) * self.outputs].to_vec(),
            mixtures: vec![self.mixtures[row].clone()],
            ..self.clone()
        }
    }

    fn run(&self, device: Device) -> Vec<f32> {
        let mut harness = Harness::open(device);
        let (group, sites) = harness.group(&self.members);
        upload_all(&mut harness, &sites, &self.adapters);
        let rows = self.mixtures.len();
        let (x, y) = (harness.put(self.inputs, &self.x), harness.put(self.outputs, &self.y));
        let batch = route_in(self.repeat, &self.mixtures);
        harness.compute().linear(group, x, rows, &batch, y, self.write).expect("the linear runs");
        harness.get(y, self.outputs, rows)
    }
}

#[test]
fn linears_with_every_kind_of_delta_agree_with_the_reference() {
    for (seed, (inputs, rows)) in (0..).zip([(96, 5), (64, 1), (160, 17), (100, 9), (33, 3), (256, 66)]) {
        let case = Linears::random(seed, inputs, rows);
        let expected = case.run(oracle());
        for (device, limit) in devices() {
            let what = format!("seed {seed}, {device:?}");
            assert_ratio(&what, case.outputs, &case.run(device), &expected, limit);
        }
    }
}

#[test]
fn a_row_of_a_linear_has_the_same_bits_alone() {
    for (seed, (inputs, rows)) in (10..).zip([(96, 12), (130, 70)]) {
        let case = Linears::random(seed, inputs, rows);
        let (device, _) = devices()[0];
        let together = case.run(device);
        for row in [0, 1, rows / 2, rows - 1] {
            let among = &together[row * case.outputs..(row + 1) * case.outputs];
            assert_eq!(bits(&case.only(row).run(device)), bits(among), "seed {seed}, row {row}");
        }
    }
}

/// Asserts that each row has the outputs that it should have, and no others.
fn assert_heads_agree(what: &str, case: &LinearsCase, found: &[f32], expected: &[f32], limit: f64) {
    let rows = found.chunks(case.stride).zip(expected.chunks(case.stride));
    for (row, (found, expected)) in rows.enumerate() {
        let outputs = expected.iter().position(|&value| value == 7.0).unwrap_or(case.stride);
        assert_ratio(&format!("{what}, row {row}"), outputs, &found[..outputs], &expected[..outputs], limit);
        assert_eq!(found[outputs..], expected[outputs..], "{what}, row {row}");
    }
}

#[test]
fn heads_with_every_kind_of_delta_agree_with_the_reference() {
    for (seed, (inputs, rows)) in (0..).zip([(96, 5), (64, 1), (160, 17), (100, 9), (33, 3), (199, 23)]) {
        let case = LinearsCase::random(seed, inputs, rows);
        let expected = case.run(oracle());
        let (device, limit) = devices()[seed as usize % 2];
        assert_heads_agree(&format!("seed {seed}, {device:?}"), &case, &case.run(device), &expected, limit);
    }
}

#[test]
fn the_logits_of_one_linear_are_scaled_and_bounded_as_the_reference_does_it() {
    let scaled = |group| HeadSpec { multiplier: 0.25, cap: Some(1.5), ..HeadSpec::of(group) };
    let heads = (0..).map(|seed| LinearsCase::random(seed, 96, 5));
    for case in heads.filter(|case| case.members.len() == 1).take(2) {
        let expected = case.head(oracle(), scaled, 7.0);
        let (device, limit) = devices()[0];
        assert_heads_agree("capped", &case, &case.head(device, scaled, 7.0), &expected, limit);
    }
}

/// Roundings to the 16-bit type that may be in one term of an output under any delta: of x, of A, of B, and, as sums in f32 add
/// their own, one more for all of those.
const ROUNDINGS: f64 = 4.0;

/// Random heads.
fn random_heads(count: u32) -> impl Iterator<Item = LinearsCase> {
    (0..u64::from(support::cases(count).cases)).map(|seed| {
        let mut rng = Rng(seed);
        let (inputs, rows) = (32 + rng.below(168), 2 + rng.below(22));
        LinearsCase::random(seed, inputs, rows)
    })
}

/// Heads of any number of outputs, whose values may cancel: each output has the error of what was added.
#[test]
fn random_heads_are_within_the_rounding_of_their_terms() {
    for case in random_heads(8) {
        let (expected, magnitudes) = (case.run(oracle()), case.magnitudes());
        for ((device, _), unit) in devices().into_iter().zip([2f64.powi(-11), 2f64.powi(-8)]) {
            let found = case.run(device);
            for (at, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let (error, bound) =
                    ((f64::from(*found) - f64::from(*expected)).abs(), ROUNDINGS * unit * magnitudes[at]);
                let (row, output) = (at / case.stride, at % case.stride);
                assert!(
                    error <= bound,
                    "{device:?}, row {row}, output {output}: {found} for {expected}, {error:e} beyond {bound:e}"
                );
            }
        }
    }
}

#[test]
fn a_row_of_a_random_head_has_the_same_bits_alone() {
    for case in random_heads(2) {
        let together = case.run(cuda());
        let rows = together.len() / case.stride;
        for row in [0, rows - 1] {
            let among = &together[row * case.stride..(row + 1) * case.stride];
            assert_eq!(bits(&case.only(row).run(cuda())), bits(among));
        }
    }
}

#[test]
fn a_row_of_a_head_has_the_same_bits_alone() {
    for (seed, (inputs, rows)) in (10..).zip([(96, 12), (130, 23), (33, 2)]) {
        let case = LinearsCase::random(seed, inputs, rows);
        let (device, _) = devices()[0];
        let together = case.run(device);
        for row in [0, rows - 1] {
            let among = &together[row * case.stride..(row + 1) * case.stride];
            assert_eq!(bits(&case.only(row).run(device)), bits(among), "seed {seed}, row {row}");
        }
    }
}

#[test]
fn norms_gates_and_embeddings_that_are_read_back_agree_with_the_reference() {
    let (width, rows) = (300, 5);
    let mut rng = Rng(3);
    let (x, weight) = (rng.normals(rows * width, 2.0), rng.normals(width, 1.0));
    let gate_up = rng.normals(rows * 2 * width, 3.0);
    let table = Tensor::new(DType::BF16, &[50, width], &rng.normals(50 * width, 1.0));
    let tokens: Vec<u32> = (0..rows).map(|_| rng.below(50) as u32).collect();
    let run = |device: Device| {
        let mut harness = Harness::open(device);
        let ((weight, _), (table, _)) = (harness.norm_weight(&weight), harness.table(&table));
        let (x, gate_up) = (harness.put(width, &x), harness.put(2 * width, &gate_up));
        let out = [(); 3].map(|()| harness.buffer(width, rows));
        let base = AdapterBatch::default();
        harness
            .compute()
            .norm(&NormSpec::rms(weight, 1e-5), x, rows, &base, out[0], Write::Replace)
            .expect("the norm runs");
        harness.compute().activate(Activation::Silu, MlpShape::Gated, gate_up, rows, out[1]).expect("the gate runs");
        harness.compute().embed(table, &tokens, 1.25, &base, out[2]).expect("tokens embed");
        out.map(|out| harness.get(out, width, rows))
    };
    let expected = run(oracle());
    for (device, limit) in devices() {
        let found = run(device);
        assert_ratio("norm", width, &found[0], &expected[0], 1e-6);
        assert_ratio("gate", width, &found[1], &expected[1], limit);
        assert_eq!(bits(&found[2]), bits(&expected[2]));
    }
}

#[test]
fn activations_of_every_kind_agree_with_the_reference() {
    let (width, rows) = (300, 5);
    let x = Rng(4).normals(rows * 2 * width, 3.0);
    for activation in [Activation::Silu, Activation::GeluTanh, Activation::Gelu] {
        for (shape, inputs) in [(MlpShape::Gated, 2 * width), (MlpShape::Plain, width)] {
            let run = |device: Device| {
                let mut harness = Harness::open(device);
                let (x, out) = (harness.put(inputs, &x[..rows * inputs]), harness.buffer(width, rows));
                harness.compute().activate(activation, shape, x, rows, out).expect("the activation runs");
                harness.get(out, width, rows)
            };
            let expected = run(oracle());
            for (device, limit) in devices() {
                assert_ratio(&format!("{activation:?}, {shape:?}"), width, &run(device), &expected, limit);
            }
        }
    }
}

#[test]
fn a_chain_in_an_order_that_does_not_fuse_agrees_with_the_reference() {
    // Two products are pending at once, one is normed, and one is added to.
    let (width, rows) = (70, 4);
    let mut rng = Rng(5);
    let mut member = |bias: bool| {
        let values = rng.normals(width * width, (width as f32).powf(-0.5));
        let bias = bias.then(|| Tensor::new(DType::F16, &[width], &rng.normals(width, 1.0)));
        Member { weight: Weight::Dense(Tensor::new(DType::F16, &[width, width], &values)), bias }
    };
    let members = [member(true), member(false)];
    let (x, gamma) = (Rng(6).normals(rows * width, 1.0), Rng(7).normals(width, 1.0));
    let low = Change::low(0, random_low(&mut Rng(8), DType::F16, 5, width, width));
    let batch = route(&[vec![(SlotId(0), 1.0)], vec![], vec![(SlotId(0), -0.5)], vec![]]);
    let run = |device: Device| {
        let mut harness = Harness::open(device);
        let (first, sites) = harness.group(&members[..1]);
        let (second, _) = harness.group(&members[1..]);
        let (norm, _) = harness.norm_weight(&gamma);
        harness.upload(SlotId(0), &sites, std::slice::from_ref(&low)).expect("the adapter uploads");
        let x = harness.put(width, &x);
        let [a, b, c] = [(); 3].map(|()| harness.buffer(width, rows));
        let compute = harness.compute();
        compute.linear(first, x, rows, &batch, a, Write::Replace).expect("runs");
        compute.linear(first, x, rows, &AdapterBatch::default(), b, Write::Replace).expect("runs");
        compute.norm(&NormSpec::rms(norm, 1e-5), a, rows, &batch, c, Write::Replace).expect("runs");
        compute.linear(second, c, rows, &AdapterBatch::default(), b, Write::ADD).expect("runs");
        compute.norm(&NormSpec::rms(norm, 1e-5), b, rows, &batch, c, Write::Replace).expect("runs");
        // What is added is the norm of a norm that nobody has read yet; then of what the sum has become.
        compute.norm(&NormSpec::rms(norm, 1e-5), c, rows, &batch, b, Write::Add { factor: 0.5 }).expect("runs");
        compute.norm(&NormSpec::rms(norm, 1e-5), b, rows, &batch, a, Write::ADD).expect("runs");
        [a, b, c].map(|buffer| harness.get(buffer, width, rows))
    };
    let expected = run(oracle());
    let (device, limit) = devices()[0];
    for (index, (found, expected)) in run(device).iter().zip(&expected).enumerate() {
        assert_ratio(&format!("buffer {index}"), width, found, expected, limit);
    }
}

#[test]
fn a_norm_whose_input_has_changed_is_an_error_and_not_a_wrong_value() {
    let (device, _) = devices()[0];
    let mut harness = Harness::open(device);
    let (norm, _) = harness.norm_weight(&[1.0; 8]);
    let (x, out) = (harness.put(8, &[1.0; 8]), harness.buffer(8, 1));
    harness
        .compute()
        .norm(&NormSpec::rms(norm, 1e-5), x, 1, &AdapterBatch::default(), out, Write::Replace)
        .expect("the norm is noted");
    harness.compute().write_rows(x, 0, &[2.0; 8]).expect("rows fit");
    let error = harness.compute().read_rows(out, &mut [0.0; 8]).unwrap_err();
    assert_eq!(error.code(), ErrorCode::Internal);
}

#[test]
fn a_normed_value_beyond_half_precision_names_its_row_alone_and_among_others() {
    let (device, _) = devices()[0];
    let mut harness = Harness::open(device);
    let ones = Tensor::new(DType::F16, &[4, 8], &[1.0; 32]);
    let (group, _) = harness.group(&[Member { weight: Weight::Dense(ones), bias: None }]);
    let mut weight = [1.0; 8];
    weight[0] = 3e4;
    let (norm, _) = harness.norm_weight(&weight);
    // Normed, the first value of `peak` is the root of 8, and of `plain` 1.
    let (plain, mut peak) = ([1.0f32; 8], [0.0; 8]);
    peak[0] = 1.0;
    for (rows, reported) in [(vec![peak], vec![0]), (vec![plain, peak, plain], vec![1]), (vec![plain; 3], vec![])] {
        let (x, count) = (harness.put(8, &rows.concat()), rows.len());
        let (normed, y) = (harness.buffer(8, count), harness.buffer(4, count));
        let (compute, batch) = (harness.compute(), AdapterBatch::default());
        compute.norm(&NormSpec::rms(norm, 1e-5), x, count, &batch, normed, Write::Replace).expect("the norm is noted");
        compute.linear(group, normed, count, &batch, y, Write::Replace).expect("the linear runs");
        assert!(compute.take_kv_overflows().expect("reads").is_empty());
        assert_eq!(compute.take_activation_overflows().expect("reads"), reported, "{count} rows");
    }
}

#[test]
fn a_value_beyond_half_precision_names_its_row() {
    let (device, _) = devices()[0];
    let mut harness = Harness::open(device);
    let ones = Tensor::new(DType::F16, &[4, 8], &[1.0; 32]);
    let (group, _) = harness.group(&[Member { weight: Weight::Dense(ones), bias: None }]);
    let mut x = vec![1.0; 3 * 8];
    x[8] = 1e5;
    let (x, y) = (harness.put(8, &x), harness.buffer(4, 3));
    let compute = harness.compute();
    compute.linear(group, x, 3, &AdapterBatch::default(), y, Write::Replace).expect("the linear runs");
    let mut values = vec![0.0; 12];
    compute.read_rows(y, &mut values).expect("rows are there");
    assert!(compute.take_kv_overflows().expect("reads").is_empty());
    assert_eq!(compute.take_activation_overflows().expect("reads"), [1]);
    assert!(values[..4].iter().chain(&values[8..]).all(|&value| value == 8.0), "{values:?}");
    assert!(values[4..8].iter().all(|value| !value.is_finite()), "{values:?}");
}

#[test]
fn a_wider_head_than_the_buffer_is_an_error() {
    let (device, _) = devices()[0];
    let mut harness = Harness::open(device);
    let ones = |outputs: usize| Tensor::new(DType::F16, &[outputs, 8], &vec![1.0; outputs * 8]);
    let (group, sites) = harness.group(&[Member { weight: Weight::Dense(ones(2)), bias: None }]);
    let wider = Change { weight: Some(ones(3)), ..Change::default() };
    harness.upload(SlotId(0), &sites, &[wider]).expect("the adapter uploads");
    let (x, y) = (harness.put(8, &[1.0; 8]), harness.buffer(2, 1));
    let batch = route(&[vec![(SlotId(0), 1.0)]]);
    let compute = harness.compute();
    let error = compute.head(&HeadSpec::of(group), x, LogitRows::all(&[0], &batch), &mut [0.0; 2], 2).unwrap_err();
    assert_eq!(error.code(), ErrorCode::Internal);
    let error = compute.linear(group, x, 1, &batch, y, Write::Replace).unwrap_err();
    assert_eq!(error.code(), ErrorCode::Internal);
    let mut logits = [0.0; 8];
    let batch = route(&[vec![(SlotId(0), 1.0)], vec![]]);
    compute.head(&HeadSpec::of(group), x, LogitRows::all(&[0, 0], &batch), &mut logits, 4).expect("the head runs");
    assert_eq!(logits, [8.0, 8.0, 8.0, 0.0, 8.0, 8.0, 0.0, 0.0]);
}

#[test]
fn a_replaced_weight_beyond_the_16_bit_type_is_refused_by_name() {
    let mut harness = Harness::open(cuda());
    let ones = Tensor::new(DType::F16, &[4, 8], &[1.0; 32]);
    let (_, sites) = harness.group(&[Member { weight: Weight::Dense(ones), bias: None }]);
    let beyond_f16 = Tensor::new(DType::BF16, &[4, 8], &[1e5; 32]);
    match harness.upload(SlotId(0), &sites, &[Change { weight: Some(beyond_f16), ..Change::default() }]) {
        Err(PrepareError::Failed(error)) => {
            assert_eq!(error.code(), ErrorCode::AdapterFeatureUnsupported);
            assert!(error.to_string().contains("beyond the 16-bit type"), "{error}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_empty_slot_is_an_error_and_an_adapter_is_gone_when_it_is_dropped() {
    let (device, _) = devices()[0];
    let mut harness = Harness::open(device);
    let ones = Tensor::new(DType::F16, &[4, 8], &[1.0; 32]);
    let (group, sites) = harness.group(&[Member { weight: Weight::Dense(ones), bias: None }]);
    let low = Change::low(0, random_low(&mut Rng(1), DType::F16, 2, 4, 8));
    let bytes = harness.upload(SlotId(3), &sites, &[low]).expect("the adapter uploads");
    assert!(bytes > 0 && harness.memory().adapters_bytes == bytes);
    harness.compute().drop_adapter(SlotId(3));
    assert_eq!(harness.memory().adapters_bytes, 0);
    let (x, y) = (harness.put(8, &[1.0; 8]), harness.buffer(4, 1));
    let batch = route(&[vec![(SlotId(3), 1.0)]]);
    let error = harness.compute().linear(group, x, 1, &batch, y, Write::Replace).unwrap_err();
    assert_eq!(error.code(), ErrorCode::Internal);
}
