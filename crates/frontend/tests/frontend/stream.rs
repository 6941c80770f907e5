//! The invalidation stream, through sockets.

use crate::store::{FrontEnd, Store, patient, start};
use pygmy_frontend::Settings;
use pygmy_protocol::{
    Env,
    invalidation::{CacheKey, FromCatalog, ToCatalog},
    item::Item,
};

fn item(number: u64) -> CacheKey {
    CacheKey::Item(number.try_into().unwrap())
}

#[tokio::test]
async fn after_an_acknowledged_invalidation_the_new_value_is_read() {
    let (mut store, front) = start().await;
    let mut stream = store.session().await;
    assert_eq!(front.stock(1).await, 100);
    for stock in [99, 98, 97] {
        let index = store.sell(1, stock);
        assert_eq!(front.stock(1).await, stock + 1, "served from the cache until then");
        stream.invalidate(index, vec![item(1)]).await;
        assert_eq!(stream.acknowledged().await, index);
        assert_eq!(front.stock(1).await, stock);
    }
}

#[tokio::test]
async fn every_invalidation_is_acknowledged_alone_or_by_a_later_one() {
    let (mut store, front) = start().await;
    let mut stream = store.session().await;
    assert_eq!(front.stock(1).await, 100);
    store.sell(1, 5);
    for index in 11..=1_010 {
        stream.invalidate(index, vec![item(1 + index % 3)]).await;
    }
    let mut last = 10;
    while last < 1_010 {
        let acknowledged = stream.acknowledged().await;
        assert!(acknowledged > last);
        last = acknowledged;
    }
    assert_eq!(last, 1_010);
    assert_eq!(front.stock(1).await, 5);
}

#[tokio::test]
async fn a_fill_from_before_the_session_is_not_kept() {
    let (mut store, front) = start().await;
    let mut stream = store.stream().await;
    stream.begin(3, 11).await;
    // The store answers with log index 10.
    front.stock(1).await;
    front.stock(1).await;
    assert_eq!(store.queries(), 2);
}

#[tokio::test]
async fn a_broken_stream_empties_the_cache_before_a_new_session() {
    let (mut store, front) = start().await;
    let stream = store.session().await;
    assert_eq!(front.stock(1).await, 100);
    store.sell(1, 99);
    drop(stream);
    let mut next = store.stream().await;
    assert_eq!(front.stock(1).await, 99, "before there is a new session");
    next.begin(3, 10).await;
    assert_eq!((front.stock(1).await, front.stock(1).await), (99, 99));
    assert_eq!(store.queries(), 3);
}

#[tokio::test]
async fn a_lower_term_is_never_followed() {
    let (mut store, front) = start().await;
    drop(store.session().await);
    let mut old = store.stream().await;
    old.send(&FromCatalog::Start { term: 2, base: 10 }).await;
    old.closed().await;
    let _new = store.session().await;
    assert_eq!(front.stock(1).await, 100);
}

#[tokio::test]
async fn indexes_that_do_not_grow_break_the_stream() {
    let (mut store, _front) = start().await;
    for index in [9, 10] {
        let mut stream = store.session().await;
        stream.invalidate(index, vec![item(1)]).await;
        stream.closed().await;
    }
    let mut stream = store.session().await;
    stream.invalidate(12, vec![item(1)]).await;
    assert_eq!(stream.acknowledged().await, 12);
    stream.invalidate(12, vec![item(2)]).await;
    stream.closed().await;
}

#[tokio::test]
async fn a_silent_leader_is_left_and_its_cache_not_served() {
    let env = Env::production();
    let mut store = Store::start(&env).await;
    let settings = Settings { lease_ms: 50, ..Settings::default() };
    let front = FrontEnd::start(&env, &store, vec![store.url.clone()], settings).await;
    let silent = store.session().await;
    front.stock(1).await;
    store.sell(1, 99);
    silent.closed().await;
    assert_eq!(front.stock(1).await, 99);
}

#[tokio::test]
async fn an_item_that_was_asked_for_stays_with_what_it_became() {
    let (mut store, front) = start().await;
    let mut stream = store.session().await;
    assert_eq!(front.stock(1).await, 100);
    let sold = |number: u64, stock| Item {
        item_number: number.try_into().unwrap(),
        title: "t".to_owned(),
        topic: "a".to_owned(),
        stock,
        cost: 1,
    };
    let mut sell = async |stock| {
        let index = store.sell(1, stock);
        let keys = vec![item(1), item(2)];
        // Nobody has asked for the other one.
        let items = vec![sold(1, stock), sold(2, 5)];
        stream.send(&FromCatalog::Invalidate { index, keys, items }).await;
        assert_eq!(stream.acknowledged().await, index);
        index
    };
    sell(99).await;
    let last = sell(98).await;
    let asked = store.queries();
    stream.send(&FromCatalog::Released { index: last }).await;
    stream.invalidate(last + 1, vec![item(3)]).await;
    assert_eq!(stream.acknowledged().await, last + 1);
    assert_eq!(front.stock(1).await, 98);
    assert_eq!(store.queries(), asked, "it was there");
    front.stock(2).await;
    assert_eq!(store.queries(), asked + 1);
}

#[tokio::test]
async fn without_a_lease_the_cache_is_kept_and_not_served() {
    let env = Env::production();
    let mut store = Store::start(&env).await;
    let settings = Settings { lease_ms: 1_000, ..Settings::default() };
    let front = FrontEnd::start(&env, &store, vec![store.url.clone()], settings).await;
    let mut stream = store.session().await;
    front.stock(1).await;
    // Nothing is granted any more, but the stream goes on.
    let mut index = 10;
    while front.stock(1).await == 100 {
        store.sell(1, 99);
        index += 1;
        stream.invalidate(index, vec![item(2)]).await;
        while stream.read().await != Some(ToCatalog::Acknowledge { index }) {}
    }
    assert!(store.queries() >= 2);
    // The answer of another request is no answer to the last one.
    stream.send(&FromCatalog::Granted { number: 1 }).await;
    stream.invalidate(index + 1, vec![item(2)]).await;
    while stream.read().await != Some(ToCatalog::Acknowledge { index: index + 1 }) {}
    let before = store.queries();
    front.stock(1).await;
    assert_eq!(store.queries(), before + 1);
}

#[tokio::test]
async fn who_does_not_lead_names_the_leader() {
    let env = Env::production();
    let mut leader = Store::start(&env).await;
    let follower = Store::start(&env).await;
    follower.name_leader(&leader.url);
    let front = FrontEnd::start(&env, &leader, vec![follower.url.clone()], patient()).await;
    let _stream = leader.session().await;
    front.stock(1).await;
    front.stock(1).await;
    assert_eq!(leader.queries(), 1);
}

#[tokio::test]
async fn dead_catalog_servers_are_passed_over() {
    let env = Env::production();
    let mut store = Store::start(&env).await;
    let catalogs = vec!["http://127.0.0.1:1".to_owned(), store.url.clone()];
    let _front = FrontEnd::start(&env, &store, catalogs, patient()).await;
    store.session().await;
}
