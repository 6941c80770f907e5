//! Runs against stores that stall, refuse, break and lie, in virtual time.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use pygmy_protocol::{Env, Problem, env::Instant};
use tokio::sync::mpsc;

use super::*;
use crate::testing::{Asked, answer, environment};

struct Run {
    mix: &'static str,
    servers: &'static [&'static str],
    connections: usize,
    threads: usize,
    rate: Option<f64>,
    warm_up: Duration,
    seconds: u64,
}

const LOOKUPS: Run = Run {
    mix: "lookup=1",
    servers: &["http://shop"],
    connections: 4,
    threads: 1,
    rate: None,
    warm_up: Duration::ZERO,
    seconds: 10,
};
const BUYS: Run = Run { mix: "buy=1", connections: 2, seconds: 1, ..LOOKUPS };

impl Run {
    async fn tally(&self, env: &Env) -> Tally {
        let workload = Workload {
            mix: self.mix.parse().unwrap(),
            numbers: ItemNumbers::random(env, 7),
            popularity: Popularity::Uniform,
            topic: fresh_topic(env),
        };
        let measured = Duration::from_secs(self.seconds);
        let plan = Plan {
            servers: self.servers.iter().map(|url| Server::new(url).unwrap()).collect(),
            workload: Arc::new(workload),
            window: Arc::new(Window::new(env.now(), self.warm_up, measured)),
            connections: self.connections,
            rate: self.rate,
            threads: self.threads,
        };
        let (sender, mut tallies) = mpsc::channel(64);
        for thread in 0..self.threads {
            let (env, plan, sender) = (env.clone(), plan.clone(), sender.clone());
            env.clone().spawn(async move { drive(&env, &plan, thread, sender).await });
        }
        drop(sender);
        let mut total = Tally::default();
        while let Some(tally) = tallies.recv().await {
            total.add(&tally);
        }
        total
    }
}

const MS: Duration = Duration::from_millis(1);

fn requests_slower_than(tally: &Tally, limit: Duration) -> u64 {
    let latency_ns = &tally.kind(Kind::Lookup).latency_ns;
    latency_ns.count_between(limit.as_nanos() as u64, u64::MAX)
}

/// Answers in a millisecond, but what comes in the third second is answered at its end.
fn stalling() -> Env {
    let start = Mutex::new(None::<Instant>);
    environment(move |env, _| {
        let start = *start.lock().unwrap().get_or_insert(env.now());
        let (from, to) = (start + Duration::from_secs(2), start + Duration::from_secs(3));
        let stalled = (from..to).contains(&env.now());
        (if stalled { to.saturating_since(env.now()) } else { MS }, answer(200, "{}"))
    })
}

#[tokio::test(start_paused = true)]
async fn an_open_loop_shows_a_stall_to_all_whom_it_would_have_met() {
    let tally = Run { rate: Some(1000.0), ..LOOKUPS }.tally(&stalling()).await;
    assert_eq!((tally.kind(Kind::Lookup).done(), tally.unsent), (10_000, 0));
    // Half of the thousand requests that were due in that second waited for more than half of it.
    let slow = requests_slower_than(&tally, Duration::from_millis(500));
    assert!((500..800).contains(&slow), "{slow}");
    let slowest = Duration::from_nanos(tally.kind(Kind::Lookup).latency_ns.max());
    assert!((990..1100).contains(&slowest.as_millis()), "{slowest:?}");
}

#[tokio::test(start_paused = true)]
async fn a_closed_loop_asks_less_while_the_store_stalls() {
    let tally = LOOKUPS.tally(&stalling()).await;
    assert_eq!(requests_slower_than(&tally, Duration::from_millis(500)), 4, "one per connection");
    assert!(tally.kind(Kind::Lookup).done() > 10_000);
}

#[tokio::test(start_paused = true)]
async fn what_an_open_loop_cannot_send_is_counted() {
    let env = environment(|_, _| (10 * MS, answer(200, "{}")));
    for threads in [1, 2] {
        let run = Run { rate: Some(1000.0), connections: 2, threads, ..LOOKUPS };
        let tally = run.tally(&env).await;
        let done = tally.kind(Kind::Lookup).done();
        assert!((1_500..=2_100).contains(&done), "{done}");
        assert_eq!(done + tally.unsent, 10_000);
        let slowest = Duration::from_nanos(tally.kind(Kind::Lookup).latency_ns.max());
        assert!(slowest < pace::LATE_MAX + Duration::from_secs(1), "{slowest:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_falls_behind_in_the_warm_up_is_measured() {
    let env = environment(|_, _| (10 * MS, answer(200, "{}")));
    let warm_up = Duration::from_secs(4);
    let run = Run { rate: Some(1000.0), connections: 2, warm_up, seconds: 4, ..LOOKUPS };
    let tally = run.tally(&env).await;
    let done = tally.kind(Kind::Lookup).done();
    assert!((600..=900).contains(&done), "{done}");
    assert_eq!(done + tally.unsent, 4_000);
}

#[tokio::test(start_paused = true)]
async fn an_early_end_is_the_end() {
    let env = environment(|_, _| (10 * MS, answer(200, "{}")));
    let window = Window::new(env.now(), Duration::from_secs(1), Duration::from_secs(10));
    window.end_at(env.now() + Duration::from_secs(3));
    window.end_at(env.now() + Duration::from_secs(5));
    assert_eq!(window.measured(), Duration::from_secs(2));
}

fn key_of(asked: &Asked) -> String {
    let line = asked.request.lines().find(|line| line.starts_with("Idempotency-Key: "));
    line.expect("every buy carries a key").to_owned()
}

/// A store that treats the n-th request with a key as `behaviour` says; and how often each key
/// came.
fn by_attempt(
    behaviour: impl Fn(u32) -> (Duration, String) + Send + Sync + 'static,
) -> (Env, Arc<Mutex<BTreeMap<String, u32>>>) {
    let keys = Arc::new(Mutex::new(BTreeMap::new()));
    let seen = Arc::clone(&keys);
    let env = environment(move |_, asked| {
        let mut seen = seen.lock().unwrap();
        let attempt = seen.entry(key_of(asked)).or_default();
        *attempt += 1;
        behaviour(*attempt)
    });
    (env, keys)
}

#[tokio::test(start_paused = true)]
async fn a_buy_is_asked_again_with_its_key_until_its_outcome_is_known() {
    let unknown = String::from_utf8(Problem::outcome_unknown("").to_json()).unwrap();
    let unavailable = String::from_utf8(Problem::unavailable("").to_json()).unwrap();
    let (env, keys) = by_attempt(move |attempt| match attempt {
        1 => (MS, answer(504, &unknown)),
        2 => (MS, String::new()),
        3 => (MS, answer(503, &unavailable)),
        _ => (MS, answer(201, "{}")),
    });
    let tally = BUYS.tally(&env).await;
    let keys = keys.lock().unwrap();
    assert!(keys.values().all(|attempts| *attempts == 4), "{keys:?}");
    let buys = keys.len() as u64;
    assert_eq!((tally.sales, tally.unknown, tally.buy_retries), (buys, 0, 3 * buys));
    assert_eq!((tally.kind(Kind::Buy).done(), tally.kind(Kind::Buy).failed()), (buys, 0));
    assert_eq!((tally.broken, tally.connects), (buys, buys + 2));
    let fastest = Duration::from_nanos(tally.kind(Kind::Buy).latency_ns.min());
    assert!(fastest > Duration::from_millis(100), "from the first attempt on: {fastest:?}");
}

#[tokio::test(start_paused = true)]
async fn a_buy_that_stays_unanswered_is_no_sale_and_no_refusal() {
    let sold_out = String::from_utf8(Problem::out_of_stock().to_json()).unwrap();
    let unavailable = String::from_utf8(Problem::unavailable("").to_json()).unwrap();
    // Status by attempt, how often it is asked, whether it may have been done, what is counted.
    let cases = [
        ([504; 6], 6, true, "504"),
        ([503; 6], 6, false, "503 unavailable"),
        ([504, 503, 503, 503, 503, 503], 6, true, "503 unavailable"),
        ([409; 6], 1, false, "409 out_of_stock"),
        ([504, 409, 409, 409, 409, 409], 2, true, "409 out_of_stock"),
        ([200; 6], 1, false, "200"),
    ];
    for (statuses, attempts, may_be_done, counted) in cases {
        let bodies = BTreeMap::from([(409, sold_out.clone()), (503, unavailable.clone())]);
        let (env, keys) = by_attempt(move |attempt| {
            let status = statuses[attempt as usize - 1];
            (MS, answer(status, bodies.get(&status).map_or("", String::as_str)))
        });
        let tally = BUYS.tally(&env).await;
        let keys = keys.lock().unwrap();
        let buys = keys.len() as u64;
        assert!(keys.values().all(|n| *n == attempts), "{statuses:?}: {keys:?}");
        assert_eq!((tally.sales, tally.kind(Kind::Buy).done()), (0, 0), "{statuses:?}");
        assert_eq!(tally.unknown, if may_be_done { buys } else { 0 }, "{statuses:?}");
        let failures = BTreeMap::from([(counted.to_owned(), buys)]);
        assert_eq!(tally.kind(Kind::Buy).failures, failures, "{statuses:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn connections_of_a_front_end_that_is_gone_go_to_another() {
    let env = environment(|_, asked| {
        assert_eq!(asked.authority, "shop:80");
        (MS, answer(200, "{}"))
    });
    let run = Run { servers: &["http://nobody", "http://shop"], ..LOOKUPS };
    let tally = run.tally(&env).await;
    assert_eq!(tally.failed_connects, BTreeMap::from([("connection refused".to_owned(), 2)]));
    assert_eq!(tally.connects, 4);
    let failures = &tally.kind(Kind::Lookup).failures;
    assert_eq!(failures.values().sum::<u64>(), 2, "{failures:?}");
    assert!(failures.keys().all(|failure| failure.starts_with("no connection: ")));
}
