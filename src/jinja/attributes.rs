//! `value.name` and `value[key]`, as Jinja2's immutable sandbox resolves them.

use std::rc::Rc;
use std::sync::Arc;

use super::error::{Result, fail, quoted, undefined};
use super::runtime::Runtime;
use super::value::{Loop, Method, Value};

const STR_METHODS: &str = " capitalize casefold center count encode endswith expandtabs find format format_map index \
    isalnum isalpha isascii isdecimal isdigit isidentifier islower isnumeric isprintable isspace istitle isupper join \
    ljust lower lstrip maketrans partition removeprefix removesuffix replace rfind rindex rjust rpartition rsplit rstrip \
    split splitlines startswith strip swapcase title translate upper zfill ";

/// What an attribute of Python's object is.
#[derive(PartialEq)]
enum Kind {
    Method,
    /// It changes the object: the sandbox gives an undefined value for it.
    Unsafe,
    /// It exists in Python, and not here.
    Unsupported,
    Missing,
}

fn kind_of(value: &Value, name: &str) -> Kind {
    let is_in = |names: &str| names.split_whitespace().any(|one| one == name);
    let (methods, unsafe_ones, unsupported) = match value {
        Value::Str(_) => (STR_METHODS, "", ""),
        Value::Markup(_) => ("", "", STR_METHODS),
        Value::Dict(_) => ("copy fromkeys get items keys values", "clear pop popitem setdefault update", ""),
        Value::List(_) => ("copy count index", "append clear extend insert pop remove reverse sort", ""),
        Value::Tuple(_) => ("count index", "", ""),
        Value::Range(_) => ("count index", "", "start stop step"),
        Value::View(..) => ("", "", "isdisjoint mapping"),
        Value::Bool(_) | Value::Int(_) => {
            let names =
                "as_integer_ratio bit_count bit_length conjugate denominator from_bytes imag numerator real to_bytes";
            ("", "", names)
        }
        Value::Float(_) => ("is_integer", "", "as_integer_ratio conjugate fromhex hex imag real"),
        Value::Loop(_) => ("cycle changed", "", ""),
        Value::Cycler(_) => ("next reset", "", ""),
        Value::Macro(_) => ("", "", "arguments caller catch_kwargs catch_varargs explicit_caller"),
        Value::Generator(_) => ("", "", "close send throw gi_code gi_frame gi_running gi_yieldfrom"),
        Value::Function(_) => ("", "", "fromkeys"),
        Value::Undefined(_) | Value::None | Value::Namespace(_) | Value::Joiner(_) | Value::Method(_) => ("", "", ""),
    };
    if is_in(methods) {
        Kind::Method
    } else if is_in(unsafe_ones) {
        Kind::Unsafe
    } else if is_in(unsupported) || (name.starts_with("__") && name.ends_with("__") && name.len() > 4) {
        Kind::Unsupported
    } else {
        Kind::Missing
    }
}

/// Python's `getattr`, without the items of a dict; `None` where there is no such attribute.
fn python_attribute(runtime: &Runtime, value: &Value, name: &Arc<str>) -> Result<Option<Value>> {
    match value {
        Value::Undefined(missing) => return undefined(missing),
        Value::Namespace(index) => return Ok(runtime.namespaces.borrow()[*index].get(name).cloned()),
        Value::Loop(run) => {
            if let Some(found) = loop_attribute(run, name) {
                return Ok(Some(found));
            }
        }
        Value::Cycler(cycler) if &**name == "current" => {
            return Ok(Some(cycler.items.values[cycler.at.get()].clone()));
        }
        Value::Cycler(cycler) if &**name == "pos" => return Ok(Some(Value::Int(cycler.at.get() as i128))),
        Value::Joiner(joiner) if &**name == "sep" => return Ok(Some(joiner.separator.clone())),
        Value::Joiner(joiner) if &**name == "used" => return Ok(Some(Value::Bool(joiner.used.get()))),
        Value::Macro(index) if &**name == "name" => {
            return Ok(Some(Value::Str(Arc::clone(&runtime.macro_names.borrow()[*index]))));
        }
        Value::Tuple(items) if items.group && &**name == "grouper" => return Ok(items.values.first().cloned()),
        Value::Tuple(items) if items.group && &**name == "list" => return Ok(items.values.last().cloned()),
        _ => {}
    }
    match kind_of(value, name) {
        Kind::Missing => Ok(None),
        Kind::Unsafe => Ok(Some(Value::Undefined(Arc::clone(name)))),
        Kind::Method => {
            runtime.budget.memory(64)?;
            let method = Method { receiver: value.clone(), name: Arc::clone(name) };
            Ok(Some(Value::Method(Rc::new(method))))
        }
        Kind::Unsupported => {
            fail(format!("the attribute '{}' of a {} is not supported", quoted(name), value.type_name()))
        }
    }
}

/// Whether `value.name` is a method that can be called.
pub(super) fn is_method(value: &Value, name: &str) -> bool {
    kind_of(value, name) == Kind::Method
}

fn loop_attribute(run: &Loop, name: &str) -> Option<Value> {
    let (index, values) = (run.index.get(), &run.items.values);
    let left = values.len() - index.min(values.len());
    let number = |value: usize| Some(Value::Int(value as i128));
    match name {
        "index" => number(index + 1),
        "index0" => number(index),
        "revindex" => number(left),
        "revindex0" => Some(Value::Int(left as i128 - 1)),
        "first" => Some(Value::Bool(index == 0)),
        "last" => Some(Value::Bool(left == 1)),
        "length" => number(values.len()),
        "depth" => number(run.depth0 + 1),
        "depth0" => number(run.depth0),
        "previtem" => {
            let before = index.checked_sub(1).map(|before| values[before].clone());
            Some(before.unwrap_or_else(|| Value::Undefined("loop.previtem".into())))
        }
        "nextitem" => Some(values.get(index + 1).cloned().unwrap_or_else(|| Value::Undefined("loop.nextitem".into()))),
        _ => None,
    }
}

/// `value.name`: an attribute, else an item, else undefined.
pub(super) fn get_attribute(runtime: &Runtime, value: &Value, name: &Arc<str>) -> Result<Value> {
    if let Some(found) = python_attribute(runtime, value, name)? {
        return Ok(found);
    }
    let item = match value {
        Value::Dict(dict) => dict.get_text(name).cloned(),
        _ => None,
    };
    Ok(item.unwrap_or_else(|| Value::Undefined(Arc::clone(name))))
}

/// `value[key]`: an item, else an attribute, else undefined.
pub(super) fn get_item(runtime: &Runtime, value: &Value, key: &Value) -> Result<Value> {
    // A text is asked whether it is ASCII, where characters are bytes.
    runtime.budget.work(50 + if let Value::Str(text) = value { text.len() / 8 } else { 0 })?;
    let len = value.len();
    let index = || {
        let index = key.as_int()?;
        let len = len? as i128;
        let index = if index < 0 { index + len } else { index };
        (0..len).contains(&index).then_some(index as usize)
    };
    let item = match value {
        Value::Undefined(name) => return undefined(name),
        Value::Dict(dict) => match key {
            Value::Str(text) => dict.get_text(text).cloned(),
            Value::List(_) | Value::Dict(_) => None,
            other => dict.entries.get(&runtime.key(other)?).cloned(),
        },
        Value::List(items) | Value::Tuple(items) => index().map(|index| items.values[index].clone()),
        Value::Range(range) => index().map(|index| range.get(index)),
        Value::Str(text) => {
            if !text.is_ascii() {
                runtime.budget.work(text.len())?;
            }
            match index() {
                Some(index) if text.is_ascii() => Some(runtime.str(&text[index..=index])?),
                Some(index) => match text.chars().nth(index) {
                    Some(c) => Some(runtime.str(c.encode_utf8(&mut [0; 4]) as &str)?),
                    None => None,
                },
                None => None,
            }
        }
        Value::Markup(_) if key.as_int().is_some() => return fail("an item of a safe text is not supported"),
        _ => None,
    };
    if let Some(item) = item {
        return Ok(item);
    }
    if let Value::Str(name) = key
        && let Some(found) = python_attribute(runtime, value, name)?
    {
        return Ok(found);
    }
    let name = match key {
        Value::Str(name) => Arc::clone(name),
        Value::Int(index) => index.to_string().into(),
        other => other.type_name().into(),
    };
    Ok(Value::Undefined(name))
}

/// What the filters' argument `attribute` means: names and indices between dots.
pub(super) fn get_path(runtime: &Runtime, value: &Value, path: &[Value], default: Option<&Value>) -> Result<Value> {
    let mut value = value.clone();
    for part in path {
        value = get_item(runtime, &value, part)?;
        if let (Value::Undefined(_), Some(default)) = (&value, default) {
            value = default.clone();
        }
    }
    Ok(value)
}

/// The parts of a path for [`get_path`].
pub(super) fn parse_path(runtime: &Runtime, attribute: &Value) -> Result<Vec<Value>> {
    Ok(match attribute {
        Value::None => Vec::new(),
        Value::Str(path) => {
            runtime.budget.elements(path.len())?;
            let part = |part: &str| match part.parse::<i128>() {
                Ok(index) if part.bytes().all(|b| b.is_ascii_digit()) => Value::Int(index),
                _ => Value::Str(part.into()),
            };
            path.split('.').map(part).collect()
        }
        other => vec![other.clone()],
    })
}
