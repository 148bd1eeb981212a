//! The other methods of `str`.

use std::sync::Arc;

use crate::jinja::chars::{is_space, title_case};
use crate::jinja::error::{Result, TemplateError, fail, quoted};
use crate::jinja::format::str_format;
use crate::jinja::runtime::{Args, Runtime, int_argument, required, str_argument};
use crate::jinja::value::Value;

pub(super) fn call(runtime: &Runtime, text: &Arc<str>, name: &str, args: Args) -> Result<Value> {
    match name {
        "format" => str_format(runtime, text, &args),
        "format_map" => format_map(runtime, text, args),
        "strip" | "lstrip" | "rstrip" => {
            let [chars] = args.bind(name, [""])?;
            strip(runtime, text, chars, name != "rstrip", name != "lstrip")
        }
        "upper" | "lower" | "casefold" | "swapcase" | "capitalize" | "title" => {
            args.none(name)?;
            change_case(runtime, text, name)
        }
        "startswith" | "endswith" => affix(runtime, text, name, args),
        "removeprefix" | "removesuffix" => {
            let [affix] = args.bind(name, [""])?;
            let affix = required(affix, name)?;
            let affix = str_argument(&affix, name)?;
            let rest = if name == "removeprefix" { text.strip_prefix(&**affix) } else { text.strip_suffix(&**affix) };
            runtime.str(rest.unwrap_or(text))
        }
        "replace" => {
            let [old, new, count] = args.bind(name, ["", "", ""])?;
            let (old, new) = (required(old, name)?, required(new, name)?);
            let count = count.map_or(Ok(-1), |count| int_argument(&count, name))?;
            replace(runtime, text, str_argument(&old, name)?, str_argument(&new, name)?, count)
        }
        "find" | "rfind" | "index" | "rindex" | "count" => search(runtime, text, name, args),
        "join" => {
            let [parts] = args.bind(name, [""])?;
            let parts = runtime.iterate(&required(parts, name)?)?;
            let mut out = runtime.text();
            for (i, part) in parts.values.iter().enumerate() {
                out.push(if i > 0 { text } else { "" })?;
                out.push(str_argument(part, name)?)?;
            }
            Ok(Value::Str(out.into_string().into()))
        }
        "center" | "ljust" | "rjust" | "zfill" => {
            let [width, fill] = args.bind(name, ["", ""])?;
            let width = int_argument(&required(width, name)?, name)?;
            justify(runtime, text, name, width, fill)
        }
        "expandtabs" => {
            let [size] = args.bind(name, ["tabsize"])?;
            let size = size.map_or(Ok(8), |size| int_argument(&size, name))?;
            expand_tabs(runtime, text, size)
        }
        "encode" | "maketrans" | "translate" => fail(format!("the method '{name}' of a text is not supported")),
        _ => fail(format!("a text has no method '{}'", quoted(name))),
    }
}

fn format_map(runtime: &Runtime, text: &str, args: Args) -> Result<Value> {
    let [mapping] = args.bind("format_map", [""])?;
    let Some(Value::Dict(dict)) = mapping else { return fail("format_map takes a dict") };
    runtime.budget.elements(dict.entries.len())?;
    let named = dict.entries.iter().filter_map(|(key, value)| Some((Arc::clone(key.value().as_str()?), value.clone())));
    str_format(runtime, text, &Args { positional: Vec::new(), named: named.collect() })
}

/// `strip` and its one-sided forms.
pub(in crate::jinja) fn strip(
    runtime: &Runtime,
    text: &Arc<str>,
    chars: Option<Value>,
    left: bool,
    right: bool,
) -> Result<Value> {
    let mut rest: &str = text;
    match chars.filter(|chars| !matches!(chars, Value::None)) {
        None => {
            rest = if left { rest.trim_start_matches(is_space) } else { rest };
            rest = if right { rest.trim_end_matches(is_space) } else { rest };
        }
        Some(chars) => {
            let chars = str_argument(&chars, "strip")?;
            runtime.budget.work(text.len().saturating_mul(chars.len()) / 8)?;
            rest = if left { rest.trim_start_matches(|c| chars.contains(c)) } else { rest };
            rest = if right { rest.trim_end_matches(|c| chars.contains(c)) } else { rest };
        }
    }
    if rest.len() == text.len() { Ok(Value::Str(Arc::clone(text))) } else { runtime.str(rest) }
}

/// `upper`, `lower`, `capitalize`, `title`, `swapcase` and `casefold`.
pub(in crate::jinja) fn change_case(runtime: &Runtime, text: &str, name: &str) -> Result<Value> {
    // A character becomes three at most.
    runtime.budget.memory(if text.is_ascii() { text.len() } else { 3 * text.len() })?;
    let title = |c: char| -> Result<char> {
        title_case(c).ok_or_else(|| TemplateError::new(format!("the title case of '{c}' is not supported")))
    };
    let changed = match name {
        "upper" => text.to_uppercase(),
        "lower" => text.to_lowercase(),
        "casefold" if text.is_ascii() => text.to_ascii_lowercase(),
        "casefold" => return fail("casefold is supported for ASCII only"),
        "capitalize" => match text.chars().next() {
            Some(first) => {
                // Of the whole text, because a sigma at the end of a word has a form of its own.
                let lower = text.to_lowercase();
                let skip: usize = first.to_lowercase().map(char::len_utf8).sum();
                format!("{}{}", title(first)?, &lower[skip..])
            }
            None => String::new(),
        },
        "swapcase" => {
            if text.contains('Σ') {
                return fail("swapcase is not supported for this text");
            }
            let swap = |c: char| -> String {
                if c.is_uppercase() { c.to_lowercase().collect() } else { c.to_uppercase().collect() }
            };
            text.chars().map(swap).collect()
        }
        _ => {
            if text.contains('Σ') {
                return fail("title is not supported for this text");
            }
            let mut out = String::with_capacity(text.len());
            let mut in_word = false;
            for c in text.chars() {
                let is_cased = c.is_lowercase() || c.is_uppercase();
                if in_word {
                    out.extend(c.to_lowercase());
                } else {
                    out.push(title(c)?);
                }
                in_word = is_cased;
            }
            out
        }
    };
    Ok(Value::Str(changed.into()))
}

/// `startswith` and `endswith`: one text or a tuple of them, within bounds.
fn affix(runtime: &Runtime, text: &str, name: &str, args: Args) -> Result<Value> {
    let [affix, start, stop] = args.bind(name, ["", "", ""])?;
    let affix = required(affix, name)?;
    if start.is_some() || stop.is_some() {
        runtime.budget.work(2 * text.len())?;
    }
    let Some(range) = within(text, start, stop, name)? else { return Ok(Value::Bool(false)) };
    let part = &text[range];
    let fits = |affix: &str| if name == "startswith" { part.starts_with(affix) } else { part.ends_with(affix) };
    Ok(Value::Bool(match &affix {
        Value::Tuple(affixes) => {
            let mut any = false;
            for affix in &affixes.values {
                let affix = str_argument(affix, name)?;
                runtime.budget.work(50 + affix.len() / 4)?;
                any = any || fits(affix);
            }
            any
        }
        other => fits(str_argument(other, name)?),
    }))
}

/// The bytes between two bounds that count characters, as a slice does; `None` where the start lies behind the end.
fn within(text: &str, start: Option<Value>, stop: Option<Value>, name: &str) -> Result<Option<std::ops::Range<usize>>> {
    if start.is_none() && stop.is_none() {
        return Ok(Some(0..text.len()));
    }
    let len = if text.is_ascii() { text.len() } else { text.chars().count() } as i128;
    let bound = |bound: Option<Value>, default: i128| match bound {
        None | Some(Value::None) => Ok(default),
        Some(bound) => {
            let bound = int_argument(&bound, name)?;
            Ok(if bound < 0 { bound.saturating_add(len).max(0) } else { bound })
        }
    };
    let (start, stop) = (bound(start, 0)?, bound(stop, len)?.min(len));
    if start > stop {
        return Ok(None);
    }
    let byte = |at: i128| match text.is_ascii() {
        true => at as usize,
        false => text.char_indices().nth(at as usize).map_or(text.len(), |(byte, _)| byte),
    };
    Ok(Some(byte(start)..byte(stop)))
}

fn search(runtime: &Runtime, text: &str, name: &str, args: Args) -> Result<Value> {
    let [needle, start, stop] = args.bind(name, ["", "", ""])?;
    let needle = required(needle, name)?;
    let needle = str_argument(&needle, name)?;
    runtime.budget.work(needle.len())?;
    let range = within(text, start, stop, name)?;
    let part = range.clone().map(|range| &text[range]);
    if name == "count" {
        let count =
            part.map_or(
                0,
                |part| {
                    if needle.is_empty() { part.chars().count() + 1 } else { part.matches(&**needle).count() }
                },
            );
        return Ok(Value::Int(count as i128));
    }
    let at = part.and_then(|part| if name.starts_with('r') { part.rfind(&**needle) } else { part.find(&**needle) });
    match at.zip(range) {
        Some((at, range)) => Ok(Value::Int(text[..range.start + at].chars().count() as i128)),
        None if name.ends_with("find") => Ok(Value::Int(-1)),
        None => fail("substring not found"),
    }
}

/// `replace(old, new, count)`; a negative count is no limit.
pub(in crate::jinja) fn replace(runtime: &Runtime, text: &str, old: &str, new: &str, count: i128) -> Result<Value> {
    runtime.budget.work(text.len() + old.len())?;
    let limit = usize::try_from(count).unwrap_or(usize::MAX);
    let mut out = runtime.text();
    let mut last = 0;
    if old.is_empty() {
        let starts = text.char_indices().map(|(at, _)| at).chain([text.len()]);
        for at in starts.take(limit) {
            out.push(&text[last..at])?;
            out.push(new)?;
            last = at;
        }
    } else {
        for (at, _) in text.match_indices(old).take(limit) {
            out.push(&text[last..at])?;
            out.push(new)?;
            last = at + old.len();
        }
    }
    out.push(&text[last..])?;
    Ok(Value::Str(out.into_string().into()))
}

/// `center`, `ljust`, `rjust` and `zfill`.
pub(in crate::jinja) fn justify(
    runtime: &Runtime,
    text: &str,
    name: &str,
    width: i128,
    fill: Option<Value>,
) -> Result<Value> {
    let fill = match (&fill, name) {
        (None, "zfill") => "0",
        (None, _) => " ",
        (Some(_), "zfill") => return fail("zfill takes one argument"),
        (Some(fill), _) => str_argument(fill, name)?,
    };
    if fill.chars().count() != 1 {
        return fail("the fill character must be exactly one character long");
    }
    let len = text.chars().count();
    let width = usize::try_from(width.max(0)).unwrap_or(usize::MAX);
    let missing = width.saturating_sub(len);
    // Python puts the odd one on the left if the width is odd too.
    let left = match name {
        "center" => missing / 2 + (missing & width & 1),
        "ljust" => 0,
        _ => missing,
    };
    let sign = if name == "zfill" && text.starts_with(['+', '-']) { 1 } else { 0 };
    let mut out = runtime.text();
    out.push(&text[..sign])?;
    out.repeat(fill, left)?;
    out.push(&text[sign..])?;
    out.repeat(fill, missing - left)?;
    Ok(Value::Str(out.into_string().into()))
}

fn expand_tabs(runtime: &Runtime, text: &str, size: i128) -> Result<Value> {
    let size = usize::try_from(size.max(0)).unwrap_or(usize::MAX);
    let mut out = runtime.text();
    let mut column = 0;
    for c in text.chars() {
        if c == '\t' {
            let spaces = if size == 0 { 0 } else { size - column % size };
            out.repeat(" ", spaces)?;
            column = column.saturating_add(spaces);
            continue;
        }
        out.push_char(c)?;
        column = if matches!(c, '\n' | '\r') { 0 } else { column + 1 };
    }
    Ok(Value::Str(out.into_string().into()))
}
