//! The variables of a rendering: JSON to values.

use serde_json::Value as Json;

use super::error::{Result, TemplateError, fail};
use super::runtime::Runtime;
use super::value::{Key, Value};

/// Bytes of all variables, as [`size`] counts them.
pub(super) const MAX_BYTES: usize = 32 << 20;

/// Deepest nesting of lists and objects. JSON parsers stop at 128 too.
const MAX_NESTING: usize = 128;

/// Bytes of the texts in a value, and some for each element.
pub(super) fn size(value: &Json) -> Result<usize> {
    fn sum(value: &Json, nesting: usize) -> Result<usize> {
        if nesting > MAX_NESTING {
            return fail(format!("the messages or other variables are nested more than {MAX_NESTING} deep"));
        }
        let inner = match value {
            Json::String(text) => text.len(),
            Json::Array(items) => items.iter().try_fold(0, |total, item| Ok(total + sum(item, nesting + 1)?))?,
            Json::Object(entries) => {
                let entry = |total, (key, value): (&String, &Json)| Ok(total + key.len() + sum(value, nesting + 1)?);
                entries.iter().try_fold(0, entry)?
            }
            Json::Null | Json::Bool(_) | Json::Number(_) => 0,
        };
        Ok(inner + 8)
    }
    sum(value, 0)
}

/// The value of JSON whose [`size`] is known to be right.
pub(super) fn value(runtime: &Runtime, json: &Json) -> Result<Value> {
    match json {
        Json::Null => Ok(Value::None),
        Json::Bool(value) => Ok(Value::Bool(*value)),
        Json::Number(number) => {
            let int = number.as_i64().map(i128::from).or(number.as_u64().map(i128::from));
            match int.map(Value::Int).or(number.as_f64().map(Value::Float)) {
                Some(value) => Ok(value),
                None => Err(TemplateError::new("a number is too large")),
            }
        }
        Json::String(text) => runtime.str(text.as_str()),
        Json::Array(items) => {
            let items = items.iter().map(|item| value(runtime, item)).collect::<Result<_>>()?;
            runtime.list(items)
        }
        Json::Object(entries) => {
            let entry = |(key, json): (&String, &Json)| Ok((Key::text(key.as_str().into()), value(runtime, json)?));
            runtime.dict(entries.iter().map(entry).collect::<Result<_>>()?)
        }
    }
}
