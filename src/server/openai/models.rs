//! `GET /v1/models`: the base model, and each adapter as a model.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use serde::Serialize;
use utoipa::ToSchema;

use crate::adapter::pool::AdapterInfo;
use crate::error::{Error, ErrorCode};
use crate::server::error::{ApiError, ApiResult, ErrorBody};
use crate::server::state::AppState;

/// A model, or an adapter as one.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModelObject {
    id: String,
    object: &'static str,
    /// When the server was started, in seconds since 1970.
    created: u64,
    owned_by: &'static str,
    /// The folder's name of the model or adapter.
    root: String,
    /// The model that an adapter belongs to.
    parent: Option<String>,
    /// Longest prompt and output together, in tokens.
    max_model_len: usize,
    /// Of an adapter: `r` of its adapter_config.json.
    #[serde(skip_serializing_if = "Option::is_none")]
    rank: Option<usize>,
    /// Of an adapter: SHA-256 over its config and weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    content_hash: Option<String>,
}

/// All models.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModelList {
    object: &'static str,
    data: Vec<ModelObject>,
}

/// The base model under each of its names, then the adapters by name.
#[utoipa::path(get, path = "/v1/models", operation_id = "list_models", tag = "openai", responses(
    (status = 200, description = "all models", body = ModelList)
))]
pub async fn list(State(state): State<Arc<AppState>>) -> Json<ModelList> {
    Json(ModelList { object: "list", data: models(&state) })
}

/// One of them.
#[utoipa::path(
    get,
    path = "/v1/models/{id}",
    tag = "openai",
    params(("id" = String, Path, description = "its id, which may have slashes and colons")),
    responses((status = 200, description = "the model", body = ModelObject), (status = 404, description = "no such model", body = ErrorBody))
)]
pub async fn find(
    State(state): State<Arc<AppState>>,
    id: Result<Path<String>, PathRejection>,
) -> ApiResult<Json<ModelObject>> {
    // What is no UTF-8 is the name of nothing.
    let id = id.map_or_else(|_| char::REPLACEMENT_CHARACTER.to_string(), |Path(id)| id);
    let models = models(&state);
    let names: Vec<String> = models.iter().map(|model| model.id.clone()).collect();
    let found = models.into_iter().find(|model| model.id == id);
    found.map(Json).ok_or_else(|| {
        let what = format!("there is no model or adapter '{id}'");
        let error = Error::new(ErrorCode::AdapterNotFound, what).with_expected(names.join(", "));
        ApiError::of_field("model", error.with_hint("see /v1/models for the ids"))
    })
}

fn models(state: &AppState) -> Vec<ModelObject> {
    let base = |name: &String| ModelObject {
        id: name.clone(),
        object: "model",
        created: state.started,
        owned_by: "exlora",
        root: state.folder_name.clone(),
        parent: None,
        max_model_len: state.engine.max_tokens(),
        rank: None,
        content_hash: None,
    };
    let adapter = |adapter: AdapterInfo| ModelObject {
        id: adapter.name.clone(),
        object: "model",
        created: state.started,
        owned_by: "exlora",
        root: adapter.summary.path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
        parent: Some(state.model_name().to_owned()),
        max_model_len: state.engine.max_tokens(),
        rank: Some(adapter.summary.rank),
        content_hash: Some(adapter.summary.content_hash.clone()),
    };
    let bases = state.options.served_model_names.iter().map(base);
    bases.chain(state.engine.adapters().into_iter().map(adapter)).collect()
}
