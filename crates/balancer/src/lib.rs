//! The load balancer tier: knows which servers live, and passes requests on to them.
//!
//! A forwarded request comes in through `routes`, over a socket or directly from a tier of this
//! process; the first segment of its path says whether order or catalog servers take it. `forward` gives a change without an
//! Idempotency-Key one, then makes attempts: it asks the `registry` for the servers of the role
//! that are fit for traffic, `pick` chooses one of them (the one in this process; for a write
//! the leader; else in turns or the least loaded), and the request goes there for at most
//! `attempt_timeout`. An attempt that fails leads to another one on another server, while there
//! is one, the deadline allows it and the retry `budget` pays for it. How an attempt ended is
//! told to the server's `breaker`.
//!
//! What the registry knows of each `server` comes from two sides. Servers register, and repeat it
//! as their heartbeat: so a table that was lost is back within one heartbeat, and a server that
//! falls silent is out after three. And `probe` asks every server's `/readyz`, which finds those
//! that hang while their heartbeat goes on. Health is never stored, but judged from these facts
//! and the clock whenever somebody asks, so that nothing has to run for an expiry to take effect.
//!
//! Its [`Watcher`] looks at processes and not at tiers, and starts those again that are lost;
//! `GET /servers` tells what that remembers of each.
//!
//! Balancers share nothing and do not know one another. Each keeps its own table, and all of them
//! work at the same time.
//!
//! Caveats: "least loaded" counts the requests of this balancer only. A server with a hung
//! `/readyz` gets traffic until `probe_failures` probes have failed, or until its breaker opens,
//! whichever is first.

mod routes;

mod forward;

mod registry;
mod server;

mod probe;

mod pick;

mod breaker;
mod budget;

mod metrics;

mod settings;

#[cfg(test)]
mod testing;

pub use pick::Policy;
pub use settings::Settings;

use std::sync::Arc;

use pygmy_client::{
    LocalTier, ServerConfig,
    watch::{self, Watcher},
};
use pygmy_protocol::{
    Env,
    env::Listener,
    http::{Fatal, Readiness, Shutdown, Tier, internal, wrap},
    registration::Role,
};

use crate::{
    forward::Forwarder,
    probe::Prober,
    registry::Registry,
    routes::{Routes, Ways},
};

/// Configuration of one balancer.
pub struct Config {
    /// What every server has. A balancer registers nowhere: its `balancers` are not used.
    pub server: ServerConfig,
    /// How it balances.
    pub settings: Settings,
    /// The servers in the same process, which it calls without a socket.
    pub local: Vec<LocalServer>,
    /// What watches the processes of the cluster, if this one does.
    pub watcher: Option<Arc<Watcher>>,
}

/// A server in the balancer's own process. It registers like any other; name, role and URL are
/// how its registration is recognised.
#[derive(Clone)]
pub struct LocalServer {
    /// Its name.
    pub name: String,
    /// Its job.
    pub role: Role,
    /// Its base URL, as others reach it.
    pub url: String,
    /// The server.
    pub tier: LocalTier,
}

/// Starts a balancer: its routes, the task that probes the registered servers, and its watcher.
///
/// # Errors
/// A setting is out of range.
pub fn start(config: Config, env: &Env, shutdown: Shutdown) -> Result<Tier, Fatal> {
    let Config { server, settings, local, watcher } = config;
    settings.check().map_err(Fatal)?;
    let readiness = Readiness::new();
    let registry = Arc::new(Registry::new(env, &settings, local));
    for role in [Role::Catalog, Role::Order] {
        let registry = Arc::clone(&registry);
        readiness.check(role.as_str(), move || {
            registry.candidates(role).is_empty().then(|| format!("no {role} server is ready"))
        });
    }
    metrics::register(&registry, &server.metrics);
    let prober = Prober::new(env, &settings, Arc::clone(&registry));
    let mut tasks = vec![env.spawn(prober.run(readiness.clone(), shutdown.clone()))];
    tasks.extend(watcher.clone().map(|watcher| env.spawn(watcher.run(shutdown))));
    let forwarder = Forwarder::new(env, &server, &settings, Arc::clone(&registry));
    let (secret, limits) = (server.secret.clone(), server.limits.clone());
    let metrics = server.metrics.clone();
    let probes = server.probes(Role::Balancer, &readiness);
    let watched = watcher.clone().map(watch::routes).unwrap_or_default();
    let routes = Arc::new(Routes {
        env: env.clone(),
        ways: Ways::new(&server.metrics),
        server,
        readiness,
        registry,
        forwarder,
        watcher,
    });
    let router = routes::router(Arc::clone(&routes)).merge(watched);
    let router = wrap(internal(router, &secret), env, &limits, &probes);
    Ok(Tier { router, direct: Some(routes), metrics, tasks, background: Vec::new() })
}

/// Starts a balancer and serves it on `listener` until `shutdown`.
///
/// # Errors
/// As [`start`], or what ended the server early.
pub async fn run(
    config: Config,
    env: Env,
    listener: Box<dyn Listener>,
    shutdown: Shutdown,
) -> Result<(), Fatal> {
    let limits = config.server.limits.clone();
    start(config, &env, shutdown.clone())?.run(&env, listener, &limits, shutdown).await
}
