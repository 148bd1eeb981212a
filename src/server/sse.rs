//! Server-sent events, as OpenAI's clients read them.

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use futures_util::{Stream, StreamExt};
use serde::Serialize;

/// The type of a response that is a stream of events.
pub const CONTENT_TYPE: &str = "text/event-stream";

/// What clients read over.
pub const COMMENT: &str = ": ping\n\n";

/// The last event of a stream.
pub const DONE: &str = "data: [DONE]\n\n";

/// An event without a name.
pub fn event(data: &impl Serialize) -> String {
    // The values are the server's own, and all of them serialize.
    format!("data: {}\n\n", serde_json::to_string(data).unwrap_or_default())
}

/// An event with a name, as those of `/v1/responses`.
pub fn named_event(name: &str, data: &impl Serialize) -> String {
    format!("event: {name}\n{}", event(data))
}

/// A response whose body is a stream of events.
pub fn response(events: impl Stream<Item = String> + Send + 'static) -> Response {
    let body = Body::from_stream(events.map(|event| Ok::<_, std::convert::Infallible>(Bytes::from(event))));
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies such as nginx would collect the events otherwise.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}
