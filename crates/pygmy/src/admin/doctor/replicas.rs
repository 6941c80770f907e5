//! Of the replicas: who belongs to the cluster, and is what they store right?

use pygmy_protocol::{
    health::ReplicaHealth,
    registration::{CatalogStatus, MemberStatus},
};

use super::{
    super::ask::answered,
    Check, Finding,
    facts::{Facts, Verified},
};
use crate::config::Part;

/// Voters of which one may be lost.
const VOTERS_MIN: usize = 3;
const MIB: u64 = 1024 * 1024;
/// A disk with less than so many times what a replica needs to go on will be full before long.
const ROOM_WARNING_FACTOR: u64 = 4;

/// The cluster is made of the configured replicas, each on the disk that the others know it by.
pub(super) fn members(facts: &Facts) -> Check {
    let Some(leader) = facts.leader() else {
        let finding = Finding::wrong(
            "no replica leads: nothing can be sold",
            "bring a majority of the replicas back",
        );
        return Check::new("members", "", vec![finding]);
    };
    let mut findings: Vec<_> = leader.members.iter().filter_map(|it| member(facts, it)).collect();
    findings.extend(facts.replicas.iter().filter_map(|(part, answer)| {
        let status = answer.as_ref().ok()?;
        identity(facts, &part.name, leader, status)
    }));
    let voters = leader.members.iter().filter(|member| member.voter).count();
    if voters < VOTERS_MIN {
        findings.push(Finding::warning(
            format!("only {voters} replicas count for a majority: the next loss stops the store"),
            "add replicas with `pygmy admin add-replica`, until there are three or five",
        ));
    }
    let summary =
        format!("{} leads {voters} voters, each with the disk it is known by", leader.name);
    Check::new("members", summary, findings)
}

/// What is to be said of a member that the configuration has, or should have.
fn member(facts: &Facts, member: &MemberStatus) -> Option<Finding> {
    let name = &member.name;
    if facts.process_of(name).is_none() {
        return Some(Finding::warning(
            format!("{name} at {} belongs to the cluster and not to the configuration", member.url),
            format!(
                "add it to {}, on all machines, or take it out with `pygmy admin remove-replica {name}`",
                facts.config
            ),
        ));
    }
    (!member.voter).then(|| {
        Finding::warning(
            format!("{name} is catching up, and counts for no majority yet"),
            "wait; if it stays so, its log says why",
        )
    })
}

/// What is to be said of a replica that answers.
fn identity(
    facts: &Facts,
    name: &str,
    leader: &CatalogStatus,
    status: &CatalogStatus,
) -> Option<Finding> {
    let Some(known) = leader.members.iter().find(|member| member.name == status.name) else {
        return Some(Finding::wrong(
            format!("{name} runs and does not belong to the cluster"),
            format!("`pygmy admin add-replica {}`, or stop it", server(facts, name)),
        ));
    };
    (known.id != status.id).then(|| {
        Finding::wrong(
            format!("{name} has another disk (id {}) than the cluster knows (id {})", status.id, known.id),
            "give it its own data directory back; if that is lost, wait: it takes its place by itself \
             while a majority answers, and its log says what it waits for",
        )
    })
}

/// Replicas have the same state at the same index.
pub(super) fn state(facts: &Facts) -> Check {
    let compared = facts.hashes.compared();
    if facts.verified.len() < 2 {
        return Check::unknown("state", "fewer than two replicas answer: none to compare");
    }
    let strangers = facts.hashes.strangers();
    let mut findings: Vec<_> = strangers
        .iter()
        .map(|(name, index)| {
            Finding::wrong(
                format!("{name} has another state than the others at log index {index}"),
                rebuild(facts, name),
            )
        })
        .collect();
    let missed = facts.verified.iter().map(|(part, _)| &part.name);
    findings.extend(missed.filter(|name| !compared.contains(*name)).map(|name| {
        Finding::warning(
            format!("the state of {name} could not be compared: no other replica was at its index"),
            "run this again; if it stays so, the replica does not keep up: see its disk and processors",
        )
    }));
    let index = facts.hashes.last_shared().unwrap_or(0);
    let summary = format!("{} replicas have the same state at log index {index}", compared.len());
    Check::new("state", summary, findings)
}

/// Stock, orders and keys add up, row by row.
pub(super) fn books(facts: &Facts) -> Check {
    if facts.verified.is_empty() {
        return Check::unknown("books", "no replica answers");
    }
    let finding = |(part, verified): &(_, _)| {
        let Part { name, .. } = part;
        match verified {
            Ok(Verified::AddsUp) => None,
            Ok(Verified::Damaged(why)) => Some(Finding::wrong(
                format!("{name}: {why}"),
                format!(
                    "it ends; start {} again: it begins anew, with what the others have",
                    server(facts, name)
                ),
            )),
            Ok(Verified::NotYet(why)) => Some(Finding::warning(
                format!("{name} is not checked: {why}"),
                "run this again, when less is going on",
            )),
            Err(why) => Some(Finding::wrong(
                format!("{name} did not answer to the end of the check: {why}"),
                format!("its log says why; if it has ended, start {} again", server(facts, name)),
            )),
        }
    };
    let findings = facts.verified.iter().filter_map(finding).collect();
    let checked = facts.verified.len();
    let summary = format!("on {checked} replicas stock, orders and keys add up, row by row");
    Check::new("books", summary, findings)
}

/// The name of the server that a replica is in.
fn server<'a>(facts: &'a Facts, replica: &'a str) -> &'a str {
    facts.process_of(replica).map_or(replica, |process| &process.name)
}

/// How a replica is put right that has something else than the others, and does not see that.
fn rebuild(facts: &Facts, replica: &str) -> String {
    match facts.process_of(replica) {
        Some(process) => format!(
            "while the others are fine: stop {}, move its directory {} away, and start it again; it \
             gets everything from them",
            process.name, process.dir
        ),
        None => format!("while the others are fine: `pygmy admin remove-replica {replica}`"),
    }
}

/// There is room where the replicas keep their data.
pub(super) fn disks(facts: &Facts) -> Check {
    if facts.health.is_empty() {
        return Check::unknown("disks", "no replica answers");
    }
    let findings = facts.health.iter().filter_map(|(part, health)| match health {
        Ok(health) => room(facts, &part.name, health),
        Err(why) => Some(Finding::warning(
            format!("{} does not say how much room it has: {why}", part.name),
            "look at the disk yourself; a server of an older version does not know this question",
        )),
    });
    let least = answered(&facts.health).map(|health| health.free_bytes).min().unwrap_or(0);
    let least_gib = least as f64 / 1024.0 / MIB as f64;
    Check::new(
        "disks",
        format!("every replica has {least_gib:.1} GiB left or more"),
        findings.collect(),
    )
}

/// What is to be said of the room that a replica has.
fn room(facts: &Facts, name: &str, health: &ReplicaHealth) -> Option<Finding> {
    let ReplicaHealth { free_bytes, min_free_bytes, .. } = *health;
    let dir = facts.process_of(name).map_or("its data directory", |process| &process.dir);
    let todo = format!("make room on the disk of {dir}, or give it a larger one");
    let left = free_bytes / MIB;
    if free_bytes < min_free_bytes {
        let what = format!("{name} has {left} MiB left where its data is, and takes no changes");
        return Some(Finding::wrong(what, todo));
    }
    (free_bytes < ROOM_WARNING_FACTOR * min_free_bytes).then(|| {
        let min = min_free_bytes / MIB;
        Finding::warning(
            format!(
                "{name} has {left} MiB left where its data is; below {min} MiB it takes no changes"
            ),
            todo,
        )
    })
}
