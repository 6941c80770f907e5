//! Servers that are lost and come back by themselves, in a demo as people run it.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::{Method, StatusCode};
use pygmy_client::{
    Call, Upstream,
    store::{Patience, Store},
};
use pygmy_protocol::{
    Env, IdempotencyKey, RequestContext,
    http::Secret,
    order::{BuyBody, Order},
    registration::{CatalogStatus, Health, ServerStatus, Servers},
    watched::{Reason, Watched, WatchedServer},
};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::{
    demo::{ended, process_of, servers_of, signal},
    harness::{PYGMY, free_ports, until},
};

const REQUEST: Duration = Duration::from_secs(2);
/// Silence after which a server is taken for hung: short, so that the tests are.
const AFTER_MS: &str = "1000";

/// A demo whose servers watch one another. Dropping it kills everything.
struct Demo {
    env: Env,
    layout: &'static str,
    base: u16,
    dir: PathBuf,
    child: Option<Child>,
    _dir: TempDir,
}

impl Demo {
    /// A store with the seven books, ready.
    async fn start(layout: &'static str) -> Demo {
        let mut demo = Demo::new(layout);
        demo.run().await;
        demo
    }

    fn new(layout: &'static str) -> Demo {
        let env = Env::production();
        let temporary = tempfile::tempdir().unwrap();
        let dir = fs::canonicalize(temporary.path()).unwrap();
        let base = free_ports(&env, 20);
        Demo { env, layout, base, dir, child: None, _dir: temporary }
    }

    async fn run(&mut self) {
        let file = |name: &str| fs::File::create(self.dir.join(name)).unwrap();
        let (out, err) = (file("stdout"), file("stderr"));
        let mut command = Command::new(PYGMY);
        command.args(["demo", "--dir"]).arg(&self.dir);
        command.env("PYGMY_RESPAWN_AFTER_MS", AFTER_MS);
        // A server that hangs is out before it is ended.
        command.env("PYGMY_BALANCER_PROBE_INTERVAL_MS", "250");
        if !self.config().exists() {
            command.args(["--layout", self.layout, "--base-port", &self.base.to_string()]);
        }
        command.stdin(Stdio::null()).stdout(out).stderr(err);
        self.child = Some(command.spawn().unwrap());
        until("the store is ready", async || {
            let said = fs::read_to_string(self.dir.join("stdout")).ok()?;
            said.contains("Ctrl-C stops everything").then_some(())
        })
        .await;
    }

    fn config(&self) -> PathBuf {
        self.dir.join("pygmy.toml")
    }

    fn url(&self, offset: u16) -> String {
        format!("http://127.0.0.1:{}", self.base + offset)
    }

    /// The base URL of a balancer, by its number.
    fn balancer(&self, number: u16) -> String {
        match (self.layout, number) {
            ("nodes", number) => format!("{}/balancer", self.url(10 + number)),
            (_, 1) => self.url(0),
            _ => self.url(7),
        }
    }

    async fn ask<T: serde::de::DeserializeOwned>(&self, url: &str, path: &str) -> Option<T> {
        let secret = Secret::read(&self.dir.join("secret")).ok()?;
        let context = RequestContext::fresh(&self.env, REQUEST);
        let call = Call::new(Method::GET, path, context).with_secret(&secret);
        let upstream = Upstream::remote(&self.env, url).unwrap();
        upstream.send(&call, REQUEST).await.ok()?.json().ok()
    }

    async fn servers(&self, balancer: String) -> Option<Vec<ServerStatus>> {
        Some(self.ask::<Servers>(&balancer, "/servers").await?.servers)
    }

    /// What a balancer says of a server.
    async fn told(&self, name: &str) -> Option<ServerStatus> {
        self.all_told(name).await.pop()
    }

    /// What the balancers that answer say of a server.
    async fn all_told(&self, name: &str) -> Vec<ServerStatus> {
        let mut told = Vec::new();
        for number in 1..=2 {
            let servers = self.servers(self.balancer(number)).await.unwrap_or_default();
            told.extend(servers.into_iter().filter(|server| server.name == name));
        }
        told
    }

    async fn leader(&self) -> String {
        until("there is a leader", async || {
            let servers = self.servers(self.balancer(2)).await?;
            servers.into_iter().find(|server| server.leader).map(|server| server.name)
        })
        .await
    }

    fn pid(&self, name: &str) -> Option<Pid> {
        Pid::from_raw(process_of(&self.dir, name)?.cast_signed())
    }

    fn send(&self, name: &str, signal: Signal) -> Pid {
        let pid = self.pid(name).expect("it runs");
        kill_process(pid, signal).unwrap();
        pid
    }

    /// Waits until another process than `before` runs the server, and all balancers that know of
    /// it say that it is ready and how it came back.
    async fn back(&self, name: &str, part: &str, before: Pid) -> ServerStatus {
        until(&format!("{name} is back"), async || {
            self.pid(name).filter(|pid| *pid != before)?;
            let mut all = self.all_told(part).await;
            // Both of them tell it: what one knows must not be lost with it.
            let is_complete = |told: &ServerStatus| {
                let done =
                    told.story.as_ref().is_some_and(|s| s.ready_at.is_some() && s.by.is_some());
                done && told.respawns > 0 && told.health == Health::Ready
            };
            all.iter().all(is_complete).then(|| all.pop())?
        })
        .await
    }

    fn said(&self) -> String {
        fs::read_to_string(self.dir.join("stderr")).unwrap_or_default()
    }

    fn admin(&self, command: &str) -> Output {
        Command::new(PYGMY)
            .arg("admin")
            .args(command.split(' '))
            .arg("--config")
            .arg(self.config())
            .output()
            .unwrap()
    }

    async fn stop(&mut self) {
        let child = self.child.take().expect("it runs");
        signal(&child, Signal::INT);
        let output = ended(child).await;
        assert!(output.status.success(), "{}", self.said());
        assert_eq!(servers_of(&self.dir), Vec::<u32>::new());
    }

    fn public_urls(&self) -> Vec<String> {
        let offsets: &[u16] = if self.layout == "nodes" { &[1, 2, 3] } else { &[1, 8] };
        offsets.iter().map(|offset| self.url(*offset)).collect()
    }

    /// Buyers as customers are: each buy is asked for with its key until it is certain.
    fn keep_buying(&self, buyers: usize) -> Buying {
        // However fast they are and however long it takes, it does not sell out.
        assert!(self.admin("set-stock 1 100000000").status.success());
        let stop = Arc::new(AtomicBool::new(false));
        let task = |buyer: usize| {
            // Each begins with another front end.
            let mut urls = self.public_urls();
            let count = urls.len();
            urls.rotate_left(buyer % count);
            let (env, stop) = (self.env.clone(), Arc::clone(&stop));
            tokio::spawn(async move {
                let store = Store::new(&env, &urls, Patience::default()).unwrap();
                let mut orders = BTreeMap::new();
                while !stop.load(Ordering::Relaxed) {
                    let key = IdempotencyKey::random(&env);
                    let item = 1.try_into().unwrap();
                    let bought = store.buy(item, BuyBody::default(), key.clone()).await;
                    let order =
                        bought.expect("a customer who repeats with the key is served").order;
                    orders.insert(key.as_str().to_owned(), order);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                orders
            })
        };
        let tasks = (0..buyers).map(task).collect();
        Buying { stop, tasks }
    }

    /// Every order of the buyers is there once, and there is no other.
    async fn has_exactly(&self, orders: usize) {
        until("all replicas have all orders", async || {
            for replica in 1..=3 {
                let url = match self.layout {
                    "nodes" => format!("{}/catalog", self.url(10 + replica)),
                    _ => self.url(1 + replica),
                };
                let status = self.ask::<CatalogStatus>(&url, "/status").await?;
                assert!(status.orders <= orders as u64, "more than were bought: {status:?}");
                if status.orders < orders as u64 {
                    return None;
                }
            }
            Some(())
        })
        .await;
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- the demo said\n{}", self.said());
            for log in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
                let text = fs::read_to_string(log.path().join("log.txt")).unwrap_or_default();
                let lines: Vec<_> = text.lines().rev().take(12).collect();
                eprintln!("--- {}", log.path().display());
                lines.iter().rev().for_each(|line| eprintln!("{line}"));
            }
        }
    }
}

struct Buying {
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<BTreeMap<String, Order>>>,
}

impl Buying {
    /// How many orders were made, each with a number of its own.
    async fn finish(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        let mut numbers = std::collections::BTreeSet::new();
        let mut count = 0;
        for task in self.tasks {
            for order in task.await.unwrap().into_values() {
                numbers.insert(order.order_number);
                count += 1;
            }
        }
        assert_eq!(numbers.len(), count, "no two keys have one order");
        count
    }
}

#[tokio::test]
async fn every_kind_of_server_that_is_killed_comes_back_by_itself() {
    let mut demo = Demo::start("tiers").await;
    let buying = demo.keep_buying(2);
    let leader = demo.leader().await;
    let follower = ["catalog-1", "catalog-2", "catalog-3"].into_iter().find(|n| *n != leader);
    for name in ["order-1", "frontend-2", "balancer-1", follower.unwrap(), &leader] {
        let before = demo.send(name, Signal::KILL);
        let told = demo.back(name, name, before).await;
        let story = told.story.unwrap();
        assert_eq!(story.reason, Reason::Dead, "{name}");
        assert!(story.noticed_at <= story.respawned_at.unwrap(), "{name}: {story:?}");
        assert!(story.respawned_at <= story.ready_at, "{name}: {story:?}");
        assert_eq!(story.caught_up.is_some(), name.starts_with("catalog"), "{name}: {story:?}");
        let said = demo.said();
        assert!(said.contains(&format!("{name} has ended (signal: 9 (SIGKILL))")), "{said}");
        assert!(said.contains(&format!("{name} is back after ")), "{said}");
    }
    let status = String::from_utf8(demo.admin("status").stdout).unwrap();
    assert!(status.contains("started again: ") && status.contains("order-1 once"), "{status}");
    let orders = buying.finish().await;
    demo.has_exactly(orders).await;
    demo.stop().await;
}

#[tokio::test]
async fn a_node_that_is_killed_comes_back_by_itself() {
    let mut demo = Demo::start("nodes").await;
    let buying = demo.keep_buying(2);
    let leader = demo.leader().await;
    let node = leader.strip_suffix("-catalog").unwrap().to_owned();
    for name in [node.as_str(), if node == "node-1" { "node-2" } else { "node-1" }] {
        let before = demo.send(name, Signal::KILL);
        let told = demo.back(name, &format!("{name}-catalog"), before).await;
        assert!(told.story.unwrap().caught_up.is_some());
    }
    let orders = buying.finish().await;
    demo.has_exactly(orders).await;
    demo.stop().await;
}

#[tokio::test]
async fn a_server_that_hangs_gets_no_requests_and_is_ended_and_started_again() {
    for (layout, name, part) in
        [("tiers", "order-1", "order-1"), ("nodes", "node-3", "node-3-order")]
    {
        let mut demo = Demo::start(layout).await;
        let before = demo.send(name, Signal::STOP);
        until("it gets no requests", async || {
            let told = demo.told(part).await?;
            (told.health != Health::Ready).then_some(())
        })
        .await;
        let told = demo.back(name, part, before).await;
        assert_eq!(told.story.unwrap().reason, Reason::Hung);
        assert!(demo.said().contains(&format!("{name} hangs, says ")), "{}", demo.said());
        demo.stop().await;
    }
}

#[tokio::test]
async fn a_server_that_hangs_while_the_demo_starts_is_started_again() {
    let mut demo = Demo::start("nodes").await;
    demo.stop().await;
    let (dir, port) = (demo.dir.clone(), demo.base + 13);
    let hang = async {
        let listens = async || std::net::TcpStream::connect(("127.0.0.1", port)).ok();
        until("node-3 listens", listens).await;
        let process = process_of(&dir, "node-3").expect("it listens");
        kill_process(Pid::from_raw(process.cast_signed()).unwrap(), Signal::STOP).unwrap();
    };
    // On a fast machine all may be ready just before; then it is started again after that.
    tokio::join!(demo.run(), hang);
    until("node-3 is back", async || demo.said().contains("node-3 is back after").then_some(()))
        .await;
    demo.stop().await;
}

#[tokio::test]
async fn a_server_that_cannot_be_started_is_tried_less_and_less_often() {
    let mut demo = Demo::start("nodes").await;
    demo.stop().await;
    // Its own command stands at the end of its entry, the last of the file.
    let config = fs::read_to_string(demo.config()).unwrap();
    fs::write(demo.config(), format!("{config}respawn = [\"sh\", \"-c\", \"echo no; exit 7\"]\n"))
        .unwrap();
    demo.run().await;
    demo.send("node-3", Signal::KILL);
    let seen = until("the watchers wait for longer and longer", async || {
        let watched = demo.ask::<Watched>(&demo.balancer(1), "/watched").await?;
        let seen = watched.servers.into_iter().find(|server| server.name == "node-3")?;
        (seen.next_respawn_ms? > 1_000).then_some(seen)
    })
    .await;
    let WatchedServer { respawns, story, .. } = seen;
    assert_eq!(respawns, 0, "none has succeeded");
    assert_eq!(story.unwrap().failure.as_deref(), Some("exit status: 7: no"));
    let told = demo.told("node-3-order").await;
    assert_eq!(told.unwrap().story.unwrap().failure.as_deref(), Some("exit status: 7: no"));
    let log = fs::read_to_string(demo.dir.join("node-1/log.txt")).unwrap();
    assert!(log.contains("the command that starts it again has failed"), "{log}");
    assert!(demo.pid("node-3").is_none());
    demo.stop().await;
}

#[tokio::test]
async fn a_server_that_is_stopped_in_order_is_left_alone() {
    let mut demo = Demo::start("tiers").await;
    let balancer = demo.balancer(2);
    for (name, watcher) in [("order-1", balancer), ("balancer-2", demo.url(1))] {
        demo.send(name, Signal::TERM);
        let left = async || {
            let watched = demo.ask::<Watched>(&watcher, "/watched").await?;
            let seen = watched.servers.into_iter().find(|server| server.name == name)?;
            (seen.left && seen.state == pygmy_protocol::watched::State::Dead).then_some(seen)
        };
        let seen = until("those that watch it know that it left", left).await;
        assert_eq!((seen.respawns, seen.story), (0, None));
    }
    // Who does not know the secret learns nothing, and takes nobody out: front ends are public.
    for (method, path) in [(Method::GET, "/watched"), (Method::DELETE, "/watched/balancer-1/x")] {
        let call = Call::new(method, path, RequestContext::fresh(&demo.env, REQUEST));
        let front_end = Upstream::remote(&demo.env, &demo.url(1)).unwrap();
        let answer = front_end.send(&call, REQUEST).await.unwrap();
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    }
    // Another one that dies meanwhile is started, after those were looked at again and again.
    let before = demo.send("order-2", Signal::KILL);
    demo.back("order-2", "order-2", before).await;
    assert!(demo.pid("order-1").is_none() && demo.pid("balancer-2").is_none());
    demo.stop().await;
}

#[tokio::test]
async fn a_rolling_restart_costs_no_customer_a_buy() {
    for (layout, count) in [("tiers", 9), ("nodes", 3)] {
        let mut demo = Demo::start(layout).await;
        let before = servers_of(&demo.dir);
        let leader = demo.leader().await;
        let buying = demo.keep_buying(3);
        let mut rolling = Command::new(PYGMY);
        rolling.args(["admin", "rolling-restart", "--config"]).arg(demo.config());
        let output = tokio::task::spawn_blocking(move || rolling.output().unwrap()).await.unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{said}{error}");
        let orders = buying.finish().await;
        assert!(orders > 0);
        demo.has_exactly(orders).await;
        let after = servers_of(&demo.dir);
        assert_eq!(after.len(), count);
        assert!(after.iter().all(|pid| !before.contains(pid)), "every process is another one");
        let leader = leader.strip_suffix("-catalog").unwrap_or(&leader).to_owned();
        assert!(
            said.contains(&format!("3/{count} {leader}: ready after ")),
            "the leader last: {said}"
        );
        assert!(
            said.ends_with(&format!("all {count} servers were restarted, one after the other\n"))
        );
        demo.stop().await;
    }
}

#[tokio::test]
async fn without_a_command_there_is_no_rolling_restart() {
    let mut demo = Demo::new("nodes");
    let config = demo.dir.join("pygmy.toml");
    demo.run().await;
    demo.stop().await;
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{text}respawn = []\n")).unwrap();
    let output = demo.admin("rolling-restart");
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(
        error.contains("no command that restarts node-3") && error.contains("[respawn]"),
        "{error}"
    );
}
