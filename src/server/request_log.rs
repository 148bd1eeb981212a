//! A log event for each request, and an id by which a client can name the request: `x-request-id`, the client's own if it is one
//! to print, or a new one, which every event while the request is handled has too.

use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, Response};
use axum::middleware::map_request;
use tower_http::request_id::{MakeRequestUuid, PropagateRequestIdLayer, SetRequestIdLayer};
use tower_http::trace::TraceLayer;
use tracing::Span;

use super::error::ResponseCode;
use crate::error::printable;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Most characters of a client's id.
const MAX_ID_CHARS: usize = 128;

/// The same routes, with ids and log events.
pub fn with_request_log(router: Router) -> Router {
    let trace = TraceLayer::new_for_http()
        .make_span_with(span)
        .on_request(())
        .on_response(log_response)
        .on_body_chunk(())
        .on_eos(())
        .on_failure(());
    // The last layer is the outermost.
    router
        .layer(PropagateRequestIdLayer::new(REQUEST_ID))
        .layer(trace)
        .layer(SetRequestIdLayer::new(REQUEST_ID, MakeRequestUuid))
        .layer(map_request(without_unusable_id))
}

/// The request, which gets a new id if the client's own is none.
async fn without_unusable_id(mut request: Request) -> Request {
    if !request.headers().get(REQUEST_ID).is_some_and(is_usable) {
        request.headers_mut().remove(REQUEST_ID);
    }
    request
}

fn is_usable(id: &HeaderValue) -> bool {
    let is_printable = |byte: &u8| byte.is_ascii_graphic() || *byte == b' ';
    (1..=MAX_ID_CHARS).contains(&id.len()) && id.as_bytes().iter().all(is_printable)
}

fn span(request: &Request) -> Span {
    let id = request.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok()).unwrap_or_default();
    let (method, path) = (request.method(), printable(request.uri().path()));
    tracing::info_span!("request", id, %method, %path)
}

/// A stream goes on after its response has begun.
fn log_response<B>(response: &Response<B>, latency: Duration, span: &Span) {
    let (status, milliseconds) = (response.status().as_u16(), latency.as_secs_f64() * 1e3);
    let code = response.extensions().get().map(|ResponseCode(code)| *code);
    tracing::info!(parent: span, status, code, milliseconds, "answered");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clients_id_is_short_and_can_be_printed() {
        let is_usable = |id: &str| is_usable(&HeaderValue::from_bytes(id.as_bytes()).expect("a header"));
        for id in ["a", "mine 7", "~!{}\"'", &"x".repeat(128)] {
            assert!(is_usable(id), "{id}");
        }
        for id in ["", "a\tb", "caf\u{e9}", "\u{202e}x", &"x".repeat(129)] {
            assert!(!is_usable(id), "{id}");
        }
    }
}
