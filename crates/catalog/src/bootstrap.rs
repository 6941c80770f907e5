//! Making a cluster: once, and never by accident.
//!
//! `POST /bootstrap` with the initial items goes to any replica. If none of the configured
//! replicas belongs to a cluster yet and all of them answer, it makes them one; then it adds the
//! items through the log, under a key of their own. Asking again changes nothing. A replica whose
//! directory was wiped cannot found a second cluster, because the others say that they have one.

use std::collections::BTreeMap;

use openraft::errors::{InitializeError, RaftError};
use pygmy_client::members::status_of;
use pygmy_protocol::{
    IdempotencyKey, Problem, RequestContext,
    command::{Command, Outcome, Request},
    item::Item,
    problem::Code,
};
use serde::{Deserialize, Serialize};

use crate::{raft::Member, replica::Shared};

/// The key of the initial items.
const KEY: &str = "pygmy-bootstrap";
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
    let created = shared.is_blank() && found_cluster(shared).await?;
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
async fn found_cluster(shared: &Shared) -> Result<bool, Problem> {
    let mut members = BTreeMap::new();
    for replica in &shared.replicas {
        let status = status_of(&shared.env, &shared.server.secret, &replica.url).await;
        let status = status.map_err(|why| {
            let url = &replica.url;
            Problem::unavailable(format!("the replica at {url} must answer first: {why}"))
        })?;
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
