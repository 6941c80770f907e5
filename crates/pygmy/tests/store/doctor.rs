//! `pygmy admin doctor` on stores that are well, and on stores that are not.

use std::{
    fs,
    process::{Command, Output, Stdio},
};

use serde_json::Value;

use crate::harness::{Layout, PYGMY, Store, until};

/// What the doctor says of one store: exit code, output, and what goes to stderr.
fn examine(store: &Store, arguments: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = store.admin(&[&["doctor"], arguments].concat());
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

/// Waits until the doctor finds nothing: the balancers take a little to know all servers.
async fn is_well(store: &Store) {
    let report = until("the store is well", async || {
        let (code, out, _) = examine(store, &["--json"]);
        let report: Value = serde_json::from_str(&out).unwrap();
        let well = |check: &Value| check["verdict"] == "ok" || check["name"] == "disks";
        let checks = report["checks"].as_array().unwrap();
        (code == Some(0) && checks.iter().all(well)).then_some(report)
    })
    .await;
    assert_eq!(report["ok"], true);
}

async fn follower(store: &Store) -> String {
    let leader = store.leader().await;
    store.replicas().into_iter().find(|name| *name != leader).unwrap()
}

#[tokio::test]
async fn a_store_that_is_well_passes() {
    for layout in [Layout::Tiers, Layout::Nodes] {
        let store = Store::start(layout).await;
        store.order(1, "one").await;
        is_well(&store).await;
        let (code, out, error) = examine(&store, &[]);
        assert_eq!(code, Some(0), "{out}{error}");
        for check in ["servers", "balancers", "members", "state", "books", "caches", "clocks"] {
            let line = out.lines().find(|line| line.starts_with(check)).unwrap();
            assert!(line.contains(" ok "), "{out}");
        }
    }
}

#[tokio::test]
async fn a_replica_that_is_dead_is_named_with_the_command_that_starts_it() {
    let mut store = Store::start(Layout::Tiers).await;
    let dead = follower(&store).await;
    store.kill(&dead);
    let (code, out, error) = examine(&store, &[]);
    assert_eq!(code, Some(1), "{out}");
    assert!(error.contains("wrong"), "{error}");
    let line = out.lines().find(|line| line.starts_with("servers")).unwrap();
    assert!(line.contains("WRONG") && line.contains(&format!("{dead} does not answer")), "{out}");
    assert!(out.contains(&format!("pygmy serve catalog --name {dead}")), "{out}");
    let books = out.lines().find(|line| line.starts_with("books")).unwrap();
    assert!(books.contains(" ok ") && books.contains("2 replicas"), "the others are: {out}");
    store.spawn(&dead);
    is_well(&store).await;
}

#[tokio::test]
async fn a_row_that_was_changed_behind_the_stores_back_is_named_and_put_right_as_it_is_told() {
    let mut store = Store::start(Layout::Tiers).await;
    store.order(1, "one").await;
    // A replica that has yet to apply the order would find the row while it starts.
    store.agreed().await;
    let changed = follower(&store).await;
    assert_eq!(store.stop(&changed).await, Some(0));
    let db = rusqlite::Connection::open(store.data(&changed).join("catalog.db")).unwrap();
    assert_eq!(db.execute("UPDATE items SET stock = 9 WHERE item_number = 1", ()).unwrap(), 1);
    drop(db);
    store.spawn(&changed);
    store.ready_server(&changed).await;
    let (code, out, _) = examine(&store, &["--json"]);
    assert_eq!(code, Some(1), "{out}");
    let report: Value = serde_json::from_str(&out).unwrap();
    let books = report["checks"].as_array().unwrap().iter().find(|c| c["name"] == "books").unwrap();
    let findings = books["findings"].as_array().unwrap();
    assert_eq!(findings.len(), 1, "{out}");
    let what = findings[0]["what"].as_str().unwrap();
    assert!(what.contains(&changed) && what.contains("damaged"), "{what}");
    let todo = findings[0]["todo"].as_str().unwrap();
    assert!(todo.contains(&format!("start {changed} again")), "{todo}");
    // As it is told.
    store.ended(&changed).await;
    store.spawn(&changed);
    is_well(&store).await;
}

#[tokio::test]
async fn a_balancer_that_was_started_again_has_time_to_hear_of_all_servers() {
    let mut store = Store::start(Layout::Tiers).await;
    is_well(&store).await;
    store.kill("balancer-2");
    store.spawn("balancer-2");
    store.ready_server("balancer-2").await;
    // It is ready with the first replica and the first order server that it hears of.
    let (code, out, error) = examine(&store, &[]);
    assert_eq!(code, Some(0), "{out}{error}");
}

/// The exit code of a command whose output nobody reads, as of `| head -1` when that has its line.
fn unread(store: &Store, arguments: &[&str]) -> Option<i32> {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(PYGMY);
    command.arg("admin").args(arguments).arg("--config").arg(store.config());
    command.stdout(writer).stderr(Stdio::null()).status().unwrap().code()
}

#[tokio::test]
async fn the_exit_code_is_the_verdict_for_those_who_read_no_more_too() {
    let mut store = Store::start(Layout::Nodes).await;
    is_well(&store).await;
    assert_eq!(unread(&store, &["doctor"]), Some(0));
    assert_eq!(unread(&store, &["status"]), Some(0));
    let dead = follower(&store).await;
    store.kill(&dead);
    assert_eq!(unread(&store, &["doctor"]), Some(1));
    assert_eq!(unread(&store, &["doctor", "--json"]), Some(1));
    assert_eq!(unread(&store, &["status"]), Some(0), "somebody answers");
    for name in store.names().into_iter().filter(|name| *name != dead) {
        store.kill(&name);
    }
    for arguments in [&["status"][..], &["servers"], &["status", "--json"]] {
        assert_eq!(unread(&store, arguments), Some(3), "{arguments:?}");
        let output = store.admin(arguments);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(3), "{error}");
        assert!(error.contains("no server answers at http://127.0.0.1:"), "{error}");
        assert!(!output.stdout.is_empty(), "who was asked is shown all the same");
    }
}

#[tokio::test]
async fn a_wrong_secret_is_what_is_wrong_and_all_say_so() {
    let store = Store::start(Layout::Nodes).await;
    let wrong = store.dir().join("wrong");
    fs::write(&wrong, "the-secret-of-another-store").unwrap();
    let wrong = ["--secret-file", wrong.to_str().unwrap()];
    for command in ["status", "servers"] {
        let output = store.admin(&[&[command][..], &wrong].concat());
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains("name the file with the store's secret"), "{error}");
        assert!(String::from_utf8(output.stdout).unwrap().contains("wrong secret"), "{command}");
    }
    let (code, out, error) = examine(&store, &wrong);
    assert_eq!(code, Some(1), "{out}");
    assert!(error.contains("one thing is wrong"), "{out}{error}");
    assert!(out.contains("-> name the file with the store's secret with --secret-file"), "{out}");
}
