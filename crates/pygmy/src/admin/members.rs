//! `pygmy admin add-replica`, `remove-replica`, `replace-replica` and `transfer-leader`.
//!
//! Each is a wish that is repeated until the catalog's leader says that it is done, so any of them
//! may be broken off and given again.

use std::time::Duration;

use anyhow::{anyhow, bail};
use pygmy_client::{
    members::{Members, status_of},
    store::StoreError,
};
use pygmy_protocol::{
    Env, Problem,
    env::Instant,
    http::Secret,
    members::{Candidate, MemberChange, MemberProgress},
    registration::Role,
};

use super::Cluster;
use crate::{
    config::{Config, Part},
    print,
    runtime::block_on,
};

/// Between two requests.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// Longest time without any progress.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is to be changed, by the names of servers.
#[derive(Debug, Clone, Copy)]
pub(super) enum Change<'a> {
    Add(&'a str),
    Remove(&'a str),
    Replace { old: &'a str, new: &'a str },
    Lead(&'a str),
}

/// Sees `change` through.
pub(super) fn run(
    env: &Env,
    cluster: &Cluster,
    change: Change<'_>,
    json: bool,
) -> anyhow::Result<()> {
    let Some(config) = &cluster.config else {
        bail!(
            "replicas are known by the names that a configuration gives them: name it with --config"
        );
    };
    let operator = Operator { env, config, secret: cluster.secret()? };
    let done = block_on(env, operator.see_through(change))??;
    if json {
        return Ok(print::json(&done)?);
    }
    print::line(&done.detail)?;
    match change {
        Change::Remove(name) | Change::Replace { old: name, .. } => Ok(print::line(format_args!(
            "now stop the server {name} and take it out of the configuration"
        ))?),
        Change::Add(_) | Change::Lead(_) => Ok(()),
    }
}

struct Operator<'a> {
    env: &'a Env,
    config: &'a Config,
    secret: Secret,
}

impl Operator<'_> {
    async fn see_through(&self, change: Change<'_>) -> anyhow::Result<MemberProgress> {
        let urls = self.config.urls(Role::Catalog);
        let members = Members::new(self.env, &urls, self.secret.clone()).map_err(|e| anyhow!(e))?;
        let wish = self.wish(change).await?;
        if let MemberChange::Remove { name } = &wish {
            self.check_member(&members, name).await?;
        }
        let mut told = String::new();
        let mut moved_at = self.env.now();
        loop {
            let said = match members.ask(&wish).await {
                Ok(progress) if progress.done => return Ok(progress),
                Ok(progress) => progress.detail,
                Err(problem) if problem.code.may_pass() => problem.detail.into_owned(),
                Err(problem) => return Err(StoreError::Problem(problem).into()),
            };
            if said != told {
                eprintln!("{said}");
                (told, moved_at) = (said, self.env.now());
            }
            self.check_patience(moved_at, &told)?;
            self.env.sleep(ASK_AGAIN).await;
        }
    }

    fn check_patience(&self, moved_at: Instant, told: &str) -> anyhow::Result<()> {
        if self.env.now().saturating_since(moved_at) <= PATIENCE {
            return Ok(());
        }
        let detail = format!(
            "{told}; nothing has moved for {} s. The change may still be done: the same command goes on \
             with it, `pygmy admin status` shows how it is",
            PATIENCE.as_secs()
        );
        Err(StoreError::Problem(Problem::outcome_unknown(detail)).into())
    }

    /// A name that is not there was perhaps mistyped; a removal of it would be done at once.
    async fn check_member(&self, members: &Members, name: &str) -> anyhow::Result<()> {
        let Some(leader) = members.leader().await else { return Ok(()) };
        if leader.members.iter().any(|member| member.name == *name) {
            return Ok(());
        }
        let names: Vec<_> = leader.members.iter().map(|member| member.name.as_str()).collect();
        bail!("no replica named {name} belongs to the cluster; these do: {}", names.join(", "))
    }

    async fn wish(&self, change: Change<'_>) -> anyhow::Result<MemberChange> {
        Ok(match change {
            Change::Add(name) => MemberChange::Add(self.candidate(name).await?),
            Change::Remove(name) => MemberChange::Remove { name: self.replica_name(name) },
            Change::Replace { old, new } => MemberChange::Replace {
                old: self.replica_name(old),
                new: self.candidate(new).await?,
            },
            Change::Lead(name) => MemberChange::Lead { name: self.replica_name(name) },
        })
    }

    /// The replica of that name, or of the server of that name. One that has left may be in no
    /// configuration any more.
    fn replica_name(&self, name: &str) -> String {
        self.part(name).map_or_else(|| name.to_owned(), |part| part.name)
    }

    fn part(&self, name: &str) -> Option<Part> {
        let of_server = self.config.server(name).and_then(|server| server.part(Role::Catalog));
        let named = || self.config.parts(Role::Catalog).into_iter().find(|part| part.name == name);
        of_server.or_else(named)
    }

    /// Who the replica of the server `name` says that it is.
    async fn candidate(&self, name: &str) -> anyhow::Result<Candidate> {
        let Some(Part { name, url }) = self.part(name) else {
            bail!(
                "{} has no server {name} with a catalog replica; add it there, start it, and try again",
                self.config.path().display()
            );
        };
        let status = status_of(self.env, &self.secret, &url).await;
        let status = status.map_err(|why| {
            anyhow!("{name} must run before it can join, and does not answer at {url}: {why}")
        })?;
        if status.name != name {
            bail!("{} answers at {url}, not {name}; correct the configuration", status.name);
        }
        Ok(Candidate { id: status.id, name, url })
    }
}
