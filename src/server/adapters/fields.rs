//! The fields of a request that name its adapters, as they are written.

use std::fmt;

use serde::de::{self, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use utoipa::ToSchema;
use utoipa::openapi::schema::{AdditionalProperties, ArrayBuilder, ObjectBuilder, OneOfBuilder, Type};
use utoipa::openapi::{RefOr, Schema};

use crate::error::{Error, ErrorKind};

/// The fields of a request that name its adapters.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub struct AdapterFields {
    /// A name of the base model, `base` among them; or an adapter's name, which may follow the base's: `base:sql`, `base::sql`.
    pub model: Option<String>,
    /// The request's mixture: an adapter's name, an object of names and weights, in order, or a list of objects with a `name` (or
    /// `id`) and a `scale`. Empty for the base alone. Only beside a `model` that is the base.
    #[schema(inline)]
    pub adapters: Option<MixtureField>,
    /// The same as llama.cpp has it: a list of objects with the `id` that `GET /lora-adapters` lists and a `scale`.
    #[schema(inline)]
    pub lora: Option<MixtureField>,
}

impl AdapterFields {
    /// The error of a request whose adapters cannot be used: that of the field that names them, but for what is the server's matter.
    pub fn error(&self, error: Error) -> Error {
        let field = match self {
            Self { lora: Some(_), .. } => "lora",
            Self { adapters: Some(_), .. } => "adapters",
            Self { model: Some(_), .. } => "model",
            // The server's own default mixture.
            _ => return error,
        };
        match error.code().kind() {
            ErrorKind::NotFound | ErrorKind::Invalid | ErrorKind::Unsupported => error.with_setting(field),
            _ => error,
        }
    }
}

/// A mixture as a request writes it, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MixtureField(pub Vec<(AdapterKey, f32)>);

/// How a request names an adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdapterKey {
    /// By its name.
    Name(String),
    /// By the number that `GET /lora-adapters` lists.
    Id(usize),
}

impl<'de> Deserialize<'de> for MixtureField {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(MixtureVisitor)
    }
}

struct MixtureVisitor;

impl<'de> Visitor<'de> for MixtureVisitor {
    type Value = MixtureField;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an adapter's name, an object of names and weights, or a list of {name or id, scale}")
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<MixtureField, E> {
        Ok(MixtureField(vec![(AdapterKey::Name(name.to_owned()), 1.0)]))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<MixtureField, A::Error> {
        let mut parts = Vec::new();
        while let Some((name, weight)) = map.next_entry()? {
            parts.push((AdapterKey::Name(name), weight));
        }
        Ok(MixtureField(parts))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<MixtureField, A::Error> {
        let mut parts = Vec::new();
        while let Some(ScaledAdapter { id, name, scale }) = list.next_element()? {
            let key = match (id, name) {
                (Some(id), None) => AdapterKey::Id(id),
                (None, Some(name)) => AdapterKey::Name(name),
                _ => return Err(de::Error::custom("each object has either an id or a name, and a scale")),
            };
            // To llama.cpp, a scale of 0 says that the adapter is not used.
            if scale != 0.0 {
                parts.push((key, scale));
            }
        }
        Ok(MixtureField(parts))
    }
}

/// An element of llama.cpp's list.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ScaledAdapter {
    id: Option<usize>,
    name: Option<String>,
    scale: f32,
}

impl utoipa::PartialSchema for MixtureField {
    fn schema() -> RefOr<Schema> {
        let number = || ObjectBuilder::new().schema_type(Type::Number);
        let text = || ObjectBuilder::new().schema_type(Type::String);
        let weights = ObjectBuilder::new().additional_properties(Some(AdditionalProperties::from(number())));
        let scaled = ObjectBuilder::new()
            .property("name", text())
            .property("id", ObjectBuilder::new().schema_type(Type::Integer))
            .property("scale", number())
            .required("scale");
        let list = ArrayBuilder::new().items(scaled);
        OneOfBuilder::new().item(text()).item(weights).item(list).into()
    }
}

impl ToSchema for MixtureField {}

#[cfg(test)]
mod tests {
    use super::*;

    fn mixture(text: &str) -> Result<Vec<(AdapterKey, f32)>, String> {
        serde_json::from_str(text).map(|MixtureField(parts)| parts).map_err(|error| error.to_string())
    }

    fn name(name: &str) -> AdapterKey {
        AdapterKey::Name(name.to_owned())
    }

    #[test]
    fn a_mixture_is_a_name_weights_by_name_or_llama_cpps_list() {
        assert_eq!(mixture(r#""sql""#), Ok(vec![(name("sql"), 1.0)]));
        assert_eq!(mixture(r#"{"wit": 0.3, "sql": -1}"#), Ok(vec![(name("wit"), 0.3), (name("sql"), -1.0)]));
        let list = r#"[{"id": 1, "scale": 0.5}, {"name": "sql", "scale": 2}, {"id": 0, "scale": 0.0}]"#;
        assert_eq!(mixture(list), Ok(vec![(AdapterKey::Id(1), 0.5), (name("sql"), 2.0)]));
        assert_eq!((mixture("{}"), mixture("[]")), (Ok(Vec::new()), Ok(Vec::new())));
    }

    #[test]
    fn what_is_not_one_is_refused() {
        for text in [
            "1",
            "true",
            r#"{"sql": "1"}"#,
            r#"{"sql": null}"#,
            r#"["sql"]"#,
            r#"[{"id": 1}]"#,
            r#"[{"scale": 1}]"#,
            r#"[{"id": 1, "name": "sql", "scale": 1}]"#,
            r#"[{"id": -1, "scale": 1}]"#,
            r#"[{"id": 1, "scale": 1, "weight": 1}]"#,
        ] {
            assert!(mixture(text).is_err(), "{text}");
        }
    }
}
