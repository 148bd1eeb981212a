//! Quantized linears whose activations are rounded to int8, against sums in f64 of activations rounded here: every width and group
//! size, on every instruction set.

use exlora::adapter::batch::AdapterBatch;
use exlora::backend::cpu::{CpuOptions, Isa, open};
use exlora::backend::{ActivationDType, Write};
use exlora::quant::QuantGroup;
use support::Rng;
use support::harness::{Harness, Member, Weight, bits, isas};
use support::random_weights::RandomCodes;

/// The product of some rows with a linear, `[rows, outputs]`.
fn multiply(isa: Isa, threads: usize, weight: &RandomCodes, inputs: usize, x: &[f32]) -> Vec<f32> {
    let options = CpuOptions { isa: Some(isa), threads: Some(threads), activations: ActivationDType::Int8 };
    let mut harness = Harness::with(open(&options).expect("the backend opens"));
    let (group, _) = harness.group(&[Member { weight: Weight::Coded(weight.clone()), bias: None }]);
    let (rows, outputs) = (x.len() / inputs, weight.weights().len() / inputs);
    let (x, y) = (harness.put(inputs, x), harness.buffer(outputs, rows));
    harness.compute().linear(group, x, rows, &AdapterBatch::default(), y, Write::Replace).expect("the linear runs");
    harness.get(y, outputs, rows)
}

/// Activations rounded to 127 steps either way of the largest of each 32 of a group.
fn rounded(x: &[f32], group: usize) -> Vec<f64> {
    x.chunks(group)
        .flat_map(|group| group.chunks(32))
        .flat_map(|block| {
            let largest = block.iter().fold(0f32, |largest, x| largest.max(x.abs()));
            let step = move |x: &f32| f64::from((x * (127.0 / largest)).round_ties_even());
            block.iter().map(move |x| step(x) * f64::from(largest) / 127.0)
        })
        .collect()
}

#[test]
fn every_width_and_group_size_multiplies_the_rounded_activations_in_every_batch() {
    let mut rng = Rng(1);
    for bits_of_code in [2, 3, 4, 5, 6, 8] {
        for (size, inputs) in [(32, 96), (64, 200), (128, 300), (48, 130), (1000, 417)] {
            let groups = (0..inputs)
                .step_by(size)
                .map(|first| QuantGroup { bits: bits_of_code, inputs: size.min(inputs - first) });
            let outputs = 1 + rng.below(70);
            let weight = RandomCodes::new(&mut rng, outputs, groups.collect(), true, false);
            let matrix = weight.weights();
            let x = rng.normals(20 * inputs, 1.0);
            let mut in_integers: Option<Vec<f32>> = None;
            for isa in isas() {
                let what = format!("{isa}: {bits_of_code} bits of {size}");
                let y = multiply(isa, 1, &weight, inputs, &x);
                for (x, y) in x.chunks_exact(inputs).zip(y.chunks_exact(outputs)) {
                    let x = rounded(x, size);
                    for (w, &found) in matrix.chunks_exact(inputs).zip(y) {
                        let expected: f64 = w.iter().zip(&x).map(|(w, x)| w * x).sum();
                        let allowed = 3e-6 * w.iter().zip(&x).map(|(w, x)| (w * x).abs()).sum::<f64>();
                        assert!((f64::from(found) - expected).abs() <= allowed, "{what}: {found} for {expected}");
                    }
                }
                for rows in 1..20 {
                    let found = multiply(isa, 1 + rows % 2, &weight, inputs, &x[..rows * inputs]);
                    assert_eq!(bits(&found), bits(&y[..rows * outputs]), "{what}, {rows} rows");
                }
                if isa != Isa::Scalar {
                    assert_eq!(bits(&y), bits(in_integers.get_or_insert_with(|| y.clone())), "{what}");
                }
            }
        }
    }
}

#[test]
fn ordered_inputs_are_rounded_in_the_order_of_their_groups() {
    let (mut rng, inputs, outputs) = (Rng(2), 256, 40);
    let groups = vec![QuantGroup { bits: 4, inputs: 128 }; 2];
    let weight = RandomCodes::new(&mut rng, outputs, groups, true, true);
    // Multiples of one step: whatever shares it, nothing is lost.
    let x: Vec<f32> = (0..3 * inputs).map(|_| rng.below(2) as f32 * 254.0 - 127.0).collect();
    for isa in isas() {
        let y = multiply(isa, 2, &weight, inputs, &x);
        for (x, y) in x.chunks_exact(inputs).zip(y.chunks_exact(outputs)) {
            for (w, &found) in weight.weights().chunks_exact(inputs).zip(y) {
                let expected: f64 = w.iter().zip(x).map(|(w, &x)| w * f64::from(x)).sum();
                let allowed = 1e-6 * 127.0 * w.iter().map(|w| w.abs()).sum::<f64>();
                assert!((f64::from(found) - expected).abs() <= allowed, "{isa}: {found} for {expected}");
            }
        }
    }
}

#[test]
fn nothing_overflows_at_the_largest_codes_zeros_and_activations() {
    let inputs = 4096;
    for bits_of_code in [2, 3, 4, 5, 6, 8] {
        for zero in [0, 1 << bits_of_code] {
            let groups = vec![QuantGroup { bits: bits_of_code, inputs }];
            let weight = RandomCodes::largest(16, groups, zero);
            for (isa, x) in isas().flat_map(|isa| [(isa, 127.0), (isa, -127.0)]) {
                let y = multiply(isa, 2, &weight, inputs, &vec![x; inputs]);
                for (w, &found) in weight.weights().chunks_exact(inputs).zip(&y) {
                    let expected = w.iter().sum::<f64>() * f64::from(x);
                    let allowed = 3e-6 * 127.0 * w.iter().map(|w| w.abs()).sum::<f64>() + 1e-6;
                    assert!(
                        (f64::from(found) - expected).abs() <= allowed,
                        "{isa}: {bits_of_code} bits: {found} for {expected}"
                    );
                }
            }
        }
    }
}

#[test]
fn an_infinity_or_nan_touches_its_own_row_only() {
    let (mut rng, inputs) = (Rng(5), 160);
    let weight = RandomCodes::new(&mut rng, 40, vec![QuantGroup { bits: 4, inputs: 32 }; 5], true, false);
    let clean = rng.normals(9 * inputs, 1.0);
    for isa in isas() {
        let expected = multiply(isa, 2, &weight, inputs, &clean);
        for value in [f32::INFINITY, f32::NAN] {
            let mut x = clean.clone();
            x[3 * inputs + 50] = value;
            let y = multiply(isa, 2, &weight, inputs, &x);
            assert!(y[3 * 40..4 * 40].iter().all(|y| y.is_nan()), "{isa}: {value}");
            assert_eq!(bits(&y[..3 * 40]), bits(&expected[..3 * 40]));
            assert_eq!(bits(&y[4 * 40..]), bits(&expected[4 * 40..]));
        }
    }
}
