//! A started tier: its routes and its tasks.

use std::sync::Arc;

use axum::Router;
use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::task::JoinHandle;

use super::{Direct, Limits, Shutdown, serve};
use crate::{
    env::{Env, Listener},
    metrics::Metrics,
};

/// Why a server cannot go on. It must exit: whoever watches it starts it again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Fatal(pub String);

/// What `start` of a tier gives: routes to serve, on a socket or in-process, and the tasks that
/// work behind them.
pub struct Tier {
    /// All routes of the tier, with the common layers around them.
    pub router: Router,
    /// Those of them that the tiers of the same process take a shorter way to.
    pub direct: Option<Arc<dyn Direct>>,
    /// The metrics of the process.
    pub metrics: Metrics,
    /// Each ends after shutdown, or with an error that ends the server.
    pub tasks: Vec<JoinHandle<Result<(), Fatal>>>,
    /// These work until the process ends, also while it drains; one that ends, ends the server.
    pub background: Vec<JoinHandle<Fatal>>,
}

impl Tier {
    /// Serves the routes on `listener` until `shutdown`; returns when requests in flight are
    /// answered and the tasks have ended.
    ///
    /// # Errors
    /// What ended a task early.
    pub async fn run(
        self,
        env: &Env,
        listener: Box<dyn Listener>,
        limits: &Limits,
        shutdown: Shutdown,
    ) -> Result<(), Fatal> {
        let serving = serve(env, listener, self.router, limits, &self.metrics, shutdown);
        run_tasks(self.tasks, self.background, serving).await
    }
}

/// Runs `serving` and `tasks` to their end, while `background` works.
///
/// # Errors
/// What ended a task early; `serving` is dropped then.
pub async fn run_tasks(
    tasks: Vec<JoinHandle<Result<(), Fatal>>>,
    background: Vec<JoinHandle<Fatal>>,
    serving: impl Future<Output = ()>,
) -> Result<(), Fatal> {
    let mut tasks: FuturesUnordered<_> = tasks.into_iter().collect();
    let mut background: FuturesUnordered<_> = background.into_iter().collect();
    tokio::pin!(serving);
    let mut served = false;
    while !served || !tasks.is_empty() {
        tokio::select! {
            () = &mut serving, if !served => served = true,
            Some(ended) = tasks.next() => match ended {
                Ok(result) => result?,
                Err(error) => return Err(Fatal(format!("a task of the server failed: {error}"))),
            },
            Some(ended) = background.next() => return Err(match ended {
                Ok(fatal) => fatal,
                Err(error) => Fatal(format!("a task of the server failed: {error}")),
            }),
        }
    }
    Ok(())
}
