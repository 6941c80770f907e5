//! Of all servers: do they answer, do they find one another, and are they of one kind?

use std::collections::{BTreeMap, BTreeSet};

use pygmy_protocol::registration::{Health, Role, ServerStatus, Servers};

use super::{
    super::{
        ask::{Answers, answered},
        status::place,
    },
    Check, Finding,
    facts::{Facts, Seen, Server},
};

/// Clocks that differ by more confuse whoever reads logs of several machines. The store itself
/// compares no clocks.
const CLOCK_WARNING_MS: u64 = 1000;

/// Every server answers and is ready.
pub(super) fn servers(facts: &Facts) -> Check {
    let processes = processes(facts);
    let of_process = |servers: &Vec<&Server>| match silence(facts, servers) {
        Some(finding) => vec![finding],
        None => servers.iter().filter_map(|server| readiness(facts, server)).collect(),
    };
    let findings = processes.values().flat_map(of_process).collect();
    Check::new("servers", format!("{} processes answer and are ready", processes.len()), findings)
}

/// Every server answers, be it ready or not.
pub(super) fn alive(facts: &Facts) -> Check {
    let processes = processes(facts);
    let findings = processes.values().filter_map(|servers| silence(facts, servers)).collect();
    Check::new("servers", format!("{} processes answer", processes.len()), findings)
}

/// The servers in each process.
fn processes(facts: &Facts) -> BTreeMap<&str, Vec<&Server>> {
    let mut processes: BTreeMap<&str, Vec<&Server>> = BTreeMap::new();
    for server in &facts.servers {
        processes.entry(&server.process.name).or_default().push(server);
    }
    processes
}

/// What is to be said of a process of which no server answers.
fn silence(facts: &Facts, servers: &[&Server]) -> Option<Finding> {
    let Server { process, .. } = servers.first()?;
    let silent: Vec<_> = servers.iter().filter_map(|server| server.seen.as_ref().err()).collect();
    let why = silent.first().filter(|_| silent.len() == servers.len())?;
    let (name, at) = (&process.name, place(&process.url));
    Some(Finding::wrong(
        format!("{name} does not answer at {at}: {why}"),
        format!(
            "start it: pygmy serve {} --name {name} --config {}; if it ends again, its log says why; \
             if it runs, look at the network",
            process.role, facts.config
        ),
    ))
}

fn readiness(facts: &Facts, server: &Server) -> Option<Finding> {
    let name = &server.part.name;
    if facts.refuses_secret(name) {
        return Some(Finding::wrong(
            format!("{name} does not take the secret in {}, as others do", facts.secret_file),
            "give its machine the same secret, and restart it",
        ));
    }
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

/// Every balancer sends requests to every server that is ready.
pub(super) fn balancers(facts: &Facts) -> Check {
    let answering = answered(&facts.balancers).count();
    if answering == 0 {
        return Check::unknown("balancers", "no balancer answers");
    }
    let finding = |(name, why): (&str, Vec<String>)| {
        Finding::wrong(
            format!("{name} is ready, and gets nothing from {}", why.join("; from ")),
            "look at the network between them, and whether all have the same secret; a server that \
             was started with an older configuration does not register with a new balancer: \
             `pygmy admin rolling-restart`",
        )
    };
    let findings = without_requests(&facts.servers, &facts.balancers).into_iter().map(finding);
    let summary = format!("{answering} balancers send requests to every server that is ready");
    Check::new("balancers", summary, findings.collect())
}

/// The servers that are ready and get no requests from balancers that answer, each with those and
/// their reasons.
pub(super) fn without_requests<'a>(
    servers: &'a [Server],
    balancers: &Answers<Servers>,
) -> BTreeMap<&'a str, Vec<String>> {
    let mut without: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for balancer in answered(balancers) {
        for server in servers {
            let name = server.part.name.as_str();
            // One that is not ready is named already; balancers do not know one another.
            let ready = server.seen.as_ref().is_ok_and(|seen| seen.readyz.ready);
            if server.tier == Role::Balancer || !ready {
                continue;
            }
            let known = balancer.servers.iter().find(|known| known.name == name);
            if let Some(why) = gets_nothing(known) {
                without.entry(name).or_default().push(format!("{}: {why}", balancer.balancer));
            }
        }
    }
    without
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

/// The leader keeps every front end's cache fresh.
pub(super) fn caches(facts: &Facts) -> Check {
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

/// Machines agree about the time, for people who read logs.
pub(super) fn clocks(facts: &Facts) -> Check {
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
pub(super) fn versions(facts: &Facts) -> Check {
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
