//! Python's `'…' % values` and `'…'.format(values)`.

use std::sync::Arc;

use super::attributes::{get_attribute, get_item};
use super::error::{Result, TemplateError, fail, quoted, undefined};
use super::runtime::{Args, Runtime};
use super::text::{float_repr, str_of, write_repr};
use super::value::Value;

/// Widths and precisions beyond this are refused.
const MAX_WIDTH: usize = 1 << 20;
const MAX_PRECISION: usize = 1000;

/// How one value is laid out.
#[derive(Default)]
struct Spec {
    fill: Option<char>,
    /// `<`, `>`, `^`, or `=` (padding between sign and digits).
    align: Option<char>,
    /// `+` or a space.
    sign: Option<char>,
    alternate: bool,
    grouping: Option<char>,
    width: usize,
    precision: Option<usize>,
    kind: Option<char>,
}

/// Reads a number at the start of a text.
fn number(text: &str, max: usize, what: &str) -> Result<(Option<usize>, usize)> {
    let length = text.bytes().take_while(u8::is_ascii_digit).count();
    match text[..length].parse::<usize>() {
        _ if length == 0 => Ok((None, 0)),
        Ok(number) if number <= max => Ok((Some(number), length)),
        _ => fail(format!("a {what} above {max} is not supported")),
    }
}

/// `template % values`.
pub(super) fn percent(runtime: &Runtime, template: &str, values: &Value) -> Result<Value> {
    runtime.budget.work(20 * template.len())?;
    let mut out = runtime.text();
    let mut positional = match values {
        Value::Tuple(items) => items.values.iter(),
        other => std::slice::from_ref(other).iter(),
    };
    let mut rest = template;
    while let Some(at) = rest.find('%') {
        out.push(&rest[..at])?;
        rest = &rest[at + 1..];
        let mut named = None;
        if let Some(after) = rest.strip_prefix('(') {
            let Some(end) = after.find(')') else { return fail("incomplete format key") };
            let Value::Dict(dict) = values else { return fail("format requires a mapping") };
            let key = &after[..end];
            if key.contains('(') {
                return fail("a format key with parentheses is not supported");
            }
            let found = dict.get_text(key);
            named = Some(found.ok_or_else(|| TemplateError::new(format!("no value for '{}'", quoted(key))))?);
            rest = &after[end + 1..];
        }
        let mut spec = Spec::default();
        let (mut zero, mut left) = (false, false);
        while let Some(flag) = rest.chars().next().filter(|c| "-+ 0#".contains(*c)) {
            match flag {
                '-' => left = true,
                '+' => spec.sign = Some('+'),
                ' ' => spec.sign = spec.sign.or(Some(' ')),
                '0' => zero = true,
                _ => spec.alternate = true,
            }
            rest = &rest[1..];
        }
        let (width, length) = number(rest, MAX_WIDTH, "width")?;
        spec.width = width.unwrap_or(0);
        rest = &rest[length..];
        if let Some(after) = rest.strip_prefix('.') {
            let (precision, length) = number(after, MAX_PRECISION, "precision")?;
            spec.precision = Some(precision.unwrap_or(0));
            rest = &after[length..];
        }
        rest = rest.strip_prefix(['l', 'h', 'L']).unwrap_or(rest);
        let Some(kind) = rest.chars().next() else { return fail("incomplete format") };
        rest = &rest[kind.len_utf8()..];
        if kind == '%' {
            out.push("%")?;
            continue;
        }
        let value = match named.or_else(|| positional.next()) {
            Some(value) => value,
            None => return fail("not enough arguments for format string"),
        };
        spec.align = Some(if left { '<' } else { '>' });
        if zero && !left && !matches!(kind, 's' | 'r' | 'c') {
            (spec.fill, spec.align) = (Some('0'), Some('='));
        }
        let text = percent_value(runtime, kind, value, &mut spec)?;
        pad(&text, &spec, &mut out)?;
    }
    out.push(rest)?;
    let takes_rest = matches!(values, Value::Dict(_) | Value::List(_) | Value::Range(_) | Value::Undefined(_));
    if positional.next().is_some() && !takes_rest {
        return fail("not all arguments converted during string formatting");
    }
    Ok(Value::Str(out.into_string().into()))
}

fn percent_value(runtime: &Runtime, kind: char, value: &Value, spec: &mut Spec) -> Result<String> {
    match kind {
        's' | 'r' => {
            let mut out = runtime.text();
            match kind {
                's' if matches!(value, Value::Markup(_)) => return fail("this is not supported for a safe text"),
                's' => out.push(&str_of(runtime, value)?)?,
                _ => write_repr(runtime, value, &mut out)?,
            }
            Ok(cut(out.into_string(), spec.precision))
        }
        'c' => match value {
            Value::Str(text) if text.chars().count() == 1 => Ok(text.to_string()),
            other => match other.as_int().and_then(|code| char::from_u32(u32::try_from(code).ok()?)) {
                Some(c) => Ok(c.to_string()),
                None => fail("%c requires int or char"),
            },
        },
        'd' | 'i' | 'u' => {
            let whole = match value {
                Value::Undefined(name) => return undefined(name),
                Value::Float(f) if f.is_finite() && f.abs() < 1e38 => f.trunc() as i128,
                other => match other.as_int() {
                    Some(value) => value,
                    None => return fail(format!("%{kind} format: a number is required, not {}", value.type_name())),
                },
            };
            Ok(signed(whole < 0, &at_least(whole.unsigned_abs().to_string(), spec.precision), spec))
        }
        'x' | 'X' | 'o' => match value.as_int() {
            Some(whole) => {
                let plain = Spec { alternate: spec.alternate, kind: Some(kind), ..Spec::default() };
                let digits = at_least(radix(whole.unsigned_abs(), kind), spec.precision);
                let digits = if plain.alternate { format!("0{kind}{digits}") } else { digits };
                Ok(signed(whole < 0, &digits, spec))
            }
            None => fail(format!("%{kind} format: an integer is required, not {}", value.type_name())),
        },
        'e' | 'E' | 'f' | 'F' | 'g' | 'G' => match (value, value.as_float()) {
            (Value::Undefined(name), _) => undefined(name),
            (_, Some(f)) => Ok(signed(f.is_sign_negative() && !f.is_nan(), &float(f, kind, spec)?, spec)),
            _ => fail(format!("must be real number, not {}", value.type_name())),
        },
        'a' => fail("the format %a is not supported"),
        other => fail(format!("unsupported format character '{}'", other.escape_default())),
    }
}

/// Digits with zeros in front.
fn at_least(digits: String, precision: Option<usize>) -> String {
    let missing = precision.unwrap_or(0).saturating_sub(digits.len());
    "0".repeat(missing) + &digits
}

fn cut(text: String, precision: Option<usize>) -> String {
    match precision.and_then(|length| text.char_indices().nth(length)) {
        Some((end, _)) => text[..end].to_owned(),
        None => text,
    }
}

fn signed(negative: bool, digits: &str, spec: &Spec) -> String {
    match (negative, spec.sign) {
        (true, _) => format!("-{digits}"),
        (false, Some(sign)) => format!("{sign}{digits}"),
        (false, None) => digits.to_owned(),
    }
}

fn radix(value: u128, kind: char) -> String {
    match kind {
        'b' => format!("{value:b}"),
        'o' => format!("{value:o}"),
        'x' => format!("{value:x}"),
        _ => format!("{value:X}"),
    }
}

/// The digits of a float's absolute value, as `e`, `f`, `g` or `%` write them.
fn float(value: f64, kind: char, spec: &Spec) -> Result<String> {
    let value = value.abs();
    let precision = spec.precision.unwrap_or(6);
    let text = match kind.to_ascii_lowercase() {
        _ if !value.is_finite() => float_repr(value),
        'f' => fixed(value, precision, spec.alternate),
        '%' => format!("{}%", fixed(value * 100.0, precision, spec.alternate)),
        'e' => exponent(value, precision, spec.alternate),
        _ => general(value, precision.max(1), spec.alternate),
    };
    Ok(if kind.is_ascii_uppercase() { text.to_ascii_uppercase() } else { text })
}

fn fixed(value: f64, precision: usize, alternate: bool) -> String {
    let text = format!("{value:.precision$}");
    if alternate && precision == 0 { text + "." } else { text }
}

fn exponent(value: f64, precision: usize, alternate: bool) -> String {
    let text = format!("{value:.precision$e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let sign = if exponent < 0 { '-' } else { '+' };
    let point = if alternate && precision == 0 { "." } else { "" };
    format!("{digits}{point}e{sign}{:02}", exponent.abs())
}

fn general(value: f64, precision: usize, alternate: bool) -> String {
    let scientific = exponent(value, precision - 1, alternate);
    let (digits, power) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let power_of_ten: i32 = power.parse().unwrap_or(0);
    let strip = |digits: &str| match digits.contains('.') && !alternate {
        true => digits.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => digits.to_owned(),
    };
    if power_of_ten < -4 || power_of_ten >= precision as i32 {
        return format!("{}e{power}", strip(digits));
    }
    strip(&fixed(value, (precision as i32 - 1 - power_of_ten) as usize, alternate))
}

/// Appends a text at its width.
fn pad(text: &str, spec: &Spec, out: &mut super::budget::Text<'_>) -> Result<()> {
    let missing = spec.width.saturating_sub(text.chars().count());
    let fill = spec.fill.unwrap_or(' ').to_string();
    match spec.align.unwrap_or('<') {
        '<' => {
            out.push(text)?;
            out.repeat(&fill, missing)
        }
        '^' => {
            out.repeat(&fill, missing / 2)?;
            out.push(text)?;
            out.repeat(&fill, missing - missing / 2)
        }
        '=' => {
            let mut prefix = usize::from(text.starts_with(['-', '+', ' ']));
            let after = text.as_bytes().get(prefix..prefix + 2).unwrap_or_default();
            if spec.alternate && matches!(after, b"0x" | b"0X" | b"0o" | b"0b") {
                prefix += 2;
            }
            out.push(&text[..prefix])?;
            out.repeat(&fill, missing)?;
            out.push(&text[prefix..])
        }
        _ => {
            out.repeat(&fill, missing)?;
            out.push(text)
        }
    }
}

/// `template.format(…)`, with the sandbox's access to attributes and items.
pub(super) fn str_format(runtime: &Runtime, template: &str, args: &Args) -> Result<Value> {
    runtime.budget.work(20 * template.len())?;
    let mut out = runtime.text();
    let mut next = Some(0);
    let mut rest = template;
    while let Some(at) = rest.find(['{', '}']) {
        out.push(&rest[..at])?;
        let brace = &rest[at..at + 1];
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix(brace) {
            out.push(brace)?;
            rest = after;
            continue;
        }
        let end = rest.find(['{', '}']).filter(|&end| brace == "{" && rest[end..].starts_with('}'));
        let Some(end) = end else {
            return fail("a format text has a single brace, or a field within a field, which is not supported");
        };
        let field = &rest[..end];
        rest = &rest[end + 1..];
        let (field, spec) = field.split_once(':').unwrap_or((field, ""));
        let (field, conversion) = match field.split_once('!') {
            Some((field, conversion)) => (field, Some(conversion)),
            None => (field, None),
        };
        let mut value = field_value(runtime, field, args, &mut next)?;
        match conversion {
            None => {}
            Some("s") => value = Value::Str(str_of(runtime, &value)?),
            Some("r") => {
                let mut text = runtime.text();
                write_repr(runtime, &value, &mut text)?;
                value = Value::Str(text.into_string().into());
            }
            Some(_) => return fail("this conversion of a format field is not supported"),
        }
        format_value(runtime, &value, spec, &mut out)?;
    }
    out.push(rest)?;
    Ok(Value::Str(out.into_string().into()))
}

/// The value of a field like `name`, `0.attribute` or `[key]`.
fn field_value(runtime: &Runtime, field: &str, args: &Args, next: &mut Option<usize>) -> Result<Value> {
    let end = field.find(['.', '[']).unwrap_or(field.len());
    let (first, mut path) = field.split_at(end);
    let position = match first.parse::<usize>() {
        Ok(position) if *next == Some(0) || next.is_none() => {
            *next = None;
            Some(position)
        }
        Ok(_) => return fail("cannot switch from automatic field numbering to manual field specification"),
        Err(_) if first.is_empty() => match next {
            Some(position) => {
                *position += 1;
                Some(*position - 1)
            }
            None => return fail("cannot switch from manual field specification to automatic field numbering"),
        },
        Err(_) => None,
    };
    let found = match position {
        Some(position) => args.positional.get(position),
        None => args.named.iter().find(|(name, _)| **name == *first).map(|(_, value)| value),
    };
    let Some(found) = found else { return fail(format!("no value for the format field '{}'", quoted(first))) };
    let mut value = found.clone();
    while !path.is_empty() {
        let (part, after, is_item) = if let Some(after) = path.strip_prefix('[') {
            let Some(end) = after.find(']') else { return fail("a format field has no ']'") };
            (&after[..end], &after[end + 1..], true)
        } else {
            let Some(after) = path.strip_prefix('.') else { return fail("a format field has no '.' or '[' here") };
            let end = after.find(['.', '[']).unwrap_or(after.len());
            (&after[..end], &after[end..], false)
        };
        let name: Arc<str> = part.into();
        value = match part.parse::<i128>() {
            _ if part.is_empty() => return fail("a format field has an empty attribute"),
            Ok(index) if is_item => get_item(runtime, &value, &Value::Int(index))?,
            _ if is_item => get_item(runtime, &value, &Value::Str(name))?,
            _ => get_attribute(runtime, &value, &name)?,
        };
        path = after;
    }
    Ok(value)
}

fn parse_spec(text: &str) -> Result<Spec> {
    let mut spec = Spec::default();
    let mut rest = text;
    let mut chars = rest.chars();
    let (first, second) = (chars.next(), chars.next());
    let is_align = |c: Option<char>| c.filter(|c| "<>^=".contains(*c));
    if let Some(align) = is_align(second) {
        (spec.fill, spec.align) = (first, Some(align));
        rest = &rest[first.map_or(0, char::len_utf8) + 1..];
    } else if let Some(align) = is_align(first) {
        spec.align = Some(align);
        rest = &rest[1..];
    }
    if let Some(sign) = rest.chars().next().filter(|c| "+- ".contains(*c)) {
        spec.sign = Some(sign).filter(|&sign| sign != '-');
        rest = &rest[1..];
    }
    if let Some(after) = rest.strip_prefix('#') {
        spec.alternate = true;
        rest = after;
    }
    if rest.starts_with('0') {
        spec.fill = spec.fill.or(Some('0'));
        spec.align = spec.align.or(Some('0')); // `=` for numbers, `<` for texts
    }
    let (width, length) = number(rest, MAX_WIDTH, "width")?;
    spec.width = width.unwrap_or(0);
    rest = &rest[length..];
    if let Some(grouping) = rest.chars().next().filter(|c| ",_".contains(*c)) {
        if spec.fill == Some('0') {
            return fail("a format with leading zeros and grouping is not supported");
        }
        spec.grouping = Some(grouping);
        rest = &rest[1..];
    }
    if let Some(after) = rest.strip_prefix('.') {
        let (precision, length) = number(after, MAX_PRECISION, "precision")?;
        spec.precision = Some(precision.ok_or_else(|| TemplateError::new("format specifier missing precision"))?);
        rest = &after[length..];
    }
    let mut kinds = rest.chars();
    spec.kind = kinds.next();
    if kinds.next().is_some() { fail("invalid format specifier") } else { Ok(spec) }
}

/// Appends `format(value, spec)`.
fn format_value(runtime: &Runtime, value: &Value, spec: &str, out: &mut super::budget::Text<'_>) -> Result<()> {
    if matches!(value, Value::Markup(_)) {
        return fail("formatting a text marked as safe is not supported");
    }
    if spec.is_empty() {
        return out.push(&str_of(runtime, value)?);
    }
    let mut spec = parse_spec(spec)?;
    let is_text = matches!(value, Value::Str(_));
    if spec.align == Some('0') {
        spec.align = Some(if is_text { '<' } else { '=' });
    }
    let text = match value {
        Value::Str(text) => {
            let plain = spec.sign.is_none() && !spec.alternate && spec.grouping.is_none() && spec.align != Some('=');
            if !plain || !matches!(spec.kind, None | Some('s')) {
                return fail("this format is not one of a text");
            }
            cut(text.to_string(), spec.precision)
        }
        Value::Float(f) => {
            spec.align = spec.align.or(Some('>'));
            format_float(*f, &spec)?
        }
        other => match other.as_int() {
            // `format(True, '5')` is that of the number.
            Some(whole) => {
                spec.align = spec.align.or(Some('>'));
                format_int(whole, &spec)?
            }
            None => return fail(format!("unsupported format string for a {}", other.type_name())),
        },
    };
    pad(&text, &spec, out)
}

fn format_int(value: i128, spec: &Spec) -> Result<String> {
    match spec.kind {
        Some('e' | 'E' | 'f' | 'F' | 'g' | 'G' | '%') => format_float(value as f64, spec),
        _ if spec.precision.is_some() => fail("precision not allowed in integer format specifier"),
        None | Some('d') => {
            let digits = grouped(&value.unsigned_abs().to_string(), 3, spec.grouping);
            Ok(signed(value < 0, &digits, spec))
        }
        Some(kind @ ('b' | 'o' | 'x' | 'X')) => {
            if spec.grouping == Some(',') {
                return fail("cannot specify ',' with this format");
            }
            let digits = grouped(&radix(value.unsigned_abs(), kind), 4, spec.grouping);
            Ok(signed(value < 0, &if spec.alternate { format!("0{kind}{digits}") } else { digits }, spec))
        }
        Some(kind) => fail(format!("the format '{}' of an integer is not supported", kind.escape_default())),
    }
}

fn format_float(value: f64, spec: &Spec) -> Result<String> {
    let digits = match spec.kind {
        None if spec.precision.is_none() => float_repr(value.abs()),
        None => {
            let digits = float(value, 'g', spec)?;
            let has_point = digits.contains(['.', 'e', 'n']);
            if has_point { digits } else { digits + ".0" }
        }
        Some(kind @ ('e' | 'E' | 'f' | 'F' | 'g' | 'G' | '%')) => float(value, kind, spec)?,
        Some(kind) => return fail(format!("the format '{}' of a float is not supported", kind.escape_default())),
    };
    let (whole, rest) = digits.split_at(digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len()));
    let digits = grouped(whole, 3, spec.grouping) + rest;
    Ok(signed(value.is_sign_negative() && !value.is_nan(), &digits, spec))
}

/// Digits in groups, counted from the right.
fn grouped(digits: &str, size: usize, separator: Option<char>) -> String {
    let Some(separator) = separator else { return digits.to_owned() };
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(size) {
            out.push(separator);
        }
        out.push(digit);
    }
    out
}
