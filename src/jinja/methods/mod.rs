//! The methods of Python's types that a template can call.

mod containers;
mod predicates;
mod split;
mod strings;

use super::error::{Result, fail, quoted};
use super::runtime::{Args, Runtime};
use super::value::Value;

/// `receiver.name(args)`.
pub(super) fn call(runtime: &Runtime, receiver: &Value, name: &str, args: Args) -> Result<Value> {
    match receiver {
        Value::Str(text) => {
            runtime.budget.work(match name {
                "startswith" | "endswith" | "removeprefix" | "removesuffix" => 0,
                "strip" | "lstrip" | "rstrip" => text.len(),
                // Each walks the text a few times at most, character by character.
                _ => 8 * text.len(),
            })?;
            if let Some(answer) = predicates::call(text, name)? {
                args.none(name)?;
                return Ok(Value::Bool(answer));
            }
            match split::call(runtime, text, name, &args)? {
                Some(parts) => Ok(parts),
                None => strings::call(runtime, text, name, args),
            }
        }
        Value::Dict(_) | Value::List(_) | Value::Tuple(_) | Value::Range(_) => {
            containers::call(runtime, receiver, name, args)
        }
        Value::Float(value) if name == "is_integer" => {
            args.none(name)?;
            Ok(Value::Bool(value.fract() == 0.0))
        }
        Value::Loop(run) if name == "cycle" => {
            runtime.budget.work(100)?;
            if !args.named.is_empty() || args.positional.is_empty() {
                return fail("loop.cycle needs items by position");
            }
            Ok(args.positional[run.index.get() % args.positional.len()].clone())
        }
        Value::Loop(run) if name == "changed" => containers::changed(runtime, run, args),
        Value::Cycler(cycler) => {
            args.none(name)?;
            let at = cycler.at.get();
            if name == "reset" {
                cycler.at.set(0);
                return Ok(Value::None);
            }
            cycler.at.set((at + 1) % cycler.items.values.len());
            Ok(cycler.items.values[at].clone())
        }
        other => fail(format!("a {} has no method '{}'", other.type_name(), quoted(name))),
    }
}
