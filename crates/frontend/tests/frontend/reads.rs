//! Lookups, searches and the list of topics, through sockets.

use crate::store::{assert_problem, secret, start};
use http::{Method, StatusCode, header};
use pygmy_protocol::{
    Code,
    invalidation::CacheKey,
    item::{ItemPage, Topics},
    order::Order,
};

fn item_key(item: u64) -> CacheKey {
    CacheKey::Item(item.try_into().unwrap())
}

#[tokio::test]
async fn a_lookup_is_asked_once_and_then_served_from_the_cache() {
    let (mut store, front) = start().await;
    let _stream = store.session().await;
    let first = front.get("/lookup/1").await;
    let second = front.get("/lookup/1").await;
    assert_eq!(store.queries(), 1);
    assert_eq!(first.body, second.body);
    assert_eq!(
        second.body,
        r#"{"itemNumber":1,"title":"Book 1","topic":"systems","stock":100,"cost":2000}"#
    );
    for answer in [first, second] {
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.headers[header::CONTENT_TYPE], "application/json");
        assert_eq!(answer.headers[header::CACHE_CONTROL], "no-cache");
        assert!(answer.headers.contains_key("x-request-id"));
    }
}

#[tokio::test]
async fn without_a_session_every_lookup_is_asked() {
    let (mut store, front) = start().await;
    let _unanswered = store.stream().await;
    assert_eq!((front.stock(1).await, front.stock(1).await), (100, 100));
    assert_eq!(store.queries(), 2);
}

#[tokio::test]
async fn fifty_lookups_at_once_are_one_query() {
    let (mut store, front) = start().await;
    let _stream = store.session().await;
    let lookups = (0..50).map(|_| front.stock(2));
    let stocks = futures_util::future::join_all(lookups).await;
    assert_eq!(stocks, [100; 50]);
    assert_eq!(store.queries(), 1);
}

#[tokio::test]
async fn who_has_the_item_already_gets_304() {
    let (mut store, front) = start().await;
    let mut stream = store.session().await;
    let etag = front.get("/lookup/1").await.headers[header::ETAG].clone();
    let mut call = front.call(Method::GET, "/lookup/1");
    call.headers.insert(header::IF_NONE_MATCH, etag.clone());
    let unchanged = front.send(&call).await;
    assert_eq!((unchanged.status, unchanged.body.len()), (StatusCode::NOT_MODIFIED, 0));
    assert_eq!(unchanged.headers[header::ETAG], etag);

    let index = store.sell(1, 99);
    stream.invalidate(index, vec![item_key(1)]).await;
    stream.acknowledged().await;
    let changed = front.send(&call).await;
    assert_eq!(changed.status, StatusCode::OK);
    assert_ne!(changed.headers[header::ETAG], etag);
}

#[tokio::test]
async fn a_search_fills_the_page_and_its_items() {
    let (mut store, front) = start().await;
    let mut stream = store.session().await;
    let first = front.get("/search/systems").await;
    let page: ItemPage = first.json().unwrap();
    assert_eq!(page.items.len(), 2);
    assert_eq!(page.next, None);
    assert_eq!(front.get("/search/systems").await.body, first.body);
    assert_eq!(front.stock(1).await, 100);
    assert_eq!(store.queries(), 1, "the page and the item come from the cache");

    let index = store.sell(1, 99);
    stream.invalidate(index, vec![item_key(1)]).await;
    stream.acknowledged().await;
    assert_eq!(front.stock(1).await, 99);
    let page: ItemPage = front.get("/search/systems").await.json().unwrap();
    assert_eq!(page.items[0].stock, 99);
    assert_eq!(store.queries(), 2, "the page was still there, and the lookup filled the item");
}

#[tokio::test]
async fn an_item_has_one_etag_wherever_it_comes_from() {
    let (mut store, front) = start().await;
    let _stream = store.session().await;
    front.get("/search/systems").await;
    let from_search = front.get("/lookup/1").await.headers[header::ETAG].clone();
    let drop = front.call(Method::POST, "/invalidate/all").with_secret(&secret());
    assert_eq!(front.send(&drop).await.status, StatusCode::NO_CONTENT);
    assert_eq!(front.get("/lookup/1").await.headers[header::ETAG], from_search);
    assert_eq!(store.queries(), 2);
}

#[tokio::test]
async fn searches_turn_pages() {
    let (mut store, front) = start().await;
    let _stream = store.session().await;
    let mut target = "/search/systems?limit=1&unknown=1".to_owned();
    let mut titles = Vec::new();
    loop {
        let page: ItemPage = front.get(&target).await.json().unwrap();
        titles.extend(page.items.into_iter().map(|item| item.title));
        let Some(next) = page.next else { break };
        target = format!("/search/systems?cursor={next}&limit=1");
    }
    assert_eq!(titles, ["Book 1", "Book 2"]);
}

#[tokio::test]
async fn topics_may_hold_anything() {
    let (mut store, front) = start().await;
    let _stream = store.session().await;
    let page: ItemPage = front.get("/search/1984").await.json().unwrap();
    assert_eq!(page.items[0].title, "Book 3");
    for topic in ["a%2Fb", "%F0%9F%93%9A", "a%26limit%3D0", "%20", "%3F%23", "a+b"] {
        let answer = front.get(&format!("/search/{topic}")).await;
        assert_eq!(answer.body, r#"{"items":[],"next":null}"#, "{topic}");
    }
    assert!(store.targets().contains(&"/query?topic=a%2Bb&limit=100".to_owned()));
    assert_eq!(front.get(&format!("/search/{}", "x".repeat(500))).await.status, StatusCode::OK);
}

#[tokio::test]
async fn the_list_of_topics_is_cached_until_it_changes() {
    let (mut store, front) = start().await;
    let mut stream = store.session().await;
    let topics: Topics = front.get("/topics").await.json().unwrap();
    assert_eq!(topics.topics[0].items, 2);
    front.get("/topics").await;
    assert_eq!(store.queries(), 1);
    stream.invalidate(11, vec![CacheKey::Topics]).await;
    assert_eq!(stream.acknowledged().await, 11);
    front.get("/topics").await;
    assert_eq!(store.queries(), 2);
}

#[tokio::test]
async fn head_answers_like_get_without_the_body() {
    let (_store, front) = start().await;
    for target in ["/lookup/1", "/search/systems", "/topics", "/orders/5"] {
        let head = front.send(&front.call(Method::HEAD, target)).await;
        assert_eq!((head.status, head.body.len()), (StatusCode::OK, 0), "{target}");
        let get = front.get(target).await;
        for name in [header::CONTENT_TYPE, header::ETAG, header::CACHE_CONTROL] {
            assert_eq!(head.headers.get(&name), get.headers.get(&name), "{target}");
        }
    }
}

#[tokio::test]
async fn what_the_catalog_does_not_know_is_not_there() {
    let (mut store, front) = start().await;
    let _stream = store.session().await;
    assert_problem(&front.get("/lookup/99").await, Code::UnknownItem);
    assert_problem(&front.get("/orders/6").await, Code::UnknownOrder);
    assert_problem(&front.get("/orders/x").await, Code::UnknownOrder);
    let order = front.get("/orders/5").await;
    assert_eq!(order.json::<Order>().unwrap(), crate::store::an_order());
}
