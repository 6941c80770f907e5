//! When a replica wants traffic.

use std::{sync::Arc, time::Duration};

use pygmy_protocol::http::{Fatal, Readiness, Shutdown};

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
    mut shutdown: Shutdown,
) -> Result<(), Fatal> {
    let env = &shared.env;
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
        if !initialised {
            readiness.not_ready(PART, "the replica does not belong to a cluster yet");
        } else if leaderless {
            readiness.not_ready(PART, "there is no leader");
        } else if has_leader && proved_at.is_none_or(|at| now.saturating_since(at) > PATIENCE) {
            proved_at = prove(&shared, &readiness).await.then(|| env.now());
        }
        tokio::select! {
            biased;
            () = shutdown.stopped() => return Ok(()),
            () = env.sleep(CHECK) => {}
        }
    }
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
