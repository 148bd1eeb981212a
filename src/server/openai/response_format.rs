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
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ResponseFormat {
    /// Any text.
    Text,
    /// A JSON object.
    JsonObject,
    /// JSON under a schema.
    JsonSchema {
        /// The schema.
        json_schema: NamedSchema,
    },
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
    /// The JSON schema of the text; `None` for any text.
    ///
    /// # Errors
    /// `request_invalid`: the schema's name is none.
    pub fn schema(&self) -> Result<Option<Json>> {
        let object = || json!({"type": "object"}).as_object().cloned().unwrap_or_default();
        Ok(match self {
            Self::Text => None,
            Self::JsonObject => Some(Grammar::guided_schema(object(), false)),
            Self::JsonSchema { json_schema } => {
                json_schema.check()?;
                let schema = json_schema.schema.clone().unwrap_or_else(object);
                Some(Grammar::guided_schema(schema, json_schema.strict == Some(false)))
            }
        })
    }
}

impl NamedSchema {
    fn check(&self) -> Result<()> {
        let is_of_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
        if self.name.is_empty() || self.name.len() > MAX_NAME || !self.name.chars().all(is_of_name) {
            return Err(Error::new(ErrorCode::RequestInvalid, "the name of the schema is invalid")
                .with_expected(format!("1 to {MAX_NAME} letters, digits, underscores and dashes"))
                .with_found(self.name.escape_debug()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema(format: Json) -> Result<Option<Json>> {
        serde_json::from_value::<ResponseFormat>(format).expect("well-formed").schema()
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
        assert!(schema(json!({"type": "json_schema", "json_schema": {"name": "a b"}})).is_err());
        for format in [
            json!("json_object"),
            json!({}),
            json!({"type": "xml"}),
            json!({"type": "json_schema"}),
            json!({"type": "json_schema", "json_schema": {"schema": {}}}),
            json!({"type": "json_schema", "json_schema": {"name": "n", "schema": 3}}),
            json!({"type": "json_schema", "json_schema": {"name": "n", "schemas": {}}}),
        ] {
            assert!(serde_json::from_value::<ResponseFormat>(format.clone()).is_err(), "{format}");
        }
    }
}
