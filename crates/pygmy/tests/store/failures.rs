//! Selling, while servers are killed.

use std::{
    collections::BTreeMap,
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use http::{Method, StatusCode};
use pygmy_protocol::{
    item::Item,
    order::{Order, OrderNumber},
    registration::{Health, Role},
};
use tokio::sync::Mutex;

use crate::harness::{Layout, Store, until};

/// Buyers that buy item 1 with keys of their own until told to stop. Gives what was acknowledged.
pub(crate) fn keep_buying(
    store: &Arc<Store>,
    buyers: usize,
    stop: &Arc<AtomicBool>,
) -> Acknowledged {
    let orders = Arc::new(Mutex::new(BTreeMap::new()));
    let tasks = (0..buyers)
        .map(|buyer| {
            let (store, stop, orders) = (Arc::clone(store), Arc::clone(stop), Arc::clone(&orders));
            tokio::spawn(async move {
                for n in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let key = format!("buyer-{buyer}-{n}");
                    let order = store.order(1, &key).await;
                    orders.lock().await.insert(key, order);
                }
            })
        })
        .collect();
    Acknowledged { orders, tasks }
}

pub(crate) struct Acknowledged {
    orders: Arc<Mutex<BTreeMap<String, Order>>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Acknowledged {
    /// Waits until `more` further orders were acknowledged.
    pub(crate) async fn more(&self, more: usize) {
        let enough = self.orders.lock().await.len() + more;
        until("buys go on", async || (self.orders.lock().await.len() >= enough).then_some(()))
            .await;
    }

    pub(crate) async fn finish(self) -> BTreeMap<String, Order> {
        for task in self.tasks {
            task.await.unwrap();
        }
        std::mem::take(&mut *self.orders.lock().await)
    }
}

/// Every acknowledged order is there, once, and the stock adds up.
pub(crate) async fn nothing_is_lost(store: &Store, acknowledged: &BTreeMap<String, Order>) {
    for (key, order) in acknowledged {
        store.has_order(key, order).await;
    }
    let numbers: std::collections::BTreeSet<OrderNumber> =
        acknowledged.values().map(|order| order.order_number).collect();
    assert_eq!(numbers.len(), acknowledged.len(), "no two keys have one order");
    let statuses = store.agreed().await;
    assert!(statuses.iter().all(|s| s.state_hash == statuses[0].state_hash));
    // Every buyer went on until it was certain: there are no orders that nobody knows of.
    assert_eq!(statuses[0].orders, acknowledged.len() as u64);
    assert_eq!(store.lookup(0, 1).await.stock, 1500 - acknowledged.len() as u64);
    store.verify().await;
}

/// Takes the store back from the buyers, who have ended.
pub(crate) fn alone(store: Arc<Store>) -> Store {
    Arc::into_inner(store).expect("the buyers have ended")
}

async fn the_leader_is_killed_in_the_middle_of_buys(layout: Layout) {
    let store = Store::start(layout).await;
    let leader = store.leader().await;
    let pid = store.pid(&leader);
    let store = Arc::new(store);
    let stop = Arc::new(AtomicBool::new(false));
    let buying = keep_buying(&store, 4, &stop);
    buying.more(20).await;
    kill_process(pid);
    buying.more(20).await;
    stop.store(true, Ordering::Relaxed);
    let acknowledged = buying.finish().await;
    let mut store = alone(store);
    store.reap(&leader);
    assert_ne!(store.leader().await, leader);
    store.spawn(&leader);
    store.ready().await;
    nothing_is_lost(&store, &acknowledged).await;
}

fn kill_process(pid: rustix::process::Pid) {
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

#[tokio::test]
async fn killing_the_leader_loses_no_acknowledged_order() {
    the_leader_is_killed_in_the_middle_of_buys(Layout::Tiers).await;
}

#[tokio::test]
async fn killing_the_leaders_node_loses_no_acknowledged_order() {
    the_leader_is_killed_in_the_middle_of_buys(Layout::Nodes).await;
}

#[tokio::test]
async fn a_key_stays_one_order_across_a_change_of_leader() {
    let mut store = Store::start(Layout::Tiers).await;
    let order = store.order(1, "the-key").await;
    let leader = store.leader().await;
    store.kill(&leader);
    let answer = store.buy_for_sure(1, "the-key").await;
    assert_eq!(answer.headers["idempotency-replayed"], "true");
    assert_eq!(answer.json::<Order>().unwrap(), order, "the same answer, whoever leads");
    let other = store.order(1, "another-key").await;
    assert_eq!(other.order_number.0, order.order_number.0 + 1);
}

#[tokio::test]
async fn killing_everything_keeps_all_data() {
    for layout in [Layout::Tiers, Layout::Nodes] {
        let mut store = Store::start(layout).await;
        let mut acknowledged = BTreeMap::new();
        for n in 0..10 {
            let key = format!("key-{n}");
            let order = store.order(1, &key).await;
            acknowledged.insert(key, order);
        }
        for name in store.names() {
            store.kill(&name);
        }
        for name in store.names() {
            store.spawn(&name);
        }
        store.ready().await;
        nothing_is_lost(&store, &acknowledged).await;
        let order = store.order(1, "one-more").await;
        assert_eq!(order.stock, 1489);
    }
}

#[tokio::test]
async fn buys_go_on_without_one_balancer_and_one_order_server() {
    let mut store = Store::start(Layout::Tiers).await;
    store.kill("balancer-1");
    for front_end in 0..2 {
        let answer = store.buy(front_end, 1, &format!("no-balancer-{front_end}")).await.unwrap();
        assert_eq!(answer.status, StatusCode::CREATED, "the other one is used: {:?}", answer.body);
    }
    store.kill("order-2");
    for n in 0..4 {
        let answer = store.buy(n % 2, 1, &format!("no-order-server-{n}")).await.unwrap();
        assert_eq!(answer.status, StatusCode::CREATED, "the other one is used: {:?}", answer.body);
    }
    until("the dead server has left the rotation", async || {
        let servers = store.servers(2).await?.servers;
        let dead = servers.iter().find(|s| s.name == "order-2")?;
        (dead.health == Health::Dead).then_some(())
    })
    .await;
    store.spawn("balancer-1");
    store.spawn("order-2");
    until("the restarted balancer has its table back", async || {
        let servers = store.servers(1).await?.servers;
        let ready =
            servers.iter().filter(|s| s.health == Health::Ready && s.role != Role::Balancer);
        (ready.count() == 7).then_some(())
    })
    .await;
}

#[tokio::test]
async fn without_a_majority_nothing_is_sold_and_nothing_is_made_up() {
    let mut store = Store::start(Layout::Tiers).await;
    store.kill("catalog-1");
    store.kill("catalog-2");
    let refused = until("the store notices", async || {
        let answer = store.buy(0, 1, "the-key").await.ok()?;
        matches!(answer.status.as_u16(), 503 | 504).then_some(answer)
    })
    .await;
    assert!(refused.headers.contains_key("idempotency-key"));
    store.spawn("catalog-1");
    store.spawn("catalog-2");
    let order = store.order(1, "the-key").await;
    assert_eq!(order.stock, 1499, "the same key again sold one copy, not two");
}

#[tokio::test]
async fn a_replica_that_missed_a_compaction_catches_up() {
    let settings =
        "[catalog]\nsnapshot_log_entries = 30\nlog_entries_kept = 5\nlog_segment_bytes = 65536\n";
    let mut store = Store::start_with(Layout::Tiers, settings).await;
    let leader = store.leader().await;
    let behind = store.replicas().into_iter().find(|name| *name != leader).unwrap();
    let left_at = store.status(&behind).await.unwrap().applied_index;
    store.kill(&behind);
    let n = std::cell::Cell::new(0);
    until("the log is compacted past what the replica has", async || {
        n.set(n.get() + 1);
        store.order(1, &format!("key-{}", n.get())).await;
        let leader = store.leader().await;
        (store.status(&leader).await?.purged_index > left_at + 1).then_some(())
    })
    .await;
    store.spawn(&behind);
    store.ready_server(&behind).await;
    let statuses = store.agreed().await;
    assert!(statuses.iter().all(|s| s.state_hash == statuses[0].state_hash));
    store.verify().await;
    let text = store.requests_text(&behind);
    assert!(text.contains("snapshot"), "the text log says where a snapshot was installed: {text}");
}

#[tokio::test]
async fn a_wiped_replica_neither_votes_nor_founds_a_cluster() {
    let mut store = Store::start(Layout::Tiers).await;
    store.order(1, "one").await;
    for name in ["catalog-1", "catalog-2", "catalog-3"] {
        store.kill(name);
    }
    fs::remove_dir_all(store.data("catalog-3")).unwrap();
    // One that has everything and one that has nothing are no majority of three.
    store.spawn("catalog-1");
    store.spawn("catalog-3");
    let status = until("the blank replica answers", async || store.status("catalog-3").await).await;
    assert_eq!(status.role, "blank");
    let call =
        store.call(Method::POST, "/bootstrap").with_json(&serde_json::json!({ "items": [] }));
    let answer = store.send_to(&store.url("catalog-3"), &call).await.unwrap();
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    let answer = store.buy(0, 1, "two").await.unwrap();
    assert!(!answer.status.is_success(), "{:?}", answer.body);
    store.spawn("catalog-2");
    assert_eq!(store.order(1, "two").await.stock, 1498);
    store.ready().await;
}

#[tokio::test]
async fn sigterm_ends_a_server_after_what_it_has_begun() {
    let mut store = Store::start(Layout::Tiers).await;
    let leader = store.leader().await;
    for name in [leader.as_str(), "order-1", "frontend-1", "balancer-1"] {
        assert_eq!(store.stop(name).await, Some(0), "{name}");
    }
    let answer = until("the rest sells", async || store.buy(1, 1, "the-key").await.ok()).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{:?}", answer.body);
}

#[tokio::test]
async fn a_leader_that_hangs_is_replaced_and_comes_back_as_a_follower() {
    for layout in [Layout::Tiers, Layout::Nodes] {
        let store = Store::start(layout).await;
        let first = store.order(1, "before").await;
        let leader = store.leader().await;
        let pid = store.pid(&leader);
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
        let second = store.order(1, "meanwhile").await;
        rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
        assert_eq!(second.stock, first.stock - 1);
        until("the old leader follows the new one", async || {
            let status = store.status(&leader).await?;
            (status.role == "follower" && status.orders == 2).then_some(())
        })
        .await;
        for front_end in 0..store.front_ends() {
            until("the front end shows what is sold", async || {
                let call = store.public_call(Method::GET, "/lookup/1");
                let item: Item = store.send(front_end, &call).await.ok()?.json().ok()?;
                (item.stock == second.stock).then_some(())
            })
            .await;
        }
        store.agreed().await;
        store.verify().await;
    }
}

#[tokio::test]
async fn a_front_end_that_hangs_delays_a_buy_and_does_not_prevent_it() {
    let store = Store::start(Layout::Tiers).await;
    store.lookup(1, 1).await;
    let pid = store.pid("frontend-2");
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    for n in 0..5 {
        let answer = store.buy(0, 1, &format!("key-{n}")).await.unwrap();
        assert_eq!(answer.status, StatusCode::CREATED, "{:?}", answer.body);
    }
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    until("it shows what was sold meanwhile", async || {
        let call = store.public_call(Method::GET, "/lookup/1");
        let item: Item = store.send(1, &call).await.ok()?.json().ok()?;
        (item.stock == 1495).then_some(())
    })
    .await;
}
