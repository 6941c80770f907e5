use std::{sync::Arc, time::Duration};

use pygmy_protocol::{
    Env,
    http::{Fatal, Limits, Probes, Readiness, Secret, Shutdown},
    metrics::Metrics,
    registration::{Registration, Role},
};
use tokio::{sync::watch, task::JoinHandle};

use crate::{
    Upstream,
    register::{Reached, keep_registered},
};

/// How often a server checks whether its own readiness changed, to tell the balancers before the
/// next heartbeat.
const READINESS_CHECK: Duration = Duration::from_millis(50);

/// What every server of any tier is configured with.
#[derive(Clone)]
pub struct ServerConfig {
    /// Its name in the configuration.
    pub name: String,
    /// Its base URL, as others reach it.
    pub url: String,
    /// Names its process: random, new with every start.
    pub process: String,
    /// The cluster's secret.
    pub secret: Secret,
    /// What it takes from one caller.
    pub limits: Limits,
    /// The balancers to register with.
    pub balancers: Vec<Arc<Upstream>>,
    /// Time between heartbeats to the balancers, 50 ms to 60 s.
    pub heartbeat: Duration,
    /// Longest time for one attempt on one server; less than the request's deadline, so that
    /// another one can be tried.
    pub attempt_timeout: Duration,
    /// The metrics of its process, to which each tier in it adds.
    pub metrics: Metrics,
}

/// A server's entry in the balancers' tables.
pub struct Registered {
    /// Changes what the balancers are told, at once.
    pub registration: Arc<watch::Sender<Registration>>,
    /// Whether any balancer has taken it yet.
    pub reached: Reached,
    /// Ends after the server was taken out.
    pub task: JoinHandle<Result<(), Fatal>>,
}

impl ServerConfig {
    /// What the probe routes of its part with `role` answer from.
    pub fn probes(&self, role: Role, readiness: &Readiness) -> Probes {
        Probes {
            name: self.name.clone(),
            process: self.process.clone(),
            tier: role.as_str(),
            readiness: readiness.clone(),
            metrics: self.metrics.clone(),
        }
    }

    /// Registers the server with all balancers, and keeps the entry in step with `readiness`,
    /// until `shutdown`; then the server becomes unready and leaves.
    pub fn register(
        &self,
        env: &Env,
        role: Role,
        readiness: &Readiness,
        shutdown: Shutdown,
    ) -> Registered {
        let first = Registration {
            name: self.name.clone(),
            role,
            url: self.url.clone(),
            nonce: env.random.hex(8),
            heartbeat_ms: self.heartbeat.as_millis() as u64,
            ready: readiness.is_ready(),
            leads_term: None,
            caught_up: None,
        };
        let (sender, receiver) = watch::channel(first);
        let sender = Arc::new(sender);
        let (env, server, readiness) = (env.clone(), self.clone(), readiness.clone());
        let registration = Arc::clone(&sender);
        let reached = Reached::default();
        let told = reached.clone();
        let task = env.clone().spawn(async move {
            let follow = follow_readiness(&env, &readiness, &registration, shutdown.clone());
            let ServerConfig { balancers, secret, .. } = &server;
            let keep = keep_registered(&env, balancers, secret, receiver, told, shutdown);
            tokio::join!(follow, keep);
            Ok(())
        });
        Registered { registration: sender, reached, task }
    }
}

async fn follow_readiness(
    env: &Env,
    readiness: &Readiness,
    registration: &watch::Sender<Registration>,
    mut shutdown: Shutdown,
) {
    loop {
        let ready = readiness.is_ready();
        registration.send_if_modified(|r| std::mem::replace(&mut r.ready, ready) != ready);
        tokio::select! {
            biased;
            () = shutdown.stopped() => break,
            () = env.sleep(READINESS_CHECK) => {}
        }
    }
    readiness.not_ready("server", "stopping");
}
