//! Clients: what they ask, and what they write down.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::{Method, StatusCode};
use pygmy_client::{Call, Failure, Upstream};
use pygmy_protocol::{
    Code, Env, IdempotencyKey, Problem, RequestContext,
    env::Random,
    http::Secret,
    item::{Item, ItemNumber, ItemPage},
    order::{BuyBody, Order, OrderNumber},
};

use crate::{
    check::history::{Event, History, Operation, Outcome},
    clock::WorldTime,
    cluster::Cluster,
    rng::Rng,
    trace::note,
};

/// How long a client waits for one answer, and how often it asks with the same key.
const ATTEMPT: Duration = Duration::from_secs(5);
const ATTEMPTS: u64 = 4;

/// The items of every run: hot ones, of which one is soon sold out.
pub(crate) const ITEMS: [(u64, u64, u64); 3] = [(1, 1000, 2000), (2, 40, 500), (3, 5, 1000)];

/// The items as they are loaded.
pub(crate) fn items() -> Vec<Item> {
    let item = |(number, stock, cost): (u64, u64, u64)| Item {
        item_number: item_number(number),
        title: format!("Book {number}"),
        topic: "Books".to_owned(),
        stock,
        cost,
    };
    ITEMS.into_iter().map(item).collect()
}

fn item_number(number: u64) -> ItemNumber {
    // All numbers here are small and not zero.
    ItemNumber::try_from(number).expect("a valid item number")
}

/// What the clients of a run have in common.
#[derive(Clone)]
pub(crate) struct Load {
    pub(crate) history: Arc<Mutex<History>>,
    pub(crate) stop: Arc<AtomicBool>,
    pub(crate) time: WorldTime,
}

/// One client on its machine.
pub(crate) struct Client {
    pub(crate) number: u32,
    pub(crate) env: Env,
    rng: Rng,
    secret: Secret,
    public: Vec<Arc<Upstream>>,
    balancers: Vec<Arc<Upstream>>,
    catalogs: Vec<Arc<Upstream>>,
    load: Load,
    /// Buys that were answered, and what they asked for.
    bought: Vec<(OrderNumber, Operation)>,
}

/// The answer to one call, as far as the client knows.
enum Answered {
    Yes(pygmy_client::Answer),
    Refused(Code),
    /// Refused by a try that began at this time, when an earlier one was lost, which may still be
    /// carried out.
    LostAndRefused(Code, u64),
    NotDone,
    Unknown,
}

impl Client {
    pub(crate) fn new(cluster: &Cluster, number: u32, rng: &Rng, load: &Load) -> Client {
        let env = cluster.client(number as usize);
        let upstreams = |urls: Vec<String>| -> Vec<Arc<Upstream>> {
            // The addresses are ours and well formed.
            urls.iter().map(|url| Arc::new(Upstream::remote(&env, url).expect("a URL"))).collect()
        };
        Client {
            number,
            public: upstreams(cluster.public_urls()),
            balancers: upstreams(cluster.urls("balancer")),
            catalogs: upstreams(cluster.urls("catalog")),
            rng: rng.fork(),
            secret: cluster.secret().clone(),
            load: load.clone(),
            bought: Vec::new(),
            env,
        }
    }

    /// Asks one thing after the other until told to stop.
    pub(crate) async fn run(mut self) {
        for n in 0.. {
            if self.load.stop.load(Ordering::Relaxed) {
                return;
            }
            self.env.sleep(Duration::from_millis(self.rng.between(1, 60))).await;
            let item = item_number(ITEMS[self.rng.below(3) as usize].0);
            let key: IdempotencyKey =
                // Letters, digits and a dash.
                format!("c{}-{n}", self.number).parse().expect("a valid key");
            match self.rng.below(100) {
                0..42 => self.buy(item, key).await,
                42..46 => self.repeat().await,
                46..56 => self.set_stock(item, key).await,
                56..62 => self.set_cost(item, key).await,
                62..72 => self.read(item, At::Replica).await,
                72..75 => self.search(At::Replica).await,
                75..90 => self.read(item, At::FrontEnd).await,
                90..93 => self.search(At::FrontEnd).await,
                _ => self.find_order().await,
            }
        }
    }

    async fn buy(&mut self, item: ItemNumber, key: IdempotencyKey) {
        let quantity = self.rng.between(1, 2);
        let cost = ITEMS[item.get() as usize - 1].2;
        let expected_cost = self.rng.percent(30).then_some(cost);
        self.order(Operation::Buy { item, quantity, expected_cost, key }).await;
        // What was just told is what a stale cache would not show.
        if self.rng.percent(40) {
            for front_end in self.public.clone() {
                self.read_from(&front_end, format!("/lookup/{item}"), item).await;
            }
        }
    }

    /// Asks again for what was bought long ago: the same answer, and no other order.
    async fn repeat(&mut self) {
        if !self.bought.is_empty() {
            let (_, operation) = self.rng.pick(&self.bought).clone();
            self.order(operation).await;
        }
    }

    async fn order(&mut self, operation: Operation) {
        let Operation::Buy { item, quantity, expected_cost, key } = &operation else { return };
        let body = BuyBody { quantity: *quantity, expected_cost: *expected_cost };
        let call = self.call(Method::POST, format!("/buy/{item}")).with_key(key).with_json(&body);
        let called = self.now();
        let answered = self.until_certain(&self.public, call).await;
        let ordered = |answer: &pygmy_client::Answer| {
            let replayed = answer.headers.contains_key("idempotency-replayed");
            answer.json::<Order>().map(|order| Outcome::Ordered { order, replayed })
        };
        if let Outcome::Ordered { order, .. } =
            self.record_answer(called, operation.clone(), answered, ordered)
        {
            self.bought.push((order.order_number, operation));
        }
    }

    async fn set_stock(&mut self, item: ItemNumber, key: IdempotencyKey) {
        let stock = self.rng.below(30);
        let call = self.call(Method::POST, format!("/updateStock/{item}/{stock}")).with_key(&key);
        let called = self.now();
        let answered = self.until_certain(&self.balancers, call).await;
        self.record_answer(called, Operation::SetStock { item, stock, key }, answered, updated);
    }

    async fn set_cost(&mut self, item: ItemNumber, key: IdempotencyKey) {
        let cost = ITEMS[item.get() as usize - 1].2 + self.rng.below(2);
        let call = self.call(Method::POST, format!("/updateCost/{item}/{cost}")).with_key(&key);
        let called = self.now();
        let answered = self.until_certain(&self.balancers, call).await;
        self.record_answer(called, Operation::SetCost { item, cost, key }, answered, updated);
    }

    /// A linearizable read.
    async fn read(&mut self, item: ItemNumber, at: At) {
        let (server, target) = match at {
            At::Replica => (&self.catalogs, format!("/query/{item}")),
            At::FrontEnd => (&self.public, format!("/lookup/{item}")),
        };
        let server = Arc::clone(self.rng.pick(server));
        self.read_from(&server, target, item).await;
    }

    async fn read_from(&mut self, server: &Upstream, target: String, item: ItemNumber) {
        let call = self.call(Method::GET, target);
        let called = self.now();
        let outcome = match server.send(&call, ATTEMPT).await.map(|answer| answer.json::<Item>()) {
            Ok(Ok(item)) => Outcome::Read(Some(item)),
            _ => Outcome::NotDone,
        };
        self.record(called, Operation::ReadItem { item }, outcome);
    }

    /// A linearizable search: a read of each item at the same time.
    async fn search(&mut self, at: At) {
        let (server, target) = match at {
            At::Replica => (&self.catalogs, "/query?topic=Books&limit=1000"),
            At::FrontEnd => (&self.public, "/search/Books?limit=1000"),
        };
        let server = Arc::clone(self.rng.pick(server));
        let call = self.call(Method::GET, target.to_owned());
        let called = self.now();
        let Ok(answer) = server.send(&call, ATTEMPT).await else { return };
        let Ok(found) = answer.json::<ItemPage>() else { return };
        for (number, ..) in ITEMS {
            let item = item_number(number);
            let seen = found.items.iter().find(|found| found.item_number == item).cloned();
            self.record(called, Operation::ReadItem { item }, Outcome::Read(seen));
        }
    }

    async fn find_order(&mut self) {
        if self.bought.is_empty() {
            return;
        }
        let number = self.rng.pick(&self.bought).0;
        let call = self.call(Method::GET, format!("/orders/{number}"));
        let called = self.now();
        let front_end = Arc::clone(self.rng.pick(&self.public));
        let outcome =
            match front_end.send(&call, ATTEMPT).await.map(|answer| answer.json::<Order>()) {
                Ok(Ok(order)) => Outcome::Ordered { order, replayed: false },
                Ok(Err(problem)) if problem.code.status() == StatusCode::NOT_FOUND => {
                    Outcome::Refused(problem.code)
                }
                _ => Outcome::NotDone,
            };
        self.record(called, Operation::OrderLookup { number }, outcome);
    }

    /// Asks again with the same key, at any server, until the answer is certain or the patience
    /// has an end.
    async fn until_certain(&self, servers: &[Arc<Upstream>], mut call: Call) -> Answered {
        let mut maybe_done = false;
        for _ in 0..ATTEMPTS {
            call.context = RequestContext::fresh(&self.env, ATTEMPT);
            let tried = self.now();
            let server = Arc::clone(self.rng.pick(servers));
            match server.send(&call, ATTEMPT).await {
                Ok(answer) if answer.status.is_success() => return Answered::Yes(answer),
                Ok(answer) => match answer.status {
                    StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => {}
                    StatusCode::GATEWAY_TIMEOUT => maybe_done = true,
                    _ if maybe_done => {
                        return Answered::LostAndRefused(answer.problem().code, tried);
                    }
                    _ => return Answered::Refused(answer.problem().code),
                },
                Err(Failure::Refused(_) | Failure::NotSent(_)) => {}
                Err(Failure::Unanswered(_)) => maybe_done = true,
            }
            self.env.sleep(Duration::from_millis(self.rng.between(5, 300))).await;
        }
        if maybe_done { Answered::Unknown } else { Answered::NotDone }
    }

    fn call(&self, method: Method, target: String) -> Call {
        let context = RequestContext::fresh(&self.env, ATTEMPT);
        Call::new(method, target, context).with_secret(&self.secret)
    }

    fn now(&self) -> u64 {
        self.load.time.elapsed().as_nanos() as u64
    }

    /// Writes down what a change came to, and gives it.
    fn record_answer(
        &self,
        called: u64,
        operation: Operation,
        answered: Answered,
        success: impl Fn(&pygmy_client::Answer) -> Result<Outcome, Problem>,
    ) -> Outcome {
        let outcome = match answered {
            // What cannot be read may have been done.
            Answered::Yes(answer) => success(&answer).unwrap_or(Outcome::Unknown),
            Answered::Refused(code) => Outcome::Refused(code),
            Answered::LostAndRefused(code, tried) => {
                self.record(called, operation.clone(), Outcome::Unknown);
                self.record(tried, operation, Outcome::Refused(code));
                return Outcome::Unknown;
            }
            Answered::NotDone => Outcome::NotDone,
            Answered::Unknown => Outcome::Unknown,
        };
        self.record(called, operation, outcome.clone());
        outcome
    }

    fn record(&self, called_ns: u64, operation: Operation, outcome: Outcome) {
        let returned_ns = (!matches!(outcome, Outcome::Unknown)).then(|| self.now());
        let event = Event { client: self.number, called_ns, returned_ns, operation, outcome };
        note(format_args!("{event}"));
        self.load.history.lock().unwrap_or_else(PoisonError::into_inner).events.push(event);
    }
}

/// Where a read goes: past the caches, or through them.
#[derive(Debug, Clone, Copy)]
enum At {
    Replica,
    FrontEnd,
}

fn updated(answer: &pygmy_client::Answer) -> Result<Outcome, Problem> {
    answer.json().map(Outcome::Updated)
}
