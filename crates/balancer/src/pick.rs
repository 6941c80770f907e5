//! Which server gets a request.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::server::Server;

/// How one of several equal servers is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// In turns.
    RoundRobin,
    /// The one with the fewest requests in flight from this balancer; in turns among those that
    /// have equally few.
    LeastLoaded,
}

/// A server that may get a request, as it is at this moment.
#[derive(Clone)]
pub(crate) struct Candidate {
    pub(crate) server: Arc<Server>,
    /// In this process.
    pub(crate) local: bool,
    /// Leads the catalog.
    pub(crate) leads: bool,
    /// Last in line: it left requests unanswered.
    pub(crate) set_aside: bool,
    pub(crate) in_flight: u64,
}

/// Picks from `candidates`: one in this process (it costs no socket, and a follower passes a
/// write on in a batch with others), then for a write the leader (it saves that step), then any,
/// and those that are set aside only if nothing else is left.
///
/// `turn` counts the requests of the role. All attempts of one request have the same.
pub(crate) fn pick(
    policy: Policy,
    turn: usize,
    is_write: bool,
    candidates: &[Candidate],
) -> Option<&Candidate> {
    let groups: [&dyn Fn(&Candidate) -> bool; 4] = [
        &|c| c.local && !c.set_aside,
        &|c| c.leads && !c.set_aside && is_write,
        &|c| !c.set_aside,
        &|_| true,
    ];
    groups.iter().find_map(|belongs| policy.choose(turn, candidates, belongs))
}

impl Policy {
    fn choose(
        self,
        turn: usize,
        candidates: &[Candidate],
        belongs: impl Fn(&Candidate) -> bool,
    ) -> Option<&Candidate> {
        let group = || candidates.iter().filter(|candidate| belongs(candidate));
        let size = group().count();
        let mut in_turn = (0..size).map(|place| (turn % size + place) % size);
        let place = match self {
            Policy::RoundRobin => in_turn.next(),
            // The first of several minima.
            Policy::LeastLoaded => {
                in_turn.min_by_key(|place| group().nth(*place).map(|c| c.in_flight))
            }
        };
        group().nth(place?)
    }
}

#[cfg(test)]
mod tests {
    use pygmy_protocol::registration::Role;

    use super::*;
    use crate::{
        registry::Registry,
        settings::Settings,
        testing::{FakeClock, registration},
    };

    fn candidates(names: &[&str]) -> Vec<Candidate> {
        let (env, _) = FakeClock::environment();
        let registry = Registry::new(&env, &Settings::default(), Vec::new());
        for name in names {
            registry.register(&registration(name, Role::Catalog)).unwrap();
        }
        registry.candidates(Role::Catalog)
    }

    fn picks(policy: Policy, is_write: bool, candidates: &[Candidate]) -> Vec<&str> {
        let name = |turn| pick(policy, turn, is_write, candidates).unwrap().server.name.as_str();
        (0..4).map(name).collect()
    }

    #[test]
    fn nobody_is_picked_from_nobody() {
        for policy in [Policy::RoundRobin, Policy::LeastLoaded] {
            assert!(pick(policy, 1, true, &[]).is_none());
        }
    }

    #[test]
    fn round_robin_takes_turns() {
        let candidates = candidates(&["a", "b", "c"]);
        assert_eq!(picks(Policy::RoundRobin, false, &candidates), ["a", "b", "c", "a"]);
    }

    #[test]
    fn least_loaded_takes_the_least_loaded_and_turns_among_equals() {
        let mut candidates = candidates(&["a", "b", "c"]);
        assert_eq!(picks(Policy::LeastLoaded, false, &candidates), ["a", "b", "c", "a"]);
        candidates[0].in_flight = 2;
        assert_eq!(picks(Policy::LeastLoaded, false, &candidates), ["b", "b", "c", "b"]);
        candidates[1].in_flight = 1;
        assert_eq!(picks(Policy::LeastLoaded, false, &candidates), ["c"; 4]);
    }

    #[test]
    fn writes_go_to_the_leader_and_reads_to_all() {
        let mut candidates = candidates(&["a", "b"]);
        candidates[1].leads = true;
        assert_eq!(picks(Policy::RoundRobin, true, &candidates), ["b"; 4]);
        assert_eq!(picks(Policy::RoundRobin, false, &candidates), ["a", "b", "a", "b"]);
    }

    #[test]
    fn the_server_in_this_process_comes_first_even_before_the_leader() {
        let mut candidates = candidates(&["a", "b", "c"]);
        candidates[1].leads = true;
        candidates[2].local = true;
        for is_write in [true, false] {
            assert_eq!(picks(Policy::RoundRobin, is_write, &candidates), ["c"; 4]);
        }
    }

    #[test]
    fn who_is_set_aside_comes_last_but_the_last_one_is_never_ejected() {
        let mut candidates = candidates(&["a", "b"]);
        candidates[0].leads = true;
        candidates[0].set_aside = true;
        assert_eq!(picks(Policy::RoundRobin, true, &candidates), ["b"; 4]);
        candidates[1].set_aside = true;
        assert_eq!(picks(Policy::RoundRobin, true, &candidates), ["a", "b", "a", "b"]);
    }
}
