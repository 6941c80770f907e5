//! What a server says while it opens its data, which may take minutes: that it is alive.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{Router, body::Body, routing::get};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::sync::Semaphore;
use tower::ServiceExt;

use super::livez;
use crate::{
    env::{Connection, Env, Listener},
    problem::Problem,
};

/// Connections at a time; further ones wait to be taken.
const CONNECTIONS: usize = 64;
/// Longest time for one of them.
const LIMIT: Duration = Duration::from_secs(5);
/// Wait after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Answers `GET /livez` for the process that calls itself `process`, and 503 to all else, until it is
/// dropped. Each connection is closed after one request: the next one finds the server itself.
pub async fn serve_starting(
    env: &Env,
    listener: &mut Box<dyn Listener>,
    process: &str,
) -> Infallible {
    let router = Router::new()
        .route("/livez", get(livez))
        .fallback(async || Problem::unavailable("the server is still opening its data"))
        .with_state(process.to_owned());
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // The semaphore is never closed.
        let place = Arc::clone(&room).acquire_owned().await;
        let Ok((connection, _peer)) = listener.accept().await else {
            env.sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let (clock, router) = (env.clone(), router.clone());
        env.spawn(async move {
            let _place = place;
            if clock.timeout(LIMIT, answer_one(connection, router)).await.is_err() {
                tracing::debug!("a connection took too long while the server starts");
            }
        });
    }
}

async fn answer_one(connection: Connection, router: Router) {
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        router.clone().oneshot(request.map(Body::new))
    });
    let connection =
        http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(connection), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection ended while the server starts");
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_server_that_opens_its_data_is_alive_and_takes_nothing() {
        let env = Env::production();
        let mut listener = env.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let authority = listener.local_addr().unwrap().to_string();
        let ask = async |target: &str| {
            let mut connection = env.connect(&authority, LIMIT).await.unwrap();
            let head = format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n");
            connection.write_all(head.as_bytes()).await.unwrap();
            let mut answer = String::new();
            connection.read_to_string(&mut answer).await.unwrap();
            answer.to_ascii_lowercase()
        };
        let asking = async {
            let alive = ask("/livez").await;
            assert!(alive.starts_with("http/1.1 200 ok"), "{alive}");
            assert!(alive.contains("pygmy-process: me\r\n"), "{alive}");
            for target in ["/readyz", "/lookup/1", "/catalog/status"] {
                let answer = ask(target).await;
                assert!(answer.starts_with("http/1.1 503"), "{answer}");
            }
        };
        tokio::select! {
            never = serve_starting(&env, &mut listener, "me") => match never {},
            () = asking => {}
        }
    }
}
