//! Random servers are killed, stopped and cut off while customers buy and read.
//!
//! `pygmy demo` looks after the store, so what is lost comes back by itself. For
//! `CHAOS_SECONDS` (by default 20) something is done to a server every second or so
//! ([`faults`]); then everything must come back, and the store must have kept its promises
//! ([`customers`]). What is printed in the end: how available it was.
#![allow(clippy::unwrap_used, reason = "a test fails where it is surprised")]
#![allow(clippy::disallowed_methods, reason = "tests run on the real machine")]

#[path = "../support/harness.rs"]
#[allow(dead_code, reason = "other test binaries use the rest")]
mod harness;

#[path = "../support/customers.rs"]
#[allow(dead_code, reason = "other test binaries use the rest")]
mod customers;

mod faults;
mod report;

use std::{
    env,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    customers::Customers,
    faults::Faults,
    harness::{Layout, Store},
    report::Report,
};

const SECONDS: u64 = 20;

/// Each layout for half of the time.
#[tokio::test]
async fn random_servers_are_killed_stopped_and_cut_off() {
    let seconds = env::var("CHAOS_SECONDS").map_or(SECONDS, |text| text.parse().unwrap());
    for layout in [Layout::Tiers, Layout::Nodes] {
        the_store_keeps_its_promises(layout, Duration::from_secs(seconds / 2)).await;
    }
}

async fn the_store_keeps_its_promises(layout: Layout, storm: Duration) {
    let store = Arc::new(Store::start_in_demo(layout).await);
    let customers = Customers::of(&store).await;
    let mut faults = Faults::new(&store);
    let begun = Instant::now();
    while begun.elapsed() < storm {
        faults.one().await;
    }
    let report = Report::new(layout, begun, &customers.times(), faults.counts());
    faults.end_all().await;
    customers.go_on(20).await;
    println!("{report}");
    customers.settle().await;
}
