//! The front end: the public HTTP API over a cache that the catalog keeps fresh.
//!
//! **The life of a lookup.** `GET /lookup/7` comes to `routes`, which makes a `flight::Query`
//! of it and asks `read`. That looks in the `cache`, which answers only while the lease lasts that
//! `follow` gets from the catalog's leader. A hit is a JSON document ready to send. An item that has
//! just been sold is `becoming` something else: its new value is here, and whoever asks waits for
//! the word that it may be told. A miss boards a `flight`: the first one who misses item 7 sends one
//! query through a balancer to a catalog server, the others wait for it. The answer comes with
//! the log index of the state that was read; the cache keeps it unless an invalidation has
//! overtaken it. A search is the same with a page of item numbers, to which the items' own
//! entries are put; a sale drops one item, never a page.
//!
//! **The life of a buy.** `POST /buy/7` comes to `routes`, is checked, let in by `admission` or
//! refused at once, and gets an Idempotency-Key if it has none, so that every hop may retry it. A
//! balancer takes it to an order server, and the answer goes back unparsed. Before anyone hears of
//! the sale, its invalidation has come down the stream that `follow` holds open with the catalog's
//! leader, item 7 is gone from the cache, and that has been acknowledged.
//!
//! **Why a cached answer is never stale.** The cache answers only under a lease that the leader has
//! granted after a majority had confirmed it, and while one lasts no change is revealed to anybody
//! before this front end has dropped what it changed. `DESIGN.md` beside this crate tells the whole
//! protocol and why it holds.

mod home;
mod routes;

mod admission;

mod read;

mod becoming;
mod cache;
mod entry;

mod flight;

mod follow;

mod metrics;

use std::{sync::Arc, time::Duration};

use pygmy_client::{
    Balancers, ServerConfig,
    watch::{self, Watcher},
};
use pygmy_protocol::{
    Env,
    env::Listener,
    http::{Fatal, Readiness, Shutdown, Tier, internal, wrap},
    invalidation::{self, LEASE_MS},
    registration::Role,
};
use serde::{Deserialize, Serialize};

use crate::{
    admission::Admission, becoming::Becoming, cache::Cache, flight::Flights, follow::Follower,
    metrics::Counters, read::Reader, routes::App,
};

/// What a front end is started with.
#[derive(Clone)]
pub struct Config {
    /// What every server has.
    pub server: ServerConfig,
    /// The base URLs of the catalog servers, one of which leads. At least one.
    pub catalogs: Vec<String>,
    /// The front end's own section of the configuration file.
    pub settings: Settings,
    /// What watches the balancers, if this one does.
    pub watcher: Option<Arc<Watcher>>,
}

/// `[frontend]` in the configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Most memory of the cache in bytes, 1 MiB to 1 TiB.
    pub cache_bytes: u64,
    /// How long the cache is served after a lease on it was asked for, in milliseconds, 50 to
    /// 10,000. The same for the whole cluster. It is renewed three times as often, and a change
    /// waits as long for a front end that is gone, once, which sets the upper end.
    pub lease_ms: u64,
    /// Most queries to the catalog at a time, 1 to 1,000,000; over it: 503.
    pub flights_max: usize,
    /// Within which time the store is to answer what the cache cannot, in milliseconds, 10 to
    /// 60,000. When it takes longer, fewer requests are let in; over what is let in: 429.
    pub answer_goal_ms: u64,
    /// Most requests that are let in at a time, 1 to 1,000,000, however fast the store is; over
    /// it: 429.
    pub admitted_max: usize,
    /// What a read from the cache promises. The same for the whole cluster.
    pub consistency: Consistency,
}

/// What a read from the cache promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Consistency {
    /// A read that begins after a change was acknowledged sees it, whichever front end answers. A
    /// change waits until the front ends have dropped what it changed.
    Linearizable,
    /// Changes are pushed to the front ends and nobody waits for them: a change is acknowledged a
    /// network round trip earlier, and a front end that dies delays nothing. It gives up this: a
    /// read may miss a change that was acknowledged to somebody else, or even to the same client
    /// through another front end, until the push has arrived, and for `lease_ms` at most.
    Eventual,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            cache_bytes: 256 << 20,
            lease_ms: 500,
            flights_max: 10_000,
            answer_goal_ms: 500,
            admitted_max: 10_000,
            consistency: Consistency::Linearizable,
        }
    }
}

impl Settings {
    /// Checks the ranges.
    ///
    /// # Errors
    /// A sentence that names the setting.
    pub fn check(&self) -> Result<(), String> {
        let ranges = [
            ("cache_bytes", self.cache_bytes, 1 << 20..=1 << 40),
            ("lease_ms", self.lease_ms, LEASE_MS),
            ("flights_max", self.flights_max as u64, 1..=1_000_000),
            ("answer_goal_ms", self.answer_goal_ms, 10..=60_000),
            ("admitted_max", self.admitted_max as u64, 1..=1_000_000),
        ];
        match ranges.into_iter().find(|(_, value, range)| !range.contains(value)) {
            None => Ok(()),
            Some((name, value, range)) => {
                let (low, high) = range.into_inner();
                Err(format!("{name} is {value}; it must be from {low} to {high}"))
            }
        }
    }
}

/// Starts a front end: its routes, its place in the balancers' tables, and its stream from the
/// catalog's leader. It is ready as soon as a balancer knows it: all that is not in the cache goes
/// through one. It needs no session for that, because reads go to the catalog while there is none.
///
/// # Errors
/// A setting out of range, or no balancer or catalog server to talk to.
pub fn start(config: Config, env: &Env, shutdown: Shutdown) -> Result<Tier, Fatal> {
    let Config { server, catalogs, settings, watcher } = config;
    settings.check().map_err(Fatal)?;
    if server.balancers.is_empty() || catalogs.is_empty() {
        let what = "a front end needs at least one balancer and one catalog server";
        return Err(Fatal(what.to_owned()));
    }
    let balancers = Arc::new(Balancers::new(env, server.balancers.clone(), server.attempt_timeout));
    let counters = Arc::new(Counters::default());
    let goal = Duration::from_millis(settings.answer_goal_ms);
    let admission = Admission::new(env, &server.metrics, goal, settings.admitted_max);
    let reader = Arc::new(Reader {
        env: env.clone(),
        becoming: Becoming::default(),
        cache: Cache::new(env, settings.cache_bytes, &counters),
        flights: Arc::new(Flights::new(settings.flights_max)),
        admission: Arc::clone(&admission),
        balancers: Arc::clone(&balancers),
        secret: server.secret.clone(),
        limits: server.limits.clone(),
        counters,
        flights_refused: server.metrics.rejections("flights_max"),
    });
    metrics::register(&reader, &server.metrics);
    let lease = Duration::from_millis(settings.lease_ms);
    let random = u128::from(env.random.u64()) << 64 | u128::from(env.random.u64());
    let follower = Follower {
        env: env.clone(),
        reader: Arc::clone(&reader),
        catalogs,
        secret: server.secret.clone(),
        name: server.name.clone(),
        nonce: invalidation::nonce(random, lease),
        lease,
        term: 0,
    };
    let readiness = Readiness::new();
    let registered = server.register(env, Role::Frontend, &readiness, shutdown.clone());
    let reached = registered.reached;
    readiness.check("balancers", move || {
        (!reached.get()).then(|| "no balancer has been reached yet".to_owned())
    });
    let app = App {
        env: env.clone(),
        limits: server.limits.clone(),
        secret: server.secret.clone(),
        admission,
        reader,
        balancers,
    };
    let probes = server.probes(Role::Frontend, &readiness);
    let mut tasks = vec![registered.task, env.spawn(follower.run(shutdown.clone()))];
    let mut router = routes::router(app);
    if let Some(watcher) = watcher {
        router = router.merge(internal(watch::routes(Arc::clone(&watcher)), &server.secret));
        tasks.push(env.spawn(watcher.run(shutdown)));
    }
    let router = wrap(router, env, &server.limits, &probes);
    Ok(Tier { router, direct: None, metrics: server.metrics, tasks, background: Vec::new() })
}

/// Runs a front end on `listener` until `shutdown`.
///
/// # Errors
/// As [`start`].
pub async fn run(
    config: Config,
    env: Env,
    listener: Box<dyn Listener>,
    shutdown: Shutdown,
) -> Result<(), Fatal> {
    let limits = config.server.limits.clone();
    let tier = start(config, &env, shutdown.clone())?;
    tier.run(&env, listener, &limits, shutdown).await
}
