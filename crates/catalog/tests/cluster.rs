//! Three replicas in one process, on real sockets and disks.
#![allow(clippy::unwrap_used, reason = "a test fails where it is surprised")]

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Method};
use pygmy_catalog::{Config, ReplicaAddress, Settings, run};
use pygmy_client::{Answer, Call, ServerConfig, Upstream, upgrade::upgrade};
use pygmy_protocol::{
    Code, Env, IdempotencyKey, RequestContext, frame,
    http::{Limits, Secret, Stopper, shutdown},
    import::UnfinishedImports,
    invalidation::{self, CacheKey, FromCatalog, ToCatalog},
    item::{Item, ItemPage},
    metrics::Metrics,
    order::{Order, Purchase},
    registration::CatalogStatus,
};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(20);

struct Cluster {
    env: Env,
    secret: Secret,
    replicas: Vec<Arc<Upstream>>,
    _stoppers: Vec<Stopper>,
    _dirs: Vec<TempDir>,
}

impl Cluster {
    /// Three replicas that know one another and belong to no cluster yet.
    async fn blank(settings: Settings) -> Cluster {
        let env = Env::production();
        let secret = Secret::new("a-secret-of-this-test").unwrap();
        let mut listeners = Vec::new();
        let mut addresses = Vec::new();
        for number in 1..=3 {
            let listener = env.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            addresses.push(ReplicaAddress { name: format!("catalog-{number}"), url });
            listeners.push(listener);
        }
        let (mut stoppers, mut dirs, mut replicas) = (Vec::new(), Vec::new(), Vec::new());
        for (address, listener) in addresses.iter().zip(listeners) {
            let dir = tempfile::tempdir().unwrap();
            let server = ServerConfig {
                name: address.name.clone(),
                url: address.url.clone(),
                process: "process-1".to_owned(),
                secret: secret.clone(),
                limits: Limits::default(),
                balancers: Vec::new(),
                heartbeat: Duration::from_millis(500),
                attempt_timeout: Duration::from_secs(2),
                metrics: Metrics::new(&env),
            };
            let config = Config {
                server,
                dir: dir.path().to_owned(),
                replicas: addresses.clone(),
                lease_ms: 500,
                waits_for_caches: true,
                settings: settings.clone(),
            };
            let (stopper, stop) = shutdown();
            env.spawn(run(config, env.clone(), listener, stop));
            replicas.push(Arc::new(Upstream::remote(&env, &address.url).unwrap()));
            stoppers.push(stopper);
            dirs.push(dir);
        }
        let cluster = Cluster { env, secret, replicas, _stoppers: stoppers, _dirs: dirs };
        for replica in 0..cluster.replicas.len() {
            cluster.opened(replica).await;
        }
        cluster
    }

    /// Waits until a replica has opened its data.
    async fn opened(&self, replica: usize) {
        let opened = async {
            while self.get(replica, "/status").await.status != 200 {
                self.env.sleep(Duration::from_millis(5)).await;
            }
        };
        self.env.timeout(PATIENCE, opened).await.expect("it opens its data in time");
    }

    /// The same with one item: number 7, 20 copies at 500.
    async fn with_an_item(settings: Settings) -> Cluster {
        let cluster = Cluster::blank(settings).await;
        let answer = cluster.bootstrap(0).await;
        assert_eq!(answer.status, 200, "{:?}", answer.body);
        cluster
    }

    async fn bootstrap(&self, replica: usize) -> Answer {
        let items = vec![Item {
            item_number: 7.try_into().unwrap(),
            title: "Spring in the Pioneer Valley.".into(),
            topic: "Graduate School".into(),
            stock: 20,
            cost: 500,
        }];
        let body = serde_json::json!({ "items": items });
        self.send(replica, self.call(Method::POST, "/bootstrap").with_json(&body)).await
    }

    fn call(&self, method: Method, target: &str) -> Call {
        Call::new(method, target, RequestContext::fresh(&self.env, PATIENCE))
            .with_secret(&self.secret)
    }

    async fn send(&self, replica: usize, call: Call) -> Answer {
        self.replicas[replica].send(&call, PATIENCE).await.unwrap()
    }

    async fn get(&self, replica: usize, target: &str) -> Answer {
        self.send(replica, self.call(Method::GET, target)).await
    }

    async fn post(&self, replica: usize, target: &str) -> Answer {
        self.send(replica, self.call(Method::POST, target)).await
    }

    async fn buy(&self, replica: usize, key: &str) -> Answer {
        let purchase =
            Purchase { item_number: 7.try_into().unwrap(), quantity: 1, expected_cost: None };
        let key: IdempotencyKey = key.parse().unwrap();
        let call = self.call(Method::POST, "/purchases").with_json(&purchase).with_key(&key);
        self.send(replica, call).await
    }

    async fn status(&self, replica: usize) -> CatalogStatus {
        self.get(replica, "/status").await.json().unwrap()
    }

    /// Polls until `condition` gives something.
    async fn until<T>(&self, what: &str, condition: impl AsyncFn() -> Option<T>) -> T {
        let polling = async {
            loop {
                if let Some(found) = condition().await {
                    return found;
                }
                tokio::task::yield_now().await;
            }
        };
        self.env
            .timeout(PATIENCE, polling)
            .await
            .unwrap_or_else(|_| panic!("waited in vain: {what}"))
    }

    /// Waits until all replicas have applied the same, and gives their statuses.
    async fn agreed(&self) -> Vec<CatalogStatus> {
        self.until("the replicas agree", async || {
            let mut statuses = Vec::new();
            for replica in 0..3 {
                statuses.push(self.status(replica).await);
            }
            let first = statuses[0].applied_index;
            statuses
                .iter()
                .all(|s| s.applied_index == first && s.last_log_index == first)
                .then_some(statuses)
        })
        .await
    }

    async fn leader(&self) -> usize {
        self.until("there is a leader", async || {
            for replica in 0..3 {
                if self.status(replica).await.role == "leader" {
                    return Some(replica);
                }
            }
            None
        })
        .await
    }
}

#[tokio::test]
async fn any_replica_sells_and_reads_and_all_agree() {
    let cluster = Cluster::with_an_item(Settings::default()).await;
    for replica in 0..3 {
        let answer = cluster.buy(replica, &format!("key-{replica}")).await;
        assert_eq!(answer.status, 201, "{:?}", answer.body);
        let order: Order = answer.json().unwrap();
        assert_eq!((order.stock, order.cost), (19 - replica as u64, 500));
        for reader in 0..3 {
            let item: Item = cluster.get(reader, "/query/7").await.json().unwrap();
            assert_eq!(item.stock, order.stock, "a read after the answer sees the buy");
            let target = format!("/purchases/{}", order.order_number);
            assert_eq!(cluster.get(reader, &target).await.json::<Order>().unwrap(), order);
        }
    }
    let page: ItemPage = cluster.get(1, "/query/Graduate%20School").await.json().unwrap();
    assert_eq!(page.items.len(), 1);
    let statuses = cluster.agreed().await;
    assert!(statuses.iter().all(|s| s.state_hash == statuses[0].state_hash && s.orders == 3));
}

#[tokio::test]
async fn fifty_buyers_of_twenty_copies_make_twenty_orders() {
    let cluster = Arc::new(Cluster::with_an_item(Settings::default()).await);
    let buyers: Vec<_> = (0..50)
        .map(|n| {
            let cluster = Arc::clone(&cluster);
            cluster
                .env
                .clone()
                .spawn(async move { cluster.buy(n % 3, &format!("buyer-{n}")).await })
        })
        .collect();
    let mut sold = 0;
    for buyer in buyers {
        let answer = buyer.await.unwrap();
        match answer.status.as_u16() {
            201 => sold += 1,
            409 => assert_eq!(answer.problem().code, Code::OutOfStock),
            other => panic!("{other}: {:?}", answer.body),
        }
    }
    assert_eq!(sold, 20);
    let item: Item = cluster.get(0, "/query/7").await.json().unwrap();
    assert_eq!(item.stock, 0);
    assert_eq!(cluster.get(0, "/verify").await.status, 200);
}

#[tokio::test]
async fn a_key_makes_one_order_wherever_and_whenever_it_comes() {
    let cluster = Arc::new(Cluster::with_an_item(Settings::default()).await);
    let same: Vec<_> = (0..12)
        .map(|n| {
            let cluster = Arc::clone(&cluster);
            cluster.env.clone().spawn(async move { cluster.buy(n % 3, "the-key").await })
        })
        .collect();
    let mut first_time = 0;
    for buy in same {
        let answer = buy.await.unwrap();
        assert_eq!(answer.status, 201, "{:?}", answer.body);
        assert_eq!(answer.json::<Order>().unwrap().order_number.0, 1);
        first_time += usize::from(!answer.headers.contains_key("idempotency-replayed"));
    }
    assert_eq!(first_time, 1);
    let other = cluster.call(Method::POST, "/reduceStock/7").with_key(&"the-key".parse().unwrap());
    let answer = cluster.send(0, other).await;
    assert_eq!(answer.problem().code, Code::IdempotencyKeyReused);
}

#[tokio::test]
async fn updates_answer_with_the_item_and_the_old_routes_say_what_replaced_them() {
    let cluster = Cluster::with_an_item(Settings::default()).await;
    let item: Item = cluster.post(1, "/updateStock/7/100").await.json().unwrap();
    assert_eq!((item.stock, item.cost), (100, 500));
    let item: Item = cluster.post(2, "/updateCost/7/999").await.json().unwrap();
    assert_eq!((item.stock, item.cost), (100, 999));
    let item: Item = cluster.post(0, "/reduceStock/7").await.json().unwrap();
    assert_eq!(item.stock, 99);
    for old in ["/update_replica/7", "/update_replica_stock/7/1", "/update_replica_cost/7/1"] {
        assert_eq!(cluster.post(0, old).await.problem().code, Code::Replaced);
    }
    let refused = [
        (Method::POST, "/updateStock/7/-1", Code::BadValue),
        (Method::POST, "/updateStock/7/9007199254740992", Code::BadValue),
        (Method::POST, "/updateStock/0/1", Code::BadItemNumber),
        (Method::POST, "/updateCost/8/1", Code::UnknownItem),
        (Method::GET, "/query/8", Code::UnknownItem),
        (Method::GET, "/query?limit=1", Code::BadValue),
        (Method::GET, "/query?topic=x&limit=0", Code::BadValue),
        (Method::GET, "/query?topic=x&cursor=7", Code::BadCursor),
        (Method::GET, "/purchases/99", Code::UnknownOrder),
        (Method::GET, "/nothing", Code::UnknownRoute),
        (Method::GET, "/updateStock/7/1", Code::MethodNotAllowed),
    ];
    for (method, target, code) in refused {
        let answer = cluster.send(0, cluster.call(method, target)).await;
        assert_eq!(answer.problem().code, code, "{target}");
        assert_eq!(answer.status, code.status(), "{target}");
    }
    let mut without_secret = cluster.call(Method::GET, "/query/7");
    without_secret.headers.clear();
    assert_eq!(cluster.send(0, without_secret).await.problem().code, Code::SecretRequired);
}

#[tokio::test]
async fn items_are_added_once_and_at_once() {
    let cluster = Cluster::with_an_item(Settings::default()).await;
    let items = |numbers: std::ops::RangeInclusive<u64>, title: &str| {
        let item = |n: u64| serde_json::json!({"itemNumber": n, "title": title, "topic": "t", "stock": n, "cost": 1});
        serde_json::json!({ "items": numbers.map(item).collect::<Vec<_>>() })
    };
    let add = |body: &serde_json::Value| {
        cluster.call(Method::POST, "/items").with_key(&"add".parse().unwrap()).with_json(body)
    };
    // The longest there are: far over what other bodies may have.
    let body = items(1..=1000, &"t".repeat(500));
    for (replica, replayed) in [(0, false), (1, true)] {
        let answer = cluster.send(replica, add(&body)).await;
        assert_eq!(answer.headers.contains_key("idempotency-replayed"), replayed);
        // Item 7 is there already, and stays as it is.
        assert_eq!(answer.json::<serde_json::Value>().unwrap(), serde_json::json!({"items": 999}));
    }
    let item: Item = cluster.get(2, "/query/1000").await.json().unwrap();
    assert_eq!((item.stock, item.topic.as_str()), (1000, "t"));
    assert_eq!(cluster.get(2, "/query/7").await.json::<Item>().unwrap().stock, 20);
    for (body, code) in [
        (items(1..=1001, "x"), Code::BadValue),
        (items(1..=1, ""), Code::BadValue),
        (serde_json::json!({ "items": [] }), Code::BadValue),
        (serde_json::json!({ "item": [] }), Code::BadBody),
        (items(1..=1000, &"x".repeat(5000)), Code::BodyTooLarge),
    ] {
        assert_eq!(cluster.send(0, add(&body)).await.problem().code, code);
    }
    assert_eq!(cluster.get(0, "/verify").await.status, 200);
}

#[tokio::test]
async fn an_import_is_staged_through_any_replica_and_published_on_all() {
    let cluster = Cluster::with_an_item(Settings::default()).await;
    let item = |n: u64| serde_json::json!({"itemNumber": n, "title": "x", "topic": "t", "stock": n, "cost": 1});
    let post = |replica: usize, target: &str, body: serde_json::Value| {
        let call = cluster.call(Method::POST, target).with_json(&body);
        cluster.send(replica, call)
    };
    let items = |answer: Answer| answer.json::<serde_json::Value>().unwrap()["items"].clone();
    let part = |n: u64| serde_json::json!({ "items": [item(n)] });
    for n in 0..3 {
        let staged = post(n as usize, "/imports/i/items", part(10 + n)).await;
        assert_eq!(items(staged), n + 1);
    }
    for replica in 0..3 {
        let answer = cluster.get(replica, "/query/10").await;
        assert_eq!(answer.problem().code, Code::UnknownItem);
        let page: ItemPage = cluster.get(replica, "/items").await.json().unwrap();
        assert_eq!(page.items.len(), 1);
        let imports: UnfinishedImports = cluster.get(replica, "/imports").await.json().unwrap();
        assert_eq!((imports.imports[0].id.as_str(), imports.imports[0].items), ("i", 3));
    }
    let refused = [
        ("/imports/i/publish", serde_json::json!({"items": 4}), Code::ImportRefused),
        ("/imports/i/publish", serde_json::json!({}), Code::BadBody),
        ("/imports/i/items", part(7), Code::ItemExists),
        ("/imports/j/items", part(11), Code::ItemExists),
        ("/imports/j%20/items", part(20), Code::BadValue),
        ("/items", part(10), Code::ItemExists),
    ];
    for (target, body, code) in refused {
        assert_eq!(post(0, target, body).await.problem().code, code, "{target}");
    }
    let published = post(1, "/imports/i/publish", serde_json::json!({"items": 3})).await;
    assert_eq!(items(published), 3);
    for replica in 0..3 {
        assert_eq!(cluster.get(replica, "/query/12").await.status, 200);
        let page: ItemPage = cluster.get(replica, "/items?limit=2").await.json().unwrap();
        assert_eq!((page.items.len(), page.next.as_deref()), (2, Some("a10")));
    }
    assert_eq!(items(post(2, "/imports/k/items", part(30)).await), 1);
    assert_eq!(items(cluster.post(0, "/imports/k/discard").await), 0);
    assert_eq!(post(1, "/imports/k/items", part(31)).await.problem().code, Code::ImportRefused);
    let statuses = cluster.agreed().await;
    assert!(statuses.iter().all(|s| s.state_hash == statuses[0].state_hash));
    for replica in 0..3 {
        assert_eq!(cluster.get(replica, "/verify").await.status, 200);
    }
}

#[tokio::test]
async fn a_cluster_is_made_once() {
    let cluster = Cluster::with_an_item(Settings::default()).await;
    assert_eq!(cluster.buy(0, "one").await.status, 201);
    let before = cluster.agreed().await;
    for replica in 0..3 {
        let answer = cluster.bootstrap(replica).await;
        let body: serde_json::Value = answer.json().unwrap();
        assert_eq!(body, serde_json::json!({ "created": false, "items": 1 }));
    }
    let after = cluster.agreed().await;
    assert_eq!(after[0].state_hash, before[0].state_hash, "nothing changed");
}

#[tokio::test]
async fn the_log_is_compacted() {
    let settings = Settings {
        snapshot_log_entries: 20,
        log_entries_kept: 5,
        log_segment_bytes: 64 * 1024,
        ..Settings::default()
    };
    let cluster = Cluster::with_an_item(settings).await;
    for n in 0..60 {
        let target = format!("/updateStock/7/{n}");
        assert_eq!(cluster.post(n % 3, &target).await.status, 200);
    }
    cluster
        .until("every replica has a snapshot and a shorter log", async || {
            for replica in 0..3 {
                let status = cluster.status(replica).await;
                if status.snapshot_index == 0 || status.purged_index == 0 {
                    return None;
                }
            }
            Some(())
        })
        .await;
}

#[tokio::test]
async fn a_write_is_answered_after_the_front_end_dropped_its_copy() {
    let cluster = Cluster::with_an_item(Settings::default()).await;
    let leader = cluster.leader().await;
    let url = cluster.replicas[leader].url().to_owned();
    let connection = upgrade(
        &cluster.env,
        &url,
        invalidation::PATH,
        invalidation::PROTOCOL,
        HeaderMap::new(),
        &cluster.secret,
        PATIENCE,
    );
    let mut stream = connection.await.unwrap();
    let hello = ToCatalog::Hello { name: "frontend-1".into(), nonce: 1 };
    frame::write(&mut stream, &hello).await.unwrap();
    let Some(FromCatalog::Start { base, .. }) = frame::read(&mut stream).await.unwrap() else {
        panic!("a stream begins with its base");
    };
    frame::write(&mut stream, &ToCatalog::Acknowledge { index: base }).await.unwrap();

    let buy = cluster.buy(0, "one");
    tokio::pin!(buy);
    let index = loop {
        let message = tokio::select! {
            answer = &mut buy => panic!("answered before the front end was asked: {answer:?}"),
            message = frame::read(&mut stream) => message.unwrap().unwrap(),
        };
        if let FromCatalog::Invalidate { index, keys, .. } = message {
            assert_eq!(keys, [CacheKey::Item(7.try_into().unwrap())]);
            break index;
        }
    };
    frame::write(&mut stream, &ToCatalog::Acknowledge { index }).await.unwrap();
    assert_eq!(buy.await.status, 201);

    // One that goes away holds up nobody.
    drop(stream);
    assert_eq!(cluster.buy(0, "two").await.status, 201);
}

#[tokio::test]
async fn a_follower_names_the_leader_to_a_front_end() {
    let cluster = Cluster::with_an_item(Settings::default()).await;
    let leader = cluster.leader().await;
    let follower = (leader + 1) % 3;
    let answer = cluster.get(follower, invalidation::PATH).await;
    assert_eq!(answer.status, 503);
    let url = answer.headers.get(invalidation::LEADER_URL).expect("the leader is named");
    assert_eq!(url, cluster.replicas[leader].url());
    assert_eq!(answer.body, Bytes::from(answer.problem().to_json()));
}
