//! What is found in facts that are made up.

use std::collections::BTreeMap;

use pygmy_protocol::{
    Code, Problem,
    health::{Formats, Readyz, ReplicaHealth},
    registration::{CatalogStatus, MemberStatus, Role},
};

use super::{
    super::ask::NoAnswer,
    Check, Verdict, examine,
    facts::{Facts, Process, Seen, Server, Verified},
    hashes::Hashes,
    obstacles::obstacle,
    replicas::{books, disks, members, state},
    servers::{balancers, caches, clocks, servers, versions},
};
use crate::config::Part;

fn part(name: &str) -> Part {
    Part { name: name.into(), url: format!("http://{name}:8080") }
}

fn server(name: &str, tier: Role) -> Server {
    let process =
        Process { name: name.into(), role: tier, url: part(name).url, dir: format!("data/{name}") };
    let readyz = Readyz {
        name: name.into(),
        ready: true,
        reasons: BTreeMap::new(),
        version: Some("1.0.0".into()),
        wall_ms: Some(0),
    };
    Server { part: part(name), tier, process, seen: Ok(Seen { readyz, clock_ms: Some((3, 1)) }) }
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
    let health = |name: &str| ReplicaHealth {
        name: name.into(),
        free_bytes: 1 << 40,
        min_free_bytes: 1 << 28,
        formats,
    };
    let names = ["c1", "c2", "c3"];
    let mut servers: Vec<_> = names.iter().map(|name| server(name, Role::Catalog)).collect();
    servers.push(server("f1", Role::Frontend));
    let role = |id| if id == 1 { "leader" } else { "follower" };
    let replicas = names.iter().zip(1..);
    Facts {
        config: "pygmy.toml".into(),
        secret_file: "secret".into(),
        servers,
        balancers: Vec::new(),
        replicas: replicas.map(|(name, id)| (part(name), Ok(status(name, id, role(id))))).collect(),
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
        server.seen = Err(NoAnswer::Failed("refused".into()));
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
    for (free_bytes, verdict) in [(400, Verdict::Ok), (399, Verdict::Warning), (99, Verdict::Wrong)]
    {
        let mut facts = facts();
        let health = facts.health[0].1.as_mut().unwrap();
        (health.free_bytes, health.min_free_bytes) = (free_bytes, 100);
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

fn no_secret<T>() -> Result<T, NoAnswer> {
    Err(NoAnswer::Problem(Problem::new(Code::SecretRequired, "the secret, please")))
}

#[test]
fn a_secret_that_nobody_takes_is_one_thing_and_one_server_with_another_one_is_named() {
    let mut facts = facts();
    facts.replicas[1].1 = no_secret();
    assert_eq!(obstacle(&facts), None);
    let what = "c2 does not take the secret in secret, as others do";
    assert_eq!(found(&servers(&facts)), (Verdict::Wrong, vec![what]));

    facts.replicas.iter_mut().for_each(|(_, answer)| *answer = no_secret());
    let checks = examine(&facts);
    let findings: Vec<_> = checks.iter().flat_map(|check| &check.findings).collect();
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert_eq!(findings[0].what, "the servers do not take the secret in secret");
    assert!(findings[0].todo.contains("--secret-file"), "{findings:?}");
}

#[test]
fn replicas_that_were_never_made_a_cluster_are_one_thing() {
    let mut facts = facts();
    for (_, answer) in &mut facts.replicas {
        answer.as_mut().unwrap().role = "blank".into();
    }
    for server in &mut facts.servers {
        server.seen.as_mut().unwrap().readyz.ready = false;
    }
    let checks = examine(&facts);
    let findings: Vec<_> = checks.iter().flat_map(|check| &check.findings).collect();
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert_eq!(findings[0].what, "the replicas belong to no cluster yet");
    assert!(findings[0].todo.starts_with("run `pygmy admin bootstrap` once"), "{findings:?}");
    // One that may know more is asked first.
    facts.replicas[1].1 = Err(NoAnswer::Failed("refused".into()));
    assert_eq!(obstacle(&facts), None);
}
