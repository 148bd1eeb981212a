//! Filters that make texts.

use std::fmt::Write as _;
use std::rc::Rc;
use std::sync::Arc;

use crate::jinja::attributes::{get_path, parse_path};
use crate::jinja::chars::{is_line_end, is_space, is_word};
use crate::jinja::error::{Result, fail};
use crate::jinja::format::percent;
use crate::jinja::methods;
use crate::jinja::runtime::{Args, Runtime, int_argument, required, str_argument};
use crate::jinja::text::{plain_str, str_of, write_str};
use crate::jinja::value::{Key, Value, View};

/// A method of the value's text.
fn text_method(runtime: &Runtime, value: &Value, name: &str, args: Args) -> Result<Value> {
    methods::call(runtime, &Value::Str(plain_str(runtime, value)?), name, args)
}

pub(super) fn upper(runtime: &Runtime, value: Value, args: Args) -> Result<Value> {
    text_method(runtime, &value, "upper", args)
}

pub(super) fn lower(runtime: &Runtime, value: Value, args: Args) -> Result<Value> {
    text_method(runtime, &value, "lower", args)
}

pub(super) fn capitalize(runtime: &Runtime, value: Value, args: Args) -> Result<Value> {
    text_method(runtime, &value, "capitalize", args)
}

pub(super) fn trim(runtime: &Runtime, value: Value, args: Args) -> Result<Value> {
    let [chars] = args.bind("trim", ["chars"])?;
    let positional = chars.into_iter().collect();
    text_method(runtime, &value, "strip", Args { positional, named: Vec::new() })
}

pub(super) fn center(runtime: &Runtime, value: Value, args: Args) -> Result<Value> {
    let [width] = args.bind("center", ["width"])?;
    let positional = vec![width.unwrap_or(Value::Int(80))];
    text_method(runtime, &value, "center", Args { positional, named: Vec::new() })
}

pub(super) fn replace(runtime: &Runtime, value: Value, args: Args) -> Result<Value> {
    let [old, new, count] = args.bind("replace", ["old", "new", "count"])?;
    let old = str_of(runtime, &required(old, "replace")?)?;
    let new = str_of(runtime, &required(new, "replace")?)?;
    let count = count.filter(|count| !matches!(count, Value::None)).unwrap_or(Value::Int(-1));
    let positional = vec![Value::Str(old), Value::Str(new), count];
    let text = Value::Str(str_of(runtime, &value)?);
    methods::call(runtime, &text, "replace", Args { positional, named: Vec::new() })
}

/// Jinja2's own: a word begins behind whitespace, a hyphen or an opening bracket.
pub(super) fn title(runtime: &Runtime, value: Value, args: Args) -> Result<Value> {
    args.none("title")?;
    let text = plain_str(runtime, &value)?;
    runtime.budget.work(8 * text.len())?;
    runtime.budget.memory(6 * text.len())?;
    if text.contains('Σ') {
        return fail("title is not supported for this text");
    }
    let mut out = String::new();
    let mut in_word = false;
    for c in text.chars() {
        let begins = matches!(c, '-' | '(' | '{' | '[' | '<') || is_space(c);
        if in_word {
            out.extend(c.to_lowercase());
        } else {
            out.extend(c.to_uppercase());
        }
        in_word = !begins;
    }
    Ok(Value::Str(out.into()))
}

pub(super) fn string(runtime: &Runtime, value: Value, args: Args) -> Result<Value> {
    args.none("string")?;
    match value {
        Value::Str(_) | Value::Markup(_) => Ok(value),
        other => Ok(Value::Str(str_of(runtime, &other)?)),
    }
}

pub(super) fn safe(runtime: &Runtime, value: Value, args: Args) -> Result<Value> {
    args.none("safe")?;
    Ok(Value::Markup(str_of(runtime, &value)?))
}

pub(super) fn escape(runtime: &Runtime, value: Value, args: Args) -> Result<Value> {
    args.none("escape")?;
    if let Value::Markup(_) = value {
        return Ok(value);
    }
    let text = str_of(runtime, &value)?;
    let mut out = runtime.text();
    for c in text.chars() {
        match c {
            '&' => out.push("&amp;")?,
            '<' => out.push("&lt;")?,
            '>' => out.push("&gt;")?,
            '\'' => out.push("&#39;")?,
            '"' => out.push("&#34;")?,
            c => out.push_char(c)?,
        }
    }
    Ok(Value::Markup(out.into_string().into()))
}

pub(super) fn format(runtime: &Runtime, value: Value, args: Args) -> Result<Value> {
    let template = plain_str(runtime, &value)?;
    if args.named.is_empty() {
        return percent(runtime, &template, &runtime.tuple(args.positional)?);
    }
    if !args.positional.is_empty() {
        return fail("can't handle positional and keyword arguments at the same time");
    }
    let entries = args.named.into_iter().map(|(name, value)| (Key::text(name), value)).collect();
    percent(runtime, &template, &runtime.dict(entries)?)
}

pub(super) fn join(runtime: &Runtime, value: Value, args: Args) -> Result<Value> {
    let [separator, attribute] = args.bind("join", ["d", "attribute"])?;
    let separator: Arc<str> = match separator {
        Some(separator) => str_of(runtime, &separator)?,
        None => "".into(),
    };
    let path = parse_path(runtime, &attribute.unwrap_or(Value::None))?;
    let mut out = runtime.text();
    for (i, item) in runtime.iterate(&value)?.values.iter().enumerate() {
        out.push(if i > 0 { &separator } else { "" })?;
        let item = if path.is_empty() { item.clone() } else { get_path(runtime, item, &path, None)? };
        write_str(runtime, &item, &mut out)?;
    }
    Ok(Value::Str(out.into_string().into()))
}

/// Lines as `str.splitlines` gives them.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text).filter(|text| !text.is_empty());
    std::iter::from_fn(move || {
        let text = rest?;
        let Some(end) = text.find(is_line_end) else {
            rest = None;
            return Some(text);
        };
        let width =
            if text[end..].starts_with("\r\n") { 2 } else { text[end..].chars().next().map_or(1, char::len_utf8) };
        rest = Some(&text[end + width..]).filter(|rest| !rest.is_empty());
        Some(&text[..end])
    })
}

pub(super) fn indent(runtime: &Runtime, value: Value, args: Args) -> Result<Value> {
    let [width, first, blank] = args.bind("indent", ["width", "first", "blank"])?;
    let text = str_argument(&value, "indent")?;
    let (first, blank) = (first.is_some_and(|v| v.truth()), blank.is_some_and(|v| v.truth()));
    let mut indention = runtime.text();
    match width.unwrap_or(Value::Int(4)) {
        Value::Str(text) => indention.push(&text)?,
        width => {
            let width = int_argument(&width, "indent")?.max(0);
            indention.repeat(" ", usize::try_from(width).unwrap_or(usize::MAX))?;
        }
    }
    let mut out = runtime.text();
    let ended = [text, "\n"].concat();
    runtime.budget.memory(ended.len())?;
    for (i, line) in lines(&ended).enumerate() {
        out.push(if i > 0 { "\n" } else { "" })?;
        let indented = if i == 0 { first } else { blank || !line.is_empty() };
        out.push(if indented { indention.as_str() } else { "" })?;
        out.push(line)?;
    }
    Ok(Value::Str(out.into_string().into()))
}

pub(super) fn truncate(runtime: &Runtime, value: Value, args: Args) -> Result<Value> {
    let [length, killwords, end, leeway] = args.bind("truncate", ["length", "killwords", "end", "leeway"])?;
    let length = length.map_or(Ok(255), |length| int_argument(&length, "truncate"))?;
    let leeway = match leeway {
        None | Some(Value::None) => 5,
        Some(leeway) => int_argument(&leeway, "truncate")?,
    };
    let end = end.unwrap_or_else(|| Value::Str("...".into()));
    let end = str_argument(&end, "truncate")?;
    let end_length = end.chars().count() as i128;
    if length < end_length || leeway < 0 {
        return fail("truncate needs a length of at least its end's, and a leeway that is not negative");
    }
    if let Value::Str(text) = &value {
        runtime.budget.work(text.len())?;
    }
    // Whatever is short enough is not asked what it is.
    match value.len() {
        Some(len) if len as i128 <= length.saturating_add(leeway) => return Ok(value),
        Some(_) => {}
        None => return fail(format!("object of type '{}' has no len()", value.type_name())),
    }
    let Value::Str(text) = &value else {
        return fail(format!("truncating a {} is not supported", value.type_name()));
    };
    let kept = usize::try_from(length - end_length).unwrap_or(usize::MAX);
    let mut start = &text[..text.char_indices().nth(kept).map_or(text.len(), |(at, _)| at)];
    if !killwords.is_some_and(|killwords| killwords.truth()) {
        start = start.rsplit_once(' ').map_or(start, |(words, _)| words);
    }
    runtime.str([start, end].concat())
}

pub(super) fn wordcount(runtime: &Runtime, value: Value, args: Args) -> Result<Value> {
    args.none("wordcount")?;
    let text = plain_str(runtime, &value)?;
    runtime.budget.work(20 * text.len())?;
    let (mut count, mut in_word) = (0, false);
    for c in text.chars() {
        let is_word = is_word(c);
        count += i128::from(is_word && !in_word);
        in_word = is_word;
    }
    Ok(Value::Int(count))
}

pub(super) fn urlencode(runtime: &Runtime, value: Value, args: Args) -> Result<Value> {
    args.none("urlencode")?;
    let mut out = runtime.text();
    let pairs = match &value {
        Value::Dict(dict) => Some(Value::View(View::Items, Rc::clone(dict))),
        Value::Str(_) | Value::None | Value::Bool(_) | Value::Int(_) | Value::Float(_) => None,
        other => Some(other.clone()),
    };
    let Some(pairs) = pairs else {
        quote(&plain_str(runtime, &value)?, false, &mut out)?;
        return Ok(Value::Str(out.into_string().into()));
    };
    for (i, pair) in runtime.iterate(&pairs)?.values.iter().enumerate() {
        out.push(if i > 0 { "&" } else { "" })?;
        let pair = runtime.iterate(pair)?;
        let [key, value] = &*pair.values else { return fail("urlencode needs pairs") };
        quote(&plain_str(runtime, key)?, true, &mut out)?;
        out.push("=")?;
        quote(&plain_str(runtime, value)?, true, &mut out)?;
    }
    Ok(Value::Str(out.into_string().into()))
}

/// Percent-encoding; in a query string the slash is encoded too, and a space is a plus.
fn quote(text: &str, in_query: bool, out: &mut crate::jinja::budget::Text<'_>) -> Result<()> {
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' => out.push_char(byte.into())?,
            b'/' if !in_query => out.push("/")?,
            b' ' if in_query => out.push("+")?,
            _ => {
                let mut escape = String::new();
                let _ = write!(escape, "%{byte:02X}");
                out.push(&escape)?;
            }
        }
    }
    Ok(())
}
