//! Importing and exporting items, with real servers and the real command line.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use http::{Method, StatusCode};
use pygmy_protocol::{Env, import::UnfinishedImports, item::Topics};

use crate::harness::{Layout, PATIENCE, PYGMY, Store, free_ports, until};

/// What the store has before any import: the items of the harness.
pub(crate) const BEFORE: u64 = 3;
const FIRST: u64 = 1001;

/// Writes a file of `count` items in three topics; one of them is in the store already.
pub(crate) fn file_of(dir: &Path, count: u64) -> PathBuf {
    let topics = ["Distributed Systems", "\"New, and quoted\"", "Theory"];
    let mut text = String::from("itemNumber,title,topic,stock,cost\n");
    for n in FIRST..FIRST + count {
        let topic = topics[(n % 3) as usize];
        text += &format!("{n},\"Book \"\"{n}\"\"\",{topic},{},{}\n", n % 7, n % 1000);
    }
    let path = dir.join("items.csv");
    fs::write(&path, text).unwrap();
    path
}

pub(crate) fn admin(store: &Store, arguments: &[&str]) -> Command {
    let mut command = Command::new(PYGMY);
    command.args(["admin", "--config"]).arg(store.config()).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn import(store: &Store, file: &Path) -> Child {
    admin(store, &["import", file.to_str().unwrap()]).spawn().unwrap()
}

pub(crate) async fn ended(child: Child) -> Output {
    // It may print more than a pipe holds.
    let ended = tokio::task::spawn_blocking(|| child.wait_with_output().unwrap());
    tokio::time::timeout(PATIENCE, ended).await.expect("the command ends in time").unwrap()
}

pub(crate) async fn run(store: &Store, arguments: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = ended(admin(store, arguments).spawn().unwrap()).await;
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

/// How many items the list of topics counts.
pub(crate) async fn counted(store: &Store, front_end: usize) -> u64 {
    let topics: Topics = store.get(front_end, "/topics").await.json().unwrap();
    topics.topics.iter().map(|topic| topic.items).sum()
}

async fn is_there(store: &Store, front_end: usize, item: u64) -> bool {
    match store.get(front_end, &format!("/lookup/{item}")).await.status {
        StatusCode::OK => true,
        StatusCode::NOT_FOUND => false,
        other => panic!("{other}"),
    }
}

/// How many items unfinished imports have staged; `None` while the store cannot tell.
async fn staged(store: &Store) -> Option<u64> {
    let answer = store.through_balancer(1, &store.call(Method::GET, "/imports")).await;
    let imports = answer.json::<UnfinishedImports>().ok()?.imports;
    Some(imports.iter().map(|import| import.items).sum())
}

#[tokio::test]
async fn staged_items_are_hidden_until_they_are_published() {
    let store = Store::start(Layout::Nodes).await;
    let post = async |target: &str, key: &str, body: serde_json::Value| {
        let call = store.call(Method::POST, target).with_key(&key.parse().unwrap());
        let answer = store.through_balancer(1, &call.with_json(&body)).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    };
    let everywhere = async || {
        let mut seen = Vec::new();
        for front_end in 0..store.front_ends() {
            let there = is_there(&store, front_end, FIRST).await;
            seen.push((there, counted(&store, front_end).await));
        }
        seen
    };
    for part in 0..2 {
        let item = |n: u64| {
            serde_json::json!({
                "itemNumber": FIRST + 100 * part + n, "title": "t", "topic": "new", "stock": 1,
                "cost": 1,
            })
        };
        let items: Vec<_> = (0..100).map(item).collect();
        post("/imports/by-hand/items", &part.to_string(), serde_json::json!({ "items": items }))
            .await;
        assert!(everywhere().await.iter().all(|seen| *seen == (false, BEFORE)));
    }
    post("/imports/by-hand/publish", "publish", serde_json::json!({ "items": 200 })).await;
    assert!(everywhere().await.iter().all(|seen| *seen == (true, BEFORE + 200)));
}

#[tokio::test]
async fn an_import_is_seen_all_at_once_when_all_of_it_is_there() {
    const COUNT: u64 = 4_000;
    let store = Store::start(Layout::Nodes).await;
    let file = file_of(store.dir(), COUNT);
    let mut child = import(&store, &file);
    let mut turn = 0;
    let seen = loop {
        let (one, other) = (turn % store.front_ends(), (turn + 1) % store.front_ends());
        turn += 1;
        // The last one first: whoever sees any of them sees all from then on.
        let last = is_there(&store, one, FIRST + COUNT - 1).await;
        let all = counted(&store, other).await;
        assert!([BEFORE, BEFORE + COUNT].contains(&all), "{all} items");
        if last || all > BEFORE {
            break (one, other);
        }
        assert!(child.try_wait().unwrap().is_none_or(|status| status.success()));
    };
    for n in [FIRST, FIRST + 1, FIRST + 2, FIRST + COUNT / 2, FIRST + COUNT - 1] {
        assert!(is_there(&store, seen.0, n).await && is_there(&store, seen.1, n).await, "item {n}");
    }
    let output = ended(child).await;
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(told.starts_with("4,000 items in 3 topics are on sale after"), "{told}");
    assert_eq!(counted(&store, 0).await, BEFORE + COUNT);
    store.order(FIRST + 1, "an-imported-one-sells").await;
    store.agreed().await;
    store.verify().await;
}

#[tokio::test]
async fn of_a_bad_file_nothing_is_loaded() {
    let store = Store::start(Layout::Nodes).await;
    let file = file_of(store.dir(), 2_500);
    let path = file.to_str().unwrap();
    let good = fs::read_to_string(&file).unwrap();

    let (code, out, error) = run(&store, &["import", path, "--dry-run"]).await;
    assert_eq!(code, 0, "{error}");
    assert_eq!(out, "the file is good: 2,500 items in 3 topics; nothing was loaded\n");

    fs::write(&file, format!("{good}5,x,x,1\n")).unwrap();
    let (code, _, error) = run(&store, &["import", path]).await;
    assert_eq!(code, 1, "{error}");
    assert!(error.contains("line 2502: it has 4 fields instead of 5"), "{error}");
    assert_eq!(counted(&store, 0).await, BEFORE);

    // Only the store knows that this one exists; two parts are staged by then.
    fs::write(&file, format!("{good}2,x,x,1,1\n")).unwrap();
    let (code, _, error) = run(&store, &["import", path]).await;
    assert_eq!(code, 1, "{error}");
    assert!(error.contains("line 2502: item 2 exists already"), "{error}");
    assert_eq!((counted(&store, 0).await, staged(&store).await), (BEFORE, Some(0)));
    assert!(!is_there(&store, 0, FIRST).await);

    // Its numbers are free again.
    fs::write(&file, good).unwrap();
    let (code, _, error) = run(&store, &["import", path]).await;
    assert_eq!(code, 0, "{error}");
    let (code, told, error) = run(&store, &["import", path]).await;
    assert_eq!(code, 0, "{error}");
    assert!(told.starts_with("this file was imported before: its 2,500 items in 3 "), "{told}");

    // Another file with the same items is another import.
    fs::write(&file, fs::read_to_string(&file).unwrap() + "\n").unwrap();
    let (code, _, error) = run(&store, &["import", path]).await;
    assert_eq!(code, 1, "{error}");
    assert!(error.contains("line 2: item 1001 exists already"), "{error}");
    assert_eq!(staged(&store).await, Some(0));
    assert_eq!(counted(&store, 0).await, BEFORE + 2_500);
    store.agreed().await;
    store.verify().await;
}

#[tokio::test]
async fn an_import_that_breaks_off_is_repeated_and_counts_once() {
    const COUNT: u64 = 20_000;
    let mut store = Store::start(Layout::Nodes).await;
    let file = file_of(store.dir(), COUNT);

    // Its client and the leader die in the middle of it.
    let mut child = import(&store, &file);
    let some =
        until("some of it is staged", async || staged(&store).await.filter(|n| *n > 0)).await;
    child.kill().unwrap();
    child.wait().unwrap();
    let leader = store.leader().await;
    store.kill(&leader);
    store.spawn(&leader);
    store.ready().await;
    assert_eq!(counted(&store, 0).await, BEFORE);
    let (_, listed, _) = run(&store, &["import", "--unfinished", "--json"]).await;
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert!(listed[0]["items"].as_u64().unwrap() >= some, "{listed}");

    // The same command goes on with it, and over the death of another leader.
    let child = import(&store, &file);
    // On a fast machine it may be over before that is seen.
    let more = async || staged(&store).await.filter(|n| *n > some + 2_000 || *n == 0);
    until("more of it is staged", more).await;
    let leader = store.leader().await;
    store.kill(&leader);
    let output = ended(child).await;
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{error}");
    assert!(error.contains("going on with an import of this file"), "{error}");
    store.spawn(&leader);
    store.ready().await;
    assert_eq!(counted(&store, 0).await, BEFORE + COUNT);
    assert_eq!(staged(&store).await, Some(0));
    store.agreed().await;
    store.verify().await;
}

#[tokio::test]
async fn what_is_exported_is_what_was_imported() {
    let store = Store::start(Layout::Nodes).await;
    let file = file_of(store.dir(), 2_100);
    let (code, _, error) = run(&store, &["import", file.to_str().unwrap()]).await;
    assert_eq!(code, 0, "{error}");
    let path = |name: &str| store.dir().join(name).to_str().unwrap().to_owned();
    let (csv, jsonl) = (path("all.csv"), path("all.jsonl"));
    let (code, told, error) = run(&store, &["export", &csv]).await;
    assert_eq!(code, 0, "{error}");
    assert_eq!(told, format!("wrote 2,103 items to {csv}\n"));
    run(&store, &["export", &jsonl]).await;
    let (_, printed, _) = run(&store, &["export"]).await;
    let (csv_text, jsonl_text) =
        (fs::read_to_string(&csv).unwrap(), fs::read_to_string(&jsonl).unwrap());
    assert_eq!(printed, csv_text);
    let lines = |text: &str| text.lines().skip(1).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(lines(&csv_text)[BEFORE as usize..], lines(&fs::read_to_string(&file).unwrap()));

    // A pipe is written into, and stays one.
    let pipe = path("pipe.csv");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let reader = Command::new("cat").arg(&pipe).stdout(Stdio::piped()).spawn().unwrap();
    let (code, _, error) = run(&store, &["export", &pipe]).await;
    assert_eq!(code, 0, "{error}");
    assert_eq!(ended(reader).await.stdout, csv_text.as_bytes());
    assert!(!fs::metadata(&pipe).unwrap().is_file());

    // A demo that begins with either exports the same, to the byte.
    for exported in [&csv, &jsonl] {
        let dir = tempfile::tempdir().unwrap();
        let dir = fs::canonicalize(dir.path()).unwrap();
        let base = free_ports(&Env::production(), 20).to_string();
        let mut demo = Command::new(PYGMY);
        demo.args(["demo", "--layout", "nodes", "--base-port", &base, "--items", exported]);
        demo.arg("--dir").arg(&dir).stdin(Stdio::null()).stderr(Stdio::null());
        let demo = demo.stdout(Stdio::null()).spawn().unwrap();
        until("the demo is ready", async || dir.join("bootstrapped").exists().then_some(())).await;
        let config = dir.join("pygmy.toml");
        for (expected, format) in [(&csv_text, "csv"), (&jsonl_text, "jsonl")] {
            let export = ["admin", "export", "--format", format, "--config"];
            let child =
                Command::new(PYGMY).args(export).arg(&config).stdout(Stdio::piped()).spawn();
            let output = ended(child.unwrap()).await;
            assert_eq!(&String::from_utf8(output.stdout).unwrap(), expected);
        }
        let pid = rustix::process::Pid::from_child(&demo);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        ended(demo).await;
    }
}

#[tokio::test]
async fn a_demo_with_a_bad_file_starts_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (store, file) = (dir.path().join("store"), dir.path().join("items.jsonl"));
    fs::write(&file, "{\"itemNumber\":1}\n").unwrap();
    let demo =
        Command::new(PYGMY).arg("demo").arg("--dir").arg(&store).arg("--items").arg(&file).output();
    let output = demo.unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("line 1, column 16: missing field `title`"), "{error}");
    assert!(!store.exists());
}
