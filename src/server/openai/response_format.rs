//! `response_format`: what the text of a response has to be.

use serde::Deserialize;
use serde_json::{Map, Value as Json, json};
use utoipa::ToSchema;

use crate::engine::Grammar;
use crate::error::{Error, ErrorCode, Result};

/// Longest name of a schema, as at OpenAI.
const MAX_NAME: usize = 64;

/// What the text has to be, as chat completions have it.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResponseFormat {
    /// Any text, a JSON object, or JSON under a schema.
    pub r#type: FormatType,
    /// The schema, of the type `json_schema`.
    pub json_schema: Option<NamedSchema>,
}

/// A kind of text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FormatType {
    /// Any text.
    Text,
    /// A JSON object.
    JsonObject,
    /// JSON under a schema.
    JsonSchema,
}

/// A JSON schema with a name.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NamedSchema {
    /// Up to 64 letters, digits, underscores and dashes.
    pub name: String,
    /// What the text is for.
    #[serde(default)]
    #[expect(dead_code, reason = "accepted: templates have no place for it")]
    pub description: Option<String>,
    /// The schema; by default that of an object.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub schema: Option<Map<String, Json>>,
    /// `false` ignores keywords that cannot be kept, which are otherwise an error.
    #[serde(default)]
    pub strict: Option<bool>,
}

impl ResponseFormat {
    /// The JSON schema of the text; `None` for any text. `place` is where in the request its fields are.
    ///
    /// # Errors
    /// `request_invalid`: there is none, one too many, or its name is none.
    pub fn schema(&self, place: &str) -> Result<Option<Json>> {
        let object = || json!({"type": "object"}).as_object().cloned().unwrap_or_default();
        match (self.r#type, &self.json_schema) {
            (FormatType::Text, None) => Ok(None),
            (FormatType::JsonObject, None) => Ok(Some(Grammar::guided_schema(object(), false))),
            (FormatType::JsonSchema, Some(json_schema)) => {
                json_schema.check_name(place)?;
                let schema = json_schema.schema.clone().unwrap_or_else(object);
                Ok(Some(Grammar::guided_schema(schema, json_schema.strict == Some(false))))
            }
            (FormatType::JsonSchema, None) => Err(invalid(place, "is missing")),
            (_, Some(_)) => Err(invalid(place, "is given, and the type is not json_schema")),
        }
    }
}

impl NamedSchema {
    fn check_name(&self, place: &str) -> Result<()> {
        let is_of_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
        if self.name.is_empty() || self.name.len() > MAX_NAME || !self.name.chars().all(is_of_name) {
            return Err(invalid(&format!("{place}.name"), "is no name of a schema")
                .with_expected(format!("1 to {MAX_NAME} letters, digits, underscores and dashes"))
                .with_found(self.name.escape_debug()));
        }
        Ok(())
    }
}

fn invalid(place: &str, what: &str) -> Error {
    Error::new(ErrorCode::RequestInvalid, format!("{place} {what}")).with_setting(place)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request_settings::read_json_at;

    fn schema(format: Json) -> Result<Option<Json>> {
        serde_json::from_value::<ResponseFormat>(format).expect("well-formed").schema("place")
    }

    #[test]
    fn a_format_is_a_json_schema_or_nothing() {
        assert_eq!(schema(json!({"type": "text"})).expect("valid"), None);
        let object = schema(json!({"type": "json_object"})).expect("valid").expect("a schema");
        assert_eq!(object["type"], "object");
        let named =
            json!({"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "array"}, "strict": true}});
        let array = schema(named).expect("valid").expect("a schema");
        assert_eq!((&array["type"], &array["x-guidance"]["lenient"]), (&json!("array"), &json!(false)));
        let without = json!({"type": "json_schema", "json_schema": {"name": "n", "strict": false}});
        let object = schema(without).expect("valid").expect("a schema");
        assert_eq!((&object["type"], &object["x-guidance"]["lenient"]), (&json!("object"), &json!(true)));
    }

    #[test]
    fn what_is_no_format_is_refused() {
        for (format, place) in [
            (json!({"type": "json_schema", "json_schema": {"name": "a b"}}), "place.name"),
            (json!({"type": "json_schema"}), "place"),
            (json!({"type": "text", "json_schema": {"name": "n"}}), "place"),
        ] {
            assert_eq!(schema(format.clone()).expect_err("refused").setting(), Some(place), "{format}");
        }
        for (format, place) in [
            (json!("json_object"), "format"),
            (json!({}), "format.type"),
            (json!({"type": "xml"}), "format.type"),
            (json!({"type": "json_schema", "json_schema": {"schema": {}}}), "format.json_schema.name"),
            (json!({"type": "json_schema", "json_schema": {"name": "n", "schema": 3}}), "format.json_schema.schema"),
            (json!({"type": "json_schema", "json_schema": {"name": "n", "schemas": {}}}), "format.json_schema.schemas"),
        ] {
            let error = read_json_at::<ResponseFormat>("format", format.clone()).expect_err("refused");
            assert_eq!(error.setting(), Some(place), "{format}");
        }
    }
}
