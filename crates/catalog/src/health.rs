//! What a replica says of its own health, to those who look after the store: room on its disk, the
//! formats that it writes, and whether its database adds up.

use std::{sync::Arc, time::Duration};

use axum::{Router, extract::State, response::Response, routing::get};
use http::{HeaderMap, StatusCode};
use pygmy_protocol::{
    Code, Problem, RequestContext,
    health::{self, Formats, ReplicaHealth},
    http::Json,
};

use crate::{log, replica::Shared, routes::with_index, state};

/// Longest time for a check of the whole database, whatever `request_timeout_ms` is: it reads every
/// row, in a thread of its own.
const VERIFY_LIMIT: Duration = Duration::from_secs(600);

/// The replica ends when its database is damaged: so long after the answer that says so.
const ANSWER_FIRST: Duration = Duration::from_secs(1);

/// The routes, without the secret.
pub(crate) fn routes() -> Router<Arc<Shared>> {
    Router::new().route(health::PATH, get(health)).route("/verify", get(verify))
}

async fn health(State(shared): State<Arc<Shared>>) -> Json<ReplicaHealth> {
    let formats = Formats {
        log: log::VERSION,
        database: state::SCHEMA_VERSION,
        snapshot: state::SNAPSHOT_VERSION,
    };
    let health = ReplicaHealth {
        name: shared.server.name.clone(),
        free_bytes: shared.room.free_bytes(),
        min_free_bytes: shared.settings.min_free_bytes,
        formats,
    };
    Json(StatusCode::OK, health)
}

/// Reads the whole database and checks what must hold in it: stock adds up, counts and the state
/// hash are right. Takes seconds for millions of rows, while buys go on.
async fn verify(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let context = RequestContext::arriving(&shared.env, &headers, VERIFY_LIMIT);
    let reader = shared.reader.clone();
    let verified = shared.checks.run(move || reader.verify());
    match shared.env.timeout(context.remaining(&shared.env), verified).await {
        Ok(Some(Ok(read))) => {
            let verified = serde_json::json!({ "verified": true });
            Ok(with_index(read.index, Json(StatusCode::OK, verified)))
        }
        Ok(Some(Err(error))) => {
            tracing::error!(%error, "the database does not add up");
            let detail = format!("the database does not add up: {error}");
            shared.damage.mark(&error);
            let env = shared.env.clone();
            env.clone().spawn(async move {
                env.sleep(ANSWER_FIRST).await;
                shared.damage.stop(&error);
            });
            Err(Problem::new(Code::Damaged, detail))
        }
        Ok(None) | Err(_) => {
            Err(Problem::unavailable("the check is not done yet; allow it more time"))
        }
    }
}
