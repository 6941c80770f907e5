//! A slow line.

use std::io::Write;

use crate::{
    customers::{Customers, Place},
    harness::Layout,
    town::{Town, town},
};

#[tokio::test]
async fn a_follower_behind_a_slow_and_lossy_line_holds_nobody_up() {
    let Some(Town { store, network }) = town(Layout::Tiers).await else { return };
    let customers = Customers::of(&store).await;
    let leader = store.leader().await;
    let slow = store.replicas().into_iter().find(|name| *name != leader).unwrap();
    let how = network.slow_down(&slow);
    // Not captured by the test's runner.
    writeln!(std::io::stderr(), "{slow} is behind a slow line: {how}, 5 % lost").unwrap();
    customers.go_on(200).await;
    for front_end in 0..store.front_ends() {
        customers.read_at(&Place::FrontEnd(front_end)).await;
    }
    network.heal();
    customers.read_at(&Place::Replica(slow)).await;
    customers.settle().await;
}
