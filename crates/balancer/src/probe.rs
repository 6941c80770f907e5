//! Asks every registered server whether it is ready.

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

/// Longest wait for an answer: `/readyz` does no work.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
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
        Prober { env: env.clone(), interval, timeout: interval.min(PROBE_TIMEOUT), registry }
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

    /// Probes all servers at the same time. No probe outlasts the interval, so that a server that
    /// hangs delays neither the others nor the next round.
    async fn round(&self) {
        self.registry.sweep();
        let servers = self.registry.registered();
        join_all(servers.iter().map(|server| self.probe(server))).await;
    }

    async fn probe(&self, server: &Server) {
        let sent_at = self.env.now();
        let context = RequestContext::fresh(&self.env, self.timeout);
        let call = Call::new(Method::GET, "/readyz", context);
        let outcome = judge(server.upstream.send(&call, self.timeout).await);
        server.probed(outcome, sent_at, self.env.now());
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
            let reason = format!("/readyz: {failure}");
            Probed::Unanswered(reason.chars().take(MAX_REASON_CHARS).collect())
        }
    }
}
