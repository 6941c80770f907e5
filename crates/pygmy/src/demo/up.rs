//! From started processes to a store that sells.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use anyhow::{Context, anyhow, bail};
use http::{Method, StatusCode};
use pygmy_client::{
    Answer, Call, Upstream,
    operator::{Founder, Operator},
    store::{Patience, StoreError},
};
use pygmy_protocol::{Code, Env, RequestContext, http::Secret, registration::Role};
use tokio::sync::mpsc;

use super::{
    ask::Ask,
    report::{Progress, Report},
    supervise::{Children, Event},
};
use crate::{
    books::books,
    config::Config,
    items::{self, Checked, ItemsFile},
    print,
};

/// Longest time until all is ready.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two looks at the servers.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Longest wait for a server to say how it is.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest time until the cluster is made: short of [`READY_TIMEOUT`], so that its reason is told.
const BOOTSTRAP_TIMEOUT: Duration = Duration::from_secs(15);
/// Says, in the demo's directory, that the catalog has its first items.
pub(super) const BOOTSTRAPPED: &str = "bootstrapped";
/// Until then, in the demo's directory: the path of the file that they come from.
pub(super) const LOADING: &str = "loading";

/// What a store begins with.
pub(super) struct First<'a> {
    pub(super) dir: &'a Path,
    pub(super) config: &'a Config,
    pub(super) secret: &'a Secret,
    /// Instead of the books.
    pub(super) items: &'a mut Option<(ItemsFile, Checked)>,
}

/// Waits until all servers are ready and the catalog has its first items, which it is given once.
///
/// # Errors
/// A server ends, or is not ready in time; the items cannot be loaded.
pub(super) async fn bring_up(
    env: &Env,
    mut first: First<'_>,
    children: &mut Children<'_>,
    asks: &mut mpsc::Receiver<Ask>,
    report: &Report<'_>,
) -> anyhow::Result<()> {
    let begun = env.now();
    let up = async {
        wait_until_ready(env, &first, report).await?;
        let marker = first.dir.join(BOOTSTRAPPED);
        if !marker.exists() {
            load(env, &mut first).await?;
            super::write(&marker, "The catalog has its first items.\n", 0o644)?;
            forget_loading(first.dir);
        }
        anyhow::Ok(())
    };
    tokio::select! {
        ended = up => ended?,
        () = until_one_ends(children, asks, report) => {
            bail!("a server ended before the store was ready")
        }
    }
    report.ready(env.now().saturating_since(begun))
}

/// Does what is asked, until a server ends of which nobody asked for that.
async fn until_one_ends(
    children: &mut Children<'_>,
    asks: &mut mpsc::Receiver<Ask>,
    report: &Report<'_>,
) {
    while let Some(event) = children.next_event(asks).await {
        report.event(&event);
        if matches!(event, Event::Ended(_)) {
            return;
        }
    }
}

/// Waits until all servers live, makes them a cluster, once, and waits until all are ready.
async fn wait_until_ready(env: &Env, first: &First<'_>, report: &Report<'_>) -> anyhow::Result<()> {
    let progress = report.progress(first.config.servers().len());
    let servers = upstreams(env, first.config)?;
    let mut missing = BTreeMap::new();
    let up = async {
        wait_for_all(env, &servers, "/livez", &mut missing, &progress).await;
        if !first.dir.join(BOOTSTRAPPED).exists() {
            progress.step("making the cluster");
            bootstrap(env, first).await?;
        }
        progress.step("waiting until all are ready");
        wait_for_all(env, &servers, "/readyz", &mut missing, &progress).await;
        anyhow::Ok(())
    };
    let ended = env.timeout(READY_TIMEOUT, up).await;
    progress.clear();
    match ended {
        Ok(result) => result,
        Err(_) => {
            report.not_ready(&missing);
            bail!("the store is not ready after {} s", READY_TIMEOUT.as_secs())
        }
    }
}

/// Loads the first items from their file, if they come from one. A demo that is stopped meanwhile
/// goes on with that when it is started again.
async fn load(env: &Env, first: &mut First<'_>) -> anyhow::Result<()> {
    let Some((file, checked)) = first.items else { return Ok(()) };
    let balancers = first.config.urls(Role::Balancer);
    let operator = Operator::new(env, &balancers, first.secret.clone(), Patience::default());
    let operator = operator.map_err(|e| anyhow!(e))?;
    let loaded = items::load(env, &operator, file, *checked, std::future::pending()).await;
    if let Err(error) = &loaded
        && !error.downcast_ref::<StoreError>().is_some_and(StoreError::is_retryable)
    {
        // The same file would be refused again.
        forget_loading(first.dir);
    }
    Ok(print::line(loaded?)?)
}

/// What stays of it is overwritten, or looked at by nobody.
fn forget_loading(dir: &Path) {
    let _ = fs::remove_file(dir.join(LOADING));
}

fn upstreams(env: &Env, config: &Config) -> anyhow::Result<Vec<(String, Upstream)>> {
    let named = |server: &crate::config::ServerEntry| {
        let upstream = Upstream::remote(env, &server.base_url()).map_err(|e| anyhow!(e))?;
        Ok((server.name.clone(), upstream))
    };
    config.servers().iter().map(named).collect()
}

/// Asks every server for `path` until it has answered with 200. `missing` holds those that have
/// not, and why.
async fn wait_for_all(
    env: &Env,
    servers: &[(String, Upstream)],
    path: &str,
    missing: &mut BTreeMap<String, String>,
    progress: &Progress,
) {
    missing.clear();
    missing.extend(servers.iter().map(|(name, _)| (name.clone(), "no answer yet".to_owned())));
    while !missing.is_empty() {
        for (name, server) in servers {
            if !missing.contains_key(name) {
                continue;
            }
            match probe(env, server, path).await {
                Ok(()) => missing.remove(name),
                Err(reason) => missing.insert(name.clone(), reason),
            };
            progress.at(servers.len() - missing.len());
        }
        if !missing.is_empty() {
            env.sleep(LOOK_AGAIN).await;
        }
    }
}

async fn probe(env: &Env, server: &Upstream, path: &str) -> Result<(), String> {
    let call = Call::new(Method::GET, path, RequestContext::fresh(env, PROBE_TIMEOUT));
    match server.send(&call, PROBE_TIMEOUT).await {
        Ok(Answer { status: StatusCode::OK, .. }) => Ok(()),
        Ok(answer) => Err(String::from_utf8_lossy(&answer.body).into_owned()),
        Err(failure) => Err(failure.to_string()),
    }
}

/// Makes the cluster. Asking again is safe: it may have been made just before a demo was stopped,
/// with other items, too.
async fn bootstrap(env: &Env, first: &First<'_>) -> anyhow::Result<()> {
    let patience = Patience { total: BOOTSTRAP_TIMEOUT, ..Patience::default() };
    let replicas = first.config.urls(Role::Catalog);
    let founder = Founder::new(env, &replicas, first.secret.clone(), patience);
    let items = if first.items.is_some() { Vec::new() } else { books()? };
    match founder.map_err(|e| anyhow!(e))?.bootstrap(&items).await {
        Err(StoreError::Problem(problem)) if problem.code == Code::IdempotencyKeyReused => {
            eprintln!("the cluster was made already, with other first items, which stay");
            Ok(())
        }
        made => made.map(drop).context("the catalog refuses its first items"),
    }
}
