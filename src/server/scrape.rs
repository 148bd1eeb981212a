//! `GET /metrics`: what was counted, and what has a value now.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::middleware::from_fn_with_state;
use axum::response::IntoResponse;
use axum::routing::get;
use utoipa::OpenApi;

use super::auth;
use super::state::AppState;

/// Prometheus' text form.
const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// `/metrics`, behind the key of metrics.
pub fn routes(state: &Arc<AppState>) -> Router<Arc<AppState>> {
    let with_key = from_fn_with_state(Arc::clone(state), auth::require_metrics_key);
    Router::new().route("/metrics", get(metrics)).route_layer(with_key)
}

/// The route in the OpenAPI document.
#[derive(OpenApi)]
#[openapi(paths(metrics))]
pub struct Document;

/// The server's metrics for Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "server", responses(
    (status = 200, description = "Prometheus' text form", content_type = "text/plain"),
    (status = 401, description = "the request shows neither the metrics key nor the admin key"),
))]
async fn metrics(State(state): State<Arc<AppState>>) -> impl IntoResponse {
    set_values(&state);
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], state.metrics.render())
}

/// Sets what has a value now.
fn set_values(state: &AppState) {
    let (stats, pool) = (state.engine.stats(), state.engine.model().adapters());
    let running = stats.rows_running;
    let waiting = state.engine_loop.samples().saturating_sub(running);
    for (name, meaning, value) in [
        ("exlora_requests_running", "Completions being computed", running),
        ("exlora_requests_waiting", "Completions that wait for a row", waiting),
        ("exlora_requests_limit", "Completions that may run and wait together", state.engine_loop.max_samples()),
        ("exlora_kv_pages", "Pages of the KV cache", stats.kv_pages_total),
        ("exlora_kv_pages_free", "Pages that no request uses", stats.kv_pages_free),
        ("exlora_prefix_pages", "Pages that hold a reusable prefix", stats.prefix_pages),
        ("exlora_adapter_leases", "Uses of adapters by requests", stats.leases),
        (
            "exlora_adapters_resident",
            "Adapter versions in memory, those only in use by requests included",
            pool.resident(),
        ),
        ("exlora_adapters_bytes", "Bytes of adapters in memory", pool.resident_bytes()),
        ("exlora_adapters_max_bytes", "Bytes that adapters may have in memory", pool.limits().max_bytes),
    ] {
        state.metrics.set(name, meaning, value as f64);
    }
    let statuses = state.adapters.statuses();
    let values = |of: fn(&crate::AdapterInfo) -> usize| -> BTreeMap<&str, f64> {
        let value = |info: &Option<crate::AdapterInfo>| info.as_ref().map_or(0.0, |info| of(info) as f64);
        statuses.iter().map(|status| (status.name.as_str(), value(&status.info))).collect()
    };
    let metrics = &state.metrics;
    metrics.set_of_adapters("exlora_adapter_resident", "Whether the adapter is in memory", &values(|_| 1));
    metrics.set_of_adapters("exlora_adapter_bytes", "Its bytes in memory", &values(|info| info.resident_bytes));
    metrics.set_of_adapters("exlora_adapter_requests", "Requests that use it", &values(|info| info.leases));
}
