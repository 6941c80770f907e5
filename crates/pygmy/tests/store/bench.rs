//! `pygmy bench` against a running store.

use std::{
    fs,
    process::{Command, Output, Stdio},
};

use http::Method;
use pygmy_protocol::item::Topics;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::{
    harness::{Layout, PYGMY, Store, until},
    items::ended,
};

fn bench(store: &Store, more: &[&str]) -> Output {
    let arguments = [&["--seconds", "1", "--connections", "8"], more].concat();
    bench_by(Command::new(PYGMY), store, &arguments).output().unwrap()
}

/// `pygmy bench`, where `program` runs pygmy.
fn bench_by(mut program: Command, store: &Store, arguments: &[&str]) -> Command {
    program.args(["bench", "--config"]).arg(store.config()).args(arguments);
    program.current_dir(store.dir()).env("NO_COLOR", "1");
    program
}

fn report_of(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What the store says about the items of a run: how many, and how many copies are left.
async fn left(store: &Store, report: &Value) -> (u64, u64) {
    let target = format!("/query/{}?limit=1000", report["topic"].as_str().unwrap());
    let page: Value =
        store.through_balancer(1, &store.call(Method::GET, &target)).await.json().unwrap();
    let items = page["items"].as_array().unwrap();
    (items.len() as u64, items.iter().map(|item| item["stock"].as_u64().unwrap()).sum())
}

#[tokio::test]
async fn a_closed_loop_sells_what_is_gone_from_stock() {
    let store = Store::start(Layout::Tiers).await;
    let mix = "lookup=2,search=1,buy=2";
    let more = ["--mix", mix, "--items", "7", "--stock", "100000", "--warm-up", "1", "--json"];
    let report = report_of(&bench(&store, &more));
    assert_eq!((&report["loop"], &report["items"]), (&"closed".into(), &7.into()));
    for kind in ["lookup", "search", "buy"] {
        let requests = &report["requests"][kind];
        assert!(requests["done"].as_u64().unwrap() > 0, "{report}");
        assert!(requests["latencyMs"]["p99"].as_f64().unwrap() > 0.0, "{report}");
    }
    let sales = &report["sales"];
    let sold = sales["sold"].as_u64().unwrap();
    assert_eq!((&sales["addsUp"], &sales["unknown"]), (&true.into(), &0.into()), "{report}");
    assert_eq!(sales["acknowledged"].as_u64(), Some(sold));
    assert!(report["requests"]["buy"]["done"].as_u64().unwrap() <= sold, "warm-up sells, too");
    assert_eq!(left(&store, &report).await, (7, 700_000 - sold));
    // Nobody else's books were touched.
    assert_eq!(store.lookup(0, 1).await.stock, 1500);
    store.verify().await;
}

#[tokio::test]
async fn an_open_loop_keeps_its_rate_and_draws_its_latencies() {
    let store = Store::start(Layout::Nodes).await;
    let more = ["--rate", "200", "--warm-up", "0", "--mix", "buy=1", "--items", "500", "--zipf"];
    let more = [&more[..], &["1.1", "--threads", "2", "--json", "--plot", "plot.svg"]].concat();
    let report = report_of(&bench(&store, &more));
    assert_eq!(report["loop"], "open");
    let buys = &report["requests"]["buy"];
    let count = |value: &Value| value.as_u64().unwrap();
    let sent = count(&buys["done"]) + count(&buys["failed"]);
    assert_eq!(sent + count(&report["unsent"]), 200, "{report}");
    let sold = count(&report["sales"]["sold"]);
    assert_eq!(count(&report["sales"]["acknowledged"]), sold, "{report}");
    assert_eq!(left(&store, &report).await, (500, 500_000_000 - sold));
    let plot = fs::read_to_string(store.dir().join("plot.svg")).unwrap();
    assert!(plot.starts_with("<svg") && plot.contains("\"curve buy\""), "{plot}");
}

#[tokio::test]
async fn people_get_a_table_and_each_run_a_topic_of_its_own() {
    let store = Store::start(Layout::Nodes).await;
    for _ in 0..2 {
        let output = bench(&store, &["--warm-up", "0", "--mix", "lookup=1,buy=1"]);
        let table = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{table}");
        for shown in ["closed loop, 8 connections", "P99.9 MS", "lookup", "buy", "it adds up"] {
            assert!(table.contains(shown), "{table}");
        }
        assert!(!table.contains("search"), "{table}");
    }
    let topics: Topics = store.get(0, "/topics").await.json().unwrap();
    assert_eq!(topics.topics.iter().filter(|t| t.topic.starts_with("bench-")).count(), 2);
}

#[tokio::test]
async fn a_run_that_sells_out_says_so() {
    let store = Store::start(Layout::Nodes).await;
    let more = ["--items", "1", "--stock", "3", "--mix", "buy=1", "--warm-up", "0", "--json"];
    let report = report_of(&bench(&store, &more));
    assert_eq!(report["sales"]["sold"], 3, "{report}");
    let sold_out = &report["requests"]["buy"]["failures"]["409 out_of_stock"];
    assert!(sold_out.as_u64().unwrap() > 0, "{report}");

    let more = ["--server", "http://127.0.0.1:9", "--warm-up", "0"];
    let output = bench(&store, &more);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("no server answers at http://127.0.0.1:9"), "{error}");
}

/// The topic of the only run, once it has sold something.
async fn selling(store: &Store) {
    until("the run sells", async || {
        let topics: Topics = store.get(0, "/topics").await.json().ok()?;
        let topic = topics.topics.into_iter().find(|t| t.topic.starts_with("bench-"))?.topic;
        let (items, copies) = left(store, &json!({ "topic": topic })).await;
        (items == 1 && copies < 1_000_000).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_was_measured_is_shown_whatever_happens_at_the_end() {
    let mut store = Store::start(Layout::Nodes).await;
    let arguments = ["--seconds", "600", "--warm-up", "0", "--items", "1", "--mix", "buy=1"];
    let mut command = bench_by(Command::new(PYGMY), &store, &arguments);
    let run = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    selling(&store).await;
    for name in store.names() {
        store.kill(&name);
    }
    kill_process(Pid::from_child(&run), Signal::INT).unwrap();
    let output = ended(run).await;
    let (table, error) = (String::from_utf8(output.stdout), String::from_utf8(output.stderr));
    let (table, error) = (table.unwrap(), error.unwrap());
    assert_eq!(output.status.code(), Some(3), "{table}{error}");
    assert!(error.contains("cannot count the stock after the run"), "{error}");
    for shown in ["P99.9 MS", "it was interrupted; 600 s were to be", "the stock was not counted"] {
        assert!(table.contains(shown), "{table}");
    }
}

#[tokio::test]
async fn what_a_run_lacks_is_said_before_it_or_below_it() {
    let store = Store::start(Layout::Nodes).await;
    let output = bench(&store, &["--plot", "nowhere/plot.svg"]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("cannot write nowhere/plot.svg"), "{error}");
    let topics: Topics = store.get(0, "/topics").await.json().unwrap();
    assert!(!topics.topics.iter().any(|t| t.topic.starts_with("bench-")), "nothing has begun");

    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -n 40; exec \"$0\" \"$@\"", PYGMY]);
    let arguments = ["--seconds", "1", "--warm-up", "0", "--connections", "64"];
    let output = bench_by(shell, &store, &arguments).output().unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{table}");
    assert!(table.contains("(too many open files here; raise `ulimit -n`)"), "{table}");
}
