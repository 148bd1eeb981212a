//! `cvt` against the crate `half`, exact integers and integers in units of 2^-90.
use half::{bf16, f16};

use super::fixed::{self, BF16, F16, F32, Format, MODES};
use super::values::{all_halves, doubles, floats, integers, moderate_floats};
use super::{check, check_float, evaluate};

fn single(bits: u64) -> f32 {
    f32::from_bits(bits as u32)
}

fn float_bits(value: f32) -> u64 {
    u64::from(value.to_bits())
}

/// The bits of a half that `half` encodes without rounding; NaN is canonical.
fn f16_bits(value: f64) -> u64 {
    if value.is_nan() { 0x7fff } else { u64::from(f16::from_f64(value).to_bits()) }
}

fn bf16_bits(value: f64) -> u64 {
    if value.is_nan() { 0x7fff } else { u64::from(bf16::from_f64(value).to_bits()) }
}

#[test]
fn every_half_widens_to_its_value() {
    check_float("cvt.f32.f16", [16], 32, &all_halves(), |[a]| float_bits(f16::from_bits(a as u16).to_f32()));
    check_float("cvt.f32.bf16", [16], 32, &all_halves(), |[a]| float_bits(bf16::from_bits(a as u16).to_f32()));
    check_float("cvt.f64.f16", [16], 64, &all_halves(), |[a]| f16::from_bits(a as u16).to_f64().to_bits());
    check_float("cvt.f64.bf16", [16], 64, &all_halves(), |[a]| bf16::from_bits(a as u16).to_f64().to_bits());
}

/// Every value of a 16-bit format, the values halfway to the next ones, and their neighbors, as f32.
fn around_halves(to_f32: fn(u16) -> f32) -> Vec<[u64; 1]> {
    let values = (0..=u16::MAX).filter(|bits| to_f32(*bits).is_finite());
    let mut inputs = values
        .flat_map(|bits| {
            let (value, next) = (f64::from(to_f32(bits)), f64::from(to_f32(bits.wrapping_add(1))));
            let middle = ((value + next) / 2.0) as f32;
            [value as f32, middle, middle.next_up(), middle.next_down()]
        })
        .filter(|value| value.is_finite())
        .map(|value| [float_bits(value)])
        .collect::<Vec<_>>();
    inputs.extend(floats::<1>());
    inputs
}

#[test]
fn f32_is_rounded_to_the_nearest_half() {
    let inputs = around_halves(|bits| f16::from_bits(bits).to_f32());
    let nearest = |value: f32| if value.is_nan() { 0x7fff } else { u64::from(f16::from_f32(value).to_bits()) };
    check("cvt.rn.f16.f32", [32], 16, &inputs, |[a]| nearest(single(a)));
    check("cvt.rn.relu.f16.f32", [32], 16, &inputs, |[a]| nearest(if single(a) <= 0.0 { 0.0 } else { single(a) }));
    let inputs = around_halves(|bits| bf16::from_bits(bits).to_f32());
    let nearest = |value: f32| if value.is_nan() { 0x7fff } else { u64::from(bf16::from_f32(value).to_bits()) };
    check("cvt.rn.bf16.f32", [32], 16, &inputs, |[a]| nearest(single(a)));
    check("cvt.rn.relu.bf16.f32", [32], 16, &inputs, |[a]| nearest(if single(a) <= 0.0 { 0.0 } else { single(a) }));
}

/// Checks a conversion of f32 on values that [`fixed`] holds.
fn check_fixed(opcode: &str, result: u32, mode: &str, format: Format, encode: impl Fn(f64) -> u64) {
    let mut inputs = moderate_floats();
    // around the least and greatest numbers of f16
    inputs.extend((0..4096).map(|n| [0x3200_0000 + n * 0x1_0203]).filter(|[a]| single(*a) < 70000.0));
    inputs.extend((0..1024).map(|n| [0x477f_0000 + n * 61]));
    inputs.extend(inputs.clone().iter().map(|[a]| [a ^ 0x8000_0000]));
    check(opcode, [32], result, &inputs, |[a]| {
        let value = fixed::round(fixed::from_f64(f64::from(single(a))), mode, format);
        encode(value.copysign(f64::from(single(a))))
    });
}

#[test]
fn f32_is_rounded_to_halves_in_every_mode() {
    for mode in MODES {
        check_fixed(&format!("cvt.{mode}.f16.f32"), 16, mode, F16, f16_bits);
        check_fixed(&format!("cvt.{mode}.bf16.f32"), 16, mode, BF16, bf16_bits);
    }
    let clamp = |value: f64| if value > 0.0 { value.min(1.0) } else { 0.0 };
    check_fixed("cvt.rn.sat.f16.f32", 16, "rn", F16, |value| f16_bits(clamp(value)));
}

#[test]
fn pairs_of_f32_are_packed_with_the_first_above() {
    let inputs = floats::<2>();
    let f16_nearest =
        |bits: u64| if single(bits).is_nan() { 0x7fff } else { u64::from(f16::from_f32(single(bits)).to_bits()) };
    let bf16_nearest =
        |bits: u64| if single(bits).is_nan() { 0x7fff } else { u64::from(bf16::from_f32(single(bits)).to_bits()) };
    check("cvt.rn.f16x2.f32", [32; 2], 32, &inputs, |[a, b]| f16_nearest(a) << 16 | f16_nearest(b));
    check("cvt.rn.bf16x2.f32", [32; 2], 32, &inputs, |[a, b]| bf16_nearest(a) << 16 | bf16_nearest(b));
    let relu = |bits: u64| if single(bits) <= 0.0 { 0 } else { bits };
    check("cvt.rn.relu.f16x2.f32", [32; 2], 32, &inputs, |[a, b]| f16_nearest(relu(a)) << 16 | f16_nearest(relu(b)));
    check("cvt.rn.relu.bf16x2.f32", [32; 2], 32, &inputs, |[a, b]| bf16_nearest(relu(a)) << 16 | bf16_nearest(relu(b)));
    let truncated = |bits: u64, format: Format, encode: fn(f64) -> u64| {
        let value = f64::from(single(bits));
        encode(fixed::round(fixed::from_f64(value), "rz", format).copysign(value))
    };
    let inputs = moderate_floats();
    check("cvt.rz.f16x2.f32", [32; 2], 32, &inputs, |[a, b]| {
        truncated(a, F16, f16_bits) << 16 | truncated(b, F16, f16_bits)
    });
    check("cvt.rz.bf16x2.f32", [32; 2], 32, &inputs, |[a, b]| {
        truncated(a, BF16, bf16_bits) << 16 | truncated(b, BF16, bf16_bits)
    });
}

#[test]
fn f64_is_rounded_to_f32_in_every_mode() {
    let inputs = (0..4096u64)
        .map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15))
        .map(|bits| [bits & 0x800f_ffff_ffc0_0000 | (1023 - 8 + (bits >> 52) % 16) << 52])
        .collect::<Vec<_>>();
    for mode in MODES {
        check(&format!("cvt.{mode}.f32.f64"), [64], 32, &inputs, |[a]| {
            float_bits(fixed::round(fixed::from_f64(f64::from_bits(a)), mode, F32) as f32)
        });
    }
    check_float("cvt.rn.f32.f64", [64], 32, &doubles(), |[a]| float_bits(f64::from_bits(a) as f32));
    check_float("cvt.f64.f32", [32], 64, &floats(), |[a]| f64::from(single(a)).to_bits());
}

#[test]
fn f32_keeps_its_value_unless_flushed_or_saturated() {
    let inputs = floats();
    let flush = |value: f32| if value.is_subnormal() { 0f32.copysign(value) } else { value };
    check("cvt.ftz.f32.f32", [32], 32, &inputs, |[a]| float_bits(flush(single(a))));
    check("cvt.sat.f32.f32", [32], 32, &inputs, |[a]| {
        float_bits(if single(a) > 0.0 { single(a).min(1.0) } else { 0.0 })
    });
    type Round = fn(f32) -> f32;
    let modes: [(&str, Round); 4] =
        [("rni", f32::round_ties_even), ("rzi", f32::trunc), ("rmi", f32::floor), ("rpi", f32::ceil)];
    for (mode, round) in modes {
        check_float(&format!("cvt.{mode}.f32.f32"), [32], 32, &inputs, |[a]| float_bits(round(single(a))));
        check_float(&format!("cvt.{mode}.f64.f64"), [64], 64, &doubles(), |[a]| {
            // no f64 above 2^52 has a fraction; below, f64 functions are those of the host
            let value = f64::from_bits(a);
            let rounded = match mode {
                "rni" => value.round_ties_even(),
                "rzi" => value.trunc(),
                "rmi" => value.floor(),
                _ => value.ceil(),
            };
            rounded.to_bits()
        });
        check(&format!("cvt.{mode}.f16.f16"), [16], 16, &all_halves(), |[a]| {
            f16_bits(f64::from(round(f16::from_bits(a as u16).to_f32())))
        });
    }
}

const INTEGERS: [(&str, u32); 8] =
    [("u8", 8), ("s8", 8), ("u16", 16), ("s16", 16), ("u32", 32), ("s32", 32), ("u64", 64), ("s64", 64)];

fn limits((name, width): (&str, u32)) -> (i128, i128) {
    if name.starts_with('s') { (-(1 << (width - 1)), (1 << (width - 1)) - 1) } else { (0, (1 << width) - 1) }
}

/// Bits as an integer of a type.
fn integer((name, width): (&str, u32), bits: u64) -> i128 {
    let value = i128::from(bits & u64::MAX >> (64 - width));
    if name.starts_with('s') && value >> (width - 1) != 0 { value - (1 << width) } else { value }
}

/// An integer as its type leaves it in a register of 64 bits.
fn register(value: i128) -> u64 {
    value as u64
}

#[test]
fn integers_are_cut_extended_and_saturated() {
    for from in INTEGERS {
        let inputs = integers([64]);
        for to in INTEGERS {
            let results = evaluate(&format!("cvt.{}.{} %result, %a;", to.0, from.0), &inputs);
            for ([a], result) in inputs.iter().zip(results) {
                let wrapped = integer(to, integer(from, *a) as u64);
                assert_eq!(result, register(wrapped), "cvt.{}.{} of {a:#x}", to.0, from.0);
            }
            let results = evaluate(&format!("cvt.sat.{}.{} %result, %a;", to.0, from.0), &inputs);
            for ([a], result) in inputs.iter().zip(results) {
                let clamped = integer(from, *a).clamp(limits(to).0, limits(to).1);
                assert_eq!(result, register(clamped), "cvt.sat.{}.{} of {a:#x}", to.0, from.0);
            }
        }
    }
}

#[test]
fn integers_become_floats_in_every_mode() {
    for from in INTEGERS {
        let inputs = integers([64]);
        // the widest integers have more bits than the units of 2^-90 leave: they are scaled by 2^-32
        let value = |bits: u64| integer(from, bits);
        let round = |bits: u64, mode: &str, format: Format| {
            let scaled = value(bits) << (90 - 32);
            let limit =
                Format { max_exponent: format.max_exponent - 32, min_exponent: format.min_exponent - 32, ..format };
            fixed::round(scaled, mode, limit) * 2f64.powi(32)
        };
        let body = |mode: &str, to: &str, width: u32| {
            let temporary = if width == 16 { "%h0" } else { "%r0" };
            format!("cvt.{mode}.{to}.{} {temporary}, %a; cvt.u64.u{width} %result, {temporary};", from.0)
        };
        for mode in MODES {
            let singles = evaluate(&body(mode, "f32", 32), &inputs);
            let f16s = evaluate(&body(mode, "f16", 16), &inputs);
            let bf16s = evaluate(&body(mode, "bf16", 16), &inputs);
            for (index, [a]) in inputs.iter().enumerate() {
                let context = format!("{mode} of {} {a:#x}", from.0);
                assert_eq!(singles[index], float_bits(round(*a, mode, F32) as f32), "f32 {context}");
                assert_eq!(f16s[index], f16_bits(round(*a, mode, F16)), "f16 {context}");
                assert_eq!(bf16s[index], bf16_bits(round(*a, mode, BF16)), "bf16 {context}");
            }
        }
        let doubles = evaluate(&format!("cvt.rn.f64.{} %result, %a;", from.0), &inputs);
        for ([a], result) in inputs.iter().zip(doubles) {
            assert_eq!(result, (value(*a) as f64).to_bits());
        }
    }
}

/// A float rounded to an integral value in a mode, by its integral part and what is left of it.
fn integral(value: f64, mode: &str) -> i128 {
    let whole = value as i128;
    if value.abs() > 1e30 {
        return whole;
    }
    let rest = value - whole as f64;
    match mode {
        "rni" if rest.abs() > 0.5 || rest.abs() == 0.5 && whole % 2 != 0 => whole + rest.signum() as i128,
        "rmi" if rest < 0.0 => whole - 1,
        "rpi" if rest > 0.0 => whole + 1,
        _ => whole,
    }
}

#[test]
fn floats_become_integers_in_every_mode() {
    let mut singles = floats::<1>();
    // halves and wholes, where modes differ
    singles.extend((0..512).map(|n| [float_bits((n as f32 - 256.0) / 4.0)]));
    let mut wide = doubles::<1>();
    wide.extend((0..512).map(|n| [(f64::from(n - 256) / 4.0).to_bits()]));
    for to in INTEGERS {
        let clamp = |value: f64, mode: &str| {
            if value.is_nan() { 0 } else { register(integral(value, mode).clamp(limits(to).0, limits(to).1)) }
        };
        for mode in ["rni", "rzi", "rmi", "rpi"] {
            type Source<'a> = (&'a str, &'a str, &'a [[u64; 1]], fn(u64) -> f64);
            let sources: [Source<'_>; 4] = [
                ("f32", "cvt.u32.u64 %r0, %a;", &singles, |bits| f64::from(f32::from_bits(bits as u32))),
                ("f64", "mov.b64 %l0, %a;", &wide, f64::from_bits),
                ("f16", "cvt.u16.u64 %h0, %a;", &all_halves()[..], |bits| f16::from_bits(bits as u16).to_f64()),
                ("bf16", "cvt.u16.u64 %h0, %a;", &all_halves()[..], |bits| bf16::from_bits(bits as u16).to_f64()),
            ];
            for (from, prepare, inputs, value) in sources {
                let source = &prepare[prepare.find('%').unwrap()..][..3];
                let results = evaluate(&format!("{prepare} cvt.{mode}.{}.{from} %result, {source};", to.0), inputs);
                for ([a], result) in inputs.iter().zip(results) {
                    assert_eq!(result, clamp(value(*a), mode), "cvt.{mode}.{}.{from} of {a:#x}", to.0);
                }
            }
        }
        let results = evaluate(&format!("cvt.u32.u64 %r0, %a; cvt.rpi.ftz.{}.f32 %result, %r0;", to.0), &singles);
        for ([a], result) in singles.iter().zip(results) {
            let value = if single(*a).is_subnormal() { 0.0 } else { single(*a) };
            assert_eq!(result, clamp(f64::from(value), "rpi"), "ftz of {a:#x}");
        }
    }
}
