//! All routes, each with the key that it asks for.

use std::sync::Arc;

use axum::Router;
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;

use super::error::ApiError;
use super::state::AppState;
use super::{adapters, auth, health, openai, openapi, page};
use crate::error::{Error, ErrorCode};

/// The routes of a server.
pub fn router(state: &Arc<AppState>) -> Router {
    let open = Router::new().merge(health::routes()).merge(openapi::routes()).merge(page::routes());
    let with_key = openai::routes().route_layer(from_fn_with_state(Arc::clone(state), auth::require_key));
    Router::new()
        .merge(open)
        .merge(with_key)
        .merge(adapters::routes(state))
        .fallback(async || ApiError::from(Error::new(ErrorCode::RouteNotFound, "there is no such route")))
        .method_not_allowed_fallback(async || {
            let error = Error::new(ErrorCode::RouteNotFound, "the route does not take this method");
            ApiError::from(error).with_status(StatusCode::METHOD_NOT_ALLOWED)
        })
        .with_state(Arc::clone(state))
}
