//! Jinja2's tests: `value is name(arguments)`.

use std::cmp::Ordering;
use std::rc::Rc;

use super::error::{Result, fail, quoted};
use super::filters;
use super::methods;
use super::ops::{Math, contains, equal, math, order};
use super::runtime::{Args, Native, Runtime, required};
use super::text::plain_str;
use super::value::Value;

/// The name that a value is, to be looked up in a dict as Python does: what cannot be a key is an error.
fn name_of(runtime: &Runtime, value: &Value) -> Result<Option<String>> {
    if matches!(value, Value::List(_) | Value::Dict(_) | Value::Tuple(_)) {
        runtime.key(value)?;
    }
    Ok(value.as_str().map(ToString::to_string))
}

/// The test of this name.
pub(super) fn find(name: &str) -> Result<Native> {
    Ok(match name {
        "boolean" => |_, value, args| plain(args, matches!(value, Value::Bool(_))),
        "callable" => |_, value, args| plain(args, is_callable(&value)),
        "defined" => |_, value, args| plain(args, !value.is_undefined()),
        "divisibleby" => divisible_by,
        "eq" | "equalto" | "==" => |runtime, value, args| {
            let other = one(args)?;
            Ok(Value::Bool(equal(runtime, &value, &other)?))
        },
        "escaped" => |_, value, args| plain(args, matches!(value, Value::Markup(_))),
        "even" => |runtime, value, args| parity(runtime, &value, args, 0),
        "false" => |_, value, args| plain(args, matches!(value, Value::Bool(false))),
        "filter" => |runtime, value, args| {
            let name = name_of(runtime, &value)?;
            plain(args, name.is_some_and(|name| filters::exists(&name)))
        },
        "float" => |_, value, args| plain(args, matches!(value, Value::Float(_))),
        "ge" | ">=" => |runtime, value, args| compare(runtime, &value, args, Ordering::is_ge),
        "gt" | "greaterthan" | ">" => |runtime, value, args| compare(runtime, &value, args, Ordering::is_gt),
        "in" => |runtime, value, args| {
            let haystack = one(args)?;
            Ok(Value::Bool(contains(runtime, &haystack, &value)?))
        },
        "integer" => |_, value, args| plain(args, matches!(value, Value::Int(_))),
        "iterable" => |_, value, args| plain(args, is_iterable(&value)?),
        "le" | "<=" => |runtime, value, args| compare(runtime, &value, args, Ordering::is_le),
        "lower" => |runtime, value, args| case(runtime, &value, args, "islower"),
        "lt" | "lessthan" | "<" => |runtime, value, args| compare(runtime, &value, args, Ordering::is_lt),
        "mapping" => |_, value, args| plain(args, matches!(value, Value::Dict(_))),
        "ne" | "!=" => |runtime, value, args| {
            let other = one(args)?;
            Ok(Value::Bool(!equal(runtime, &value, &other)?))
        },
        "none" => |_, value, args| plain(args, matches!(value, Value::None)),
        "number" => |_, value, args| plain(args, matches!(value, Value::Int(_) | Value::Float(_) | Value::Bool(_))),
        "odd" => |runtime, value, args| parity(runtime, &value, args, 1),
        "sameas" => same_as,
        "sequence" => |_, value, args| plain(args, is_sequence(&value)),
        "string" => |_, value, args| plain(args, matches!(value, Value::Str(_) | Value::Markup(_))),
        "test" => |runtime, value, args| {
            let name = name_of(runtime, &value)?;
            plain(args, name.is_some_and(|name| find(&name).is_ok()))
        },
        "true" => |_, value, args| plain(args, matches!(value, Value::Bool(true))),
        "undefined" => |_, value, args| plain(args, value.is_undefined()),
        "upper" => |runtime, value, args| case(runtime, &value, args, "isupper"),
        _ => return fail(format!("there is no test '{}'", quoted(name))),
    })
}

/// The answer of a test without arguments.
fn plain(args: Args, answer: bool) -> Result<Value> {
    args.none("this test")?;
    Ok(Value::Bool(answer))
}

/// The argument of a test with one.
fn one(args: Args) -> Result<Value> {
    let [other] = args.bind("this test", [""])?;
    required(other, "this test")
}

fn is_callable(value: &Value) -> bool {
    // An undefined value has a method for being called, which fails.
    matches!(
        value,
        Value::Undefined(_)
            | Value::Macro(_)
            | Value::Loop(_)
            | Value::Joiner(_)
            | Value::Function(_)
            | Value::Method(_)
    )
}

fn is_iterable(value: &Value) -> Result<bool> {
    Ok(match value {
        Value::None | Value::Bool(_) | Value::Int(_) | Value::Float(_) => false,
        Value::Macro(_) | Value::Joiner(_) | Value::Function(_) | Value::Method(_) | Value::Namespace(_) => false,
        Value::Cycler(_) => return fail("the test 'iterable' is not supported for a cycler"),
        _ => true,
    })
}

fn is_sequence(value: &Value) -> bool {
    matches!(
        value,
        Value::Undefined(_)
            | Value::Str(_)
            | Value::Markup(_)
            | Value::List(_)
            | Value::Tuple(_)
            | Value::Dict(_)
            | Value::Range(_)
    )
}

fn parity(runtime: &Runtime, value: &Value, args: Args, rest: i128) -> Result<Value> {
    args.none("this test")?;
    let found = math(runtime, Math::Mod, value, &Value::Int(2))?;
    Ok(Value::Bool(equal(runtime, &found, &Value::Int(rest))?))
}

fn divisible_by(runtime: &Runtime, value: Value, args: Args) -> Result<Value> {
    let [divisor] = args.bind("divisibleby", ["num"])?;
    let rest = math(runtime, Math::Mod, &value, &required(divisor, "divisibleby")?)?;
    Ok(Value::Bool(equal(runtime, &rest, &Value::Int(0))?))
}

fn compare(runtime: &Runtime, value: &Value, args: Args, fits: fn(Ordering) -> bool) -> Result<Value> {
    let other = one(args)?;
    Ok(Value::Bool(order(runtime, value, &other)?.is_some_and(fits)))
}

fn case(runtime: &Runtime, value: &Value, args: Args, method: &str) -> Result<Value> {
    methods::call(runtime, &Value::Str(plain_str(runtime, value)?), method, args)
}

/// Python's `is`. Which equal numbers and texts are one object is an accident there.
fn same_as(runtime: &Runtime, value: Value, args: Args) -> Result<Value> {
    let [other] = args.bind("sameas", ["other"])?;
    let other = required(other, "sameas")?;
    let same = match (&value, &other) {
        (Value::None, Value::None) => true,
        (Value::Bool(a), Value::Bool(b)) => a == b,
        (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => Rc::ptr_eq(a, b),
        (Value::Dict(a), Value::Dict(b)) => Rc::ptr_eq(a, b),
        (Value::Namespace(a), Value::Namespace(b)) => a == b,
        (a, b) if std::mem::discriminant(a) != std::mem::discriminant(b) => false,
        (Value::Undefined(_), _) => false,
        (a, b) if !equal(runtime, a, b)? => false,
        _ => return fail("the test 'sameas' is not supported for equal numbers or texts"),
    };
    Ok(Value::Bool(same))
}
