//! The client's and operator's commands, against a running store.

use std::{
    fs,
    process::{Command, Output},
};

use crate::harness::{Layout, PYGMY, Store};

struct CommandLine<'a> {
    store: &'a Store,
    servers: Vec<String>,
}

impl CommandLine<'_> {
    async fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        let mut command = Command::new(PYGMY);
        command.args(arguments).current_dir(self.store.dir()).env("NO_COLOR", "1");
        if !matches!(arguments[0], "admin" | "config") {
            for url in &self.servers {
                command.args(["--server", url]);
            }
        }
        let Output { status, stdout, stderr } =
            tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (status.code().unwrap(), text(stdout), text(stderr))
    }

    async fn ok(&self, arguments: &[&str]) -> String {
        let (code, out, error) = self.run(arguments).await;
        assert_eq!(code, 0, "{arguments:?}: {out}{error}");
        out
    }

    async fn json(&self, arguments: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.ok(arguments).await).unwrap()
    }
}

#[tokio::test]
async fn a_client_searches_buys_and_finds_the_order() {
    let store = Store::start(Layout::Tiers).await;
    let mut servers = store.public_urls();
    // One that is gone does not matter as long as another is there.
    servers.insert(0, "http://127.0.0.1:9".to_owned());
    let pygmy = CommandLine { store: &store, servers };
    let table = pygmy.ok(&["search", "Distributed Systems"]).await;
    assert!(table.contains("RPCs for Dummies.") && table.contains("1500.00 USD"), "{table}");
    let item = pygmy.json(&["lookup", "2", "--json"]).await;
    assert_eq!(item["stock"], 1500);
    let order = pygmy.json(&["buy", "2", "--quantity", "2", "--key", "mine", "--json"]).await;
    assert_eq!((&order["stock"], &order["quantity"]), (&1498.into(), &2.into()));
    let number = order["orderNumber"].to_string();
    assert_eq!(pygmy.json(&["order", &number, "--json"]).await, order);
    let again = pygmy.json(&["buy", "2", "--quantity", "2", "--key", "mine", "--json"]).await;
    assert_eq!(again, order, "the same key is the same order");
    let (code, _, error) = pygmy.run(&["buy", "3", "--quantity", "21"]).await;
    assert_eq!(code, 1, "{error}");
    let told = "pygmy: 20 are left, and 21 were wanted; try fewer copies, or later\n";
    assert_eq!(error, told);
    assert!(store.admin(&["set-stock", "3", "0"]).status.success());
    let (code, _, error) = pygmy.run(&["buy", "3"]).await;
    assert_eq!(code, 1, "{error}");
    assert!(error.contains("out of stock"), "{error}");
    let (code, _, error) = pygmy.run(&["lookup", "zero"]).await;
    assert_eq!(code, 2, "wrong usage: {error}");
}

#[tokio::test]
async fn the_client_process_and_the_test_cases_pass() {
    let store = Store::start(Layout::Nodes).await;
    let pygmy = CommandLine { store: &store, servers: store.public_urls() };
    let summary = pygmy.ok(&["client"]).await;
    assert!(!summary.is_empty());
    let log = fs::read_to_string(store.dir().join("ClientOutput.txt")).unwrap();
    assert!(log.contains("/search/") && log.contains("/lookup/") && log.contains("/buy/"), "{log}");
}

#[tokio::test]
async fn test_cases_that_fail_are_no_success_for_those_who_read_no_more_either() {
    let store = Store::start(Layout::Nodes).await;
    // The cases need an item in stock.
    for item in ["1", "2", "3"] {
        assert!(store.admin(&["set-stock", item, "0"]).status.success());
    }
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(PYGMY);
    command.args(["client", "--tests", "--config"]).arg(store.config());
    command.current_dir(store.dir()).stdout(writer);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("test cases failed; see tests.txt"), "{error}");
}

#[tokio::test]
async fn an_operator_changes_stock_and_cost_and_sees_the_servers() {
    let mut store = Store::start(Layout::Tiers).await;
    let pygmy = CommandLine { store: &store, servers: store.public_urls() };
    let config = store.config().to_string_lossy().into_owned();
    pygmy.ok(&["admin", "--config", &config, "set-stock", "2", "5"]).await;
    pygmy.ok(&["admin", "--config", &config, "set-cost", "2", "777"]).await;
    let item = pygmy.json(&["lookup", "2", "--json"]).await;
    assert_eq!((&item["stock"], &item["cost"]), (&5.into(), &777.into()));
    let table = pygmy.ok(&["admin", "--config", &config, "status"]).await;
    for name in ["catalog-1", "catalog-2", "catalog-3", "leader"] {
        assert!(table.contains(name), "{table}");
    }
    assert!(!table.contains("no answer"), "{table}");
    store.kill("catalog-3");
    let pygmy = CommandLine { store: &store, servers: store.public_urls() };
    let table = pygmy.ok(&["admin", "--config", &config, "status"]).await;
    let gone = table.lines().find(|line| line.starts_with("catalog-3")).unwrap();
    assert!(gone.contains("no answer"), "{table}");
    let shown = pygmy.ok(&["config", "show", &config]).await;
    assert!(shown.contains("catalog-1"), "{shown}");
    fs::write(&config, fs::read_to_string(&config).unwrap() + "\n[limits]\nmax_bodies = 1\n")
        .unwrap();
    let (code, _, error) = pygmy.run(&["config", "check", &config]).await;
    assert_eq!(code, 1, "{error}");
    assert!(error.contains("unknown key `max_bodies`") && error.contains("pygmy.toml:"), "{error}");
}

#[tokio::test]
async fn a_cluster_is_made_once() {
    let store = Store::start(Layout::Nodes).await;
    let pygmy = CommandLine { store: &store, servers: Vec::new() };
    let config = store.config().to_string_lossy().into_owned();
    let before = store.agreed().await;
    for more in [&[][..], &["--books"]] {
        let bootstrap = [&["admin", "bootstrap", "--config", &config], more].concat();
        let (code, _, error) = pygmy.run(&bootstrap).await;
        assert_eq!(code, 1, "{error}");
        assert!(error.contains("exists already, with other first items"), "{error}");
    }
    assert_eq!(store.agreed().await[0].state_hash, before[0].state_hash);
    // Clients find the store through the configuration as well.
    assert!(pygmy.ok(&["topics", "--config", &config]).await.contains("Graduate School"));
}

#[tokio::test]
async fn who_is_dead_is_named_and_a_store_that_is_gone_is_an_exit_code_of_its_own() {
    let mut store = Store::start_with(Layout::Nodes, "[respawn]\ncommand = [\"true\"]\n").await;
    store.kill("node-3");
    let output = store.admin(&["rolling-restart"]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.starts_with("pygmy: node-3 does not answer at "), "{error}");
    assert!(error.contains("nothing was restarted") && !error.contains("node-1"), "{error}");

    store.kill("node-1");
    store.kill("node-2");
    let config = store.config().to_string_lossy().into_owned();
    let pygmy = CommandLine { store: &store, servers: Vec::new() };
    for command in [&["admin", "rolling-restart"][..], &["client"], &["client", "--tests"]] {
        let (code, _, error) = pygmy.run(&[command, &["--config", &config]].concat()).await;
        assert_eq!(code, 3, "{command:?}: {error}");
        assert!(error.contains("no server answers at http://127.0.0.1:"), "{command:?}: {error}");
    }
}
