//! Reads from the front ends' caches are never stale. Stock only falls here, so a read may not show
//! more than what was acknowledged before it began.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use http::{Method, StatusCode};
use pygmy_protocol::{item::Item, order::Order};
use rustix::process::{Signal, kill_process};

use crate::harness::{Layout, Store, until};

const ITEM: u64 = 1;

/// What buyers have been told.
struct Told {
    /// The stock after the last acknowledged sale.
    stock: AtomicU64,
    sales: AtomicU64,
}

impl Told {
    async fn start(store: &Store) -> Told {
        let stock = store.order(ITEM, "the-first").await.stock;
        Told { stock: stock.into(), sales: AtomicU64::new(1) }
    }

    /// Sells one copy through `front_end`, under a key that is asked for until it is sold.
    async fn sell(&self, store: &Store, front_end: usize) {
        let key = format!("sale-{}", self.sales.fetch_add(1, SeqCst));
        let order: Order = until("it is sold", async || {
            let answer = store.buy(front_end, ITEM, &key).await.ok()?;
            (answer.status == StatusCode::CREATED).then(|| answer.json().unwrap())
        })
        .await;
        self.stock.fetch_min(order.stock, SeqCst);
    }

    /// Looks the item up. Whether there was an answer.
    async fn look(&self, store: &Store, front_end: usize) -> bool {
        let told = self.stock.load(SeqCst);
        let call = store.public_call(Method::GET, &format!("/lookup/{ITEM}"));
        let Ok(answer) = store.send(front_end, &call).await else { return false };
        let Ok(item) = answer.json::<Item>() else { return false };
        assert!(item.stock <= told, "stale: {} copies, and {told} had been told", item.stock);
        true
    }
}

#[tokio::test]
async fn a_front_end_that_was_stopped_serves_nothing_stale() {
    let store = Store::start(Layout::Tiers).await;
    let told = Told::start(&store).await;
    let pid = store.pid("frontend-2");
    let mut reads = 0;
    while reads < 10_000 {
        // It has the item, and a lease.
        for _ in 0..900 {
            reads += u64::from(told.look(&store, 1).await);
        }
        kill_process(pid, Signal::STOP).unwrap();
        for _ in 0..3 {
            told.sell(&store, 0).await;
        }
        // These wait for it when it goes on, beside what the leader has sent it meanwhile.
        let waiting = futures_util::future::join_all((0..100).map(|_| told.look(&store, 1)));
        let (answered, ()) = tokio::join!(waiting, async {
            kill_process(pid, Signal::CONT).unwrap();
            told.sell(&store, 0).await;
        });
        reads += answered.into_iter().map(u64::from).sum::<u64>();
    }
    let scrape = store.scrape(&store.url("frontend-2")).await;
    let hits = scrape.value("pygmy_cache_hits_total", &["kind=\"item\""]);
    assert!(hits > reads as f64 / 10.0, "{hits} of {reads} were answered from the cache");
}

async fn no_read_is_stale_over_a_change_of_leader(layout: Layout) {
    let mut store = Store::start(layout).await;
    let told = Told::start(&store).await;
    let leader = store.leader().await;
    let survivors: Vec<_> = match layout {
        Layout::Tiers => vec![0, 1],
        // The leader's front end dies with it.
        Layout::Nodes => (0..3).filter(|n| leader != format!("node-{}", n + 1)).collect(),
    };
    let (done, killed) = (AtomicBool::new(false), AtomicBool::new(false));
    let kept = &store;
    let leader_pid = store.pid(&leader);
    let readers = survivors.iter().map(|front_end| {
        let (told, done) = (&told, &done);
        async move {
            let mut reads = 0;
            while !done.load(SeqCst) {
                reads += u64::from(told.look(kept, *front_end).await);
            }
            reads
        }
    });
    let writer = async {
        for sale in 0..200 {
            if sale == 50 {
                kill_process(leader_pid, Signal::KILL).unwrap();
                killed.store(true, SeqCst);
            }
            told.sell(kept, survivors[sale % survivors.len()]).await;
        }
        done.store(true, SeqCst);
    };
    let (reads, ()) = tokio::join!(futures_util::future::join_all(readers), writer);
    assert!(killed.load(SeqCst) && reads.iter().all(|reads| *reads > 100), "{reads:?}");
    store.reap(&leader);
    let orders = store.agreed().await[0].orders;
    assert_eq!(orders, 201);
    store.verify().await;
}

#[tokio::test]
async fn a_change_of_leader_makes_no_read_stale() {
    no_read_is_stale_over_a_change_of_leader(Layout::Tiers).await;
}

#[tokio::test]
async fn the_end_of_the_leaders_node_makes_no_read_stale() {
    no_read_is_stale_over_a_change_of_leader(Layout::Nodes).await;
}
