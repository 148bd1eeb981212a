//! Methods of dicts, lists, tuples and ranges, and of the variable `loop`.

use std::rc::Rc;

use indexmap::IndexMap;

use crate::jinja::error::{Result, fail, quoted};
use crate::jinja::ops::equal;
use crate::jinja::runtime::{Args, Runtime, int_argument, required};
use crate::jinja::value::{Dict, Loop, Value, View};

pub(super) fn call(runtime: &Runtime, receiver: &Value, name: &str, args: Args) -> Result<Value> {
    match (receiver, name) {
        (Value::Dict(dict), _) => dict_method(runtime, dict, name, args),
        (_, "copy") => {
            args.none(name)?;
            let items = runtime.iterate(receiver)?;
            runtime.budget.elements(items.values.len())?;
            runtime.list(items.values.clone())
        }
        (_, "count") => {
            let [value] = args.bind(name, [""])?;
            let value = required(value, name)?;
            let mut count = 0;
            for item in &runtime.iterate(receiver)?.values {
                count += i128::from(equal(runtime, item, &value)?);
            }
            Ok(Value::Int(count))
        }
        (_, "index") => index(runtime, receiver, args),
        _ => fail(format!("a {} has no method '{}'", receiver.type_name(), quoted(name))),
    }
}

/// `index(value, start, stop)`: the bounds count as in a slice.
fn index(runtime: &Runtime, receiver: &Value, args: Args) -> Result<Value> {
    let [value, start, stop] = args.bind("index", ["", "", ""])?;
    let value = required(value, "index")?;
    let items = runtime.iterate(receiver)?;
    let len = items.values.len() as i128;
    let bound = |bound: Option<Value>, default: i128| -> Result<usize> {
        let bound = bound.map_or(Ok(default), |bound| int_argument(&bound, "index"))?;
        let bound = if bound < 0 { bound.saturating_add(len) } else { bound };
        Ok(bound.clamp(0, len) as usize)
    };
    let (start, stop) = (bound(start, 0)?, bound(stop, len)?);
    for at in start..stop {
        if equal(runtime, &items.values[at], &value)? {
            return Ok(Value::Int(at as i128));
        }
    }
    fail("index: the value is not there")
}

fn dict_method(runtime: &Runtime, dict: &Rc<Dict>, name: &str, args: Args) -> Result<Value> {
    match name {
        "get" => {
            let [key, default] = args.bind(name, ["", ""])?;
            let key = runtime.key(&required(key, name)?)?;
            Ok(dict.entries.get(&key).cloned().or(default).unwrap_or(Value::None))
        }
        "keys" | "values" | "items" => {
            args.none(name)?;
            let view = match name {
                "keys" => View::Keys,
                "values" => View::Values,
                _ => View::Items,
            };
            Ok(Value::View(view, Rc::clone(dict)))
        }
        "copy" => {
            args.none(name)?;
            Ok(Value::Dict(Rc::clone(dict)))
        }
        "fromkeys" => {
            let [keys, value] = args.bind(name, ["", ""])?;
            let (keys, value) = (runtime.iterate(&required(keys, name)?)?, value.unwrap_or(Value::None));
            let mut entries = IndexMap::new();
            for key in &keys.values {
                runtime.budget.elements(2)?;
                entries.insert(runtime.key(key)?, value.clone());
            }
            runtime.dict(entries)
        }
        _ => fail(format!("a dict has no method '{}'", quoted(name))),
    }
}

/// `loop.changed(values)`: whether they differ from those of the last call.
pub(super) fn changed(runtime: &Runtime, run: &Loop, args: Args) -> Result<Value> {
    if !args.named.is_empty() {
        return fail("loop.changed takes values by position");
    }
    let last = run.changed.take();
    let mut same = last.as_ref().is_some_and(|last| last.len() == args.positional.len());
    for (a, b) in last.iter().flatten().zip(&args.positional) {
        same = same && equal(runtime, a, b)?;
    }
    run.changed.replace(Some(if same { last.unwrap_or_default() } else { args.positional }));
    Ok(Value::Bool(!same))
}
