//! Filters that apply another filter or a test to each element.

use crate::jinja::attributes::{get_path, parse_path};
use crate::jinja::error::{Result, fail};
use crate::jinja::runtime::{Args, Runtime, str_argument};
use crate::jinja::value::Value;

pub(super) fn map(runtime: &Runtime, value: Value, mut args: Args) -> Result<Value> {
    if !value.truth() {
        return runtime.generator(Vec::new());
    }
    if args.positional.is_empty() && args.named.iter().any(|(name, _)| &**name == "attribute") {
        let [attribute, default] = args.bind("map", ["attribute", "default"])?;
        let path = parse_path(runtime, &attribute.unwrap_or(Value::None))?;
        let default = default.filter(|default| !matches!(default, Value::None));
        return each(runtime, &value, |item| get_path(runtime, &item, &path, default.as_ref()));
    }
    if args.positional.is_empty() {
        return fail("map requires a filter argument");
    }
    let name = args.positional.remove(0);
    let filter = (runtime.find_filter)(str_argument(&name, "map")?)?;
    each(runtime, &value, |item| {
        runtime.budget.memory(32 * (args.positional.len() + args.named.len()))?;
        let args = Args { positional: args.positional.clone(), named: args.named.clone() };
        runtime.nested(|| filter(runtime, item, args))
    })
}

fn each(runtime: &Runtime, value: &Value, f: impl Fn(Value) -> Result<Value>) -> Result<Value> {
    let items = runtime.iterate(value)?;
    let values = items.values.iter().map(|item| {
        runtime.budget.work(100)?;
        f(item.clone())
    });
    runtime.generator(values.collect::<Result<_>>()?)
}

pub(super) fn select(runtime: &Runtime, value: Value, args: Args) -> Result<Value> {
    choose(runtime, &value, args, false, true)
}

pub(super) fn reject(runtime: &Runtime, value: Value, args: Args) -> Result<Value> {
    choose(runtime, &value, args, false, false)
}

pub(super) fn selectattr(runtime: &Runtime, value: Value, args: Args) -> Result<Value> {
    choose(runtime, &value, args, true, true)
}

pub(super) fn rejectattr(runtime: &Runtime, value: Value, args: Args) -> Result<Value> {
    choose(runtime, &value, args, true, false)
}

/// The elements (or an attribute of them) for which a test says `wanted`; without a test, their truth counts.
fn choose(runtime: &Runtime, value: &Value, mut args: Args, by_attribute: bool, wanted: bool) -> Result<Value> {
    if !value.truth() {
        return runtime.generator(Vec::new());
    }
    let mut path = Vec::new();
    if by_attribute {
        if args.positional.is_empty() {
            return fail("Missing parameter for attribute name");
        }
        path = parse_path(runtime, &args.positional.remove(0))?;
    }
    let test = match args.positional.is_empty() {
        true => None,
        false => Some((runtime.find_test)(str_argument(&args.positional.remove(0), "a test")?)?),
    };
    let items = runtime.iterate(value)?;
    let mut chosen = Vec::new();
    for item in &items.values {
        runtime.budget.work(100)?;
        let tested = get_path(runtime, item, &path, None)?;
        let answer = match test {
            Some(test) => {
                runtime.budget.memory(32 * (args.positional.len() + args.named.len()))?;
                let args = Args { positional: args.positional.clone(), named: args.named.clone() };
                test(runtime, tested, args)?.truth()
            }
            None => tested.truth(),
        };
        if answer == wanted {
            runtime.budget.elements(1)?;
            chosen.push(item.clone());
        }
    }
    runtime.generator(chosen)
}
