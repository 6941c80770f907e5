//! Cuts: symmetric, one-way, partial.

use http::StatusCode;
use pygmy_client::Answer;

use crate::{
    customers::{Customers, Place},
    harness::{Layout, Store, until},
    town::{Town, town},
};

/// Waits until the replica of another server leads.
async fn another_leader_than(store: &Store, old: &str) -> String {
    until("there is another leader", async || {
        for name in store.replicas() {
            let leads = async || Some(store.status(&name).await?.role == "leader");
            if name != old && leads().await == Some(true) {
                return Some(name);
            }
        }
        None
    })
    .await
}

/// Waits until the replica of a server answers reads again: it has what the others sold meanwhile.
async fn is_back(customers: &Customers, server: &str) {
    customers.read_at(&Place::Replica(server.to_owned())).await;
}

/// What is asked of a place is refused there: certainly not done.
async fn refuses_reads(store: &Store, place: &Place) {
    let refused = until("a read is refused", async || place.ask(store).await.ok()).await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE, "{refused:?}");
}

async fn the_leader_is_cut_off(layout: Layout) {
    let Some(Town { store, network }) = town(layout).await else { return };
    let customers = Customers::of(&store).await;
    let leader = store.leader().await;
    network.cut(&[&leader], &network.all_but(&leader));
    // It has the newest state there is, and cannot know that.
    refuses_reads(&store, &Place::Replica(leader.clone())).await;
    another_leader_than(&store, &leader).await;
    customers.go_on(20).await;
    refuses_reads(&store, &Place::Replica(leader.clone())).await;
    let uncertain = customers.buy_at(&leader, "at-the-old-leader").await;
    // On a busy machine it comes too late, and that is as uncertain.
    let is_certain = |answer: &Answer| !matches!(answer.status.as_u16(), 503 | 504);
    assert!(!uncertain.as_ref().is_some_and(is_certain), "{uncertain:?}");
    customers.go_on(20).await;
    network.heal();
    is_back(&customers, &leader).await;
    customers.insist("at-the-old-leader").await;
    customers.settle().await;
}

#[tokio::test]
async fn a_leader_that_is_cut_off_sells_nothing_and_the_others_go_on() {
    the_leader_is_cut_off(Layout::Tiers).await;
}

#[tokio::test]
async fn a_leaders_node_that_is_cut_off_sells_nothing_and_the_others_go_on() {
    the_leader_is_cut_off(Layout::Nodes).await;
}

#[tokio::test]
async fn a_leader_that_hears_nobody_or_that_nobody_hears_is_replaced() {
    let Some(Town { store, network }) = town(Layout::Tiers).await else { return };
    let customers = Customers::of(&store).await;
    for hears in [false, true] {
        let leader = store.leader().await;
        let others = network.all_but(&leader);
        if hears {
            network.cut_one_way(&[&leader], &others);
        } else {
            network.cut_one_way(&others, &[&leader]);
        }
        another_leader_than(&store, &leader).await;
        customers.go_on(20).await;
        refuses_reads(&store, &Place::Replica(leader.clone())).await;
        network.heal();
        is_back(&customers, &leader).await;
    }
    customers.settle().await;
}

#[tokio::test]
async fn a_leader_that_reaches_one_follower_and_not_the_other_goes_on() {
    let Some(Town { store, network }) = town(Layout::Tiers).await else { return };
    let customers = Customers::of(&store).await;
    let leader = store.leader().await;
    let lost = store.replicas().into_iter().find(|name| *name != leader).unwrap();
    network.cut(&[&leader], &[&lost]);
    // It hears of no leader, and the one that does leaves it alone.
    until("the follower misses its leader", async || {
        let answer = Place::Replica(lost.clone()).ask(&store).await.ok()?;
        (answer.status == StatusCode::SERVICE_UNAVAILABLE).then_some(())
    })
    .await;
    customers.go_on(100).await;
    for front_end in 0..store.front_ends() {
        customers.read_at(&Place::FrontEnd(front_end)).await;
    }
    network.heal();
    is_back(&customers, &lost).await;
    customers.go_on(20).await;
    customers.settle().await;
}

#[tokio::test]
async fn a_network_that_comes_and_goes_stops_nobody_for_long() {
    let Some(Town { store, network }) = town(Layout::Nodes).await else { return };
    let customers = Customers::of(&store).await;
    for _ in 0..5 {
        let leader = store.leader().await;
        network.cut(&[&leader], &network.all_but(&leader));
        customers.go_on(5).await;
        network.heal();
        customers.go_on(5).await;
    }
    customers.settle().await;
}

#[tokio::test]
async fn a_front_end_that_is_cut_from_the_catalogs_shows_nothing_old() {
    let Some(Town { store, network }) = town(Layout::Tiers).await else { return };
    let customers = Customers::of(&store).await;
    let cut_off = "frontend-2";
    let catalogs = store.replicas();
    let catalogs: Vec<_> = catalogs.iter().map(String::as_str).collect();
    let cuts: [&dyn Fn(); 3] = [
        &|| network.cut(&[cut_off], &catalogs),
        &|| network.cut_one_way(&catalogs, &[cut_off]),
        &|| network.cut_one_way(&[cut_off], &catalogs),
    ];
    for cut in cuts {
        cut();
        // Its lease is waited for once; it reads through the balancers meanwhile.
        customers.go_on(50).await;
        sessions(&store, 1).await;
        customers.go_on(50).await;
        customers.read_at(&Place::FrontEnd(1)).await;
        network.heal();
        sessions(&store, 2).await;
    }
    customers.settle().await;
}

/// Waits until the leader has a session with so many front ends.
async fn sessions(store: &Store, count: usize) {
    until(&format!("{count} front ends have sessions"), async || {
        let status = store.status(&store.leader().await).await?;
        (status.front_ends.len() == count).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_front_end_that_only_customers_reach_refuses() {
    let Some(Town { store, network }) = town(Layout::Tiers).await else { return };
    let customers = Customers::of(&store).await;
    network.cut(&["frontend-2"], &network.all_but("frontend-2"));
    customers.go_on(50).await;
    // Sold since its lease ended: what it has is old, and it must not show it.
    refuses_reads(&store, &Place::FrontEnd(1)).await;
    network.heal();
    customers.read_at(&Place::FrontEnd(1)).await;
    customers.settle().await;
}
