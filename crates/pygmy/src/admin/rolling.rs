//! `pygmy admin rolling-restart`: every process once, one after the other, without a customer who
//! notices.
//!
//! Followers go first and the leader last, which hands over when it is told to stop. The next one
//! waits until the one before is ready, has applied what the cluster had, gets traffic from every
//! balancer again, and, if it is a balancer, sends traffic to every server. Whatever does not come
//! back in time ends the command, and the rest of the store is as it was.

use std::time::Duration;

use anyhow::{anyhow, bail};
use futures_util::future::join_all;
use http::{Method, StatusCode};
use pygmy_client::{
    Answer, Call, Upstream,
    store::StoreError,
    watch::{Fill, Process, fill, run_command},
};
use pygmy_protocol::{
    Env, RequestContext,
    http::{PROCESS, Secret},
    registration::{CatalogStatus, Health, Role, Servers},
    watched::Reason,
};
use serde::de::DeserializeOwned;

use super::Cluster;
use crate::{
    config::{Config, Part},
    print,
    runtime::{block_on, program},
};

/// Longest time for one process to come back, and for all to be ready before the first one.
const PATIENCE: Duration = Duration::from_secs(60);
const PATIENCE_BEFORE: Duration = Duration::from_secs(10);
/// Between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);

/// Restarts everything.
pub(super) fn run(env: &Env, cluster: &Cluster, json: bool) -> anyhow::Result<()> {
    let Some(config) = &cluster.config else {
        bail!("the commands that restart servers stand in a configuration: name it with --config");
    };
    let rolling = Rolling { env, config, secret: cluster.secret()?, json };
    let restarted = block_on(env, rolling.restart_all())??;
    if json {
        return Ok(print::json(&restarted)?);
    }
    let count = restarted.len();
    Ok(print::line(format_args!("all {count} servers were restarted, one after the other"))?)
}

struct Rolling<'a> {
    env: &'a Env,
    config: &'a Config,
    secret: Secret,
    json: bool,
}

/// One that was restarted.
#[derive(serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct Restarted {
    name: String,
    ready_after_ms: u64,
}

impl Rolling<'_> {
    async fn restart_all(&self) -> anyhow::Result<Vec<Restarted>> {
        let mut left = self.config.processes();
        if let Some(process) = left.iter().find(|process| process.command.is_empty()) {
            bail!(
                "there is no command that restarts {}; give {} one, as [respawn] command or as \
                 respawn of the server (config/pygmy.toml has examples)",
                process.name,
                self.config.path().display()
            );
        }
        self.check_all(&left).await?;
        let (count, mut restarted) = (left.len(), Vec::new());
        while !left.is_empty() {
            let process = self.take_next(&mut left).await;
            let place = format!("{}/{count} {}", restarted.len() + 1, process.name);
            restarted.push(self.restart(&process, &place).await?);
        }
        Ok(restarted)
    }

    /// Checks that all are ready. One that is dead is named before those that miss it.
    async fn check_all(&self, processes: &[Process]) -> anyhow::Result<()> {
        let advice = "nothing was restarted. See `pygmy admin status`, and restart when all servers are ready";
        let alive = processes.iter().map(async |process| {
            self.until(PATIENCE_BEFORE, async || self.process_at(&process.url).await).await
        });
        let alive = join_all(alive).await;
        let dead: Vec<_> = alive
            .into_iter()
            .zip(processes)
            .filter_map(|(alive, process)| Some((process, alive.err()?)))
            .collect();
        if let (Some((_, why)), true) = (dead.first(), dead.len() == processes.len()) {
            let tried = processes.iter().map(|process| process.url.clone()).collect();
            return Err(StoreError::Unreachable { tried, reason: why.clone() }.into());
        }
        if !dead.is_empty() {
            let each = dead.iter().map(|(Process { name, url, .. }, why)| {
                format!("{name} does not answer at {url}: {why}")
            });
            bail!("{}; {advice}", each.collect::<Vec<_>>().join("; "));
        }
        for process in processes {
            let ready = self.until(PATIENCE_BEFORE, async || self.is_ready(process, None, 0).await);
            let ready = ready.await;
            ready.map_err(|why| anyhow!("{} is not ready: {why}; {advice}", process.name))?;
        }
        Ok(())
    }

    /// Followers, the leader; order servers, balancers, front ends.
    async fn take_next(&self, left: &mut Vec<Process>) -> Process {
        let leader = self.leader().await;
        let phase = |process: &Process| match process.role {
            Role::Catalog | Role::All => 0,
            Role::Order => 1,
            Role::Balancer => 2,
            Role::Frontend => 3,
        };
        let place = |process: &Process| {
            let leads = process.parts.iter().any(|part| Some(part) == leader.as_ref());
            (phase(process), leads)
        };
        let next = (0..left.len()).min_by_key(|index| place(&left[*index])).unwrap_or_default();
        left.remove(next)
    }

    async fn restart(&self, process: &Process, place: &str) -> anyhow::Result<Restarted> {
        self.say(format_args!("{place}: restarting"));
        let before = self.until(PATIENCE_BEFORE, async || self.process_at(&process.url).await);
        let before = before.await.map_err(|why| {
            anyhow!(
                "{} does not say which process it is: {why}; it was not restarted, and those after \
                 it were not either. See `pygmy admin status`, and run the same command again",
                process.name
            )
        })?;
        let index = self.statuses().await.iter().map(|s| s.applied_index).max().unwrap_or(0);
        let (config, program) = (self.config.absolute_path(), program());
        let how = Fill {
            config: &config,
            program: &program,
            watcher: "rolling-restart",
            reason: Reason::Rolling,
        };
        let command = fill(process, &how);
        let begun = self.env.now();
        let advice = "the servers after it were left alone; see to this one, and run the same \
                      command again";
        if let Err(why) = run_command(self.env, &command).await {
            bail!("{} cannot be restarted: {} says {why}; {advice}", process.name, command[0]);
        }
        let back =
            self.until(PATIENCE, async || self.is_ready(process, Some(&before), index).await);
        back.await.map_err(|why| {
            let seconds = PATIENCE.as_secs();
            let name = &process.name;
            anyhow!("{name} is not ready {seconds} s after its restart: {why}; {advice}")
        })?;
        let took = self.env.now().saturating_since(begun);
        self.say(format_args!("{place}: ready after {:.1} s", took.as_secs_f64()));
        let ready_after_ms = took.as_millis() as u64;
        Ok(Restarted { name: process.name.clone(), ready_after_ms })
    }

    fn say(&self, line: std::fmt::Arguments<'_>) {
        if !self.json {
            // Who has stopped reading it still wants all of them restarted.
            let _ = print::line(line);
        }
    }

    /// Repeats `look` until it finds nothing wrong, or gives what it found last.
    async fn until<T>(
        &self,
        patience: Duration,
        look: impl AsyncFn() -> Result<T, String>,
    ) -> Result<T, String> {
        let end = self.env.now() + patience;
        loop {
            match look().await {
                Err(why) if self.env.now() >= end => return Err(why),
                Err(_) => self.env.sleep(LOOK_AGAIN).await,
                Ok(found) => return Ok(found),
            }
        }
    }

    /// Whether another process than `before` answers there, wants traffic, has what the cluster had
    /// at `index`, and traffic flows as it should; or why not.
    async fn is_ready(
        &self,
        process: &Process,
        before: Option<&str>,
        index: u64,
    ) -> Result<(), String> {
        if Some(&*self.process_at(&process.url).await?) == before {
            return Err("it has not ended yet".to_owned());
        }
        let answer = self.get(&process.url, "/readyz").await?;
        if answer.status != StatusCode::OK {
            return Err(String::from_utf8_lossy(&answer.body).trim().to_owned());
        }
        for Part { name, url } in self.config.parts(Role::Catalog) {
            if process.parts.contains(&name) {
                let applied = self.ask::<CatalogStatus>(&url, "/status").await?.applied_index;
                if applied < index {
                    return Err(format!("it has applied {applied} of {index} log entries"));
                }
            }
        }
        self.traffic_flows(process).await
    }

    /// Whether every balancer sends requests to the servers of `process`, and its own balancer, if
    /// it has one, to all servers: they tell a new one of themselves with their next heartbeat.
    async fn traffic_flows(&self, process: &Process) -> Result<(), String> {
        let balancers = self.config.parts(Role::Balancer);
        let processes = self.config.processes();
        let parts = processes.iter().flat_map(|process| &process.parts);
        let all: Vec<_> = parts.filter(|part| balancers.iter().all(|b| b.name != **part)).collect();
        for balancer in &balancers {
            let asked = self.ask::<Servers>(&balancer.url, "/servers").await;
            let servers = asked.map_err(|why| format!("{}: {why}", balancer.name))?.servers;
            let ready =
                |part: &str| servers.iter().any(|s| s.name == part && s.health == Health::Ready);
            let is_own = process.parts.contains(&balancer.name);
            let mut expected = all.iter().filter(|part| is_own || process.parts.contains(part));
            if let Some(part) = expected.find(|part| !ready(part)) {
                return Err(format!("{} does not send requests to {part} yet", balancer.name));
            }
        }
        Ok(())
    }

    async fn leader(&self) -> Option<String> {
        self.statuses().await.into_iter().find(|s| s.role == "leader").map(|s| s.name)
    }

    async fn statuses(&self) -> Vec<CatalogStatus> {
        let urls = self.config.urls(Role::Catalog);
        let asked = urls.iter().map(|url| self.ask::<CatalogStatus>(url, "/status"));
        join_all(asked).await.into_iter().flatten().collect()
    }

    /// The process that answers at `url`.
    async fn process_at(&self, url: &str) -> Result<String, String> {
        let answer = self.get(url, "/livez").await?;
        let process = answer.headers.get(PROCESS).and_then(|process| process.to_str().ok());
        process.map(str::to_owned).ok_or_else(|| "what answers there is no pygmy".to_owned())
    }

    async fn ask<T: DeserializeOwned>(&self, url: &str, path: &str) -> Result<T, String> {
        self.get(url, path).await?.json().map_err(|problem| problem.to_string())
    }

    async fn get(&self, url: &str, path: &str) -> Result<Answer, String> {
        let context = RequestContext::fresh(self.env, REQUEST_TIMEOUT);
        let call = Call::new(Method::GET, path, context).with_secret(&self.secret);
        let sent = Upstream::remote(self.env, url)?.send(&call, REQUEST_TIMEOUT).await;
        sent.map_err(|failure| failure.to_string())
    }
}
