//! A balancer over real sockets, in front of servers that behave well and badly.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

mod support;

use std::{sync::Arc, time::Duration};

use axum::response::IntoResponse;
use http::{HeaderValue, Method, StatusCode, header};
use pygmy_balancer::{LocalServer, Policy, Settings};
use pygmy_client::{Answer, LocalPlace, ServerConfig};
use pygmy_protocol::{
    Code, Env, Problem,
    context::{IDEMPOTENCY_KEY, IDEMPOTENCY_REPLAYED, REQUEST_ID},
    http::{Limits, Readiness, shutdown},
    metrics::Metrics,
    registration::{Health, Registration, Role},
};
use support::{
    Balancer, FakeServer, PATIENCE, closed_port, eventually, leading, mute_server, registration,
    secret,
};

/// Probes only at the start, when nobody is registered yet: what a test then sees comes from
/// requests and registrations alone.
fn without_probes() -> Settings {
    Settings { probe_interval_ms: 60_000, ..Settings::default() }
}

fn text(answer: &Answer) -> &str {
    std::str::from_utf8(&answer.body).unwrap()
}

#[tokio::test]
async fn requests_go_to_the_servers_of_their_role_in_turns() {
    let balancer = Balancer::start(without_probes()).await;
    let orders = FakeServer::start(&balancer.env, "order-1").await;
    let catalogs = [
        FakeServer::start(&balancer.env, "catalog-1").await,
        FakeServer::start(&balancer.env, "catalog-2").await,
    ];
    balancer.register(&orders.registration(Role::Order)).await;
    for catalog in &catalogs {
        balancer.register(&catalog.registration(Role::Catalog)).await;
    }
    for target in ["/buy/1", "/purchases", "/updateStock/1/5", "/update_replica/1"] {
        assert_eq!(balancer.post(target, "k").await.status, StatusCode::OK, "{target}");
    }
    for target in ["/orders/7", "/topics", "/query/C%2B%2B", "/query?topic=C%2B%2B&limit=2"] {
        assert_eq!(balancer.get(target).await.status, StatusCode::OK, "{target}");
    }
    assert_eq!(orders.asked(), ["POST /buy/1", "GET /orders/7"]);
    assert_eq!(
        catalogs[0].asked(),
        ["POST /purchases", "POST /update_replica/1", "GET /query/C%2B%2B"]
    );
    assert_eq!(
        catalogs[1].asked(),
        ["POST /updateStock/1/5", "GET /topics", "GET /query?topic=C%2B%2B&limit=2"]
    );
    let unknown = balancer.get("/nothing").await;
    assert_eq!(unknown.problem().code, Code::UnknownRoute);
}

#[tokio::test]
async fn writes_go_to_the_leader_and_reads_to_all() {
    let balancer = Balancer::start(without_probes()).await;
    let follower = FakeServer::start(&balancer.env, "catalog-1").await;
    let leader = FakeServer::start(&balancer.env, "catalog-2").await;
    balancer.register(&follower.registration(Role::Catalog)).await;
    balancer.register(&leading(leader.registration(Role::Catalog))).await;
    for key in ["a", "b", "c", "d"] {
        assert_eq!(text(&balancer.post("/reduceStock/1", key).await), "catalog-2");
        balancer.get("/query/1").await;
    }
    assert!(follower.asked().iter().all(|asked| asked == "GET /query/1"));
    assert_eq!(leader.asked().iter().filter(|asked| *asked == "POST /reduceStock/1").count(), 4);
}

#[tokio::test]
async fn a_closed_port_costs_no_request_and_no_retry_budget() {
    let settings = Settings { retry_percent: 0, retry_floor_per_s: 0, ..without_probes() };
    let balancer = Balancer::start(settings).await;
    let alive = FakeServer::start(&balancer.env, "catalog-2").await;
    let gone = registration("catalog-1", Role::Catalog, &closed_port(&balancer.env).await);
    balancer.register(&leading(gone)).await;
    balancer.register(&alive.registration(Role::Catalog)).await;
    assert_eq!(balancer.status("catalog-1").await.health, Health::Ready);
    assert_eq!(text(&balancer.post("/reduceStock/1", "a").await), "catalog-2");
    let status = balancer.status("catalog-1").await;
    assert_eq!(status.health, Health::Dead, "one request is enough");
    assert!(status.reason.unwrap().contains("refused"));
    assert_eq!(text(&balancer.post("/reduceStock/1", "b").await), "catalog-2");
}

#[tokio::test]
async fn a_refusal_after_an_unanswered_attempt_is_outcome_unknown() {
    let balancer = Balancer::start(without_probes()).await;
    let mute = registration("catalog-1", Role::Catalog, &mute_server(&balancer.env).await);
    let refusing = FakeServer::answering(&balancer.env, "catalog-2", |_| {
        Problem::out_of_stock().into_response()
    })
    .await;
    balancer.register(&leading(mute)).await;
    balancer.register(&refusing.registration(Role::Catalog)).await;
    let answer = balancer.post("/purchases", "my-key").await;
    assert_eq!(answer.problem().code, Code::OutcomeUnknown);
    assert_eq!(answer.headers[IDEMPOTENCY_KEY], "my-key");
    assert_eq!(refusing.asked_with(&IDEMPOTENCY_KEY), ["my-key"]);
}

#[tokio::test]
async fn a_read_that_one_server_leaves_unanswered_is_answered_by_another() {
    let balancer = Balancer::start(without_probes()).await;
    let mute = registration("catalog-1", Role::Catalog, &mute_server(&balancer.env).await);
    let alive = FakeServer::start(&balancer.env, "catalog-2").await;
    balancer.register(&mute).await;
    balancer.register(&alive.registration(Role::Catalog)).await;
    for _ in 0..6 {
        assert_eq!(text(&balancer.get("/query/1").await), "catalog-2");
    }
}

#[tokio::test]
async fn a_server_that_hangs_loses_its_request_to_another_in_time() {
    let attempt_timeout = Duration::from_millis(200);
    let balancer = Balancer::start_with(without_probes(), Vec::new(), attempt_timeout).await;
    let hung = FakeServer::start(&balancer.env, "catalog-1").await;
    let alive = FakeServer::start(&balancer.env, "catalog-2").await;
    alive.release.send_replace(true);
    balancer.register(&hung.registration(Role::Catalog)).await;
    balancer.register(&alive.registration(Role::Catalog)).await;
    eventually(&balancer.env, "catalog-2 answers", || async {
        text(&balancer.get("/query/hold").await) == "catalog-2"
    })
    .await;
    assert_eq!(hung.asked(), ["GET /query/hold"]);
}

#[tokio::test]
async fn without_retry_budget_there_is_one_attempt() {
    let settings = Settings { retry_percent: 0, retry_floor_per_s: 0, ..without_probes() };
    let balancer = Balancer::start(settings).await;
    let mut servers = Vec::new();
    for name in ["order-1", "order-2"] {
        let busy = |_: &str| Problem::unavailable("busy").into_response();
        let server = FakeServer::answering(&balancer.env, name, busy).await;
        balancer.register(&server.registration(Role::Order)).await;
        servers.push(server);
    }
    let answer = balancer.post("/buy/1", "k").await;
    assert_eq!(answer.problem(), Problem::unavailable("busy"));
    assert_eq!(servers.iter().map(|server| server.asked().len()).sum::<usize>(), 1);
    let answer = balancer.get("/metrics").await;
    let metrics = text(&answer);
    for line in [
        "pygmy_balancer_retries_total{role=\"order\"} 0",
        "pygmy_balancer_retries_refused_total{role=\"order\"} 1",
        "pygmy_balancer_registered_servers{role=\"order\"} 2",
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line} is not in\n{metrics}");
    }
}

#[tokio::test]
async fn an_answer_passes_as_it_is_but_for_what_belongs_to_its_connection() {
    let balancer = Balancer::start(without_probes()).await;
    let server = FakeServer::answering(&balancer.env, "order-1", |_| {
        let mut response = (StatusCode::CREATED, "{ \"orderNumber\" : 7 }").into_response();
        let headers = response.headers_mut();
        headers.insert(IDEMPOTENCY_REPLAYED, HeaderValue::from_static("true"));
        headers.insert(header::LOCATION, HeaderValue::from_static("/orders/7"));
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        response
    })
    .await;
    balancer.register(&server.registration(Role::Order)).await;
    let mut call = balancer.call(Method::POST, "/buy/1");
    call.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    call.headers.insert("x-stranger", HeaderValue::from_static("stays here"));
    call.body = "{}".into();
    let answer = balancer.send(&call).await;
    assert_eq!(answer.status, StatusCode::CREATED);
    assert_eq!(text(&answer), "{ \"orderNumber\" : 7 }");
    assert_eq!(answer.headers[IDEMPOTENCY_REPLAYED], "true");
    assert_eq!(answer.headers[header::LOCATION], "/orders/7");
    assert!(!answer.headers.contains_key(header::CONNECTION));
    // Without a key of its own the request was given one, and the answer says which.
    let key = answer.headers[IDEMPOTENCY_KEY].to_str().unwrap();
    assert_eq!(server.asked_with(&IDEMPOTENCY_KEY), [key]);
    assert_eq!(server.asked_with(&header::CONTENT_TYPE), ["application/json"]);
    assert_eq!(server.asked_with(&REQUEST_ID), [call.context.id.to_str().unwrap()]);
    assert!(server.asked_with(&"x-stranger".parse().unwrap()).is_empty());
}

#[tokio::test]
async fn a_bad_key_is_refused_before_anything_is_sent() {
    let balancer = Balancer::start(without_probes()).await;
    let server = FakeServer::start(&balancer.env, "order-1").await;
    balancer.register(&server.registration(Role::Order)).await;
    let mut call = balancer.call(Method::POST, "/buy/1");
    call.headers.insert(IDEMPOTENCY_KEY, HeaderValue::from_static("two words"));
    assert_eq!(balancer.send(&call).await.problem().code, Code::BadKey);
    assert!(server.asked().is_empty());
}

#[tokio::test]
async fn a_registration_that_is_not_repeated_expires() {
    let balancer = Balancer::start(without_probes()).await;
    let server = FakeServer::start(&balancer.env, "order-1").await;
    let brief = Registration { heartbeat_ms: 50, ..server.registration(Role::Order) };
    balancer.register(&brief).await;
    eventually(&balancer.env, "order-1 is dead", || async {
        balancer.status("order-1").await.health == Health::Dead
    })
    .await;
    let problem = balancer.post("/buy/1", "k").await.problem();
    assert_eq!(problem, Problem::unavailable("no order server is ready"));
    balancer.register(&server.registration(Role::Order)).await;
    assert_eq!(balancer.post("/buy/1", "k").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_server_keeps_itself_registered_with_every_balancer_until_it_stops() {
    let balancers =
        [Balancer::start(without_probes()).await, Balancer::start(without_probes()).await];
    let env = &balancers[0].env;
    let order = FakeServer::start(env, "order-1").await;
    let server = ServerConfig {
        name: "order-1".to_owned(),
        url: order.url.clone(),
        process: "process-1".to_owned(),
        secret: secret(),
        limits: Limits::default(),
        balancers: balancers.iter().map(|balancer| Arc::clone(&balancer.upstream)).collect(),
        heartbeat: Duration::from_secs(60),
        attempt_timeout: PATIENCE,
        metrics: Metrics::new(env),
    };
    let readiness = Readiness::new();
    let (stopper, stop) = shutdown();
    let registered = server.register(env, Role::Order, &readiness, stop);
    for balancer in &balancers {
        eventually(env, "it answers", || async {
            balancer.get("/orders/1").await.status == StatusCode::OK
        })
        .await;
    }
    readiness.not_ready("test", "draining");
    for balancer in &balancers {
        eventually(env, "it is unready long before its next heartbeat", || async {
            balancer.status("order-1").await.health == Health::Unready
        })
        .await;
    }
    stopper.stop();
    env.timeout(PATIENCE, registered.task).await.unwrap().unwrap().unwrap();
    for balancer in &balancers {
        eventually(env, "it has left", || async { balancer.servers().await.len() == 1 }).await;
    }
}

#[tokio::test]
async fn a_server_that_hangs_is_ejected_until_a_new_process_takes_its_place() {
    let settings = Settings { probe_interval_ms: 50, ..Settings::default() };
    let balancer = Balancer::start(settings).await;
    let hung = FakeServer::hanging(&balancer.env, "order-1").await;
    let alive = FakeServer::start(&balancer.env, "order-2").await;
    balancer.register(&hung.registration(Role::Order)).await;
    balancer.register(&alive.registration(Role::Order)).await;
    eventually(&balancer.env, "order-1 is ejected", || async {
        balancer.status("order-1").await.health == Health::Dead
    })
    .await;
    eventually(&balancer.env, "order-2 answers", || async {
        text(&balancer.get("/orders/1").await) == "order-2"
    })
    .await;
    // The same server, as a new process that answers its probes.
    let again = FakeServer::start(&balancer.env, "order-1").await;
    let again = Registration { nonce: "again".to_owned(), ..again.registration(Role::Order) };
    balancer.register(&again).await;
    eventually(&balancer.env, "order-1 is back", || async {
        text(&balancer.get("/orders/1").await) == "order-1"
    })
    .await;
}

#[tokio::test]
async fn internal_routes_want_the_secret_and_probes_do_not() {
    let balancer = Balancer::start(without_probes()).await;
    let targets = [
        (Method::GET, "/servers"),
        (Method::POST, "/register"),
        (Method::DELETE, "/register/order-1"),
        (Method::GET, "/query/1"),
        (Method::POST, "/buy/1"),
    ];
    for (method, target) in targets {
        let mut call = balancer.call(method, target);
        call.headers.remove(header::AUTHORIZATION);
        assert_eq!(balancer.send(&call).await.problem().code, Code::SecretRequired, "{target}");
    }
    // Not ready, because it knows no server; but it says so to everybody.
    for (target, status) in
        [("/livez", StatusCode::OK), ("/readyz", StatusCode::SERVICE_UNAVAILABLE)]
    {
        let mut call = balancer.call(Method::GET, target);
        call.headers.remove(header::AUTHORIZATION);
        assert_eq!(balancer.send(&call).await.status, status, "{target}");
    }
}

#[tokio::test]
async fn a_balancer_is_ready_when_it_has_servers_of_both_kinds() {
    let balancer = Balancer::start(without_probes()).await;
    let order = registration("order-1", Role::Order, "http://127.0.0.1:1");
    balancer.register(&order).await;
    let answer = balancer.get("/readyz").await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(body["reasons"], serde_json::json!({ "catalog": "no catalog server is ready" }));
    balancer.register(&registration("catalog-1", Role::Catalog, "http://127.0.0.1:2")).await;
    assert_eq!(balancer.get("/readyz").await.status, StatusCode::OK);
    balancer.register(&Registration { ready: false, ..order }).await;
    assert_eq!(balancer.get("/readyz").await.status, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn servers_lists_everybody_by_role_and_name() {
    let balancer = Balancer::start(without_probes()).await;
    let catalog = FakeServer::start(&balancer.env, "catalog-1").await;
    let order = registration("order-1", Role::Order, "http://127.0.0.1:1");
    balancer.register(&Registration { ready: false, ..order }).await;
    balancer.register(&leading(catalog.registration(Role::Catalog))).await;
    balancer.register(&registration("frontend-1", Role::Frontend, "http://127.0.0.1:2")).await;
    balancer.get("/query/1").await;
    balancer.get("/query/2").await;

    let servers = balancer.servers().await;
    let names: Vec<_> = servers.iter().map(|server| server.name.as_str()).collect();
    assert_eq!(names, ["frontend-1", "balancer-1", "order-1", "catalog-1"]);
    assert_eq!(servers[1].url, balancer.upstream.url());
    assert_eq!((servers[1].health, servers[1].served), (Health::Unready, 2));
    assert_eq!(servers[1].reason.as_deref(), Some("no order server is ready"));
    assert_eq!((servers[2].health, servers[2].served), (Health::Starting, 0));
    assert_eq!(servers[2].reason.as_deref(), Some("it registered as not ready"));
    assert_eq!((servers[3].health, servers[3].served), (Health::Ready, 2));
    assert_eq!((servers[3].leader, servers[3].in_flight), (true, 0));

    let leaving = balancer.call(Method::DELETE, "/register/catalog-1");
    for _ in 0..2 {
        assert_eq!(balancer.send(&leaving).await.status, StatusCode::NO_CONTENT);
    }
    assert_eq!(balancer.servers().await.len(), 3);
    let problem = balancer.get("/query/1").await.problem();
    assert_eq!(problem, Problem::unavailable("no catalog server is ready"));
}

/// Sends a request that waits in whatever server it reaches, and gives that server's name.
async fn hold_one(balancer: &Arc<Balancer>) -> String {
    let holding = Arc::clone(balancer);
    balancer.env.spawn(async move { holding.get("/query/hold").await });
    let busy = || async {
        let servers = balancer.servers().await;
        servers.into_iter().find(|s| s.role == Role::Catalog && s.in_flight == 1)
    };
    eventually(&balancer.env, "one is busy", || async { busy().await.is_some() }).await;
    busy().await.unwrap().name
}

#[tokio::test]
async fn least_loaded_prefers_the_idle_one() {
    let settings = Settings { catalog_policy: Policy::LeastLoaded, ..without_probes() };
    let balancer = Arc::new(Balancer::start(settings).await);
    let servers = [
        FakeServer::start(&balancer.env, "catalog-1").await,
        FakeServer::start(&balancer.env, "catalog-2").await,
    ];
    for server in &servers {
        balancer.register(&server.registration(Role::Catalog)).await;
    }
    let busy = hold_one(&balancer).await;
    for _ in 0..4 {
        assert_ne!(text(&balancer.get("/query/1").await), busy);
    }
    for server in &servers {
        server.release.send_replace(true);
    }
    eventually(&balancer.env, "both are idle", || async {
        balancer.servers().await.iter().all(|server| server.in_flight == 0)
    })
    .await;
}

#[tokio::test]
async fn over_its_limit_the_balancer_refuses_at_once() {
    let settings = Settings { max_in_flight: 1, ..without_probes() };
    let balancer = Arc::new(Balancer::start(settings).await);
    let server = FakeServer::start(&balancer.env, "catalog-1").await;
    balancer.register(&server.registration(Role::Catalog)).await;
    hold_one(&balancer).await;
    let answer = balancer.get("/query/1").await;
    assert_eq!(answer.problem().code, Code::Unavailable);
    assert!(answer.headers.contains_key(header::RETRY_AFTER));
    server.release.send_replace(true);
    eventually(&balancer.env, "there is room again", || async {
        balancer.get("/query/1").await.status == StatusCode::OK
    })
    .await;
}

#[tokio::test]
async fn a_server_of_this_process_is_called_without_a_socket_and_first() {
    let env = Env::production();
    let here = FakeServer::start(&env, "catalog-2").await;
    let place = LocalPlace::default();
    place.fill(here.router(), None);
    let local = LocalServer {
        name: "catalog-2".to_owned(),
        role: Role::Catalog,
        url: closed_port(&env).await,
        tier: place.local(),
    };
    let registered = registration("catalog-2", Role::Catalog, &local.url);
    let balancer = Balancer::start_with(without_probes(), vec![local], PATIENCE).await;
    let leader = FakeServer::start(&env, "catalog-1").await;
    balancer.register(&leading(leader.registration(Role::Catalog))).await;
    balancer.register(&registered).await;
    for key in ["a", "b"] {
        assert_eq!(text(&balancer.post("/reduceStock/1", key).await), "catalog-2");
        assert_eq!(text(&balancer.get("/query/1").await), "catalog-2");
    }
    assert!(leader.asked().is_empty());
}

#[tokio::test]
async fn bad_registrations_are_told_apart() {
    let balancer = Balancer::start(without_probes()).await;
    let mut call = balancer.call(Method::POST, "/register");
    for body in ["", "{", "[]", r#"{"name":"a"}"#, r#"{"name":1}"#] {
        call.body = body.into();
        assert_eq!(balancer.send(&call).await.problem().code, Code::BadBody, "{body}");
    }
    call.body = "x".repeat(100_000).into();
    assert_eq!(balancer.send(&call).await.problem().code, Code::BodyTooLarge);

    let good = registration("order-1", Role::Order, "http://127.0.0.1:1");
    let mut call = call.with_json(&good);
    call.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    assert_eq!(balancer.send(&call).await.problem().code, Code::UnsupportedMediaType);

    for bad in [
        Registration { role: Role::All, ..good.clone() },
        Registration { heartbeat_ms: 1, ..good.clone() },
        Registration { url: "order-1:8085".to_owned(), ..good },
    ] {
        let call = balancer.call(Method::POST, "/register").with_json(&bad);
        assert_eq!(balancer.send(&call).await.problem().code, Code::BadValue, "{bad:?}");
    }
    assert_eq!(balancer.servers().await.len(), 1);
}

#[tokio::test]
async fn it_stops_when_told() {
    let balancer = Balancer::start(Settings::default()).await;
    balancer.get("/servers").await;
    balancer.stopper.stop();
    let ended = balancer.env.timeout(PATIENCE, balancer.running).await;
    assert!(ended.unwrap().unwrap().is_ok());
}
