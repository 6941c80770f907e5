//! Making a cluster: once, and never by accident.
//!
//! `POST /bootstrap` with the initial items goes to any replica. If none of the configured
//! replicas belongs to a cluster yet and all of them answer, it makes them one; then it adds the
//! items through the log, under a key of their own. Asking again changes nothing. A replica whose
//! directory was wiped cannot found a second cluster, because the others say that they have one.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use http::Method;
use openraft::errors::{InitializeError, RaftError};
use pygmy_client::{Call, Upstream};
use pygmy_protocol::{
    IdempotencyKey, Problem, RequestContext,
    command::{Command, Outcome, Request},
    item::Item,
    problem::Code,
    registration::CatalogStatus,
};
use serde::{Deserialize, Serialize};

use crate::{raft::Member, replica::Shared};

/// The key of the initial items.
const KEY: &str = "pygmy-bootstrap";
/// Longest wait for another replica's status.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);
/// Most initial items; more are imported afterwards.
const MAX_ITEMS: usize = 10_000;

/// The body of `POST /bootstrap`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BootstrapBody {
    items: Vec<Item>,
}

/// The answer of `POST /bootstrap`.
#[derive(Debug, Serialize)]
pub(crate) struct Bootstrapped {
    /// Whether this request made the cluster.
    created: bool,
    /// How many items the bootstrap has added, now or earlier.
    items: u64,
}

pub(crate) async fn bootstrap(
    shared: &Shared,
    context: &RequestContext,
    body: BootstrapBody,
) -> Result<Bootstrapped, Problem> {
    if body.items.len() > MAX_ITEMS {
        return Err(Problem::new(
            Code::BadValue,
            format!("a bootstrap takes {MAX_ITEMS} items at most"),
        ));
    }
    body.items.iter().try_for_each(Item::check)?;
    let created = shared.is_blank() && found_cluster(shared, context).await?;
    let key: IdempotencyKey = KEY.parse()?;
    let request = Request { key, command: Command::AddItems { items: body.items } };
    match shared.queue.write(request, context.deadline).await? {
        Outcome::Added { items, replayed: _ } => Ok(Bootstrapped { created, items }),
        other => {
            Err(other.problem().unwrap_or_else(|| Problem::unavailable("an unexpected outcome")))
        }
    }
}

/// Makes the configured replicas a cluster, if all of them are blank.
async fn found_cluster(shared: &Shared, context: &RequestContext) -> Result<bool, Problem> {
    let mut members = BTreeMap::new();
    for replica in &shared.replicas {
        let status = status_of(shared, context, &replica.url).await?;
        if status.name != replica.name {
            let detail =
                format!("{} answers at {}, not {}", status.name, replica.url, replica.name);
            return Err(Problem::unavailable(detail));
        }
        if status.role != "blank" {
            let detail =
                format!("{} belongs to a cluster already; this replica must join it", replica.name);
            return Err(Problem::unavailable(detail));
        }
        members.insert(status.id, Member { name: replica.name.clone(), url: replica.url.clone() });
    }
    if !members.contains_key(&shared.id) {
        return Err(Problem::unavailable("this replica is not in its own list of replicas"));
    }
    match shared.raft.initialize(members).await {
        Ok(()) => Ok(true),
        // Another bootstrap was faster.
        Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(false),
        Err(error) => Err(Problem::unavailable(format!("the cluster cannot be made: {error}"))),
    }
}

async fn status_of(
    shared: &Shared,
    context: &RequestContext,
    url: &str,
) -> Result<CatalogStatus, Problem> {
    let unreachable = |why: String| {
        Problem::unavailable(format!("the replica at {url} must answer first: {why}"))
    };
    let upstream = Arc::new(Upstream::remote(&shared.env, url).map_err(unreachable)?);
    let call =
        Call::new(Method::GET, "/status", context.clone()).with_secret(&shared.server.secret);
    let answer =
        upstream.send(&call, STATUS_TIMEOUT).await.map_err(|e| unreachable(e.to_string()))?;
    answer.json().map_err(|problem| unreachable(problem.to_string()))
}
