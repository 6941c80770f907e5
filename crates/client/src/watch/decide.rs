//! What to do about a process, from what is known of it and the clock alone.

use std::time::Duration;

use pygmy_protocol::{env::Instant, watched::State};

/// Looks in a row that find a process dead before it is taken for that.
pub(super) const LOOKS: u32 = 2;
/// How long a process that is being started is left alone.
pub(super) const STARTUP: Duration = Duration::from_secs(10);
/// How much longer the next watcher in line waits before it starts a dead process.
const NEXT_IN_LINE: Duration = Duration::from_secs(1);

/// What a watcher knows when it decides.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts {
    /// What the last look found, since when all looks have, and how many.
    pub(super) state: State,
    pub(super) since: Instant,
    pub(super) looks: u32,
    /// It said that it leaves, and has not been seen since.
    pub(super) left: bool,
    /// Whether there is a command for it.
    pub(super) has_command: bool,
    /// The command is running.
    pub(super) is_busy: bool,
    /// Since when it is being started, if it is: it was not seen alive since then.
    pub(super) starting_since: Option<Instant>,
    /// No further attempt before this.
    pub(super) not_before: Instant,
    /// How many of its watchers that are alive come before this one.
    pub(super) rank: u32,
    /// From how many of all processes this watcher hears, itself included.
    pub(super) heard: usize,
    pub(super) processes: usize,
    /// After how much silence a process is taken for hung.
    pub(super) after: Duration,
}

/// What another watcher of the process says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Opinion {
    pub(super) state: State,
    pub(super) since: Duration,
    pub(super) left: bool,
    pub(super) is_starting: bool,
}

/// What a command does to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// It is dead: starts it, and does nothing if it runs.
    Start,
    /// Ends what is left of it, and starts it.
    Restart,
}

impl Action {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Action::Start => "start",
            Action::Restart => "restart",
        }
    }
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    /// Nothing, and why.
    Nothing(&'static str),
    /// Ask the other watchers of the process, and decide again with what they say.
    Ask,
    Act(Action),
}

/// Decides. `opinions` are those of the other watchers that answered, once they were asked.
pub(super) fn decide(facts: &Facts, opinions: Option<&[Opinion]>, now: Instant) -> Decision {
    use Decision::{Act, Ask, Nothing};
    let action = match due(facts, now) {
        Ok(action) => action,
        Err(why) => return Nothing(why),
    };
    let Some(opinions) = opinions else { return Ask };
    if opinions.iter().any(|opinion| opinion.left) {
        return Nothing("it left in order, says another watcher");
    }
    if opinions.iter().any(|opinion| opinion.is_starting) {
        return Nothing("another watcher is starting it");
    }
    let hung = |o: &Opinion| o.state == State::Silent && o.since >= facts.after;
    if action == Action::Restart && !opinions.iter().all(hung) {
        return Nothing("another watcher hears from it, or not for as long");
    }
    Act(action)
}

/// What this watcher would do if it were alone, or why nothing.
fn due(facts: &Facts, now: Instant) -> Result<Action, &'static str> {
    let lasts = now.saturating_since(facts.since);
    let action = match facts.state {
        State::Unknown | State::Alive => return Err("nothing is wrong"),
        State::Dead if facts.looks < LOOKS => return Err("one look is not enough"),
        State::Dead => Action::Start,
        State::Silent if lasts < facts.after => return Err("it is not silent for long"),
        State::Silent => Action::Restart,
    };
    if !facts.has_command {
        return Err("there is no command for it");
    }
    if facts.left {
        return Err("it left in order");
    }
    if facts.is_busy || facts.starting_since.is_some_and(|at| now.saturating_since(at) < STARTUP) {
        return Err("it is being started");
    }
    if now < facts.not_before {
        return Err("it was lost too often");
    }
    let turn = match action {
        Action::Start => NEXT_IN_LINE * facts.rank,
        Action::Restart => facts.after * (facts.rank + 1),
    };
    if lasts < turn {
        return Err("another watcher comes first");
    }
    if action == Action::Restart && facts.heard * 2 <= facts.processes {
        return Err("this watcher may be cut off: it hears from no majority of the processes");
    }
    Ok(action)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AFTER: Duration = Duration::from_secs(5);

    fn at(ms: u64) -> Instant {
        Instant::from_origin(Duration::from_secs(100)) + Duration::from_millis(ms)
    }

    /// Of the first watcher in line, in a cluster of nine that is well otherwise.
    fn facts(state: State) -> Facts {
        Facts {
            state,
            since: at(0),
            looks: LOOKS,
            left: false,
            has_command: true,
            is_busy: false,
            starting_since: None,
            not_before: at(0),
            rank: 0,
            heard: 8,
            processes: 9,
            after: AFTER,
        }
    }

    fn opinion(state: State, since_ms: u64) -> Opinion {
        let since = Duration::from_millis(since_ms);
        Opinion { state, since, left: false, is_starting: false }
    }

    fn acts(facts: &Facts, opinions: &[Opinion], ms: u64) -> Option<Action> {
        match decide(facts, Some(opinions), at(ms)) {
            Decision::Act(action) => Some(action),
            Decision::Nothing(_) => None,
            Decision::Ask => panic!("they have been asked"),
        }
    }

    #[test]
    fn a_dead_process_is_started_after_two_looks() {
        let dead = facts(State::Dead);
        assert_eq!(decide(&dead, None, at(100)), Decision::Ask, "first ask the others");
        assert_eq!(acts(&dead, &[], 100), Some(Action::Start));
        assert_eq!(acts(&Facts { looks: 1, ..dead }, &[], 60_000), None);
        let others = [opinion(State::Alive, 900), opinion(State::Unknown, 0)];
        assert_eq!(acts(&dead, &others, 100), Some(Action::Start), "their look is a little older");
        assert_eq!(acts(&facts(State::Alive), &[], 60_000), None);
    }

    #[test]
    fn the_next_in_line_stands_in_for_a_broken_one() {
        let second = Facts { rank: 1, ..facts(State::Dead) };
        assert_eq!(acts(&second, &[], 999), None);
        assert_eq!(acts(&second, &[opinion(State::Dead, 999)], 1_000), Some(Action::Start));
        let starting = Opinion { is_starting: true, ..opinion(State::Dead, 999) };
        assert_eq!(acts(&second, &[starting], 1_000), None, "the first one is at it");
        let hung = Facts { rank: 1, ..facts(State::Silent) };
        assert_eq!(acts(&hung, &[opinion(State::Silent, 9_999)], 9_999), None);
        assert_eq!(acts(&hung, &[opinion(State::Silent, 9_999)], 10_000), Some(Action::Restart));
    }

    #[test]
    fn a_silent_process_is_restarted_when_all_its_watchers_agree() {
        let silent = facts(State::Silent);
        assert_eq!(acts(&silent, &[], 4_999), None);
        assert_eq!(acts(&silent, &[], 5_000), Some(Action::Restart), "nobody else answers");
        let agrees = opinion(State::Silent, 5_000);
        assert_eq!(acts(&silent, &[agrees, agrees], 5_000), Some(Action::Restart));
        for other in [
            opinion(State::Alive, 60_000),
            opinion(State::Silent, 4_999),
            opinion(State::Dead, 60_000),
            opinion(State::Unknown, 60_000),
        ] {
            assert_eq!(acts(&silent, &[agrees, other], 60_000), None, "{other:?}");
        }
    }

    #[test]
    fn who_is_cut_off_ends_nobody() {
        for (heard, processes, restarts) in
            [(1, 9, false), (4, 9, false), (5, 9, true), (1, 3, false), (2, 3, true), (1, 2, false)]
        {
            let facts = Facts { heard, processes, ..facts(State::Silent) };
            assert_eq!(acts(&facts, &[], 600_000).is_some(), restarts, "{heard} of {processes}");
        }
        let alone = Facts { heard: 1, ..facts(State::Dead) };
        assert_eq!(acts(&alone, &[], 100), Some(Action::Start), "starting does no harm");
    }

    #[test]
    fn one_that_starts_is_left_alone_for_a_while() {
        for state in [State::Dead, State::Silent] {
            let starting = Facts { starting_since: Some(at(0)), ..facts(state) };
            assert_eq!(acts(&starting, &[], 9_999), None);
            assert!(acts(&starting, &[], 10_000).is_some());
            let busy = Facts { is_busy: true, ..facts(state) };
            assert_eq!(acts(&busy, &[], 60_000), None);
            let too_often = Facts { not_before: at(30_000), ..facts(state) };
            assert_eq!(acts(&too_often, &[], 29_999), None);
            assert!(acts(&too_often, &[], 30_000).is_some());
        }
    }

    #[test]
    fn one_that_left_in_order_stays_away() {
        for state in [State::Dead, State::Silent] {
            let left = Facts { left: true, ..facts(state) };
            assert_eq!(acts(&left, &[], 600_000), None);
            let told = Opinion { left: true, ..opinion(state, 600_000) };
            assert_eq!(acts(&facts(state), &[told], 600_000), None, "another watcher knows");
            let watched_only = Facts { has_command: false, ..facts(state) };
            assert_eq!(acts(&watched_only, &[], 600_000), None);
        }
    }
}
