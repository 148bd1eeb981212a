//! The routes about adapters.

use std::sync::Arc;

use axum::Router;

use crate::server::state::AppState;

/// The routes about adapters.
pub fn routes(_state: &Arc<AppState>) -> Router<Arc<AppState>> {
    Router::new()
}
