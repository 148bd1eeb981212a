//! What the head of a request alone decides, before anything of its body is read.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Version, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;

use super::error::{ApiError, ApiResult};
use super::json::MAX_DRAINED_BYTES;
use super::state::AppState;
use crate::error::{Error, ErrorCode};

/// Lets a request through that names its host, and whose body is neither too large nor in an encoding that is not read.
pub async fn check_head(State(state): State<Arc<AppState>>, request: Request, next: Next) -> Response {
    let options = &state.options;
    let refusal = match check(&request, options.max_body_bytes) {
        Ok(()) => return next.run(request).await,
        Err(refusal) => refusal,
    };
    let waits_for_leave = request.headers().contains_key(header::EXPECT);
    if !waits_for_leave {
        forget(request.into_body(), options.body_timeout);
    }
    let is_about_encoding = refusal.status() == StatusCode::UNSUPPORTED_MEDIA_TYPE;
    let mut response = refusal.into_response();
    if is_about_encoding {
        response.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    }
    response
}

fn check(request: &Request, max_body_bytes: usize) -> ApiResult<()> {
    let headers = request.headers();
    let hosts = headers.get_all(header::HOST).iter().count();
    if hosts > 1 || (hosts == 0 && request.version() >= Version::HTTP_11) {
        let error = Error::new(ErrorCode::RequestInvalid, "the request does not name one host").with_found(hosts);
        return Err(error.with_hint("send one Host header").into());
    }
    if request.body().is_end_stream() {
        return Ok(());
    }
    let bytes = request.body().size_hint().lower();
    if bytes > max_body_bytes as u64 {
        let error = Error::new(ErrorCode::RequestTooLarge, "the body is too large");
        return Err(error.with_expected(format!("at most {max_body_bytes} bytes")).with_found(bytes).into());
    }
    let unsupported = |what: &str, found: &str| {
        let error = Error::new(ErrorCode::RequestInvalid, what).with_found(found);
        let error = error.with_hint("send JSON in UTF-8, without a Content-Encoding");
        Err(ApiError::from(error).with_status(StatusCode::UNSUPPORTED_MEDIA_TYPE))
    };
    if let Some(encoding) = other_encoding(headers) {
        return unsupported("the body is encoded", &encoding);
    }
    if let Some(charset) = other_charset(headers) {
        return unsupported("the body is declared to be in another charset than UTF-8", &charset);
    }
    Ok(())
}

/// The encoding of a body, if it has one.
fn other_encoding(headers: &HeaderMap) -> Option<String> {
    let values = headers.get_all(header::CONTENT_ENCODING).iter();
    let mut values = values.map(|value| String::from_utf8_lossy(value.as_bytes()).trim().to_owned());
    values.find(|value| !value.is_empty() && !value.eq_ignore_ascii_case("identity"))
}

/// The charset of a body, if it is declared and another one than UTF-8.
fn other_charset(headers: &HeaderMap) -> Option<String> {
    let kind = headers.get(header::CONTENT_TYPE)?;
    let kind = String::from_utf8_lossy(kind.as_bytes());
    let mut parameters = kind.split(';').skip(1).filter_map(|parameter| parameter.split_once('='));
    let (_, charset) = parameters.find(|(name, _)| name.trim().eq_ignore_ascii_case("charset"))?;
    let charset = charset.trim().trim_matches('"');
    let is_utf8 = ["utf-8", "utf8"].iter().any(|name| charset.eq_ignore_ascii_case(name));
    (!is_utf8).then(|| charset.to_owned())
}

/// Reads and forgets a refused body while the answer is under way. Many clients look at no answer before they have sent all, and
/// would see none if the connection were closed before.
fn forget(body: Body, limit: Duration) {
    tokio::spawn(tokio::time::timeout(limit, async move {
        let (mut parts, mut bytes) = (body.into_data_stream(), 0);
        while let Some(Ok(part)) = parts.next().await {
            bytes += part.len();
            if bytes > MAX_DRAINED_BYTES {
                return;
            }
        }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = 100;

    /// The status of the refusal; 0 for none.
    fn status(version: Version, headers: &[(&str, &str)], body: usize) -> u16 {
        let mut request = Request::builder().version(version);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::from("x".repeat(body))).expect("a request");
        check(&request, MAX).err().map_or(0, |refusal| refusal.status().as_u16())
    }

    #[test]
    fn a_request_names_one_host() {
        for (version, hosts, expected) in [
            (Version::HTTP_11, 0, 400),
            (Version::HTTP_11, 1, 0),
            (Version::HTTP_11, 2, 400),
            (Version::HTTP_10, 0, 0),
            (Version::HTTP_10, 1, 0),
            (Version::HTTP_10, 2, 400),
        ] {
            assert_eq!(status(version, &vec![("host", "a"); hosts], 0), expected, "{version:?} {hosts}");
        }
    }

    #[test]
    fn a_body_is_of_the_size_and_form_that_is_read() {
        let with = |headers: &[(&str, &str)]| status(Version::HTTP_11, &[&[("host", "a")][..], headers].concat(), MAX);
        assert_eq!(with(&[]), 0);
        assert_eq!(status(Version::HTTP_11, &[("host", "a")], MAX + 1), 413);
        for encoding in ["gzip", "identity, gzip", "br", "GZIP", "x", "deflate"] {
            assert_eq!(with(&[("content-encoding", encoding)]), 415, "{encoding}");
            assert_eq!(status(Version::HTTP_11, &[("host", "a"), ("content-encoding", encoding)], 0), 0, "no body");
        }
        for encoding in ["", "identity", "Identity"] {
            assert_eq!(with(&[("content-encoding", encoding)]), 0, "{encoding}");
        }
        for kind in ["charset=latin1", "Charset=\"utf-16\"", "version=1; charset=us-ascii", "charset="] {
            assert_eq!(with(&[("content-type", &format!("application/json; {kind}"))]), 415, "{kind}");
        }
        for kind in ["charset=utf-8", "CHARSET=UTF-8", "charset=\"utf-8\"", "charset=utf8", "version=1", "charset"] {
            assert_eq!(with(&[("content-type", &format!("application/json; {kind}"))]), 0, "{kind}");
        }
    }
}
