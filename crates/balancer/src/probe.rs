//! Asks every registered server whether it is ready.
//!
//! A server that hangs is out within two intervals: the first probe that finds it comes within one,
//! and those that confirm it follow at once and take no longer than another.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::future::join_all;
use http::{Method, StatusCode};
use pygmy_client::{Answer, Call, Failure};
use pygmy_protocol::{
    Env, RequestContext,
    http::{Fatal, Readiness, Shutdown},
};
use serde::Deserialize;

use crate::{
    registry::Registry,
    server::{Probed, Server},
    settings::Settings,
};

/// Shortest and longest wait for an answer: `/readyz` does no work, but machines may be busy.
const PROBE_TIMEOUT_MIN: Duration = Duration::from_millis(50);
const PROBE_TIMEOUT_MAX: Duration = Duration::from_secs(1);
/// Longest reason that is kept, in characters.
const MAX_REASON_CHARS: usize = 200;

pub(crate) struct Prober {
    env: Env,
    interval: Duration,
    timeout: Duration,
    registry: Arc<Registry>,
}

impl Prober {
    pub(crate) fn new(env: &Env, settings: &Settings, registry: Arc<Registry>) -> Prober {
        let interval = settings.probe_interval();
        // Checked to be from 1 to 100.
        let each = interval / settings.probe_failures as u32;
        let timeout = each.clamp(PROBE_TIMEOUT_MIN, PROBE_TIMEOUT_MAX);
        Prober { env: env.clone(), interval, timeout, registry }
    }

    /// Probes in rounds until `shutdown`; then the balancer itself is no longer ready.
    pub(crate) async fn run(
        self,
        readiness: Readiness,
        mut shutdown: Shutdown,
    ) -> Result<(), Fatal> {
        let rounds = async {
            loop {
                let begun = self.env.now();
                self.round().await;
                let taken = self.env.now().saturating_since(begun);
                self.env.sleep(self.interval.saturating_sub(taken)).await;
            }
        };
        tokio::select! {
            biased;
            () = shutdown.stopped() => {}
            () = rounds => {}
        }
        readiness.not_ready("server", "stopping");
        Ok(())
    }

    /// Probes all servers at the same time. No round outlasts the interval (unless that is below
    /// 50 ms for each failure), so that a server that hangs does not delay the next one.
    async fn round(&self) {
        self.registry.sweep();
        let servers = self.registry.registered();
        join_all(servers.iter().map(|server| self.probe(server))).await;
    }

    async fn probe(&self, server: &Server) {
        while self.probe_once(server).await {}
    }

    async fn probe_once(&self, server: &Server) -> bool {
        let sent_at = self.env.now();
        let context = RequestContext::fresh(&self.env, self.timeout);
        let call = Call::new(Method::GET, "/readyz", context);
        let outcome = judge(server.upstream.send(&call, self.timeout).await);
        server.probed(outcome, sent_at, self.env.now())
    }
}

/// What `/readyz` says when it is not ready.
#[derive(Deserialize)]
struct NotReady {
    reasons: BTreeMap<String, String>,
}

fn judge(result: Result<Answer, Failure>) -> Probed {
    match result {
        Ok(answer) if answer.status == StatusCode::OK => Probed::Ready,
        Ok(answer) => {
            let reason = match serde_json::from_slice::<NotReady>(&answer.body) {
                Ok(NotReady { reasons }) if !reasons.is_empty() => {
                    let reasons: Vec<_> =
                        reasons.iter().map(|(k, v)| format!("{k}: {v}")).collect();
                    reasons.join("; ")
                }
                _ => format!("/readyz answers {}", answer.status),
            };
            Probed::Unready(reason.chars().take(MAX_REASON_CHARS).collect())
        }
        Err(failure) => {
            let reason = format!("/readyz: {failure}").chars().take(MAX_REASON_CHARS).collect();
            match failure {
                Failure::Refused(_) => Probed::Refused(reason),
                Failure::NotSent(_) | Failure::Unanswered(_) => Probed::Unanswered(reason),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::pending,
        sync::atomic::{AtomicBool, Ordering},
    };

    use axum::{Router, routing::get};
    use pygmy_client::LocalPlace;
    use pygmy_protocol::{
        http::shutdown,
        registration::{Registration, Role},
    };

    use super::*;
    use crate::{
        LocalServer,
        testing::{PausedClock, registration},
    };

    #[tokio::test(start_paused = true)]
    async fn a_server_that_hangs_is_out_within_two_intervals() {
        for (probe_interval_ms, probe_failures) in [(2000, 2), (250, 2), (2000, 1), (10_000, 5)] {
            let env = PausedClock::environment();
            let hangs = Arc::new(AtomicBool::new(false));
            let place = LocalPlace::default();
            let asked = Arc::clone(&hangs);
            let readyz = get(async move || {
                if asked.load(Ordering::Relaxed) {
                    pending::<()>().await;
                }
            });
            place.fill(Router::new().route("/readyz", readyz), None);
            let (name, role, url) = ("a".to_owned(), Role::Order, "http://a:1".to_owned());
            let local = vec![LocalServer { name, role, url, tier: place.local() }];
            let settings = Settings { probe_interval_ms, probe_failures, ..Settings::default() };
            let registry = Arc::new(Registry::new(&env, &settings, local));
            let heard = Registration { heartbeat_ms: 60_000, ..registration("a", Role::Order) };
            registry.register(&heard).unwrap();
            let prober = Prober::new(&env, &settings, Arc::clone(&registry));
            let (_stopper, stopped) = shutdown();
            env.spawn(prober.run(Readiness::new(), stopped));
            // Right after it has answered a probe.
            let interval = Duration::from_millis(probe_interval_ms);
            env.sleep(interval * 3 + Duration::from_millis(1)).await;
            assert_eq!(registry.candidates(Role::Order).len(), 1);
            hangs.store(true, Ordering::Relaxed);
            env.sleep(interval * 2).await;
            assert_eq!(registry.candidates(Role::Order).len(), 0, "{settings:?}");
            hangs.store(false, Ordering::Relaxed);
            env.sleep(interval * 2).await;
            assert_eq!(registry.candidates(Role::Order).len(), 1, "it is back");
        }
    }
}
