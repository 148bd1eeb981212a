//! tabbyAPI's routes, which set the mixture of requests that name the base, and llama.cpp's list.

use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use utoipa::{OpenApi, ToSchema};

use crate::adapter::mixture::Mixture;
use crate::error::{Error, ErrorCode, printable};
use crate::server::auth;
use crate::server::error::{ApiError, ApiResult, ErrorBody};
use crate::server::json::JsonFields;
use crate::server::state::AppState;

/// The routes that only read.
pub fn lists() -> Router<Arc<AppState>> {
    Router::new()
        .route("/v1/loras", get(list_loras))
        .route("/v1/lora/list", get(list_loras))
        .route("/v1/lora", get(list_active_loras))
        .route("/lora-adapters", get(list_lora_adapters))
}

/// The routes that change something.
pub fn changes() -> Router<Arc<AppState>> {
    Router::new().route("/v1/lora/load", post(load_loras)).route("/v1/lora/unload", post(unload_loras))
}

/// The routes in the OpenAPI document.
#[derive(OpenApi)]
#[openapi(paths(list_loras, list_active_loras, load_loras, unload_loras, list_lora_adapters))]
pub struct Document;

/// tabbyAPI's list of adapters.
#[derive(Serialize, ToSchema)]
struct LoraList {
    object: &'static str,
    data: Vec<LoraCard>,
}

/// An adapter as tabbyAPI lists it.
#[derive(Serialize, ToSchema)]
struct LoraCard {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    /// Its weight in the mixture of requests that name the base; null if it is not in it.
    scaling: Option<f32>,
}

fn card(state: &AppState, id: String, scaling: Option<f32>) -> LoraCard {
    LoraCard { id, object: "lora", created: state.started, owned_by: "exlora", scaling }
}

/// All adapters that are loaded or can be.
#[utoipa::path(get, path = "/v1/loras", tag = "tabbyAPI", responses((status = 200, body = LoraList)))]
async fn list_loras(State(state): State<Arc<AppState>>) -> Json<LoraList> {
    let names = state.adapters.listed().await;
    let mixture = state.adapters.default_mixture();
    let weight = |id: &str| mixture.iter().find(|(name, _)| name == id).map(|(_, weight)| *weight);
    let cards = names.into_keys().map(|id| {
        let scaling = weight(&id);
        card(&state, id, scaling)
    });
    Json(LoraList { object: "list", data: cards.collect() })
}

/// The mixture of requests that name the base.
#[utoipa::path(get, path = "/v1/lora", tag = "tabbyAPI", responses((status = 200, body = LoraList)))]
async fn list_active_loras(State(state): State<Arc<AppState>>) -> Json<LoraList> {
    let mixture = state.adapters.default_mixture().into_iter();
    let data = mixture.map(|(name, weight)| card(&state, name, Some(weight))).collect();
    Json(LoraList { object: "list", data })
}

/// tabbyAPI's request to load adapters.
#[derive(Deserialize, ToSchema)]
struct LoadLorasFields {
    /// The adapters, each by the name of its folder in the server's folder of adapters, or of one that is loaded.
    loras: Vec<LoraToLoad>,
    /// Not looked at: nothing waits for running requests here.
    #[expect(dead_code, reason = "accepted, since no request waits for another one's adapters")]
    skip_queue: Option<bool>,
}

/// One of them.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct LoraToLoad {
    name: String,
    /// Its weight, 1 by default.
    scaling: Option<f32>,
}

/// Which of them were loaded.
#[derive(Serialize, ToSchema)]
struct LoadedLoras {
    success: Vec<String>,
    failure: Vec<String>,
}

/// Loads adapters and makes those that were loaded the mixture of requests that name the base, in place of the one before, which
/// stays if none was.
#[utoipa::path(
    post,
    path = "/v1/lora/load",
    tag = "tabbyAPI",
    request_body = LoadLorasFields,
    responses(
        (status = 200, body = LoadedLoras),
        (status = 400, description = "the list is empty or too long", body = ErrorBody),
        (status = 403, description = "the server has no admin key", body = ErrorBody),
    )
)]
async fn load_loras(State(state): State<Arc<AppState>>, mut body: JsonFields) -> ApiResult<Json<LoadedLoras>> {
    let LoadLorasFields { loras, .. } = body.read()?;
    body.finish()?;
    if loras.is_empty() {
        let error = Error::new(ErrorCode::RequestInvalid, "the list names no adapter");
        return Err(ApiError::of_field("loras", error.with_hint("POST /v1/lora/unload leaves the base alone")));
    }
    Mixture::check_length(loras.len())?;
    let (mut mixture, mut failure) = (Vec::new(), Vec::new());
    for LoraToLoad { name, scaling } in loras {
        match state.adapters.lease(&name).await {
            Ok(lease) => mixture.push((lease, name, scaling.unwrap_or(1.0))),
            Err(error) => {
                tracing::warn!(adapter = %printable(&name), %error, "an adapter cannot be loaded");
                failure.push(name);
            }
        }
    }
    if mixture.is_empty() {
        return Ok(Json(LoadedLoras { success: Vec::new(), failure }));
    }
    let parts = mixture.iter().map(|(lease, _, weight)| (lease.clone(), *weight)).collect();
    // Requests would fail for it one by one.
    Mixture::new(parts, state.engine.model().sites())?;
    let success = mixture.iter().map(|(_, name, _)| name.clone()).collect();
    // By the adapters' own names, whatever links the client named.
    let mixture = mixture.into_iter().map(|(lease, _, weight)| (lease.label(), weight)).collect();
    state.adapters.set_default_mixture(mixture);
    Ok(Json(LoadedLoras { success, failure }))
}

/// Leaves requests that name the base the base alone.
#[utoipa::path(
    post,
    path = "/v1/lora/unload",
    tag = "tabbyAPI",
    responses((status = 200), (status = 403, description = "the server has no admin key", body = ErrorBody))
)]
async fn unload_loras(State(state): State<Arc<AppState>>) -> Json<Option<()>> {
    state.adapters.set_default_mixture(Vec::new());
    Json(None)
}

/// An adapter as llama.cpp lists it.
#[derive(Serialize, ToSchema)]
struct LoraAdapter {
    /// The number by which a request's `lora` names it.
    id: usize,
    name: String,
    /// Its folder, as `GET /v1/adapters` shows it.
    path: String,
    /// Its weight where a request does not say.
    scale: f32,
}

/// The adapters that have been loaded, with their ids, which stay the same for as long as the server runs.
#[utoipa::path(get, path = "/lora-adapters", tag = "llama.cpp", responses((status = 200, body = [LoraAdapter])))]
async fn list_lora_adapters(State(state): State<Arc<AppState>>, headers: HeaderMap) -> Json<Vec<LoraAdapter>> {
    let to_admin = auth::shows_admin_key(&state, &headers);
    let mixture = state.adapters.default_mixture();
    let weight = |id: &str| mixture.iter().find(|(name, _)| name == id).map_or(0.0, |(_, weight)| *weight);
    let adapters = state.adapters.residency.statuses().into_iter().map(|status| LoraAdapter {
        id: status.id,
        scale: weight(&status.name),
        path: status.folder.map_or_else(String::new, |folder| folder.shown(to_admin)),
        name: status.name,
    });
    Json(adapters.collect())
}
