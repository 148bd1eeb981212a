//! Python's operators: arithmetic, comparison, containment, slices.

use std::cmp::Ordering;

use super::error::{Result, TemplateError, fail, undefined};
use super::format;
use super::runtime::Runtime;
use super::value::{Key, Range, Value, View};

/// The arithmetic operators.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Math {
    Add,
    Sub,
    Mul,
    Div,
    FloorDiv,
    Mod,
    Pow,
}

impl Math {
    fn symbol(self) -> &'static str {
        match self {
            Math::Add => "+",
            Math::Sub => "-",
            Math::Mul => "*",
            Math::Div => "/",
            Math::FloorDiv => "//",
            Math::Mod => "%",
            Math::Pow => "**",
        }
    }
}

fn overflow() -> TemplateError {
    TemplateError::new("an integer is too large")
}

/// `left op right`.
pub(super) fn math(runtime: &Runtime, op: Math, left: &Value, right: &Value) -> Result<Value> {
    if let Value::Undefined(name) = left {
        return undefined(name);
    }
    match (op, left, right) {
        // A format may take what is undefined.
        (Math::Mod, Value::Str(template), _) => return format::percent(runtime, template, right),
        // A difference of sets takes any iterable, and what is undefined is an empty one.
        (Math::Sub, Value::View(..), _) => return fail("computing with views of dicts is not supported"),
        (_, _, Value::Undefined(name)) => return undefined(name),
        (Math::Add, Value::Str(a), Value::Str(b)) => {
            runtime.budget.memory(2 * (a.len() + b.len()))?;
            return Ok(Value::Str([&**a, &**b].concat().into()));
        }
        (Math::Add, Value::List(a), Value::List(b)) => {
            runtime.budget.elements(a.values.len() + b.values.len())?;
            return runtime.list([&*a.values, &*b.values].concat());
        }
        (Math::Add, Value::Tuple(a), Value::Tuple(b)) => {
            runtime.budget.elements(a.values.len() + b.values.len())?;
            return runtime.tuple([&*a.values, &*b.values].concat());
        }
        (Math::Mul, sequence, count) | (Math::Mul, count, sequence)
            if matches!(sequence, Value::Str(_) | Value::List(_) | Value::Tuple(_)) && count.as_int().is_some() =>
        {
            return repeat(runtime, sequence, count.as_int().unwrap_or_default());
        }
        (_, Value::Markup(_), _) | (_, _, Value::Markup(_)) => {
            return fail("computing with a text marked as safe is not supported");
        }
        (Math::Sub, _, Value::View(..)) => {
            return fail("computing with views of dicts is not supported");
        }
        _ => {}
    }
    match (left.as_int(), right.as_int()) {
        (Some(a), Some(b)) => int_math(op, a, b),
        _ => match (left.as_float(), right.as_float()) {
            (Some(a), Some(b)) => float_math(op, a, b),
            _ => fail(format!(
                "unsupported operand types for {}: '{}' and '{}'",
                op.symbol(),
                left.type_name(),
                right.type_name()
            )),
        },
    }
}

fn repeat(runtime: &Runtime, sequence: &Value, count: i128) -> Result<Value> {
    let count = usize::try_from(count.max(0)).map_err(|_| overflow())?;
    if let Value::Str(text) = sequence {
        let mut out = runtime.text();
        out.repeat(text, count)?;
        return Ok(Value::Str(out.into_string().into()));
    }
    let items = runtime.iterate(sequence)?;
    runtime.budget.elements(items.values.len().saturating_mul(count))?;
    // Repeating nothing is free of charge, so it must be free of work.
    let count = if items.values.is_empty() { 0 } else { count };
    let values = (0..count).flat_map(|_| items.values.iter().cloned()).collect();
    if matches!(sequence, Value::List(_)) { runtime.list(values) } else { runtime.tuple(values) }
}

fn int_math(op: Math, a: i128, b: i128) -> Result<Value> {
    let value = match op {
        Math::Add => a.checked_add(b),
        Math::Sub => a.checked_sub(b),
        Math::Mul => a.checked_mul(b),
        Math::Div | Math::FloorDiv | Math::Mod if b == 0 => return fail("division by zero"),
        // The quotient of two integers is rounded once.
        Math::Div if a.unsigned_abs() <= 1 << 53 && b.unsigned_abs() <= 1 << 53 => {
            return Ok(Value::Float(a as f64 / b as f64));
        }
        Math::Div => return fail("dividing integers beyond 2**53 is not supported"),
        Math::FloorDiv => {
            let quotient = a.checked_div(b);
            quotient.map(|quotient| if a % b != 0 && (a < 0) != (b < 0) { quotient - 1 } else { quotient })
        }
        Math::Mod => a.checked_rem(b).map(|rest| if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest }),
        Math::Pow if b < 0 => return float_math(op, a as f64, b as f64),
        Math::Pow => u32::try_from(b).ok().and_then(|b| a.checked_pow(b)).or(match a {
            0 | 1 => Some(a),
            -1 => Some(if b % 2 == 0 { 1 } else { -1 }),
            _ => None,
        }),
    };
    value.map(Value::Int).ok_or_else(overflow)
}

fn float_math(op: Math, a: f64, b: f64) -> Result<Value> {
    let value = match op {
        Math::Add => a + b,
        Math::Sub => a - b,
        Math::Mul => a * b,
        Math::Div | Math::FloorDiv | Math::Mod if b == 0.0 => return fail("division by zero"),
        Math::Div => a / b,
        Math::FloorDiv => floor_divide(a, b).0,
        Math::Mod => floor_divide(a, b).1,
        Math::Pow if a == 0.0 && b < 0.0 => return fail("0.0 cannot be raised to a negative power"),
        Math::Pow if a < 0.0 && b.fract() != 0.0 && b.is_finite() => return fail("complex numbers are not supported"),
        Math::Pow => {
            let value = a.powf(b);
            if value.is_infinite() && a.is_finite() && b.is_finite() {
                return fail("a float is too large");
            }
            value
        }
    };
    Ok(Value::Float(value))
}

/// Python's `divmod` of floats.
fn floor_divide(a: f64, b: f64) -> (f64, f64) {
    let mut rest = a % b;
    let mut quotient = (a - rest) / b;
    if rest != 0.0 {
        if (b < 0.0) != (rest < 0.0) {
            rest += b;
            quotient -= 1.0;
        }
    } else {
        rest = 0.0_f64.copysign(b);
    }
    if quotient == 0.0 {
        return (0.0_f64.copysign(a / b), rest);
    }
    let floor = quotient.floor();
    (if quotient - floor > 0.5 { floor + 1.0 } else { floor }, rest)
}

/// `-value` or `+value`.
pub(super) fn sign(value: &Value, negative: bool) -> Result<Value> {
    match value {
        Value::Undefined(name) => undefined(name),
        Value::Float(value) => Ok(Value::Float(if negative { -value } else { *value })),
        other => match other.as_int() {
            Some(value) if negative => value.checked_neg().map(Value::Int).ok_or_else(overflow),
            Some(value) => Ok(Value::Int(value)),
            None => fail(format!("a {} has no sign", other.type_name())),
        },
    }
}

/// `left == right`.
pub(super) fn equal(runtime: &Runtime, left: &Value, right: &Value) -> Result<bool> {
    runtime.budget.work(20)?;
    Ok(match (left, right) {
        (Value::Str(a) | Value::Markup(a), Value::Str(b) | Value::Markup(b)) => {
            runtime.budget.work(a.len().min(b.len()) / 4)?;
            a == b
        }
        (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => {
            if a.values.len() != b.values.len() {
                return Ok(false);
            }
            for (a, b) in a.values.iter().zip(&b.values) {
                if !equal(runtime, a, b)? {
                    return Ok(false);
                }
            }
            true
        }
        (Value::Dict(a), Value::Dict(b)) => {
            if a.entries.len() != b.entries.len() {
                return Ok(false);
            }
            for (key, value) in &a.entries {
                let Some(other) = b.entries.get(&runtime.key(key.value())?) else { return Ok(false) };
                if !equal(runtime, value, other)? {
                    return Ok(false);
                }
            }
            true
        }
        (Value::Undefined(_), Value::Undefined(_)) | (Value::None, Value::None) => true,
        (Value::Range(a), Value::Range(b)) => {
            a.len == b.len && (a.len == 0 || a.start == b.start) && (a.len < 2 || a.step == b.step)
        }
        (Value::View(View::Keys | View::Items, _), Value::View(View::Keys | View::Items, _)) => {
            return fail("comparing views of dicts is not supported");
        }
        (Value::Namespace(a), Value::Namespace(b)) => a == b,
        (Value::Macro(a), Value::Macro(b)) => a == b,
        (Value::Function(a), Value::Function(b)) => a == b,
        (Value::Method(_), Value::Method(_)) => return fail("comparing methods is not supported"),
        (Value::Generator(a), Value::Generator(b)) => std::rc::Rc::ptr_eq(a, b),
        (Value::Loop(a), Value::Loop(b)) => std::rc::Rc::ptr_eq(a, b),
        (Value::Cycler(a), Value::Cycler(b)) => std::rc::Rc::ptr_eq(a, b),
        (Value::Joiner(a), Value::Joiner(b)) => std::rc::Rc::ptr_eq(a, b),
        (a, b) => numbers(a, b) == Some(Some(Ordering::Equal)),
    })
}

/// The order of two numbers, exactly; `None` if one is not a number, `Some(None)` beside NaN.
fn numbers(a: &Value, b: &Value) -> Option<Option<Ordering>> {
    match (a, b) {
        (Value::Float(a), Value::Float(b)) => Some(a.partial_cmp(b)),
        (Value::Float(a), b) => Some(int_to_float(b.as_int()?, *a).map(Ordering::reverse)),
        (a, Value::Float(b)) => Some(int_to_float(a.as_int()?, *b)),
        (a, b) => Some(Some(a.as_int()?.cmp(&b.as_int()?))),
    }
}

fn int_to_float(a: i128, b: f64) -> Option<Ordering> {
    if b.is_nan() {
        None
    } else if b.abs() >= 1e38 {
        Some(if b > 0.0 { Ordering::Less } else { Ordering::Greater })
    } else {
        Some(a.cmp(&(b.trunc() as i128)).then(0.0.partial_cmp(&b.fract())?))
    }
}

/// The order of two values; `None` beside NaN.
pub(super) fn order(runtime: &Runtime, left: &Value, right: &Value) -> Result<Option<Ordering>> {
    runtime.budget.work(20)?;
    match (left, right) {
        (Value::Undefined(name), _) | (_, Value::Undefined(name)) => undefined(name),
        (Value::View(..), Value::View(..)) => fail("comparing views of dicts is not supported"),
        (Value::Str(a) | Value::Markup(a), Value::Str(b) | Value::Markup(b)) => {
            runtime.budget.work(a.len().min(b.len()) / 4)?;
            Ok(Some(a.cmp(b)))
        }
        (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => {
            for (a, b) in a.values.iter().zip(&b.values) {
                if !equal(runtime, a, b)? {
                    return order(runtime, a, b);
                }
            }
            Ok(Some(a.values.len().cmp(&b.values.len())))
        }
        (a, b) => match numbers(a, b) {
            Some(order) => Ok(order),
            None => fail(format!("'{}' and '{}' have no order", a.type_name(), b.type_name())),
        },
    }
}

/// `left < right`, the comparison that sorting uses.
pub(super) fn less(runtime: &Runtime, left: &Value, right: &Value) -> Result<bool> {
    Ok(order(runtime, left, right)? == Some(Ordering::Less))
}

/// `needle in haystack`.
pub(super) fn contains(runtime: &Runtime, haystack: &Value, needle: &Value) -> Result<bool> {
    match haystack {
        Value::Str(text) | Value::Markup(text) => match needle {
            Value::Str(needle) | Value::Markup(needle) => {
                runtime.budget.work(text.len() + needle.len())?;
                Ok(text.contains(&**needle))
            }
            other => fail(format!("'in <string>' requires string as left operand, not {}", other.type_name())),
        },
        Value::Dict(dict) | Value::View(View::Keys, dict) => Ok(dict.entries.contains_key(&runtime.key(needle)?)),
        Value::Range(range) => Ok(match Key::new(needle).map(|key| key.value().clone()) {
            Some(Value::Float(f)) if f.fract() == 0.0 && f.abs() < 1e18 => range_has(range, f as i128),
            Some(value) => value.as_int().is_some_and(|value| range_has(range, value)),
            None => false,
        }),
        Value::Generator(generator) => {
            while let Some(value) = generator.left.borrow_mut().pop_front() {
                if equal(runtime, &value, needle)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        other => {
            for value in &runtime.iterate(other)?.values {
                if equal(runtime, value, needle)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
    }
}

fn range_has(range: &Range, value: i128) -> bool {
    let steps = value - range.start;
    steps % range.step == 0 && (0..range.len as i128).contains(&(steps / range.step))
}

/// The bounds of a slice: `None` where it has none.
pub(super) type Bounds = [Option<Value>; 3];

/// `value[start:stop:step]`.
pub(super) fn slice(runtime: &Runtime, value: &Value, bounds: &Bounds) -> Result<Value> {
    let bound = |bound: &Option<Value>| match bound {
        None | Some(Value::None) => Ok(None),
        Some(bound) => match bound.as_int() {
            Some(bound) => Ok(Some(bound)),
            None => fail(format!("a slice by a {} is not supported", bound.type_name())),
        },
    };
    let (start, stop, step) = (bound(&bounds[0])?, bound(&bounds[1])?, bound(&bounds[2])?.unwrap_or(1));
    if let Value::Undefined(name) = value {
        return undefined(name);
    }
    let chars: Vec<char>;
    let len = match value {
        Value::Str(text) => {
            runtime.budget.work(text.len())?;
            value.len().unwrap_or_default()
        }
        Value::List(_) | Value::Tuple(_) | Value::Range(_) => value.len().unwrap_or_default(),
        other => return fail(format!("a slice of a {} is not supported", other.type_name())),
    };
    if step == 0 {
        return fail("slice step cannot be zero");
    }
    let (first, last, count) = slice_indices(start, stop, step, len as i128);
    if let Value::Range(range) = value {
        let (start, stop) = (range.start + range.step * first, range.start + range.step * last);
        let step = range.step.checked_mul(step).ok_or_else(overflow)?;
        return Ok(Value::Range(Range { start, step, len: count, stop }));
    }
    let index = |i: usize| (first + step * i as i128) as usize;
    match value {
        Value::Str(text) if text.is_ascii() && step == 1 => {
            runtime.str(if count == 0 { "" } else { &text[index(0)..index(0) + count] })
        }
        Value::Str(text) => {
            runtime.budget.memory(4 * len + 4 * count)?;
            chars = text.chars().collect();
            runtime.str((0..count).map(|i| chars[index(i)]).collect::<String>())
        }
        other => {
            let items = runtime.iterate(other)?;
            runtime.budget.elements(count)?;
            let values = (0..count).map(|i| items.values[index(i)].clone()).collect();
            if matches!(other, Value::List(_)) { runtime.list(values) } else { runtime.tuple(values) }
        }
    }
}

/// The first index, the index to stop before, and the number of elements of a slice of `len` elements.
fn slice_indices(start: Option<i128>, stop: Option<i128>, step: i128, len: i128) -> (i128, i128, usize) {
    let (lowest, highest) = if step > 0 { (0, len) } else { (-1, len - 1) };
    let clamp = |bound: i128| (if bound < 0 { bound.saturating_add(len) } else { bound }).clamp(lowest, highest);
    let start = start.map_or(if step > 0 { lowest } else { highest }, clamp);
    let stop = stop.map_or(if step > 0 { highest } else { lowest }, clamp);
    let distance = if step > 0 { stop - start } else { start - stop };
    let stride = step.unsigned_abs().min(i128::MAX as u128) as i128;
    let count = if distance <= 0 { 0 } else { (distance - 1) / stride + 1 };
    (start, stop, usize::try_from(count).unwrap_or(0))
}
