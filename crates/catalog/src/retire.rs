//! Leaving: a leader that is told to stop makes another replica the leader first.

use std::{sync::Arc, time::Duration};

use openraft::{Instant, async_runtime::WatchReceiver};
use pygmy_protocol::http::{Fatal, Shutdown};

use crate::replica::Shared;

/// Longest wait for another replica to take over.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(1);

/// On shutdown hands the leadership over, so that buys do not wait for an election. Raft itself is
/// not stopped: the process may end at any point anyway.
pub(crate) async fn hand_over(shared: Arc<Shared>, mut shutdown: Shutdown) -> Result<(), Fatal> {
    shutdown.stopped().await;
    let mut leadership = shared.leadership.clone();
    let Some(successor) = successor(&shared) else { return Ok(()) };
    tracing::info!(successor, "handing over the leadership");
    if let Err(error) = shared.raft.trigger().transfer_leader(successor).await {
        tracing::warn!(%error, "the leadership cannot be handed over");
        return Ok(());
    }
    let handed_over =
        leadership.wait_for(|l| l.leader.as_ref().is_some_and(|leader| !leader.is_me));
    match shared.env.timeout(HAND_OVER_TIMEOUT, handed_over).await {
        Ok(Ok(_)) => tracing::info!("handed over"),
        Ok(Err(_)) | Err(_) => tracing::warn!("nobody has taken over the leadership in time"),
    }
    Ok(())
}

/// The voter to hand the leadership to, if this replica leads: of those that answered a heartbeat
/// within the lease, the one with most of the log.
pub(crate) fn successor(shared: &Shared) -> Option<u64> {
    let metrics = shared.raft.metrics();
    let metrics = metrics.borrow_watched();
    let (replication, heartbeat) = (metrics.replication.as_ref()?, metrics.heartbeat.as_ref()?);
    let answers = |id: &u64| {
        heartbeat.get(id).and_then(Option::as_ref).is_some_and(|at| at.elapsed() <= shared.lease)
    };
    let voters = metrics.membership_config.voter_ids();
    let others = voters.filter(|id| *id != shared.id && answers(id));
    others
        .max_by_key(|id| replication.get(id).and_then(|matched| matched.as_ref().map(|m| m.index)))
}
