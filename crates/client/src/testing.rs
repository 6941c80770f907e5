//! Servers that are nothing but their answers, in virtual time.

use std::{io, sync::Arc, time::Duration};

use pygmy_protocol::{
    Env,
    env::{BoxFuture, Clock, Connection, Instant, Listener, Network},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

/// What a server does about a request: how long it takes, and which bytes it answers with; none
/// to close the connection.
pub(crate) type Behaviour = dyn Fn(&Env, &Asked) -> (Duration, String) + Send + Sync;

/// What a server was asked.
pub(crate) struct Asked {
    pub(crate) authority: String,
    /// The head of the request; what its body says matters to none of these servers.
    pub(crate) request: String,
}

/// An environment of tokio's paused clock and of servers that are reached under any name but
/// `nobody:80`.
pub(crate) fn environment(
    behaviour: impl Fn(&Env, &Asked) -> (Duration, String) + Send + Sync + 'static,
) -> Env {
    let clock = Arc::new(PausedClock::new());
    let env = Env { clock, ..Env::production() };
    let network = FakeNetwork { env: env.clone(), behaviour: Arc::new(behaviour) };
    Env { network: Arc::new(network), ..env }
}

/// An answer as the store writes it.
pub(crate) fn answer(status: u16, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n\r\n{body}")
}

/// The time of a paused runtime since this clock was made, and a while that was before.
#[derive(Clone, Copy)]
pub(crate) struct PausedClock(tokio::time::Instant);

impl PausedClock {
    #[allow(clippy::disallowed_methods, reason = "of the paused runtime")]
    pub(crate) fn new() -> PausedClock {
        PausedClock(tokio::time::Instant::now())
    }
}

impl Clock for PausedClock {
    fn now(&self) -> Instant {
        Instant::from_origin(Duration::from_secs(1000) + self.0.elapsed())
    }

    fn wall_ms(&self) -> u64 {
        1_000_000 + self.0.elapsed().as_millis() as u64
    }

    #[allow(clippy::disallowed_methods, reason = "a paused runtime leaps over it")]
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }
}

struct FakeNetwork {
    env: Env,
    behaviour: Arc<Behaviour>,
}

impl Network for FakeNetwork {
    fn listen(&self, _: std::net::SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn Listener>>> {
        Box::pin(async { Err(io::ErrorKind::Unsupported.into()) })
    }

    fn connect<'a>(&'a self, authority: &'a str) -> BoxFuture<'a, io::Result<Connection>> {
        Box::pin(async move {
            if authority == "nobody:80" {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            let (ours, theirs) = tokio::io::duplex(64 * 1024);
            let (env, behaviour) = (self.env.clone(), Arc::clone(&self.behaviour));
            let authority = authority.to_owned();
            self.env.spawn(async move { serve(&env, authority, theirs, &behaviour).await });
            Ok(Box::new(ours) as Connection)
        })
    }
}

async fn serve(env: &Env, authority: String, mut stream: DuplexStream, behaviour: &Arc<Behaviour>) {
    let mut asked = Asked { authority, request: String::new() };
    while let Ok(byte) = stream.read_u8().await {
        asked.request.push(char::from(byte));
        if !asked.request.ends_with("\r\n\r\n") {
            continue;
        }
        if stream.read_exact(&mut vec![0; body_bytes(&asked.request)]).await.is_err() {
            return;
        }
        let (after, answer) = behaviour(env, &asked);
        env.sleep(after).await;
        asked.request.clear();
        if answer.is_empty() || stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

fn body_bytes(head: &str) -> usize {
    let length =
        |line: &str| line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse().ok();
    head.lines().find_map(length).unwrap_or(0)
}
