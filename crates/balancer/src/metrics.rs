//! What a balancer counts.

use std::sync::Arc;

use pygmy_protocol::{
    metrics::{Counter, Gauge, Labelled, Metrics},
    registration::Role,
};

use crate::registry::Registry;

/// Since the start of the balancer.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Processes that registered, not counting their heartbeats.
    pub(crate) registrations: Counter,
    /// Servers set aside by their breaker.
    pub(crate) ejected_by_breaker: Counter,
    /// Servers out of the rotation because heartbeats or probes went unanswered.
    pub(crate) ejected_silent: Counter,
    /// Servers out of the rotation because they said that they are not ready.
    pub(crate) ejected_unready: Counter,
    /// Attempts after the first one.
    pub(crate) retries: ByRole,
    /// Retries that the budget did not pay for.
    pub(crate) retries_refused: ByRole,
}

/// One counter for each role that requests are forwarded to.
#[derive(Debug, Default)]
pub(crate) struct ByRole {
    catalog: Counter,
    order: Counter,
}

impl ByRole {
    pub(crate) fn of(&self, role: Role) -> &Counter {
        if role == Role::Order { &self.order } else { &self.catalog }
    }

    fn labelled(&self) -> Labelled<Counter> {
        let (catalog, order) = (self.catalog.clone(), self.order.clone());
        Labelled::new("role").with([("catalog", catalog), ("order", order)])
    }
}

impl Counters {
    fn register(&self, metrics: &Metrics) {
        let help = "Processes that registered, not counting their heartbeats";
        metrics.register("balancer_registrations", help, self.registrations.clone());
        let ejections = Labelled::new("cause").with([
            ("breaker", self.ejected_by_breaker.clone()),
            ("silent", self.ejected_silent.clone()),
            ("unready", self.ejected_unready.clone()),
        ]);
        let help = "Servers that stopped getting traffic";
        metrics.register("balancer_ejections", help, ejections);
        let help = "Attempts after the first one of a request";
        metrics.register("balancer_retries", help, self.retries.labelled());
        let help = "Retries that the budget did not allow (retry_percent, retry_floor_per_s)";
        metrics.register("balancer_retries_refused", help, self.retries_refused.labelled());
    }
}

/// Registers all that is to know of `registry`.
pub(crate) fn register(registry: &Arc<Registry>, metrics: &Metrics) {
    registry.counters().register(metrics);
    let by_role = |count: fn(&Registry, Role) -> usize| {
        let gauge = |role: Role| {
            // The table holds routers of this process, which hold the metrics.
            let registry = Arc::downgrade(registry);
            let read = move || registry.upgrade().map_or(0, |r| count(&r, role) as u64);
            (role.as_str(), Gauge::new(read))
        };
        Labelled::new("role").with([Role::Catalog, Role::Order, Role::Frontend].map(gauge))
    };
    let registered = by_role(|registry, role| {
        registry.registered().iter().filter(|server| server.role == role).count()
    });
    let help = "Servers whose registration is in force";
    metrics.register("balancer_registered_servers", help, registered);
    let ready = by_role(|registry, role| registry.candidates(role).len());
    metrics.register("balancer_ready_servers", "Servers that may get traffic", ready);
}
