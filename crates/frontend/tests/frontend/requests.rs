//! Buys, bad input, and the operators' routes, through sockets.

use crate::store::{FrontEnd, MAX_BODY_BYTES, Store, assert_problem, patient, secret, start};
use http::{HeaderName, Method, StatusCode, header};
use pygmy_client::Call;
use pygmy_protocol::{Code, Env, Problem, context::IDEMPOTENCY_KEY, order::Order};

fn with(mut call: Call, headers: &[(HeaderName, &str)], body: &[u8]) -> Call {
    for (name, value) in headers {
        call.headers.append(name, value.parse().unwrap());
    }
    call.body = body.to_vec().into();
    call
}

#[tokio::test]
async fn a_buy_passes_key_and_body_on_and_the_answer_back() {
    let (store, front) = start().await;
    let body = br#"{"quantity": 2, "expectedCost": 2000}"#;
    let headers = [(IDEMPOTENCY_KEY, "key-1"), (header::CONTENT_TYPE, "application/json")];
    let call = with(front.call(Method::POST, "/buy/1"), &headers, body);
    let answer = front.send(&call).await;
    assert_eq!(answer.status, StatusCode::CREATED);
    assert_eq!(answer.json::<Order>().unwrap(), crate::store::an_order());
    assert_eq!(answer.headers["idempotency-key"], "key-1");
    assert_eq!(answer.headers["idempotency-replayed"], "true");
    assert_eq!(answer.headers["location"], "/orders/5");

    let buy = store.last_buy();
    assert_eq!((buy.item.as_str(), buy.body.as_bytes()), ("1", &body[..]));
    assert_eq!(buy.headers["idempotency-key"], "key-1");
    assert_eq!(buy.headers["content-type"], "application/json");
    assert_eq!(buy.headers["x-request-id"], call.context.id);
}

#[tokio::test]
async fn a_buy_without_a_key_gets_one() {
    let (store, front) = start().await;
    let mut keys = Vec::new();
    for _ in 0..2 {
        let answer = front.send(&front.call(Method::POST, "/buy/1")).await;
        let key = answer.headers["idempotency-key"].clone();
        assert_eq!(store.last_buy().headers["idempotency-key"], key);
        assert_eq!(store.last_buy().body, "");
        keys.push(key);
    }
    assert_ne!(keys[0], keys[1]);
}

#[tokio::test]
async fn problems_of_a_buy_come_back_as_they_are_with_the_key() {
    let (store, front) = start().await;
    let call = with(front.call(Method::POST, "/buy/1"), &[(IDEMPOTENCY_KEY, "key-1")], b"");
    for code in [
        Code::OutOfStock,
        Code::CostChanged,
        Code::UnknownItem,
        Code::IdempotencyKeyReused,
        Code::Unavailable,
        Code::OutcomeUnknown,
    ] {
        store.refuse(Problem::new(code, "why"));
        let answer = front.send(&call).await;
        assert_problem(&answer, code);
        assert_eq!(answer.headers["idempotency-key"], "key-1");
        assert_eq!(answer.headers.contains_key("retry-after"), code == Code::Unavailable);
    }
    store.refuse(Problem::out_of_stock());
    assert_eq!(front.send(&call).await.problem().detail, "The item is out of stock");
    store.refuse(Problem::new(Code::SecretRequired, "no"));
    assert_problem(&front.send(&call).await, Code::Unavailable);
}

#[tokio::test]
async fn bad_reads_are_refused_here() {
    let (store, front) = start().await;
    let long = format!("/search/{}", "x".repeat(501));
    for (target, code) in [
        ("/lookup/0", Code::BadItemNumber),
        ("/lookup/-1", Code::BadItemNumber),
        ("/lookup/1.5", Code::BadItemNumber),
        ("/lookup/x", Code::BadItemNumber),
        ("/lookup/%FF", Code::BadItemNumber),
        ("/lookup/9007199254740992", Code::BadItemNumber),
        ("/lookup/99999999999999999999999", Code::BadItemNumber),
        ("/search/", Code::BadValue),
        ("/search/%FF", Code::BadValue),
        (&long, Code::BadValue),
        ("/search/a?limit=0", Code::BadValue),
        ("/search/a?limit=1001", Code::BadValue),
        ("/search/a?limit=", Code::BadValue),
        ("/search/a?limit=1&limit=2", Code::BadValue),
        ("/search/a?cursor=7", Code::BadCursor),
        ("/search/a?cursor=", Code::BadCursor),
        ("/search/a?cursor=a1&cursor=a1", Code::BadCursor),
        ("/orders/0", Code::UnknownOrder),
        ("/orders/%FF", Code::UnknownOrder),
        ("/nothing", Code::UnknownRoute),
        ("/lookup", Code::UnknownRoute),
        ("/lookup/1/2", Code::UnknownRoute),
        ("/favicon.ico", Code::UnknownRoute),
    ] {
        let answer = front.get(target).await;
        assert_eq!(answer.problem().code, code, "{target}");
        assert_problem(&answer, code);
    }
    assert_eq!(store.queries(), 0);
    assert_eq!(front.get("/search/a?%FF=%&&=&x").await.status, StatusCode::OK);
}

#[tokio::test]
async fn bad_buys_are_refused_here() {
    let (store, front) = start().await;
    let post = |target: &str| front.call(Method::POST, target);
    let json = [(header::CONTENT_TYPE, "application/json")];
    let large = vec![b' '; MAX_BODY_BYTES + 1];
    for (call, code) in [
        (post("/buy/0"), Code::BadItemNumber),
        (post("/buy/x"), Code::BadItemNumber),
        (with(post("/buy/1"), &[], br#"{"quantity":0}"#), Code::BadQuantity),
        (with(post("/buy/1"), &[], br#"{"quantity":1000001}"#), Code::BadQuantity),
        (with(post("/buy/1"), &[], br#"{"quantity":-1}"#), Code::BadQuantity),
        (with(post("/buy/1"), &[], br#"{"expectedCost":-1}"#), Code::BadValue),
        (with(post("/buy/1"), &json, br#"{"amount":1}"#), Code::BadBody),
        (with(post("/buy/1"), &json, b"\xff"), Code::BadBody),
        (with(post("/buy/1"), &json, b"{"), Code::BadBody),
        (with(post("/buy/1"), &json, &large), Code::BodyTooLarge),
        (
            with(post("/buy/1"), &[(header::CONTENT_TYPE, "text/plain")], b"{}"),
            Code::UnsupportedMediaType,
        ),
    ] {
        let call = with(call.clone(), &[(IDEMPOTENCY_KEY, "key-1")], &call.body);
        let answer = front.send(&call).await;
        assert_eq!(answer.problem().code, code, "{call:?}");
        assert_problem(&answer, code);
        assert_eq!(answer.headers["idempotency-key"], "key-1", "{call:?}");
    }
    let long = "k".repeat(256);
    for keys in [&["a b"][..], &[""], &[&long], &["one", "two"]] {
        let keys: Vec<_> = keys.iter().map(|key| (IDEMPOTENCY_KEY, *key)).collect();
        assert_problem(&front.send(&with(post("/buy/1"), &keys, b"")).await, Code::BadKey);
    }
    assert_eq!(store.buys(), 0);
}

#[tokio::test]
async fn wrong_methods_hear_which_are_right() {
    let (_store, front) = start().await;
    let (read, change) = (("GET,HEAD", "GET or HEAD"), ("POST", "POST"));
    for (method, target, (allow, named)) in [
        (Method::POST, "/lookup/1", read),
        (Method::DELETE, "/topics", read),
        (Method::GET, "/buy/1", change),
        (Method::PUT, "/buy/1", change),
    ] {
        let answer = front.send(&front.call(method, target)).await;
        assert_problem(&answer, Code::MethodNotAllowed);
        assert_eq!(answer.headers[header::ALLOW], allow, "{target}");
        assert_eq!(answer.problem().detail, format!("this path takes only {named}"));
    }
}

#[tokio::test]
async fn headers_have_a_limit() {
    let (_store, front) = start().await;
    let name = HeaderName::from_static("x-large");
    let call = with(front.call(Method::GET, "/lookup/1"), &[(name, &"x".repeat(20_000))], b"");
    assert_problem(&front.send(&call).await, Code::HeadersTooLarge);
}

#[tokio::test]
async fn only_operators_drop_entries() {
    let (mut store, front) = start().await;
    let _stream = store.session().await;
    front.get("/search/systems").await;
    let mut asked = 1;
    for (target, read) in [
        ("/invalidate/item/1", "/lookup/1"),
        ("/invalidate/topic/systems", "/search/systems"),
        ("/invalidate/all", "/lookup/2"),
    ] {
        let call = front.call(Method::POST, target);
        assert_problem(&front.send(&call).await, Code::SecretRequired);
        front.get(read).await;
        assert_eq!(store.queries(), asked, "{target}: nothing was dropped");

        let answer = front.send(&call.with_secret(&secret())).await;
        assert_eq!((answer.status, answer.body.len()), (StatusCode::NO_CONTENT, 0));
        front.get(read).await;
        asked += 1;
        assert_eq!(store.queries(), asked, "{target}");
    }
    let bad = front.call(Method::POST, "/invalidate/item/x").with_secret(&secret());
    assert_problem(&front.send(&bad).await, Code::BadItemNumber);
}

#[tokio::test]
async fn a_front_end_is_ready_once_a_balancer_knows_it_and_stops_when_told() {
    let (_store, front) = start().await;
    front.ready().await;
    assert_eq!(front.get("/livez").await.status, StatusCode::OK);
    assert_eq!(front.stop().await, Ok(()));
}

#[tokio::test]
async fn a_front_end_without_a_balancer_lives_and_is_not_ready() {
    let env = Env::production();
    let store = Store::start(&env).await;
    let nobody = env.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let nowhere = format!("http://{}", nobody.local_addr().unwrap());
    drop(nobody);
    let front = FrontEnd::with_balancer(&env, &nowhere, vec![store.url.clone()], patient()).await;
    let answer = front.get("/readyz").await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    let said = String::from_utf8_lossy(&answer.body).into_owned();
    assert!(said.contains("no balancer has been reached yet"), "{said}");
    assert_eq!(front.get("/livez").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_browser_is_shown_what_this_is() {
    let (_store, front) = start().await;
    let answer = front.get("/").await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.headers[header::CONTENT_TYPE], "text/html; charset=utf-8");
    let page = String::from_utf8_lossy(&answer.body).into_owned();
    assert!(page.contains("href=\"/topics\"") && !page.contains("<script"), "{page}");
}
