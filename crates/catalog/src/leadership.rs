//! Who leads: what Raft knows, as the rest of the replica needs it.

use std::{sync::Arc, time::Duration};

use openraft::{Instant, async_runtime::WatchReceiver};
use pygmy_protocol::{
    http::{Fatal, Shutdown},
    registration::Registration,
};
use tokio::sync::watch;

use crate::{raft::CatalogRaft, replica::Shared};

/// The leader and its term, as this replica sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Leadership {
    /// Raft term.
    pub(crate) term: u64,
    /// Whether the cluster has been made, as far as this replica knows.
    pub(crate) initialised: bool,
    /// The leader, if there is one.
    pub(crate) leader: Option<Leader>,
}

/// A leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Leader {
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) url: String,
    /// Whether it is this replica.
    pub(crate) is_me: bool,
}

/// Follows Raft's own view and passes it on: to the gate, to the balancers, and to whoever holds
/// a receiver of `leadership`. Ends with shutdown, or with the error that ended Raft.
pub(crate) async fn follow_raft(
    shared: Arc<Shared>,
    leadership: watch::Sender<Leadership>,
    registration: Arc<watch::Sender<Registration>>,
    mut shutdown: Shutdown,
) -> Result<(), Fatal> {
    let Shared { env, raft, gate, lease, .. } = &*shared;
    let mut metrics = raft.metrics();
    loop {
        let (now, has_quorum) = view(raft, *lease)?;
        let leads = now.leader.as_ref().is_some_and(|leader| leader.is_me) && has_quorum;
        if leads {
            gate.lead(now.term);
        } else {
            gate.follow();
        }
        let leads_term = leads.then_some(now.term);
        registration
            .send_if_modified(|r| std::mem::replace(&mut r.leads_term, leads_term) != leads_term);
        leadership.send_if_modified(|known| {
            let changed = *known != now;
            if changed {
                tell(&now);
                *known = now;
            }
            changed
        });
        tokio::select! {
            biased;
            () = shutdown.stopped() => return Ok(()),
            changed = metrics.changed() => if changed.is_err() {
                return Err(Fatal("Raft has ended".to_owned()));
            },
            // A majority is lost by silence, which changes nothing.
            () = env.sleep(*lease / 3) => {}
        }
    }
}

fn tell(now: &Leadership) {
    match &now.leader {
        Some(leader) => {
            tracing::info!(term = now.term, leader = leader.name, "the leader is known")
        }
        None => tracing::info!(term = now.term, "there is no leader"),
    }
}

/// What Raft knows now, and whether a majority answered this replica within the lease.
fn view(raft: &CatalogRaft, lease: Duration) -> Result<(Leadership, bool), Fatal> {
    let metrics = raft.metrics();
    let metrics = metrics.borrow_watched();
    if let Err(fatal) = &metrics.running_state {
        return Err(Fatal(format!("Raft has ended: {fatal}")));
    }
    let membership = metrics.membership_config.membership();
    let leader = metrics.current_leader.and_then(|id| {
        let node = membership.get_node(&id)?;
        let is_me = id == metrics.id && metrics.state.is_leader();
        Some(Leader { id, name: node.name.clone(), url: node.url.clone(), is_me })
    });
    let initialised = membership.nodes().next().is_some();
    let alone = membership.voter_ids().count() == 1;
    let acknowledged = metrics.last_quorum_acked.map(|at| at.into_inner());
    let has_quorum = alone || acknowledged.is_none_or(|at| at.elapsed() <= lease);
    Ok((Leadership { term: metrics.current_term, initialised, leader }, has_quorum))
}
