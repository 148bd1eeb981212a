//! Errors as OpenAI's clients expect them: `{"error": {"message", "type", "param", "code"}}` and an HTTP status.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::error::{Error, ErrorCode, ErrorKind};

/// Seconds after which a client that was refused because of the queue may try again.
const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("1");

/// An error with its HTTP status.
#[derive(Clone, Debug)]
pub struct ApiError {
    status: StatusCode,
    body: ErrorBody,
}

/// The body of a response that is an error.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ErrorBody {
    error: ErrorObject,
}

/// What went wrong.
#[derive(Clone, Debug, Serialize, ToSchema)]
struct ErrorObject {
    /// What is wrong, where, and what to do about it.
    message: String,
    /// Its kind, as OpenAI has it.
    r#type: &'static str,
    /// The field of the request that is wrong, if it is one.
    param: Option<String>,
    /// The stable code, as in docs/errors.md.
    code: &'static str,
}

/// The code of a response that is an error, which the log shows too.
#[derive(Clone, Copy)]
pub struct ResponseCode(pub &'static str);

/// The result of a handler.
pub type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    /// An error about a field of the request.
    pub fn of_field(param: impl Into<String>, error: Error) -> Self {
        error.with_setting(param).into()
    }

    /// The same with another status.
    pub fn with_status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self.body.error.r#type = type_of(status);
        self
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The stable code.
    pub fn code(&self) -> &'static str {
        self.body.error.code
    }

    /// What is wrong.
    pub fn message(&self) -> &str {
        &self.body.error.message
    }

    /// The body, as an event of a stream that has begun has it too.
    pub fn body(&self) -> &ErrorBody {
        &self.body
    }
}

impl From<Error> for ApiError {
    /// The error's setting is the field that is wrong. Absolute paths of the server's disk are none of the client's business.
    fn from(error: Error) -> Self {
        let status = status_of(error.code());
        if status == StatusCode::INTERNAL_SERVER_ERROR {
            tracing::error!(%error, "a request failed");
        }
        let error = error.without_absolute_paths();
        let message = match status {
            // What the operating system or the server's own files say is not the client's.
            StatusCode::INTERNAL_SERVER_ERROR => error.message().to_owned(),
            _ => error.to_string(),
        };
        let (param, code) = (error.setting().map(str::to_owned), error.code().as_str());
        Self { status, body: ErrorBody { error: ErrorObject { message, r#type: type_of(status), param, code } } }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let code = ResponseCode(self.body.error.code);
        let mut response = (self.status, Json(self.body)).into_response();
        response.extensions_mut().insert(code);
        match self.status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER_SECONDS);
            }
            StatusCode::UNAUTHORIZED => {
                response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            _ => {}
        }
        response
    }
}

/// The HTTP status of an error.
fn status_of(code: ErrorCode) -> StatusCode {
    match code {
        ErrorCode::AdapterNotFound | ErrorCode::RouteNotFound => StatusCode::NOT_FOUND,
        ErrorCode::Unauthorized => StatusCode::UNAUTHORIZED,
        ErrorCode::Forbidden => StatusCode::FORBIDDEN,
        ErrorCode::AdapterGenerationMismatch => StatusCode::CONFLICT,
        ErrorCode::RequestTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        ErrorCode::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
        ErrorCode::QueueFull => StatusCode::TOO_MANY_REQUESTS,
        ErrorCode::ServerStopping | ErrorCode::AdapterBudgetExceeded | ErrorCode::MemoryExhausted => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        code => match code.kind() {
            ErrorKind::NotFound | ErrorKind::Invalid | ErrorKind::Unsupported => StatusCode::BAD_REQUEST,
            ErrorKind::Memory | ErrorKind::Cancelled => StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::Io | ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        },
    }
}

/// OpenAI's name of a kind of error.
fn type_of(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::FORBIDDEN => "permission_error",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        status if status.is_server_error() => "server_error",
        _ => "invalid_request_error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_status_that_says_whose_fault_it_is() {
        let status = |code| ApiError::from(Error::new(code, "what")).status().as_u16();
        assert_eq!(status(ErrorCode::AdapterNotFound), 404);
        assert_eq!(status(ErrorCode::RequestInvalid), 400);
        assert_eq!(status(ErrorCode::QueueFull), 429);
        assert_eq!(status(ErrorCode::Internal), 500);
        for &code in ErrorCode::ALL {
            assert!(status(code) >= 400, "{}", code.as_str());
        }
    }

    #[test]
    fn the_body_has_openais_form_and_our_code() {
        let error = ApiError::of_field("prompt", Error::new(ErrorCode::PromptEmpty, "the prompt has no tokens"));
        let body = serde_json::to_value(error.body()).expect("serializes");
        assert_eq!(body["error"]["code"], "prompt_empty");
        assert_eq!(body["error"]["type"], "invalid_request_error");
        assert_eq!(body["error"]["param"], "prompt");
        assert!(body["error"]["message"].as_str().is_some_and(|text| text.contains("at least one token")));
    }

    #[test]
    fn a_client_sees_no_folder_of_the_machine() {
        let error =
            Error::new(ErrorCode::AdapterConfigInvalid, "it is no JSON").with_path("/srv/a/adapter_config.json");
        let error = ApiError::from(error);
        assert!(error.message().starts_with("it is no JSON: adapter_config.json ("), "{}", error.message());
    }
}
