//! The catalog tier: items, stock and orders, replicated.
//!
//! A changing request enters through [`routes`], over a socket or directly from a balancer of this
//! process, and waits in the queue of [`propose`]. Whatever
//! waits goes together: on the leader as one entry of the Raft log ([`log`], fsynced before it
//! counts), on a follower as one message to the leader ([`peer`]). A majority has it; every
//! replica applies it to SQLite ([`state`]); the leader's gate ([`release`]) sends what changed to
//! the front ends ([`stream`]), waits until those that hold a lease have dropped it, and only then
//! lets the answer go. Who may hold one is registered through the log ([`holders`]).
//!
//! A read ([`read`]) asks the leader to prove, with a round to a majority, that it still leads;
//! any replica that has applied that far may then answer, after the same gate.
//!
//! Raft itself is openraft, behind [`raft`]'s types and runtime, [`peer`]'s network and
//! [`leadership`]'s view of it. [`replica`] puts everything together; [`bootstrap`] makes a
//! cluster of blank replicas, once; [`compact`] keeps the log short; [`ready`] says when a replica
//! wants traffic; [`damage`] stops a replica whose database is damaged, which its daily check of
//! everything finds out at the latest; [`room`] refuses changes before the disk is full; [`stall`]
//! hands the leadership over when the disk stalls, [`retire`] before the replica leaves; [`metrics`]
//! is what it counts, [`health`] what it says of itself. What reads or writes whole files is done
//! [`apart`] from the runtime's threads. [`identity`] binds a data directory to one Raft id for its
//! whole life. A replica whose directory was lost or damaged begins anew ([`rejoin`]) and asks its way
//! back in ([`join`]);
//! [`members`] is the leader's side of that and of every other change of the membership.

mod config;
mod routes;

mod propose;
mod read;

mod log;
mod peer;
mod raft;
mod state;

mod holders;
mod release;
mod stream;

mod bootstrap;
mod join;
mod members;
mod rejoin;

mod answer;
mod apart;
mod compact;
mod damage;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod health;
mod identity;
mod leadership;
mod metrics;
#[cfg(feature = "planted-bugs")]
mod planted;
mod ready;
mod replica;
mod retire;
mod room;
mod stall;

#[cfg(test)]
mod storage_suite;

pub use config::{Config, ELECTION_HEARTBEATS, LEASE_HEARTBEATS, ReplicaAddress, Settings};

use std::sync::Arc;

use pygmy_protocol::{
    Env,
    env::Listener,
    http::{Fatal, Shutdown, Tier, serve_starting, wrap},
    registration::Role,
};

/// Starts a replica: opens its data, starts Raft, registers.
///
/// # Errors
/// The data directory is in use, damaged, or of a newer version; a setting is out of range.
pub async fn start(config: Config, env: &Env, shutdown: Shutdown) -> Result<Tier, Fatal> {
    let server = config.server.clone();
    let started = replica::start(config, env, &shutdown).await?;
    let direct = Arc::new(routes::Directly::new(Arc::clone(&started.shared)));
    let router = routes::routes(Arc::clone(&started.shared));
    let router =
        wrap(router, env, &server.limits, &server.probes(Role::Catalog, &started.readiness));
    Ok(Tier {
        router,
        direct: Some(direct),
        metrics: server.metrics,
        tasks: started.tasks,
        background: started.background,
    })
}

/// Runs a replica on `listener` until `shutdown`.
///
/// # Errors
/// As [`start`], and whatever ends Raft: an error of the disk, above all.
pub async fn run(
    config: Config,
    env: Env,
    mut listener: Box<dyn Listener>,
    shutdown: Shutdown,
) -> Result<(), Fatal> {
    let limits = config.server.limits.clone();
    let process = config.server.process.clone();
    let inner = async {
        let tier = tokio::select! {
            biased;
            tier = start(config, &env, shutdown.clone()) => tier?,
            never = serve_starting(&env, &mut listener, &process) => match never {},
        };
        tier.run(&env, listener, &limits, shutdown).await
    };
    env.enter(inner).await
}
