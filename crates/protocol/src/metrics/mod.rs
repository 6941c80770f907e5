//! Metrics: what a server counts and measures, as text for Prometheus.
//!
//! Each server process has one [`Metrics`], which hands its registry to nobody and to no global:
//! a simulation is many servers in one process. A tier keeps what it counts in a small struct of
//! its own ([`Counter`], [`Histogram`]: a few relaxed atomic operations, no lock, no lookup) and
//! registers it when it starts. What some part knows anyway, such as the length of a queue, is a
//! [`Gauge`]: asked when somebody scrapes, kept nowhere else.
//!
//! Labels have values that are known when the server starts, so that no request can make a series.

mod gauge;
mod histogram;
mod labelled;

pub use gauge::Gauge;
pub use histogram::Histogram;
pub use labelled::Labelled;
pub use prometheus_client::{
    encoding::prometheus_text::CONTENT_TYPE, metrics::counter::Counter, registry::Metric,
};

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use prometheus_client::{
    encoding::prometheus_text,
    metrics::{gauge::ConstGauge, info::Info},
    registry::Registry,
};

use crate::{env::Env, http::Routes};

/// Before the name of every metric.
const PREFIX: &str = "pygmy";

/// The metrics of one server process. Clones are the same.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Mutex<Registry>,
    routes: Routes,
    rejections: Labelled<Counter>,
    queues: Labelled<Gauge>,
    connections: Mutex<Vec<Arc<AtomicUsize>>>,
}

impl Metrics {
    /// The metrics of a server that starts now, with those that every tier adds to.
    pub fn new(env: &Env) -> Metrics {
        let metrics = Metrics(Arc::new(Inner {
            registry: Mutex::new(Registry::with_prefix(PREFIX)),
            routes: Routes::default(),
            rejections: Labelled::new("reason"),
            queues: Labelled::new("queue"),
            connections: Mutex::default(),
        }));
        let Inner { routes, rejections, queues, .. } = &*metrics.0;
        let started = ConstGauge::new(env.wall_ms() as f64 / 1e3);
        metrics.register("build", "The build that runs", Info::new([("version", VERSION)]));
        metrics.register("process_start_time_seconds", "Unix time of the start", started);
        metrics.registry().register_collector(Box::new(routes.clone()));
        let help = "Requests and connections refused because a limit was reached";
        metrics.register("rejections", help, rejections.clone());
        metrics.register("queue_length", "What waits in a queue of the server", queues.clone());
        // Not the other way round: the registry must not keep its owner.
        let inner = Arc::downgrade(&metrics.0);
        let connections = Gauge::new(move || inner.upgrade().map_or(0, |inner| inner.open()));
        metrics.register("http_connections", "Open connections from others", connections);
        metrics
    }

    /// Adds a metric under a name that no other has: without the prefix, and without the `_total`
    /// of a counter. `help` is a sentence without its full stop.
    pub fn register(&self, name: &str, help: &str, metric: impl Metric) {
        self.registry().register(name, help, metric);
    }

    /// Counts what is refused because of one limit, named as in the configuration.
    pub fn rejections(&self, limit: &'static str) -> Counter {
        self.0.rejections.get_or_add(limit, Counter::default())
    }

    /// Shows the length of a queue.
    pub fn queue(&self, name: &'static str, length: impl Fn() -> u64 + Send + Sync + 'static) {
        self.0.queues.get_or_add(name, Gauge::new(length));
    }

    /// All metrics in Prometheus' text format, to be sent as [`CONTENT_TYPE`].
    pub fn text(&self) -> String {
        let mut text = String::new();
        if prometheus_text::encode(&mut text, &self.registry()).is_err() {
            // Writing to a string does not fail.
            tracing::error!("the metrics cannot be written");
        }
        text
    }

    pub(crate) fn routes(&self) -> &Routes {
        &self.0.routes
    }

    /// Counts the connections of one more listener in.
    pub(crate) fn watch_connections(&self, open: &Arc<AtomicUsize>) {
        lock(&self.0.connections).push(Arc::clone(open));
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        lock(&self.0.registry)
    }
}

impl Inner {
    fn open(&self) -> u64 {
        lock(&self.connections).iter().map(|open| open.load(Ordering::Relaxed) as u64).sum()
    }
}

const VERSION: &str = env!("CARGO_PKG_VERSION");

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_has_a_name_with_the_prefix_help_and_a_type() {
        let metrics = Metrics::new(&Env::production());
        let hits: Counter = Counter::default();
        hits.inc_by(3);
        metrics.register("hits", "Hits", hits);
        metrics.queue("writes", || 7);
        metrics.rejections("max_in_flight").inc();
        let text = metrics.text();
        for line in [
            "# HELP pygmy_hits_total Hits.",
            "# TYPE pygmy_hits_total counter",
            "pygmy_hits_total 3",
            "# TYPE pygmy_queue_length gauge",
            "pygmy_queue_length{queue=\"writes\"} 7",
            "pygmy_rejections_total{reason=\"max_in_flight\"} 1",
            "pygmy_http_connections 0",
            concat!("pygmy_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn the_registry_does_not_keep_its_owner() {
        let metrics = Metrics::new(&Env::production());
        let inner = Arc::downgrade(&metrics.0);
        drop(metrics);
        assert!(inner.upgrade().is_none());
    }
}
