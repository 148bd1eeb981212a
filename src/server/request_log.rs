//! A log event for each request, and an id by which a client can name the request: `x-request-id`, the client's own or a new one,
//! which every event while the request is handled has too.

use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderName, Response};
use tower_http::request_id::{MakeRequestUuid, PropagateRequestIdLayer, SetRequestIdLayer};
use tower_http::trace::TraceLayer;
use tracing::Span;

use crate::error::printable;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Most characters of a client's id that are logged.
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
}

fn span(request: &Request) -> Span {
    let id = request.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok()).unwrap_or_default();
    let id: String = id.chars().take(MAX_ID_CHARS).collect();
    let (method, path) = (request.method(), printable(request.uri().path()));
    tracing::info_span!("request", id, %method, %path)
}

/// A stream goes on after its response has begun.
fn log_response<B>(response: &Response<B>, latency: Duration, span: &Span) {
    let (status, milliseconds) = (response.status().as_u16(), latency.as_secs_f64() * 1e3);
    tracing::info!(parent: span, status, milliseconds, "answered");
}
