//! Who leads: what Raft knows, as the rest of the replica needs it.

use std::{sync::Arc, time::Duration};

use openraft::{Instant, async_runtime::WatchReceiver};
use pygmy_protocol::{http::Fatal, registration::Registration};
use tokio::sync::watch;

use crate::{metrics::Measures, raft::CatalogRaft, replica::Shared};

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
/// a receiver of `leadership`. Ends with what ended Raft.
pub(crate) async fn follow_raft(
    shared: Arc<Shared>,
    leadership: watch::Sender<Leadership>,
    registration: Arc<watch::Sender<Registration>>,
) -> Fatal {
    let Shared { env, raft, gate, lease, measures, .. } = &*shared;
    let mut metrics = raft.metrics();
    let mut seen = Seen::default();
    loop {
        let View { now, leads_term, has_quorum } = match view(raft, *lease) {
            Ok(view) => view,
            Err(fatal) => return fatal,
        };
        seen.count(&now, measures);
        match leads_term {
            Some(term) => gate.lead(term, has_quorum),
            None => gate.follow(),
        }
        let leads_term = leads_term.filter(|_| has_quorum);
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
            changed = metrics.changed() => if changed.is_err() {
                return Fatal("Raft has ended".to_owned());
            },
            // A majority is lost by silence, which changes nothing.
            () = env.sleep(*lease / 3) => {}
        }
    }
}

/// What was counted last.
#[derive(Default)]
struct Seen {
    term: Option<u64>,
    /// Id and term of the last leader there was.
    leader: Option<(u64, u64)>,
}

impl Seen {
    fn count(&mut self, now: &Leadership, measures: &Measures) {
        // Those before the start are not this process's.
        let before = self.term.replace(now.term).unwrap_or(now.term);
        measures.elections.inc_by(now.term.saturating_sub(before));
        if let Some(leader) = &now.leader {
            let leader = (leader.id, now.term);
            if self.leader.replace(leader).is_some_and(|before| before != leader) {
                measures.leader_changes.inc();
            }
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

struct View {
    now: Leadership,
    /// The term in which this replica leads, if it does.
    leads_term: Option<u64>,
    /// Whether a majority answered this replica within the lease.
    has_quorum: bool,
}

fn view(raft: &CatalogRaft, lease: Duration) -> Result<View, Fatal> {
    let metrics = raft.metrics();
    let metrics = metrics.borrow_watched();
    if let Err(fatal) = &metrics.running_state {
        return Err(Fatal(format!("Raft has ended: {fatal}")));
    }
    let (term, membership) = (metrics.current_term, metrics.membership_config.membership());
    let alone = membership.voter_ids().count() == 1;
    let acknowledged = metrics.last_quorum_acked.map(|at| at.into_inner());
    let has_quorum = alone || acknowledged.is_none_or(|at| at.elapsed() <= lease);
    let leader = metrics.current_leader.and_then(|id| {
        let node = membership.get_node(&id)?;
        let is_me = id == metrics.id && metrics.state.is_leader();
        Some(Leader { id, name: node.name.clone(), url: node.url.clone(), is_me })
    });
    let leads_term = leader.as_ref().filter(|leader| leader.is_me).map(|_| term);
    // One that reaches no majority leads nobody: what it is asked, another may do.
    let leader = leader.filter(|leader| !leader.is_me || has_quorum);
    let initialised = membership.nodes().next().is_some();
    Ok(View { now: Leadership { term, initialised, leader }, leads_term, has_quorum })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::SnapshotTimes;

    fn view(term: u64, leader: Option<u64>) -> Leadership {
        let leader = leader.map(|id| Leader {
            id,
            name: format!("catalog-{id}"),
            url: format!("http://catalog-{id}:1"),
            is_me: false,
        });
        Leadership { term, initialised: true, leader }
    }

    #[test]
    fn elections_and_changes_of_leader_count_from_the_start_of_the_process() {
        let (mut seen, measures) = (Seen::default(), Measures::new(SnapshotTimes::default()));
        let mut count = |term, leader| {
            seen.count(&view(term, leader), &measures);
            (measures.elections.get(), measures.leader_changes.get())
        };
        assert_eq!(count(7, None), (0, 0), "terms from before");
        assert_eq!(count(7, Some(1)), (0, 0), "the first one known is no change");
        assert_eq!(count(7, None), (0, 0));
        assert_eq!(count(7, Some(1)), (0, 0), "the same one again");
        assert_eq!(count(10, None), (3, 0), "terms that passed unseen are elections");
        assert_eq!(count(10, Some(2)), (3, 1));
        assert_eq!(count(11, Some(2)), (4, 2), "elected again: it had lost its leadership");
    }
}
