//! The names of a structure's fields, as JSON has them.

use serde::de::value::Error;
use serde::de::{Deserialize, Deserializer, Error as _, Visitor};

/// The names that a structure is read from; none if it is read otherwise.
pub(crate) fn field_names<'de, T: Deserialize<'de>>() -> &'static [&'static str] {
    let mut names: &'static [&'static str] = &[];
    // Reading it fails once its names are known.
    let _ = T::deserialize(Names(&mut names));
    names
}

/// A deserializer that only notes which fields a structure asks for.
struct Names<'a>(&'a mut &'static [&'static str]);

impl<'de> Deserializer<'de> for Names<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        Err(Error::custom("only a structure has names of fields"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        *self.0 = fields;
        self.deserialize_any(visitor)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_structures_fields_are_known_by_their_names_in_json() {
        #[derive(serde::Deserialize)]
        #[allow(dead_code)]
        struct Example {
            one: usize,
            #[serde(rename = "2")]
            two: Option<String>,
        }
        assert_eq!(field_names::<Example>(), ["one", "2"]);
        assert!(field_names::<Vec<usize>>().is_empty());
    }
}
