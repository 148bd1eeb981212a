//! Comparisons, tests and the logic of predicates.
use std::cmp::Ordering;

use half::{bf16, f16};

use super::evaluate;
use super::values::{doubles, floats, halves, integers};

/// What a comparison says of an order; none is that of NaN.
fn holds(comparison: &str, order: Option<Ordering>) -> bool {
    let unordered = order.is_none();
    let is = |orders: &[Ordering]| order.is_some_and(|order| orders.contains(&order));
    use Ordering::{Equal, Greater, Less};
    match comparison {
        "eq" => is(&[Equal]),
        "ne" => is(&[Less, Greater]),
        "lt" | "lo" => is(&[Less]),
        "le" | "ls" => is(&[Less, Equal]),
        "gt" | "hi" => is(&[Greater]),
        "ge" | "hs" => is(&[Greater, Equal]),
        "equ" => unordered || is(&[Equal]),
        "neu" => unordered || is(&[Less, Greater]),
        "ltu" => unordered || is(&[Less]),
        "leu" => unordered || is(&[Less, Equal]),
        "gtu" => unordered || is(&[Greater]),
        "geu" => unordered || is(&[Greater, Equal]),
        "num" => !unordered,
        "nan" => unordered,
        _ => panic!("{comparison} is no comparison"),
    }
}

const INTEGER_COMPARISONS: [&str; 6] = ["eq", "ne", "lt", "le", "gt", "ge"];
const FLOAT_COMPARISONS: [&str; 14] =
    ["eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"];

/// Checks `setp` with its complement on registers of 16, 32 or 64 bits.
fn check_setp(
    comparisons: &[&str],
    data_type: &str,
    width: u32,
    inputs: &[[u64; 2]],
    order: impl Fn(u64, u64) -> Option<Ordering>,
) {
    let register = match width {
        16 => "%h",
        32 => "%r",
        _ => "%l",
    };
    for comparison in comparisons {
        let body = format!(
            "cvt.u{width}.u64 {register}0, %a; cvt.u{width}.u64 {register}1, %b;
            setp.{comparison}.{data_type} %p1|%p2, {register}0, {register}1;
            selp.u32 %r8, 1, 0, %p1; selp.u32 %r9, 2, 0, %p2; or.b32 %r8, %r8, %r9; cvt.u64.u32 %result, %r8;"
        );
        for ([a, b], result) in inputs.iter().zip(evaluate(&body, inputs)) {
            let want = if holds(comparison, order(*a, *b)) { 1 } else { 2 };
            assert_eq!(result, want, "setp.{comparison}.{data_type} of {a:#x}, {b:#x}");
        }
    }
}

#[test]
fn integers_are_compared_by_their_sign() {
    for width in [16, 32, 64] {
        let mut inputs = integers([width; 2]);
        inputs.extend(integers([width]).iter().map(|[a]| [*a, *a]));
        let signed = |bits: u64| (bits << (64 - width)) as i64;
        check_setp(&INTEGER_COMPARISONS, &format!("s{width}"), width, &inputs, |a, b| Some(signed(a).cmp(&signed(b))));
        check_setp(&INTEGER_COMPARISONS, &format!("u{width}"), width, &inputs, |a, b| Some(a.cmp(&b)));
        check_setp(&["lo", "ls", "hi", "hs"], &format!("u{width}"), width, &inputs, |a, b| Some(a.cmp(&b)));
        check_setp(&["eq", "ne"], &format!("b{width}"), width, &inputs, |a, b| Some(a.cmp(&b)));
    }
}

#[test]
fn floats_are_compared_ordered_or_unordered() {
    let single = |bits: u64| f32::from_bits(bits as u32);
    let flush = |value: f32| if value.is_subnormal() { 0.0 } else { value };
    let mut inputs = floats();
    inputs.extend(floats::<1>().iter().map(|[a]| [*a, *a]));
    check_setp(&FLOAT_COMPARISONS, "f32", 32, &inputs, |a, b| single(a).partial_cmp(&single(b)));
    let mut tiny = floats();
    tiny.extend((0..256).map(|n| [n, 0x8000_0000 | (n * 3)]));
    for comparison in ["lt", "eq", "geu"] {
        let body = format!(
            "cvt.u32.u64 %r0, %a; cvt.u32.u64 %r1, %b; setp.{comparison}.ftz.f32 %p1, %r0, %r1; selp.b64 %result, 1, 0, %p1;"
        );
        for ([a, b], result) in tiny.iter().zip(evaluate(&body, &tiny)) {
            let order = flush(single(*a)).partial_cmp(&flush(single(*b)));
            assert_eq!(result, u64::from(holds(comparison, order)), "{comparison}.ftz of {a:#x}, {b:#x}");
        }
    }
    check_setp(&FLOAT_COMPARISONS, "f64", 64, &doubles(), |a, b| f64::from_bits(a).partial_cmp(&f64::from_bits(b)));
    let mut inputs = halves();
    inputs.extend(halves::<1>().iter().map(|[a]| [*a, *a]));
    check_setp(&FLOAT_COMPARISONS, "f16", 16, &inputs, |a, b| {
        f16::from_bits(a as u16).partial_cmp(&f16::from_bits(b as u16))
    });
    check_setp(&FLOAT_COMPARISONS, "bf16", 16, &inputs, |a, b| {
        bf16::from_bits(a as u16).partial_cmp(&bf16::from_bits(b as u16))
    });
}

#[test]
fn packed_comparisons_have_a_predicate_for_each_half() {
    let inputs = halves::<4>();
    let body = "cvt.u32.u64 %r0, %a; cvt.u32.u64 %r1, %b; shl.b32 %r1, %r1, 16; or.b32 %r0, %r0, %r1;
        cvt.u32.u64 %r2, %c; cvt.u32.u64 %r3, %d; shl.b32 %r3, %r3, 16; or.b32 %r2, %r2, %r3;
        setp.lt.f16x2 %p1|%p2, %r0, %r2;
        selp.u32 %r8, 1, 0, %p1; selp.u32 %r9, 2, 0, %p2; or.b32 %r8, %r8, %r9; cvt.u64.u32 %result, %r8;";
    for ([a, b, c, d], result) in inputs.iter().zip(evaluate(body, &inputs)) {
        let less = |a: u64, b: u64| u64::from(f16::from_bits(a as u16) < f16::from_bits(b as u16));
        assert_eq!(result, less(*a, *c) | less(*b, *d) << 1);
    }
}

#[test]
fn comparisons_combine_with_a_predicate() {
    let inputs = integers([32, 32, 32]);
    for (operation, combine) in
        [("and", (|x, y| x && y) as fn(bool, bool) -> bool), ("or", |x, y| x || y), ("xor", |x, y| x != y)]
    {
        for negation in ["", "!"] {
            let body = format!(
                "cvt.u32.u64 %r0, %a; cvt.u32.u64 %r1, %b; cvt.u32.u64 %r2, %c; and.b32 %r2, %r2, 1;
                setp.eq.u32 %p3, %r2, 1;
                setp.lt.{operation}.u32 %p1|%p2, %r0, %r1, {negation}%p3;
                selp.u32 %r8, 1, 0, %p1; selp.u32 %r9, 2, 0, %p2; or.b32 %r8, %r8, %r9; cvt.u64.u32 %result, %r8;"
            );
            for ([a, b, c], result) in inputs.iter().zip(evaluate(&body, &inputs)) {
                let other = (c & 1 == 1) != (negation == "!");
                let want = u64::from(combine(a < b, other)) | u64::from(combine(a >= b, other)) << 1;
                assert_eq!(result, want, "{operation} {negation}");
            }
        }
    }
}

#[test]
fn set_fills_a_register() {
    let inputs = floats::<2>();
    for (result_type, one) in [("u32", 0xffff_ffff), ("s32", 0xffff_ffff), ("f32", 0x3f80_0000)] {
        let body = format!(
            "cvt.u32.u64 %r0, %a; cvt.u32.u64 %r1, %b; set.le.{result_type}.f32 %r2, %r0, %r1; cvt.u64.u32 %result, %r2;"
        );
        for ([a, b], result) in inputs.iter().zip(evaluate(&body, &inputs)) {
            let truth = f32::from_bits(*a as u32) <= f32::from_bits(*b as u32);
            assert_eq!(result, if truth { one } else { 0 }, "set.le.{result_type}.f32");
        }
    }
    let inputs = halves::<4>();
    for (data_type, one) in [("f16", 0x3c00u64), ("bf16", 0x3f80)] {
        let body = format!(
            "cvt.u32.u64 %r0, %a; cvt.u32.u64 %r1, %b; shl.b32 %r1, %r1, 16; or.b32 %r0, %r0, %r1;
            cvt.u32.u64 %r2, %c; cvt.u32.u64 %r3, %d; shl.b32 %r3, %r3, 16; or.b32 %r2, %r2, %r3;
            set.gtu.{data_type}x2.{data_type}x2 %r4, %r0, %r2; cvt.u64.u32 %result, %r4;"
        );
        for ([a, b, c, d], result) in inputs.iter().zip(evaluate(&body, &inputs)) {
            let value = |bits: u64| match data_type {
                "f16" => f16::from_bits(bits as u16).to_f64(),
                _ => bf16::from_bits(bits as u16).to_f64(),
            };
            let greater = |a: u64, b: u64| if holds("gtu", value(a).partial_cmp(&value(b))) { one } else { 0 };
            assert_eq!(result, greater(*a, *c) | greater(*b, *d) << 16, "{data_type}");
        }
    }
}

#[test]
fn floats_are_tested_for_what_they_are() {
    let inputs = floats::<1>();
    type Test = fn(f32) -> bool;
    let tests: [(&str, Test); 6] = [
        ("finite", f32::is_finite),
        ("infinite", f32::is_infinite),
        ("number", |value| !value.is_nan()),
        ("notanumber", f32::is_nan),
        ("normal", f32::is_normal),
        ("subnormal", f32::is_subnormal),
    ];
    for (property, test) in tests {
        let body = format!("cvt.u32.u64 %r0, %a; testp.{property}.f32 %p1, %r0; selp.b64 %result, 1, 0, %p1;");
        for ([a], result) in inputs.iter().zip(evaluate(&body, &inputs)) {
            assert_eq!(result, u64::from(test(f32::from_bits(*a as u32))), "{property} of {a:#x}");
        }
    }
}

#[test]
fn predicates_have_logic_and_guard_instructions() {
    let inputs = (0..1024).map(|n| [n]).collect::<Vec<_>>();
    let body = "cvt.u32.u64 %r0, %a; and.b32 %r1, %r0, 1; and.b32 %r2, %r0, 2;
        setp.ne.u32 %p1, %r1, 0; setp.ne.u32 %p2, %r2, 0;
        and.pred %p3, %p1, %p2; or.pred %p4, %p1, !%p2; xor.pred %p5, %p1, %p2; not.pred %p6, %p1; mov.pred %p7, %p6;
        mov.pred %p8, 1;
        mov.u64 %result, 0;
        @%p3 add.u64 %result, %result, 1; @%p4 add.u64 %result, %result, 2; @%p5 add.u64 %result, %result, 4;
        @!%p6 add.u64 %result, %result, 8; @%p7 add.u64 %result, %result, 16; @%p8 add.u64 %result, %result, 32;";
    for ([n], result) in inputs.iter().zip(evaluate(body, &inputs)) {
        let (x, y) = (n & 1 == 1, n & 2 == 2);
        let truths = [x && y, x || !y, x != y, x, !x, true];
        let want = truths.iter().enumerate().map(|(bit, truth)| u64::from(*truth) << bit).sum::<u64>();
        assert_eq!(result, want);
    }
}
