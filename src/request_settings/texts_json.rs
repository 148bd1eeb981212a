//! Strings as a value of JSON: one, or an array of them.

use std::fmt;

use serde::de::{Deserializer, Error, SeqAccess, Visitor};

/// Reads a string or an array of strings; null is none.
pub(super) fn texts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    deserializer.deserialize_any(Texts)
}

/// Element by element, so that an error has the index of the one that is wrong.
struct Texts;

impl<'de> Visitor<'de> for Texts {
    type Value = Option<Vec<String>>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a string or an array of strings")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Some(vec![text.to_owned()]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Self::Value, A::Error> {
        let mut texts = Vec::new();
        while let Some(text) = elements.next_element()? {
            texts.push(text);
        }
        Ok(Some(texts))
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::{Value, json};

    use crate::error::Result;
    use crate::request_settings::read_json;

    #[derive(Deserialize)]
    struct Example {
        #[serde(default, deserialize_with = "super::texts")]
        words: Option<Vec<String>>,
    }

    fn read(value: Value) -> Result<Option<Vec<String>>> {
        read_json::<Example>(value).map(|example| example.words)
    }

    #[test]
    fn one_text_is_as_good_as_a_list_of_one() {
        let list = |texts: &[&str]| Some(texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>());
        assert_eq!(read(json!({"words": "yes"})).expect("one"), list(&["yes"]));
        assert_eq!(read(json!({"words": ["yes", "no"]})).expect("two"), list(&["yes", "no"]));
        assert_eq!(read(json!({"words": []})).expect("none"), list(&[]));
        for none in [json!({}), json!({"words": null})] {
            assert_eq!(read(none).expect("none"), None);
        }
    }

    #[test]
    fn an_error_says_what_is_expected_and_which_element_is_wrong() {
        for (value, setting, expected) in [
            (json!(3), "words", "a string or an array of strings"),
            (json!({"a": 1}), "words", "a string or an array of strings"),
            (json!(["a", 1]), "words[1]", "a string"),
        ] {
            let error = read(json!({"words": value})).expect_err("refused");
            assert_eq!((error.setting(), error.expected()), (Some(setting), Some(expected)), "{error}");
        }
    }
}
