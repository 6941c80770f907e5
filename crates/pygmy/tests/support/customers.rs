//! Customers who buy and read all the time, and what they must be able to rely on.
//!
//! Buyers buy item 1 under keys of their own and repeat a key until its answer is certain. Readers
//! read it from every front end's cache and from every replica. Nothing else changes the stock, so
//! a read may show no more than what was acknowledged before it began, and no less than if all that
//! was asked for before it ended were sold. When the network is whole again, [`Customers::settle`]
//! compares the store with what they were told.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use http::{Method, StatusCode};
use pygmy_client::{Answer, Call, Failure};
use pygmy_protocol::{
    RequestContext,
    item::Item,
    order::{Order, Purchase},
};
use tokio::task::JoinHandle;

use crate::harness::{PATIENCE, Store, until};

pub(crate) const ITEM: u64 = 1;
/// More than can be sold here.
const STOCK: u64 = 1_000_000;
const BUYERS: usize = 3;
/// How long a reader waits for an answer.
const READ: Duration = Duration::from_secs(1);
/// Between two requests of a customer: leaves the processor to the servers.
const PAUSE: Duration = Duration::from_millis(4);
/// Questions at a time when the store is compared.
const AT_A_TIME: usize = 8;

/// Counted where other buys have a status.
const UNANSWERED: u16 = 0;

/// Where the item is read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// The cache of a public front end, by its number.
    FrontEnd(usize),
    /// The replica of a server.
    Replica(String),
}

/// What customers asked for and were told.
#[derive(Default)]
struct Record {
    /// Orders, by their keys.
    orders: Mutex<BTreeMap<String, Order>>,
    /// Keys that were used.
    begun: AtomicU64,
    /// The stock after the last acknowledged sale.
    stock: AtomicU64,
    /// Reads that were answered, by where they were made.
    reads: Mutex<BTreeMap<Place, u64>>,
    /// Answers to buys, by their status.
    answers: Mutex<BTreeMap<u16, u64>>,
    /// When buys were acknowledged.
    times: Mutex<Vec<Instant>>,
    stop: AtomicBool,
}

pub(crate) struct Customers {
    store: Arc<Store>,
    record: Arc<Record>,
    tasks: Vec<JoinHandle<()>>,
}

impl Customers {
    /// Begins to buy and read.
    pub(crate) async fn of(store: &Arc<Store>) -> Customers {
        let update = store.call(Method::POST, &format!("/updateStock/{ITEM}/{STOCK}"));
        assert_eq!(store.through_balancer(1, &update).await.status, StatusCode::OK);
        let record = Arc::new(Record { stock: STOCK.into(), ..Record::default() });
        let mut tasks = Vec::new();
        for buyer in 0..BUYERS {
            tasks.push(tokio::spawn(buy(Arc::clone(store), Arc::clone(&record), buyer)));
        }
        for place in Place::all(store) {
            tasks.push(tokio::spawn(read(Arc::clone(store), Arc::clone(&record), place)));
        }
        let customers = Customers { store: Arc::clone(store), record, tasks };
        customers.go_on(20).await;
        for place in Place::all(store) {
            customers.read_at(&place).await;
        }
        customers
    }

    /// Waits until `more` further orders were acknowledged.
    pub(crate) async fn go_on(&self, more: usize) {
        let enough = self.orders() + more;
        until("buys go on", async || (self.orders() >= enough).then_some(())).await;
    }

    /// Waits until further reads were answered there.
    pub(crate) async fn read_at(&self, place: &Place) {
        let enough = self.reads(place) + 20;
        let goes_on = async || (self.reads(place) >= enough).then_some(());
        until(&format!("{place:?} answers"), goes_on).await;
    }

    /// Asks the replica of a server, once, to sell a copy. Gives the answer, if there is one.
    pub(crate) async fn buy_at(&self, server: &str, key: &str) -> Option<Answer> {
        self.record.begun.fetch_add(1, SeqCst);
        let purchase =
            Purchase { item_number: ITEM.try_into().unwrap(), quantity: 1, expected_cost: None };
        let call = self.store.public_call(Method::POST, "/purchases");
        let call = call.with_key(&key.parse().unwrap()).with_json(&purchase);
        self.store.send_to_replica(server, call).await.ok()
    }

    /// Buys under a key that was tried before, until that is certain.
    pub(crate) async fn insist(&self, key: &str) {
        let order = self.store.order(ITEM, key).await;
        self.record.orders.lock().unwrap().insert(key.to_owned(), order);
    }

    fn reads(&self, place: &Place) -> u64 {
        self.record.reads.lock().unwrap().get(place).copied().unwrap_or(0)
    }

    fn orders(&self) -> usize {
        self.record.orders.lock().unwrap().len()
    }

    /// When buys were acknowledged, in order.
    pub(crate) fn times(&self) -> Vec<Instant> {
        let mut times = self.record.times.lock().unwrap().clone();
        times.sort();
        times
    }

    /// Ends all customers, and checks that everything is as they were told.
    pub(crate) async fn settle(self) {
        self.record.stop.store(true, SeqCst);
        for task in self.tasks {
            task.await.unwrap();
        }
        let (store, record) = (&*self.store, &self.record);
        let orders = std::mem::take(&mut *record.orders.lock().unwrap());
        let numbers: BTreeSet<_> = orders.values().map(|order| order.order_number).collect();
        assert_eq!(numbers.len(), orders.len(), "no two keys have one order");
        store.ready().await;
        stream::iter(&orders)
            .for_each_concurrent(AT_A_TIME, |(key, order)| store.has_order(key, order))
            .await;
        // A key that comes again, now that everything is over, sells nothing.
        for (key, order) in orders.iter().step_by(orders.len().div_ceil(30)) {
            assert_eq!(&store.order(ITEM, key).await, order, "{key} again");
        }
        let statuses = store.agreed().await;
        assert!(statuses.iter().all(|s| s.state_hash == statuses[0].state_hash), "{statuses:?}");
        assert_eq!(statuses[0].orders, orders.len() as u64, "no order that nobody was told of");
        for place in Place::all(store) {
            let stock = until("every server shows the stock", async || place.read(store).await);
            assert_eq!(stock.await, STOCK - orders.len() as u64, "at {place:?}");
        }
        store.verify().await;
        let (reads, answers) = (record.reads.lock().unwrap(), record.answers.lock().unwrap());
        println!("{} orders; reads: {reads:?}; answers to buys: {answers:?}", orders.len());
    }
}

/// Buys under one key after the other.
async fn buy(store: Arc<Store>, record: Arc<Record>, buyer: usize) {
    let mut front_end = buyer % store.front_ends();
    for n in 0.. {
        if record.stop.load(SeqCst) {
            return;
        }
        let key = format!("buyer-{buyer}-{n}");
        record.begun.fetch_add(1, SeqCst);
        let order = order(&store, &record, &mut front_end, &key);
        let order = tokio::time::timeout(PATIENCE, order).await.expect("a buy ends in time");
        record.stock.fetch_min(order.stock, SeqCst);
        record.times.lock().unwrap().push(Instant::now());
        record.orders.lock().unwrap().insert(key, order);
        tokio::time::sleep(PAUSE).await;
    }
}

/// Asks until the answer is certain, and another front end where it is not.
async fn order(store: &Store, record: &Record, front_end: &mut usize, key: &str) -> Order {
    loop {
        let answer = store.buy(*front_end, ITEM, key).await;
        let status = answer.as_ref().map_or(UNANSWERED, |answer| answer.status.as_u16());
        *record.answers.lock().unwrap().entry(status).or_default() += 1;
        match status {
            201 => return answer.unwrap().json().unwrap(),
            UNANSWERED | 429 | 503 | 504 => *front_end = (*front_end + 1) % store.front_ends(),
            _ => panic!("a buy under {key} is refused: {answer:?}"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Reads at one place, and checks what is answered.
async fn read(store: Arc<Store>, record: Arc<Record>, place: Place) {
    while !record.stop.load(SeqCst) {
        let told = record.stock.load(SeqCst);
        if let Some(stock) = place.read(&store).await {
            assert!(stock <= told, "{place:?} is stale: {stock} copies, {told} had been told");
            let all = STOCK - record.begun.load(SeqCst);
            assert!(stock >= all, "{place:?} makes it up: {stock} copies, {all} at least");
            *record.reads.lock().unwrap().entry(place.clone()).or_default() += 1;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

impl Place {
    fn all(store: &Store) -> Vec<Place> {
        let front_ends = (0..store.front_ends()).map(Place::FrontEnd);
        front_ends.chain(store.replicas().into_iter().map(Place::Replica)).collect()
    }

    /// The stock that is shown there; `None` if none is.
    async fn read(&self, store: &Store) -> Option<u64> {
        let answer = self.ask(store).await.ok()?;
        match answer.status {
            StatusCode::OK => Some(answer.json::<Item>().unwrap().stock),
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => None,
            _ => panic!("a read at {self:?}: {answer:?}"),
        }
    }

    /// Asks for the item, with a little time.
    pub(crate) async fn ask(&self, store: &Store) -> Result<Answer, Failure> {
        let context = RequestContext::fresh(&store.env, READ);
        match self {
            Place::FrontEnd(number) => {
                let call = Call::new(Method::GET, format!("/lookup/{ITEM}"), context);
                store.send(*number, &call).await
            }
            Place::Replica(server) => {
                let call = Call::new(Method::GET, format!("/query/{ITEM}"), context);
                store.send_to_replica(server, call).await
            }
        }
    }
}
