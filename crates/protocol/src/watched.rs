//! What watchers tell of the processes that they watch.

use serde::{Deserialize, Serialize};

/// `GET /watched` of a balancer or front end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watched {
    /// The server that watches.
    pub watcher: String,
    /// The processes that it watches, by name.
    pub servers: Vec<WatchedServer>,
}

/// What a watcher knows of one process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WatchedServer {
    /// Its name in the configuration.
    pub name: String,
    /// What the last look found.
    pub state: State,
    /// For how many milliseconds every look has found that.
    pub for_ms: u64,
    /// Whether it said that it leaves, and was not started since: it is left alone.
    #[serde(default)]
    pub left: bool,
    /// Whether this watcher is starting it again and has not seen it alive yet.
    #[serde(default)]
    pub starting: bool,
    /// How many milliseconds ago this watcher last began to start it again, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub respawned_ms_ago: Option<u64>,
    /// In how many milliseconds this watcher may start it again: it has died again and again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_respawn_ms: Option<u64>,
    /// How often it was started again, as far as the watchers remember.
    pub respawns: u64,
    /// The last time that it was found dead or hung.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub story: Option<Story>,
}

/// How a process looks to a watcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Not looked at yet.
    Unknown,
    /// It answers.
    Alive,
    /// Its host answers, and nobody listens.
    Dead,
    /// No answer in time, or its host cannot be reached.
    Silent,
}

/// Why a process is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reason {
    /// It has ended.
    Dead,
    /// It runs and does not answer.
    Hung,
    /// An operator wants it: one process after the other.
    Rolling,
}

impl Reason {
    /// As commands get it.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Dead => "dead",
            Reason::Hung => "hung",
            Reason::Rolling => "rolling",
        }
    }
}

/// How a process was lost and came back. Times are those of the watcher's wall clock, in
/// milliseconds since 1970-01-01 UTC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Story {
    /// What it was.
    pub reason: Reason,
    /// When it was noticed.
    pub noticed_at: u64,
    /// The watcher that ran the command, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// When that ran it last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub respawned_at: Option<u64>,
    /// When the process wanted traffic again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_at: Option<u64>,
    /// Why it is not back, if the command failed or brought nothing back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// What a catalog replica had to get from the others before it was ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caught_up: Option<CaughtUp>,
}

/// What a catalog replica got from the others between its start and its first readiness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CaughtUp {
    /// Entries by which its log was behind.
    pub entries: u64,
    /// Bytes of the snapshot that it installed; 0 if the log reached back far enough.
    pub snapshot_bytes: u64,
}
