//! Who belongs to the cluster: the leader's part of changing it.
//!
//! A change is a wish that is repeated until it is true (see [`pygmy_protocol::members`]). Each
//! time [`next`] compares the wish with what Raft knows and names the one step that brings it
//! closer; [`change`] does that step. A new replica becomes a learner first, which counts for
//! nothing, and a voter when it has caught up; in that one change of the membership it takes the
//! place of the one that it replaces, so that the number of voters never changes on the way. Raft
//! does it as a joint change: both the old and the new voters have to agree.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use openraft::{ChangeMembers, Instant, async_runtime::WatchReceiver};
use pygmy_client::members::status_of;
use pygmy_protocol::{
    Code, Problem,
    http::{Fatal, Shutdown},
    members::{Candidate, MemberChange, MemberProgress},
    planted,
    registration::MemberStatus,
};

use crate::{raft::Member, replica::Shared, room};

/// Longest wait for a majority to take one change.
const STEP_LIMIT: Duration = Duration::from_secs(5);
/// Between two looks for a change that was not ended.
const SETTLE_AGAIN: Duration = Duration::from_millis(500);
/// Between two looks at who has answered.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// A learner that lacks so many log entries or fewer has caught up: the next round of replication
/// brings them.
const NEARLY_ALL: u64 = 100;

/// Does one step towards `wish`, as the leader.
pub(crate) async fn change(
    shared: &Shared,
    wish: &MemberChange,
) -> Result<MemberProgress, Problem> {
    let Ok(_alone) = shared.member_changes.try_lock() else {
        return Ok(waiting("another change of the membership is under way"));
    };
    if matches!(wish, MemberChange::Spare { .. }) && shared.gate.progress().leads.is_none() {
        // Before an entry of its own is committed, a leader does not know of all that is.
        return Ok(waiting("the leader has just been elected"));
    }
    let mut known = Known::fresh(shared).await;
    known.ask_for_applied(shared, wish).await;
    let step = next(&known, wish)?;
    if let Step::Done(detail) = step {
        return Ok(MemberProgress { done: true, detail });
    }
    let detail = step.to_string();
    if !matches!(step, Step::Wait(_)) {
        tracing::info!(step = detail, "changing the membership");
    }
    match shared.env.timeout(STEP_LIMIT, take(shared, step)).await {
        Ok(Ok(())) => Ok(waiting(&detail)),
        Ok(Err(why)) => Err(Problem::unavailable(format!("not done yet: {why}"))),
        Err(_) => Err(Problem::outcome_unknown("no majority has taken the change yet")),
    }
}

fn waiting(detail: &str) -> MemberProgress {
    MemberProgress { done: false, detail: detail.to_owned() }
}

/// As the leader ends changes that another one has begun, or that nobody waits for any more: in
/// between, both the old and the new voters have to agree to everything.
pub(crate) async fn settle(shared: Arc<Shared>, mut shutdown: Shutdown) -> Result<(), Fatal> {
    loop {
        tokio::select! {
            biased;
            () = shutdown.stopped() => return Ok(()),
            () = shared.env.sleep(SETTLE_AGAIN) => {}
        }
        let Ok(_alone) = shared.member_changes.try_lock() else { continue };
        let known = Known::of(&shared, shared.lease);
        if !known.leads || !known.is_joint || planted!(InterruptedChangeStays) {
            continue;
        }
        tracing::info!("ending a change of the membership that was begun before");
        let settled = shared.env.timeout(STEP_LIMIT, take(&shared, Step::Settle)).await;
        if let Ok(Err(why)) = settled {
            tracing::warn!(why, "the change of the membership is not ended yet");
        }
    }
}

/// The replicas that this one knows, for its status.
pub(crate) fn statuses(shared: &Shared) -> Vec<MemberStatus> {
    let known = Known::of(shared, shared.lease);
    let status = |(id, member): (&u64, &Member)| MemberStatus {
        id: *id,
        name: member.name.clone(),
        url: member.url.clone(),
        voter: known.voters.contains(id),
        answers: known.answering.contains(id),
    };
    known.members.iter().map(status).collect()
}

/// Whether this replica counts for a majority.
pub(crate) fn is_voter(shared: &Shared) -> bool {
    let metrics = shared.raft.metrics();
    let metrics = metrics.borrow_watched();
    metrics.membership_config.voter_ids().any(|id| id == shared.id)
}

/// What Raft knows of the members.
#[derive(Debug, Default, Clone)]
struct Known {
    me: u64,
    leads: bool,
    members: BTreeMap<u64, Member>,
    voters: BTreeSet<u64>,
    /// A change has been begun and not ended.
    is_joint: bool,
    /// Those that have answered a heartbeat lately, this replica included.
    answering: BTreeSet<u64>,
    /// The last entry of the log, the last one that is committed for sure, and how far each of the
    /// others has it.
    last: u64,
    committed: u64,
    matched: BTreeMap<u64, u64>,
    /// How far those whom the change makes voters, or the leader, have applied it.
    applied: BTreeMap<u64, u64>,
}

impl Known {
    /// What is known when everybody has had the time of a lease to answer from now on: who has just
    /// died must not be counted on.
    async fn fresh(shared: &Shared) -> Known {
        let env = &shared.env;
        let begun = env.now();
        loop {
            let since = env.now().saturating_since(begun);
            let known = Known::of(shared, since);
            let all_answer = known.members.keys().all(|id| known.answering.contains(id));
            if all_answer || !known.leads || since >= shared.lease {
                return known;
            }
            env.sleep(LOOK_AGAIN).await;
        }
    }

    /// Asks who is to count, or to lead, how far it has applied its log: until it has, nobody could buy
    /// or read anything of a leader.
    async fn ask_for_applied(&mut self, shared: &Shared, wish: &MemberChange) {
        let concerned: Vec<u64> = match wish {
            MemberChange::Join(new) | MemberChange::Add(new) => vec![new.id],
            MemberChange::Replace { new, .. } => vec![new.id],
            MemberChange::Lead { name } => self.named(name).into_iter().collect(),
            MemberChange::Remove { .. } | MemberChange::Spare { .. } => Vec::new(),
        };
        for id in concerned.into_iter().filter(|id| *id != self.me) {
            let Some(Member { url, .. }) = self.members.get(&id) else { continue };
            match status_of(&shared.env, &shared.server.secret, url).await {
                Ok(status) if status.id == id => {
                    self.applied.insert(id, status.applied_index);
                }
                _ => {
                    self.answering.remove(&id);
                }
            }
        }
    }

    /// What is known now; those answer that have answered a heartbeat which was sent within the
    /// last `lately`.
    fn of(shared: &Shared, lately: Duration) -> Known {
        let metrics = shared.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let leads = metrics.state.is_leader();
        let mut known = Known {
            me: shared.id,
            leads,
            members: membership.nodes().map(|(id, member)| (*id, member.clone())).collect(),
            voters: membership.voter_ids().collect(),
            is_joint: membership.get_joint_config().len() > 1,
            last: metrics.last_log_index.unwrap_or(0),
            committed: metrics.last_applied.map_or(0, |id| id.index),
            ..Known::default()
        };
        if !leads {
            return known;
        }
        known.answering.insert(shared.id);
        for (id, at) in metrics.heartbeat.iter().flatten() {
            if at.as_ref().is_some_and(|at| at.elapsed() <= lately) {
                known.answering.insert(*id);
            }
        }
        for (id, matched) in metrics.replication.iter().flatten() {
            known.matched.insert(*id, matched.as_ref().map_or(0, |matched| matched.index));
        }
        known
    }

    /// Ids of the members of that name.
    fn named(&self, name: &str) -> BTreeSet<u64> {
        self.members.iter().filter(|(_, m)| m.name == name).map(|(id, _)| *id).collect()
    }

    fn name(&self, id: u64) -> &str {
        self.members.get(&id).map_or("?", |member| &member.name)
    }

    /// Refuses voters of whom no majority answers.
    fn check_majority_of(&self, voters: &BTreeSet<u64>) -> Result<(), Problem> {
        let answering = voters.intersection(&self.answering).count();
        if 2 * answering > voters.len() {
            return Ok(());
        }
        Err(refused(format!(
            "the cluster would have {} voters of which {answering} answer: no majority; bring the \
             others back first",
            voters.len()
        )))
    }

    /// How far another replica is behind; `None` once it has nearly all, and has applied it, if it was
    /// asked for that.
    fn behind(&self, id: u64) -> Option<u64> {
        let matched = self.matched.get(&id).copied().unwrap_or(0);
        let applied = self.applied.get(&id).copied().unwrap_or(u64::MAX);
        let behind = self.last.saturating_sub(matched.min(applied));
        (behind > NEARLY_ALL || !self.answering.contains(&id)).then_some(behind)
    }

    /// The voter that has most of the log, of those that answer and are not to leave.
    fn successor(&self, leaving: &BTreeSet<u64>) -> Option<u64> {
        let fit =
            |id: &&u64| **id != self.me && self.behind(**id).is_none() && !leaving.contains(id);
        self.voters.iter().filter(fit).max_by_key(|id| self.matched.get(id)).copied()
    }
}

/// One step towards a change.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Done(String),
    Wait(String),
    /// End a change that another leader has begun.
    Settle,
    /// Have it catch up.
    Learn(Candidate),
    /// In one change of the membership.
    Swap {
        joins: Option<(u64, String)>,
        leaves: BTreeMap<u64, Leaves>,
    },
    /// Make it the leader.
    HandOver(u64, String),
}

/// How a member goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaves {
    Voter,
    Learner,
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Step::Done(detail) | Step::Wait(detail) => f.write_str(detail),
            Step::Settle => f.write_str("ending a change that was begun before"),
            Step::Learn(new) => write!(f, "{} begins to catch up, as {}", new.name, new.id),
            Step::Swap { joins: Some((_, name)), leaves } if leaves.is_empty() => {
                write!(f, "{name} becomes a voter")
            }
            Step::Swap { joins: Some((_, name)), .. } => {
                write!(f, "{name} becomes a voter, in the place of another")
            }
            Step::Swap { joins: None, .. } => f.write_str("a replica leaves"),
            Step::HandOver(_, name) => write!(f, "handing the leadership over to {name}"),
        }
    }
}

/// The next step towards `wish`.
fn next(known: &Known, wish: &MemberChange) -> Result<Step, Problem> {
    if !known.leads {
        return Err(Problem::unavailable("this replica does not lead"));
    }
    if known.is_joint {
        return Ok(Step::Settle);
    }
    match wish {
        MemberChange::Join(new) => {
            let mut old = known.named(&new.name);
            if !old.remove(&new.id) && old.is_empty() {
                return Err(refused(format!(
                    "no replica named {} belongs to the cluster; a new one is added with `pygmy \
                     admin add-replica`",
                    new.name
                )));
            }
            let takes_a_place = old.iter().any(|id| known.voters.contains(id));
            if !takes_a_place && !known.voters.contains(&new.id) {
                // It takes nobody's place by itself: whoever makes it one more, or has it replace
                // another, does that in one step.
                return Ok(Step::Wait(format!(
                    "{} waits for the command that adds it to go on",
                    new.name
                )));
            }
            if old.iter().any(|id| known.answering.contains(id)) {
                return Err(refused(format!(
                    "{} belongs to the cluster already and answers, under another identity: two \
                     servers have the same name",
                    new.name
                )));
            }
            admit(known, new, &old)
        }
        MemberChange::Add(new) => match known.named(&new.name).into_iter().find(|id| *id != new.id)
        {
            Some(_) => {
                Err(refused(format!("a replica named {} belongs to the cluster already", new.name)))
            }
            None => admit(known, new, &BTreeSet::new()),
        },
        MemberChange::Replace { old, new } => {
            let leaving = known.named(old);
            let namesake = |id: &u64| *id != new.id && !leaving.contains(id);
            if known.named(&new.name).iter().any(namesake) {
                return Err(refused(format!(
                    "a replica named {} belongs to the cluster already; one whose disk was lost takes \
                     its place by itself",
                    new.name
                )));
            }
            let stays = |id: &u64| *id != new.id && known.voters.contains(id);
            if known.voters.contains(&new.id) && leaving.iter().any(stays) {
                return Err(refused(format!(
                    "{} is a voter already, so it takes nobody's place; `pygmy admin remove-replica` \
                     takes {old} out",
                    new.name
                )));
            }
            if leaving.is_empty() && !known.voters.contains(&new.id) {
                return Err(refused(format!("no replica named {old} belongs to the cluster")));
            }
            admit(known, new, &leaving)
        }
        MemberChange::Remove { name } => remove(known, name),
        MemberChange::Spare { name } => Ok(spare(known, name)),
        MemberChange::Lead { name } => lead(known, name),
    }
}

fn refused(detail: String) -> Problem {
    Problem::new(Code::MembershipRefused, detail)
}

/// Makes `new` a voter, in the place of `leaving`.
fn admit(known: &Known, new: &Candidate, leaving: &BTreeSet<u64>) -> Result<Step, Problem> {
    let leaving: BTreeSet<u64> = leaving.iter().copied().filter(|id| *id != new.id).collect();
    if known.voters.contains(&new.id) && leaving.is_empty() {
        return Ok(Step::Done(format!("{} is a voter", new.name)));
    }
    if known.members.get(&new.id).is_none_or(|member| member.url != new.url) {
        return Ok(Step::Learn(new.clone()));
    }
    if !known.voters.contains(&new.id)
        && let Some(behind) = known.behind(new.id)
    {
        return Ok(Step::Wait(match behind {
            0 => format!("waiting until {} answers", new.name),
            behind => format!("{} catches up: {behind} log entries to go", new.name),
        }));
    }
    let mut voters: BTreeSet<u64> = known.voters.difference(&leaving).copied().collect();
    voters.insert(new.id);
    known.check_majority_of(&voters)?;
    if leaving.contains(&known.me) {
        return hand_over(known, &leaving);
    }
    let joins = (!known.voters.contains(&new.id)).then(|| (new.id, new.name.clone()));
    Ok(Step::Swap { joins, leaves: how(known, &leaving) })
}

fn remove(known: &Known, name: &str) -> Result<Step, Problem> {
    let leaving = known.named(name);
    if leaving.is_empty() {
        return Ok(Step::Done(format!("no replica named {name} belongs to the cluster")));
    }
    known.check_majority_of(&known.voters.difference(&leaving).copied().collect())?;
    if leaving.contains(&known.me) {
        return hand_over(known, &leaving);
    }
    Ok(Step::Swap { joins: None, leaves: how(known, &leaving) })
}

fn lead(known: &Known, name: &str) -> Result<Step, Problem> {
    let voter = known.named(name).into_iter().find(|id| known.voters.contains(id));
    match voter {
        None => Err(refused(format!("no voter of the cluster is named {name}"))),
        Some(id) if id == known.me => Ok(Step::Done(format!("{name} leads"))),
        Some(id) if known.answering.contains(&id) => match known.behind(id) {
            // Nobody would vote for it.
            Some(behind) => Ok(Step::Wait(format!("{name} lacks {behind} log entries"))),
            None => Ok(Step::HandOver(id, name.to_owned())),
        },
        Some(_) => Err(refused(format!("{name} does not answer, so it cannot lead"))),
    }
}

/// Whether the voters that are not named so are a majority that has all that was ever acknowledged.
fn spare(known: &Known, name: &str) -> Step {
    let named = known.named(name);
    let has_all = |id: &&u64| {
        let matched = known.matched.get(id).copied().unwrap_or(0);
        **id == known.me || known.answering.contains(id) && matched >= known.committed
    };
    let others = known.voters.difference(&named).filter(has_all).count();
    if !named.contains(&known.me) && 2 * others > known.voters.len() {
        return Step::Done(format!("{others} of {} voters have everything", known.voters.len()));
    }
    Step::Wait(format!("only {others} of {} voters have everything", known.voters.len()))
}

fn hand_over(known: &Known, leaving: &BTreeSet<u64>) -> Result<Step, Problem> {
    match known.successor(leaving) {
        Some(id) => Ok(Step::HandOver(id, known.name(id).to_owned())),
        None => Err(Problem::unavailable("nobody else answers who could lead")),
    }
}

fn how(known: &Known, leaving: &BTreeSet<u64>) -> BTreeMap<u64, Leaves> {
    let how = |id| if known.voters.contains(id) { Leaves::Voter } else { Leaves::Learner };
    leaving.iter().map(|id| (*id, how(id))).collect()
}

async fn take(shared: &Shared, step: Step) -> Result<(), String> {
    match step {
        Step::Done(_) | Step::Wait(_) => Ok(()),
        Step::HandOver(id, name) => {
            // It would wait for room before it takes what it lacks, and nobody would lead meanwhile.
            if room::is_short_at(shared, id).await {
                return Err(format!("the disk of {name} is nearly full"));
            }
            shared.raft.trigger().transfer_leader(id).await.map_err(|e| e.to_string())
        }
        Step::Learn(Candidate { id, name, url }) => {
            let learner = BTreeMap::from([(id, Member { name, url })]);
            // Also one that has moved: whoever answers there proves first that it has this id.
            change_members(shared, ChangeMembers::SetNodes(learner)).await
        }
        // The voters as they are, as one set.
        Step::Settle => change_members(shared, ChangeMembers::AddVoterIds(BTreeSet::new())).await,
        Step::Swap { joins, leaves } => {
            let of = |how| -> BTreeSet<u64> {
                leaves.iter().filter(|(_, leaves)| **leaves == how).map(|(id, _)| *id).collect()
            };
            let mut changes = Vec::new();
            if let Some((id, _)) = joins {
                changes.push(ChangeMembers::AddVoterIds([id].into()));
            }
            changes.push(ChangeMembers::RemoveVoters(of(Leaves::Voter)));
            changes.push(ChangeMembers::RemoveNodes(of(Leaves::Learner)));
            change_members(shared, ChangeMembers::Batch(changes)).await
        }
    }
}

async fn change_members(
    shared: &Shared,
    changes: ChangeMembers<u64, Member>,
) -> Result<(), String> {
    // Who was a voter and is none any more is no member any more.
    let changed = shared.raft.change_membership(changes, false).await;
    changed.map(drop).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The replicas one, two and three; one leads, all answer and have everything.
    fn three() -> Known {
        let names = [(1, "one"), (2, "two"), (3, "three")];
        let member = |name: &str| Member { name: name.to_owned(), url: String::new() };
        Known {
            me: 1,
            leads: true,
            members: names.iter().map(|(id, name)| (*id, member(name))).collect(),
            voters: [1, 2, 3].into(),
            is_joint: false,
            answering: [1, 2, 3].into(),
            last: 1000,
            committed: 1000,
            matched: [(2, 1000), (3, 990)].into(),
            applied: BTreeMap::new(),
        }
    }

    fn new(id: u64, name: &str) -> Candidate {
        Candidate { id, name: name.to_owned(), url: String::new() }
    }

    fn learner(mut known: Known, id: u64, name: &str, matched: u64) -> Known {
        known.members.insert(id, Member { name: name.to_owned(), url: String::new() });
        known.matched.insert(id, matched);
        known.answering.insert(id);
        known
    }

    fn without(mut known: Known, id: u64) -> Known {
        known.answering.remove(&id);
        known
    }

    fn is_refused(step: Result<Step, Problem>, why: &str) {
        let problem = step.unwrap_err();
        assert_eq!(problem.code, Code::MembershipRefused);
        assert!(problem.detail.contains(why), "{}", problem.detail);
    }

    #[test]
    fn a_lost_replica_is_replaced_once_its_successor_has_caught_up() {
        let wish = MemberChange::Join(new(9, "three"));
        is_refused(next(&three(), &wish), "and answers, under another identity");
        let known = without(three(), 3);
        assert_eq!(next(&known, &wish), Ok(Step::Learn(new(9, "three"))));
        let known = learner(known, 9, "three", 0);
        let Ok(Step::Wait(text)) = next(&known, &wish) else { panic!("it is far behind") };
        assert_eq!(text, "three catches up: 1000 log entries to go");
        let mut known = learner(known, 9, "three", 950);
        let leaves = BTreeMap::from([(3, Leaves::Voter)]);
        let swap = Step::Swap { joins: Some((9, "three".to_owned())), leaves };
        assert_eq!(next(&known, &wish), Ok(swap));
        known.members.remove(&3);
        known.voters = [1, 2, 9].into();
        assert_eq!(next(&known, &wish), Ok(Step::Done("three is a voter".to_owned())));
    }

    #[test]
    fn a_learner_that_was_lost_as_well_goes_with_the_voter() {
        let known = learner(learner(without(three(), 3), 8, "three", 0), 9, "three", 1000);
        let known = without(known, 8);
        let leaves = BTreeMap::from([(3, Leaves::Voter), (8, Leaves::Learner)]);
        let swap = Step::Swap { joins: Some((9, "three".to_owned())), leaves };
        assert_eq!(next(&known, &MemberChange::Join(new(9, "three"))), Ok(swap));
    }

    #[test]
    fn who_has_no_place_joins_only_when_it_is_added() {
        is_refused(next(&three(), &MemberChange::Join(new(4, "four"))), "add-replica");
        let add = MemberChange::Add(new(4, "four"));
        assert_eq!(next(&three(), &add), Ok(Step::Learn(new(4, "four"))));
        let swap = Step::Swap { joins: Some((4, "four".to_owned())), leaves: BTreeMap::new() };
        assert_eq!(next(&learner(three(), 4, "four", 1000), &add), Ok(swap));
        is_refused(next(&three(), &MemberChange::Add(new(4, "two"))), "belongs to the cluster");
    }

    #[test]
    fn nobody_leaves_whom_the_others_cannot_do_without() {
        let remove = |name: &str| MemberChange::Remove { name: name.to_owned() };
        is_refused(next(&without(three(), 3), &remove("two")), "no majority");
        let leaves = BTreeMap::from([(3, Leaves::Voter)]);
        let swap = Step::Swap { joins: None, leaves };
        assert_eq!(next(&without(three(), 3), &remove("three")), Ok(swap));
        assert!(matches!(next(&three(), &remove("four")), Ok(Step::Done(_))));
    }

    #[test]
    fn nobody_is_replaced_by_a_voter_or_a_namesake() {
        let replace = |old: &str, new| MemberChange::Replace { old: old.to_owned(), new };
        is_refused(next(&three(), &replace("two", new(1, "one"))), "is a voter already");
        assert!(matches!(next(&three(), &replace("nine", new(2, "two"))), Ok(Step::Done(_))));
        is_refused(
            next(&three(), &replace("one", new(9, "two"))),
            "belongs to the cluster already",
        );
    }

    #[test]
    fn a_directory_is_spared_when_a_majority_of_others_lacks_nothing() {
        let spare = |known: &Known| {
            matches!(next(known, &MemberChange::Spare { name: "three".into() }), Ok(Step::Done(_)))
        };
        assert!(spare(&three()) && spare(&without(three(), 3)));
        assert!(!spare(&without(three(), 2)), "one of three");
        let mut behind = three();
        behind.matched.insert(2, 999);
        assert!(!spare(&behind), "it answers, and lacks what the third may have");
        assert!(!spare(&Known { me: 3, ..three() }), "the leader itself");
    }

    #[test]
    fn who_has_not_applied_its_log_neither_counts_nor_leads() {
        let wish = MemberChange::Add(new(4, "four"));
        let mut known = learner(three(), 4, "four", 1000);
        known.applied.insert(4, 100);
        assert!(matches!(next(&known, &wish), Ok(Step::Wait(why)) if why.contains("900")));
        known.applied.insert(4, 950);
        assert!(matches!(next(&known, &wish), Ok(Step::Swap { .. })));
        let lead = MemberChange::Lead { name: "two".to_owned() };
        let mut known = three();
        known.applied.insert(2, 100);
        assert!(matches!(next(&known, &lead), Ok(Step::Wait(_))));
        known.applied.insert(2, 1000);
        assert_eq!(next(&known, &lead), Ok(Step::HandOver(2, "two".to_owned())));
    }

    #[test]
    fn who_takes_nobodys_place_does_not_become_a_voter_by_its_own_wish() {
        // An operator has it replace another one, in a single change.
        let known = learner(three(), 4, "four", 1000);
        let own = next(&known, &MemberChange::Join(new(4, "four")));
        assert!(matches!(own, Ok(Step::Wait(_))), "{own:?}");
        // Nor if it was a learner before, and its disk was lost.
        let again = next(&without(known.clone(), 4), &MemberChange::Join(new(5, "four")));
        assert!(matches!(again, Ok(Step::Wait(_))), "{again:?}");
        let wish = MemberChange::Replace { old: "two".to_owned(), new: new(4, "four") };
        assert!(
            matches!(next(&known, &wish), Ok(Step::Swap { joins: Some(_), leaves }) if leaves.len() == 1)
        );
    }

    #[test]
    fn a_learner_that_has_moved_is_looked_for_where_it_is() {
        let known = learner(without(three(), 3), 9, "three", 0);
        let moved = Candidate { url: "http://elsewhere".into(), ..new(9, "three") };
        let wish = MemberChange::Join(moved.clone());
        assert_eq!(next(&known, &wish), Ok(Step::Learn(moved)));
    }

    #[test]
    fn a_leader_that_leaves_makes_the_best_of_the_others_the_leader_first() {
        let remove = MemberChange::Remove { name: "one".to_owned() };
        assert_eq!(next(&three(), &remove), Ok(Step::HandOver(2, "two".to_owned())));
        let replace = MemberChange::Replace { old: "one".to_owned(), new: new(4, "four") };
        assert_eq!(next(&three(), &replace), Ok(Step::Learn(new(4, "four"))));
        let known = learner(three(), 4, "four", 1000);
        assert_eq!(next(&known, &replace), Ok(Step::HandOver(2, "two".to_owned())));
    }

    #[test]
    fn who_does_not_answer_is_not_made_the_leader() {
        let lead = MemberChange::Lead { name: "three".to_owned() };
        assert_eq!(next(&three(), &lead), Ok(Step::HandOver(3, "three".to_owned())));
        is_refused(next(&without(three(), 3), &lead), "does not answer");
        let mut behind = three();
        behind.matched.insert(3, 100);
        assert!(matches!(next(&behind, &lead), Ok(Step::Wait(_))), "nobody would vote for it");
    }

    #[test]
    fn a_change_that_another_leader_began_is_ended_first_and_only_by_the_leader() {
        let remove = MemberChange::Remove { name: "three".to_owned() };
        assert_eq!(next(&Known { is_joint: true, ..three() }, &remove), Ok(Step::Settle));
        let problem = next(&Known { leads: false, ..three() }, &remove).unwrap_err();
        assert_eq!(problem.code, Code::Unavailable);
    }
}
