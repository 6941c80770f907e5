//! What each tier needs to know of the configuration.

use std::{sync::Arc, time::Duration};

use pygmy_client::{
    LocalTier, ServerConfig, Upstream,
    watch::{self, Watcher},
};
use pygmy_protocol::{
    Env,
    http::{Fatal, Limits, Secret},
    metrics::Metrics,
    registration::Role,
};

use super::descriptors::fit;
use crate::{
    config::{Config, Part, ServerEntry},
    runtime::program,
};

/// One server, about to be started.
pub(super) struct Tiers {
    pub(super) env: Env,
    pub(super) config: Arc<Config>,
    pub(super) server: ServerEntry,
    pub(super) secret: Secret,
    pub(super) metrics: Metrics,
    /// Names this process: random, new with every start.
    pub(super) process: String,
    /// How many files it may have open.
    pub(super) files: u64,
}

impl Tiers {
    pub(super) fn frontend(&self) -> Result<pygmy_frontend::Config, Fatal> {
        Ok(pygmy_frontend::Config {
            server: self.base(Role::Frontend, None)?,
            catalogs: self.config.urls(Role::Catalog),
            settings: self.config.document().frontend.clone(),
            // With all tiers in one process its balancer watches.
            watcher: match self.server.role {
                Role::All => None,
                _ => Some(self.watcher()?),
            },
        })
    }

    pub(super) fn balancer(&self) -> Result<pygmy_balancer::Config, Fatal> {
        Ok(pygmy_balancer::Config {
            server: self.base(Role::Balancer, None)?,
            settings: self.config.document().balancer.clone(),
            local: Vec::new(),
            watcher: Some(self.watcher()?),
        })
    }

    fn watcher(&self) -> Result<Arc<Watcher>, Fatal> {
        let document = self.config.document();
        let config = watch::Config {
            name: self.server.name.clone(),
            processes: self.config.processes(),
            settings: document.respawn.clone(),
            interval: Duration::from_millis(document.balancer.probe_interval_ms),
            config: self.config.absolute_path(),
            program: program(),
            secret: self.secret.clone(),
        };
        Watcher::new(config, &self.env, &self.metrics).map_err(Fatal)
    }

    pub(super) fn order(&self) -> Result<pygmy_order::Config, Fatal> {
        Ok(pygmy_order::Config { server: self.base(Role::Order, None)? })
    }

    pub(super) fn catalog(&self) -> Result<pygmy_catalog::Config, Fatal> {
        let replicas = self.config.parts(Role::Catalog).into_iter();
        let replicas =
            replicas.map(|Part { name, url }| pygmy_catalog::ReplicaAddress { name, url });
        Ok(pygmy_catalog::Config {
            server: self.base(Role::Catalog, None)?,
            dir: self.config.data_dir(&self.server),
            replicas: replicas.collect(),
            lease_ms: self.config.document().frontend.lease_ms,
            waits_for_caches: self.config.document().frontend.consistency
                == pygmy_frontend::Consistency::Linearizable,
            settings: self.config.document().catalog.clone(),
        })
    }

    /// What the tiers have in common. With `local`, calls to the balancer of this server do not
    /// leave the process.
    pub(super) fn base(&self, role: Role, local: Option<LocalTier>) -> Result<ServerConfig, Fatal> {
        let Part { name, url } = self.part(role)?;
        let document = self.config.document();
        Ok(ServerConfig {
            name,
            url,
            process: self.process.clone(),
            secret: self.secret.clone(),
            limits: self.limits(),
            balancers: self.balancers(local)?,
            heartbeat: Duration::from_millis(document.cluster.heartbeat_ms),
            attempt_timeout: Duration::from_millis(document.cluster.attempt_timeout_ms),
            metrics: self.metrics.clone(),
        })
    }

    /// What the listener takes that customers use, or the only one.
    pub(super) fn limits(&self) -> Limits {
        let quarters = if self.server.role == Role::All { 2 } else { 3 };
        fit(&self.config.document().limits, self.files, quarters)
    }

    /// What the internal listener of a server with all tiers takes beside the public one.
    pub(super) fn internal_limits(&self) -> Limits {
        fit(&self.config.document().limits, self.files, 1)
    }

    /// The part of this server that does `role`.
    pub(super) fn part(&self, role: Role) -> Result<Part, Fatal> {
        let missing = || Fatal(format!("{} is no {role}", self.server.name));
        self.server.part(role).ok_or_else(missing)
    }

    fn balancers(&self, local: Option<LocalTier>) -> Result<Vec<Arc<Upstream>>, Fatal> {
        let own = self.server.part(Role::Balancer);
        let upstream = |part: Part| match &local {
            Some(tier) if own.as_ref() == Some(&part) => {
                Ok(Arc::new(Upstream::local(&self.env, &part.url, tier.clone())))
            }
            _ => Upstream::remote(&self.env, &part.url).map(Arc::new).map_err(Fatal),
        };
        self.config.parts(Role::Balancer).into_iter().map(upstream).collect()
    }
}
