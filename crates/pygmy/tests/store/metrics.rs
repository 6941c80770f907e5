//! `GET /metrics` of every server: well-formed, documented, and true.

use std::collections::BTreeMap;

use http::{Method, StatusCode, header};

use crate::{
    exposition::Scrape,
    harness::{Layout, Store, until},
};

impl Store {
    /// Scrapes a base URL, without the secret, as Prometheus does.
    pub(crate) async fn scrape(&self, url: &str) -> Scrape {
        let answer = self.send_to(url, &self.public_call(Method::GET, "/metrics")).await.unwrap();
        assert_eq!(answer.status, StatusCode::OK, "{url}");
        let content_type = &answer.headers[header::CONTENT_TYPE];
        assert_eq!(content_type, "text/plain; version=0.0.4; charset=utf-8");
        Scrape::parse(std::str::from_utf8(&answer.body).unwrap())
    }
}

/// Names and types in the tables of `docs/operations.md`.
fn documented() -> BTreeMap<String, String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/operations.md");
    let text = std::fs::read_to_string(path).unwrap();
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `pygmy_"));
    let row = |row: &str| {
        let (name, rest) = row.split_once("` | ").unwrap();
        (format!("pygmy_{name}"), rest.split_once(" | ").unwrap().0.to_owned())
    };
    rows.map(row).collect()
}

#[tokio::test]
async fn every_tier_has_the_metrics_that_are_documented_and_they_move() {
    let store = Store::start(Layout::Tiers).await;
    let front_end = store.url("frontend-1");
    // Without a lease nothing is answered from the cache.
    let leader = store.leader().await;
    until("the front ends have leases", async || {
        let scrape = store.scrape(&store.url(&leader)).await;
        (scrape.value("pygmy_leases", &[]) == 2.0).then_some(())
    })
    .await;
    let before = store.scrape(&front_end).await;
    let from_front_end = |name: &'static str, labels: &'static [&'static str]| {
        let (store, before, front_end) = (&store, &before, &front_end);
        async move { store.scrape(front_end).await.value(name, labels) - before.value(name, labels) }
    };
    store.lookup(0, 2).await;
    assert_eq!(from_front_end("pygmy_cache_misses_total", &["kind=\"item\""]).await, 1.0);
    assert_eq!(from_front_end("pygmy_cache_entries", &[]).await, 1.0);
    store.lookup(0, 2).await;
    assert_eq!(from_front_end("pygmy_cache_hits_total", &["kind=\"item\""]).await, 1.0);
    store.get(0, "/nowhere").await;
    let unknown = ["route=\"unknown\"", "status=\"404\""];
    let lookups = ["tier=\"frontend\"", "route=\"/lookup/{item}\"", "status=\"200\""];
    let answers = store.scrape(&front_end).await;
    assert_eq!(answers.value("pygmy_http_requests_total", &unknown), 1.0);
    assert_eq!(answers.value("pygmy_http_requests_total", &lookups), 2.0);

    let leader_before = store.scrape(&store.url(&leader)).await;
    let answer = store.buy(0, 2, "a-key").await.unwrap();
    assert_eq!(answer.status, StatusCode::CREATED);
    assert_eq!(from_front_end("pygmy_cache_invalidations_total", &[]).await, 1.0);
    assert_eq!(from_front_end("pygmy_cache_entries", &[]).await, 0.0);
    let leader_after = store.scrape(&store.url(&leader)).await;
    let moved = |name: &str| leader_after.value(name, &[]) - leader_before.value(name, &[]);
    assert_eq!(moved("pygmy_orders"), 1.0);
    assert_eq!(moved("pygmy_batch_requests_sum"), 1.0);
    assert_eq!(moved("pygmy_release_wait_seconds_count"), 1.0);
    assert!(moved("pygmy_log_last_index") >= 1.0);
    assert!(moved("pygmy_log_fsync_seconds_count") >= 1.0);
    assert_eq!(leader_after.value("pygmy_raft_is_leader", &[]), 1.0);
    assert_eq!(leader_after.value("pygmy_sessions", &[]), 2.0);

    // An item that is looked up and sold again and again stays in the cache.
    let sale = std::cell::Cell::new(0);
    until("an item stays with what it has become", async || {
        store.lookup(0, 2).await;
        sale.set(sale.get() + 1);
        store.buy(0, 2, &format!("sale-{}", sale.get())).await.ok()?;
        (from_front_end("pygmy_cache_refreshes_total", &[]).await >= 1.0).then_some(())
    })
    .await;

    let mut served = BTreeMap::new();
    for name in store.names() {
        let scrape = store.scrape(&store.url(&name)).await;
        served.extend(scrape.families);
    }
    assert_eq!(served, documented(), "left: what the servers give; right: docs/operations.md");
}

#[tokio::test]
async fn a_server_with_all_tiers_has_one_set_of_metrics() {
    let store = Store::start(Layout::Nodes).await;
    let order = store.order(2, "a-key").await;
    let inside = store.scrape(&store.url("node-1")).await;
    let outside = store.scrape(&store.public_urls()[0]).await;
    assert_eq!(inside.families, outside.families);
    let start = "pygmy_process_start_time_seconds";
    assert_eq!(inside.value(start, &[]), outside.value(start, &[]));
    assert!(outside.value("pygmy_process_resident_memory_bytes", &[]) > 0.0);
    assert!(outside.value("pygmy_http_connections", &[]) >= 1.0);

    // One request of a client passes all tiers in this process, each known by its own routes, as
    // soon as all of them are registered with the balancer here.
    let routes = [
        ("frontend", "/orders/{order}"),
        ("balancer", "/orders/{*rest}"),
        ("order", "/orders/{orderNumber}"),
        ("balancer", "/purchases/{*rest}"),
        ("catalog", "/purchases/{order}"),
    ];
    until("a request passes all tiers of a node", async || {
        let before = store.scrape(&store.url("node-1")).await;
        let found = store.get(0, &format!("/orders/{}", order.order_number)).await;
        assert_eq!(found.status, StatusCode::OK);
        let after = store.scrape(&store.url("node-1")).await;
        let passed = routes.iter().all(|(tier, route)| {
            let labels = [&*format!("tier=\"{tier}\""), &format!("route=\"{route}\"")];
            let requests = |scrape: &Scrape| scrape.value("pygmy_http_requests_total", &labels);
            requests(&after) == requests(&before) + 1.0
        });
        passed.then_some(())
    })
    .await;
}
