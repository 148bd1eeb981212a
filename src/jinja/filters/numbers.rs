//! Filters that compute numbers.

use crate::jinja::chars::is_space;
use crate::jinja::error::{Result, fail, undefined};
use crate::jinja::ops::{Math, math};
use crate::jinja::runtime::{Args, Runtime, int_argument, str_argument};
use crate::jinja::text::float_repr;
use crate::jinja::value::Value;

pub(super) fn abs(_: &Runtime, value: Value, args: Args) -> Result<Value> {
    args.none("abs")?;
    match &value {
        Value::Undefined(name) => undefined(name),
        Value::Float(value) => Ok(Value::Float(value.abs())),
        other => match other.as_int().map(i128::checked_abs) {
            Some(Some(value)) => Ok(Value::Int(value)),
            Some(None) => fail("an integer is too large"),
            None => fail(format!("abs needs a number, not a {}", other.type_name())),
        },
    }
}

/// Python's `int(text, base)`; `None` where it raises a `ValueError`.
fn parse_int(text: &str, base: i128) -> Result<Option<Value>> {
    if !text.is_ascii() && text.chars().any(|c| !c.is_ascii() && !is_space(c)) {
        return match text.chars().any(|c| !c.is_ascii() && c.is_numeric()) {
            true => fail("reading numbers in other digits than ASCII's is not supported"),
            false => Ok(None),
        };
    }
    let text = text.trim_matches(is_space);
    let (negative, digits) = match text.strip_prefix(['+', '-']) {
        Some(digits) => (text.starts_with('-'), digits),
        None => (false, text),
    };
    let prefix = digits.get(..2).map(str::to_ascii_lowercase);
    let (radix, mut digits) = match (prefix.as_deref(), base) {
        (Some("0x"), 0 | 16) => (16, &digits[2..]),
        (Some("0o"), 0 | 8) => (8, &digits[2..]),
        (Some("0b"), 0 | 2) => (2, &digits[2..]),
        (_, 0) if digits.starts_with('0') && digits.bytes().any(|b| b.is_ascii_digit() && b != b'0') => {
            return Ok(None);
        }
        (_, 0) => (10, digits),
        (_, 2..=36) => (base as u32, digits),
        _ => return fail("int() base must be >= 2 and <= 36, or 0"),
    };
    if radix != 10 || base == 0 {
        digits = digits.strip_prefix('_').filter(|_| base == 0 || prefix.is_some()).unwrap_or(digits);
    }
    let is_number = !digits.is_empty()
        && !digits.ends_with('_')
        && !digits.starts_with('_')
        && !digits.contains("__")
        && digits.chars().all(|c| c == '_' || c.is_digit(radix));
    if !is_number {
        return Ok(None);
    }
    match i128::from_str_radix(&digits.replace('_', ""), radix) {
        Ok(value) => Ok(Some(Value::Int(if negative { -value } else { value }))),
        Err(_) => fail("an integer is too large"),
    }
}

/// Python's `float(text)`; `None` where it raises a `ValueError`.
fn parse_float(text: &str) -> Result<Option<f64>> {
    if text.chars().any(|c| !c.is_ascii() && c.is_numeric()) {
        return fail("reading numbers in other digits than ASCII's is not supported");
    }
    let text = text.trim_matches(is_space);
    let bytes = text.as_bytes();
    let between_digits =
        |i: usize| i > 0 && bytes[i - 1].is_ascii_digit() && bytes.get(i + 1).is_some_and(u8::is_ascii_digit);
    if bytes.iter().enumerate().any(|(i, &b)| b == b'_' && !between_digits(i)) {
        return Ok(None);
    }
    Ok(text.replace('_', "").parse().ok())
}

/// `int(float)`.
fn truncated(value: f64) -> Result<Option<Value>> {
    if !value.is_finite() {
        return Ok(None);
    }
    if value.abs() >= 1e38 { fail("an integer is too large") } else { Ok(Some(Value::Int(value as i128))) }
}

pub(super) fn int(runtime: &Runtime, value: Value, args: Args) -> Result<Value> {
    let [default, base] = args.bind("int", ["default", "base"])?;
    let base = base.map_or(Ok(10), |base| int_argument(&base, "int"))?;
    let found = match &value {
        Value::Undefined(name) => return undefined(name),
        Value::Str(text) => {
            runtime.budget.work(4 * text.len())?;
            match parse_int(text, base)? {
                Some(value) => Some(value),
                None => match parse_float(text)? {
                    Some(value) => truncated(value)?,
                    None => None,
                },
            }
        }
        Value::Markup(_) => return fail("int is not supported for a safe text"),
        // `int(float('inf'))` is an OverflowError that Jinja2 does not catch the first time.
        Value::Float(value) if value.is_infinite() => return fail("cannot convert float infinity to integer"),
        Value::Float(value) => truncated(*value)?,
        other => other.as_int().map(Value::Int),
    };
    Ok(found.unwrap_or(default.unwrap_or(Value::Int(0))))
}

pub(super) fn float(runtime: &Runtime, value: Value, args: Args) -> Result<Value> {
    let [default] = args.bind("float", ["default"])?;
    let found = match &value {
        Value::Undefined(name) => return undefined(name),
        Value::Str(text) => {
            runtime.budget.work(4 * text.len())?;
            parse_float(text)?
        }
        Value::Markup(_) => return fail("float is not supported for a safe text"),
        other => other.as_float(),
    };
    Ok(found.map(Value::Float).unwrap_or(default.unwrap_or(Value::Float(0.0))))
}

pub(super) fn round(_: &Runtime, value: Value, args: Args) -> Result<Value> {
    let [precision, method] = args.bind("round", ["precision", "method"])?;
    let precision = precision.map_or(Ok(0), |precision| int_argument(&precision, "round"))?;
    let method = method.unwrap_or(Value::Str("common".into()));
    let method = str_argument(&method, "round")?;
    if let Value::Undefined(name) = &value {
        return undefined(name);
    }
    let Some(number) = value.as_float() else {
        return fail(format!("round needs a number, not a {}", value.type_name()));
    };
    match &**method {
        "common" => match value.as_int() {
            Some(whole) if precision >= 0 => Ok(Value::Int(whole)),
            _ if precision < 0 => fail("rounding to tens is not supported"),
            _ if !number.is_finite() || precision > 300 => Ok(Value::Float(number)),
            // Writing digits rounds the exact value, half to even, as Python does.
            _ => Ok(Value::Float(format!("{number:.*}", precision as usize).parse().unwrap_or(number))),
        },
        "ceil" | "floor" => {
            if !(0..=22).contains(&precision) {
                return fail("rounding to this precision is not supported");
            }
            let factor = 10_f64.powi(precision as i32);
            let scaled = number * factor;
            let whole = if &**method == "ceil" { scaled.ceil() } else { scaled.floor() };
            if whole.is_nan() || whole.abs() > 9_007_199_254_740_992.0 {
                return fail("rounding a number of this size is not supported");
            }
            // Python's `ceil` and `floor` are integers, which have no negative zero.
            Ok(Value::Float((whole + 0.0) / factor))
        }
        _ => fail("method must be common, ceil or floor"),
    }
}

pub(super) fn sum(runtime: &Runtime, value: Value, args: Args) -> Result<Value> {
    let [attribute, start] = args.bind("sum", ["attribute", "start"])?;
    let path = crate::jinja::attributes::parse_path(runtime, &attribute.unwrap_or(Value::None))?;
    let mut total = start.unwrap_or(Value::Int(0));
    if matches!(total, Value::Str(_)) {
        return fail("sum() can't sum strings");
    }
    for item in &runtime.iterate(&value)?.values {
        runtime.budget.work(50)?;
        let item = crate::jinja::attributes::get_path(runtime, item, &path, None)?;
        total = math(runtime, Math::Add, &total, &item)?;
    }
    Ok(total)
}

pub(super) fn filesizeformat(runtime: &Runtime, value: Value, args: Args) -> Result<Value> {
    let [binary] = args.bind("filesizeformat", ["binary"])?;
    let binary = binary.is_some_and(|binary| binary.truth());
    let bytes = match &value {
        Value::Undefined(name) => return undefined(name),
        Value::Str(text) => parse_float(text)?,
        other => other.as_float(),
    };
    let Some(bytes) = bytes.filter(|bytes| bytes.is_finite()) else { return fail("filesizeformat needs a number") };
    let base: f64 = if binary { 1024.0 } else { 1000.0 };
    if bytes == 1.0 {
        return runtime.str("1 Byte");
    }
    if bytes < base {
        return runtime.str(format!("{} Bytes", float_repr(bytes.trunc()).trim_end_matches(".0").replace("-0", "0")));
    }
    let prefixes = ["k", "M", "G", "T", "P", "E", "Z", "Y"];
    let mut text = String::new();
    for (i, prefix) in prefixes.iter().enumerate() {
        let unit = base.powi(i as i32 + 2);
        let name = if binary { prefix.to_uppercase() + "iB" } else { format!("{prefix}B") };
        text = format!("{:.1} {name}", base * bytes / unit);
        if bytes < unit {
            break;
        }
    }
    runtime.str(text)
}
