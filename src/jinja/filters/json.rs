//! `tojson` as transformers defines it: Python's `json.dumps`, without the escapes for HTML of Jinja2's own.

use std::sync::Arc;

use crate::jinja::budget::Text;
use crate::jinja::error::{Result, fail};
use crate::jinja::filters::sort::sorted_by;
use crate::jinja::runtime::{Args, Runtime, str_argument};
use crate::jinja::text::{elements, float_repr};
use crate::jinja::value::{Key, Value};

/// `json.dumps(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub(super) fn tojson(runtime: &Runtime, value: Value, args: Args) -> Result<Value> {
    let [ensure_ascii, indent, separators, sort_keys] =
        args.bind("tojson", ["ensure_ascii", "indent", "separators", "sort_keys"])?;
    let indent: Option<Arc<str>> = match indent {
        None | Some(Value::None) => None,
        Some(Value::Str(text)) => Some(text),
        Some(other) => match other.as_int() {
            Some(width) => {
                let mut spaces = runtime.text();
                spaces.repeat(" ", usize::try_from(width.max(0)).unwrap_or(usize::MAX))?;
                Some(spaces.into_string().into())
            }
            None => return fail("tojson: indent is neither a number nor a text"),
        },
    };
    // Python ends a line after a bare comma once it indents.
    let mut style = Style {
        item: if indent.is_some() { "," } else { ", " }.into(),
        key: ": ".into(),
        indent,
        ensure_ascii: ensure_ascii.is_some_and(|value| value.truth()),
        sort_keys: sort_keys.is_some_and(|value| value.truth()),
    };
    if let Some(separators) = separators.filter(|separators| !matches!(separators, Value::None)) {
        let Some([item, key]) = elements(&separators).map(|items| &*items.values) else {
            return fail("tojson: separators are two texts");
        };
        style.item = Arc::clone(str_argument(item, "tojson")?);
        style.key = Arc::clone(str_argument(key, "tojson")?);
    }
    let mut out = runtime.text();
    write(runtime, &value, &style, 0, &mut out)?;
    Ok(Value::Str(out.into_string().into()))
}

struct Style {
    item: Arc<str>,
    key: Arc<str>,
    indent: Option<Arc<str>>,
    ensure_ascii: bool,
    sort_keys: bool,
}

impl Style {
    /// Starts a line at a depth, if values are indented.
    fn line(&self, depth: usize, out: &mut Text<'_>) -> Result<()> {
        if let Some(indent) = &self.indent {
            out.push("\n")?;
            out.repeat(indent, depth)?;
        }
        Ok(())
    }
}

fn write(runtime: &Runtime, value: &Value, style: &Style, depth: usize, out: &mut Text<'_>) -> Result<()> {
    runtime.budget.work(20)?;
    match value {
        Value::None => out.push("null"),
        Value::Bool(true) => out.push("true"),
        Value::Bool(false) => out.push("false"),
        Value::Int(value) => out.push(&value.to_string()),
        Value::Float(value) => out.push(&float(*value)),
        Value::Str(text) | Value::Markup(text) => string(text, style.ensure_ascii, out),
        Value::List(items) | Value::Tuple(items) => {
            if items.values.is_empty() {
                return out.push("[]");
            }
            out.push("[")?;
            for (i, value) in items.values.iter().enumerate() {
                out.push(if i > 0 { &style.item } else { "" })?;
                style.line(depth + 1, out)?;
                write(runtime, value, style, depth + 1, out)?;
            }
            style.line(depth, out)?;
            out.push("]")
        }
        Value::Dict(dict) => {
            if dict.entries.is_empty() {
                return out.push("{}");
            }
            let mut entries: Vec<(&Key, &Value)> = dict.entries.iter().collect();
            if style.sort_keys {
                runtime.budget.elements(2 * entries.len())?;
                entries = sorted_by(runtime, entries, |(key, _)| key.value(), false)?;
            }
            out.push("{")?;
            for (i, (key, value)) in entries.into_iter().enumerate() {
                out.push(if i > 0 { &style.item } else { "" })?;
                style.line(depth + 1, out)?;
                match key.value() {
                    Value::Str(text) => string(text, style.ensure_ascii, out)?,
                    other => {
                        out.push("\"")?;
                        write(runtime, other, style, depth, out)?;
                        out.push("\"")?;
                    }
                }
                out.push(&style.key)?;
                write(runtime, value, style, depth + 1, out)?;
            }
            style.line(depth, out)?;
            out.push("}")
        }
        other => fail(format!("tojson cannot write this: an object of type {}", other.type_name())),
    }
}

fn float(value: f64) -> String {
    if value.is_nan() {
        "NaN".to_owned()
    } else if value.is_infinite() {
        if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned()
    } else {
        float_repr(value)
    }
}

fn string(text: &str, ensure_ascii: bool, out: &mut Text<'_>) -> Result<()> {
    out.push("\"")?;
    let mut rest = text;
    let special = |c: char| matches!(c, '"' | '\\' | '\0'..='\u{1f}') || (ensure_ascii && !matches!(c, ' '..='~'));
    while let Some(at) = rest.find(special) {
        out.push(&rest[..at])?;
        let c = rest[at..].chars().next().unwrap_or_default();
        match c {
            '"' => out.push("\\\"")?,
            '\\' => out.push("\\\\")?,
            '\n' => out.push("\\n")?,
            '\r' => out.push("\\r")?,
            '\t' => out.push("\\t")?,
            '\u{8}' => out.push("\\b")?,
            '\u{c}' => out.push("\\f")?,
            c => c.encode_utf16(&mut [0; 2]).iter().try_for_each(|unit| out.push(&format!("\\u{unit:04x}")))?,
        }
        rest = &rest[at + c.len_utf8()..];
    }
    out.push(rest)?;
    out.push("\"")
}
