//! The client process of the reference design: searches, lookups and buys, one after the other,
//! each request and its response written down as text.

use std::io::{self, Write};

use http::StatusCode;
use pygmy_protocol::{
    Env, IdempotencyKey,
    item::{Item, ItemNumber, ItemPage, Topics},
    order::{BuyBody, Order},
    time::rfc3339,
};
use serde::de::DeserializeOwned;

use crate::{
    Answer,
    store::{Request, Store, StoreError},
};

/// Topics that the process searches: enough to see the store, and over soon with a large one.
const MAX_TOPICS: usize = 10;
/// Items that it looks up and buys of each topic.
const MAX_ITEMS: u32 = 10;

/// What the client process saw.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Requests that were sent.
    pub requests: u64,
    /// Copies that were bought.
    pub bought: u64,
    /// Requests that the store refused (out of stock, for example).
    pub refused: u64,
    /// Requests that no server could answer for certain.
    pub failed: u64,
    /// What the last one of these failed with.
    pub last_failure: Option<StoreError>,
}

/// Asks `store` for its topics, searches each, looks every item up, buys a copy of it at the
/// price that was seen, looks it up again, and reads the order; `log` gets every request with its
/// response.
///
/// # Errors
/// Those of `log` only: what the store refuses or cannot answer is written down and counted.
pub async fn run(env: &Env, store: &Store, log: impl Write) -> io::Result<Summary> {
    let mut process = Process { env, store, log, summary: Summary::default() };
    let topics: Option<Topics> = process.ask(Request::Topics).await?;
    for topic in topics.into_iter().flat_map(|t| t.topics).take(MAX_TOPICS) {
        let search = Request::Search { topic: topic.topic, limit: Some(MAX_ITEMS), cursor: None };
        let page: Option<ItemPage> = process.ask(search).await?;
        for item in page.into_iter().flat_map(|page| page.items) {
            process.visit(item.item_number).await?;
        }
    }
    process.log.flush()?;
    Ok(process.summary)
}

struct Process<'a, W> {
    env: &'a Env,
    store: &'a Store,
    log: W,
    summary: Summary,
}

impl<W: Write> Process<'_, W> {
    async fn visit(&mut self, item: ItemNumber) -> io::Result<()> {
        let Some(seen) = self.ask::<Item>(Request::Lookup(item)).await? else { return Ok(()) };
        let body = BuyBody { quantity: 1, expected_cost: Some(seen.cost) };
        let buy = Request::Buy { item, body, key: IdempotencyKey::random(self.env) };
        if let Some(order) = self.ask::<Order>(buy).await? {
            self.summary.bought += order.quantity;
            self.ask::<Item>(Request::Lookup(item)).await?;
            self.ask::<Order>(Request::Order(order.order_number)).await?;
        }
        Ok(())
    }

    /// Sends one request and writes it down. `None` if the store refused or failed.
    async fn ask<T: DeserializeOwned>(&mut self, request: Request) -> io::Result<Option<T>> {
        let sent_ms = self.env.wall_ms();
        let result = self.store.send(&request).await;
        self.summary.requests += 1;
        match &result {
            Ok(_) => {}
            Err(error) if error.is_retryable() => {
                self.summary.failed += 1;
                self.summary.last_failure = Some(error.clone());
            }
            Err(_) => self.summary.refused += 1,
        }
        write_exchange(&mut self.log, sent_ms, &request, &result)?;
        Ok(result.ok().and_then(|answer| answer.json().ok()))
    }
}

fn write_exchange(
    log: &mut impl Write,
    sent_ms: u64,
    request: &Request,
    result: &Result<Answer, StoreError>,
) -> io::Result<()> {
    writeln!(log, "{} {request}", rfc3339(sent_ms))?;
    if let Request::Buy { body, key, .. } = request {
        let body = serde_json::to_string(body).map_err(io::Error::other)?;
        writeln!(log, "  Idempotency-Key: {key}\n  {body}")?;
    }
    match result {
        Ok(answer) => {
            let body = String::from_utf8_lossy(&answer.body);
            writeln!(log, "{}\n  {}\n", status_line(answer.status), body.trim_end())
        }
        Err(StoreError::Problem(problem)) => {
            let body = problem.to_json();
            let body = String::from_utf8_lossy(&body);
            writeln!(log, "{}\n  {body}\n", status_line(problem.code.status()))
        }
        Err(error) => writeln!(log, "no response\n  {error}\n"),
    }
}

fn status_line(status: StatusCode) -> String {
    format!("{} {}", status.as_u16(), status.canonical_reason().unwrap_or(""))
}
