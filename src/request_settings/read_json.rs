//! JSON of requests read into structures, with errors in the words of JSON: the place of the value that is wrong, what it may be,
//! and what it is.

use std::fmt;

use serde::de::value::{MapDeserializer, SeqDeserializer, StringDeserializer};
use serde::de::{self, DeserializeOwned, Deserializer, Expected, IntoDeserializer, Unexpected, Visitor};
use serde_json::Value;

use super::suggestion::did_you_mean;
use crate::error::{Error, ErrorCode, Result};

/// Most characters of a client's text that a message repeats.
const MAX_SHOWN: usize = 100;

/// Reads a value. The setting of an error is the path of what is wrong: `stop[1]`, `tools[0].function.name`.
///
/// # Errors
/// `request_invalid`.
pub fn read_json<T: DeserializeOwned>(value: Value) -> Result<T> {
    read_json_at("", value)
}

/// Reads the value that lies at this place of a request.
///
/// # Errors
/// `request_invalid`.
pub(crate) fn read_json_at<T: DeserializeOwned>(place: &str, value: Value) -> Result<T> {
    serde_path_to_error::deserialize(JsonValue(value)).map_err(|e| {
        let below = e.path().to_string();
        let below = if below == "." { "" } else { &below };
        let between = if place.is_empty() || below.is_empty() || below.starts_with('[') { "" } else { "." };
        let path = format!("{place}{between}{below}");
        e.into_inner().at(&path)
    })
}

/// The error of a value that is not what it should be, for functions that read one by themselves.
pub(super) fn unexpected<E: de::Error>(value: &Value, expected: &str) -> E {
    let found = match value {
        Value::Null => Unexpected::Unit,
        Value::Bool(value) => Unexpected::Bool(*value),
        Value::Number(number) => match (number.as_u64(), number.as_i64()) {
            (Some(number), _) => Unexpected::Unsigned(number),
            (None, Some(number)) => Unexpected::Signed(number),
            (None, None) => Unexpected::Float(number.as_f64().unwrap_or_default()),
        },
        Value::String(text) => Unexpected::Str(text),
        Value::Array(_) => Unexpected::Seq,
        Value::Object(_) => Unexpected::Map,
    };
    E::invalid_type(found, &expected)
}

/// What is wrong with a value.
#[derive(Debug)]
enum Wrong {
    /// It is not what it may be.
    Value { expected: String, found: String },
    /// An object lacks this field.
    Missing(&'static str),
    /// An object has a field that it may not have; its path ends with the field's name.
    Unknown { name: String, known: &'static [&'static str] },
    /// Anything else, as a clause.
    Other(String),
}

impl Wrong {
    /// The error about the value at a path, which is empty for the whole.
    fn at(self, path: &str) -> Error {
        let invalid = |what: String| Error::new(ErrorCode::RequestInvalid, what);
        let place = if path.is_empty() { "the request" } else { path };
        let error = match self {
            Self::Value { expected, found } => {
                invalid(format!("{place} has a wrong value")).with_expected(expected).with_found(found)
            }
            Self::Missing(field) => {
                let field = if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") };
                return invalid(format!("{field} is missing")).with_setting(field);
            }
            Self::Unknown { name, known } => {
                let what = format!("unknown field {place}{}", did_you_mean(&name, known.iter().copied()));
                invalid(what).with_expected(listed(known))
            }
            Self::Other(what) if what.starts_with(place) => invalid(what),
            Self::Other(what) => invalid(format!("{place}: {what}")),
        };
        if path.is_empty() { error } else { error.with_setting(path) }
    }
}

impl std::error::Error for Wrong {}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value { expected, found } => write!(f, "expected {expected}, found {found}"),
            Self::Missing(field) => write!(f, "{field} is missing"),
            Self::Unknown { name, .. } => write!(f, "unknown field {name}"),
            Self::Other(what) => f.write_str(what),
        }
    }
}

impl de::Error for Wrong {
    fn custom<T: fmt::Display>(what: T) -> Self {
        Self::Other(what.to_string())
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::Value { expected: in_json_words(&expected.to_string()), found: shown(found) }
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_type(found, expected)
    }

    fn invalid_length(length: usize, expected: &dyn Expected) -> Self {
        Self::Value { expected: in_json_words(&expected.to_string()), found: format!("{length} elements") }
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self::Value { expected: listed(expected), found: shown(Unexpected::Str(variant)) }
    }

    fn unknown_field(field: &str, known: &'static [&'static str]) -> Self {
        Self::Unknown { name: field.to_owned(), known }
    }

    fn missing_field(field: &'static str) -> Self {
        Self::Missing(field)
    }
}

/// serde's name of what it expects, in the words of JSON. What visitors of our own expect is said so already.
fn in_json_words(expected: &str) -> String {
    match expected {
        "u8" | "u16" | "u32" => "a small integer of at least 0",
        "u64" | "usize" => "an integer of at least 0",
        "i8" | "i16" | "i32" | "i64" | "isize" => "an integer",
        "f32" | "f64" => "a number",
        "a boolean" => "true or false",
        "a sequence" => "an array",
        "a map" => "an object",
        other if other.starts_with("struct ") => "an object",
        other if other.starts_with("enum ") => "a string",
        other => other,
    }
    .to_owned()
}

/// What was found, as JSON has it.
fn shown(found: Unexpected<'_>) -> String {
    match found {
        Unexpected::Bool(value) => value.to_string(),
        Unexpected::Unsigned(number) => number.to_string(),
        Unexpected::Signed(number) => number.to_string(),
        Unexpected::Float(number) => Value::from(number).to_string(),
        Unexpected::Str(text) if text.chars().nth(MAX_SHOWN).is_none() => Value::from(text).to_string(),
        Unexpected::Str(text) => {
            let start: String = text.chars().take(MAX_SHOWN).collect();
            format!("a string that begins with {}", Value::from(start))
        }
        Unexpected::Unit | Unexpected::Option => "null".to_owned(),
        Unexpected::Seq => "an array".to_owned(),
        Unexpected::Map => "an object".to_owned(),
        other => other.to_string(),
    }
}

/// Names as a list: `a, b or c`.
fn listed(names: &[&str]) -> String {
    match names {
        [] => "no fields".to_owned(),
        [one] => (*one).to_owned(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

/// A value that is read with errors in the words of JSON. Objects are read from objects alone, and not from arrays of values.
struct JsonValue(Value);

impl<'de> IntoDeserializer<'de, Wrong> for JsonValue {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for JsonValue {
    type Error = Wrong;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        match self.0 {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(value),
            Value::Number(number) => match (number.as_u64(), number.as_i64()) {
                (Some(number), _) => visitor.visit_u64(number),
                (None, Some(number)) => visitor.visit_i64(number),
                (None, None) => visitor.visit_f64(number.as_f64().unwrap_or(f64::NAN)),
            },
            Value::String(text) => visitor.visit_string(text),
            Value::Array(values) => {
                let mut elements = SeqDeserializer::new(values.into_iter().map(JsonValue));
                let read = visitor.visit_seq(&mut elements)?;
                elements.end().map(|()| read)
            }
            Value::Object(fields) => {
                let fields = fields.into_iter().map(|(name, value)| (name, JsonValue(value)));
                visitor.visit_map(MapDeserializer::new(fields))
            }
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        if self.0.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Wrong> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        match self.0 {
            Value::Object(_) => self.deserialize_any(visitor),
            other => Err(unexpected(&other, "an object")),
        }
    }

    /// One of several words; no request has an enum of another kind.
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        words: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        match self.0 {
            Value::String(word) => visitor.visit_enum(StringDeserializer::new(word)),
            other => Err(unexpected(&other, &listed(words))),
        }
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Example {
        number: Option<f32>,
        count: Option<usize>,
        ids: Option<Vec<u32>>,
        flag: Option<bool>,
        inner: Option<Inner>,
        word: Option<Word>,
        anything: Option<Value>,
        weights: Option<BTreeMap<String, f32>>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Inner {
        name: String,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Word {
        OneWord,
        Other,
    }

    #[test]
    fn an_error_names_the_place_and_speaks_of_json() {
        for (value, setting, text) in [
            (json!({"number": "hot"}), "number", "number has a wrong value: expected a number, found \"hot\""),
            (json!({"count": -1}), "count", "count has a wrong value: expected an integer of at least 0, found -1"),
            (json!({"count": 0.5}), "count", "expected an integer of at least 0, found 0.5"),
            (json!({"count": 1e30}), "count", "expected an integer of at least 0, found 1e+30"),
            (json!({"ids": [1, "x"]}), "ids[1]", "ids[1] has a wrong value"),
            (json!({"ids": {}}), "ids", "expected an array, found an object"),
            (json!({"ids": [1_u64 << 32]}), "ids[0]", "expected a small integer of at least 0, found 4294967296"),
            (json!({"flag": 0}), "flag", "expected true or false, found 0"),
            (json!({"inner": ["x"]}), "inner", "expected an object, found an array"),
            (json!({"inner": {}}), "inner.name", "inner.name is missing"),
            (json!({"inner": {"name": null}}), "inner.name", "expected a string, found null"),
            (json!({"word": "third"}), "word", "expected one_word or other, found \"third\""),
            (json!({"word": {"x": 1}}), "word", "expected one_word or other, found an object"),
            (json!({"weights": {"a": true}}), "weights.a", "expected a number, found true"),
            (json!({"numbr": 1}), "numbr", "unknown field numbr; did you mean 'number'?"),
        ] {
            let error = read_json::<Example>(value.clone()).expect_err("refused");
            assert_eq!(error.setting(), Some(setting), "{value}");
            assert!(error.to_string().contains(text), "{error}");
        }
        for (value, setting) in [(json!(["x"]), "list"), (json!({"inner": {}}), "list.inner.name")] {
            assert_eq!(read_json_at::<Example>("list", value).expect_err("refused").setting(), Some(setting));
        }
        assert_eq!(read_json_at::<Vec<u32>>("ids", json!([1, "x"])).expect_err("refused").setting(), Some("ids[1]"));
        let long = read_json::<Example>(json!({"number": "é".repeat(1 << 20)})).expect_err("refused").to_string();
        assert!(long.len() < 400, "{long}");
        assert!(read_json::<Example>(json!([])).expect_err("refused").to_string().contains("the request has a wrong"));
    }

    fn example() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            prop_oneof!["[a-z]{0,3}", Just("one_word".to_owned())].prop_map(Value::from),
        ];
        let value = leaf.prop_recursive(2, 8, 3, |inner| {
            let name = prop_oneof![Just("name".to_owned()), "[a-z]{1,3}"];
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                proptest::collection::vec((name, inner), 0..3)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        });
        const NAMES: &[&str] = &["number", "count", "ids", "flag", "inner", "word", "anything", "weights", "other"];
        let name = proptest::sample::select(NAMES).prop_map(str::to_owned);
        proptest::collection::vec((name, value), 0..4).prop_map(|fields| Value::Object(fields.into_iter().collect()))
    }

    proptest! {
        /// serde_json is the oracle; it also reads objects from arrays, and words from objects.
        #[test]
        fn what_is_read_is_what_serde_json_reads(value in example()) {
            let expected = serde_json::from_value::<Example>(value.clone());
            let takes_more = value.get("inner").is_some_and(Value::is_array) || value.get("word").is_some_and(Value::is_object);
            match read_json::<Example>(value) {
                Ok(read) => prop_assert_eq!(read, expected.expect("read as well")),
                Err(error) => prop_assert!(expected.is_err() || takes_more, "{}", error),
            }
        }
    }
}
