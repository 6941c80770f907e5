//! What is so, what is not, and what to do about it. Nothing here asks a server.

use std::collections::{BTreeMap, BTreeSet};

use pygmy_protocol::registration::{CatalogStatus, Health, MemberStatus, Role, ServerStatus};

use super::{
    super::{ask::answered, status::place},
    Check, Finding,
    facts::{Facts, Seen, Server, Verified},
};

/// Voters of which one may be lost.
const VOTERS_MIN: usize = 3;
const MIB: u64 = 1024 * 1024;
/// With less room than this a disk will be full before long, and then is.
const ROOM_WARNING_BYTES: u64 = 1024 * MIB;
const ROOM_WRONG_BYTES: u64 = 128 * MIB;
/// Clocks that differ by more confuse whoever reads logs of several machines. The store itself
/// compares no clocks.
const CLOCK_WARNING_MS: u64 = 1000;

/// All checks, the most basic first.
pub(super) fn all(facts: &Facts) -> Vec<Check> {
    vec![
        servers(facts),
        balancers(facts),
        members(facts),
        state(facts),
        books(facts),
        caches(facts),
        disks(facts),
        clocks(facts),
        versions(facts),
    ]
}

/// Every server answers and is ready.
fn servers(facts: &Facts) -> Check {
    let mut processes: BTreeMap<&str, Vec<&Server>> = BTreeMap::new();
    for server in &facts.servers {
        processes.entry(&server.process.name).or_default().push(server);
    }
    let findings = processes.values().flat_map(|servers| process(facts, servers)).collect();
    Check::new("servers", format!("{} processes answer and are ready", processes.len()), findings)
}

/// One finding for a process that does not answer at all, else one for each of its servers that is
/// not ready.
fn process(facts: &Facts, servers: &[&Server]) -> Vec<Finding> {
    let Some(Server { process, .. }) = servers.first() else { return Vec::new() };
    let silent = servers.iter().filter_map(|server| server.seen.as_ref().err());
    let silent: Vec<_> = silent.collect();
    if let (true, Some(why)) = (silent.len() == servers.len(), silent.first()) {
        let (name, at) = (&process.name, place(&process.url));
        return vec![Finding::wrong(
            format!("{name} does not answer at {at}: {why}"),
            format!(
                "start it: pygmy serve {} --name {name} --config {}; if it runs, look at its log and \
                 at the network",
                process.role, facts.config
            ),
        )];
    }
    servers.iter().filter_map(|server| readiness(server)).collect()
}

fn readiness(server: &Server) -> Option<Finding> {
    let name = &server.part.name;
    let seen = match &server.seen {
        Ok(seen) if seen.readyz.name != *name => {
            return Some(Finding::wrong(
                format!("{} answers where {name} should", seen.readyz.name),
                "correct the addresses in the configuration, on all machines",
            ));
        }
        Ok(seen) => seen,
        Err(why) => {
            return Some(Finding::wrong(
                format!("{name} does not answer, while others of its process do: {why}"),
                "look at its log; if it stays so, restart it",
            ));
        }
    };
    let reasons = seen.readyz.reasons.iter().map(|(part, why)| format!("{part}: {why}"));
    let reasons: Vec<_> = reasons.collect();
    (!seen.readyz.ready).then(|| {
        Finding::wrong(
            format!("{name} is not ready: {}", reasons.join("; ")),
            "wait a little, it may have started just now; else see to what it lacks, its log says more",
        )
    })
}

/// Every balancer sends requests to every server that answers.
fn balancers(facts: &Facts) -> Check {
    let answering = answered(&facts.balancers).count();
    if answering == 0 {
        return Check::unknown("balancers", "no balancer answers");
    }
    let mut ejected: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for balancer in answered(&facts.balancers) {
        for server in &facts.servers {
            let name = server.part.name.as_str();
            // One that does not answer is named already; balancers do not know one another.
            if server.tier == Role::Balancer || server.seen.is_err() {
                continue;
            }
            let known = balancer.servers.iter().find(|known| known.name == name);
            if let Some(why) = gets_nothing(known) {
                ejected.entry(name).or_default().push(format!("{}: {why}", balancer.balancer));
            }
        }
    }
    let finding = |(name, why): (&str, Vec<String>)| {
        Finding::wrong(
            format!("{name} answers, and gets nothing from {}", why.join("; from ")),
            "look at the network between them, and whether all have the same secret; heartbeats and \
             probes repeat every few seconds",
        )
    };
    let summary = format!("{answering} balancers send requests to every server that answers");
    Check::new("balancers", summary, ejected.into_iter().map(finding).collect())
}

/// Why a balancer sends it no requests.
fn gets_nothing(known: Option<&ServerStatus>) -> Option<String> {
    match known {
        None => Some("it does not know it".to_owned()),
        Some(known) if known.health == Health::Ready => None,
        Some(known) => Some(match &known.reason {
            Some(reason) => format!("{}, {reason}", known.health),
            None => known.health.to_string(),
        }),
    }
}

/// The cluster is made of the configured replicas, each on the disk that the others know it by.
fn members(facts: &Facts) -> Check {
    let Some(leader) = facts.leader() else {
        let finding = Finding::wrong(
            "no replica leads: nothing can be sold",
            "bring a majority of the replicas back; if they all run and none belongs to a cluster, \
             make it with `pygmy admin bootstrap`",
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
    let server = facts.process_of(name).map_or(name, |process| &process.name);
    let Some(known) = leader.members.iter().find(|member| member.name == status.name) else {
        return Some(Finding::wrong(
            format!("{name} runs and does not belong to the cluster"),
            format!("`pygmy admin add-replica {server}`, or stop it"),
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
fn state(facts: &Facts) -> Check {
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
fn books(facts: &Facts) -> Check {
    if facts.verified.is_empty() {
        return Check::unknown("books", "no replica answers");
    }
    let finding = |(part, verified): &(_, _)| {
        let crate::config::Part { name, .. } = part;
        match verified {
            Ok(Verified::AddsUp) => None,
            Ok(Verified::Damaged(why)) => {
                Some(Finding::wrong(format!("{name}: {why}"), rebuild(facts, name)))
            }
            Err(why) => Some(Finding::warning(
                format!("{name} could not be checked: {why}"),
                "run this again, when less is going on",
            )),
        }
    };
    let findings = facts.verified.iter().filter_map(finding).collect();
    let checked = facts.verified.len();
    let summary = format!("on {checked} replicas stock, orders and keys add up, row by row");
    Check::new("books", summary, findings)
}

/// How a replica with wrong data is put right.
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

/// The leader keeps every front end's cache fresh.
fn caches(facts: &Facts) -> Check {
    let Some(leader) = facts.leader() else {
        return Check::unknown("caches", "no replica leads: nothing is answered from caches");
    };
    let served: BTreeSet<_> = leader.front_ends.iter().map(String::as_str).collect();
    let configured = || facts.of_tier(Role::Frontend).map(|server| server.part.name.as_str());
    let without = configured().filter(|name| facts.answers(name) && !served.contains(name));
    let mut findings: Vec<_> = without
        .map(|name| {
            Finding::warning(
                format!("{name} hears of no changes: it asks the catalog for every read"),
                format!("look at the network between it and {}, the leader", leader.name),
            )
        })
        .collect();
    let configured: BTreeSet<_> = configured().collect();
    findings.extend(served.difference(&configured).map(|name| {
        Finding::warning(
            format!("{name} hears of changes and is not in the configuration"),
            format!("add it to {}, or stop it: every sale waits for it", facts.config),
        )
    }));
    let summary = format!("{} front ends hear of every change", served.len());
    Check::new("caches", summary, findings)
}

/// There is room where the replicas keep their data.
fn disks(facts: &Facts) -> Check {
    let finding = |name: &str, free: u64| {
        let what = format!("{name} has {} MiB left where its data is", free / MIB);
        let dir = facts.process_of(name).map_or("its data directory", |process| &process.dir);
        let todo = format!("make room on the disk of {dir}, or give it a larger one");
        if free < ROOM_WRONG_BYTES {
            return Some(Finding::wrong(what, todo));
        }
        (free < ROOM_WARNING_BYTES).then(|| Finding::warning(what, todo))
    };
    let findings = facts.health.iter().filter_map(|(part, health)| match health {
        Ok(health) => finding(&part.name, health.free_bytes),
        Err(why) => Some(Finding::warning(
            format!("{} does not say how much room it has: {why}", part.name),
            "look at the disk yourself; a server of an older version does not know this question",
        )),
    });
    if facts.health.is_empty() {
        return Check::unknown("disks", "no replica answers");
    }
    let least = answered(&facts.health).map(|health| health.free_bytes).min().unwrap_or(0);
    let summary =
        format!("every replica has {:.1} GiB left or more", least as f64 / 1024.0 / MIB as f64);
    Check::new("disks", summary, findings.collect())
}

/// Machines agree about the time, for people who read logs.
fn clocks(facts: &Facts) -> Check {
    if seen(facts).next().is_none() {
        return Check::unknown("clocks", "no server answers");
    }
    let mut findings = Vec::new();
    let mut furthest_ms = 0;
    for (server, (ahead_ms, error_ms)) in
        seen(facts).filter_map(|(server, seen)| Some((server, seen.clock_ms?)))
    {
        let certain_ms = ahead_ms.unsigned_abs().saturating_sub(error_ms);
        furthest_ms = furthest_ms.max(certain_ms);
        if certain_ms > CLOCK_WARNING_MS {
            let direction = if ahead_ms > 0 { "ahead of" } else { "behind" };
            let seconds = ahead_ms.unsigned_abs() as f64 / 1e3;
            findings.push(Finding::warning(
                format!("{}'s clock is {seconds:.1} s {direction} this machine's", server.part.name),
                "have both set by NTP. Promises do not depend on it; times in logs and of orders do",
            ));
        }
    }
    Check::new("clocks", format!("within {furthest_ms} ms of this machine's"), findings)
}

/// All run the same program, and replicas write the same formats.
fn versions(facts: &Facts) -> Check {
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (server, seen) in seen(facts) {
        let version = seen.readyz.version.as_deref().unwrap_or("an unknown version");
        versions.entry(version).or_default().push(&server.part.name);
    }
    let Some(version) = versions.keys().next() else {
        return Check::unknown("versions", "no server answers");
    };
    let mut findings = Vec::new();
    if versions.len() > 1 {
        let each =
            versions.iter().map(|(version, names)| format!("{version} ({})", names.join(", ")));
        findings.push(Finding::warning(
            format!("servers run {}", each.collect::<Vec<_>>().join(" and ")),
            "finish the upgrade: restart those of the older version with the newer one, one at a time",
        ));
    }
    let formats: Vec<_> = answered(&facts.health).map(|health| health.formats).collect();
    if formats.windows(2).any(|pair| pair[0] != pair[1]) {
        findings.push(Finding::warning(
            "replicas write different formats; those of the older program refuse the newer ones' \
             snapshots",
            "finish the upgrade soon",
        ));
    }
    let formats = formats.first().map_or(String::new(), |formats| {
        let (log, database) = (formats.log, formats.database);
        format!("; formats: log {log}, database {database}, snapshot {}", formats.snapshot)
    });
    Check::new("versions", format!("{version} everywhere{formats}"), findings)
}

/// The servers that answer.
fn seen(facts: &Facts) -> impl Iterator<Item = (&Server, &Seen)> {
    facts.servers.iter().filter_map(|server| Some((server, server.seen.as_ref().ok()?)))
}

#[cfg(test)]
mod tests {
    use pygmy_protocol::health::{Formats, Readyz, ReplicaHealth};

    use super::{
        super::{Verdict, facts::Process, hashes::Hashes},
        *,
    };
    use crate::config::Part;

    fn part(name: &str) -> Part {
        Part { name: name.into(), url: format!("http://{name}:8080") }
    }

    fn server(name: &str, tier: Role) -> Server {
        let process = Process {
            name: name.into(),
            role: tier,
            url: part(name).url,
            dir: format!("data/{name}"),
        };
        let readyz = Readyz {
            name: name.into(),
            ready: true,
            reasons: BTreeMap::new(),
            version: Some("1.0.0".into()),
            wall_ms: Some(0),
        };
        Server {
            part: part(name),
            tier,
            process,
            seen: Ok(Seen { readyz, clock_ms: Some((3, 1)) }),
        }
    }

    fn status(name: &str, id: u64, role: &str) -> CatalogStatus {
        let member = |id: u64| MemberStatus {
            id,
            name: format!("c{id}"),
            url: String::new(),
            voter: true,
            answers: true,
        };
        CatalogStatus {
            name: name.into(),
            id,
            role: role.into(),
            term: 1,
            leader: None,
            last_log_index: 9,
            applied_index: 9,
            purged_index: 0,
            snapshot_index: 0,
            released_index: 9,
            state_hash: String::new(),
            orders: 0,
            front_ends: vec!["f1".into()],
            members: (1..=3).map(member).collect(),
        }
    }

    /// Three replicas and a front end, all well.
    fn facts() -> Facts {
        let formats = Formats { log: 1, database: 3, snapshot: 3 };
        let health = |name: &str| ReplicaHealth { name: name.into(), free_bytes: 1 << 40, formats };
        let names = ["c1", "c2", "c3"];
        let mut servers: Vec<_> = names.iter().map(|name| server(name, Role::Catalog)).collect();
        servers.push(server("f1", Role::Frontend));
        let role = |id| if id == 1 { "leader" } else { "follower" };
        let replicas = names.iter().zip(1..);
        Facts {
            config: "pygmy.toml".into(),
            servers,
            balancers: Vec::new(),
            replicas: replicas
                .map(|(name, id)| (part(name), Ok(status(name, id, role(id)))))
                .collect(),
            hashes: Hashes::default(),
            health: names.iter().map(|name| (part(name), Ok(health(name)))).collect(),
            verified: names.iter().map(|name| (part(name), Ok(Verified::AddsUp))).collect(),
        }
    }

    /// What a check finds.
    fn found(check: &Check) -> (Verdict, Vec<&str>) {
        (check.verdict, check.findings.iter().map(|finding| finding.what.as_str()).collect())
    }

    #[test]
    fn nothing_is_found_where_all_is_well_and_nothing_claimed_where_nobody_answers() {
        let mut facts = facts();
        for check in [servers, members, books, caches, disks, clocks, versions] {
            assert_eq!(found(&check(&facts)), (Verdict::Ok, vec![]), "{}", check(&facts).name);
        }
        for server in &mut facts.servers {
            server.seen = Err("refused".into());
        }
        facts.replicas.clear();
        facts.health.clear();
        facts.verified.clear();
        for check in [balancers, state, books, caches, disks, clocks, versions] {
            assert_eq!(found(&check(&facts)), (Verdict::Unknown, vec![]), "{}", check(&facts).name);
        }
        assert_eq!(servers(&facts).findings.len(), 4);
        assert_eq!(members(&facts).verdict, Verdict::Wrong);
    }

    #[test]
    fn a_disk_that_is_not_the_known_one_is_wrong() {
        let mut facts = facts();
        facts.replicas[1].1 = Ok(status("c2", 7, "follower"));
        let check = members(&facts);
        let what = "c2 has another disk (id 7) than the cluster knows (id 2)";
        assert_eq!(found(&check), (Verdict::Wrong, vec![what]));
    }

    #[test]
    fn a_member_that_nobody_configured_is_a_warning() {
        let mut facts = facts();
        facts.servers.remove(2);
        let (verdict, what) = (members(&facts).verdict, members(&facts).findings);
        assert_eq!(verdict, Verdict::Warning);
        assert!(what[0].todo.contains("remove-replica c3"), "{what:?}");
    }

    #[test]
    fn little_room_is_a_warning_and_nearly_none_is_wrong() {
        for (free_bytes, verdict) in [
            (ROOM_WARNING_BYTES, Verdict::Ok),
            (ROOM_WARNING_BYTES - 1, Verdict::Warning),
            (ROOM_WRONG_BYTES - 1, Verdict::Wrong),
        ] {
            let mut facts = facts();
            let health = facts.health[0].1.as_mut().unwrap();
            health.free_bytes = free_bytes;
            assert_eq!(disks(&facts).verdict, verdict, "{free_bytes}");
        }
    }

    #[test]
    fn a_clock_is_wrong_only_by_what_the_network_does_not_explain() {
        for (clock_ms, verdict) in
            [((-1500, 400), Verdict::Warning), ((1500, 500), Verdict::Ok), ((900, 0), Verdict::Ok)]
        {
            let mut facts = facts();
            facts.servers[3].seen.as_mut().unwrap().clock_ms = Some(clock_ms);
            assert_eq!(clocks(&facts).verdict, verdict, "{clock_ms:?}");
        }
    }

    #[test]
    fn a_front_end_that_nobody_tells_of_changes_and_another_program_are_warnings() {
        let mut facts = facts();
        facts.servers.push(server("f2", Role::Frontend));
        facts.servers[4].seen.as_mut().unwrap().readyz.version = None;
        assert_eq!(caches(&facts).verdict, Verdict::Warning);
        let check = versions(&facts);
        let what = "servers run 1.0.0 (c1, c2, c3, f1) and an unknown version (f2)";
        assert_eq!(found(&check), (Verdict::Warning, vec![what]));
    }
}
