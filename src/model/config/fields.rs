//! The members of config.json as transformers 5.23 reads them: JSON as Python's `json` module takes it, and types as strict as
//! those of its config classes, where an integer is neither `64.0` nor `true`.

use std::fmt;
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, ErrorCode, Result};
use crate::files::read_bounded;

/// Cap on a JSON file of a model folder, in bytes. Real ones have a few KiB.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// The members of a JSON object.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a>(&'a Map<String, Value>);

/// The type of a member that is checked and not used.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum FieldType {
    Integer,
    Float,
    Flag,
    /// An integer or a float.
    Number,
}

impl<'a> Fields<'a> {
    pub(super) fn of(value: &'a Value) -> Result<Self> {
        let what = "config.json is not a JSON object";
        value.as_object().map(Self).ok_or_else(|| Error::new(ErrorCode::ModelConfigInvalid, what))
    }

    /// A member, which may be null.
    pub(super) fn get(&self, name: &str) -> Option<&'a Value> {
        self.0.get(name)
    }

    /// A member, unless it is absent or null.
    pub(super) fn non_null(&self, name: &str) -> Option<&'a Value> {
        self.get(name).filter(|value| !value.is_null())
    }

    /// An integer.
    pub(super) fn integer(&self, name: &str, default: i64) -> Result<i64> {
        self.get(name).map_or(Ok(default), |value| value.as_i64().ok_or_else(|| wrong(name, "an integer", value)))
    }

    /// An integer or null.
    pub(super) fn nullable_integer(&self, name: &str, default: Option<i64>) -> Result<Option<i64>> {
        match self.get(name) {
            None => Ok(default),
            Some(Value::Null) => Ok(None),
            Some(value) => value.as_i64().map(Some).ok_or_else(|| wrong(name, "an integer or null", value)),
        }
    }

    /// An integer from 1 to `most`.
    pub(super) fn count(&self, name: &str, default: usize, most: usize) -> Result<usize> {
        in_range(name, self.integer(name, default as i64)?, most)
    }

    /// A number with a fraction or an exponent.
    pub(super) fn float(&self, name: &str, default: f64) -> Result<f64> {
        let Some(value) = self.get(name) else { return Ok(default) };
        value.as_f64().filter(|_| value.is_f64()).ok_or_else(|| wrong(name, "a float, such as 1.0", value))
    }

    /// A float or null.
    pub(super) fn nullable_float(&self, name: &str, default: Option<f64>) -> Result<Option<f64>> {
        match self.get(name) {
            None => Ok(default),
            Some(Value::Null) => Ok(None),
            Some(_) => self.float(name, 0.0).map(Some),
        }
    }

    /// A float or an integer.
    pub(super) fn number(&self, name: &str, default: f64) -> Result<f64> {
        self.get(name).map_or(Ok(default), |value| value.as_f64().ok_or_else(|| wrong(name, "a number", value)))
    }

    /// `true`, `false` or null, which is `false`.
    pub(super) fn nullable_flag(&self, name: &str) -> Result<bool> {
        if self.non_null(name).is_none() { Ok(false) } else { self.flag(name, false) }
    }

    /// `true` or `false`.
    pub(super) fn flag(&self, name: &str, default: bool) -> Result<bool> {
        self.get(name).map_or(Ok(default), |value| value.as_bool().ok_or_else(|| wrong(name, "true or false", value)))
    }

    /// A string.
    pub(super) fn text(&self, name: &str, default: &'a str) -> Result<&'a str> {
        self.get(name).map_or(Ok(default), |value| value.as_str().ok_or_else(|| wrong(name, "a string", value)))
    }

    /// A list of strings or null.
    pub(super) fn nullable_texts(&self, name: &str) -> Result<Option<Vec<&'a str>>> {
        let Some(value) = self.non_null(name) else { return Ok(None) };
        let texts = value.as_array().and_then(|items| items.iter().map(Value::as_str).collect());
        texts.map(Some).ok_or_else(|| wrong(name, "a list of strings or null", value))
    }

    /// A list of integers or null.
    pub(super) fn nullable_integers(&self, name: &str) -> Result<Option<Vec<i64>>> {
        let Some(value) = self.non_null(name) else { return Ok(None) };
        let integers = value.as_array().and_then(|items| items.iter().map(Value::as_i64).collect());
        integers.map(Some).ok_or_else(|| wrong(name, "a list of integers or null", value))
    }

    /// Ids: one, several, or null. Negative ones mean none.
    pub(super) fn nullable_ids(&self, name: &str, default: &[i64]) -> Result<Vec<u32>> {
        let Some(value) = self.get(name) else { return Ok(non_negative(default.iter().copied())) };
        token_ids(value).map_err(|(expected, found)| wrong(name, expected, found))
    }

    /// Checks the type of a member that is not used.
    pub(super) fn check(&self, name: &str, expected: FieldType, may_be_null: bool) -> Result<()> {
        let Some(value) = self.get(name) else { return Ok(()) };
        let (is_valid, what) = match expected {
            FieldType::Integer => (value.as_i64().is_some(), "an integer"),
            FieldType::Float => (value.is_f64(), "a float, such as 1.0"),
            FieldType::Flag => (value.is_boolean(), "true or false"),
            FieldType::Number => (value.is_number(), "a number"),
        };
        if is_valid || (may_be_null && value.is_null()) { Ok(()) } else { Err(wrong(name, what, value)) }
    }
}

/// Ids: one, several, or null. Negative ones mean none. The error is what was expected, and what was found.
pub(super) fn token_ids(value: &Value) -> Result<Vec<u32>, (&'static str, &Value)> {
    let ids = match value {
        Value::Null => Vec::new(),
        Value::Array(items) => {
            let id = |item| Value::as_i64(item).ok_or(("a list of token ids", item));
            items.iter().map(id).collect::<Result<Vec<_>, _>>()?
        }
        value => vec![value.as_i64().ok_or(("a token id, a list of them, or null", value))?],
    };
    Ok(non_negative(ids))
}

fn non_negative(ids: impl IntoIterator<Item = i64>) -> Vec<u32> {
    ids.into_iter().filter_map(|id| u32::try_from(id).ok()).collect()
}

/// A count that an integer of the file gives.
pub(super) fn in_range(name: &str, value: i64, most: usize) -> Result<usize> {
    match usize::try_from(value) {
        Ok(count) if (1..=most).contains(&count) => Ok(count),
        _ => Err(invalid(name).with_expected(format!("a number from 1 to {most}")).with_found(value)),
    }
}

/// The error for a member that cannot be used.
pub(super) fn invalid(name: impl fmt::Display) -> Error {
    Error::new(ErrorCode::ModelConfigInvalid, format!("invalid '{name}' in config.json"))
}

/// The error for a member of the wrong type.
pub(super) fn wrong(name: impl fmt::Display, expected: &str, found: &Value) -> Error {
    invalid(name).with_expected(expected).with_found(shown(found))
}

/// A value as shown in messages, cut to a readable length.
pub(super) fn shown(value: &Value) -> String {
    let text = value.to_string();
    if text.len() > 60 { text.chars().take(60).chain("…".chars()).collect() } else { text }
}

/// The error for what transformers can compute and exlora cannot.
pub(super) fn unsupported(what: impl Into<String>) -> Error {
    Error::new(ErrorCode::ModelFeatureUnsupported, what)
}

/// Whether Python takes a value as true.
pub(super) fn is_truthy(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(flag) => *flag,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(members) => !members.is_empty(),
    }
}

/// A JSON file of a model folder, or `None` if there is none.
///
/// # Errors
/// `model_config_invalid`; `checkpoint_unreadable`, `checkpoint_too_large`.
pub(crate) fn read_json(path: &Path) -> Result<Option<Value>> {
    let text = match read_bounded(path, MAX_FILE_BYTES) {
        Ok(text) => text,
        Err(error) if error.code() == ErrorCode::CheckpointNotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    parse_json(&text)
        .map(Some)
        .map_err(|e| Error::new(ErrorCode::ModelConfigInvalid, format!("not valid JSON: {e}")).with_path(path))
}

/// Reads JSON as Python's `json` module does, with `NaN`, `Infinity` and numbers too large for a float; they become strings, so
/// that whatever needs a number refuses them. Of equal names the last wins.
fn parse_json(text: &[u8]) -> serde_json::Result<Value> {
    serde_json::from_slice(text).or_else(|error| serde_json::from_slice(&quote_non_finite(text)).map_err(|_| error))
}

/// The text with every number that is not finite put in quotes.
fn quote_non_finite(text: &[u8]) -> Vec<u8> {
    let mut quoted = Vec::with_capacity(text.len() + 16);
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        let length = match rest[0] {
            b'"' => string_length(rest),
            b'-' | b'0'..=b'9' | b'N' | b'I' => {
                let is_part = |byte: &&u8| byte.is_ascii_alphanumeric() || b"+-.".contains(byte);
                rest.iter().take_while(is_part).count()
            }
            _ => 1,
        };
        let token = &rest[..length];
        if is_non_finite(token) {
            quoted.push(b'"');
            quoted.extend_from_slice(token);
            quoted.push(b'"');
        } else {
            quoted.extend_from_slice(token);
        }
        at += length;
    }
    quoted
}

fn is_non_finite(token: &[u8]) -> bool {
    match token {
        b"NaN" | b"Infinity" | b"-Infinity" => true,
        [b'-' | b'0'..=b'9', ..] => {
            std::str::from_utf8(token).is_ok_and(|text| text.parse::<f64>().is_ok_and(f64::is_infinite))
        }
        _ => false,
    }
}

/// Length of the string literal that `text` begins with, including its quotes.
fn string_length(text: &[u8]) -> usize {
    let mut at = 1;
    while at < text.len() {
        match text[at] {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_read_as_python_reads_it() {
        let text = br#"{"a": NaN, "b": [-Infinity, 1e999], "c": "NaN \" Infinity", "d": 1, "d": 2.5e-3}"#;
        let value = parse_json(text).expect("valid in Python");
        assert_eq!(value["a"], "NaN");
        assert_eq!(value["b"], serde_json::json!(["-Infinity", "1e999"]));
        assert_eq!(value["c"], "NaN \" Infinity");
        assert_eq!(value["d"], 2.5e-3);
        for text in ["{\"a\": nan}", "{\"a\": +Infinity}", "{\"a\": 1,}", "\u{feff}{}", "{} {}", "{\"a\": NaN", "\"\\"]
        {
            assert!(parse_json(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn types_are_as_strict_as_in_transformers() {
        let value = serde_json::json!({
            "int": 3, "float": 3.0, "flag": true, "null": null, "text": "x", "huge": 1e30, "ids": [1, 2], "flags": [true]
        });
        let fields = Fields::of(&value).expect("an object");
        assert_eq!((fields.integer("int", 0).ok(), fields.integer("absent", 7).ok()), (Some(3), Some(7)));
        for name in ["float", "flag", "null", "text", "huge"] {
            assert!(fields.integer(name, 0).is_err(), "{name}");
        }
        assert_eq!(fields.float("float", 0.0).ok(), Some(3.0));
        assert!(fields.float("int", 0.0).is_err() && fields.float("flag", 0.0).is_err());
        assert!(fields.flag("flag", false).is_ok() && fields.flag("int", false).is_err());
        assert_eq!((fields.number("int", 0.0).ok(), fields.number("absent", 0.5).ok()), (Some(3.0), Some(0.5)));
        assert!(fields.number("flag", 0.0).is_err() && fields.number("null", 0.0).is_err());
        assert_eq!(fields.nullable_float("null", Some(1.0)).ok(), Some(None));
        assert_eq!(fields.nullable_float("absent", Some(1.0)).ok(), Some(Some(1.0)));
        assert!(fields.nullable_float("int", None).is_err());
        assert_eq!(fields.nullable_integers("ids").ok(), Some(Some(vec![1, 2])));
        assert!(fields.nullable_integers("flags").is_err() && fields.nullable_integers("int").is_err());
        assert_eq!(fields.nullable_ids("ids", &[]).ok(), Some(vec![1, 2]));
        assert_eq!(fields.nullable_ids("null", &[2]).ok(), Some(vec![]));
        assert_eq!(fields.nullable_ids("absent", &[2]).ok(), Some(vec![2]));
        assert!(fields.nullable_ids("flags", &[]).is_err() && fields.nullable_ids("float", &[]).is_err());
    }
}
