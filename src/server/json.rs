//! Bodies of requests: JSON whose every field is understood, or refused by its name.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::client_names::ClientNames;
use super::error::{ApiError, ApiResult};
use super::state::{AppState, blocking};
use crate::error::{Error, ErrorCode, Result};
use crate::request_settings::{did_you_mean, field_names, read_json};
use crate::unique_value::UniqueValue;

/// What is read, and forgotten, of a body that is too large: many clients look at no answer before they have sent all of it.
pub const MAX_DRAINED_BYTES: usize = 64 << 20;

/// The fields of a JSON object that nobody has read yet.
pub struct JsonFields {
    fields: Map<String, Value>,
    /// Names that were asked for.
    known: Vec<&'static str>,
    /// What the client calls settings that were given under another name.
    names: ClientNames,
}

impl JsonFields {
    /// Reads those fields that a structure has. Where one is wrong, the error names its path.
    ///
    /// # Errors
    /// `request_invalid`.
    pub fn read<T: DeserializeOwned>(&mut self) -> ApiResult<T> {
        let names = field_names::<T>();
        self.known.extend(names);
        let own: Map<String, Value> =
            names.iter().filter_map(|&name| Some((name.to_owned(), self.fields.remove(name)?))).collect();
        read_json(Value::Object(own)).map_err(|error| self.names.error(error).into())
    }

    /// Takes a field, if it is there and not null.
    pub fn take(&mut self, name: &'static str) -> Option<Value> {
        self.known.push(name);
        self.fields.remove(name).filter(|value| !value.is_null())
    }

    /// A field that nobody has read, if it is there and not null.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.fields.get(name).filter(|value| !value.is_null())
    }

    /// Gives a setting that the client calls otherwise.
    ///
    /// # Errors
    /// `request_invalid`: it is given twice, with different values.
    pub fn give(&mut self, setting: &'static str, field: &str, value: Value) -> ApiResult<()> {
        if let Some(other) = self.get(setting) {
            if *other == value {
                return Ok(());
            }
            let other = self.names.field_of(setting).unwrap_or(setting);
            let what = format!("{field} and {other} give different values of one setting");
            return Err(ApiError::of_field(field, invalid(what).with_hint("leave one of them out")));
        }
        self.names.add(setting, field);
        self.fields.insert(setting.to_owned(), value);
        Ok(())
    }

    /// Refuses fields that nobody has read, but for nulls. Returns what the client calls its settings.
    ///
    /// # Errors
    /// `request_invalid`.
    pub fn finish(self) -> ApiResult<ClientNames> {
        let Some((name, _)) = self.fields.iter().find(|(_, value)| !value.is_null()) else { return Ok(self.names) };
        let what = format!("unknown field {name}{}", did_you_mean(name, self.known.iter().copied()));
        Err(ApiError::of_field(name.as_str(), invalid(what)))
    }
}

impl From<Map<String, Value>> for JsonFields {
    fn from(fields: Map<String, Value>) -> Self {
        Self { fields, known: Vec::new(), names: ClientNames::default() }
    }
}

impl FromRequest<Arc<AppState>> for JsonFields {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &Arc<AppState>) -> ApiResult<Self> {
        // Browsers send other types to another origin without asking that origin first.
        if !has_json(&request) {
            let error = invalid("the body is not declared to be JSON".to_owned());
            let error = error.with_hint("send the header Content-Type: application/json");
            return Err(ApiError::from(error).with_status(StatusCode::UNSUPPORTED_MEDIA_TYPE));
        }
        let body = read(request.into_body(), state.options.max_body_bytes);
        let late = |_| Error::new(ErrorCode::RequestTimeout, "the body did not arrive in time");
        let body = tokio::time::timeout(state.options.body_timeout, body).await.map_err(late)??;
        let fields = match state.prompt_text.permit(body.len()).await {
            None => parse(&body)?,
            // It takes a while, and many times the memory of its text.
            Some(permit) => {
                let parse = move || {
                    let _permit = permit;
                    parse(&body)
                };
                blocking(parse).await?
            }
        };
        Ok(fields.into())
    }
}

/// The fields of a body.
fn parse(body: &[u8]) -> Result<Map<String, Value>> {
    match serde_json::from_slice(body) {
        Ok(UniqueValue(Value::Object(fields))) => Ok(fields),
        Ok(_) => Err(invalid("the body is no JSON object".to_owned())),
        Err(e) => Err(invalid(format!("the body cannot be read as JSON: {e}"))),
    }
}

/// Reads a body of at most `limit` bytes.
async fn read(body: Body, limit: usize) -> Result<Vec<u8>> {
    let (mut parts, mut bytes, mut size) = (body.into_data_stream(), Vec::new(), 0_usize);
    while let Some(part) = parts.next().await {
        let part = part.map_err(|e| invalid(format!("the body did not arrive whole: {e}")))?;
        size += part.len();
        if size <= limit {
            bytes.extend_from_slice(&part);
        } else if size > limit.saturating_add(MAX_DRAINED_BYTES) {
            break;
        }
    }
    if size > limit {
        return Err(Error::new(ErrorCode::RequestTooLarge, "the body is too large")
            .with_expected(format!("at most {limit} bytes")));
    }
    Ok(bytes)
}

fn has_json(request: &Request) -> bool {
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json"))
}

fn invalid(what: String) -> Error {
    Error::new(ErrorCode::RequestInvalid, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize, Debug)]
    struct Example {
        number: Option<f32>,
        list: Option<Vec<u32>>,
    }

    fn fields(text: &str) -> JsonFields {
        serde_json::from_str::<Map<String, Value>>(text).expect("an object").into()
    }

    fn message(error: ApiError) -> String {
        serde_json::to_value(error.body()).expect("serializes")["error"]["message"].to_string()
    }

    #[test]
    fn a_wrong_value_is_named_by_its_path() {
        let error = fields(r#"{"list": [1, "x"], "other": 1}"#).read::<Example>().expect_err("refused");
        assert!(message(error).contains("list[1] has a wrong value"));
        let found: Example = fields(r#"{"number": 0.5, "list": null}"#).read().expect("reads");
        assert_eq!((found.number, found.list), (Some(0.5), None));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let finish = |text: &str| {
            let mut fields = fields(text);
            fields.read::<Example>().expect("reads");
            fields.finish().map(drop).map_err(message)
        };
        assert!(finish(r#"{"number": 1, "numbr": null}"#).is_ok());
        assert!(finish(r#"{"numbr": 1}"#).is_err_and(|text| text.contains("did you mean 'number'?")));
    }

    #[test]
    fn a_setting_that_was_given_otherwise_is_wrong_by_its_other_name() {
        let mut fields = fields("{}");
        fields.give("number", "temperature", "hot".into()).expect("given");
        assert!(fields.give("number", "temp", "hot".into()).is_ok());
        let error = fields.give("number", "temp", 3.into()).expect_err("another value");
        assert!(message(error).contains("temp and temperature give different values"));
        let error = serde_json::to_value(fields.read::<Example>().expect_err("no number").body()).expect("serializes");
        assert_eq!(error["error"]["param"], "temperature");
        assert!(error["error"]["message"].to_string().contains("temperature has a wrong value"), "{error}");
    }
}
