//! `str` and `repr` of values, as Python writes them.

use std::fmt::Write as _;
use std::sync::Arc;

use super::budget::Text;
use super::chars::is_printable;
use super::error::{Result, fail};
use super::runtime::Runtime;
use super::value::{Items, Value, View};

/// `str(value)`.
pub(super) fn str_of(runtime: &Runtime, value: &Value) -> Result<Arc<str>> {
    match value {
        Value::Str(text) | Value::Markup(text) => Ok(Arc::clone(text)),
        _ => {
            let mut out = runtime.text();
            write_str(runtime, value, &mut out)?;
            Ok(out.into_string().into())
        }
    }
}

/// `str(value)` for a filter or method that makes another text of it.
pub(super) fn plain_str(runtime: &Runtime, value: &Value) -> Result<Arc<str>> {
    match value {
        Value::Markup(_) => fail("this is not supported for a text marked as safe"),
        other => str_of(runtime, other),
    }
}

/// Appends `str(value)`.
pub(super) fn write_str(runtime: &Runtime, value: &Value, out: &mut Text<'_>) -> Result<()> {
    match value {
        Value::Str(text) | Value::Markup(text) => out.push(text),
        Value::Undefined(_) => Ok(()),
        other => write_repr(runtime, other, out),
    }
}

/// Appends `repr(value)`.
pub(super) fn write_repr(runtime: &Runtime, value: &Value, out: &mut Text<'_>) -> Result<()> {
    runtime.budget.work(20)?;
    match value {
        Value::Undefined(_) => out.push("Undefined"),
        Value::None => out.push("None"),
        Value::Bool(true) => out.push("True"),
        Value::Bool(false) => out.push("False"),
        Value::Int(value) => out.push(&value.to_string()),
        Value::Float(value) => out.push(&float_repr(*value)),
        Value::Str(text) => write_quoted(text, out),
        Value::Markup(text) => {
            out.push("Markup(")?;
            write_quoted(text, out)?;
            out.push(")")
        }
        Value::List(items) => write_items(runtime, &items.values, "[", "]", out),
        Value::Tuple(items) if items.values.len() == 1 => write_items(runtime, &items.values, "(", ",)", out),
        Value::Tuple(items) => write_items(runtime, &items.values, "(", ")", out),
        Value::Dict(dict) => {
            out.push("{")?;
            for (i, (key, value)) in dict.entries.iter().enumerate() {
                out.push(if i > 0 { ", " } else { "" })?;
                write_repr(runtime, key.value(), out)?;
                out.push(": ")?;
                write_repr(runtime, value, out)?;
            }
            out.push("}")
        }
        Value::View(view, _) => {
            let items = runtime.iterate(value)?;
            let name = match view {
                View::Keys => "dict_keys([",
                View::Values => "dict_values([",
                View::Items => "dict_items([",
            };
            write_items(runtime, &items.values, name, "])", out)
        }
        Value::Range(range) if range.step == 1 => out.push(&format!("range({}, {})", range.start, range.stop)),
        Value::Range(range) => out.push(&format!("range({}, {}, {})", range.start, range.stop, range.step)),
        Value::Namespace(index) => {
            let attributes = runtime.namespaces.borrow()[*index].clone();
            runtime.budget.elements(attributes.len())?;
            out.push("<Namespace {")?;
            for (i, (name, value)) in attributes.iter().enumerate() {
                out.push(if i > 0 { ", " } else { "" })?;
                write_quoted(name, out)?;
                out.push(": ")?;
                runtime.nested(|| write_repr(runtime, value, out))?;
            }
            out.push("}>")
        }
        Value::Macro(index) => {
            let name = Arc::clone(&runtime.macro_names.borrow()[*index]);
            out.push("<Macro ")?;
            if name.is_empty() {
                out.push("anonymous")?
            } else {
                write_quoted(&name, out)?
            }
            out.push(">")
        }
        Value::Loop(run) => out.push(&format!("<LoopContext {}/{}>", run.index.get() + 1, run.items.values.len())),
        Value::Generator(_) | Value::Cycler(_) | Value::Joiner(_) | Value::Function(_) | Value::Method(_) => {
            fail(format!("a {} cannot be printed: its text in Python is an address", value.type_name()))
        }
    }
}

fn write_items(runtime: &Runtime, values: &[Value], open: &str, close: &str, out: &mut Text<'_>) -> Result<()> {
    out.push(open)?;
    for (i, value) in values.iter().enumerate() {
        out.push(if i > 0 { ", " } else { "" })?;
        write_repr(runtime, value, out)?;
    }
    out.push(close)
}

/// `repr` of a text.
fn write_quoted(text: &str, out: &mut Text<'_>) -> Result<()> {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push_char(quote)?;
    for c in text.chars() {
        match c {
            '\\' => out.push("\\\\")?,
            '\n' => out.push("\\n")?,
            '\r' => out.push("\\r")?,
            '\t' => out.push("\\t")?,
            c if c == quote => {
                out.push("\\")?;
                out.push_char(c)?;
            }
            c if is_printable(c) => out.push_char(c)?,
            c => {
                let mut escape = String::new();
                let code = c as u32;
                let _ = match code {
                    0..0x100 => write!(escape, "\\x{code:02x}"),
                    0x100..0x10000 => write!(escape, "\\u{code:04x}"),
                    _ => write!(escape, "\\U{code:08x}"),
                };
                out.push(&escape)?;
            }
        }
    }
    out.push_char(quote)
}

/// `repr(float)`: the shortest digits that round-trip, with an exponent below 1e-4 and from 1e16 on.
pub(super) fn float_repr(value: f64) -> String {
    if !value.is_finite() {
        return if value.is_nan() {
            "nan"
        } else if value > 0.0 {
            "inf"
        } else {
            "-inf"
        }
        .to_owned();
    }
    let scientific = format!("{value:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if value != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{digits}e{sign}{:02}", exponent.abs())
    } else if value.fract() == 0.0 {
        format!("{value:.1}")
    } else {
        value.to_string()
    }
}

/// The elements of a list or tuple; nothing for any other value.
pub(super) fn elements(value: &Value) -> Option<&Items> {
    match value {
        Value::List(items) | Value::Tuple(items) => Some(items),
        _ => None,
    }
}
