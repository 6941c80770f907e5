//! Whatever comes in, nothing changes and nothing breaks.

use http::{HeaderValue, Method, StatusCode, header};
use pygmy_client::Call;
use pygmy_protocol::Code;

use crate::harness::{Layout, Store};

fn with_body(mut call: Call, body: impl Into<Vec<u8>>) -> Call {
    call.body = body.into().into();
    call.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    call
}

fn with_header(mut call: Call, name: &'static str, value: &str) -> Call {
    call.headers.append(name, HeaderValue::from_str(value).unwrap());
    call
}

async fn bad_requests_are_refused(layout: Layout) {
    let store = Store::start(layout).await;
    store.order(1, "a-good-one").await;
    let before = store.agreed().await;
    let call = |method, target: &str| store.public_call(method, target);
    let (get, post) = (Method::GET, Method::POST);
    let buy = |body: &str| with_body(call(Method::POST, "/buy/1"), body);
    let long = "x".repeat(20_000);
    let refused = [
        (call(get.clone(), "/lookup/0"), Code::BadItemNumber),
        (call(get.clone(), "/lookup/-1"), Code::BadItemNumber),
        (call(get.clone(), "/lookup/seven"), Code::BadItemNumber),
        (call(get.clone(), "/lookup/9007199254740992"), Code::BadItemNumber),
        (call(get.clone(), "/lookup/99"), Code::UnknownItem),
        (call(get.clone(), "/orders/0"), Code::UnknownOrder),
        (call(get.clone(), "/orders/first"), Code::UnknownOrder),
        (call(get.clone(), "/search/x?limit=0"), Code::BadValue),
        (call(get.clone(), "/search/x?limit=1001"), Code::BadValue),
        (call(get.clone(), "/search/x?cursor=7"), Code::BadCursor),
        (call(get.clone(), "/nothing/here"), Code::UnknownRoute),
        (call(get.clone(), "/buy/1"), Code::MethodNotAllowed),
        (call(post.clone(), "/lookup/1"), Code::MethodNotAllowed),
        (call(Method::DELETE, "/buy/1"), Code::MethodNotAllowed),
        (call(post.clone(), "/buy/0"), Code::BadItemNumber),
        (call(post.clone(), "/buy/99"), Code::UnknownItem),
        (buy(r#"{"quantity":0}"#), Code::BadQuantity),
        (buy(r#"{"quantity":-1}"#), Code::BadQuantity),
        (buy(r#"{"quantity":1000001}"#), Code::BadQuantity),
        (buy(r#"{"quantity":99999999999999999999}"#), Code::BadQuantity),
        (buy(r#"{"expectedCost":-1}"#), Code::BadValue),
        (buy(r#"{"quantity":"1"}"#), Code::BadBody),
        (buy(r#"{"copies":1}"#), Code::BadBody),
        (buy("no JSON"), Code::BadBody),
        (buy(&"[".repeat(10_000)), Code::BadBody),
        (buy(&" ".repeat(100_000)), Code::BodyTooLarge),
        (with_header(call(post.clone(), "/buy/1"), "idempotency-key", "two words"), Code::BadKey),
        (
            with_header(call(post.clone(), "/buy/1"), "idempotency-key", &"k".repeat(256)),
            Code::BadKey,
        ),
        (with_header(call(get.clone(), "/lookup/1"), "x-long", &long), Code::HeadersTooLarge),
        (call(get.clone(), &format!("/search/{long}")), Code::HeadersTooLarge),
        (call(post.clone(), "/invalidate/all"), Code::SecretRequired),
    ];
    for (call, code) in refused {
        let what = format!("{} {:.60}", call.method, call.target);
        let answer = store.send(0, &call).await.unwrap();
        assert_eq!(answer.problem().code, code, "{what}: {:?}", answer.body);
        assert_eq!(answer.status, code.status(), "{what}");
        assert_eq!(answer.headers[header::CONTENT_TYPE], "application/problem+json", "{what}");
    }
    let mut text = buy("quantity=1");
    text.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    assert_eq!(store.send(0, &text).await.unwrap().problem().code, Code::UnsupportedMediaType);
    assert_eq!(store.agreed().await[0].state_hash, before[0].state_hash, "nothing changed");
    store.verify().await;
    assert_eq!(store.order(1, "another-good-one").await.stock, 1498, "and everything still works");
}

#[tokio::test]
async fn bad_requests_are_refused_with_every_tier_a_process() {
    bad_requests_are_refused(Layout::Tiers).await;
}

#[tokio::test]
async fn bad_requests_are_refused_by_nodes() {
    bad_requests_are_refused(Layout::Nodes).await;
}

#[tokio::test]
async fn internal_routes_want_the_secret() {
    let store = Store::start(Layout::Tiers).await;
    let routes = [
        ("balancer-1", Method::GET, "/servers"),
        ("balancer-1", Method::POST, "/register"),
        ("balancer-1", Method::GET, "/query/1"),
        ("balancer-1", Method::POST, "/buy/1"),
        ("balancer-1", Method::POST, "/updateStock/1/0"),
        ("order-1", Method::POST, "/buy/1"),
        ("catalog-1", Method::GET, "/query/1"),
        ("catalog-1", Method::GET, "/status"),
        ("catalog-1", Method::POST, "/updateCost/1/0"),
        ("catalog-1", Method::GET, "/peer"),
        ("catalog-1", Method::GET, "/invalidations"),
        ("frontend-1", Method::POST, "/invalidate/item/1"),
    ];
    for (server, method, target) in routes {
        let without = store.public_call(method, target);
        let wrong =
            with_header(without.clone(), "authorization", "Bearer not-the-secret-of-this-test");
        for call in [without, wrong] {
            let answer = store.send_to(&store.url(server), &call).await.unwrap();
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{server} {target}");
            assert_eq!(answer.problem().code, Code::SecretRequired);
        }
    }
    let item = store.lookup(0, 1).await;
    assert_eq!((item.stock, item.cost), (1500, 2000));
    let allowed = store.call(Method::POST, "/invalidate/item/1");
    let answer = store.send_to(&store.url("frontend-1"), &allowed).await.unwrap();
    assert_eq!(answer.status, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn balancers_pass_the_old_routes_on_and_they_say_what_replaced_them() {
    let store = Store::start(Layout::Tiers).await;
    for old in ["/update_replica/1", "/update_replica_stock/1/5", "/update_replica_cost/1/5"] {
        let answer = store.through_balancer(1, &store.call(Method::POST, old)).await;
        assert_eq!(answer.problem().code, Code::Replaced, "{old}");
        assert_eq!(answer.status, StatusCode::GONE);
    }
}
