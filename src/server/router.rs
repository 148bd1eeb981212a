//! All routes, each with the key that it asks for.

use std::sync::Arc;

use axum::Router;
use axum::http::{HeaderValue, Method, StatusCode};
use axum::middleware::from_fn_with_state;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use super::error::ApiError;
use super::state::AppState;
use super::{adapters, auth, health, openai, openapi, page, request_head, request_log, scrape};
use crate::error::{Error, ErrorCode, Result};

/// The routes of a server.
///
/// # Errors
/// `request_invalid`: a CORS origin is none.
pub fn router(state: &Arc<AppState>) -> Result<Router> {
    let open = Router::new().merge(health::routes()).merge(openapi::routes()).merge(page::routes());
    let with_key = openai::routes().route_layer(from_fn_with_state(Arc::clone(state), auth::require_key));
    let routes = Router::new()
        .merge(open)
        .merge(with_key)
        .merge(adapters::routes(state))
        .merge(scrape::routes(state))
        .fallback(async || ApiError::from(Error::new(ErrorCode::RouteNotFound, "there is no such route")))
        .method_not_allowed_fallback(async || {
            let error = Error::new(ErrorCode::RouteNotFound, "the route does not take this method");
            ApiError::from(error).with_status(StatusCode::METHOD_NOT_ALLOWED)
        })
        .layer(from_fn_with_state(Arc::clone(state), auth::require_local_host))
        .layer(from_fn_with_state(Arc::clone(state), request_head::check_head))
        .with_state(Arc::clone(state));
    let routes = request_log::with_request_log(routes);
    // Outermost, since browsers ask it without a key.
    Ok(match cors(&state.options.cors_origins)? {
        Some(cors) => routes.layer(cors),
        None => routes,
    })
}

/// Checks the origins of pages that may send requests.
///
/// # Errors
/// `request_invalid`.
pub fn check_origins(origins: &[String]) -> Result<()> {
    cors(origins).map(|_| ())
}

/// What pages of other origins may do.
fn cors(origins: &[String]) -> Result<Option<CorsLayer>> {
    if origins.is_empty() {
        return Ok(None);
    }
    let allowed = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(origins.iter().map(|origin| parse_origin(origin)).collect::<Result<Vec<_>>>()?)
    };
    let cors = CorsLayer::new().allow_origin(allowed).allow_methods([Method::GET, Method::POST]);
    Ok(Some(cors.allow_headers(AllowHeaders::mirror_request())))
}

/// An origin as browsers send it: a scheme and a host, no path.
fn parse_origin(origin: &str) -> Result<HeaderValue> {
    let host = origin.split_once("://").map(|(_, host)| host).filter(|host| !host.is_empty() && !host.contains('/'));
    let value = host.and_then(|_| HeaderValue::from_str(origin).ok());
    value.ok_or_else(|| {
        Error::new(ErrorCode::RequestInvalid, "a CORS origin is none")
            .with_expected("https://example.org, or *")
            .with_found(origin)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_a_scheme_and_a_host() {
        for origin in ["https://example.org", "http://localhost:3000"] {
            assert_eq!(parse_origin(origin).expect(origin), origin);
        }
        for other in ["example.org", "https://", "https://example.org/", "https://a/b", "", "https://a\nb"] {
            assert!(parse_origin(other).is_err(), "{other}");
        }
        assert!(cors(&[]).expect("none").is_none() && cors(&["*".to_owned()]).expect("all").is_some());
    }
}
