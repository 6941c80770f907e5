//! When a replica wants traffic.

use std::{sync::Arc, time::Duration};

use pygmy_protocol::{
    http::{Fatal, Readiness, Shutdown},
    registration::Registration,
    watched::CaughtUp,
};
use tokio::sync::watch;

use crate::replica::Shared;

const PART: &str = "catalog";
/// How often readiness is looked at.
const CHECK: Duration = Duration::from_millis(20);
/// Longest wait for one proof of having caught up.
const PROOF_TIMEOUT: Duration = Duration::from_secs(5);
/// A replica without a leader for this long sends its traffic elsewhere. Elections are shorter.
const PATIENCE: Duration = Duration::from_secs(2);

/// Ready once a fresh read could be answered, which proves that the replica has caught up with
/// the leader; unready when there has been no leader for a while. The proof is renewed now and
/// then: a replica may hear the leader and not reach it.
pub(crate) async fn watch_readiness(
    shared: Arc<Shared>,
    readiness: Readiness,
    registration: Arc<watch::Sender<Registration>>,
    mut shutdown: Shutdown,
) -> Result<(), Fatal> {
    let env = &shared.env;
    let began_at = shared.log.last_index().unwrap_or(0);
    let (mut led_at, mut proved_at) = (None, None);
    loop {
        let (initialised, has_leader) = {
            let leadership = shared.leadership.borrow();
            (leadership.initialised, leadership.leader.is_some())
        };
        let now = env.now();
        if has_leader {
            led_at = Some(now);
        }
        let leaderless = led_at.is_none_or(|at| now.saturating_since(at) > PATIENCE);
        let falls_behind = shared.room.is_full() && !shared.is_leader();
        if falls_behind {
            proved_at = None;
            readiness.not_ready(PART, "too little room on the disk: it takes no changes");
        } else if !initialised {
            readiness.not_ready(PART, "the replica does not belong to a cluster yet");
        } else if leaderless {
            readiness.not_ready(PART, "there is no leader");
        } else if has_leader && proved_at.is_none_or(|at| now.saturating_since(at) > PATIENCE) {
            proved_at = prove(&shared, &readiness).await.then(|| env.now());
            if proved_at.is_some() {
                registration.send_if_modified(|registration| tell(&shared, began_at, registration));
            }
        }
        tokio::select! {
            biased;
            () = shutdown.stopped() => return Ok(()),
            () = env.sleep(CHECK) => {}
        }
    }
}

/// Tells the balancers, once, what this replica got from the others since its log ended at
/// `began_at`.
fn tell(shared: &Shared, began_at: u64, registration: &mut Registration) -> bool {
    if registration.caught_up.is_some() {
        return false;
    }
    let state = shared.reader.status();
    let installed = shared.snapshots.current().filter(|_| state.snapshot_index > began_at);
    let snapshot_bytes = installed.and_then(|(_, file)| file.len().ok()).unwrap_or(0);
    let entries = state.applied.map_or(0, |id| id.index).saturating_sub(began_at);
    tracing::info!(entries, snapshot_bytes, "caught up");
    registration.caught_up = Some(CaughtUp { entries, snapshot_bytes });
    true
}

async fn prove(shared: &Shared, readiness: &Readiness) -> bool {
    let caught_up = async {
        let fresh = shared.rounds.join().await?;
        shared.gate.await_applied(fresh.index).await;
        Ok::<(), String>(())
    };
    match shared.env.timeout(PROOF_TIMEOUT, caught_up).await {
        Ok(Ok(())) => {
            readiness.ready(PART);
            return true;
        }
        Ok(Err(why)) => readiness.not_ready(PART, why),
        Err(_) => readiness.not_ready(PART, "catching up with the leader"),
    }
    false
}
