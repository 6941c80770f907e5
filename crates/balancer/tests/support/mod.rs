//! A balancer on a free port, and servers that behave as a test wants.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    extract::{Request, State},
    response::{IntoResponse, Response},
    routing::get,
};
use http::{Method, StatusCode};
use pygmy_balancer::{Config, LocalServer, Settings};
use pygmy_client::{Answer, Call, ServerConfig, Upstream};
use pygmy_protocol::{
    Env, IdempotencyKey, RequestContext,
    http::{Fatal, Limits, Secret, Stopper, serve, shutdown},
    metrics::Metrics,
    registration::{Registration, Role, ServerStatus, Servers},
};
use tokio::{io::AsyncReadExt, sync::watch, task::JoinHandle};

/// Far longer than anything here takes: a test that meets it has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn secret() -> Secret {
    Secret::new("0123456789abcdef").unwrap()
}

fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// Waits until `condition` holds.
pub(crate) async fn eventually<F: Future<Output = bool>>(
    env: &Env,
    what: &str,
    condition: impl Fn() -> F,
) {
    let end = env.now() + PATIENCE;
    while !condition().await {
        assert!(env.now() < end, "not within {PATIENCE:?}: {what}");
        env.sleep(Duration::from_millis(5)).await;
    }
}

/// A URL where nobody listens.
pub(crate) async fn closed_port(env: &Env) -> String {
    let address = env.listen(any_port()).await.unwrap().local_addr().unwrap();
    format!("http://{address}")
}

/// A URL where every request is read and none answered.
pub(crate) async fn mute_server(env: &Env) -> String {
    let mut listener = env.listen(any_port()).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    env.spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let _ = connection.read(&mut [0; 4096]).await;
        }
    });
    url
}

pub(crate) struct Balancer {
    pub(crate) env: Env,
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) stopper: Stopper,
    pub(crate) running: JoinHandle<Result<(), Fatal>>,
}

impl Balancer {
    pub(crate) async fn start(settings: Settings) -> Balancer {
        Balancer::start_with(settings, Vec::new(), PATIENCE).await
    }

    pub(crate) async fn start_with(
        settings: Settings,
        local: Vec<LocalServer>,
        attempt_timeout: Duration,
    ) -> Balancer {
        let env = Env::production();
        let listener = env.listen(any_port()).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = ServerConfig {
            name: "balancer-1".to_owned(),
            url: url.clone(),
            process: "process-1".to_owned(),
            secret: secret(),
            limits: Limits { request_timeout_ms: PATIENCE.as_millis() as u64, ..Limits::default() },
            balancers: Vec::new(),
            heartbeat: Duration::from_secs(2),
            attempt_timeout,
            metrics: Metrics::new(&env),
        };
        let (stopper, stop) = shutdown();
        let config = Config { server, settings, local, watcher: None };
        let running = env.spawn(pygmy_balancer::run(config, env.clone(), listener, stop));
        let upstream = Arc::new(Upstream::remote(&env, &url).unwrap());
        Balancer { env, upstream, stopper, running }
    }

    pub(crate) fn call(&self, method: Method, target: &str) -> Call {
        let context = RequestContext::fresh(&self.env, PATIENCE);
        Call::new(method, target, context).with_secret(&secret())
    }

    pub(crate) async fn send(&self, call: &Call) -> Answer {
        self.upstream.send(call, PATIENCE).await.unwrap()
    }

    pub(crate) async fn get(&self, target: &str) -> Answer {
        self.send(&self.call(Method::GET, target)).await
    }

    pub(crate) async fn post(&self, target: &str, key: &str) -> Answer {
        let key: IdempotencyKey = key.parse().unwrap();
        self.send(&self.call(Method::POST, target).with_key(&key)).await
    }

    pub(crate) async fn register(&self, registration: &Registration) {
        let call = self.call(Method::POST, "/register").with_json(registration);
        assert_eq!(self.send(&call).await.status, StatusCode::NO_CONTENT);
    }

    pub(crate) async fn servers(&self) -> Vec<ServerStatus> {
        self.get("/servers").await.json::<Servers>().unwrap().servers
    }

    pub(crate) async fn status(&self, name: &str) -> ServerStatus {
        self.servers().await.into_iter().find(|s| s.name == name).unwrap()
    }
}

pub(crate) fn registration(name: &str, role: Role, url: &str) -> Registration {
    Registration {
        name: name.to_owned(),
        role,
        url: url.to_owned(),
        nonce: format!("nonce-of-{name}"),
        heartbeat_ms: 60_000,
        ready: true,
        leads_term: None,
        caught_up: None,
    }
}

pub(crate) fn leading(registration: Registration) -> Registration {
    Registration { leads_term: Some(1), ..registration }
}

/// Makes the answer of a fake server.
type Answering = dyn Fn(&str) -> Response + Send + Sync;

/// A server that notes what it is asked.
pub(crate) struct FakeServer {
    pub(crate) name: String,
    pub(crate) url: String,
    seen: Mutex<Vec<(Method, String, http::HeaderMap)>>,
    answering: Box<Answering>,
    /// Requests to `/query/hold` wait for it.
    pub(crate) release: watch::Sender<bool>,
    pub(crate) probes_hang: bool,
}

impl FakeServer {
    /// Answers everything with its own name.
    pub(crate) async fn start(env: &Env, name: &str) -> Arc<FakeServer> {
        FakeServer::answering(env, name, |name| name.to_owned().into_response()).await
    }

    pub(crate) async fn answering(
        env: &Env,
        name: &str,
        answering: impl Fn(&str) -> Response + Send + Sync + 'static,
    ) -> Arc<FakeServer> {
        FakeServer::serve(env, name, Box::new(answering), false).await
    }

    /// Takes probes and never answers them.
    pub(crate) async fn hanging(env: &Env, name: &str) -> Arc<FakeServer> {
        let answering = |name: &str| name.to_owned().into_response();
        FakeServer::serve(env, name, Box::new(answering), true).await
    }

    async fn serve(
        env: &Env,
        name: &str,
        answering: Box<Answering>,
        probes_hang: bool,
    ) -> Arc<FakeServer> {
        let listener = env.listen(any_port()).await.unwrap();
        let fake = Arc::new(FakeServer {
            name: name.to_owned(),
            url: format!("http://{}", listener.local_addr().unwrap()),
            seen: Mutex::default(),
            answering,
            release: watch::Sender::new(false),
            probes_hang,
        });
        let router = fake.router();
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

    pub(crate) fn router(self: &Arc<FakeServer>) -> Router {
        Router::new().route("/readyz", get(readyz)).fallback(answer).with_state(Arc::clone(self))
    }

    pub(crate) fn registration(&self, role: Role) -> Registration {
        registration(&self.name, role, &self.url)
    }

    /// Method and target of what it was asked.
    pub(crate) fn asked(&self) -> Vec<String> {
        let seen = self.seen.lock().unwrap();
        seen.iter().map(|(method, target, _)| format!("{method} {target}")).collect()
    }

    /// The values of `header` in what it was asked.
    pub(crate) fn asked_with(&self, header: &http::HeaderName) -> Vec<String> {
        let seen = self.seen.lock().unwrap();
        let values = seen.iter().filter_map(|(_, _, headers)| headers.get(header));
        values.map(|value| value.to_str().unwrap().to_owned()).collect()
    }
}

async fn readyz(State(fake): State<Arc<FakeServer>>) -> &'static str {
    if fake.probes_hang {
        std::future::pending::<()>().await;
    }
    "ready"
}

async fn answer(State(fake): State<Arc<FakeServer>>, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    let target = parts.uri.to_string();
    fake.seen.lock().unwrap().push((parts.method, target.clone(), parts.headers));
    if target == "/query/hold" {
        fake.release.subscribe().wait_for(|released| *released).await.unwrap();
    }
    (fake.answering)(&fake.name)
}
