//! Quantized linears, in integers or floats as the instruction set is faster, against sums in f64: every width, group size and number
//! of rows, on every instruction set, and the values at which integers or floats could overflow.

use exlora::adapter::batch::AdapterBatch;
use exlora::backend::Write;
use exlora::backend::cpu::Isa;
use exlora::quant::QuantGroup;
use support::Rng;
use support::harness::{Harness, Member, Weight, bits, fast, isas};
use support::random_weights::RandomCodes;

/// The product of some rows with coded linears of a group, `[rows, outputs of all]`.
fn multiply(isa: Isa, threads: usize, weights: &[&RandomCodes], inputs: usize, x: &[f32]) -> Vec<f32> {
    let mut harness = Harness::open(fast(isa, threads));
    let member = |codes: &&RandomCodes| Member { weight: Weight::Coded((*codes).clone()), bias: None };
    let members: Vec<Member> = weights.iter().map(member).collect();
    let (group, _) = harness.group(&members);
    let (rows, outputs) = (x.len() / inputs, weights.iter().map(|w| w.weights().len() / inputs).sum());
    let (x, y) = (harness.put(inputs, x), harness.buffer(outputs, rows));
    harness.compute().linear(group, x, rows, &AdapterBatch::default(), y, Write::Replace).expect("the linear runs");
    harness.get(y, outputs, rows)
}

/// Asserts that a row is off by a few f32 roundings of `sum of |w| * (largest |x|)` at most, and one more for each span added.
fn assert_exact(what: &str, weights: &RandomCodes, x: &[f32], y: &[f32]) {
    let weights = weights.weights();
    let largest = x.iter().fold(0f64, |largest, &x| largest.max(f64::from(x).abs()));
    for (n, (w, &found)) in weights.chunks_exact(x.len()).zip(y).enumerate() {
        let expected: f64 = w.iter().zip(x).map(|(w, &x)| w * f64::from(x)).sum();
        let roundings = 2e-7 + 2f64.powi(-24) * (x.len() / 128) as f64;
        let allowed = roundings * largest * w.iter().map(|w| w.abs()).sum::<f64>();
        let error = (f64::from(found) - expected).abs();
        assert!(error <= allowed, "{what}: output {n}: {found} for {expected}, off by {error:e} of {allowed:e}");
    }
}

fn groups(bits: u8, inputs: usize, size: usize) -> Vec<QuantGroup> {
    (0..inputs).step_by(size).map(|first| QuantGroup { bits, inputs: size.min(inputs - first) }).collect()
}

#[test]
fn every_width_group_size_and_number_of_rows_agrees_with_f64_in_the_same_bits() {
    let mut rng = Rng(1);
    for bits_of_code in [2, 3, 4, 5, 6, 8] {
        for (size, inputs) in [(32, 96), (64, 200), (128, 300), (48, 130), (1000, 417)] {
            let mut weight = |half, shuffled| {
                let outputs = 1 + rng.below(70);
                RandomCodes::new(&mut rng, outputs, groups(bits_of_code, inputs, size), half, shuffled)
            };
            // Two linears of a group share an input, but not its order.
            let (plain, shuffled) = (weight(true, false), weight(false, true));
            let outputs = [&plain, &shuffled].map(|weight| weight.weights().len() / inputs);
            let width = outputs[0] + outputs[1];
            let x = rng.normals(20 * inputs, 1.0);
            let mut in_integers: Option<Vec<f32>> = None;
            for isa in isas() {
                let expected = multiply(isa, 1, &[&plain, &shuffled], inputs, &x);
                for (x, y) in x.chunks_exact(inputs).zip(expected.chunks_exact(width)) {
                    assert_exact(&format!("{isa}: {bits_of_code} bits of {size}"), &plain, x, &y[..outputs[0]]);
                    assert_exact(
                        &format!("{isa}: {bits_of_code} bits of {size}, ordered"),
                        &shuffled,
                        x,
                        &y[outputs[0]..],
                    );
                }
                for rows in 1..20 {
                    let found = multiply(isa, 1 + rows % 2, &[&plain, &shuffled], inputs, &x[..rows * inputs]);
                    assert_eq!(bits(&found), bits(&expected[..rows * width]), "{isa}: {bits_of_code} bits of {size}");
                }
                // Whatever multiplies in integers gives the same bits: nothing is rounded but the spans.
                if isa != Isa::Scalar && bits_of_code <= 5 {
                    let first = in_integers.get_or_insert_with(|| expected.clone());
                    assert_eq!(bits(&expected), bits(first), "{isa}: {bits_of_code} bits of {size}");
                }
            }
        }
    }
}

#[test]
fn nothing_overflows_at_the_largest_codes_zeros_and_digits() {
    let inputs = 4096;
    for bits_of_code in [2, 3, 4, 5, 6, 8] {
        for zero in [0, 1 << bits_of_code] {
            let weight = RandomCodes::largest(16, groups(bits_of_code, inputs, inputs), zero);
            // All digits 127; the lower ones -128; the same with the other sign.
            for steps in [0x7f_7f7f, -0x7e_8080, -0x7f_7f7f, 0x7e_8080] {
                let x = vec![steps as f32; inputs];
                for isa in isas() {
                    let y = multiply(isa, 2, &[&weight], inputs, &x);
                    assert_exact(&format!("{isa}: {bits_of_code} bits, zero {zero}, x {steps}"), &weight, &x, &y);
                }
            }
        }
    }
}

#[test]
fn an_outlier_among_the_activations_costs_no_more_than_in_f32() {
    let (inputs, outputs, rows) = (1024, 64, 8);
    let mut rng = Rng(3);
    let weight = RandomCodes::new(&mut rng, outputs, groups(4, inputs, 128), true, false);
    let exact = weight.weights();
    for outlier in [1.0, 1000.0] {
        let mut x = rng.normals(rows * inputs, 1.0);
        x.iter_mut().skip(77).step_by(inputs).for_each(|x| *x *= outlier);
        let y = multiply(Isa::detect(), 2, &[&weight], inputs, &x);
        let (mut error, mut error_of_f32) = (0f64, 0f64);
        for (x, y) in x.chunks_exact(inputs).zip(y.chunks_exact(outputs)) {
            for (w, &y) in exact.chunks_exact(inputs).zip(y) {
                let expected: f64 = w.iter().zip(x).map(|(w, &x)| w * f64::from(x)).sum();
                let in_f32 = w.iter().zip(x).fold(0f32, |sum, (&w, &x)| (w as f32).mul_add(x, sum));
                error += (f64::from(y) - expected).powi(2);
                error_of_f32 += (f64::from(in_f32) - expected).powi(2);
            }
        }
        assert!(error <= error_of_f32, "outlier of {outlier}: {error:e} in digits, {error_of_f32:e} in f32");
    }
}

#[test]
fn extreme_activations_stay_in_scale() {
    let mut rng = Rng(4);
    let weight = RandomCodes::new(&mut rng, 20, groups(4, 256, 128), true, false);
    for scale in [1e-25, 1e-37, 1e30, 1e36] {
        let x: Vec<f32> = rng.normals(256, 1.0).into_iter().map(|x| x * scale).collect();
        for isa in isas() {
            let y = multiply(isa, 1, &[&weight], 256, &x);
            if scale > 1e-30 {
                assert_exact(&format!("{isa}: {scale:e}"), &weight, &x, &y);
            } else {
                assert!(y.iter().all(|y| y.abs() < 1e-35), "{isa}: {scale:e}");
            }
        }
    }
}

#[test]
fn an_infinity_or_nan_is_never_clamped_and_touches_its_own_row_only() {
    let mut rng = Rng(5);
    let inputs = 160;
    let weight = RandomCodes::new(&mut rng, 40, groups(4, inputs, 32), true, false);
    let clean = rng.normals(9 * inputs, 1.0);
    for isa in isas() {
        let expected = multiply(isa, 2, &[&weight], inputs, &clean);
        for value in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
            let mut x = clean.clone();
            x[3 * inputs + 50] = value;
            let y = multiply(isa, 2, &[&weight], inputs, &x);
            assert!(y[3 * 40..4 * 40].iter().all(|y| !y.is_finite()), "{isa}: {value}");
            assert_eq!(bits(&y[..3 * 40]), bits(&expected[..3 * 40]));
            assert_eq!(bits(&y[4 * 40..]), bits(&expected[4 * 40..]));
        }
    }
}
