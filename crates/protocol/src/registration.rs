//! How servers make themselves known to the balancers.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::watched::{CaughtUp, Story};

/// Longest name of a server, in bytes: that of a process with all tiers, and of the tier.
pub const MAX_NAME_BYTES: usize = 72;
/// Longest base URL of a server, in bytes.
pub const MAX_URL_BYTES: usize = 512;

/// The job of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Public HTTP, cache.
    Frontend,
    /// Routing, health.
    Balancer,
    /// Buys.
    Order,
    /// Items, stock, orders: the replicated state.
    Catalog,
    /// The four of them in one process.
    All,
}

impl Role {
    /// Each of which may have a process of its own.
    pub const TIERS: [Role; 4] = [Role::Frontend, Role::Balancer, Role::Order, Role::Catalog];

    /// As it stands in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Frontend => "frontend",
            Role::Balancer => "balancer",
            Role::Order => "order",
            Role::Catalog => "catalog",
            Role::All => "all",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Role, String> {
        [Role::Frontend, Role::Balancer, Role::Order, Role::Catalog, Role::All]
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| {
                format!("{text:?} is no role: frontend, balancer, order, catalog or all")
            })
    }
}

/// The body of `POST /register`. Sent at start, as the heartbeat, and at once when something in
/// it changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Registration {
    /// The server's name in the configuration; one entry per name.
    pub name: String,
    /// Its job.
    pub role: Role,
    /// Its base URL, without a slash at the end.
    pub url: String,
    /// Random, new with every start of the process.
    pub nonce: String,
    /// The next heartbeat comes within this many milliseconds; the entry expires when three
    /// of them are missed.
    pub heartbeat_ms: u64,
    /// Whether it wants traffic.
    pub ready: bool,
    /// The term in which this catalog replica leads, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leads_term: Option<u64>,
    /// What this catalog replica had to get from the others since its start, once it was ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caught_up: Option<CaughtUp>,
}

/// How a balancer sees a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Registered, not yet seen ready.
    Starting,
    /// Gets traffic.
    Ready,
    /// Answers, but does not want traffic.
    Unready,
    /// Did not answer, or let its registration expire.
    Dead,
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Health::Starting => "starting",
            Health::Ready => "ready",
            Health::Unready => "unready",
            Health::Dead => "dead",
        })
    }
}

/// One server in `GET /servers`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerStatus {
    /// Its name.
    pub name: String,
    /// Its job.
    pub role: Role,
    /// Its base URL.
    pub url: String,
    /// Whether it gets traffic.
    pub health: Health,
    /// Why it does not, if it does not.
    pub reason: Option<String>,
    /// Requests that this balancer sent it and that are not answered yet.
    pub in_flight: u64,
    /// Requests that it answered through this balancer.
    pub served: u64,
    /// Whether it leads the catalog.
    pub leader: bool,
    /// How often its process was started again, as far as the watchers remember.
    pub respawns: u64,
    /// How its process was last lost and came back, if it ever was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub story: Option<Story>,
}

/// `GET /servers`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Servers {
    /// The balancer that answers.
    pub balancer: String,
    /// What it knows, sorted by role and name.
    pub servers: Vec<ServerStatus>,
}

/// `GET /status` of a catalog replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CatalogStatus {
    /// Its name.
    pub name: String,
    /// Its Raft id: the identity of its data directory, below 2^53.
    pub id: u64,
    /// `leader`, `follower`, or `blank` before the replica belongs to a cluster.
    pub role: String,
    /// Raft term.
    pub term: u64,
    /// Name of the leader, if it is known.
    pub leader: Option<String>,
    /// Index of the last entry in the log.
    pub last_log_index: u64,
    /// Index of the last entry that is applied to the database.
    pub applied_index: u64,
    /// Entries up to this one are no longer in the log.
    pub purged_index: u64,
    /// Index of the newest snapshot; 0 if there is none.
    pub snapshot_index: u64,
    /// Answers may reveal the state up to here.
    pub released_index: u64,
    /// 32 hexadecimal digits: items, orders and keys at the applied index.
    pub state_hash: String,
    /// Number of orders.
    pub orders: u64,
    /// Front ends with an open invalidation stream, if it leads.
    pub front_ends: Vec<String>,
    /// The replicas of the cluster, as far as this one knows.
    #[serde(default)]
    pub members: Vec<MemberStatus>,
}

/// A replica of the cluster, in [`CatalogStatus`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberStatus {
    /// Its Raft id.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Its base URL.
    pub url: String,
    /// Whether it counts for a majority; one that does not is only catching up.
    pub voter: bool,
    /// Whether it has answered the leader lately. Only the leader knows.
    pub answers: bool,
}
