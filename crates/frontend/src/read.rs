//! Reads: from the cache, else from the catalog, once for all who ask meanwhile.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use pygmy_client::{Answer, Balancers, Call};
use pygmy_protocol::{
    Env, Problem, RequestContext,
    context::LOG_INDEX,
    http::{Limits, Secret},
    invalidation::CacheKey,
    item::{Item, ItemNumber, ItemPage, PageRequest, parse_whole_number},
    metrics::Counter,
};

use crate::{
    admission::Admission,
    becoming::Becoming,
    cache::Cache,
    entry::{Document, Page, page_body},
    flight::{Flights, Landing, Query},
    metrics::Counters,
};

/// Longest wait for the word that an item's new value may be told. It comes with the next exchange
/// of the leader and the front ends, if all of them are there.
const SOON: Duration = Duration::from_millis(50);

/// What a read finds.
#[derive(Debug, Clone)]
pub(crate) enum Found {
    /// An item, or the list of topics.
    Document(Arc<Document>),
    /// A page of a topic, put together.
    Page(Bytes),
}

/// What a read gives.
pub(crate) type Outcome = Result<Found, Refusal>;

/// The answer to pass on where nothing was found: the catalog's, or a problem of our own.
#[derive(Debug, Clone)]
pub(crate) struct Refusal(pub(crate) Box<Answer>);

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Refusal {
        Refusal(Box::new(problem.into()))
    }
}

/// The read side of one front end.
pub(crate) struct Reader {
    pub(crate) env: Env,
    pub(crate) cache: Cache,
    pub(crate) becoming: Becoming,
    pub(crate) flights: Arc<Flights<Outcome>>,
    pub(crate) admission: Arc<Admission>,
    pub(crate) balancers: Arc<Balancers>,
    pub(crate) secret: Secret,
    pub(crate) limits: Limits,
    pub(crate) counters: Arc<Counters>,
    pub(crate) flights_refused: Counter,
}

impl Reader {
    /// Answers `query`. See [`crate::flight`] for whose answer it may take.
    ///
    /// # Errors
    /// The catalog's refusal, or `unavailable`.
    pub(crate) async fn read(self: &Arc<Self>, query: Query, context: &RequestContext) -> Outcome {
        if let Some(found) = self.cached_soon(&query, context).await {
            self.counters.hits.of(&query).inc();
            return Ok(found);
        }
        self.counters.misses.of(&query).inc();
        let begun = self.flights.ticket();
        // Twice at most: a flight found after an earlier one has landed began after this read.
        loop {
            let joined = self.flights.join(&query);
            let (flight, landing) = joined.inspect_err(|_| _ = self.flights_refused.inc())?;
            if let Some(landing) = landing {
                self.fly(query.clone(), context, landing);
            }
            let final_answer = flight.ticket > begun;
            let landed = self.env.timeout(context.remaining(&self.env), flight.landed()).await;
            let Ok(outcome) = landed else {
                return Err(Problem::unavailable("the catalog did not answer in time").into());
            };
            if final_answer {
                let lost = || Err(Problem::unavailable("the query was lost; ask again").into());
                return outcome.unwrap_or_else(lost);
            }
            if let Some(found) = self.cached(&query) {
                return Ok(found);
            }
        }
    }

    /// Drops what changed at `index`. When this returns, the index may be acknowledged. Gives the
    /// items that were there.
    pub(crate) fn erase(&self, index: u64, keys: &[CacheKey]) -> Vec<ItemNumber> {
        let dropped = self.cache.erase(index, keys);
        self.flights.detach(keys);
        dropped
    }

    /// Keeps what an item became at `index`, now that it may be told.
    pub(crate) fn refresh(&self, index: u64, item: &Item) {
        self.counters.refreshes.inc();
        self.keep_item(item, Some(index));
    }

    /// Drops `keys` at an operator's wish.
    pub(crate) fn erase_by_hand(&self, keys: &[CacheKey]) {
        self.cache.erase_by_hand(keys);
        self.flights.detach(keys);
    }

    /// What the cache has, or will have as soon as it may be told.
    async fn cached_soon(&self, query: &Query, context: &RequestContext) -> Option<Found> {
        let found = self.cached(query);
        let Query::Item(item) = query else { return found };
        if found.is_some() || !self.becoming.is_becoming(*item) {
            return found;
        }
        let limit = SOON.min(context.remaining(&self.env));
        let settled = self.env.timeout(limit, self.becoming.settled(*item)).await;
        settled.ok().and_then(|()| self.cached(query))
    }

    fn cached(&self, query: &Query) -> Option<Found> {
        match query {
            Query::Item(item) => self.cache.get(&CacheKey::Item(*item)).map(Found::Document),
            Query::Topics => self.cache.get(&CacheKey::Topics).map(Found::Document),
            Query::Page(topic, which) => {
                let page = self.cache.get_page(&CacheKey::Topic(topic.clone()), *which)?;
                Some(Found::Page(page_body(&page.items, page.next.as_deref())))
            }
        }
    }

    /// Asks the catalog in a task of its own: others may wait for the answer when the client
    /// that asked first is gone, or has less time than they.
    fn fly(self: &Arc<Self>, query: Query, context: &RequestContext, landing: Landing<Outcome>) {
        let context = RequestContext {
            id: context.id.clone(),
            deadline: self.env.now() + self.limits.request_timeout(),
        };
        let reader = Arc::clone(self);
        self.env.spawn(async move {
            let outcome = reader.ask(query, context).await;
            landing.land(outcome);
        });
    }

    async fn ask(&self, query: Query, context: RequestContext) -> Outcome {
        let _admitted = self.admission.enter()?;
        let call = Call::new(Method::GET, target(&query), context).with_secret(&self.secret);
        let answer = self.balancers.call(&call).await;
        if answer.status != StatusCode::OK {
            return Err(Refusal(Box::new(answer)));
        }
        let read_at = log_index(&answer.headers);
        match query {
            Query::Item(_) => {
                let item: Item = answer.json()?;
                Ok(Found::Document(self.keep_item(&item, read_at)))
            }
            Query::Page(topic, which) => Ok(self.keep_page(topic, which, &answer.json()?, read_at)),
            Query::Topics => {
                let topics = Document::new(answer.body.to_vec());
                self.keep(CacheKey::Topics, &topics, read_at);
                Ok(Found::Document(topics))
            }
        }
    }

    /// Written anew even if it came alone, so that an item has the same ETag whether a lookup or
    /// a search brought it.
    fn keep_item(&self, item: &Item, read_at: Option<u64>) -> Arc<Document> {
        // Numbers and strings only: this cannot fail, and an empty document would be seen.
        let document = Document::new(serde_json::to_vec(item).unwrap_or_default());
        self.keep(CacheKey::Item(item.item_number), &document, read_at);
        document
    }

    fn keep_page(
        &self,
        topic: String,
        which: PageRequest,
        page: &ItemPage,
        read_at: Option<u64>,
    ) -> Found {
        let items: Vec<_> = page.items.iter().map(|item| self.keep_item(item, read_at)).collect();
        let body = page_body(&items, page.next.as_deref());
        if let Some(read_at) = read_at {
            let items = page.items.iter().map(|item| item.item_number).collect();
            let page = Page { items, next: page.next.as_deref().map(Arc::from) };
            self.cache.put_page(CacheKey::Topic(topic), which, page, read_at);
        }
        Found::Page(body)
    }

    fn keep(&self, key: CacheKey, document: &Arc<Document>, read_at: Option<u64>) {
        match read_at {
            Some(read_at) => self.cache.put(key, Arc::clone(document), read_at),
            None => _ = self.counters.fills_refused.inc(),
        }
    }
}

/// Where the catalog answers `query`. A topic goes as a parameter: in the path, one of digits
/// would be an item number.
fn target(query: &Query) -> String {
    match query {
        Query::Item(item) => format!("/query/{item}"),
        Query::Topics => "/topics".to_owned(),
        Query::Page(topic, PageRequest { limit, after }) => {
            let topic = utf8_percent_encode(topic, NON_ALPHANUMERIC);
            // No item has the number 0, after which the first page begins.
            let cursor = ItemNumber::try_from(*after)
                .map(|item| format!("&cursor={}", PageRequest::cursor_after(item)))
                .unwrap_or_default();
            format!("/query?topic={topic}&limit={limit}{cursor}")
        }
    }
}

/// The log index of the state that was read. An answer without one is good once, not twice.
fn log_index(headers: &HeaderMap) -> Option<u64> {
    parse_whole_number(headers.get(LOG_INDEX)?.to_str().ok()?)
}

#[cfg(test)]
mod tests;
