use std::{future::Future, pin::Pin, time::Duration};

use axum::{Router, extract::Path, routing::get};
use futures_util::FutureExt;
use pygmy_client::{LocalPlace, Upstream};
use pygmy_protocol::{Code, metrics::Metrics};
use tokio::sync::{mpsc, oneshot};

use super::*;

const LONG: Duration = Duration::from_secs(30);

/// Queries that have reached the catalog and wait for the test to answer: stock and log index. The
/// place of the balancer is held for the reader.
struct Queries(
    mpsc::UnboundedReceiver<oneshot::Sender<(u64, u64)>>,
    #[allow(dead_code)] LocalPlace,
);

impl Queries {
    async fn next(&mut self) -> oneshot::Sender<(u64, u64)> {
        Env::production().timeout(LONG, self.0.recv()).await.unwrap().unwrap()
    }

    fn none_waits(&mut self) -> bool {
        self.0.try_recv().is_err()
    }
}

/// A reader whose balancer is a router that asks the test. Its session begins at 10.
fn reader() -> (Arc<Reader>, Queries) {
    let env = Env::production();
    let (sender, receiver) = mpsc::unbounded_channel();
    let query = move |Path(number): Path<u64>| {
        let sender = sender.clone();
        async move {
            let (answer, answered) = oneshot::channel::<(u64, u64)>();
            sender.send(answer).unwrap();
            let (stock, read_at) = answered.await.unwrap();
            let item = serde_json::json!({
                "itemNumber": number, "title": "t", "topic": "a", "stock": stock, "cost": 1,
            });
            ([(LOG_INDEX, read_at.to_string())], item.to_string())
        }
    };
    let place = LocalPlace::default();
    place.fill(Router::new().route("/query/{item}", get(query)), None);
    let balancer = Arc::new(Upstream::local(&env, "http://balancer:1", place.local()));
    let counters = Arc::new(Counters::default());
    let reader = Reader {
        admission: Admission::new(&env, &Metrics::new(&env), Duration::from_secs(1), 100),
        env: env.clone(),
        becoming: Becoming::default(),
        cache: Cache::new(&env, 1 << 20, &counters),
        flights: Arc::new(Flights::new(100)),
        balancers: Arc::new(Balancers::new(&env, vec![balancer], LONG)),
        secret: Secret::new("0123456789abcdef").unwrap(),
        limits: Limits { request_timeout_ms: 30_000, ..Limits::default() },
        counters,
        flights_refused: Counter::default(),
    };
    reader.cache.open(10);
    reader.cache.renew(env.now() + LONG);
    (Arc::new(reader), Queries(receiver, place))
}

fn seven() -> ItemNumber {
    7.try_into().unwrap()
}

type Read<'a> = Pin<Box<dyn Future<Output = Outcome> + Send + 'a>>;

/// A read of item 7 that has begun: it has looked in the cache and waits for a flight.
fn begun(reader: &Arc<Reader>) -> Read<'_> {
    let context = RequestContext::fresh(&reader.env, LONG);
    let mut read: Read<'_> =
        Box::pin(async move { reader.read(Query::Item(seven()), &context).await });
    assert!(read.as_mut().now_or_never().is_none());
    read
}

fn stock(outcome: Outcome) -> u64 {
    let Ok(Found::Document(document)) = outcome else { panic!("{outcome:?}") };
    serde_json::from_slice::<Item>(&document.body).unwrap().stock
}

#[tokio::test]
async fn all_who_miss_at_once_share_one_query() {
    let (reader, mut queries) = reader();
    let reads: Vec<_> = (0..50).map(|_| begun(&reader)).collect();
    queries.next().await.send((5, 10)).unwrap();
    for read in reads {
        assert_eq!(stock(read.await), 5);
    }
    assert!(queries.none_waits());
    assert_eq!(reader.counters.misses.of(&Query::Item(seven())).get(), 50);
}

#[tokio::test]
async fn a_read_that_begins_after_an_invalidation_starts_its_own_query() {
    let (reader, mut queries) = reader();
    let before = begun(&reader);
    let old = queries.next().await;
    reader.erase(11, &[CacheKey::Item(seven())]);
    let after = begun(&reader);
    let new = queries.next().await;
    new.send((4, 11)).unwrap();
    assert_eq!(stock(after.await), 4);
    old.send((5, 10)).unwrap();
    assert_eq!(stock(before.await), 5, "this read began before the sale was known here");
    assert_eq!(stock(Ok(reader.cached(&Query::Item(seven())).unwrap())), 4);
}

#[tokio::test]
async fn a_joined_answer_that_was_overtaken_is_not_taken() {
    let (reader, mut queries) = reader();
    let first = begun(&reader);
    let joined = [begun(&reader), begun(&reader)];
    let old = queries.next().await;
    reader.erase(11, &[CacheKey::Item(seven())]);
    old.send((5, 10)).unwrap();
    assert_eq!(stock(first.await), 5);
    let [a, b] = joined;
    let answer = async { queries.next().await.send((4, 11)).unwrap() };
    let (a, b, ()) = tokio::join!(a, b, answer);
    assert_eq!((stock(a), stock(b)), (4, 4));
    assert!(queries.none_waits());
}

#[tokio::test]
async fn without_a_session_one_query_at_a_time_serves_all() {
    let (reader, mut queries) = reader();
    reader.cache.close();
    let first = begun(&reader);
    let others: Vec<_> = (0..20).map(|_| begun(&reader)).collect();
    queries.next().await.send((5, 10)).unwrap();
    assert_eq!(stock(first.await), 5);
    let others = futures_util::future::join_all(others);
    let answer = async { queries.next().await.send((4, 11)).unwrap() };
    let (others, ()) = tokio::join!(others, answer);
    assert!(others.into_iter().all(|outcome| stock(outcome) == 4));
    assert!(queries.none_waits());
}

#[tokio::test]
async fn the_first_to_ask_may_leave() {
    let (reader, mut queries) = reader();
    let first = begun(&reader);
    let second = begun(&reader);
    let query = queries.next().await;
    drop(first);
    query.send((5, 10)).unwrap();
    assert_eq!(stock(second.await), 5);
    assert!(queries.none_waits());
}

#[tokio::test]
async fn who_has_no_time_left_gets_503_and_the_others_their_answer() {
    let (reader, mut queries) = reader();
    let hurried = RequestContext::fresh(&reader.env, Duration::ZERO);
    let outcome = reader.read(Query::Item(seven()), &hurried).await;
    assert_eq!(outcome.unwrap_err().0.problem().code, Code::Unavailable);
    let patient = begun(&reader);
    queries.next().await.send((5, 10)).unwrap();
    assert_eq!(stock(patient.await), 5);
}

#[test]
fn a_topic_goes_as_a_parameter_whatever_it_holds() {
    let page = |topic: &str, after| {
        target(&Query::Page(topic.to_owned(), PageRequest { limit: 5, after }))
    };
    assert_eq!(page("1984", 0), "/query?topic=1984&limit=5");
    assert_eq!(page("a/b&c=ü", 7), "/query?topic=a%2Fb%26c%3D%C3%BC&limit=5&cursor=a7");
}
