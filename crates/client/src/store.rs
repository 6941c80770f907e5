//! The store as its customers see it: the public API of the front ends.
//!
//! A [`Request`] goes to one front end after the other until one gives a final answer. When none
//! does, or one has too much to do (429), it is asked again after a short pause, with the same key, until [`Patience::total`] is
//! over: a 503 says "not done" and a 504 "ask again", and an election in the store ends well
//! within that time.

use std::{
    fmt,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{Method, StatusCode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use pygmy_protocol::{
    Code, Env, Problem, RequestContext,
    context::IDEMPOTENCY_REPLAYED,
    env::TimedOut,
    item::{Item, ItemNumber, ItemPage, Topics},
    key::IdempotencyKey,
    order::{BuyBody, Order, OrderNumber},
};
use serde::de::DeserializeOwned;

use crate::{Answer, Attempts, Call, Failure, Upstream};

/// First pause after every server has failed once; it doubles from round to round.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// Longest pause: a store that comes back is noticed soon.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// A wait that is longer than this is noticed by whoever waits.
const NOTICED: Duration = Duration::from_secs(2);

/// What RFC 3986 lets stand in a path segment or a query value as it is.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// How long to go on asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Longest time for one attempt on one server.
    pub attempt: Duration,
    /// Longest time for all attempts together.
    pub total: Duration,
    /// Longest time while no server can even be reached: they are more likely to be elsewhere than
    /// to come back.
    pub unreachable: Duration,
}

impl Default for Patience {
    /// A front end gives up after 5 s by itself (`request_timeout_ms`) and then says what it
    /// knows: an attempt waits a little longer than that.
    fn default() -> Patience {
        Patience {
            attempt: Duration::from_secs(6),
            total: Duration::from_secs(20),
            unreachable: Duration::from_secs(3),
        }
    }
}

/// Is called when a request is still without an answer after two seconds, with the time for which
/// it is tried at most. What it returns is dropped when the wait is over.
pub type Notice = fn(Duration) -> Box<dyn Send>;

/// Why the store did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// It answered with a problem.
    #[error("{}", .0.detail)]
    Problem(Problem),
    /// None of its servers answered; the request had no effect.
    #[error("no server answers at {}: {reason}", tried.join(", "))]
    Unreachable {
        /// The base URLs that were tried.
        tried: Vec<String>,
        /// What the last one of them failed with.
        reason: String,
    },
}

impl StoreError {
    /// Whether the same request, with the same key, may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            StoreError::Unreachable { .. } => true,
            StoreError::Problem(problem) => matches!(
                problem.code,
                Code::Unavailable | Code::OutcomeUnknown | Code::TooManyRequests
            ),
        }
    }
}

/// One request of the public API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// `GET /search/{topic}`.
    Search {
        /// Matches exactly.
        topic: String,
        /// Items at most; the store's default if none is given.
        limit: Option<u32>,
        /// Where the page begins: `next` of the page before.
        cursor: Option<String>,
    },
    /// `GET /topics`.
    Topics,
    /// `GET /lookup/{itemNumber}`.
    Lookup(ItemNumber),
    /// `POST /buy/{itemNumber}`.
    Buy {
        /// What to buy.
        item: ItemNumber,
        /// How many, and at which price.
        body: BuyBody,
        /// Names the buy: however often it is asked for, it is done once.
        key: IdempotencyKey,
    },
    /// `GET /orders/{orderNumber}`.
    Order(OrderNumber),
}

impl Request {
    /// The first page of a topic.
    pub fn search(topic: impl Into<String>) -> Request {
        Request::Search { topic: topic.into(), limit: None, cursor: None }
    }

    fn call(&self, context: RequestContext) -> Call {
        match self {
            Request::Buy { body, key, .. } => {
                Call::new(Method::POST, self.target(), context).with_key(key).with_json(body)
            }
            _ => Call::new(Method::GET, self.target(), context),
        }
    }

    fn target(&self) -> String {
        match self {
            Request::Search { topic, limit, cursor } => {
                let limit = limit.map(|limit| format!("limit={limit}"));
                let cursor = cursor.as_deref().map(|cursor| format!("cursor={}", encode(cursor)));
                let query: Vec<_> = limit.into_iter().chain(cursor).collect();
                let mark = if query.is_empty() { "" } else { "?" };
                format!("/search/{}{mark}{}", encode(topic), query.join("&"))
            }
            Request::Topics => "/topics".to_owned(),
            Request::Lookup(item) => format!("/lookup/{item}"),
            Request::Buy { item, .. } => format!("/buy/{item}"),
            Request::Order(order) => format!("/orders/{order}"),
        }
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let method = if matches!(self, Request::Buy { .. }) { "POST" } else { "GET" };
        write!(f, "{method} {}", self.target())
    }
}

fn encode(text: &str) -> impl fmt::Display {
    utf8_percent_encode(text, PLAIN)
}

/// What a buy gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bought {
    /// The order.
    pub order: Order,
    /// Whether it was made by an earlier request with the same key.
    pub replayed: bool,
}

/// A client of the public API.
pub struct Store {
    env: Env,
    servers: Servers,
}

impl Store {
    /// The store behind the front ends at `urls`, at least one.
    ///
    /// # Errors
    /// A sentence that names the URL that is none.
    pub fn new(env: &Env, urls: &[String], patience: Patience) -> Result<Store, String> {
        Ok(Store { env: env.clone(), servers: Servers::new(env, urls, patience)? })
    }

    /// The same store, which says when it lets people wait.
    #[must_use]
    pub fn with_notice(mut self, notice: Notice) -> Store {
        self.servers.notice = Some(notice);
        self
    }

    /// Sends `request` and gives the answer as it came.
    ///
    /// # Errors
    /// See [`StoreError`]; an answer that is no success is one.
    pub async fn send(&self, request: &Request) -> Result<Answer, StoreError> {
        let context = RequestContext::fresh(&self.env, self.servers.patience.total);
        self.servers.call(&request.call(context)).await
    }

    /// A page of a topic.
    ///
    /// # Errors
    /// As [`Store::send`].
    pub async fn search(
        &self,
        topic: &str,
        limit: Option<u32>,
        cursor: Option<String>,
    ) -> Result<ItemPage, StoreError> {
        self.read(Request::Search { topic: topic.to_owned(), limit, cursor }).await
    }

    /// All topics.
    ///
    /// # Errors
    /// As [`Store::send`].
    pub async fn topics(&self) -> Result<Topics, StoreError> {
        self.read(Request::Topics).await
    }

    /// An item.
    ///
    /// # Errors
    /// As [`Store::send`].
    pub async fn lookup(&self, item: ItemNumber) -> Result<Item, StoreError> {
        self.read(Request::Lookup(item)).await
    }

    /// Buys, once for each key.
    ///
    /// # Errors
    /// As [`Store::send`]. After a retryable one, ask again with the same key.
    pub async fn buy(
        &self,
        item: ItemNumber,
        body: BuyBody,
        key: IdempotencyKey,
    ) -> Result<Bought, StoreError> {
        let answer = self.send(&Request::Buy { item, body, key }).await?;
        let replayed = answer.headers.get(IDEMPOTENCY_REPLAYED).is_some_and(|v| v == "true");
        Ok(Bought { order: parse(&answer)?, replayed })
    }

    /// An order that was made earlier.
    ///
    /// # Errors
    /// As [`Store::send`].
    pub async fn order(&self, order: OrderNumber) -> Result<Order, StoreError> {
        self.read(Request::Order(order)).await
    }

    async fn read<T: DeserializeOwned>(&self, request: Request) -> Result<T, StoreError> {
        parse(&self.send(&request).await?)
    }
}

pub(crate) fn parse<T: DeserializeOwned>(answer: &Answer) -> Result<T, StoreError> {
    answer.json().map_err(StoreError::Problem)
}

/// Several servers of which any may answer.
pub(crate) struct Servers {
    env: Env,
    upstreams: Vec<Arc<Upstream>>,
    /// The one that answered last: it is asked first.
    first: AtomicUsize,
    pub(crate) patience: Patience,
    pub(crate) notice: Option<Notice>,
}

impl Servers {
    pub(crate) fn new(env: &Env, urls: &[String], patience: Patience) -> Result<Servers, String> {
        if urls.is_empty() {
            return Err("at least one server's URL is needed".to_owned());
        }
        let upstreams: Result<Vec<_>, String> =
            urls.iter().map(|url| Upstream::remote(env, url).map(Arc::new)).collect();
        Ok(Servers {
            env: env.clone(),
            upstreams: upstreams?,
            first: AtomicUsize::new(0),
            patience,
            notice: None,
        })
    }

    /// Asks one after the other, round after round, until there is a final answer or the call's
    /// deadline comes.
    pub(crate) async fn call(&self, call: &Call) -> Result<Answer, StoreError> {
        let mut asking = pin!(self.ask(call));
        let Some(notice) = self.notice else { return asking.await };
        match self.env.timeout(NOTICED, &mut asking).await {
            Ok(answer) => answer,
            Err(TimedOut) => {
                let _shown = notice(self.patience.total);
                asking.await
            }
        }
    }

    async fn ask(&self, call: &Call) -> Result<Answer, StoreError> {
        let mut asked = Asked::default();
        let mut pause = PAUSE_MIN;
        let unreachable_at = self.env.now() + self.patience.unreachable;
        loop {
            if let Some(answer) = self.round(call, &mut asked).await {
                return success(answer);
            }
            let nobody_there = !asked.reached && self.env.now() >= unreachable_at;
            if call.remaining(&self.env) <= pause || !call.is_repeatable() || nobody_there {
                return self.give_up(asked);
            }
            self.env.sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    async fn round(&self, call: &Call, asked: &mut Asked) -> Option<Answer> {
        let first = self.first.load(Ordering::Relaxed);
        for turn in 0..self.upstreams.len() {
            let index = (first + turn) % self.upstreams.len();
            if call.remaining(&self.env).is_zero() {
                return None;
            }
            let result = self.upstreams[index].send(call, self.patience.attempt).await;
            match &result {
                Ok(_) => (asked.heard, asked.reached) = (true, true),
                Err(Failure::Unanswered(reason)) => {
                    asked.reached = true;
                    asked.reason.clone_from(reason);
                }
                Err(Failure::Refused(reason) | Failure::NotSent(reason)) => {
                    asked.reason.clone_from(reason)
                }
            }
            let has_too_much =
                result.as_ref().is_ok_and(|a| a.status == StatusCode::TOO_MANY_REQUESTS);
            if let Some(answer) = asked.attempts.judge(call, result) {
                self.first.store(index, Ordering::Relaxed);
                return Some(answer);
            }
            if has_too_much {
                // Asking the others at once would only give them more to refuse.
                return None;
            }
        }
        None
    }

    fn give_up(&self, asked: Asked) -> Result<Answer, StoreError> {
        let verdict = asked.attempts.give_up();
        if asked.heard || verdict.problem().code == Code::OutcomeUnknown {
            return success(verdict);
        }
        let tried = self.upstreams.iter().map(|u| u.url().to_owned()).collect();
        Err(StoreError::Unreachable { tried, reason: asked.reason })
    }
}

#[derive(Default)]
struct Asked {
    attempts: Attempts,
    /// Whether any server answered.
    heard: bool,
    /// Whether any server took the request, at least.
    reached: bool,
    /// What the last attempt without an answer failed with.
    reason: String,
}

fn success(answer: Answer) -> Result<Answer, StoreError> {
    if answer.status.is_success() {
        return Ok(answer);
    }
    Err(StoreError::Problem(answer.problem()))
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, sync::Mutex};

    use axum::{Router, extract::Request as HttpRequest, response::IntoResponse};
    use pygmy_protocol::{
        context::IDEMPOTENCY_KEY,
        http::{Json, Limits, Stopper, serve, shutdown},
        metrics::Metrics,
    };

    use super::*;

    /// A server that gives its answers one after the other, the last one for ever, and notes what
    /// it was asked.
    struct Fake {
        url: String,
        asked: Arc<Mutex<Vec<String>>>,
        _stopper: Stopper,
    }

    impl Fake {
        async fn start(env: &Env, answers: Vec<Answer>) -> Fake {
            let asked = Arc::new(Mutex::new(Vec::new()));
            let notes = Arc::clone(&asked);
            let answers = Arc::new(Mutex::new(VecDeque::from(answers)));
            let router = Router::new().fallback(move |request: HttpRequest| async move {
                let key = request.headers().get(IDEMPOTENCY_KEY);
                let key = key.map_or("", |key| key.to_str().unwrap());
                let line = format!("{} {} {key}", request.method(), request.uri());
                notes.lock().unwrap().push(line.trim_end().to_owned());
                let mut answers = answers.lock().unwrap();
                let answer = answers.pop_front().unwrap();
                if answers.is_empty() {
                    answers.push_back(answer.clone());
                }
                answer.into_response()
            });
            let listener = env.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let (stopper, stopped) = shutdown();
            let task_env = env.clone();
            env.spawn(async move {
                serve(
                    &task_env,
                    listener,
                    router,
                    &Limits::default(),
                    &Metrics::new(&task_env),
                    stopped,
                )
                .await;
            });
            Fake { url, asked, _stopper: stopper }
        }

        fn asked(&self) -> Vec<String> {
            self.asked.lock().unwrap().clone()
        }
    }

    async fn dead_url(env: &Env) -> String {
        let listener = env.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    }

    fn store(env: &Env, urls: &[&str], total_ms: u64) -> Store {
        let urls: Vec<_> = urls.iter().map(|url| (*url).to_owned()).collect();
        let total = Duration::from_millis(total_ms);
        Store::new(env, &urls, Patience { attempt: total, total, unreachable: total }).unwrap()
    }

    fn sold() -> Answer {
        let order = Order {
            order_number: OrderNumber(3),
            item_number: 7.try_into().unwrap(),
            title: "Spring".into(),
            quantity: 1,
            cost: 500,
            stock: 9,
        };
        let (parts, _) = Json(StatusCode::CREATED, &order).into_response().into_parts();
        let body = serde_json::to_vec(&order).unwrap().into();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    async fn buy(store: &Store) -> Result<Bought, StoreError> {
        store.buy(7.try_into().unwrap(), BuyBody::default(), "k1".parse().unwrap()).await
    }

    #[tokio::test]
    async fn a_buy_goes_on_with_its_key_until_it_is_done() {
        let env = Env::production();
        let unavailable = Answer::from(Problem::unavailable("an election"));
        let unknown = Answer::from(Problem::outcome_unknown("a leader died"));
        let fake = Fake::start(&env, vec![unavailable, unknown, sold()]).await;
        let bought = buy(&store(&env, &[&fake.url], 30_000)).await.unwrap();
        assert_eq!(bought.order.order_number, OrderNumber(3));
        assert!(!bought.replayed);
        assert_eq!(fake.asked(), ["POST /buy/7 k1"; 3]);
    }

    #[tokio::test]
    async fn another_server_is_tried_and_then_asked_first() {
        let env = Env::production();
        let fake = Fake::start(&env, vec![sold()]).await;
        let store = store(&env, &[&dead_url(&env).await, &fake.url], 30_000);
        buy(&store).await.unwrap();
        assert_eq!(store.servers.first.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn a_refusal_is_final() {
        let env = Env::production();
        let fake = Fake::start(&env, vec![Problem::out_of_stock().into(), sold()]).await;
        let error = buy(&store(&env, &[&fake.url], 30_000)).await.unwrap_err();
        assert_eq!(error, StoreError::Problem(Problem::out_of_stock()));
        assert!(!error.is_retryable());
        assert_eq!(fake.asked().len(), 1);
    }

    #[tokio::test]
    async fn a_store_with_too_much_to_do_is_asked_again_later_and_not_elsewhere() {
        let env = Env::production();
        let busy = Answer::from(Problem::new(Code::TooManyRequests, "too much"));
        let (first, second) = (
            Fake::start(&env, vec![busy.clone(), sold()]).await,
            Fake::start(&env, vec![sold()]).await,
        );
        buy(&store(&env, &[&first.url, &second.url], 30_000)).await.unwrap();
        assert_eq!((first.asked().len(), second.asked().len()), (2, 0));

        let always = Fake::start(&env, vec![busy.clone()]).await;
        let error = buy(&store(&env, &[&always.url], 300)).await.unwrap_err();
        assert!(
            matches!(&error, StoreError::Problem(p) if p.code == Code::TooManyRequests),
            "{error}"
        );
        assert!(error.is_retryable());

        // What was unknown before is so after the refusal.
        let unknown = Answer::from(Problem::outcome_unknown("a leader died"));
        let first_unknown = Fake::start(&env, vec![unknown, busy]).await;
        let error = buy(&store(&env, &[&first_unknown.url], 300)).await.unwrap_err();
        assert!(
            matches!(&error, StoreError::Problem(p) if p.code == Code::OutcomeUnknown),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_store_that_is_not_there_is_named() {
        let env = Env::production();
        let url = dead_url(&env).await;
        let error = store(&env, &[&url], 200).topics().await.unwrap_err();
        assert!(error.is_retryable());
        assert!(error.to_string().contains(&url), "{error}");
        assert!(matches!(error, StoreError::Unreachable { .. }));
    }

    #[tokio::test]
    async fn an_outcome_that_stays_unknown_is_said_to_be() {
        let env = Env::production();
        let unknown = Answer::from(Problem::outcome_unknown("a leader died"));
        let unavailable = Answer::from(Problem::unavailable("no leader"));
        let fake = Fake::start(&env, vec![unknown, unavailable]).await;
        let error = buy(&store(&env, &[&fake.url], 300)).await.unwrap_err();
        let StoreError::Problem(problem) = &error else { panic!("{error}") };
        assert_eq!(problem.code, Code::OutcomeUnknown);
        assert!(error.is_retryable());
    }

    #[test]
    fn targets_are_encoded() {
        let search = Request::Search {
            topic: "C/C++ & 100%".into(),
            limit: Some(5),
            cursor: Some("a7".into()),
        };
        assert_eq!(search.to_string(), "GET /search/C%2FC%2B%2B%20%26%20100%25?limit=5&cursor=a7");
        assert_eq!(Request::search("x").to_string(), "GET /search/x");
    }
}
