//! Arithmetic of f16 and bf16 against f64 rounded by the crate `half`, and against integers in units of 2^-90.
use half::{bf16, f16};

use super::values::{all_halves, halves};
use super::{check, evaluate};

/// A format of 16 bits as the tests see it.
#[derive(Clone, Copy)]
struct Format {
    name: &'static str,
    to_f64: fn(u64) -> f64,
    /// An exact value, rounded once.
    round: fn(f64) -> u64,
    exponent_mask: u64,
}

const FORMATS: [Format; 2] = [
    Format {
        name: "f16",
        to_f64: |bits| f16::from_bits(bits as u16).to_f64(),
        round: |value| round(value, 10, -14, 65504.0, |value| f16::from_f64(value).to_bits()),
        exponent_mask: 0x7c00,
    },
    Format {
        name: "bf16",
        to_f64: |bits| bf16::from_bits(bits as u16).to_f64(),
        round: |value| round(value, 7, -126, bf16::MAX.to_f64(), |value| bf16::from_f64(value).to_bits()),
        exponent_mask: 0x7f80,
    },
];

/// Rounds by counting units in the last place; `encode` sees values that it need not round.
fn round(value: f64, mantissa_bits: i32, min_exponent: i32, max: f64, encode: fn(f64) -> u16) -> u64 {
    if value.is_nan() {
        return 0x7fff;
    }
    let exponent = if value == 0.0 || value.is_infinite() { 0.0 } else { value.abs().log2().floor() };
    let unit = 2f64.powi((exponent as i32).max(min_exponent) - mantissa_bits);
    let rounded = if value.is_infinite() { value } else { (value / unit).round_ties_even() * unit };
    u64::from(encode(if rounded.abs() > max { f64::INFINITY.copysign(value) } else { rounded.copysign(value) }))
}

impl Format {
    fn is_nan(self, bits: u64) -> bool {
        (self.to_f64)(bits).is_nan()
    }

    fn flush(self, bits: u64) -> u64 {
        if bits & self.exponent_mask == 0 { bits & 0x8000 } else { bits }
    }

    /// Checks an opcode on halves, and on packed pairs whose upper half has the inputs in reverse order.
    fn check<const N: usize>(self, modifiers: &str, inputs: &[[u64; N]], expected: impl Fn([u64; N]) -> u64) {
        let opcode = format!("{modifiers}.{}", self.name);
        check(&opcode, [16; N], 16, inputs, &expected);
        let pairs = inputs.iter().zip(inputs.iter().rev());
        let pairs = pairs.map(|(low, high)| std::array::from_fn(|source| high[source] << 16 | low[source]));
        check(&format!("{opcode}x2"), [32; N], 32, &pairs.collect::<Vec<[u64; N]>>(), |pair: [u64; N]| {
            expected(pair.map(|bits| bits >> 16)) << 16 | expected(pair.map(|bits| bits & 0xffff))
        });
    }
}

fn saturate(value: f64) -> f64 {
    if value > 0.0 { value.min(1.0) } else { 0.0 }
}

#[test]
fn sums_and_products_are_rounded_once() {
    for format in FORMATS {
        let Format { to_f64, round, .. } = format;
        let inputs = halves();
        // a sum of two bf16 need not fit f64: whether it is exact is seen from the part that is lost
        let sum = |a: f64, b: f64| {
            let sum = a + b;
            let (large, small) = if a.abs() > b.abs() { (a, b) } else { (b, a) };
            if sum.is_finite() && sum - large != small {
                // the small part only decides which way a tie goes
                let nudge = f64::from_bits(sum.to_bits() + 1) - sum;
                return sum + nudge.copysign(small);
            }
            sum
        };
        format.check("add", &inputs, |[a, b]| round(sum(to_f64(a), to_f64(b))));
        format.check("sub", &inputs, |[a, b]| round(sum(to_f64(a), -to_f64(b))));
        format.check("mul", &inputs, |[a, b]| round(to_f64(a) * to_f64(b)));
        format.check("mul.rn", &inputs, |[a, b]| round(to_f64(a) * to_f64(b)));
    }
}

#[test]
fn f16_saturates_to_zero_and_one() {
    let Format { to_f64, round, .. } = FORMATS[0];
    let inputs = halves();
    FORMATS[0].check("add.sat", &inputs, |[a, b]| round(saturate(to_f64(a) + to_f64(b))));
    FORMATS[0].check("sub.sat", &inputs, |[a, b]| round(saturate(to_f64(a) - to_f64(b))));
    FORMATS[0].check("mul.sat", &inputs, |[a, b]| round(saturate(to_f64(a) * to_f64(b))));
    FORMATS[0].check("fma.rn.sat", &halves(), |[a, b, c]| round(saturate(f16_fma(a, b, c))));
}

#[test]
fn f16_flushes_subnormal_sources_and_results() {
    let format = FORMATS[0];
    let Format { to_f64, round, .. } = format;
    let value = |bits: u64| to_f64(format.flush(bits));
    // small numbers, whose sums and products are subnormal
    let mut inputs = halves();
    inputs.extend(halves::<2>().iter().map(|pair| pair.map(|bits| bits & 0x8fff)));
    format.check("add.ftz", &inputs, |[a, b]| format.flush(round(value(a) + value(b))));
    format.check("sub.ftz", &inputs, |[a, b]| format.flush(round(value(a) - value(b))));
    format.check("mul.ftz", &inputs, |[a, b]| format.flush(round(value(a) * value(b))));
    format.check("mul.ftz.sat", &inputs, |[a, b]| format.flush(round(saturate(value(a) * value(b)))));
    format.check("neg.ftz", &all_halves(), |[a]| if format.is_nan(a) { 0x7fff } else { format.flush(a) ^ 0x8000 });
    format.check("abs.ftz", &all_halves(), |[a]| if format.is_nan(a) { 0x7fff } else { format.flush(a) & 0x7fff });
    let mut inputs = halves();
    inputs.extend(halves::<3>().iter().map(|triple| triple.map(|bits| bits & 0x8fff)));
    format.check("fma.rn.ftz", &inputs, |[a, b, c]| {
        format.flush(round(f16_fma(format.flush(a), format.flush(b), format.flush(c))))
    });
}

/// a * b + c of f16, exact in f64 but for what cannot matter: the product has 22 bits, the sum at most 80 places.
fn f16_fma(a: u64, b: u64, c: u64) -> f64 {
    let [a, b, c] = [a, b, c].map(|bits| f16::from_bits(bits as u16).to_f64());
    let product = a * b;
    let sum = product + c;
    let (large, small) = if product.abs() > c.abs() { (product, c) } else { (c, product) };
    if sum.is_finite() && sum - large != small {
        return sum + (f64::from_bits(sum.to_bits() + 1) - sum).copysign(small);
    }
    sum
}

#[test]
fn fused_multiply_add_is_rounded_once() {
    let Format { round, .. } = FORMATS[0];
    FORMATS[0].check("fma.rn", &halves(), |[a, b, c]| round(f16_fma(a, b, c)));
    FORMATS[0].check("fma.rn.relu", &halves(), |[a, b, c]| {
        let sum = f16_fma(a, b, c);
        round(if sum > 0.0 || sum.is_nan() { sum } else { 0.0 })
    });
    // bf16 of moderate size in units of 2^-90
    let moderate = |bits: u64| bits & 0x807f | (127 - 15 + (bits >> 7 & 0xff) % 30) << 7;
    let inputs = halves::<3>().into_iter().map(|triple| triple.map(moderate)).collect::<Vec<_>>();
    let exact = |bits: u64| super::fixed::from_f64(bf16::from_bits(bits as u16).to_f64());
    let fma = |[a, b, c]: [u64; 3]| super::fixed::product(exact(a), exact(b)) + exact(c);
    let round = |sum: i128| u64::from(bf16::from_f64(super::fixed::round(sum, "rn", super::fixed::BF16)).to_bits());
    FORMATS[1].check("fma.rn", &inputs, |inputs| round(fma(inputs)));
    FORMATS[1].check("fma.rn.relu", &inputs, |inputs| round(fma(inputs).max(0)));
}

#[test]
fn minimum_and_maximum_prefer_numbers_unless_told_otherwise() {
    for format in FORMATS {
        let key = |bits: u64| if bits & 0x8000 != 0 { -(bits as i64 & 0x7fff) - 1 } else { bits as i64 };
        for (name, takes_first) in [("min", true), ("max", false)] {
            let pick = |a: u64, b: u64| if (key(a) <= key(b)) == takes_first { a } else { b };
            format.check(name, &halves(), |[a, b]| match (format.is_nan(a), format.is_nan(b)) {
                (true, true) => 0x7fff,
                (true, false) => b,
                (false, true) => a,
                _ => pick(a, b),
            });
            format.check(&format!("{name}.NaN"), &halves(), |[a, b]| {
                if format.is_nan(a) || format.is_nan(b) { 0x7fff } else { pick(a, b) }
            });
        }
    }
}

#[test]
fn signs_change_without_a_look_at_the_rest() {
    for format in FORMATS {
        format.check("neg", &all_halves(), |[a]| a ^ 0x8000);
        format.check("abs", &all_halves(), |[a]| a & 0x7fff);
    }
}

#[test]
fn approximate_functions_are_close_for_every_half() {
    for (opcode, function) in [("ex2.approx", f64::exp2 as fn(f64) -> f64), ("tanh.approx", f64::tanh)] {
        for format in FORMATS {
            let flush = if (opcode, format.name) == ("ex2.approx", "bf16") { ".ftz" } else { "" };
            let body =
                format!("cvt.u16.u64 %h0, %a; {opcode}{flush}.{} %h1, %h0; cvt.u64.u16 %result, %h1;", format.name);
            for ([a], got) in all_halves().into_iter().zip(evaluate(&body, &all_halves())) {
                let want = (format.round)(function((format.to_f64)(a)));
                let distance = (got as i64 - want as i64).abs();
                assert!(distance <= 1, "{opcode}.{} of {a:#x}: {got:#x}, want {want:#x}", format.name);
            }
        }
    }
}
