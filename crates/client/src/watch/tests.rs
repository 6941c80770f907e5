//! Watchers in a small world: a network in memory, a clock that leaps, and commands that are
//! written down.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    response::{IntoResponse, Response},
    routing::get,
};
use http::StatusCode;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use pygmy_protocol::{
    Env,
    env::{BoxFuture, Connection, Ended, Listener, Network, Processes},
    http::{PROCESS, Secret, Stopper, shutdown},
    metrics::Metrics,
    registration::Role,
    watched::{State, WatchedServer},
};

use super::{Config, Process, Settings, Watcher, leave, routes};
use crate::testing::PausedClock;

/// How a process is.
#[derive(Clone)]
enum Condition {
    /// Answers, as the process that is called so.
    Alive(String),
    Dead,
    Hung,
}

#[derive(Default)]
struct World {
    conditions: BTreeMap<String, Condition>,
    /// Pairs that do not reach one another.
    cut: BTreeSet<(String, String)>,
    watchers: BTreeMap<String, Router>,
    /// What was run: the watcher, and the command.
    commands: Vec<String>,
    /// Whether commands bring anything back.
    commands_fail: bool,
}

#[derive(Clone)]
struct Shared(Arc<Mutex<World>>, PausedClock);

impl Shared {
    fn with<T>(&self, f: impl FnOnce(&mut World) -> T) -> T {
        f(&mut self.0.lock().unwrap())
    }

    fn set(&self, name: &str, condition: Condition) {
        self.with(|world| world.conditions.insert(name.to_owned(), condition));
    }

    fn commands(&self) -> Vec<String> {
        self.with(|world| world.commands.clone())
    }

    fn cut_off(&self, name: &str) {
        self.with(|world| {
            for other in world.conditions.keys() {
                world.cut.insert((name.to_owned(), other.clone()));
                world.cut.insert((other.clone(), name.to_owned()));
            }
        });
    }

    fn router(&self, name: &str, process: &str) -> Router {
        let process = process.to_owned();
        let livez = move || async move { ([(PROCESS, process)], "alive\n").into_response() };
        let own = Router::new()
            .route("/livez", get(livez))
            .route("/readyz", get(|| async { StatusCode::OK }));
        match self.with(|world| world.watchers.get(name).cloned()) {
            Some(watcher) => own.merge(watcher),
            None => own.fallback(async || -> Response { StatusCode::NOT_FOUND.into_response() }),
        }
    }
}

/// The world as one process sees it.
struct Host {
    name: String,
    world: Shared,
}

impl Network for Host {
    fn listen(&self, _: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn Listener>>> {
        Box::pin(async { Err(io::ErrorKind::Unsupported.into()) })
    }

    fn connect<'a>(&'a self, authority: &'a str) -> BoxFuture<'a, io::Result<Connection>> {
        let name = authority.split(':').next().unwrap().to_owned();
        Box::pin(async move {
            let link = (self.name.clone(), name.clone());
            if self.world.with(|world| world.cut.contains(&link)) {
                return pending().await;
            }
            match self.world.with(|world| world.conditions[&name].clone()) {
                Condition::Dead => Err(io::ErrorKind::ConnectionRefused.into()),
                Condition::Hung => pending().await,
                Condition::Alive(process) => {
                    let (here, there) = tokio::io::duplex(64 * 1024);
                    let service = TowerToHyperService::new(self.world.router(&name, &process));
                    // One request for a connection: the next one finds what has changed.
                    let serving = hyper::server::conn::http1::Builder::new()
                        .keep_alive(false)
                        .serve_connection(TokioIo::new(there), service);
                    Env::production().spawn(async move {
                        let _ = serving.await;
                    });
                    Ok(Box::new(here) as Connection)
                }
            }
        })
    }
}

impl Processes for Host {
    fn run<'a>(&'a self, command: &'a [String]) -> BoxFuture<'a, io::Result<Ended>> {
        Box::pin(async move {
            let success = self.world.with(|world| {
                world.commands.push(format!("{}: {}", self.name, command.join(" ")));
                let number = world.commands.len();
                if !world.commands_fail {
                    let again = Condition::Alive(format!("respawned-{number}"));
                    world.conditions.insert(command[1].clone(), again);
                }
                !world.commands_fail
            });
            let how = if success { "exit status: 0" } else { "exit status: 1" };
            Ok(Ended { success, how: how.to_owned(), output: "so it is".to_owned() })
        })
    }
}

/// A cluster of processes, all alive, whose watchers run.
struct Cluster {
    world: Shared,
    processes: Vec<Process>,
    watchers: BTreeMap<String, Arc<Watcher>>,
    env: Env,
    _stoppers: Vec<Stopper>,
}

impl Cluster {
    fn new(servers: &[(&str, Role)]) -> Cluster {
        let world = Shared(Arc::default(), PausedClock::new());
        let processes: Vec<_> = servers.iter().map(|(name, role)| process(name, *role)).collect();
        for process in &processes {
            world.set(&process.name, Condition::Alive("first".to_owned()));
        }
        let env = env_of("operator", &world);
        world.set("operator", Condition::Dead);
        let mut cluster =
            Cluster { world, processes, watchers: BTreeMap::new(), env, _stoppers: Vec::new() };
        for process in cluster.processes.clone() {
            if process.watcher_url.is_some() {
                cluster.watch(&process.name);
            }
        }
        cluster
    }

    fn watch(&mut self, name: &str) {
        let env = env_of(name, &self.world);
        let config = Config {
            name: name.to_owned(),
            processes: self.processes.clone(),
            settings: Settings { command: Vec::new(), ..Settings::default() },
            interval: Duration::from_secs(2),
            config: "/etc/pygmy.toml".to_owned(),
            program: "/bin/pygmy".to_owned(),
            secret: secret(),
        };
        let watcher = Watcher::new(config, &env, &Metrics::new(&env)).unwrap();
        let router = routes(Arc::clone(&watcher));
        self.world.with(|world| world.watchers.insert(name.to_owned(), router));
        let (stopper, stopped) = shutdown();
        env.spawn(Arc::clone(&watcher).run(stopped));
        self._stoppers.push(stopper);
        self.watchers.insert(name.to_owned(), watcher);
    }

    /// Nine processes, as in the demo.
    fn tiers() -> Cluster {
        let mut servers = Vec::new();
        for (role, names) in [
            (Role::Balancer, vec!["balancer-1", "balancer-2"]),
            (Role::Catalog, vec!["catalog-1", "catalog-2", "catalog-3"]),
            (Role::Frontend, vec!["frontend-1", "frontend-2"]),
            (Role::Order, vec!["order-1", "order-2"]),
        ] {
            servers.extend(names.into_iter().map(|name| (name, role)));
        }
        Cluster::new(&servers)
    }

    fn nodes() -> Cluster {
        Cluster::new(&["node-1", "node-2", "node-3"].map(|name| (name, Role::All)))
    }

    async fn pass(&self, ms: u64) {
        self.env.sleep(Duration::from_millis(ms)).await;
    }

    fn seen(&self, watcher: &str, name: &str) -> WatchedServer {
        let servers = self.watchers[watcher].show().servers;
        servers.into_iter().find(|server| server.name == name).unwrap()
    }
}

fn secret() -> Secret {
    Secret::new("0123456789abcdef").unwrap()
}

fn env_of(name: &str, world: &Shared) -> Env {
    let host = || Host { name: name.to_owned(), world: world.clone() };
    let clock = Arc::new(world.1);
    Env { clock, network: Arc::new(host()), processes: Arc::new(host()), ..Env::production() }
}

fn process(name: &str, role: Role) -> Process {
    let url = format!("http://{name}:1");
    let watches = matches!(role, Role::Balancer | Role::Frontend | Role::All);
    Process {
        name: name.to_owned(),
        role,
        watcher_url: watches.then(|| url.clone()),
        url,
        parts: vec![name.to_owned()],
        command: ["{action}", "{name}", "{reason}"].map(str::to_owned).into(),
    }
}

#[test]
fn everybody_is_watched_and_nobody_twice_by_one_process() {
    let all = [Role::Balancer, Role::Frontend, Role::Order, Role::Catalog, Role::All];
    let watched_by = |role: Role| {
        let watches = |other: &Role| process("a", role).watches(&process("b", *other));
        all.into_iter().filter(watches).collect::<Vec<_>>()
    };
    assert_eq!(watched_by(Role::Balancer), all[1..]);
    assert_eq!(watched_by(Role::Frontend), [Role::Balancer]);
    assert_eq!(watched_by(Role::All), all);
    assert_eq!([watched_by(Role::Order), watched_by(Role::Catalog)], [[], []]);
    assert!(!process("a", Role::All).watches(&process("a", Role::All)), "not itself");
}

#[tokio::test(start_paused = true)]
async fn a_dead_process_is_started_within_a_second_by_one_watcher() {
    for (mut cluster, name, by) in [
        (Cluster::tiers(), "order-2", "balancer-1"),
        (Cluster::tiers(), "balancer-1", "frontend-1"),
        (Cluster::nodes(), "node-1", "node-2"),
    ] {
        cluster.pass(5_000).await;
        cluster.world.set(name, Condition::Dead);
        cluster.pass(1_000).await;
        assert_eq!(cluster.world.commands(), [format!("{by}: start {name} dead")]);
        // All know how it went, also the process itself, which was started anew.
        if cluster.watchers.contains_key(name) {
            cluster.watch(name);
        }
        cluster.pass(5_000).await;
        for (watcher, knows) in &cluster.watchers {
            let (respawns, story) = knows.story_of(name);
            let story = story.unwrap();
            assert_eq!((respawns, story.by.as_deref()), (1, Some(by)), "{watcher}");
            assert!(story.ready_at.unwrap() >= story.respawned_at.unwrap(), "{watcher}");
        }
        assert_eq!(cluster.world.commands().len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_hung_process_is_restarted_once_all_its_watchers_agree() {
    let cluster = Cluster::tiers();
    cluster.pass(5_000).await;
    cluster.world.set("catalog-2", Condition::Hung);
    cluster.pass(5_000).await;
    assert_eq!(cluster.world.commands(), Vec::<String>::new());
    cluster.pass(3_000).await;
    assert_eq!(cluster.world.commands(), ["balancer-1: restart catalog-2 hung"]);
    cluster.pass(60_000).await;
    assert_eq!(cluster.world.commands().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn who_is_cut_off_ends_nobody() {
    for cut_off in [&["balancer-1"][..], &["balancer-1", "balancer-2", "order-1"]] {
        let cluster = Cluster::tiers();
        cluster.pass(5_000).await;
        for name in cut_off {
            cluster.world.cut_off(name);
        }
        cluster.pass(120_000).await;
        let commands = cluster.world.commands();
        let by_cut_off = commands.iter().find(|c| cut_off.iter().any(|name| c.starts_with(name)));
        assert_eq!(by_cut_off, None, "{commands:?}");
        // The others do end what is silent to all of them: it may hang.
        assert!(commands.iter().all(|c| cut_off.iter().any(|name| c.contains(name))));
        assert!(!commands.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_process_that_one_watcher_does_not_reach_is_left_alone() {
    let cluster = Cluster::tiers();
    cluster.pass(5_000).await;
    let link = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    cluster.world.with(|world| world.cut.insert(link("balancer-1", "catalog-1")));
    cluster.pass(60_000).await;
    assert_eq!(cluster.seen("balancer-1", "catalog-1").state, State::Silent);
    assert_eq!(cluster.seen("balancer-2", "catalog-1").state, State::Alive);
    assert_eq!(cluster.world.commands(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_started_is_tried_less_and_less_often() {
    let cluster = Cluster::nodes();
    cluster.pass(5_000).await;
    cluster.world.with(|world| world.commands_fail = true);
    cluster.world.set("node-3", Condition::Dead);
    cluster.pass(10_000).await;
    let commands = cluster.world.commands();
    let of = |by: &str| commands.iter().filter(|c| c.starts_with(by)).count();
    // After 0, 0.5, 1.5, 3.5 and 7.5 s, and the second in line a second later.
    assert!((4..=5).contains(&of("node-1")), "{commands:?}");
    assert!((4..=5).contains(&of("node-2")), "a broken one is stood in for: {commands:?}");
    let seen = cluster.seen("node-1", "node-3");
    assert!(seen.next_respawn_ms.unwrap() > 1_000, "{seen:?}");
    let failure = seen.story.unwrap().failure.unwrap();
    assert_eq!(failure, "exit status: 1: so it is");
    cluster.pass(600_000).await;
    let more = cluster.world.commands().len() - commands.len();
    assert!((15..=25).contains(&more), "about one a minute from each: {more}");
}

#[tokio::test(start_paused = true)]
async fn one_that_left_in_order_is_not_started_until_it_was() {
    let mut cluster = Cluster::tiers();
    cluster.pass(5_000).await;
    leave(&cluster.env, &cluster.processes, "order-1", "first", &secret()).await;
    cluster.world.set("order-1", Condition::Dead);
    cluster.pass(60_000).await;
    assert!(cluster.seen("balancer-1", "order-1").left);
    // A watcher that was started meanwhile hears of it from the other.
    cluster.watch("balancer-1");
    cluster.pass(60_000).await;
    let started: Vec<_> =
        cluster.world.commands().into_iter().filter(|c| c.contains("order-1")).collect();
    assert_eq!(started, Vec::<String>::new());
    cluster.world.set("order-1", Condition::Alive("second".to_owned()));
    cluster.pass(1_000).await;
    cluster.world.set("order-1", Condition::Dead);
    cluster.pass(1_500).await;
    assert_eq!(cluster.world.commands().len(), 1);
}
