//! The page at `/`.

use axum::Router;
use axum::routing::get;

/// The page.
pub fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new().route("/", get(|| async { "exlora: see /openapi.json for the routes\n" }))
}
