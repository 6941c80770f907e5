use std::path::PathBuf;

use openraft::SnapshotPolicy;
use pygmy_client::ServerConfig;
use serde::{Deserialize, Serialize};

/// Raft's heartbeats that fit into a lease at least. A leader that has heard of no majority for the
/// time of a lease vouches for no cache: one late heartbeat must not empty all of them.
pub const LEASE_HEARTBEATS: u64 = 4;
/// Raft's heartbeats that a follower misses at least before it asks for an election.
pub const ELECTION_HEARTBEATS: u64 = 3;

/// A replica as the configuration names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaAddress {
    /// Its name.
    pub name: String,
    /// Its base URL.
    pub url: String,
}

/// What a catalog replica is started with.
#[derive(Clone)]
pub struct Config {
    /// What every server has.
    pub server: ServerConfig,
    /// The data directory.
    pub dir: PathBuf,
    /// All replicas of the cluster, this one included. Used once, to make the cluster; after
    /// that the membership in the log counts.
    pub replicas: Vec<ReplicaAddress>,
    /// How long a front end may serve from its cache without hearing from the leader, in
    /// milliseconds, 50 to 10,000.
    pub lease_ms: u64,
    /// Whether answers wait until the front ends have dropped what changed: reads from their caches
    /// are linearizable then, and eventual otherwise.
    pub waits_for_caches: bool,
    /// The `[catalog]` table of the configuration.
    pub settings: Settings,
}

/// The `[catalog]` table of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Time between the leader's heartbeats to its followers, in milliseconds, 10 to 10,000.
    pub raft_heartbeat_ms: u64,
    /// A follower that hears nothing for this long, in milliseconds, asks for an election: at
    /// least three heartbeats.
    pub election_timeout_min_ms: u64,
    /// The longest such wait: each follower draws its own in between, so that they do not ask at
    /// the same time.
    pub election_timeout_max_ms: u64,
    /// Most requests in one log entry, 1 to 4,096.
    pub batch_requests_max: usize,
    /// Most requests that wait for the leader; over it: 503.
    pub waiting_requests_max: usize,
    /// A snapshot is taken, and the log before it dropped, when this many bytes of log were
    /// written since the last one.
    pub snapshot_log_bytes: u64,
    /// The same for the number of log entries.
    pub snapshot_log_entries: u64,
    /// Log entries before a snapshot that are kept for followers that are a little behind.
    pub log_entries_kept: u64,
    /// Size of one file of the log, in bytes; it is reserved in advance.
    pub log_segment_bytes: u64,
    /// Decoded log entries kept in memory for followers, in bytes.
    pub log_cache_bytes: usize,
    /// Between two checks of the whole database, in milliseconds, 1000 to 2,592,000,000 (30 days).
    pub scrub_interval_ms: u64,
    /// Free bytes on the disk of the data directory below which this replica takes no changes, 1 MiB
    /// to 1 TiB: two segments of the log and what SQLite writes within a second must fit.
    pub min_free_bytes: u64,
    /// Orders whose keys are indexed together, 1 to 1,048,576: the keys of the last one or two
    /// times as many are in memory.
    pub key_run_orders: u64,
    /// Size at which `requests.txt` is rotated, in bytes.
    pub requests_log_bytes: u64,
    /// Rotated files of `requests.txt` that are kept beside the current one.
    pub requests_log_files: usize,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            raft_heartbeat_ms: 50,
            election_timeout_min_ms: 200,
            election_timeout_max_ms: 400,
            batch_requests_max: 1024,
            waiting_requests_max: 20_000,
            snapshot_log_bytes: 256 * 1024 * 1024,
            snapshot_log_entries: 500_000,
            log_entries_kept: 1_000,
            log_segment_bytes: 16 * 1024 * 1024,
            log_cache_bytes: 32 * 1024 * 1024,
            scrub_interval_ms: 24 * 60 * 60 * 1000,
            min_free_bytes: 128 * 1024 * 1024,
            key_run_orders: 131_072,
            requests_log_bytes: 16 * 1024 * 1024,
            requests_log_files: 4,
        }
    }
}

impl Settings {
    /// Checks the ranges.
    ///
    /// # Errors
    /// A sentence that names the setting.
    pub fn check(&self) -> Result<(), String> {
        let within = |name: &str, value: u64, range: std::ops::RangeInclusive<u64>| {
            if range.contains(&value) {
                return Ok(());
            }
            Err(format!("{name} is {value}; it must be from {} to {}", range.start(), range.end()))
        };
        within("raft_heartbeat_ms", self.raft_heartbeat_ms, 10..=10_000)?;
        let heartbeats = ELECTION_HEARTBEATS * self.raft_heartbeat_ms;
        within("election_timeout_min_ms", self.election_timeout_min_ms, heartbeats..=60_000)?;
        let above_min = self.election_timeout_min_ms + 1;
        within("election_timeout_max_ms", self.election_timeout_max_ms, above_min..=120_000)?;
        // A batch and what a follower adds to it at last, with the longest items, fit one frame.
        within("batch_requests_max", self.batch_requests_max as u64, 1..=4_096)?;
        within("waiting_requests_max", self.waiting_requests_max as u64, 1..=1_000_000)?;
        within("snapshot_log_bytes", self.snapshot_log_bytes, 1024..=u64::MAX)?;
        within("snapshot_log_entries", self.snapshot_log_entries, 1..=u64::MAX)?;
        within("log_segment_bytes", self.log_segment_bytes, 64 * 1024..=1024 * 1024 * 1024)?;
        within("scrub_interval_ms", self.scrub_interval_ms, 1000..=2_592_000_000)?;
        within("min_free_bytes", self.min_free_bytes, 1 << 20..=1 << 40)?;
        within("key_run_orders", self.key_run_orders, 1..=1024 * 1024)?;
        within("requests_log_bytes", self.requests_log_bytes, 1024..=u64::MAX)?;
        within("requests_log_files", self.requests_log_files as u64, 1..=1000)
    }

    /// openraft's configuration; every trap that is known has its line.
    pub(crate) fn raft(&self) -> openraft::Config {
        openraft::Config {
            cluster_name: "pygmy".to_owned(),
            heartbeat_interval: self.raft_heartbeat_ms,
            election_timeout_min: self.election_timeout_min_ms,
            election_timeout_max: self.election_timeout_max_ms,
            // A replica that was cut off does not disturb the others when it comes back.
            enable_pre_vote: Some(true),
            // A leader that was restarted must win an election like everybody else.
            enable_leader_restore: Some(false),
            // A leader that can reach no majority falls silent for a while, so that those who can
            // are free to elect another (openraft issue 2080). The least that is allowed.
            quorum_loss_probe_interval: Some(2 * self.election_timeout_max_ms),
            // Requests are batched before they get here; lingering would only add latency.
            api_batch_linger_ms: 0,
            // Snapshots are asked for by size, see `compact.rs`.
            snapshot_policy: SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: self.log_entries_kept,
            // Entries are cheaper than a snapshot as long as the log still has them.
            replication_lag_threshold: u64::MAX,
            // A replica that comes back is found again soon.
            backoff: "10ms 20ms 40ms ...400ms".to_owned(),
            ..openraft::Config::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid() {
        Settings::default().check().unwrap();
        Settings::default().raft().validate().unwrap();
    }

    #[test]
    fn a_setting_out_of_range_is_named() {
        let settings = Settings { election_timeout_min_ms: 100, ..Settings::default() };
        assert!(settings.check().unwrap_err().contains("election_timeout_min_ms"));
    }
}
