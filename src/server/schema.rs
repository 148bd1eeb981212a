//! Schemas of the OpenAPI document.

use axum::http::StatusCode;
use serde_json::Value;
use utoipa::openapi::schema::{Object, Schema};
use utoipa::openapi::{OpenApi, RefOr};

/// The schema of an object that has the fields of several. Where two have a field, it is the first one's.
pub fn one_object(parts: impl IntoIterator<Item = RefOr<Schema>>) -> RefOr<Schema> {
    let mut whole = Object::new();
    for part in parts {
        let RefOr::T(Schema::Object(part)) = part else { continue };
        for (name, schema) in part.properties {
            if !whole.properties.contains_key(&name) {
                if part.required.contains(&name) {
                    whole.required.push(name.clone());
                }
                whole.properties.insert(name, schema);
            }
        }
    }
    RefOr::T(Schema::Object(whole))
}

/// The document as JSON. Descriptions that the command line shares call a field `--top-k`, which is `top_k` here.
pub fn as_json(document: &OpenApi) -> Value {
    let mut value = serde_json::to_value(document).unwrap_or_default();
    rename_options(&mut value);
    describe_responses(&mut value);
    value
}

/// A response that is not described is described by its status.
fn describe_responses(document: &mut Value) {
    let paths = document["paths"].as_object_mut().into_iter().flat_map(|paths| paths.values_mut());
    let operations = paths.filter_map(Value::as_object_mut).flat_map(|path| path.values_mut());
    let responses = operations.filter_map(|operation| operation.get_mut("responses")?.as_object_mut());
    for (status, response) in responses.flatten() {
        let meaning = StatusCode::from_bytes(status.as_bytes()).ok().and_then(|status| status.canonical_reason());
        if let Some(fields) = response.as_object_mut() {
            fields.entry("description").or_insert_with(|| meaning.unwrap_or_default().into());
        }
    }
}

fn rename_options(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                match field {
                    Value::String(text) if name == "description" => *text = as_fields(text),
                    other => rename_options(other),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(rename_options),
        _ => {}
    }
}

/// A text with each `--some-option` as `some_option`.
fn as_fields(text: &str) -> String {
    let mut parts = text.split("--");
    let mut fields = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part.find(|c: char| !c.is_ascii_lowercase() && c != '-').unwrap_or(part.len());
        fields.push_str(&part[..end].replace('-', "_"));
        fields.push_str(&part[end..]);
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_called_as_fields_are() {
        assert_eq!(as_fields("off if not above --min-temp. --seed, too"), "off if not above min_temp. seed, too");
        assert_eq!(as_fields("no option"), "no option");
    }
}
