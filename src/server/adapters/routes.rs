//! The routes that load, unload and list adapters: vLLM's, with a guard of generations.

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{OpenApi, ToSchema};

use super::compat_routes;
use super::residency::Status;
use crate::server::auth;
use crate::server::error::{ApiError, ApiResult, ErrorBody};
use crate::server::json::JsonFields;
use crate::server::state::AppState;

/// The routes about adapters, each behind the key that it asks for.
pub fn routes(state: &Arc<AppState>) -> Router<Arc<AppState>> {
    let with_key = Router::new()
        .route("/v1/adapters", get(list))
        .merge(compat_routes::lists())
        .route_layer(from_fn_with_state(Arc::clone(state), auth::require_key));
    let with_admin_key = Router::new()
        .route("/v1/load_lora_adapter", post(load))
        .route("/v1/unload_lora_adapter", post(unload))
        .merge(compat_routes::changes())
        .route_layer(from_fn_with_state(Arc::clone(state), auth::require_admin_key));
    with_key.merge(with_admin_key)
}

/// The routes in the OpenAPI document.
#[derive(OpenApi)]
#[openapi(paths(list, load, unload))]
pub struct Document;

/// An adapter and what is known of it.
#[derive(Serialize, ToSchema)]
pub struct AdapterObject {
    name: String,
    object: &'static str,
    /// The number by which `lora` names it.
    id: usize,
    /// Whether it is in memory; if not, the next request that names it loads it.
    resident: bool,
    /// The number of its version; counts up with every loading of an adapter.
    #[serde(skip_serializing_if = "Option::is_none")]
    generation: Option<u64>,
    /// Its bytes in memory.
    bytes: usize,
    /// `r` of its adapter_config.json.
    #[serde(skip_serializing_if = "Option::is_none")]
    rank: Option<usize>,
    /// SHA-256 over its config and weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    content_hash: Option<String>,
    /// Requests that use it now.
    leases: usize,
    /// Whether it stays when others need the room.
    pinned: bool,
    /// Its folder, relative to the server's folder of adapters. Of one that lies elsewhere, the folder's name, or its whole path to
    /// who shows the admin key.
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    /// Requests that named it since the server started.
    hits: u64,
    /// When the last one did, in seconds since 1970.
    last_used: Option<f64>,
    loads: u64,
    failed_loads: u64,
    /// The time that its loads took together.
    load_seconds: f64,
    /// Times it was unloaded because others needed the room.
    evictions: u64,
}

impl AdapterObject {
    /// As everyone may see it, or as who shows the admin key may.
    fn new(Status { name, id, info, is_pinned, folder, counts }: Status, to_admin: bool) -> Self {
        let summary = info.as_ref().map(|info| &info.summary);
        let since_1970 = counts.last_used.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        Self {
            object: "adapter",
            id,
            resident: info.is_some(),
            generation: info.as_ref().map(|info| info.generation),
            bytes: info.as_ref().map_or(0, |info| info.resident_bytes),
            rank: summary.map(|summary| summary.rank),
            content_hash: summary.map(|summary| summary.content_hash.clone()),
            leases: info.as_ref().map_or(0, |info| info.leases),
            pinned: is_pinned,
            path: folder.map(|folder| folder.shown(to_admin)),
            hits: counts.hits,
            last_used: since_1970.map(|time| time.as_secs_f64()),
            loads: counts.loads,
            failed_loads: counts.failed_loads,
            load_seconds: counts.load_time.as_secs_f64(),
            evictions: counts.evictions,
            name,
        }
    }
}

/// All adapters, and the room that there is for them.
#[derive(Serialize, ToSchema)]
struct AdapterList {
    object: &'static str,
    /// Those that have been loaded, by name.
    data: Vec<AdapterObject>,
    /// Names of those in the server's folder of adapters, each of which is loaded when a request names it.
    available: Vec<String>,
    /// Bytes in memory.
    bytes: usize,
    max_bytes: usize,
    max_adapters: usize,
}

/// The adapters: what is resident, what can be loaded, and how each was used.
#[utoipa::path(
    get,
    path = "/v1/adapters",
    operation_id = "list_adapters",
    tag = "adapters",
    responses((status = 200, body = AdapterList))
)]
async fn list(State(state): State<Arc<AppState>>, headers: HeaderMap) -> Json<AdapterList> {
    let to_admin = auth::shows_admin_key(&state, &headers);
    let residency = &state.adapters.residency;
    let available = state.adapters.available().await;
    let (pool, mut statuses) = (state.engine.model().adapters(), residency.statuses());
    statuses.sort_by(|one, other| one.name.cmp(&other.name));
    let limits = pool.limits();
    Json(AdapterList {
        object: "list",
        data: statuses.into_iter().map(|status| AdapterObject::new(status, to_admin)).collect(),
        available,
        bytes: pool.resident_bytes(),
        max_bytes: limits.max_bytes,
        max_adapters: limits.max_adapters,
    })
}

/// What to load.
#[derive(Deserialize, ToSchema)]
struct LoadFields {
    /// The name that requests will use.
    lora_name: String,
    /// Its folder: relative to the server's folder of adapters, or absolute and inside it. By default the name.
    lora_path: Option<String>,
    /// Whether an adapter that has the name is replaced.
    load_inplace: Option<bool>,
    /// Refuse unless the name has this generation now; 0 for none.
    expected_generation: Option<u64>,
    /// Whether it stays when others need the room.
    pinned: Option<bool>,
}

/// Loads an adapter, or replaces the one that has its name. Running requests keep the version they have.
#[utoipa::path(
    post,
    path = "/v1/load_lora_adapter",
    tag = "adapters",
    request_body = LoadFields,
    responses(
        (status = 200, body = AdapterObject),
        (status = 400, description = "it cannot be loaded, or lies elsewhere", body = ErrorBody),
        (status = 403, description = "the server has no admin key", body = ErrorBody),
        (status = 404, description = "there is no such folder", body = ErrorBody),
        (status = 409, description = "the name has another generation", body = ErrorBody),
        (status = 503, description = "there is no room for it", body = ErrorBody),
    )
)]
async fn load(State(state): State<Arc<AppState>>, mut body: JsonFields) -> ApiResult<Json<AdapterObject>> {
    let LoadFields { lora_name: name, lora_path, load_inplace, expected_generation, pinned } = body.read()?;
    body.finish()?;
    state.adapters.check_name(&name).map_err(|error| ApiError::of_field("lora_name", error))?;
    let residency = &state.adapters.residency;
    let (path, replaces) = (lora_path.as_deref().unwrap_or(&name), load_inplace.unwrap_or(false));
    let mut status = residency.load(&name, path, replaces, expected_generation).await?;
    if let Some(pinned) = pinned {
        residency.set_pinned(&name, pinned);
        status.is_pinned = pinned;
    }
    Ok(Json(AdapterObject::new(status, true)))
}

/// What to unload.
#[derive(Deserialize, ToSchema)]
struct UnloadFields {
    /// The adapter's name.
    lora_name: String,
    /// Not looked at: names are unique.
    #[expect(dead_code, reason = "accepted, since vLLM's clients may send it")]
    lora_int_id: Option<Value>,
    /// Refuse unless the name has this generation now.
    expected_generation: Option<u64>,
}

/// What was unloaded.
#[derive(Serialize, ToSchema)]
struct Unloaded {
    name: String,
    /// The generation that had the name; none if others had taken its room before.
    #[serde(skip_serializing_if = "Option::is_none")]
    generation: Option<u64>,
    unloaded: bool,
}

/// Unloads an adapter, and forgets what is known of its name but for its id. Running requests keep it. One in the server's folder
/// of adapters is loaded again, as a new version, when a request names it; to take it away, remove its folder first.
#[utoipa::path(
    post,
    path = "/v1/unload_lora_adapter",
    tag = "adapters",
    request_body = UnloadFields,
    responses(
        (status = 200, body = Unloaded),
        (status = 403, description = "the server has no admin key", body = ErrorBody),
        (status = 404, description = "no adapter has the name", body = ErrorBody),
        (status = 409, description = "the name has another generation", body = ErrorBody),
    )
)]
async fn unload(State(state): State<Arc<AppState>>, mut body: JsonFields) -> ApiResult<Json<Unloaded>> {
    let UnloadFields { lora_name: name, expected_generation, .. } = body.read()?;
    body.finish()?;
    let generation = state.adapters.residency.unload(&name, expected_generation).await?;
    Ok(Json(Unloaded { name, generation: (generation > 0).then_some(generation), unloaded: true }))
}
