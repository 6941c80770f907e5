//! Keeping a server in the balancers' tables.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::{Method, StatusCode};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use pygmy_protocol::{
    Env, RequestContext,
    http::{Secret, Shutdown},
    registration::Registration,
};
use tokio::sync::watch;

use crate::{Call, Upstream};

/// Longest wait for a balancer's answer to a heartbeat.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(1);
/// Wait after a heartbeat that failed: a balancer that comes back has its table soon.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Whether any balancer has taken a registration yet.
#[derive(Debug, Clone, Default)]
pub struct Reached(Arc<AtomicBool>);

impl Reached {
    /// Whether one has.
    pub fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Registers with every balancer, repeats it as the heartbeat and at once when the registration
/// changes, and takes the server out when `shutdown` says stop. Completes after that. `reached` is
/// told when the first one takes it.
pub async fn keep_registered(
    env: &Env,
    balancers: &[Arc<Upstream>],
    secret: &Secret,
    registration: watch::Receiver<Registration>,
    reached: Reached,
    shutdown: Shutdown,
) {
    let tasks: Vec<_> = balancers
        .iter()
        .map(|balancer| {
            let heartbeat = Heartbeat {
                env: env.clone(),
                balancer: Arc::clone(balancer),
                secret: secret.clone(),
                registration: registration.clone(),
                reached: reached.clone(),
            };
            env.spawn(heartbeat.run(shutdown.clone()))
        })
        .collect();
    for task in tasks {
        // A panic has been reported by itself, and nobody cancels these tasks.
        let _ = task.await;
    }
}

struct Heartbeat {
    env: Env,
    balancer: Arc<Upstream>,
    secret: Secret,
    registration: watch::Receiver<Registration>,
    reached: Reached,
}

impl Heartbeat {
    async fn run(mut self, mut shutdown: Shutdown) {
        let mut known = None;
        loop {
            let current = self.registration.borrow_and_update().clone();
            let refusal = self.register(&current).await.err();
            let ok = refusal.is_none();
            let interval = Duration::from_millis(current.heartbeat_ms);
            let interval = if ok { interval } else { interval.min(RETRY_PAUSE) };
            if ok {
                self.reached.0.store(true, Ordering::Relaxed);
            }
            if known != Some(ok) {
                known = Some(ok);
                self.tell(refusal);
            }
            tokio::select! {
                biased;
                () = shutdown.stopped() => break,
                // The sender is gone only when the server ends, which shutdown says as well.
                Ok(()) = self.registration.changed() => {}
                () = self.env.sleep(interval) => {}
            }
        }
        self.leave().await;
    }

    async fn register(&self, registration: &Registration) -> Result<(), String> {
        let call = self.call(Method::POST, "/register".to_owned()).with_json(registration);
        match self.balancer.send(&call, HEARTBEAT_TIMEOUT).await {
            Ok(answer) if answer.status.is_success() => Ok(()),
            Ok(answer) if answer.status == StatusCode::UNAUTHORIZED => {
                Err("it has another secret (secret_file)".to_owned())
            }
            Ok(answer) => Err(answer.problem().detail.into_owned()),
            Err(failure) => Err(failure.to_string()),
        }
    }

    async fn leave(&self) {
        let Registration { name, nonce, .. } = self.registration.borrow().clone();
        let name = utf8_percent_encode(&name, NON_ALPHANUMERIC);
        // The nonce, because a goodbye that comes late must not be for the next process of this name.
        let call = self.call(Method::DELETE, format!("/register/{name}?nonce={nonce}"));
        match self.balancer.send(&call, HEARTBEAT_TIMEOUT).await {
            Ok(answer) if answer.status.is_success() || answer.status == StatusCode::NOT_FOUND => {}
            // A balancer that is gone as well needs no goodbye.
            Ok(_) | Err(_) => {
                tracing::debug!(balancer = self.balancer.url(), "could not say goodbye");
            }
        }
    }

    fn call(&self, method: Method, target: String) -> Call {
        let context = RequestContext::fresh(&self.env, HEARTBEAT_TIMEOUT);
        Call::new(method, target, context).with_secret(&self.secret)
    }

    fn tell(&self, refusal: Option<String>) {
        let balancer = self.balancer.url();
        match refusal {
            None => tracing::info!(balancer, "registered"),
            Some(why) => {
                tracing::warn!(balancer, why, "cannot register; trying again with every heartbeat");
            }
        }
    }
}
