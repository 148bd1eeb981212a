//! Integer arithmetic against i128.
use super::values::integers;
use super::{check, evaluate};

/// Bits as an integer of a type such as `s32`.
fn value(data_type: &str, bits: u64) -> i128 {
    let width = data_type[1..].parse::<u32>().unwrap();
    let bits = bits & u64::MAX >> (64 - width);
    let negative = data_type.starts_with('s') && bits >> (width - 1) != 0;
    i128::from(bits) - if negative { 1 << width } else { 0 }
}

/// The lowest bits of an integer.
fn low(width: u32, value: i128) -> u64 {
    value as u64 & u64::MAX >> (64 - width)
}

const TYPES: [(&str, u32); 6] = [("u16", 16), ("s16", 16), ("u32", 32), ("s32", 32), ("u64", 64), ("s64", 64)];

fn check_binary(name: &str, operation: impl Fn(i128, i128, (i128, u32)) -> i128) {
    for (data_type, width) in TYPES {
        check(&format!("{name}.{data_type}"), [width; 2], width, &integers([width; 2]), |[a, b]| {
            low(width, operation(value(data_type, a), value(data_type, b), (value(data_type, 1 << (width - 1)), width)))
        });
    }
}

#[test]
fn sums_and_differences_wrap() {
    check_binary("add", |a, b, _| a + b);
    check_binary("sub", |a, b, _| a - b);
}

#[test]
fn products_have_a_lower_and_an_upper_half() {
    check_binary("mul.lo", |a, b, _| a.wrapping_mul(b));
    check_binary("mul.hi", |a, b, (_, width)| {
        if width < 64 || (a >= 0 && b >= 0) {
            return ((a as u128).wrapping_mul(b as u128) >> width) as i128;
        }
        a.wrapping_mul(b) >> width
    });
}

#[test]
fn wide_products_have_twice_the_width() {
    for (data_type, width) in &TYPES[..4] {
        let inputs = integers([*width, *width, 2 * width]);
        let pairs = inputs.iter().map(|[a, b, _]| [*a, *b]).collect::<Vec<_>>();
        check(&format!("mul.wide.{data_type}"), [*width; 2], 2 * width, &pairs, |[a, b]| {
            low(2 * width, value(data_type, a) * value(data_type, b))
        });
        check(&format!("mad.wide.{data_type}"), [*width, *width, 2 * width], 2 * width, &inputs, |[a, b, c]| {
            low(2 * width, value(data_type, a) * value(data_type, b) + i128::from(c))
        });
    }
}

#[test]
fn multiply_add_takes_either_half_of_the_product() {
    for (data_type, width) in TYPES {
        let inputs = integers([width; 3]);
        check(&format!("mad.lo.{data_type}"), [width; 3], width, &inputs, |[a, b, c]| {
            low(width, value(data_type, a).wrapping_mul(value(data_type, b)).wrapping_add(i128::from(c)))
        });
        check(&format!("mad.hi.{data_type}"), [width; 3], width, &inputs, |[a, b, c]| {
            let (x, y) = (value(data_type, a), value(data_type, b));
            let product = if x >= 0 && y >= 0 { ((x as u128 * y as u128) >> width) as i128 } else { (x * y) >> width };
            low(width, product + i128::from(c))
        });
    }
}

#[test]
fn quotients_and_remainders_truncate() {
    check_binary("div", |a, b, _| if b == 0 { -1 } else { a / b });
    check_binary("rem", |a, b, _| if b == 0 { a } else { a % b });
}

#[test]
fn minimum_and_maximum_know_the_sign() {
    check_binary("min", |a, b, _| a.min(b));
    check_binary("max", |a, b, _| a.max(b));
}

#[test]
fn saturating_sums_stop_at_the_ends() {
    let clamp = |sum: i128| low(32, sum.clamp(i128::from(i32::MIN), i128::from(i32::MAX)));
    let inputs = integers([32; 2]);
    check("add.sat.s32", [32; 2], 32, &inputs, |[a, b]| clamp(value("s32", a) + value("s32", b)));
    check("sub.sat.s32", [32; 2], 32, &inputs, |[a, b]| clamp(value("s32", a) - value("s32", b)));
}

#[test]
fn negation_and_magnitude_wrap_at_the_least_value() {
    for (data_type, width) in [("s16", 16), ("s32", 32), ("s64", 64)] {
        let inputs = integers([width]);
        check(&format!("neg.{data_type}"), [width], width, &inputs, |[a]| low(width, -value(data_type, a)));
        check(&format!("abs.{data_type}"), [width], width, &inputs, |[a]| low(width, value(data_type, a).abs()));
    }
}

#[test]
fn differences_accumulate() {
    let inputs = integers([32; 3]);
    for data_type in ["u32", "s32"] {
        check(&format!("sad.{data_type}"), [32; 3], 32, &inputs, |[a, b, c]| {
            low(32, (value(data_type, a) - value(data_type, b)).abs() + i128::from(c))
        });
    }
}

#[test]
fn products_of_24_bits_ignore_the_upper_byte() {
    let inputs = integers([32; 2]);
    let signed = |bits: u64| value("s32", bits << 8 & 0xffff_ffff) >> 8;
    check("mul24.lo.u32", [32; 2], 32, &inputs, |[a, b]| {
        low(32, i128::from(a & 0xff_ffff) * i128::from(b & 0xff_ffff))
    });
    check("mul24.lo.s32", [32; 2], 32, &inputs, |[a, b]| low(32, signed(a) * signed(b)));
}

#[test]
fn dot_products_take_four_bytes() {
    let inputs = integers([32; 3]);
    for (a_type, b_type) in [("u32", "u32"), ("u32", "s32"), ("s32", "u32"), ("s32", "s32")] {
        let byte = |data_type: &str, word: u64, index: u32| {
            value(if data_type == "u32" { "u8" } else { "s8" }, word >> (8 * index) & 0xff)
        };
        check(&format!("dp4a.{a_type}.{b_type}"), [32; 3], 32, &inputs, |[a, b, c]| {
            let products = (0..4).map(|index| byte(a_type, a, index) * byte(b_type, b, index)).sum::<i128>();
            low(32, products + i128::from(c))
        });
    }
}

#[test]
fn carries_chain_words() {
    let inputs = integers([64; 2]);
    for (first, second, subtract) in [("add.cc", "addc", false), ("sub.cc", "subc", true)] {
        let body = format!(
            "mov.b64 {{%r0, %r1}}, %a; mov.b64 {{%r2, %r3}}, %b;
            {first}.u32 %r4, %r0, %r2; {second}.u32 %r5, %r1, %r3; mov.b64 %result, {{%r4, %r5}};"
        );
        let expected = inputs.iter().map(|[a, b]| if subtract { a.wrapping_sub(*b) } else { a.wrapping_add(*b) });
        assert_eq!(evaluate(&body, &inputs), expected.collect::<Vec<_>>(), "{first}");
    }
}

#[test]
fn results_are_extended_into_wider_registers() {
    let inputs = integers([64; 2]);
    let signed = evaluate("cvt.u32.u64 %r0, %a; cvt.u32.u64 %r1, %b; add.s32 %result, %r0, %r1;", &inputs);
    let unsigned = evaluate("cvt.u32.u64 %r0, %a; cvt.u32.u64 %r1, %b; add.u32 %result, %r0, %r1;", &inputs);
    for (([a, b], signed), unsigned) in inputs.iter().zip(signed).zip(unsigned) {
        let sum = (*a as u32).wrapping_add(*b as u32);
        assert_eq!((signed as i64, unsigned), (i64::from(sum as i32), u64::from(sum)));
    }
}
