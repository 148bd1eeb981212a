//! OpenAI's routes.

mod chat;
mod compat_fields;
mod completions;
mod events;
mod finish;
mod generation;
mod generation_request;
mod logprobs;
mod messages;
mod models;
mod response_format;
mod responses;
mod tokenize;
pub(super) mod tool_calls;

use std::sync::Arc;

use axum::Router;
use axum::routing::{get, post};
use utoipa::OpenApi;

use crate::server::state::AppState;

/// The routes, without their keys.
pub fn routes() -> Router<Arc<AppState>> {
    Router::new()
        .route("/v1/completions", post(completions::complete))
        .route("/v1/chat/completions", post(chat::complete))
        .route("/v1/responses", post(responses::create))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::find))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
}

/// The routes in the OpenAPI document.
#[derive(OpenApi)]
#[openapi(paths(
    completions::complete,
    chat::complete,
    responses::create,
    models::list,
    models::find,
    tokenize::tokenize,
    tokenize::detokenize
))]
pub struct Document;
