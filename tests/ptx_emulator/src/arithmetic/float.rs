//! Arithmetic of f32 and f64. Approximate functions are those of the C library, not a GPU's last bits.
use super::instruction_set::Handlers;
use super::lanes::{binary, ternary, unary};
use super::{Operation, only, rounding, with_flags, with_rounding};
use crate::data_type::{DataType, Width};
use crate::instruction::Class;
use crate::number::{Rounding, add_to_odd, f32_from_f64};

/// The NaN that minimum and maximum make.
const NAN: f32 = f32::from_bits(0x7fff_ffff);

pub(super) fn select(name: &str, modifiers: &[&str], data_type: DataType) -> Option<Operation> {
    if data_type == DataType::F64 { select_f64(name, modifiers) } else { select_f32(name, modifiers) }
}

/// A subnormal becomes zero with its sign if `FLUSH`.
#[inline(always)]
pub(super) fn flushed<const FLUSH: bool>(value: f32) -> f32 {
    if FLUSH && value.abs() < f32::MIN_POSITIVE { 0f32.copysign(value) } else { value }
}

/// Clamps to 0 to 1, and NaN to 0, if `SATURATE`.
#[inline(always)]
pub(super) fn saturated<const SATURATE: bool>(value: f32) -> f32 {
    if !SATURATE {
        value
    } else if value > 0.0 {
        if value < 1.0 { value } else { 1.0 }
    } else {
        0.0
    }
}

#[inline(always)]
fn result<const FLUSH: bool, const SATURATE: bool>(value: f32) -> f32 {
    saturated::<SATURATE>(flushed::<FLUSH>(value))
}

/// The lesser value: -0 before +0, a number before NaN.
#[inline(always)]
pub(super) fn minimum(a: f32, b: f32) -> f32 {
    let equal = f32::from_bits(a.to_bits() | b.to_bits());
    let lesser = if a < b {
        a
    } else if a == b {
        equal
    } else {
        b
    };
    if b.is_nan() {
        if a.is_nan() { NAN } else { a }
    } else if a.is_nan() {
        b
    } else {
        lesser
    }
}

/// The greater value: +0 before -0, a number before NaN.
#[inline(always)]
pub(super) fn maximum(a: f32, b: f32) -> f32 {
    let equal = f32::from_bits(a.to_bits() & b.to_bits());
    let greater = if a > b {
        a
    } else if a == b {
        equal
    } else {
        b
    };
    if b.is_nan() {
        if a.is_nan() { NAN } else { a }
    } else if a.is_nan() {
        b
    } else {
        greater
    }
}

/// The lesser value, or NaN if one is NaN.
#[inline(always)]
pub(super) fn minimum_or_nan(a: f32, b: f32) -> f32 {
    if a.is_nan() || b.is_nan() { NAN } else { minimum(a, b) }
}

/// The greater value, or NaN if one is NaN.
#[inline(always)]
pub(super) fn maximum_or_nan(a: f32, b: f32) -> f32 {
    if a.is_nan() || b.is_nan() { NAN } else { maximum(a, b) }
}

fn select_f32(name: &str, modifiers: &[&str]) -> Option<Operation> {
    let flush = modifiers.contains(&"ftz");
    let saturate = modifiers.contains(&"sat");
    let (handlers, class, sources) = match name {
        "add" | "sub" | "mul" | "fma" | "mad" => {
            if !only(modifiers, &["rn", "rz", "rm", "rp", "ftz", "sat"]) {
                return None;
            }
            let rounding = modifiers.iter().find_map(|modifier| rounding(modifier)).unwrap_or(Rounding::NearestEven);
            let sources = if matches!(name, "fma" | "mad") { 3 } else { 2 };
            (rounded_f32(name, rounding, flush, saturate)?, Class::Float, sources)
        }
        "min" | "max" if only(modifiers, &["ftz", "NaN"]) => {
            (extremum_f32(name, flush, modifiers.contains(&"NaN")), Class::Float, 2)
        }
        "div" if only(modifiers, &["rn", "approx", "full", "ftz"]) => {
            let handlers = with_flags!(flush, Z =>
                binary(|a: f32, b: f32| flushed::<Z>(flushed::<Z>(a) / flushed::<Z>(b))));
            (handlers, Class::Special, 2)
        }
        "copysign" if modifiers.is_empty() => (binary(|a: f32, b: f32| b.copysign(a)), Class::Float, 2),
        "neg" if only(modifiers, &["ftz"]) => {
            (with_flags!(flush, Z => unary(|a: f32| -flushed::<Z>(a))), Class::Float, 1)
        }
        "abs" if only(modifiers, &["ftz"]) => {
            (with_flags!(flush, Z => unary(|a: f32| flushed::<Z>(a.abs()))), Class::Float, 1)
        }
        _ if only(modifiers, &["approx", "rn", "ftz"]) => (special_f32(name, flush)?, Class::Special, 1),
        _ => return None,
    };
    Some(Operation::new(handlers, class, &vec![Width::Bits32; sources], Width::Bits32))
}

/// Operations that take a rounding mode.
fn rounded_f32(name: &str, rounding: Rounding, flush: bool, saturate: bool) -> Option<Handlers> {
    if rounding == Rounding::NearestEven {
        return Some(with_flags!(flush, saturate, Z, S => match name {
            "add" => binary(|a: f32, b: f32| result::<Z, S>(flushed::<Z>(a) + flushed::<Z>(b))),
            "sub" => binary(|a: f32, b: f32| result::<Z, S>(flushed::<Z>(a) - flushed::<Z>(b))),
            "mul" => binary(|a: f32, b: f32| result::<Z, S>(flushed::<Z>(a) * flushed::<Z>(b))),
            _ => ternary(|a: f32, b: f32, c: f32| {
                result::<Z, S>(flushed::<Z>(a).mul_add(flushed::<Z>(b), flushed::<Z>(c)))
            }),
        }));
    }
    Some(with_rounding!(rounding, R => with_flags!(flush, saturate, Z, S => match name {
        "add" => binary(|a: f32, b: f32| {
            result::<Z, S>(rounded_sum(f64::from(flushed::<Z>(a)), f64::from(flushed::<Z>(b)), R))
        }),
        "sub" => binary(|a: f32, b: f32| {
            result::<Z, S>(rounded_sum(f64::from(flushed::<Z>(a)), -f64::from(flushed::<Z>(b)), R))
        }),
        "mul" => binary(|a: f32, b: f32| {
            result::<Z, S>(f32_from_f64(f64::from(flushed::<Z>(a)) * f64::from(flushed::<Z>(b)), R))
        }),
        _ => ternary(|a: f32, b: f32, c: f32| {
            let product = f64::from(flushed::<Z>(a)) * f64::from(flushed::<Z>(b));
            result::<Z, S>(rounded_sum(product, f64::from(flushed::<Z>(c)), R))
        }),
    })))
}

/// The sum of an exact product, or an f32, and an f32, rounded once.
#[inline(always)]
fn rounded_sum(a: f64, b: f64, rounding: Rounding) -> f32 {
    let sum = add_to_odd(a, b);
    if sum == 0.0 && rounding == Rounding::Down && (a.is_sign_negative() || b.is_sign_negative()) {
        // what cancels is negative zero when rounding down
        return -0.0;
    }
    f32_from_f64(sum, rounding)
}

fn extremum_f32(name: &str, flush: bool, nan: bool) -> Handlers {
    with_flags!(flush, nan, Z, N => match name {
        "min" => binary(|a: f32, b: f32| {
            let (a, b) = (flushed::<Z>(a), flushed::<Z>(b));
            if N { minimum_or_nan(a, b) } else { minimum(a, b) }
        }),
        _ => binary(|a: f32, b: f32| {
            let (a, b) = (flushed::<Z>(a), flushed::<Z>(b));
            if N { maximum_or_nan(a, b) } else { maximum(a, b) }
        }),
    })
}

/// Functions of one value.
fn special_f32(name: &str, flush: bool) -> Option<Handlers> {
    Some(with_flags!(flush, Z => match name {
        "rcp" => unary(|a: f32| flushed::<Z>(1.0 / flushed::<Z>(a))),
        "sqrt" => unary(|a: f32| flushed::<Z>(flushed::<Z>(a).sqrt())),
        "rsqrt" => unary(|a: f32| flushed::<Z>((1.0 / f64::from(flushed::<Z>(a)).sqrt()) as f32)),
        "ex2" => unary(|a: f32| flushed::<Z>(flushed::<Z>(a).exp2())),
        "lg2" => unary(|a: f32| flushed::<Z>(flushed::<Z>(a).log2())),
        "sin" => unary(|a: f32| flushed::<Z>(flushed::<Z>(a).sin())),
        "cos" => unary(|a: f32| flushed::<Z>(flushed::<Z>(a).cos())),
        "tanh" => unary(|a: f32| a.tanh()),
        _ => return None,
    }))
}

fn select_f64(name: &str, modifiers: &[&str]) -> Option<Operation> {
    if !only(modifiers, &["rn", "approx", "ftz"]) {
        return None;
    }
    let (handlers, class, sources) = match name {
        "add" => (binary(|a: f64, b: f64| a + b), Class::Float, 2),
        "sub" => (binary(|a: f64, b: f64| a - b), Class::Float, 2),
        "mul" => (binary(|a: f64, b: f64| a * b), Class::Float, 2),
        "fma" | "mad" => (ternary(|a: f64, b: f64, c: f64| a.mul_add(b, c)), Class::Float, 3),
        "min" => (binary(f64::min), Class::Float, 2),
        "max" => (binary(f64::max), Class::Float, 2),
        "copysign" => (binary(|a: f64, b: f64| b.copysign(a)), Class::Float, 2),
        "neg" => (unary(|a: f64| -a), Class::Float, 1),
        "abs" => (unary(f64::abs), Class::Float, 1),
        "div" => (binary(|a: f64, b: f64| a / b), Class::Special, 2),
        "rcp" => (unary(|a: f64| 1.0 / a), Class::Special, 1),
        "sqrt" => (unary(f64::sqrt), Class::Special, 1),
        "rsqrt" => (unary(|a: f64| 1.0 / a.sqrt()), Class::Special, 1),
        _ => return None,
    };
    Some(Operation::new(handlers, class, &vec![Width::Bits64; sources], Width::Bits64))
}
