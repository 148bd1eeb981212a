//! The global functions: Jinja2's, and those that transformers adds.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use indexmap::IndexMap;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::error::{Result, TemplateError, fail, quoted};
use super::runtime::{Args, Runtime, int_argument, required, str_argument};
use super::text::str_of;
use super::value::{Cycler, Function, Items, Joiner, Key, Range, Value};

/// Jinja2's sandbox refuses longer ranges.
const MAX_RANGE: usize = 100_000;

/// The global of this name.
pub(super) fn find(name: &str) -> Option<Value> {
    Some(Value::Function(match name {
        "range" => Function::Range,
        "dict" => Function::Dict,
        "namespace" => Function::Namespace,
        "cycler" => Function::Cycler,
        "joiner" => Function::Joiner,
        "lipsum" => Function::Lipsum,
        "raise_exception" => Function::RaiseException,
        "strftime_now" => Function::StrftimeNow,
        _ => return None,
    }))
}

/// Calls a global function.
pub(super) fn call(runtime: &Runtime, function: Function, args: Args) -> Result<Value> {
    match function {
        Function::Range => range(args),
        Function::Dict => runtime.dict(entries(runtime, args)?),
        Function::Namespace => {
            let mut attributes = IndexMap::new();
            for (key, value) in entries(runtime, args)? {
                let Value::Str(name) = key.value() else { return fail("the attributes of a namespace have names") };
                check_attribute(name)?;
                attributes.insert(Arc::clone(name), value);
            }
            runtime.namespace(attributes)
        }
        Function::Cycler => {
            if args.positional.is_empty() || !args.named.is_empty() {
                return fail("at least one item has to be provided");
            }
            let items = runtime.iterate(&runtime.tuple(args.positional)?)?;
            let cycler = Cycler { items, at: Cell::new(0) };
            limited(Value::Cycler(Rc::new(cycler)))
        }
        Function::Joiner => {
            let [separator] = args.bind("joiner", ["sep"])?;
            let separator = separator.unwrap_or_else(|| Value::Str(", ".into()));
            limited(Value::Joiner(Rc::new(Joiner { separator, used: Cell::new(false) })))
        }
        Function::Lipsum => fail("the function 'lipsum' is not supported"),
        Function::RaiseException => {
            let [message] = args.bind("raise_exception", ["message"])?;
            let message = str_of(runtime, &required(message, "raise_exception")?)?;
            fail(quoted(&message))
        }
        Function::StrftimeNow => {
            let [format] = args.bind("strftime_now", ["format"])?;
            let format = required(format, "strftime_now")?;
            let format = str_argument(&format, "strftime_now")?;
            runtime.str(strftime(format, Timestamp::now())?)
        }
    }
}

/// A value whose own nesting counts as that of a list does.
fn limited(value: Value) -> Result<Value> {
    if value.depth() > super::budget::MAX_DEPTH { fail("values are nested too deeply") } else { Ok(value) }
}

/// transformers refuses these names.
pub(super) fn check_attribute(name: &str) -> Result<()> {
    match name.starts_with('_') {
        true => fail(format!("a namespace has no attributes that begin with an underscore, like '{}'", quoted(name))),
        false => Ok(()),
    }
}

/// Python's `dict(mapping or pairs, **named)`.
fn entries(runtime: &Runtime, args: Args) -> Result<IndexMap<Key, Value>> {
    let mut entries = IndexMap::new();
    let [start] = Args { positional: args.positional, named: Vec::new() }.bind("dict", [""])?;
    match start {
        None => {}
        Some(Value::Dict(dict)) => {
            runtime.budget.elements(2 * dict.entries.len())?;
            entries = dict.entries.clone();
        }
        Some(pairs) => {
            for pair in &runtime.iterate(&pairs)?.values {
                let pair = runtime.iterate(pair)?;
                let Items { values, .. } = &*pair;
                let [key, value] = &**values else { return fail("a dict is made of pairs") };
                runtime.budget.elements(2)?;
                entries.insert(runtime.key(key)?, value.clone());
            }
        }
    }
    runtime.budget.elements(2 * args.named.len())?;
    entries.extend(args.named.into_iter().map(|(name, value)| (Key::text(name), value)));
    Ok(entries)
}

fn range(args: Args) -> Result<Value> {
    let [start, stop, step] = args.bind("range", ["", "", ""])?;
    let int = |value: Option<Value>| value.map(|value| int_argument(&value, "range")).transpose();
    let (start, stop) = match (int(start)?, int(stop)?) {
        (Some(stop), None) => (0, stop),
        (Some(start), Some(stop)) => (start, stop),
        _ => return fail("range expected at least 1 argument, got 0"),
    };
    let step = int(step)?.unwrap_or(1);
    if step == 0 {
        return fail("range() arg 3 must not be zero");
    }
    let distance = if step > 0 { stop.checked_sub(start) } else { start.checked_sub(stop) };
    let len = match distance {
        Some(distance) if distance <= 0 => Some(0),
        Some(distance) => usize::try_from((distance - 1) as u128 / step.unsigned_abs() + 1).ok(),
        None => None,
    };
    match len.filter(|&len| len <= MAX_RANGE) {
        Some(len) => Ok(Value::Range(Range { start, step, len, stop })),
        None => fail(format!("Range too big. The sandbox blocks ranges larger than MAX_RANGE ({MAX_RANGE}).")),
    }
}

/// `datetime.strftime(format)`, in UTC: the machine's zone should not change a prompt.
pub(super) fn strftime(format: &str, time: Timestamp) -> Result<String> {
    if format.len() > 1000 {
        return fail("strftime_now: the format is too long");
    }
    // Of the others, each platform and locale makes its own.
    let known = |c: char| "aAbBdDeFGHIjmMnpRStTuUVwWyY%".contains(c);
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        let directive = if c == '%' { rest.next() } else { continue };
        let directive = if directive == Some('-') { rest.next() } else { directive };
        if !directive.is_some_and(known) {
            return fail("strftime_now: this format is not supported");
        }
    }
    jiff::fmt::strtime::format(format, &time.to_zoned_datetime(TimeZone::UTC))
        .map_err(|e| TemplateError::new(format!("strftime_now: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected texts were written by CPython 3.11's `strftime` in UTC.
    #[test]
    fn dates_are_those_of_strftime() {
        let at = |second: i64| Timestamp::from_second(second).expect("in range");
        let format = "%d %b %Y|%A %a %B %-d %-m|%H:%M:%S %I %p|%y %j|%F %T|100%%";
        assert_eq!(
            strftime(format, at(0)).expect("formats"),
            "01 Jan 1970|Thursday Thu January 1 1|00:00:00 12 AM|70 001|1970-01-01 00:00:00|100%"
        );
        assert_eq!(
            strftime(format, at(1_709_210_096)).expect("formats"),
            "29 Feb 2024|Thursday Thu February 29 2|12:34:56 12 PM|24 060|2024-02-29 12:34:56|100%"
        );
        assert_eq!(strftime("%F %A %j", at(4_133_980_799)).expect("formats"), "2100-12-31 Friday 365");
        assert!(strftime("%!", at(0)).is_err());
        assert!(strftime("%1000000000Y", at(0)).is_err());
    }
}
