//! Arithmetic of f32 and f64: against f64, against integers in units of 2^-90, and by the rules of the PTX ISA.
use super::fixed::{self, F32, MODES};
use super::values::{doubles, floats, moderate_floats};
use super::{check, check_float};

fn single(bits: u64) -> f32 {
    f32::from_bits(bits as u32)
}

fn bits(value: f32) -> u64 {
    u64::from(value.to_bits())
}

fn flush(value: f32) -> f32 {
    if value.is_subnormal() { 0f32.copysign(value) } else { value }
}

fn saturate(value: f32) -> f32 {
    // NaN and -0 become +0
    if value > 0.0 { value.min(1.0) } else { 0.0 }
}

#[test]
fn results_are_rounded_to_the_nearest_even() {
    // f64 has more than twice the places of f32: its rounding does no harm
    let inputs = floats();
    type Operation = fn(f64, f64) -> f64;
    let operations: [(&str, Operation); 4] =
        [("add", |a, b| a + b), ("sub", |a, b| a - b), ("mul", |a, b| a * b), ("div.rn", |a, b| a / b)];
    for (name, operation) in operations {
        let plain = |a: u64, b: u64| operation(f64::from(single(a)), f64::from(single(b))) as f32;
        check_float(&format!("{name}.f32"), [32; 2], 32, &inputs, |[a, b]| bits(plain(a, b)));
        check_float(&format!("{name}.ftz.f32"), [32; 2], 32, &inputs, |[a, b]| {
            bits(flush(plain(bits(flush(single(a))), bits(flush(single(b))))))
        });
        if name != "div.rn" {
            check_float(&format!("{name}.sat.f32"), [32; 2], 32, &inputs, |[a, b]| bits(saturate(plain(a, b))));
        }
    }
}

#[test]
fn every_rounding_mode_rounds_once() {
    let exact = |value: u64| fixed::from_f64(f64::from(single(value)));
    let signed_zero = |result: i128, mode: &str, both_negative: bool, any_negative: bool| {
        if result != 0 {
            bits(fixed::round(result, mode, F32) as f32)
        } else {
            // what cancels is +0, or -0 when rounding down; equal signs are kept
            bits(if both_negative || any_negative && mode == "rm" { -0.0 } else { 0.0 })
        }
    };
    for mode in MODES {
        let inputs = moderate_floats();
        check(&format!("add.{mode}.f32"), [32; 2], 32, &inputs, |[a, b]| {
            let negative = [a, b].map(|value| value >> 31 != 0);
            signed_zero(exact(a) + exact(b), mode, negative == [true; 2], negative.contains(&true))
        });
        check(&format!("sub.{mode}.f32"), [32; 2], 32, &inputs, |[a, b]| {
            let negative = [a >> 31 != 0, b >> 31 == 0];
            signed_zero(exact(a) - exact(b), mode, negative == [true; 2], negative.contains(&true))
        });
        check(&format!("mul.{mode}.f32"), [32; 2], 32, &inputs, |[a, b]| {
            let negative = (a ^ b) >> 31 & 1 != 0;
            signed_zero(fixed::product(exact(a), exact(b)), mode, negative, false)
        });
        let inputs = moderate_floats();
        check(&format!("fma.{mode}.f32"), [32; 3], 32, &inputs, |[a, b, c]| {
            let negative = [(a ^ b) >> 31 & 1 != 0, c >> 31 != 0];
            let sum = fixed::product(exact(a), exact(b)) + exact(c);
            signed_zero(sum, mode, negative == [true; 2], negative.contains(&true))
        });
    }
}

#[test]
fn fused_multiply_add_flushes_and_saturates() {
    let exact = |value: u64| fixed::from_f64(f64::from(single(value)));
    let inputs = moderate_floats();
    check("fma.rn.sat.f32", [32; 3], 32, &inputs, |[a, b, c]| {
        bits(saturate(fixed::round(fixed::product(exact(a), exact(b)) + exact(c), "rn", F32) as f32))
    });
    // a subnormal addend is nothing, a subnormal factor makes nothing of the product
    let tiny = (0..512).map(|n| [n * 4001 % 0x80_0000, 0x3f80_0000, 0x8000_0000 | n]).collect::<Vec<_>>();
    check("fma.rn.ftz.f32", [32; 3], 32, &tiny, |_| 0);
    check("fma.rn.f32", [32; 3], 32, &tiny, |[a, _, c]| bits((f64::from(single(a)) + f64::from(single(c))) as f32));
    check("mad.rn.ftz.f32", [32; 3], 32, &tiny, |_| 0);
}

#[test]
fn minimum_and_maximum_prefer_numbers_unless_told_otherwise() {
    let nan = 0x7fff_ffff;
    let inputs = floats();
    // the order of bits with the sign turned round is the order of the values, -0 before +0
    let key = |value: f32| (value.to_bits() as i32) ^ ((value.to_bits() as i32 >> 31) as u32 >> 1) as i32;
    for (name, takes_first) in [("min", true), ("max", false)] {
        let pick = move |a: f32, b: f32| {
            let first = if key(a) <= key(b) { [a, b] } else { [b, a] };
            bits(if takes_first { first[0] } else { first[1] })
        };
        let rule = move |a: f32, b: f32| match (a.is_nan(), b.is_nan()) {
            (true, true) => nan,
            (true, false) => bits(b),
            (false, true) => bits(a),
            _ => pick(a, b),
        };
        check(&format!("{name}.f32"), [32; 2], 32, &inputs, |[a, b]| rule(single(a), single(b)));
        check(&format!("{name}.ftz.f32"), [32; 2], 32, &inputs, |[a, b]| rule(flush(single(a)), flush(single(b))));
        check(&format!("{name}.NaN.f32"), [32; 2], 32, &inputs, |[a, b]| {
            if single(a).is_nan() || single(b).is_nan() { nan } else { pick(single(a), single(b)) }
        });
    }
}

#[test]
fn signs_are_changed_and_copied() {
    let inputs = floats();
    check("neg.f32", [32], 32, &inputs, |[a]| a ^ 0x8000_0000);
    check("abs.f32", [32], 32, &inputs, |[a]| a & 0x7fff_ffff);
    check_float("neg.ftz.f32", [32], 32, &inputs, |[a]| bits(flush(single(a))) ^ 0x8000_0000);
    check_float("abs.ftz.f32", [32], 32, &inputs, |[a]| bits(flush(single(a))) & 0x7fff_ffff);
    check("copysign.f32", [32; 2], 32, &floats(), |[a, b]| a & 0x8000_0000 | b & 0x7fff_ffff);
    let inputs = doubles();
    check("neg.f64", [64], 64, &inputs, |[a]| a ^ 1 << 63);
    check("abs.f64", [64], 64, &inputs, |[a]| a & !(1 << 63));
    check("copysign.f64", [64; 2], 64, &doubles(), |[a, b]| a & 1 << 63 | b & !(1 << 63));
}

#[test]
fn reciprocals_and_roots_are_rounded_once() {
    let inputs = floats();
    let of = |function: fn(f64) -> f64| move |value: f32| function(f64::from(value)) as f32;
    type Function = fn(f64) -> f64;
    let functions: [(&str, Function); 3] =
        [("rcp.rn", |a| 1.0 / a), ("sqrt.rn", f64::sqrt), ("rsqrt.approx", |a| 1.0 / a.sqrt())];
    for (name, function) in functions {
        check_float(&format!("{name}.f32"), [32], 32, &inputs, |[a]| bits(of(function)(single(a))));
        check_float(&format!("{name}.ftz.f32"), [32], 32, &inputs, |[a]| bits(flush(of(function)(flush(single(a))))));
    }
}

/// Checks that a function is within a relative error of that of f64, or within an absolute one near zero.
fn check_close(opcode: &str, function: fn(f64) -> f64, range: std::ops::Range<f32>) {
    let inputs = floats::<1>().into_iter().filter(|[a]| range.contains(&single(*a))).collect::<Vec<_>>();
    let close = |got: u64, want: u64| {
        let (got, want) = (f64::from(single(got)), f64::from(single(want)));
        (got - want).abs() <= 2e-7 * want.abs() + 2e-7
    };
    super::check_matching(opcode, [32], 32, &inputs, |[a]| bits(function(f64::from(single(a))) as f32), close);
}

#[test]
fn approximate_functions_are_close() {
    check_close("ex2.approx.ftz.f32", f64::exp2, -100.0..100.0);
    check_close("ex2.approx.f32", f64::exp2, -100.0..100.0);
    check_close("lg2.approx.f32", f64::log2, 1e-30..1e30);
    check_close("sin.approx.f32", f64::sin, -6.0..6.0);
    check_close("cos.approx.ftz.f32", f64::cos, -6.0..6.0);
    check_close("tanh.approx.f32", f64::tanh, -200.0..200.0);
    check_close("rcp.approx.ftz.f32", f64::recip, 1e-30..1e30);
    check_close("sqrt.approx.f32", f64::sqrt, 0.0..1e30);
    let specials = [0x7f80_0000, 0xff80_0000, 0, 0x8000_0000].repeat(64).into_iter().map(|a| [a]).collect::<Vec<_>>();
    check("ex2.approx.f32", [32], 32, &specials, |[a]| match a {
        0x7f80_0000 => a,
        0xff80_0000 => 0,
        _ => 0x3f80_0000,
    });
    check_float("lg2.approx.f32", [32], 32, &specials, |[a]| match a {
        0x7f80_0000 => a,
        0xff80_0000 => 0x7fff_ffff,
        _ => 0xff80_0000,
    });
    check_float("rsqrt.approx.f32", [32], 32, &specials, |[a]| match a {
        0x7f80_0000 => 0,
        0xff80_0000 => 0x7fff_ffff,
        _ => 0x7f80_0000 | a,
    });
}

#[test]
fn doubles_are_those_of_the_host() {
    let inputs = doubles();
    type Operation = fn(f64, f64) -> f64;
    let operations: [(&str, Operation); 6] = [
        ("add.f64", |a, b| a + b),
        ("sub.rn.f64", |a, b| a - b),
        ("mul.f64", |a, b| a * b),
        ("div.rn.f64", |a, b| a / b),
        ("min.f64", f64::min),
        ("max.f64", f64::max),
    ];
    for (name, operation) in operations {
        let zero_signs_differ = |a: u64, b: u64| (a | b) << 1 == 0 && a != b;
        let inputs = inputs.iter().copied().filter(|[a, b]| !zero_signs_differ(*a, *b)).collect::<Vec<_>>();
        check_float(name, [64; 2], 64, &inputs, |[a, b]| operation(f64::from_bits(a), f64::from_bits(b)).to_bits());
    }
    check_float("fma.rn.f64", [64; 3], 64, &doubles(), |[a, b, c]| {
        f64::from_bits(a).mul_add(f64::from_bits(b), f64::from_bits(c)).to_bits()
    });
    check_float("sqrt.rn.f64", [64], 64, &doubles(), |[a]| f64::from_bits(a).sqrt().to_bits());
    check_float("rcp.rn.f64", [64], 64, &doubles(), |[a]| f64::from_bits(a).recip().to_bits());
}
