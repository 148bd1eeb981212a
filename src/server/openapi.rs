//! The OpenAPI document at `/openapi.json`.

use axum::routing::get;
use axum::{Json, Router};
use utoipa::OpenApi;
use utoipa::openapi::OpenApi as Document;

use super::{health, openai};

/// The document of all routes.
pub fn document() -> Document {
    let mut document = Server::openapi();
    document.merge(health::Document::openapi());
    document.merge(openai::Document::openapi());
    document
}

/// `/openapi.json`.
pub fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let document = document();
    Router::new().route("/openapi.json", get(move || async move { Json(document) }))
}

#[derive(OpenApi)]
#[openapi(info(
    title = "exlora",
    description = "Multi-LoRA inference: every adapter is a model, and so is a mixture."
))]
struct Server;
