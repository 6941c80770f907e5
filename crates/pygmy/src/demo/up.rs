//! From started processes to a store that sells.

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::{Context, anyhow, bail};
use http::{Method, StatusCode};
use pygmy_client::{Answer, Call, Upstream, operator::Founder, store::Patience};
use pygmy_protocol::{Env, RequestContext, http::Secret, registration::Role};

use super::{
    report::{Progress, Report},
    supervise::Children,
};
use crate::{books::books, config::Config};

/// Longest time until all is ready.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two looks at the servers.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Longest wait for a server to say how it is.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest time until the cluster is made: short of [`READY_TIMEOUT`], so that its reason is told.
const BOOTSTRAP_TIMEOUT: Duration = Duration::from_secs(15);
/// Says, in the demo's directory, that the catalog has its first items.
const BOOTSTRAPPED: &str = "bootstrapped";

/// Waits until all servers live, gives the catalog its first items, once, and waits until all
/// servers are ready.
///
/// # Errors
/// A server ends, or is not ready in time.
pub(super) async fn bring_up(
    env: &Env,
    dir: &Path,
    config: &Config,
    secret: &Secret,
    children: &mut Children,
    report: &Report<'_>,
) -> anyhow::Result<()> {
    let progress = report.progress(config.servers().len());
    let servers = upstreams(env, config)?;
    let mut missing = BTreeMap::new();
    let begun = env.now();
    let up = async {
        wait_for_all(env, &servers, "/livez", &mut missing, &progress).await;
        let marker = dir.join(BOOTSTRAPPED);
        if !marker.exists() {
            progress.step("making the cluster");
            bootstrap(env, config, secret).await?;
            super::write(&marker, "The catalog has its first items.\n", 0o644)?;
        }
        progress.step("waiting until all are ready");
        wait_for_all(env, &servers, "/readyz", &mut missing, &progress).await;
        anyhow::Ok(())
    };
    let ended = tokio::select! {
        ended = env.timeout(READY_TIMEOUT, up) => ended,
        exit = children.next_exit() => {
            progress.clear();
            if let Some(exit) = &exit {
                report.died(exit);
            }
            bail!("a server ended before the store was ready");
        }
    };
    progress.clear();
    match ended {
        Ok(result) => result?,
        Err(_) => {
            report.not_ready(&missing);
            bail!("the store is not ready after {} s", READY_TIMEOUT.as_secs());
        }
    }
    report.ready(env.now().saturating_since(begun))
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

/// Makes the cluster. Asking again is safe: it may have been made just before a demo was stopped.
async fn bootstrap(env: &Env, config: &Config, secret: &Secret) -> anyhow::Result<()> {
    let patience = Patience { total: BOOTSTRAP_TIMEOUT, ..Patience::default() };
    let founder = Founder::new(env, &config.urls(Role::Catalog), secret.clone(), patience);
    let made = founder.map_err(|e| anyhow!(e))?.bootstrap(&books()?).await;
    made.context("the catalog refuses its first items")?;
    Ok(())
}
