//! Which key a route asks for.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::error::ApiError;
use super::key::Key;
use super::state::AppState;
use crate::error::{Error, ErrorCode};

/// Headers besides `Authorization` that clients of other servers show their key in.
const KEY_HEADERS: [&str; 2] = ["x-api-key", "x-admin-key"];

/// Lets a request through that shows a key of clients, or the admin key; every request, where no key is asked for.
pub async fn require_key(State(state): State<Arc<AppState>>, request: Request, next: Next) -> Response {
    let keys = &state.options.api_keys;
    if keys.is_empty() || shows_any(request.headers(), keys.iter().chain(&state.options.admin_key)) {
        return next.run(request).await;
    }
    unauthorized("the request shows no key of this server")
}

/// Lets a request through that shows the admin key, and none where there is no admin key.
pub async fn require_admin_key(State(state): State<Arc<AppState>>, request: Request, next: Next) -> Response {
    if state.options.admin_key.is_none() {
        let error = Error::new(ErrorCode::Forbidden, "this route is closed: the server has no admin key");
        return ApiError::from(error.with_hint("start the server with --admin-key")).into_response();
    }
    if shows_admin_key(&state, request.headers()) {
        return next.run(request).await;
    }
    unauthorized("this route needs the admin key")
}

/// Whether a request shows the admin key; none does where there is no admin key.
pub fn shows_admin_key(state: &AppState, headers: &HeaderMap) -> bool {
    shows_any(headers, &state.options.admin_key)
}

/// Lets a request through that shows the key of metrics or the admin key; every request, where the server has no key at all.
pub async fn require_metrics_key(State(state): State<Arc<AppState>>, request: Request, next: Next) -> Response {
    let options = &state.options;
    let keys = || options.metrics_key.iter().chain(&options.admin_key);
    let is_open = keys().next().is_none() && options.api_keys.is_empty();
    if is_open || shows_any(request.headers(), keys()) {
        return next.run(request).await;
    }
    unauthorized("this route needs the metrics key or the admin key")
}

/// Where only this machine's users reach the server and no key keeps others out: refuses requests that a browser sends for a
/// page of elsewhere, whose name was made to lead here (DNS rebinding). Such a request names that page's host.
pub async fn require_local_host(State(state): State<Arc<AppState>>, request: Request, next: Next) -> Response {
    let options = &state.options;
    let is_guarded = state.is_loopback && options.api_keys.is_empty() && !options.no_auth;
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if !is_guarded || is_local(host) {
        return next.run(request).await;
    }
    let error = Error::new(ErrorCode::Forbidden, "the request is for another host than this machine").with_found(host);
    ApiError::from(error.with_hint("behind a proxy, start the server with an API key or with --no-auth"))
        .into_response()
}

/// Whether a `Host` header, with or without a port, means this machine itself.
fn is_local(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|digit| digit.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.trim_start_matches('[').trim_end_matches(']');
    let is_loopback = address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    is_loopback || name.eq_ignore_ascii_case("localhost") || name.is_empty()
}

fn unauthorized(what: &str) -> Response {
    ApiError::from(Error::new(ErrorCode::Unauthorized, what)).into_response()
}

/// Whether a key is shown. Every key is compared, so the time does not tell which one was close.
fn shows_any<'a>(headers: &HeaderMap, keys: impl IntoIterator<Item = &'a Key>) -> bool {
    let shown = shown_keys(headers);
    let is_shown = |key: &Key| shown.iter().fold(false, |found, shown| key.matches(shown) | found);
    keys.into_iter().fold(false, |found, key| is_shown(key) | found)
}

fn shown_keys(headers: &HeaderMap) -> Vec<&str> {
    let text = |name: &str| headers.get(name)?.to_str().ok();
    let bearer = text(header::AUTHORIZATION.as_str()).and_then(|value| {
        let (scheme, key) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(key.trim())
    });
    bearer.into_iter().chain(KEY_HEADERS.into_iter().filter_map(text)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_shown_as_a_bearer_or_in_a_header_of_its_own() {
        let shown = |name: &'static str, value: &'static str| {
            let headers: HeaderMap =
                [(name.parse().expect("a name"), value.parse().expect("a value"))].into_iter().collect();
            shows_any(&headers, [&Key::new("k").expect("a key")])
        };
        assert!(shown("authorization", "Bearer k") && shown("authorization", "bearer  k") && shown("x-api-key", "k"));
        assert!(!shown("authorization", "k") && !shown("authorization", "Basic k") && !shown("x-api-key", "kk"));
        assert!(!shows_any(&HeaderMap::new(), [&Key::new("k").expect("a key")]));
    }

    #[test]
    fn a_host_of_this_machine_is_told_from_others() {
        for local in ["localhost", "localhost:8000", "127.0.0.1:8000", "[::1]:8000", "[::1]", "LOCALHOST:1", ""] {
            assert!(is_local(local), "{local}");
        }
        for other in
            ["evil.example", "evil.example:8000", "localhost.evil.example", "10.0.0.1:8000", "127.0.0.1.nip.io"]
        {
            assert!(!is_local(other), "{other}");
        }
    }
}
