//! Log compaction: a snapshot is taken when enough log was written since the last one.
//!
//! By size rather than by time, so that the work of snapshots stays in proportion to the work of
//! buys. Raft drops the log before a snapshot once the snapshot is durable.

use std::{sync::Arc, time::Duration};

use pygmy_protocol::http::{Fatal, Shutdown};

use crate::replica::Shared;

/// How often the size of the log is looked at.
const CHECK: Duration = Duration::from_millis(500);

/// Asks for snapshots until shutdown.
pub(crate) async fn compact_log(shared: Arc<Shared>, mut shutdown: Shutdown) -> Result<(), Fatal> {
    // What was written before the start counts from where the newest snapshot ends, by entries;
    // its bytes are not known any more.
    let mut bytes_then = bytes_written(&shared);
    let mut asked_at = shared.reader.status().snapshot_index;
    loop {
        tokio::select! {
            biased;
            () = shutdown.stopped() => return Ok(()),
            () = shared.env.sleep(CHECK) => {}
        }
        let applied = shared.reader.status().applied.map_or(0, |id| id.index);
        let bytes = bytes_written(&shared).saturating_sub(bytes_then);
        let entries = applied.saturating_sub(asked_at);
        if bytes < shared.settings.snapshot_log_bytes
            && entries < shared.settings.snapshot_log_entries
        {
            continue;
        }
        tracing::info!(bytes, entries, "taking a snapshot");
        bytes_then = bytes_written(&shared);
        asked_at = applied;
        if let Err(error) = shared.raft.trigger().snapshot().await {
            return Err(Fatal(format!("a snapshot cannot be taken: {error}")));
        }
    }
}

fn bytes_written(shared: &Shared) -> u64 {
    shared.log.figures().bytes_written.get()
}
