//! A front end on a real socket, and behind it a store that the test plays: balancer and catalog
//! on one port.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{
    Router,
    extract::{Path, Query, Request, State},
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
use http::{HeaderMap, Method, StatusCode};
use pygmy_client::{Answer, Call, ServerConfig, Upstream};
use pygmy_frontend::{Config, Settings};
use pygmy_protocol::{
    Code, Env, Problem, RequestContext,
    context::{IDEMPOTENCY_REPLAYED, LOG_INDEX},
    env::Connection,
    frame,
    http::{
        Fatal, Json, Limits, Probes, Readiness, Secret, Shutdown, Stopper, accept_upgrade, serve,
        shutdown, wrap,
    },
    invalidation::{CacheKey, FromCatalog, LEADER_URL, PATH, PROTOCOL, ToCatalog},
    item::{Item, ItemPage, TopicCount, Topics},
    metrics::Metrics,
    order::{Order, OrderNumber},
};
use tokio::{sync::mpsc, task::JoinHandle};

/// Nothing in these tests takes this long unless it fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
pub(crate) const MAX_BODY_BYTES: usize = 1024;

pub(crate) fn secret() -> Secret {
    Secret::new("0123456789abcdef").unwrap()
}

/// A buy as it reached the store.
#[derive(Debug, Clone)]
pub(crate) struct Buy {
    pub(crate) item: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

#[derive(Default)]
struct Inner {
    items: Mutex<BTreeMap<u64, Item>>,
    index: AtomicU64,
    queries: AtomicUsize,
    targets: Mutex<Vec<String>>,
    buys: Mutex<Vec<Buy>>,
    refusal: Mutex<Option<Problem>>,
    leader: Mutex<Option<String>>,
}

#[derive(Clone)]
struct App {
    env: Env,
    inner: Arc<Inner>,
    streams: mpsc::UnboundedSender<Connection>,
}

pub(crate) struct Store {
    pub(crate) url: String,
    env: Env,
    inner: Arc<Inner>,
    streams: mpsc::UnboundedReceiver<Connection>,
    _stopper: Stopper,
}

impl Store {
    /// Three books of two topics, at log index 10.
    pub(crate) async fn start(env: &Env) -> Store {
        let (sender, streams) = mpsc::unbounded_channel();
        let inner = Arc::new(Inner::default());
        for (number, topic) in [(1, "systems"), (2, "systems"), (3, "1984")] {
            let item = Item {
                item_number: number.try_into().unwrap(),
                title: format!("Book {number}"),
                topic: topic.to_owned(),
                stock: 100,
                cost: 2000,
            };
            inner.items.lock().unwrap().insert(number, item);
        }
        inner.index.store(10, SeqCst);
        let app = App { env: env.clone(), inner: inner.clone(), streams: sender };
        let (stopper, shutdown) = shutdown();
        let url = listen(env, store_router(app), shutdown).await;
        Store { url, env: env.clone(), inner, streams, _stopper: stopper }
    }

    /// Changes the stock of an item, as a sale does; gives the log index.
    pub(crate) fn sell(&self, item: u64, stock: u64) -> u64 {
        self.inner.items.lock().unwrap().get_mut(&item).unwrap().stock = stock;
        self.inner.index.fetch_add(1, SeqCst) + 1
    }

    /// Reads that reached the catalog.
    pub(crate) fn queries(&self) -> usize {
        self.inner.queries.load(SeqCst)
    }

    /// Paths and queries of the reads.
    pub(crate) fn targets(&self) -> Vec<String> {
        self.inner.targets.lock().unwrap().clone()
    }

    pub(crate) fn last_buy(&self) -> Buy {
        self.inner.buys.lock().unwrap().last().unwrap().clone()
    }

    pub(crate) fn buys(&self) -> usize {
        self.inner.buys.lock().unwrap().len()
    }

    /// Refuses buys from now on.
    pub(crate) fn refuse(&self, problem: Problem) {
        *self.inner.refusal.lock().unwrap() = Some(problem);
    }

    /// Does not lead from now on, and names who does.
    pub(crate) fn name_leader(&self, url: &str) {
        *self.inner.leader.lock().unwrap() = Some(url.to_owned());
    }

    /// The next stream that a front end opens, after its hello.
    pub(crate) async fn stream(&mut self) -> Stream {
        let connection = self.env.timeout(PATIENCE, self.streams.recv()).await.unwrap().unwrap();
        let mut stream = Stream { env: self.env.clone(), connection };
        let ToCatalog::Hello { name, nonce } = stream.read().await.unwrap() else { panic!() };
        assert_eq!(name, "frontend-1");
        assert_ne!(nonce, 0);
        stream
    }

    /// A stream whose session is open: the front end keeps and serves what it reads.
    pub(crate) async fn session(&mut self) -> Stream {
        let mut stream = self.stream().await;
        stream.begin(3, 9).await;
        stream
    }
}

/// The leader's side of an invalidation stream.
pub(crate) struct Stream {
    env: Env,
    connection: Connection,
}

impl Stream {
    pub(crate) async fn send(&mut self, message: &FromCatalog) {
        frame::write(&mut self.connection, message).await.unwrap();
    }

    pub(crate) async fn invalidate(&mut self, index: u64, keys: Vec<CacheKey>) {
        self.send(&FromCatalog::Invalidate { index, keys, items: Vec::new() }).await;
    }

    /// Opens a session and grants the lease that is asked for. When this returns, the front end has
    /// it, and has acknowledged an invalidation of nothing at the index after `base`.
    pub(crate) async fn begin(&mut self, term: u64, base: u64) {
        self.send(&FromCatalog::Start { term, base }).await;
        let first = self.read().await;
        assert_eq!(first, Some(ToCatalog::Acknowledge { index: base }));
        let second = self.read().await;
        let Some(ToCatalog::Renew { number, .. }) = second else { panic!("{second:?}") };
        self.send(&FromCatalog::Granted { number }).await;
        self.invalidate(base + 1, Vec::new()).await;
        assert_eq!(self.acknowledged().await, base + 1);
    }

    /// The next acknowledgement. Meanwhile every lease that is asked for is granted.
    pub(crate) async fn acknowledged(&mut self) -> u64 {
        loop {
            match self.read().await {
                Some(ToCatalog::Acknowledge { index }) => return index,
                Some(ToCatalog::Renew { number, .. }) => {
                    self.send(&FromCatalog::Granted { number }).await;
                }
                message => panic!("{message:?}"),
            }
        }
    }

    /// Waits until the front end leaves the stream; what it still says is of no interest.
    pub(crate) async fn closed(mut self) {
        while self.read().await.is_some() {}
    }

    pub(crate) async fn read(&mut self) -> Option<ToCatalog> {
        let message = frame::read(&mut self.connection);
        // A connection that is reset is closed as well.
        self.env.timeout(PATIENCE, message).await.unwrap().unwrap_or(None)
    }
}

fn store_router(app: App) -> Router {
    Router::new()
        .route("/register", post(|| async { StatusCode::NO_CONTENT }))
        .route("/register/{name}", delete(|| async { StatusCode::NO_CONTENT }))
        .route("/query/{item}", get(query))
        .route("/query", get(query_topic))
        .route("/topics", get(topics))
        .route("/buy/{item}", post(buy))
        .route("/orders/{order}", get(order))
        .route(PATH, get(open_stream))
        .with_state(app)
}

impl App {
    /// Every internal call carries the secret.
    fn asked(&self, request: &Request) -> String {
        assert!(secret().matches(request.headers()), "{}", request.uri());
        let target = request.uri().path_and_query().unwrap().to_string();
        self.inner.queries.fetch_add(1, SeqCst);
        self.inner.targets.lock().unwrap().push(target.clone());
        target
    }

    fn answer(&self, body: impl serde::Serialize) -> Response {
        let mut response = Json(StatusCode::OK, body).into_response();
        response.headers_mut().insert(LOG_INDEX, self.inner.index.load(SeqCst).into());
        response
    }
}

async fn query(
    State(app): State<App>,
    Path(item): Path<u64>,
    request: Request,
) -> Result<Response, Problem> {
    app.asked(&request);
    let found = app.inner.items.lock().unwrap().get(&item).cloned();
    Ok(app.answer(found.ok_or_else(|| Problem::unknown_item(item))?))
}

async fn query_topic(
    State(app): State<App>,
    Query(parameters): Query<BTreeMap<String, String>>,
    request: Request,
) -> Response {
    app.asked(&request);
    let limit: usize = parameters["limit"].parse().unwrap();
    let after = parameters.get("cursor").map_or(0, |c| c[1..].parse().unwrap());
    let items = app.inner.items.lock().unwrap();
    let matching = items.values().filter(|item| item.topic == parameters["topic"]);
    let mut items: Vec<_> =
        matching.filter(|item| item.item_number.get() > after).take(limit + 1).cloned().collect();
    let more = items.len() > limit;
    items.truncate(limit);
    let next = items.last().filter(|_| more).map(|item| format!("a{}", item.item_number));
    app.answer(ItemPage { items, next })
}

async fn topics(State(app): State<App>, request: Request) -> Response {
    app.asked(&request);
    app.answer(Topics { topics: vec![TopicCount { topic: "systems".into(), items: 2 }] })
}

async fn buy(
    State(app): State<App>,
    Path(item): Path<String>,
    headers: HeaderMap,
    body: String,
) -> Result<Response, Problem> {
    assert!(secret().matches(&headers));
    app.inner.buys.lock().unwrap().push(Buy { item, headers, body });
    if let Some(problem) = app.inner.refusal.lock().unwrap().clone() {
        return Err(problem);
    }
    let mut response = Json(StatusCode::CREATED, an_order()).into_response();
    response.headers_mut().insert("location", "/orders/5".parse().unwrap());
    response.headers_mut().insert(IDEMPOTENCY_REPLAYED, "true".parse().unwrap());
    Ok(response)
}

async fn order(headers: HeaderMap, Path(order): Path<u64>) -> Result<Response, Problem> {
    assert!(secret().matches(&headers));
    if order != 5 {
        return Err(pygmy_protocol::order::unknown_order(order));
    }
    Ok(Json(StatusCode::OK, an_order()).into_response())
}

pub(crate) fn an_order() -> Order {
    Order {
        order_number: OrderNumber(5),
        item_number: 1.try_into().unwrap(),
        title: "Book 1".into(),
        quantity: 2,
        cost: 2000,
        stock: 98,
    }
}

async fn open_stream(State(app): State<App>, mut request: Request) -> Response {
    assert!(secret().matches(request.headers()));
    if let Some(leader) = app.inner.leader.lock().unwrap().clone() {
        let problem = Problem::unavailable("not the leader");
        return ([(LEADER_URL, leader)], problem).into_response();
    }
    let (response, upgraded) = accept_upgrade(&mut request, PROTOCOL).unwrap();
    app.env.spawn(async move {
        let connection = upgraded.connection().await.unwrap();
        // The test may be over.
        let _ = app.streams.send(connection);
    });
    response
}

async fn listen(env: &Env, router: Router, shutdown: Shutdown) -> String {
    let listener = env.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let metrics = Metrics::new(env);
    let probes = Probes {
        name: "store".into(),
        process: "process-1".into(),
        tier: "catalog",
        readiness: Readiness::new(),
        metrics: metrics.clone(),
    };
    let limits = Limits::default();
    let router = wrap(router, env, &limits, &probes);
    let served = env.clone();
    env.spawn(async move { serve(&served, listener, router, &limits, &metrics, shutdown).await });
    url
}

/// A front end under test, and how clients reach it.
pub(crate) struct FrontEnd {
    env: Env,
    upstream: Arc<Upstream>,
    stopper: Stopper,
    task: JoinHandle<Result<(), Fatal>>,
}

impl FrontEnd {
    /// Behind it `store`, as balancer and as the catalog servers at `catalogs`.
    pub(crate) async fn start(
        env: &Env,
        store: &Store,
        catalogs: Vec<String>,
        settings: Settings,
    ) -> FrontEnd {
        FrontEnd::with_balancer(env, &store.url, catalogs, settings).await
    }

    /// The same with the balancer at another URL.
    pub(crate) async fn with_balancer(
        env: &Env,
        balancer: &str,
        catalogs: Vec<String>,
        settings: Settings,
    ) -> FrontEnd {
        let listener = env.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let limits = Limits {
            max_body_bytes: MAX_BODY_BYTES,
            request_timeout_ms: PATIENCE.as_millis() as u64,
            ..Limits::default()
        };
        let server = ServerConfig {
            name: "frontend-1".into(),
            url: url.clone(),
            process: "process-1".into(),
            secret: secret(),
            limits,
            balancers: vec![Arc::new(Upstream::remote(env, balancer).unwrap())],
            heartbeat: Duration::from_secs(2),
            attempt_timeout: PATIENCE,
            metrics: Metrics::new(env),
        };
        let (stopper, shutdown) = shutdown();
        let config = Config { server, catalogs, settings, watcher: None };
        let task = env.spawn(pygmy_frontend::run(config, env.clone(), listener, shutdown));
        let upstream = Arc::new(Upstream::remote(env, &url).unwrap());
        FrontEnd { env: env.clone(), upstream, stopper, task }
    }

    pub(crate) fn call(&self, method: Method, target: &str) -> Call {
        Call::new(method, target, RequestContext::fresh(&self.env, PATIENCE))
    }

    pub(crate) async fn send(&self, call: &Call) -> Answer {
        self.upstream.send(call, PATIENCE).await.unwrap()
    }

    pub(crate) async fn get(&self, target: &str) -> Answer {
        self.send(&self.call(Method::GET, target)).await
    }

    /// Waits until it is ready.
    pub(crate) async fn ready(&self) {
        let ready = async {
            while self.get("/readyz").await.status != StatusCode::OK {
                self.env.sleep(Duration::from_millis(1)).await;
            }
        };
        self.env.timeout(PATIENCE, ready).await.unwrap();
    }

    /// The stock that a lookup shows.
    pub(crate) async fn stock(&self, item: u64) -> u64 {
        self.get(&format!("/lookup/{item}")).await.json::<Item>().unwrap().stock
    }

    pub(crate) async fn stop(self) -> Result<(), Fatal> {
        self.stopper.stop();
        self.env.timeout(PATIENCE, self.task).await.unwrap().unwrap()
    }
}

/// The longest lease: what ends a session is what the test does.
pub(crate) fn patient() -> Settings {
    Settings { lease_ms: 10_000, ..Settings::default() }
}

/// A store that leads its catalog, and a front end before it.
pub(crate) async fn start() -> (Store, FrontEnd) {
    let env = Env::production();
    let store = Store::start(&env).await;
    let front = FrontEnd::start(&env, &store, vec![store.url.clone()], patient()).await;
    (store, front)
}

#[track_caller]
pub(crate) fn assert_problem(answer: &Answer, code: Code) {
    assert_eq!(answer.problem().code, code, "{answer:?}");
    assert_eq!(answer.status, code.status());
    assert_eq!(answer.headers["content-type"], "application/problem+json");
}
