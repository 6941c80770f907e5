//! What is counted.

use std::{
    collections::BTreeMap,
    fmt::Display,
    mem,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use hdrhistogram::Histogram;

use super::workload::Kind;

/// Latencies are kept with three digits, from a tenth of a microsecond on.
const LOWEST_NS: u64 = 100;
/// Beyond every deadline; a longer one counts as this.
const HIGHEST_NS: u64 = 60_000_000_000;
const DIGITS: u8 = 3;

/// How the requests of one kind fared while it was measured.
#[derive(Debug, Clone)]
pub struct KindTally {
    /// Of what was done, in nanoseconds.
    pub latency_ns: Histogram<u64>,
    /// What was not, by the answer or the lack of one.
    pub failures: BTreeMap<String, u64>,
}

/// What happened in some time.
#[derive(Debug, Clone)]
pub struct Tally {
    kinds: [KindTally; 3],
    /// Buys that were answered 201, the warm-up's too, each key once.
    pub sales: u64,
    /// Buys that may have been done, the warm-up's too: the store has not said.
    pub unknown: u64,
    /// Buys that were sent once more, with the same key.
    pub buy_retries: u64,
    /// Connections that were opened.
    pub connects: u64,
    /// Connections that could not be opened, by what was in the way.
    pub failed_connects: BTreeMap<String, u64>,
    /// Connections that the server ended, or that were ended because no answer came.
    pub broken: u64,
    /// Requests of an open loop that no connection was free for in time.
    pub unsent: u64,
}

impl KindTally {
    /// Nothing yet.
    pub fn new() -> KindTally {
        let latency_ns = Histogram::new_with_bounds(LOWEST_NS, HIGHEST_NS, DIGITS);
        let latency_ns = latency_ns.expect("the bounds are right");
        KindTally { latency_ns, failures: BTreeMap::new() }
    }

    /// How many were done.
    pub fn done(&self) -> u64 {
        self.latency_ns.len()
    }

    /// How many were not.
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// Adds another count.
    pub fn add(&mut self, other: &KindTally) {
        self.latency_ns.add(&other.latency_ns).expect("all have the same bounds");
        add(&mut self.failures, &other.failures);
    }
}

fn add(counts: &mut BTreeMap<String, u64>, others: &BTreeMap<String, u64>) {
    for (what, count) in others {
        *counts.entry(what.clone()).or_default() += count;
    }
}

impl Default for KindTally {
    fn default() -> KindTally {
        KindTally::new()
    }
}

impl Default for Tally {
    fn default() -> Tally {
        Tally {
            kinds: Kind::ALL.map(|_| KindTally::new()),
            sales: 0,
            unknown: 0,
            buy_retries: 0,
            connects: 0,
            failed_connects: BTreeMap::new(),
            broken: 0,
            unsent: 0,
        }
    }
}

impl Tally {
    /// The count of one kind.
    pub fn kind(&self, kind: Kind) -> &KindTally {
        &self.kinds[kind as usize]
    }

    /// The kinds together.
    pub fn all(&self) -> KindTally {
        let mut all = KindTally::new();
        self.kinds.iter().for_each(|kind| all.add(kind));
        all
    }

    /// Adds another count.
    pub fn add(&mut self, other: &Tally) {
        for (kind, more) in self.kinds.iter_mut().zip(&other.kinds) {
            kind.add(more);
        }
        self.sales += other.sales;
        self.unknown += other.unknown;
        self.buy_retries += other.buy_retries;
        self.connects += other.connects;
        add(&mut self.failed_connects, &other.failed_connects);
        self.broken += other.broken;
        self.unsent += other.unsent;
    }
}

/// Where the connections of one thread count. The lock is never waited for: they take turns.
#[derive(Default)]
pub(crate) struct Counter(Mutex<Tally>);

impl Counter {
    pub(crate) fn with(&self, count: impl FnOnce(&mut Tally)) {
        count(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(crate) fn done(&self, kind: Kind, latency: Duration) {
        let latency_ns = u64::try_from(latency.as_nanos()).unwrap_or(HIGHEST_NS);
        self.with(|tally| tally.kinds[kind as usize].latency_ns.saturating_record(latency_ns));
    }

    pub(crate) fn failed(&self, kind: Kind, failure: impl Display) {
        let failure = failure.to_string();
        self.with(|tally| {
            *tally.kinds[kind as usize].failures.entry(failure).or_default() += 1;
        });
    }

    /// What was counted since the last time.
    pub(crate) fn take(&self) -> Tally {
        let mut taken = Tally::default();
        self.with(|tally| mem::swap(tally, &mut taken));
        taken
    }
}
