//! What a replica counts and measures.

use std::sync::{Arc, Weak};

use pygmy_protocol::metrics::{Counter, Gauge, Histogram, Labelled, Metrics};

use crate::{replica::Shared, state::SnapshotTimes};

/// Since the start of the replica. The log and the state machine keep measures of their own.
pub(crate) struct Measures {
    /// Requests in one log entry that this replica proposed.
    pub(crate) batch_requests: Histogram,
    /// How long an applied entry waited for the front ends.
    pub(crate) release_wait: Histogram,
    /// Terms that began.
    pub(crate) elections: Counter,
    /// Leaders that followed another one.
    pub(crate) leader_changes: Counter,
    /// How long snapshots took.
    pub(crate) snapshots: SnapshotTimes,
}

impl Measures {
    pub(crate) fn new(snapshots: SnapshotTimes) -> Measures {
        Measures {
            batch_requests: Histogram::of_sizes(),
            release_wait: Histogram::of_times(),
            elections: Counter::default(),
            leader_changes: Counter::default(),
            snapshots,
        }
    }

    fn register(&self, metrics: &Metrics) {
        let help = "Requests in one log entry, of those that this replica proposed as the leader";
        metrics.register("batch_requests", help, self.batch_requests.clone());
        let help = "Time from when an entry was applied until its answers could go, on the leader";
        metrics.register("release_wait_seconds", help, self.release_wait.clone());
        let help = "Elections that this replica has heard of: one for each term that began";
        metrics.register("raft_elections", help, self.elections.clone());
        let help = "How often another leader took over, as this replica saw it";
        metrics.register("raft_leader_changes", help, self.leader_changes.clone());
        let SnapshotTimes { built, installed } = self.snapshots.clone();
        let snapshots = Labelled::new("how").with([("built", built), ("installed", installed)]);
        let help = "Time that a snapshot took to be built, or to take the database's place";
        metrics.register("snapshot_seconds", help, snapshots);
    }
}

/// Registers all that is to know of a replica.
pub(crate) fn register(shared: &Arc<Shared>, metrics: &Metrics) {
    shared.measures.register(metrics);
    let log = shared.log.figures();
    let help = "Time that the log's worker waited until something was durable";
    metrics.register("log_fsync_seconds", help, log.fsync.clone());
    metrics.register(
        "log_written_bytes",
        "Bytes of log records written",
        log.bytes_written.clone(),
    );
    // The replica holds the metrics: they must not hold it.
    let gauge = |read: fn(&Shared) -> u64| {
        let shared = Arc::downgrade(shared);
        move || Weak::upgrade(&shared).map_or(0, |shared| read(&shared))
    };
    metrics.queue("writes", gauge(|shared| shared.queue.length() as u64));
    let register = |name, help, read| metrics.register(name, help, Gauge::new(gauge(read)));
    register("log_last_index", "Index of the last entry in the log", |s| s.status().last_log_index);
    register("log_applied_index", "Index of the last applied entry", |s| s.status().applied_index);
    let help = "Index up to which answers may go, as far as this replica knows";
    register("log_released_index", help, |s| s.status().released_index);
    let help = "Index of the last entry dropped from the log";
    register("log_purged_index", help, |s| s.status().purged_index);
    register("snapshot_index", "Index of the newest snapshot", |s| s.status().snapshot_index);
    register("raft_term", "Raft term", |s| s.status().term);
    register("raft_is_leader", "Whether this replica leads", |s| s.is_leader().into());
    let help = "Front ends that hear of changes, on the leader";
    register("leases", "Front ends that hold a lease; 0 on followers", |s| s.gate.leases() as u64);
    register("sessions", help, |s| s.gate.front_ends().len() as u64);
    let help = "Free bytes on the disk of the data directory";
    register("disk_free_bytes", help, |s| s.room.free_bytes());
    register("orders", "Orders in the database", |s| s.status().orders);
    register("items", "Items in the catalog", |s| s.reader.status().items);
}
