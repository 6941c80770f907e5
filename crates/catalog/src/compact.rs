//! Log compaction: a snapshot is taken when enough log was written since the last one.
//!
//! By size rather than by time, so that the work of snapshots stays in proportion to the work of
//! buys. Raft drops the log before a snapshot once the snapshot is durable.

use std::{sync::Arc, time::Duration};

use pygmy_protocol::http::{Fatal, Shutdown};

use crate::replica::Shared;

/// How often the size of the log is looked at.
const CHECK: Duration = Duration::from_millis(500);
/// A snapshot that was asked for and is not there is asked for again. One that is being taken goes on;
/// one that was given up, because the disk has too little room, is tried again.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// Asks for snapshots until shutdown.
pub(crate) async fn compact_log(shared: Arc<Shared>, mut shutdown: Shutdown) -> Result<(), Fatal> {
    // What was written before the start counts from where the newest snapshot ends, by entries;
    // its bytes are not known any more.
    let mut newest = shared.reader.status().snapshot_index;
    let mut bytes_then = bytes_written(&shared);
    // At the first request since then.
    let mut bytes_asked = None;
    let mut not_before = shared.env.now();
    loop {
        tokio::select! {
            biased;
            () = shutdown.stopped() => return Ok(()),
            () = shared.env.sleep(CHECK) => {}
        }
        let status = shared.reader.status();
        if status.snapshot_index > newest {
            newest = status.snapshot_index;
            bytes_then = bytes_asked.take().unwrap_or_else(|| bytes_written(&shared));
            not_before = shared.env.now();
        }
        let bytes = bytes_written(&shared).saturating_sub(bytes_then);
        let entries = status.applied.map_or(0, |id| id.index).saturating_sub(newest);
        let settings = &shared.settings;
        let is_due =
            bytes >= settings.snapshot_log_bytes || entries >= settings.snapshot_log_entries;
        if !is_due || shared.env.now() < not_before {
            continue;
        }
        tracing::info!(bytes, entries, "taking a snapshot");
        bytes_asked.get_or_insert_with(|| bytes_written(&shared));
        not_before = shared.env.now() + ASK_AGAIN;
        if let Err(error) = shared.raft.trigger().snapshot().await {
            return Err(Fatal(format!("a snapshot cannot be taken: {error}")));
        }
    }
}

fn bytes_written(shared: &Shared) -> u64 {
    shared.log.figures().bytes_written.get()
}
