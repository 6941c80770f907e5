//! Tiers in one process call one another directly where a purchase passes, and through their
//! routers otherwise. Nobody must be able to tell the two apart.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use pygmy_balancer::LocalServer;
use pygmy_catalog::ReplicaAddress;
use pygmy_client::{Answer, Call, LocalPlace, ServerConfig, Upstream};
use pygmy_protocol::{
    Env, IdempotencyKey, RequestContext,
    context::{IDEMPOTENCY_KEY, IDEMPOTENCY_REPLAYED, REQUEST_ID},
    http::{Limits, Secret, Shutdown, Stopper, Tier, serve, shutdown},
    metrics::Metrics,
    registration::Role,
};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(20);
/// What says how an answer travelled, and not what it is.
const OF_THE_WAY: [http::HeaderName; 3] =
    [REQUEST_ID, header::CACHE_CONTROL, header::CONTENT_LENGTH];

/// A tier of this process, and how it is called.
struct Called {
    name: &'static str,
    url: String,
    /// As the tiers beside it do.
    place: LocalPlace,
    /// By its router alone.
    routed: LocalPlace,
}

impl Called {
    fn new(name: &'static str) -> Called {
        let url = format!("http://{name}:1");
        Called { name, url, place: LocalPlace::default(), routed: LocalPlace::default() }
    }

    fn fill(&self, tier: Tier) {
        assert!(tier.direct.is_some());
        self.routed.fill(tier.router.clone(), None);
        self.place.fill(tier.router, tier.direct);
    }
}

struct Process {
    env: Env,
    secret: Secret,
    metrics: Metrics,
    balancer: Called,
    order: Called,
    catalog: Called,
    _dir: TempDir,
    _stopper: Stopper,
}

impl Process {
    /// One with an item: number 7, 20 copies at 500.
    async fn start(env: Env) -> Process {
        let dir = tempfile::tempdir().unwrap();
        let (stopper, stopped) = shutdown();
        let listener = env.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let process = Process {
            secret: Secret::new("a-secret-of-this-test").unwrap(),
            metrics: Metrics::new(&env),
            balancer: Called::new("balancer"),
            order: Called::new("order"),
            catalog: Called { url: format!("http://{address}"), ..Called::new("catalog") },
            env,
            _dir: dir,
            _stopper: stopper,
        };
        process.start_tiers(stopped.clone()).await;
        // Its replica asks itself over the network before it makes a cluster.
        let Process { env, metrics, .. } = &process;
        let (server, metrics, router) =
            (env.clone(), metrics.clone(), process.catalog.routed.router());
        env.spawn(async move {
            serve(&server, listener, router, &Limits::default(), &metrics, stopped).await;
        });
        let item = serde_json::json!(
            {"itemNumber": 7, "title": "Spring", "topic": "Seasons", "stock": 20, "cost": 500}
        );
        let call = process.call(Method::POST, "/bootstrap");
        let call = call.with_json(&serde_json::json!({ "items": [item] }));
        let [bootstrapped, _] = process.both(&process.catalog, &call).await;
        assert_eq!(bootstrapped.status, StatusCode::OK, "{bootstrapped:?}");
        process.until_ready().await;
        process
    }

    async fn start_tiers(&self, stopped: Shutdown) {
        let env = &self.env;
        let catalog = pygmy_catalog::Config {
            server: self.server(&self.catalog),
            dir: self._dir.path().to_owned(),
            replicas: vec![ReplicaAddress {
                name: "catalog".into(),
                url: self.catalog.url.clone(),
            }],
            lease_ms: 500,
            waits_for_caches: true,
            settings: pygmy_catalog::Settings::default(),
        };
        let catalog = pygmy_catalog::start(catalog, env, stopped.clone()).await.unwrap();
        self.catalog.fill(catalog);
        let order = pygmy_order::Config { server: self.server(&self.order) };
        self.order.fill(pygmy_order::start(order, env, stopped.clone()).unwrap());
        let local = [(&self.order, Role::Order), (&self.catalog, Role::Catalog)];
        let local = local.map(|(called, role)| LocalServer {
            name: called.name.to_owned(),
            role,
            url: called.url.clone(),
            tier: called.place.local(),
        });
        let balancer = pygmy_balancer::Config {
            server: self.server(&self.balancer),
            settings: pygmy_balancer::Settings::default(),
            local: local.into(),
            watcher: None,
        };
        self.balancer.fill(pygmy_balancer::start(balancer, env, stopped).unwrap());
    }

    fn server(&self, called: &Called) -> ServerConfig {
        let balancer = &self.balancer;
        let upstream = Upstream::local(&self.env, &balancer.url, balancer.place.local());
        ServerConfig {
            name: called.name.to_owned(),
            url: called.url.clone(),
            process: "process-1".to_owned(),
            secret: self.secret.clone(),
            limits: Limits::default(),
            balancers: vec![Arc::new(upstream)],
            heartbeat: Duration::from_millis(50),
            attempt_timeout: Duration::from_secs(2),
            metrics: self.metrics.clone(),
        }
    }

    async fn until_ready(&self) {
        let end = self.env.now() + PATIENCE;
        loop {
            let [answer, _] = self.both(&self.balancer, &self.call(Method::GET, "/readyz")).await;
            if answer.status == StatusCode::OK {
                return;
            }
            assert!(self.env.now() < end, "{answer:?}");
            self.env.sleep(Duration::from_millis(5)).await;
        }
    }

    fn call(&self, method: Method, target: &str) -> Call {
        let context = RequestContext::fresh(&self.env, PATIENCE);
        Call::new(method, target, context).with_secret(&self.secret)
    }

    fn with_body(&self, target: &str, key: &str, body: &str) -> Call {
        let key: IdempotencyKey = key.parse().unwrap();
        let mut call = self.call(Method::POST, target).with_key(&key);
        call.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        call.body = body.to_owned().into();
        call
    }

    /// The answers by the router and by the way that its neighbours take.
    async fn both(&self, called: &Called, call: &Call) -> [Answer; 2] {
        let ask = async |place: &LocalPlace| {
            let upstream = Upstream::local(&self.env, "", place.local());
            upstream.send(call, PATIENCE).await.unwrap()
        };
        [ask(&called.routed).await, ask(&called.place).await]
    }

    /// How many requests for `route` of `tier` have ended.
    fn counted(&self, tier: &str, route: &str) -> u64 {
        let labels = format!("tier=\"{tier}\",route=\"{route}\"");
        let text = self.metrics.text();
        let lines = text.lines().filter(|line| line.starts_with("pygmy_http_requests_total{"));
        let lines = lines.filter(|line| line.contains(&labels));
        lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum()
    }
}

fn essential(mut headers: HeaderMap) -> HeaderMap {
    OF_THE_WAY.iter().for_each(|name| drop(headers.remove(name)));
    headers
}

#[tokio::test]
async fn a_direct_call_is_answered_and_counted_as_a_routed_one() {
    let env = Env::production();
    env.clone().enter(compare(env)).await;
}

async fn compare(env: Env) {
    let process = Process::start(env).await;
    let Process { balancer, order, catalog, .. } = &process;
    let purchase = r#"{"itemNumber":7,"quantity":1}"#;
    let mut of_two_keys = process.with_body("/buy/7", "key-6", "");
    of_two_keys.headers.append(IDEMPOTENCY_KEY, HeaderValue::from_static("key-7"));
    let mut text = process.with_body("/buy/7", "key-8", "{}");
    text.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    let calls = [
        (balancer, "/buy/{*rest}", process.with_body("/buy/7", "key-1", ""), 201),
        (balancer, "/buy/{*rest}", process.with_body("/buy/8", "key-1", ""), 422),
        (balancer, "/buy/{*rest}", process.with_body("/buy/8", "key-2", ""), 404),
        (balancer, "/buy/{*rest}", process.with_body("/buy/nothing", "key-2", ""), 400),
        (balancer, "/purchases", process.with_body("/purchases", "key-3", purchase), 201),
        (balancer, "/query/{*rest}", process.call(Method::GET, "/query/7"), 200),
        (balancer, "/query/{*rest}", process.call(Method::GET, "/query/Seasons"), 200),
        (balancer, "/query", process.call(Method::GET, "/query?topic=Seasons"), 200),
        (balancer, "/query/{*rest}", process.call(Method::GET, "/query/8"), 404),
        (balancer, "/orders/{*rest}", process.call(Method::GET, "/orders/1"), 200),
        (order, "/buy/{itemNumber}", process.with_body("/buy/7", "key-1", ""), 201),
        (
            order,
            "/buy/{itemNumber}",
            process.with_body("/buy/7", "key-4", r#"{"quantity":3}"#),
            201,
        ),
        (
            order,
            "/buy/{itemNumber}",
            process.with_body("/buy/7", "key-4", r#"{"quantity":2}"#),
            422,
        ),
        (order, "/buy/{itemNumber}", process.with_body("/buy/7", "key-5", "{"), 400),
        (order, "/buy/{itemNumber}", process.with_body("/buy/0", "key-5", ""), 400),
        (order, "/buy/{itemNumber}", of_two_keys, 400),
        (order, "/buy/{itemNumber}", text, 415),
        (order, "/orders/{orderNumber}", process.call(Method::GET, "/orders/1"), 200),
        (catalog, "/purchases", process.with_body("/purchases", "key-9", purchase), 201),
        (catalog, "/purchases", process.with_body("/purchases", "key-9", "{}"), 400),
        (catalog, "/query/{item_or_topic}", process.call(Method::GET, "/query/7"), 200),
        (catalog, "/query/{item_or_topic}", process.call(Method::GET, "/query/0"), 400),
        (catalog, "/query/{item_or_topic}", process.call(Method::GET, "/query/Seasons"), 200),
        (catalog, "/topics", process.call(Method::GET, "/topics"), 200),
    ];
    for (called, route, call, status) in calls {
        // The first makes an order, and both others are told of it.
        process.both(called, &call).await;
        let before = process.counted(called.name, route);
        let [routed, direct] = process.both(called, &call).await;
        let case = format!("{} {}: {routed:?}, {direct:?}", called.name, call.target);
        assert_eq!(routed.status.as_u16(), status, "{case}");
        assert_eq!(direct.status, routed.status, "{case}");
        assert_eq!(direct.body, routed.body, "{case}");
        let replayed = routed.headers.contains_key(IDEMPOTENCY_REPLAYED);
        assert_eq!(replayed, status == 201, "{case}");
        assert_eq!(essential(direct.headers), essential(routed.headers), "{case}");
        // Its neighbours may have asked it for what they were asked, too.
        assert!(process.counted(called.name, route) >= before + 2, "{case}");
    }
}
