//! `GET /v1/models`: the base model, and each adapter as a model.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use serde::Serialize;
use utoipa::ToSchema;

use crate::adapter::pool::AdapterInfo;
use crate::server::client_paths::folder_name;
use crate::server::error::{ApiError, ApiResult, ErrorBody};
use crate::server::state::AppState;

/// A model, or an adapter as one.
#[derive(Clone, Debug, Serialize, ToSchema)]
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
    /// Whether it is in memory. If not, the next request that names it loads it.
    loaded: bool,
    /// Of an adapter in memory: `r` of its adapter_config.json.
    #[serde(skip_serializing_if = "Option::is_none")]
    rank: Option<usize>,
    /// Of an adapter in memory: SHA-256 over its config and weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    content_hash: Option<String>,
}

/// All models.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModelList {
    object: &'static str,
    data: Vec<ModelObject>,
}

/// The base model under each of its names, then the adapters by name: those that were loaded, and those directly in the server's
/// folder of adapters.
#[utoipa::path(get, path = "/v1/models", operation_id = "list_models", tag = "openai", responses(
    (status = 200, description = "all models", body = ModelList)
))]
pub async fn list(State(state): State<Arc<AppState>>) -> Json<ModelList> {
    Json(ModelList { object: "list", data: models(&state).await })
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
    let models = models(&state).await;
    let with_id = |id: &str| models.iter().find(|model| model.id == id).cloned();
    if let Some(model) = with_id(&id) {
        return Ok(Json(model));
    }
    // Folders further down are adapters too, and links are other names of theirs.
    match state.adapters.find(&id).await {
        Some(name) => Ok(Json(with_id(&name).unwrap_or_else(|| adapter(&state, name, None)))),
        None => Err(ApiError::of_field("model", state.adapters.not_found(&id).await)),
    }
}

async fn models(state: &AppState) -> Vec<ModelObject> {
    let bases = state.adapters.listed_base_names().into_iter().map(|name| base(state, name));
    let adapters = state.adapters.listed().await.into_iter().map(|(name, info)| adapter(state, name, info));
    bases.chain(adapters).collect()
}

fn base(state: &AppState, name: &str) -> ModelObject {
    ModelObject {
        id: name.to_owned(),
        object: "model",
        created: state.started,
        owned_by: "exlora",
        root: state.folder_name.clone(),
        parent: None,
        max_model_len: state.engine.max_tokens(),
        loaded: true,
        rank: None,
        content_hash: None,
    }
}

/// An adapter, with what is known of it if it is in memory.
fn adapter(state: &AppState, name: String, info: Option<AdapterInfo>) -> ModelObject {
    let summary = info.map(|info| info.summary);
    let folder = summary.as_ref().map_or(name.as_ref(), |summary| summary.path.as_path());
    ModelObject {
        root: folder_name(folder),
        parent: Some(state.model_name().to_owned()),
        loaded: summary.is_some(),
        rank: summary.as_ref().map(|summary| summary.rank),
        content_hash: summary.map(|summary| summary.content_hash),
        ..base(state, &name)
    }
}
