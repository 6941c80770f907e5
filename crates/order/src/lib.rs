//! The order tier: takes a buy, checks it, and has the catalog make it.
//!
//! `POST /buy/{itemNumber}` arrives in `routes`, over a socket or directly from a balancer of this
//! process, and is given an Idempotency-Key if it has none. `purchase` checks item number and body, makes a `Purchase` of them and sends it as
//! `POST /purchases`, with the key, to any balancer, which passes it to the catalog. The answer
//! goes back as it came. `GET /orders/{orderNumber}` becomes `GET /purchases/{orderNumber}` in
//! the same way.
//!
//! The tier holds no state: whether there is stock, what the price is and whether the key was
//! used before is decided in the catalog, in the one order of its log. So an order server may
//! die at any moment, and a buy that it held is simply asked again with the same key.

mod routes;

mod purchase;

use std::sync::Arc;

use pygmy_client::{Balancers, ServerConfig};
use pygmy_protocol::{
    Env,
    env::Listener,
    http::{Fatal, Measure, Readiness, Shutdown, Tier, internal, wrap},
    registration::Role,
};

use crate::{purchase::Purchases, routes::Routes};

/// Configuration of one order server.
pub struct Config {
    /// What every server has. It calls the catalog through `balancers`, and registers with them.
    pub server: ServerConfig,
}

/// Starts an order server: its routes, and the task that keeps it registered.
///
/// # Errors
/// There is no balancer in the configuration.
pub fn start(config: Config, env: &Env, shutdown: Shutdown) -> Result<Tier, Fatal> {
    let server = config.server;
    if server.balancers.is_empty() {
        let name = &server.name;
        return Err(Fatal(format!(
            "the order server {name} reaches the catalog through balancers: name at least one"
        )));
    }
    let balancers = Balancers::new(env, server.balancers.clone(), server.attempt_timeout);
    let purchases = Purchases { balancers, secret: server.secret.clone() };
    let readiness = Readiness::new();
    let registered = server.register(env, Role::Order, &readiness, shutdown);
    let routes = Arc::new(Routes {
        env: env.clone(),
        limits: server.limits.clone(),
        purchases,
        buys: Measure::new(&server.metrics, Role::Order.as_str(), routes::BUY),
    });
    let router = internal(routes::router(Arc::clone(&routes)), &server.secret);
    let router = wrap(router, env, &server.limits, &server.probes(Role::Order, &readiness));
    Ok(Tier {
        router,
        direct: Some(routes),
        metrics: server.metrics,
        tasks: vec![registered.task],
        background: Vec::new(),
    })
}

/// Starts an order server and serves it on `listener` until `shutdown`.
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
