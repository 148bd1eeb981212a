//! Whether the server runs, and whether it accepts requests.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use utoipa::OpenApi;

use super::error::ApiResult;
use super::state::AppState;

/// `/health` and `/ready`.
pub fn routes() -> Router<Arc<AppState>> {
    Router::new().route("/health", get(health)).route("/ready", get(ready))
}

/// The server runs.
#[utoipa::path(get, path = "/health", tag = "server", responses((status = 200, description = "the server runs")))]
async fn health() -> &'static str {
    "ok\n"
}

/// The server accepts requests.
#[utoipa::path(get, path = "/ready", tag = "server", responses(
    (status = 200, description = "requests are accepted"),
    (status = 503, description = "the server is being stopped"),
))]
async fn ready(State(state): State<Arc<AppState>>) -> ApiResult<&'static str> {
    state.check_accepting()?;
    Ok("ok\n")
}

/// The routes in the OpenAPI document.
#[derive(OpenApi)]
#[openapi(paths(health, ready))]
pub struct Document;
