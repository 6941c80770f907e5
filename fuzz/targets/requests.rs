//! Bytes that a client sends to the port of a front end, an order server or a balancer, which run
//! as they do in production, on a network in memory. Every answer is well-formed and is no server
//! error but 503 and 504, and the connection comes to an end.
#![no_main]

use std::{cell::RefCell, future::pending, io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, http::StatusCode, response::IntoResponse};
use pygmy_client::{LocalPlace, ServerConfig, Upstream};
use pygmy_protocol::{
    Env,
    env::{BoxFuture, Connection, Listener, Network},
    http::{Fatal, Limits, Secret, Shutdown, Stopper, Tier, shutdown},
    metrics::Metrics,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    runtime::{Builder, Runtime},
    sync::mpsc,
    time::timeout,
};

const SECRET: &str = "the-secret-of-the-fuzzer";
/// In virtual time: longer than every timeout of the servers together.
const END: Duration = Duration::from_secs(60);

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| SERVERS.with_borrow(|servers| servers.ask(bytes)));

thread_local! {
    static SERVERS: RefCell<Servers> = RefCell::new(Servers::start());
}

struct Servers {
    runtime: Runtime,
    doors: Vec<mpsc::UnboundedSender<DuplexStream>>,
    _place: LocalPlace,
    _stopper: Stopper,
}

impl Servers {
    fn start() -> Servers {
        // Timers fire as soon as nothing else is left to do.
        let runtime = Builder::new_current_thread().enable_all().start_paused(true).build();
        let runtime = runtime.expect("the machine has room for a runtime");
        let env = Env { network: Arc::new(NoNetwork), ..Env::production() };
        let (stopper, stopped) = shutdown();
        // Whatever is passed on is answered.
        let place = LocalPlace::default();
        let answering = Router::new().fallback(|| async {
            let item = r#"{"itemNumber":1,"title":"t","topic":"a","stock":1,"cost":1}"#;
            (StatusCode::OK, item).into_response()
        });
        place.fill(answering, None);
        let config = || server(&env, &place);
        let doors = runtime.block_on(env.enter(async {
            let frontend = pygmy_frontend::Config {
                server: config(),
                catalogs: vec!["http://catalog:1".to_owned()],
                settings: pygmy_frontend::Settings::default(),
                watcher: None,
            };
            let balancer = pygmy_balancer::Config {
                server: config(),
                settings: pygmy_balancer::Settings::default(),
                local: Vec::new(),
                watcher: None,
            };
            let order = pygmy_order::Config { server: config() };
            [
                pygmy_frontend::start(frontend, &env, stopped.clone()),
                pygmy_order::start(order, &env, stopped.clone()),
                pygmy_balancer::start(balancer, &env, stopped.clone()),
            ]
            .map(|tier| open(&env, tier, &stopped))
            .into()
        }));
        Servers { runtime, doors, _place: place, _stopper: stopper }
    }

    fn ask(&self, bytes: &[u8]) {
        let Some((door, bytes)) = bytes.split_first() else { return };
        let door = &self.doors[usize::from(*door) % self.doors.len()];
        let answers = self.runtime.block_on(async {
            let (mut client, server) = duplex(64 * 1024);
            door.send(server).expect("the server listens");
            let mut answers = Vec::new();
            let talk = async {
                // It may close before it has read everything.
                let _ = client.write_all(bytes).await;
                client.read_to_end(&mut answers).await
            };
            let _ = timeout(END, talk).await.expect("the connection comes to an end");
            answers
        });
        check(&answers);
    }
}

fn server(env: &Env, balancer: &LocalPlace) -> ServerConfig {
    ServerConfig {
        name: "server-1".to_owned(),
        process: "process-1".to_owned(),
        url: "http://server:1".to_owned(),
        secret: Secret::new(SECRET).expect("it is long enough"),
        limits: Limits { idle_timeout_ms: 1_000, request_timeout_ms: 500, ..Limits::default() },
        balancers: vec![Arc::new(Upstream::local(env, "http://balancer:1", balancer.local()))],
        heartbeat: Duration::from_secs(60),
        attempt_timeout: Duration::from_millis(200),
        metrics: Metrics::new(env),
    }
}

/// Serves a tier. What is sent is a connection to it.
fn open(
    env: &Env,
    tier: Result<Tier, Fatal>,
    stopped: &Shutdown,
) -> mpsc::UnboundedSender<DuplexStream> {
    let tier = tier.expect("the settings are right");
    let (door, arriving) = mpsc::unbounded_channel();
    let (of_task, stopped) = (env.clone(), stopped.clone());
    let limits = server(env, &LocalPlace::default()).limits;
    env.spawn(async move { tier.run(&of_task, Box::new(Door(arriving)), &limits, stopped).await });
    door
}

struct Door(mpsc::UnboundedReceiver<DuplexStream>);

impl Listener for Door {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<(Connection, SocketAddr)>> {
        Box::pin(async {
            match self.0.recv().await {
                Some(connection) => Ok((Box::new(connection) as Connection, ADDRESS)),
                None => pending().await,
            }
        })
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(ADDRESS)
    }
}

const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);

/// Nobody else is there.
struct NoNetwork;

impl Network for NoNetwork {
    fn listen(&self, _: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn Listener>>> {
        Box::pin(async { Err(io::ErrorKind::Unsupported.into()) })
    }

    fn connect<'a>(&'a self, _: &'a str) -> BoxFuture<'a, io::Result<Connection>> {
        Box::pin(async { Err(io::ErrorKind::ConnectionRefused.into()) })
    }
}

/// Heads of answers, each with a body of the length that it says.
fn check(mut answers: &[u8]) {
    while !answers.is_empty() {
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut answer = httparse::Response::new(&mut headers);
        let Ok(httparse::Status::Complete(head)) = answer.parse(answers) else {
            panic!("no answer: {}", String::from_utf8_lossy(answers));
        };
        let status = answer.code.unwrap_or_default();
        let is_expected = status < 500 || matches!(status, 503 | 504);
        assert!(is_expected, "{}", String::from_utf8_lossy(answers));
        let length = answer.headers.iter().find(|h| h.name.eq_ignore_ascii_case("content-length"));
        let Some(length) = length else {
            // What follows belongs to it: a HEAD, or a switch of protocols.
            return;
        };
        let length: usize = str::from_utf8(length.value).ok().and_then(|l| l.parse().ok()).unwrap();
        // The answer to HEAD has no body, and is not told from others here.
        answers = match answers.get(head + length..) {
            Some(rest) if !answers[head..].starts_with(b"HTTP/1.1 ") => rest,
            _ => &answers[head..],
        };
        if answers.len() < 12 || !answers.starts_with(b"HTTP/1.1 ") {
            return;
        }
    }
}
