//! Selling, while nothing fails.

use std::{collections::BTreeSet, sync::Arc};

use http::{Method, StatusCode};
use pygmy_protocol::{
    Code,
    item::{ItemPage, Topics},
    order::{BuyBody, Order},
    registration::Health,
};

use crate::harness::{Layout, Store, until};

async fn the_whole_shop_works(layout: Layout) {
    let store = Store::start(layout).await;
    for front_end in 0..store.front_ends() {
        let page: ItemPage =
            store.get(front_end, "/search/Distributed%20Systems").await.json().unwrap();
        assert_eq!(page.items.len(), 2);
        let none: ItemPage = store.get(front_end, "/search/Nothing").await.json().unwrap();
        assert_eq!(none, ItemPage { items: vec![], next: None });
        let topics: Topics = store.get(front_end, "/topics").await.json().unwrap();
        assert_eq!(topics.topics.len(), 2);

        let before = store.lookup(front_end, 2).await;
        let answer = store.buy(front_end, 2, &format!("key-{front_end}")).await.unwrap();
        assert_eq!(answer.status, StatusCode::CREATED, "{:?}", answer.body);
        assert_eq!(answer.headers["idempotency-key"], format!("key-{front_end}"));
        let order: Order = answer.json().unwrap();
        assert_eq!((order.quantity, order.cost, order.stock), (1, 150_000, before.stock - 1));
        assert_eq!(answer.headers["location"], format!("/orders/{}", order.order_number));
        for reader in 0..store.front_ends() {
            assert_eq!(store.lookup(reader, 2).await.stock, order.stock);
            let found = store.get(reader, &format!("/orders/{}", order.order_number)).await;
            assert_eq!(found.json::<Order>().unwrap(), order);
        }
    }
    let statuses = store.agreed().await;
    assert!(statuses.iter().all(|s| s.state_hash == statuses[0].state_hash));
    store.verify().await;
}

#[tokio::test]
async fn the_whole_shop_works_with_every_tier_a_process() {
    the_whole_shop_works(Layout::Tiers).await;
}

#[tokio::test]
async fn the_whole_shop_works_on_three_nodes() {
    the_whole_shop_works(Layout::Nodes).await;
}

#[tokio::test]
async fn fifty_buyers_race_for_twenty_copies() {
    let store = Arc::new(Store::start(Layout::Tiers).await);
    let buyers: Vec<_> = (0..50)
        .map(|n| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { store.buy_for_sure(3, &format!("buyer-{n}")).await })
        })
        .collect();
    let mut orders = BTreeSet::new();
    for buyer in buyers {
        let answer = buyer.await.unwrap();
        if answer.status == StatusCode::CREATED {
            orders.insert(answer.json::<Order>().unwrap().order_number);
        } else {
            let problem = answer.problem();
            assert_eq!(problem.code, Code::OutOfStock, "{problem}");
            assert_eq!(problem.detail, "The item is out of stock");
        }
    }
    assert_eq!(orders.len(), 20);
    assert_eq!(store.lookup(0, 3).await.stock, 0);
    store.verify().await;
}

#[tokio::test]
async fn one_key_is_one_order() {
    let store = Arc::new(Store::start(Layout::Tiers).await);
    let same: Vec<_> = (0..10)
        .map(|n| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { store.buy(n % 2, 1, "the-key").await.unwrap() })
        })
        .collect();
    let (mut made, mut numbers) = (0, BTreeSet::new());
    for buy in same {
        let answer = buy.await.unwrap();
        assert_eq!(answer.status, StatusCode::CREATED, "{:?}", answer.body);
        made += u32::from(!answer.headers.contains_key("idempotency-replayed"));
        numbers.insert(answer.json::<Order>().unwrap().order_number);
    }
    assert_eq!((made, numbers.len()), (1, 1));
    assert_eq!(store.lookup(0, 1).await.stock, 1499);

    let again = store.buy(0, 1, "the-key").await.unwrap();
    assert_eq!(again.headers["idempotency-replayed"], "true");
    let other = store.buy(0, 2, "the-key").await.unwrap();
    assert_eq!(other.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(other.problem().code, Code::IdempotencyKeyReused);
}

#[tokio::test]
async fn updates_are_seen_through_every_front_end() {
    let store = Store::start(Layout::Tiers).await;
    for front_end in 0..2 {
        assert_eq!(store.lookup(front_end, 1).await.cost, 2000, "and now it is cached");
    }
    for (balancer, stock) in [(1, 10), (2, 0), (1, 1500)] {
        let update = store.call(Method::POST, &format!("/updateStock/1/{stock}"));
        assert_eq!(store.through_balancer(balancer, &update).await.status, StatusCode::OK);
        let update = store.call(Method::POST, &format!("/updateCost/1/{}", stock + 1));
        assert_eq!(store.through_balancer(balancer, &update).await.status, StatusCode::OK);
        for front_end in 0..2 {
            let item = store.lookup(front_end, 1).await;
            assert_eq!((item.stock, item.cost), (stock, stock + 1));
            let page: ItemPage =
                store.get(front_end, "/search/Distributed%20Systems").await.json().unwrap();
            assert_eq!(page.items[0], item, "a search shows the same");
        }
    }
    store.verify().await;
}

#[tokio::test]
async fn a_buyer_who_saw_another_price_does_not_buy() {
    let store = Store::start(Layout::Nodes).await;
    let buy = |body| store.public_call(Method::POST, "/buy/1").with_json(&body);
    let answer =
        store.send(0, &buy(BuyBody { quantity: 3, expected_cost: Some(1999) })).await.unwrap();
    assert_eq!(answer.problem().code, Code::CostChanged);
    let answer =
        store.send(0, &buy(BuyBody { quantity: 3, expected_cost: Some(2000) })).await.unwrap();
    let order: Order = answer.json().unwrap();
    assert_eq!((order.quantity, order.stock), (3, 1497));
    assert!(answer.headers.contains_key("idempotency-key"), "a buy without a key is given one");
    let answer =
        store.send(0, &buy(BuyBody { quantity: 1498, expected_cost: None })).await.unwrap();
    assert_eq!(answer.problem().code, Code::OutOfStock);
    assert_eq!(store.lookup(1, 1).await.stock, 1497);
}

#[tokio::test]
async fn replicas_write_the_same_text_log() {
    let store = Store::start(Layout::Tiers).await;
    for n in 0..5 {
        store.order(1, &format!("key-{n}")).await;
    }
    let update = store.call(Method::POST, "/updateCost/2/7");
    assert_eq!(store.through_balancer(1, &update).await.status, StatusCode::OK);
    store.agreed().await;
    let lines = until("the text logs are written and equal", async || {
        let texts: Vec<_> = store.replicas().iter().map(|name| store.requests_text(name)).collect();
        let complete =
            texts[0].contains("updateCost") && texts.iter().all(|text| *text == texts[0]);
        complete.then(|| texts[0].clone())
    })
    .await;
    assert_eq!(lines.matches("buy item=1").count(), 5, "{lines}");
}

#[tokio::test]
async fn both_balancers_know_every_server() {
    let store = Store::start(Layout::Tiers).await;
    for balancer in [1, 2] {
        until("the balancer has the whole table", async || {
            let servers = store.servers(balancer).await?.servers;
            let ready = servers.iter().filter(|s| s.health == Health::Ready);
            let names: BTreeSet<_> = ready.map(|s| s.name.clone()).collect();
            let expected = [
                "catalog-1",
                "catalog-2",
                "catalog-3",
                "frontend-1",
                "frontend-2",
                "order-1",
                "order-2",
            ];
            let leaders = servers.iter().filter(|s| s.leader).count();
            (expected.iter().all(|name| names.contains(*name)) && leaders == 1).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_request_has_one_id_in_all_logs() {
    let store = Store::start(Layout::Tiers).await;
    let mut call = store.public_call(Method::POST, "/buy/1");
    call.context.id = http::HeaderValue::from_static("follow-me-1");
    let answer = store.send(0, &call).await.unwrap();
    assert_eq!(answer.headers["x-request-id"], "follow-me-1");
    let logged = |name: &str| store.log(name).contains("follow-me-1");
    until("every tier has logged it", async || {
        let names = store.names();
        let has_logged = |tier| names.iter().any(|name| name.starts_with(tier) && logged(name));
        ["frontend", "balancer", "order", "catalog"].into_iter().all(has_logged).then_some(())
    })
    .await;
}
