//! The listener loop.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body, extract::Request};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{io::AsyncWriteExt, sync::watch};
use tower::ServiceExt;

use super::{Limits, lanes::Lanes, layers::name_allowed_methods};
use crate::{
    env::{Connection, Env, Listener},
    metrics::Metrics,
    problem::Problem,
};

/// The parser holds so many times `max_header_bytes` of a request's head; beyond it the answer is
/// a bare 431, below it a proper problem. It is also what a connection that sends its head slowly
/// can cost.
const PARSER_HEADS: usize = 2;
/// Fewest bytes that the parser can work with.
const PARSER_BYTES_MIN: usize = 16 * 1024;
/// Most headers of a request.
const PARSER_HEADERS: usize = 200;
/// Wait after a failed accept (out of file descriptors): time for some to be closed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The side that says stop.
#[derive(Clone)]
pub struct Stopper(Arc<watch::Sender<bool>>);

/// The side that is told to stop. Clones hear the same word.
#[derive(Clone)]
pub struct Shutdown(watch::Receiver<bool>);

/// A connected pair. Dropping the last [`Stopper`] stops too.
pub fn shutdown() -> (Stopper, Shutdown) {
    let (sender, receiver) = watch::channel(false);
    (Stopper(Arc::new(sender)), Shutdown(receiver))
}

impl Stopper {
    /// Tells every [`Shutdown`] of this pair to stop.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

impl Shutdown {
    /// Completes when it is time to stop.
    pub async fn stopped(&mut self) {
        // An error means that the stopper is gone, which stops as well.
        let _ = self.0.wait_for(|stop| *stop).await;
    }

    /// Whether it is time to stop.
    pub fn is_stopped(&self) -> bool {
        *self.0.borrow()
    }
}

/// Serves `router` on `listener` until `shutdown`, then takes no new connections and returns
/// when the requests in flight are answered, or after `drain_timeout_ms`. Its connections are
/// counted in `metrics`.
pub async fn serve(
    env: &Env,
    mut listener: Box<dyn Listener>,
    router: Router,
    limits: &Limits,
    metrics: &Metrics,
    mut shutdown: Shutdown,
) {
    let open = Arc::new(AtomicUsize::new(0));
    metrics.watch_connections(&open);
    let turned_away = metrics.rejections("max_connections");
    let mut lanes = Lanes::new(env);
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.stopped() => break,
            accepted = listener.accept() => accepted,
        };
        let connection = match accepted {
            Ok((connection, _peer)) => connection,
            Err(error) => {
                tracing::warn!(%error, "cannot take a connection");
                env.sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if open.load(Ordering::Relaxed) >= limits.max_connections {
            turned_away.inc();
            tracing::warn!(max_connections = limits.max_connections, "a connection is turned away");
            env.spawn(turn_away(connection));
            continue;
        }
        let guard = Open::enter(&open);
        let (router, limits, shutdown) = (router.clone(), limits.clone(), shutdown.clone());
        lanes.add(async move {
            let _held = guard;
            if let Err(error) = serve_connection(connection, router, &limits, shutdown).await {
                tracing::debug!(%error, "a connection ended");
            }
        });
    }
    drop(listener);
    let drain = Duration::from_millis(limits.drain_timeout_ms);
    if env.timeout(drain, lanes.ended()).await.is_err() {
        tracing::warn!(open = open.load(Ordering::Relaxed), "stopping with connections open");
    }
}

struct Open(Arc<AtomicUsize>);

impl Open {
    fn enter(open: &Arc<AtomicUsize>) -> Open {
        open.fetch_add(1, Ordering::Relaxed);
        Open(Arc::clone(open))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn serve_connection(
    connection: Connection,
    router: Router,
    limits: &Limits,
    mut shutdown: Shutdown,
) -> hyper::Result<()> {
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let request: Request = request.map(Body::new);
        let answer = router.clone().oneshot(request);
        async { answer.await.map(name_allowed_methods) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(limits.idle_timeout_ms))
        .max_buf_size((PARSER_HEADS * limits.max_header_bytes).max(PARSER_BYTES_MIN))
        .max_headers(PARSER_HEADERS)
        .pipeline_flush(true)
        .serve_connection(TokioIo::new(connection), service)
        .with_upgrades();
    tokio::pin!(connection);
    tokio::select! {
        biased;
        result = connection.as_mut() => return result,
        () = shutdown.stopped() => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}

/// Answers whatever comes with 503, in a few bytes and without reading the request.
async fn turn_away(mut connection: Connection) -> io::Result<()> {
    let body = Problem::unavailable("too many connections (max_connections)").to_json();
    let head = format!(
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: {}\r\nContent-Length: {}\r\n\
         Retry-After: 1\r\nConnection: close\r\n\r\n",
        crate::problem::PROBLEM_JSON,
        body.len()
    );
    connection.write_all(head.as_bytes()).await?;
    connection.write_all(&body).await?;
    connection.shutdown().await
}
