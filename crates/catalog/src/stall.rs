//! A leader whose disk has stalled gives way.
//!
//! Raft does not notice by itself: heartbeats need no disk, and the followers write and commit
//! without the leader's. But what is bought waits until the leader has applied it, and what is read
//! until the leader has released it, so the store would stand still with its disk.

use std::{sync::Arc, time::Duration};

use pygmy_protocol::http::{Fatal, Shutdown};

use crate::{members, replica::Shared, retire::successor};

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
        let is_due = busy >= patience && shared.env.now() >= not_before;
        if !is_due || !shared.is_leader() || !others_are_a_majority(&shared) {
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

/// Whether the others can elect one of them without this replica's vote, which waits for its disk. If
/// not, it goes on: nothing can be bought either way, but what is there can be read.
fn others_are_a_majority(shared: &Shared) -> bool {
    let voters: Vec<_> = members::statuses(shared).into_iter().filter(|m| m.voter).collect();
    let others = voters.iter().filter(|member| member.id != shared.id && member.answers).count();
    2 * others > voters.len()
}
