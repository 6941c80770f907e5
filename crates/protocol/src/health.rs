//! What servers say of themselves to those who look after the store.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Path of [`ReplicaHealth`] at a catalog replica, behind the secret.
pub const PATH: &str = "/health";

/// `GET /readyz` of a tier: 200 if it is ready, else 503.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Readyz {
    /// The server's name.
    pub name: String,
    /// Whether it wants traffic.
    pub ready: bool,
    /// What is missing, by part.
    pub reasons: BTreeMap<String, String>,
    /// Version of the program; none from one that is too old to say.
    pub version: Option<String>,
    /// Its wall clock, in milliseconds since 1970-01-01 UTC.
    pub wall_ms: Option<u64>,
}

/// `GET /health` of a catalog replica: what only its own machine knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplicaHealth {
    /// Its name.
    pub name: String,
    /// Bytes that can still be written where its data is.
    pub free_bytes: u64,
    /// With less than this it takes no changes.
    pub min_free_bytes: u64,
    /// The formats that it writes.
    pub formats: Formats,
}

/// Versions of what a replica writes. It reads earlier ones and refuses later ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Formats {
    /// Of the Raft log.
    pub log: u32,
    /// Of the tables of the database.
    pub database: u32,
    /// Of snapshots.
    pub snapshot: u32,
}
