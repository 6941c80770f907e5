//! A leader whose disk has stalled gives way.
//!
//! Raft does not notice by itself: heartbeats need no disk, and the followers write and commit
//! without the leader's. But what is bought waits until the leader has applied it, and what is read
//! until the leader has released it, so the store would stand still with its disk.

use std::{sync::Arc, time::Duration};

use pygmy_protocol::http::{Fatal, Shutdown};

use crate::{replica::Shared, retire::successor};

/// Between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// A write that takes longer is a stall, and no slow disk; but never less than two elections take.
const STALLED: Duration = Duration::from_secs(1);
/// Between two tries to hand over.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// Looks again and again how long the log has been writing.
pub(crate) async fn watch_disk(shared: Arc<Shared>, mut shutdown: Shutdown) -> Result<(), Fatal> {
    let election = Duration::from_millis(shared.settings.election_timeout_max_ms);
    let patience = STALLED.max(2 * election);
    let mut not_before = shared.env.now();
    loop {
        tokio::select! {
            biased;
            () = shutdown.stopped() => return Ok(()),
            () = shared.env.sleep(LOOK_AGAIN) => {}
        }
        let busy = shared.log.busy_for();
        if busy < patience || !shared.is_leader() || shared.env.now() < not_before {
            continue;
        }
        not_before = shared.env.now() + ASK_AGAIN;
        let Some(successor) = successor(&shared) else { continue };
        let ms = busy.as_millis() as u64;
        tracing::error!(ms, successor, "the disk has stalled: handing over the leadership");
        if let Err(error) = shared.raft.trigger().transfer_leader(successor).await {
            tracing::warn!(%error, "the leadership cannot be handed over");
        }
    }
}
