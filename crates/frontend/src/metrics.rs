//! What a front end counts.

use std::sync::{Arc, Weak};

use pygmy_protocol::metrics::{Counter, Gauge, Labelled, Metrics};

use crate::{flight::Query, read::Reader};

/// Since the start of the front end.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Reads answered from the cache.
    pub(crate) hits: ByKind,
    /// Reads that were not.
    pub(crate) misses: ByKind,
    /// Answers of the catalog that were not kept, because an invalidation may have overtaken
    /// them or there is no session.
    pub(crate) fills_refused: Counter,
    /// Keys dropped because they changed.
    pub(crate) invalidations: Counter,
    /// Items kept because the leader sent what they had become.
    pub(crate) refreshes: Counter,
    /// Entries dropped for lack of room.
    pub(crate) evictions: Counter,
}

/// One counter for each kind of query.
#[derive(Debug, Default)]
pub(crate) struct ByKind {
    item: Counter,
    page: Counter,
    topics: Counter,
}

impl ByKind {
    pub(crate) fn of(&self, query: &Query) -> &Counter {
        match query {
            Query::Item(_) => &self.item,
            Query::Page(..) => &self.page,
            Query::Topics => &self.topics,
        }
    }

    fn labelled(&self) -> Labelled<Counter> {
        Labelled::new("kind").with([
            ("item", self.item.clone()),
            ("page", self.page.clone()),
            ("topics", self.topics.clone()),
        ])
    }
}

impl Counters {
    fn register(&self, metrics: &Metrics) {
        let Counters { hits, misses, fills_refused, invalidations, refreshes, evictions } = self;
        metrics.register("cache_hits", "Reads answered from the cache", hits.labelled());
        let help = "Reads that had to ask the catalog, or wait for one that did";
        metrics.register("cache_misses", help, misses.labelled());
        let help = "Answers not kept: overtaken by an invalidation, or no session was open";
        metrics.register("cache_fills_refused", help, fills_refused.clone());
        let help = "Keys dropped because they changed";
        metrics.register("cache_invalidations", help, invalidations.clone());
        let help = "Items kept because the leader sent what they had become";
        metrics.register("cache_refreshes", help, refreshes.clone());
        let help = "Entries dropped for lack of room (cache_bytes)";
        metrics.register("cache_evictions", help, evictions.clone());
    }
}

/// Registers all that is to know of `reader`.
pub(crate) fn register(reader: &Arc<Reader>, metrics: &Metrics) {
    reader.counters.register(metrics);
    // The reader calls routers in this process, which hold the metrics: they must not hold it.
    let gauge = |read: fn(&Reader) -> u64| {
        let reader = Arc::downgrade(reader);
        move || Weak::upgrade(&reader).map_or(0, |reader| read(&reader))
    };
    let register = |name, help, read| metrics.register(name, help, Gauge::new(gauge(read)));
    register("cache_bytes", "Memory that the entries take", |r| r.cache.size().bytes);
    register("cache_entries", "Entries in the cache", |r| r.cache.size().entries);
    let help =
        "Whether a session with the catalog's leader is open: without one, nothing is cached";
    register("cache_session_open", help, |r| r.cache.has_session().into());
    let help = "How many requests are let into the store at a time, for now";
    register("admission_limit", help, |r| r.admission.limit() as u64);
    metrics.queue("admitted", gauge(|reader| reader.admission.in_flight() as u64));
    metrics.queue("flights", gauge(|reader| reader.flights.under_way() as u64));
}
