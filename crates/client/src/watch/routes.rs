//! What other processes ask of a watcher.

use std::sync::Arc;

use axum::{
    Router,
    extract::{Path, State},
    response::{IntoResponse, Response},
    routing::{delete, get},
};
use http::StatusCode;
use pygmy_protocol::http::Json;

use super::Watcher;

/// The routes of a watcher, for the internal ones of its tier.
pub fn routes(watcher: Arc<Watcher>) -> Router {
    Router::new()
        .route("/watched", get(show))
        .route("/watched/{name}/{process}", delete(leaves))
        .with_state(watcher)
}

async fn show(State(watcher): State<Arc<Watcher>>) -> Response {
    Json(StatusCode::OK, watcher.show()).into_response()
}

/// 204 also for a name that is not watched here.
async fn leaves(
    State(watcher): State<Arc<Watcher>>,
    Path((name, process)): Path<(String, String)>,
) -> StatusCode {
    watcher.leaves(&name, process);
    StatusCode::NO_CONTENT
}
