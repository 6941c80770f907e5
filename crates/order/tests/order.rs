//! An order server over real sockets, in front of a balancer that only notes what it is asked.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use pygmy_client::{Answer, Call, ServerConfig, Upstream};
use pygmy_order::Config;
use pygmy_protocol::{
    Code, Env, Problem, RequestContext,
    context::{IDEMPOTENCY_KEY, IDEMPOTENCY_REPLAYED, REQUEST_ID},
    http::{Fatal, Limits, Secret, Stopper, read_body, serve, shutdown},
    metrics::Metrics,
    registration::{Registration, Role},
};
use tokio::task::JoinHandle;

/// Far longer than anything here takes: a test that meets it has failed.
const PATIENCE: Duration = Duration::from_secs(20);

fn secret() -> Secret {
    Secret::new("0123456789abcdef").unwrap()
}

fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// A URL where nobody listens.
async fn closed_port(env: &Env) -> String {
    format!("http://{}", env.listen(any_port()).await.unwrap().local_addr().unwrap())
}

/// Waits until `condition` holds.
async fn eventually(env: &Env, what: &str, condition: impl Fn() -> bool) {
    let end = env.now() + PATIENCE;
    while !condition() {
        assert!(env.now() < end, "not within {PATIENCE:?}: {what}");
        env.sleep(Duration::from_millis(5)).await;
    }
}

struct Seen {
    line: String,
    headers: HeaderMap,
    body: Bytes,
}

/// Stands for balancer and catalog: gives every purchase the same answer.
struct FakeBalancer {
    env: Env,
    url: String,
    seen: Mutex<Vec<Seen>>,
    answer: fn() -> Response,
}

impl FakeBalancer {
    async fn start(env: &Env, answer: fn() -> Response) -> Arc<FakeBalancer> {
        let listener = env.listen(any_port()).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let fake = FakeBalancer { env: env.clone(), url, seen: Mutex::default(), answer };
        let fake = Arc::new(fake);
        let router = Router::new().fallback(note).with_state(Arc::clone(&fake));
        let server_env = env.clone();
        env.spawn(async move {
            let (_stopper, stop) = shutdown();
            serve(
                &server_env,
                listener,
                router,
                &Limits::default(),
                &Metrics::new(&server_env),
                stop,
            )
            .await;
        });
        fake
    }

    /// What it was asked, without the registrations.
    fn calls(&self) -> Vec<Seen> {
        let mut seen = self.seen.lock().unwrap();
        seen.extract_if(.., |seen| !seen.line.contains("/register")).collect()
    }

    fn registrations(&self) -> Vec<Registration> {
        let seen = self.seen.lock().unwrap();
        let registrations = seen.iter().filter(|seen| seen.line == "POST /register");
        registrations.map(|seen| serde_json::from_slice(&seen.body).unwrap()).collect()
    }

    fn saw(&self, line: &str) -> bool {
        self.seen.lock().unwrap().iter().any(|seen| seen.line == line)
    }
}

async fn note(State(fake): State<Arc<FakeBalancer>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let context = RequestContext::fresh(&fake.env, PATIENCE);
    let body = read_body(&fake.env, &context, &Limits::default(), body).await.unwrap();
    let line = format!("{} {}", parts.method, parts.uri);
    let is_registration = parts.uri.path().starts_with("/register");
    fake.seen.lock().unwrap().push(Seen { line, headers: parts.headers, body });
    if is_registration { StatusCode::NO_CONTENT.into_response() } else { (fake.answer)() }
}

struct OrderServer {
    env: Env,
    upstream: Upstream,
    stopper: Stopper,
    running: JoinHandle<Result<(), Fatal>>,
}

fn config(env: &Env, url: &str, balancers: &[&str]) -> Config {
    let balancers = balancers.iter().map(|url| Arc::new(Upstream::remote(env, url).unwrap()));
    let server = ServerConfig {
        name: "order-1".to_owned(),
        url: url.to_owned(),
        process: "process-1".to_owned(),
        secret: secret(),
        limits: Limits { request_timeout_ms: PATIENCE.as_millis() as u64, ..Limits::default() },
        balancers: balancers.collect(),
        heartbeat: Duration::from_millis(100),
        attempt_timeout: PATIENCE,
        metrics: Metrics::new(env),
    };
    Config { server }
}

impl OrderServer {
    async fn start(env: &Env, balancers: &[&str]) -> OrderServer {
        let listener = env.listen(any_port()).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (stopper, stop) = shutdown();
        let config = config(env, &url, balancers);
        let running = env.spawn(pygmy_order::run(config, env.clone(), listener, stop));
        let upstream = Upstream::remote(env, &url).unwrap();
        OrderServer { env: env.clone(), upstream, stopper, running }
    }

    fn call(&self, method: Method, target: &str) -> Call {
        let context = RequestContext::fresh(&self.env, PATIENCE);
        Call::new(method, target, context).with_secret(&secret())
    }

    async fn send(&self, call: &Call) -> Answer {
        self.upstream.send(call, PATIENCE).await.unwrap()
    }
}

fn bought() -> Response {
    let mut response = (StatusCode::CREATED, Body::from("{ \"orderNumber\": 7 }")).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::LOCATION, HeaderValue::from_static("/orders/7"));
    headers.insert(IDEMPOTENCY_REPLAYED, HeaderValue::from_static("true"));
    response
}

fn sold_out() -> Response {
    Problem::out_of_stock().into_response()
}

#[tokio::test]
async fn a_buy_becomes_a_purchase_with_its_key() {
    let env = Env::production();
    let balancer = FakeBalancer::start(&env, bought).await;
    let order = OrderServer::start(&env, &[&balancer.url]).await;
    let mut call = order.call(Method::POST, "/buy/3").with_key(&"my-key".parse().unwrap());
    call.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    call.body = r#"{"quantity":2,"expectedCost":2000}"#.into();
    let answer = order.send(&call).await;

    assert_eq!(answer.status, StatusCode::CREATED);
    assert_eq!(answer.body, "{ \"orderNumber\": 7 }");
    assert_eq!(answer.headers[header::CONTENT_TYPE], "application/json");
    assert_eq!(answer.headers[header::LOCATION], "/orders/7");
    assert_eq!(answer.headers[IDEMPOTENCY_KEY], "my-key");
    assert_eq!(answer.headers[IDEMPOTENCY_REPLAYED], "true");

    let calls = balancer.calls();
    assert_eq!(calls.len(), 1);
    assert_eq!(calls[0].line, "POST /purchases");
    assert_eq!(calls[0].body, r#"{"itemNumber":3,"quantity":2,"expectedCost":2000}"#);
    assert_eq!(calls[0].headers[IDEMPOTENCY_KEY], "my-key");
    assert_eq!(calls[0].headers[REQUEST_ID], call.context.id);
    assert!(secret().matches(&calls[0].headers));
}

#[tokio::test]
async fn a_buy_without_a_key_is_given_one_also_when_it_is_refused() {
    let env = Env::production();
    let balancer = FakeBalancer::start(&env, sold_out).await;
    let order = OrderServer::start(&env, &[&balancer.url]).await;
    let answer = order.send(&order.call(Method::POST, "/buy/3")).await;
    assert_eq!(answer.problem(), Problem::out_of_stock());
    let calls = balancer.calls();
    assert_eq!(calls[0].body, r#"{"itemNumber":3,"quantity":1}"#);
    assert_eq!(answer.headers[IDEMPOTENCY_KEY], calls[0].headers[IDEMPOTENCY_KEY]);
}

#[tokio::test]
async fn a_bad_buy_is_refused_here() {
    let env = Env::production();
    let balancer = FakeBalancer::start(&env, bought).await;
    let order = OrderServer::start(&env, &[&balancer.url]).await;
    let cases = [
        ("/buy/0", "application/json", "", Code::BadItemNumber),
        ("/buy/%FF", "application/json", "", Code::BadItemNumber),
        ("/buy/3", "application/json", "{\"quantity\":0}", Code::BadQuantity),
        ("/buy/3", "application/json", "{\"expectedCost\":-1}", Code::BadValue),
        ("/buy/3", "application/json", "{", Code::BadBody),
        ("/buy/3", "text/plain", "{}", Code::UnsupportedMediaType),
    ];
    for (target, media_type, body, code) in cases {
        let mut call = order.call(Method::POST, target);
        call.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
        call.body = body.into();
        let answer = order.send(&call).await;
        assert_eq!(answer.problem().code, code, "{target} {body}");
        assert!(answer.headers.contains_key(IDEMPOTENCY_KEY), "{target} {body}");
    }
    let mut call = order.call(Method::POST, "/buy/3");
    call.headers.insert(IDEMPOTENCY_KEY, HeaderValue::from_static("two words"));
    assert_eq!(order.send(&call).await.problem().code, Code::BadKey);
    let mut call = order.call(Method::POST, "/buy/3");
    call.body = "x".repeat(100_000).into();
    assert_eq!(order.send(&call).await.problem().code, Code::BodyTooLarge);
    let call = order.call(Method::GET, "/buy/3");
    assert_eq!(order.send(&call).await.problem().code, Code::MethodNotAllowed);
    assert!(balancer.calls().is_empty());
}

#[tokio::test]
async fn an_order_is_looked_up_as_a_purchase() {
    let env = Env::production();
    let balancer = FakeBalancer::start(&env, bought).await;
    let order = OrderServer::start(&env, &[&balancer.url]).await;
    let answer = order.send(&order.call(Method::GET, "/orders/7")).await;
    assert_eq!(answer.body, "{ \"orderNumber\": 7 }");
    assert_eq!(balancer.calls()[0].line, "GET /purchases/7");
    for target in ["/orders/0", "/orders/x", "/orders/9007199254740992"] {
        let answer = order.send(&order.call(Method::GET, target)).await;
        assert_eq!(answer.problem().code, Code::UnknownOrder, "{target}");
    }
    assert!(balancer.calls().is_empty());
}

#[tokio::test]
async fn a_dead_balancer_costs_no_buy() {
    let env = Env::production();
    let balancer = FakeBalancer::start(&env, bought).await;
    let order = OrderServer::start(&env, &[&closed_port(&env).await, &balancer.url]).await;
    for _ in 0..4 {
        let answer = order.send(&order.call(Method::POST, "/buy/3")).await;
        assert_eq!(answer.status, StatusCode::CREATED);
    }
}

#[tokio::test]
async fn without_any_balancer_a_buy_is_certainly_not_done() {
    let env = Env::production();
    let order = OrderServer::start(&env, &[&closed_port(&env).await]).await;
    let answer = order.send(&order.call(Method::POST, "/buy/3")).await;
    assert_eq!(answer.problem().code, Code::Unavailable);
    assert!(answer.headers.contains_key(header::RETRY_AFTER));
    assert!(answer.headers.contains_key(IDEMPOTENCY_KEY));
}

#[tokio::test]
async fn its_routes_want_the_secret() {
    let env = Env::production();
    let order = OrderServer::start(&env, &[&closed_port(&env).await]).await;
    for (method, target) in [(Method::POST, "/buy/3"), (Method::GET, "/orders/7")] {
        let mut call = order.call(method, target);
        call.headers.clear();
        assert_eq!(order.send(&call).await.problem().code, Code::SecretRequired, "{target}");
    }
    let mut call = order.call(Method::GET, "/readyz");
    call.headers.clear();
    assert_eq!(order.send(&call).await.status, StatusCode::OK);
}

#[tokio::test]
async fn it_registers_as_an_order_server_and_leaves_when_it_stops() {
    let env = Env::production();
    let balancer = FakeBalancer::start(&env, bought).await;
    let order = OrderServer::start(&env, &[&balancer.url]).await;
    let registered = || balancer.registrations().len() >= 2;
    eventually(&env, "it registers and repeats it", registered).await;
    let registration = balancer.registrations().remove(0);
    assert_eq!((registration.name.as_str(), registration.role), ("order-1", Role::Order));
    assert_eq!((registration.url.as_str(), registration.ready), (order.upstream.url(), true));
    order.stopper.stop();
    assert!(env.timeout(PATIENCE, order.running).await.unwrap().unwrap().is_ok());
    let goodbye = format!("DELETE /register/order%2D1?nonce={}", registration.nonce);
    eventually(&env, "it leaves", || balancer.saw(&goodbye)).await;
}

#[tokio::test]
async fn it_does_not_start_without_balancers() {
    let env = Env::production();
    let (_stopper, stop) = shutdown();
    let refused = pygmy_order::start(config(&env, "http://127.0.0.1:1", &[]), &env, stop);
    assert!(refused.err().unwrap().0.contains("name at least one"));
}
