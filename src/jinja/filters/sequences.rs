//! Filters over lists, dicts and whatever else can be iterated over.

use std::rc::Rc;

use crate::jinja::attributes::{get_attribute, is_method};
use crate::jinja::error::{Result, fail, undefined};
use crate::jinja::runtime::{Args, Runtime, int_argument, required, str_argument};
use crate::jinja::value::{Items, Value, View};

pub(super) fn attr(runtime: &Runtime, value: Value, args: Args) -> Result<Value> {
    let [name] = args.bind("attr", ["name"])?;
    let name = required(name, "attr")?;
    let name = str_argument(&name, "attr")?;
    match &value {
        Value::Undefined(missing) => undefined(missing),
        // Only attributes count, no items.
        Value::Dict(_) if !is_method(&value, name) => Ok(Value::Undefined(name.clone())),
        other => get_attribute(runtime, other, name),
    }
}

pub(super) fn length(runtime: &Runtime, value: Value, args: Args) -> Result<Value> {
    args.none("length")?;
    if let Value::Str(text) | Value::Markup(text) = &value {
        runtime.budget.work(text.len() / 4)?;
    }
    match value.len() {
        Some(len) => Ok(Value::Int(len as i128)),
        None => fail(format!("object of type '{}' has no len()", value.type_name())),
    }
}

pub(super) fn default(_: &Runtime, value: Value, args: Args) -> Result<Value> {
    let [default, boolean] = args.bind("default", ["default_value", "boolean"])?;
    let replaced = value.is_undefined() || (boolean.is_some_and(|boolean| boolean.truth()) && !value.truth());
    Ok(if replaced { default.unwrap_or_else(|| Value::Str("".into())) } else { value })
}

pub(super) fn first(runtime: &Runtime, value: Value, args: Args) -> Result<Value> {
    args.none("first")?;
    let first = match &value {
        Value::Generator(generator) => generator.left.borrow_mut().pop_front(),
        Value::Str(text) => match text.chars().next() {
            Some(c) => Some(runtime.str(c.to_string())?),
            None => None,
        },
        Value::Range(range) => (range.len > 0).then(|| range.get(0)),
        Value::Dict(dict) | Value::View(View::Keys, dict) => {
            dict.entries.get_index(0).map(|(key, _)| key.value().clone())
        }
        Value::List(items) | Value::Tuple(items) => items.values.first().cloned(),
        other => runtime.iterate(other)?.values.first().cloned(),
    };
    Ok(first.unwrap_or_else(|| Value::Undefined("the first item of nothing".into())))
}

pub(super) fn last(runtime: &Runtime, value: Value, args: Args) -> Result<Value> {
    args.none("last")?;
    let last = match &value {
        Value::Generator(_) => return fail("'generator' object is not reversible"),
        Value::Str(text) => match text.chars().next_back() {
            Some(c) => Some(runtime.str(c.to_string())?),
            None => None,
        },
        Value::Range(range) => range.len.checked_sub(1).map(|last| range.get(last)),
        Value::List(items) | Value::Tuple(items) => items.values.last().cloned(),
        other => runtime.iterate(other)?.values.last().cloned(),
    };
    Ok(last.unwrap_or_else(|| Value::Undefined("the last item of nothing".into())))
}

pub(super) fn list(runtime: &Runtime, value: Value, args: Args) -> Result<Value> {
    args.none("list")?;
    match value {
        // Lists never change, so a copy is the same.
        Value::List(_) => Ok(value),
        Value::Tuple(items) => {
            runtime.budget.elements(items.values.len())?;
            runtime.list(items.values.clone())
        }
        other => {
            let items = runtime.iterate(&other)?;
            Ok(Value::List(items))
        }
    }
}

pub(super) fn items(runtime: &Runtime, value: Value, args: Args) -> Result<Value> {
    args.none("items")?;
    match value {
        Value::Undefined(_) => runtime.generator(Vec::new()),
        Value::Dict(dict) => {
            let items = runtime.iterate(&Value::View(View::Items, dict))?;
            runtime.generator(items.values.clone())
        }
        _ => fail("Can only get item pairs from a mapping."),
    }
}

pub(super) fn reverse(runtime: &Runtime, value: Value, args: Args) -> Result<Value> {
    args.none("reverse")?;
    if let Value::Str(text) = &value {
        runtime.budget.work(4 * text.len())?;
        return runtime.str(text.chars().rev().collect::<String>());
    }
    let items = runtime.iterate(&value)?;
    runtime.budget.elements(items.values.len())?;
    let reversed: Vec<Value> = items.values.iter().rev().cloned().collect();
    // Python cannot reverse a generator, so Jinja2 makes a list of it.
    if matches!(value, Value::Generator(_)) { runtime.list(reversed) } else { runtime.generator(reversed) }
}

/// What `batch` and `slice` take: a number (`None` unless positive), what fills up the parts, and the elements.
fn parts(
    runtime: &Runtime,
    value: &Value,
    args: Args,
    filter: &str,
    number: &'static str,
) -> Result<(Option<usize>, Option<Value>, Rc<Items>)> {
    let [count, fill] = args.bind(filter, [number, "fill_with"])?;
    let count = int_argument(&required(count, filter)?, filter)?;
    let fill = fill.filter(|fill| !matches!(fill, Value::None));
    Ok((usize::try_from(count).ok().filter(|&count| count > 0), fill, runtime.iterate(value)?))
}

pub(super) fn batch(runtime: &Runtime, value: Value, args: Args) -> Result<Value> {
    let (size, fill, items) = parts(runtime, &value, args, "batch", "linecount")?;
    let Some(size) = size else { return fail("batch needs a positive size") };
    let mut batches = Vec::new();
    for part in items.values.chunks(size) {
        let missing = if fill.is_some() { size - part.len() } else { 0 };
        runtime.budget.elements(part.len().saturating_add(missing))?;
        let mut part = part.to_vec();
        part.extend(std::iter::repeat_n(fill.clone().unwrap_or(Value::None), missing));
        batches.push(runtime.list(part)?);
    }
    runtime.generator(batches)
}

pub(super) fn slice(runtime: &Runtime, value: Value, args: Args) -> Result<Value> {
    let (slices, fill, items) = parts(runtime, &value, args, "slice", "slices")?;
    let Some(slices) = slices else { return fail("slice needs a positive number") };
    runtime.budget.elements(slices.saturating_mul(2))?;
    let (size, with_extra) = (items.values.len() / slices, items.values.len() % slices);
    let mut parts = Vec::new();
    let mut start = 0;
    for i in 0..slices {
        let end = start + size + usize::from(i < with_extra);
        runtime.budget.elements(end - start)?;
        let mut part = items.values[start..end].to_vec();
        if i >= with_extra {
            part.extend(fill.clone());
        }
        parts.push(runtime.list(part)?);
        start = end;
    }
    runtime.generator(parts)
}
