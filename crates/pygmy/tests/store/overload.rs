//! More than the store can do, and clients that only take: each costs a bounded amount, and the
//! others are served.

use std::io;

use http::{Method, StatusCode, header};
use pygmy_client::Answer;
use pygmy_protocol::{Code, env::Connection};
use rustix::process::{Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{Layout, PATIENCE, Store, until};

/// The value of a queue's length at a front end.
async fn queue_length(store: &Store, queue: &str) -> f64 {
    let label = format!("queue=\"{queue}\"");
    let scrape = store.scrape(&store.url("frontend-1")).await;
    scrape.value("pygmy_queue_length", &[&label])
}

#[tokio::test]
async fn what_the_store_cannot_take_is_refused_at_once() {
    let store = Store::start_with(Layout::Tiers, "[frontend]\nadmitted_max = 4\n").await;
    let signal_catalogs = |signal| {
        for name in store.replicas() {
            kill_process(store.pid(&name), signal).unwrap();
        }
    };
    // Nothing is answered any more: what is let in waits.
    signal_catalogs(Signal::STOP);
    let (refused, let_in) = tokio::join!(
        async {
            until("four buys wait", async || {
                (queue_length(&store, "admitted").await == 4.0).then_some(())
            })
            .await;
            let refused = store.buy(0, 1, "one-too-many").await.unwrap();
            signal_catalogs(Signal::CONT);
            refused
        },
        futures_util::future::join_all((0..4).map(|n| {
            let store = &store;
            async move { until_sold(store, &format!("key-{n}")).await }
        })),
    );
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS, "{:?}", refused.body);
    assert_eq!(refused.problem().code, Code::TooManyRequests);
    assert_eq!(refused.headers[header::RETRY_AFTER], "1");
    assert!(let_in.iter().all(|answer| answer.status == StatusCode::CREATED));
    let scrape = store.scrape(&store.url("frontend-1")).await;
    let rejections = scrape.value("pygmy_rejections_total", &["reason=\"answer_goal_ms\""]);
    assert!(rejections >= 1.0);
    assert_eq!(until_sold(&store, "one-too-many").await.status, StatusCode::CREATED);
    assert_eq!(store.agreed().await[0].orders, 5, "what was refused was not done");
    store.verify().await;
}

/// Buys item 1 at the first front end, again and again with its key.
async fn until_sold(store: &Store, key: &str) -> Answer {
    until("the buy is done", async || {
        let answer = store.buy(0, 1, key).await.ok()?;
        (answer.status == StatusCode::CREATED).then_some(answer)
    })
    .await
}

/// A client that writes bytes as it likes.
struct Raw(Connection);

impl Raw {
    async fn open(store: &Store) -> Raw {
        let url = store.url("frontend-1");
        let authority = url.strip_prefix("http://").unwrap();
        Raw(store.env.connect(authority, PATIENCE).await.unwrap())
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes).await
    }

    /// What the server says until it closes the connection. A reset is an end, too.
    async fn rest(&mut self) -> String {
        let mut said = Vec::new();
        let read = tokio::time::timeout(PATIENCE, self.0.read_to_end(&mut said)).await;
        let _ = read.expect("the server ends the connection");
        String::from_utf8(said).unwrap()
    }

    /// Sends `head` and then `bytes`, again and again, until the server ends it.
    async fn flood(store: &Store, head: &[u8], bytes: &[u8]) {
        let mut connection = Raw::open(store).await;
        connection.write(head).await.unwrap();
        let flood = async { while connection.write(bytes).await.is_ok() {} };
        tokio::time::timeout(PATIENCE, flood).await.expect("the server ends the connection");
    }
}

#[tokio::test]
async fn clients_that_only_take_cost_a_bounded_amount() {
    let limits = "[cluster]\nattempt_timeout_ms = 1000\n[limits]\nidle_timeout_ms = 1000\nrequest_timeout_ms = 1000\n\
                  max_connections = 30\n";
    let store = Store::start_with(Layout::Tiers, limits).await;

    // A head and a body that never end, one byte after the other missing, or no byte at all.
    let mut slow_head = Raw::open(&store).await;
    slow_head.write(b"GET /lookup/1 HTTP/1.1\r\nHost: a\r\nX-Slow: ").await.unwrap();
    let mut slow_body = Raw::open(&store).await;
    slow_body
        .write(b"POST /buy/1 HTTP/1.1\r\nHost: a\r\nContent-Length: 20\r\n\r\n{\"quan")
        .await
        .unwrap();
    let mut silent = Raw::open(&store).await;
    let (head, body, nothing) = tokio::join!(slow_head.rest(), slow_body.rest(), silent.rest());
    assert_eq!((&*head, &*nothing), ("", ""), "nobody is there to be answered");
    assert!(body.starts_with("HTTP/1.1 503 "), "{body}");
    assert!(body.contains("the body did not arrive in time"), "{body}");

    // More than the limits, for as long as the server takes it.
    Raw::flood(&store, b"GET / HTTP/1.1\r\nX-Huge: ", &[b'x'; 4096]).await;
    let length = b"POST /buy/1 HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000000\r\n\r\n";
    Raw::flood(&store, length, &[b' '; 65_536]).await;
    let chunked = b"POST /buy/1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunk = [b"1000\r\n", &[b' '; 4096][..], b"\r\n"].concat();
    Raw::flood(&store, chunked, &chunk).await;

    // More connections than there may be: the next one is told so, and there is room again when
    // those that say nothing have had their time.
    until("a connection is turned away", async || {
        let silent = futures_util::future::join_all((0..40).map(|_| Raw::open(&store))).await;
        let said = futures_util::future::join_all(
            silent.into_iter().map(|mut connection| async move { connection.rest().await }),
        )
        .await;
        said.iter().any(|said| said.starts_with("HTTP/1.1 503 ")).then_some(())
    })
    .await;
    until("there is room again", async || {
        let answer = store.send(0, &store.public_call(Method::GET, "/lookup/1")).await.ok()?;
        (answer.status == StatusCode::OK).then_some(())
    })
    .await;
    let answer = until_sold(&store, "after-all-this").await;
    assert_eq!(answer.status, StatusCode::CREATED);
    assert_eq!(store.agreed().await[0].orders, 1);
}
