//! Operations on rows alone: norms of every kind and with what adapters bring, activations, how results are written, and what a
//! head does with its products.

use exlora::ErrorCode;
use exlora::adapter::batch::{AdapterBatch, SlotId};
use exlora::backend::{Activation, HeadSpec, MlpShape, NormKind, NormSpec, Write};
use exlora::sites::SitePart;
use exlora::tensor::DType;
use proptest::prelude::*;

use support::Rng;
use support::adapter_cases::LinearsCase;
use support::deltas::Change;
use support::harness::{Device, FLOATS, Harness, Tensor, assert_close, bits, fast, isas, oracle, route};

/// Rows, a norm, and what two adapters bring in its place.
struct NormCase {
    width: usize,
    x: Vec<f32>,
    /// What was in the output before.
    out: Vec<f32>,
    kind: NormKind,
    weight: Tensor,
    bias: Option<Tensor>,
    offset: f32,
    write: Write,
    changes: [Change; 2],
}

impl NormCase {
    fn random(seed: u64, width: usize, rows: usize) -> Self {
        let mut rng = Rng(seed);
        let rng = &mut rng;
        let dtype = FLOATS[rng.below(3)];
        let mut tensor = || Tensor::new(dtype, &[width], &rng.normals(width, 1.0));
        let [weight, bias, first, second, other] = [(); 5].map(|()| tensor());
        let bias = (rng.below(2) == 0).then_some(bias);
        // The second adapter brings the bias alone, where there is one.
        let changes = match bias {
            Some(_) => [
                Change { weight: Some(first), bias: Some(other), ..Change::default() },
                Change { bias: Some(second), ..Change::default() },
            ],
            None => [first, second].map(|weight| Change { weight: Some(weight), ..Change::default() }),
        };
        Self {
            width,
            // Far from 0, so that the mean matters.
            x: rng.normals(rows * width, 2.0).into_iter().map(|x| x + 3.0).collect(),
            out: rng.normals(rows * width, 1.0),
            kind: [NormKind::Rms, NormKind::Layer][rng.below(2)],
            weight,
            bias,
            offset: [0.0, 1.0][rng.below(2)],
            write: [Write::Replace, Write::ADD, Write::Add { factor: 0.22 }][rng.below(3)],
            changes,
        }
    }

    fn run(&self, device: Device, batch: &AdapterBatch) -> Vec<f32> {
        let mut harness = Harness::open(device);
        let (id, site) = harness.norm_with(&self.weight, self.bias.as_ref(), self.offset);
        for (slot, change) in self.changes.iter().enumerate() {
            harness.upload(SlotId(slot as u32), &[site], std::slice::from_ref(change)).expect("the adapter uploads");
        }
        let rows = self.x.len() / self.width;
        let (x, out) = (harness.put(self.width, &self.x), harness.put(self.width, &self.out));
        let spec = NormSpec { id, kind: self.kind, eps: 1e-5 };
        harness.compute().norm(&spec, x, rows, batch, out, self.write).expect("the norm runs");
        harness.get(out, self.width, rows)
    }

    /// What the norm is by its formula, in f64.
    fn formula(&self, row: usize, change: Option<&Change>) -> Vec<f64> {
        let widened = |tensor: &Tensor| tensor.view().to_f32().into_iter().map(f64::from).collect::<Vec<_>>();
        let weight = widened(change.and_then(|change| change.weight.as_ref()).unwrap_or(&self.weight));
        let bias = change.and_then(|change| change.bias.as_ref()).or(self.bias.as_ref()).map(widened);
        let range = row * self.width..(row + 1) * self.width;
        let x: Vec<f64> = self.x[range.clone()].iter().map(|&x| f64::from(x)).collect();
        let count = self.width as f64;
        let mean = if self.kind == NormKind::Layer { x.iter().sum::<f64>() / count } else { 0.0 };
        let square = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count;
        let (before, factor) = match self.write {
            Write::Replace => (0.0, 1.0),
            Write::Add { factor } => (1.0, f64::from(factor)),
        };
        x.iter()
            .enumerate()
            .map(|(i, x)| {
                let normed = (weight[i] + f64::from(self.offset)) * (x - mean) / (square + 1e-5).sqrt();
                let biased = normed + bias.as_ref().map_or(0.0, |bias| bias[i]);
                before * f64::from(self.out[range.start + i]) + factor * biased
            })
            .collect()
    }
}

proptest! {
    #![proptest_config(support::cases(48))]

    #[test]
    fn norms_are_their_formula_with_what_adapters_bring_and_rows_are_independent(
        seed: u64, width in 1usize..300, rows in 3usize..12
    ) {
        let case = NormCase::random(seed, width, rows);
        let mixture = |row: usize| match row % 3 {
            0 => Vec::new(),
            slot => vec![(SlotId(slot as u32 - 1), 1.0)],
        };
        let mixtures: Vec<_> = (0..rows).map(mixture).collect();
        for device in isas().map(|isa| fast(isa, 2)).chain([oracle()]) {
            let found = case.run(device, &route(&mixtures));
            for row in 0..rows {
                let range = row * width..(row + 1) * width;
                let change = (row % 3).checked_sub(1).map(|slot| &case.changes[slot]);
                let expected: Vec<f32> = case.formula(row, change).into_iter().map(|y| y as f32).collect();
                // Of few channels the deviations may be as small as the rounding of their mean.
                if width >= 8 || case.kind == NormKind::Rms {
                    assert_close("norm", width, &found[range.clone()], &expected, 1e-5);
                }
                let alone = NormCase {
                    x: case.x[range.clone()].to_vec(), out: case.out[range.clone()].to_vec(), changes: case.changes.clone(),
                    weight: case.weight.clone(), bias: case.bias.clone(), ..case
                };
                prop_assert_eq!(bits(&alone.run(device, &route(&[mixture(row)]))), bits(&found[range]));
            }
        }
    }

    #[test]
    fn activations_agree_with_the_oracle(seed: u64, width in 1usize..300, rows in 1usize..12) {
        let mut rng = Rng(seed);
        let activation = [Activation::Silu, Activation::GeluTanh, Activation::Gelu][rng.below(3)];
        let (shape, inputs) = [(MlpShape::Gated, 2 * width), (MlpShape::Plain, width)][rng.below(2)];
        let values = rng.normals(rows * inputs, 3.0);
        let run = |device: Device, values: &[f32]| {
            let mut harness = Harness::open(device);
            let rows = values.len() / inputs;
            let (x, out) = (harness.put(inputs, values), harness.buffer(width, rows));
            harness.compute().activate(activation, shape, x, rows, out).expect("the activation runs");
            harness.get(out, width, rows)
        };
        let expected = run(oracle(), &values);
        for isa in isas() {
            let found = run(fast(isa, 2), &values);
            assert_close("activation", width, &found, &expected, 1e-6);
            let last = run(fast(isa, 1), &values[(rows - 1) * inputs..]);
            prop_assert_eq!(bits(&last), bits(&found[(rows - 1) * width..]));
        }
    }

    #[test]
    fn what_is_added_is_what_would_replace_times_the_factor(seed: u64, inputs in 32usize..200, rows in 1usize..12) {
        // Low-rank parts, magnitudes, biases and replaced weights included.
        let case = LinearsCase::random(seed, inputs, rows);
        // With one member, an adapter may bring more outputs.
        prop_assume!(case.members.len() > 1);
        let before = Rng(seed ^ 5).normals(rows * case.stride, 1.0);
        for device in isas().map(|isa| fast(isa, 2)).chain([oracle()]) {
            let replaced = case.linear(device, &before, Write::Replace);
            for factor in [1.0, 0.22, -3.0] {
                let added = case.linear(device, &before, Write::Add { factor });
                let expected: Vec<f32> = before.iter().zip(&replaced).map(|(y, x)| y + factor * x).collect();
                prop_assert_eq!(bits(&added), bits(&expected));
            }
        }
    }

    #[test]
    fn a_greedy_row_has_the_largest_of_its_logits(seed: u64, inputs in 32usize..200, rows in 1usize..12, mask: u16) {
        let case = LinearsCase::random(seed, inputs, rows);
        let is_greedy: Vec<bool> = (0..rows).map(|row| mask >> row & 1 == 1).collect();
        let spec = |group| HeadSpec { multiplier: 0.25, cap: Some(1.5), ..HeadSpec::of(group) };
        let told = case.check_greedy(oracle(), spec, &is_greedy);
        prop_assert_eq!(told, is_greedy.iter().filter(|is_greedy| **is_greedy).count());
        // The CPU writes all logits, for whoever chooses to scan them.
        for isa in isas() {
            prop_assert_eq!(case.check_greedy(fast(isa, 2), spec, &is_greedy), 0);
        }
    }

    #[test]
    fn logits_are_scaled_and_bounded_with_what_adapters_add(seed: u64, inputs in 32usize..200, rows in 1usize..12) {
        let case = LinearsCase::random(seed, inputs, rows);
        let mut rng = Rng(seed ^ 6);
        let (multiplier, cap) = ([1.0, 0.25, 3.0][rng.below(3)], [None, Some(1.5), Some(30.0)][rng.below(3)]);
        for device in isas().map(|isa| fast(isa, 2)).chain([oracle()]) {
            let products = case.head(device, HeadSpec::of, f32::NAN);
            let logits = case.head(device, |group| HeadSpec { multiplier, cap, ..HeadSpec::of(group) }, f32::NAN);
            for (&product, &logit) in products.iter().zip(&logits) {
                if product.is_nan() {
                    // An output that the row does not have, which is not written.
                    prop_assert!(logit.is_nan());
                    continue;
                }
                let scaled = f64::from(multiplier * product);
                let expected = cap.map_or(scaled, |cap| f64::from(cap) * (scaled / f64::from(cap)).tanh());
                prop_assert!((f64::from(logit) - expected).abs() <= 1e-6 * expected.abs(), "{logit} for {expected}");
            }
        }
    }
}

#[test]
fn a_copy_of_a_norm_with_an_offset_is_known_as_the_base_s() {
    let (weight, other) =
        (Tensor::new(DType::BF16, &[3], &[0.5, -0.25, 0.125]), Tensor::new(DType::F32, &[3], &[1.5, 0.75, 1.125]));
    for device in [Device::CPU, oracle()] {
        let mut harness = Harness::open(device);
        let (_, site) = harness.norm_with(&weight, None, 1.0);
        let equals = |harness: &mut Harness, part, values: &Tensor| {
            harness.backend().adapters.equals_base(site, part, values.view())
        };
        assert!(equals(&mut harness, SitePart::Weight, &weight));
        assert!(!equals(&mut harness, SitePart::Weight, &other));
        assert!(!equals(&mut harness, SitePart::Bias, &weight));
    }
}

#[test]
fn a_norm_without_bias_takes_none_from_an_adapter() {
    let vector = Tensor::new(DType::F32, &[2], &[1.0, 2.0]);
    for device in [Device::CPU, oracle()] {
        let mut harness = Harness::open(device);
        let (_, site) = harness.norm_with(&vector, None, 0.0);
        let change = Change { bias: Some(vector.clone()), ..Change::default() };
        let refused = harness.upload(SlotId(0), &[site], &[change]);
        if let Err(exlora::backend::PrepareError::Failed(error)) = &refused {
            assert_eq!(error.code(), ErrorCode::Internal);
        } else {
            panic!("{refused:?}");
        }
    }
}
