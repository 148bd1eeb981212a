//! The methods of `str` that take it apart.

use crate::jinja::chars::{is_line_end, is_space};
use crate::jinja::error::{Result, fail};
use crate::jinja::runtime::{Args, Runtime, int_argument, required, str_argument};
use crate::jinja::value::Value;

/// The parts that a method makes; `None` where the name is another method's.
pub(super) fn call(runtime: &Runtime, text: &str, name: &str, args: &Args) -> Result<Option<Value>> {
    let args = || Args { positional: args.positional.clone(), named: args.named.clone() };
    let parts = match name {
        "split" | "rsplit" => split(runtime, text, name == "rsplit", args())?,
        "splitlines" => {
            let [keep] = args().bind(name, ["keepends"])?;
            lines(runtime, text, keep.is_some_and(|keep| keep.truth()))?
        }
        "partition" | "rpartition" => {
            let [separator] = args().bind(name, [""])?;
            let separator = required(separator, name)?;
            let separator = str_argument(&separator, name)?;
            if separator.is_empty() {
                return fail("empty separator");
            }
            let from_right = name == "rpartition";
            let at = if from_right { text.rfind(&**separator) } else { text.find(&**separator) };
            let parts = match at {
                Some(at) => [&text[..at], separator, &text[at + separator.len()..]],
                None if from_right => ["", "", text],
                None => [text, "", ""],
            };
            let parts = parts.map(|part| runtime.str(part)).into_iter().collect::<Result<_>>()?;
            return runtime.tuple(parts).map(Some);
        }
        _ => return Ok(None),
    };
    runtime.list(parts).map(Some)
}

/// Splits at a separator, or at runs of whitespace, `maxsplit` times.
fn split(runtime: &Runtime, text: &str, from_right: bool, args: Args) -> Result<Vec<Value>> {
    let [separator, limit] = args.bind("split", ["sep", "maxsplit"])?;
    let limit = match limit {
        Some(limit) => usize::try_from(int_argument(&limit, "split")?).unwrap_or(usize::MAX),
        None => usize::MAX,
    };
    let separator = separator.filter(|separator| !matches!(separator, Value::None));
    let mut parts = Vec::new();
    let mut push = |part: &str| -> Result<()> {
        runtime.budget.elements(1)?;
        parts.push(runtime.str(part)?);
        Ok(())
    };
    let Some(separator) = separator else {
        words(text, from_right, limit).try_for_each(&mut push)?;
        if from_right {
            parts.reverse();
        }
        return Ok(parts);
    };
    let separator = str_argument(&separator, "split")?;
    if separator.is_empty() {
        return fail("empty separator");
    }
    let pieces = limit.saturating_add(1);
    if from_right {
        text.rsplitn(pieces, &**separator).try_for_each(&mut push)?;
        parts.reverse();
    } else {
        text.splitn(pieces, &**separator).try_for_each(&mut push)?;
    }
    Ok(parts)
}

/// The words of a text, from its start or its end; after `limit` of them the rest is one.
fn words(text: &str, from_right: bool, limit: usize) -> impl Iterator<Item = &str> {
    let mut rest = if from_right { text.trim_end_matches(is_space) } else { text.trim_start_matches(is_space) };
    let mut left = limit;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        if left == 0 {
            // What is not split keeps the whitespace at its far end.
            return Some(std::mem::take(&mut rest));
        }
        left -= 1;
        let word;
        if from_right {
            let start = rest.rfind(is_space).map_or(0, |at| at + rest[at..].chars().next().map_or(1, char::len_utf8));
            word = &rest[start..];
            rest = rest[..start].trim_end_matches(is_space);
        } else {
            let end = rest.find(is_space).unwrap_or(rest.len());
            word = &rest[..end];
            rest = rest[end..].trim_start_matches(is_space);
        }
        Some(word)
    })
}

/// The lines of a text.
fn lines(runtime: &Runtime, text: &str, keep_ends: bool) -> Result<Vec<Value>> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(end) = rest.find(is_line_end) {
        let after = if rest[end..].starts_with("\r\n") {
            end + 2
        } else {
            end + rest[end..].chars().next().map_or(1, char::len_utf8)
        };
        runtime.budget.elements(1)?;
        parts.push(runtime.str(&rest[..if keep_ends { after } else { end }])?);
        rest = &rest[after..];
    }
    if !rest.is_empty() {
        parts.push(runtime.str(rest)?);
    }
    Ok(parts)
}
