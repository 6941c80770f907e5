use std::{sync::Mutex, time::Duration};

use proptest::prelude::*;
use pygmy_protocol::{
    env::{BoxFuture, Clock},
    item::ItemNumber,
};

use super::*;

const LEASE: Duration = Duration::from_millis(500);
const WHICH: PageRequest = PageRequest { limit: 100, after: 0 };

/// A clock that stands still until it is moved.
#[derive(Default)]
struct ManualClock(Mutex<Duration>);

impl Clock for ManualClock {
    fn now(&self) -> Instant {
        Instant::from_origin(*self.0.lock().unwrap())
    }

    fn wall_ms(&self) -> u64 {
        0
    }

    fn sleep(&self, _: Duration) -> BoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }
}

struct Fixture {
    clock: Arc<ManualClock>,
    counters: Arc<Counters>,
    cache: Cache,
}

impl Fixture {
    fn new(bytes: u64) -> Fixture {
        let clock = Arc::new(ManualClock::default());
        let env = Env { clock: clock.clone(), ..Env::production() };
        let counters = Arc::new(Counters::default());
        let cache = Cache::new(&env, bytes, &counters);
        Fixture { clock, counters, cache }
    }

    /// With a session that began at `base`.
    fn open(base: u64) -> Fixture {
        let fixture = Fixture::new(1 << 20);
        fixture.cache.open(base);
        fixture.cache.renew(fixture.clock.now() + LEASE);
        fixture
    }

    fn put(&self, key: &CacheKey, value: u64, read_at: u64) {
        self.cache.put(key.clone(), document(value), read_at);
    }

    fn get(&self, key: &CacheKey) -> Option<u64> {
        self.cache.get(key).map(|document| value(&document))
    }
}

fn document(value: u64) -> Arc<Document> {
    Document::new(value.to_string().into_bytes())
}

fn value(document: &Document) -> u64 {
    std::str::from_utf8(&document.body).unwrap().parse().unwrap()
}

fn number(item: u64) -> ItemNumber {
    item.try_into().unwrap()
}

fn item(item: u64) -> CacheKey {
    CacheKey::Item(number(item))
}

fn topic() -> CacheKey {
    CacheKey::Topic("topic".to_owned())
}

fn page(items: &[u64]) -> Page {
    Page { items: items.iter().map(|n| number(*n)).collect(), next: None }
}

#[test]
fn a_fill_that_an_invalidation_overtook_is_refused() {
    let f = Fixture::open(10);
    f.cache.erase(12, &[item(7)]);
    f.put(&item(7), 1, 11);
    assert_eq!(f.get(&item(7)), None);
    assert_eq!(f.counters.fills_refused.get(), 1);
    f.put(&item(7), 2, 12);
    assert_eq!(f.get(&item(7)), Some(2));
}

#[test]
fn an_invalidation_drops_its_key_only() {
    let f = Fixture::open(10);
    f.put(&item(7), 1, 10);
    f.put(&item(8), 2, 10);
    f.put(&CacheKey::Topics, 3, 10);
    f.cache.erase(11, &[item(7)]);
    assert_eq!((f.get(&item(7)), f.get(&item(8))), (None, Some(2)));
    assert_eq!(f.get(&CacheKey::Topics), Some(3));
}

#[test]
fn what_was_read_before_the_session_is_refused() {
    let f = Fixture::open(10);
    f.put(&item(7), 1, 9);
    assert_eq!(f.get(&item(7)), None);
    f.put(&item(7), 2, 10);
    assert_eq!(f.get(&item(7)), Some(2));
}

#[test]
fn without_a_session_nothing_is_kept_or_served() {
    let f = Fixture::new(1 << 20);
    f.cache.renew(f.clock.now() + LEASE);
    f.put(&item(7), 1, 1_000);
    assert_eq!(f.get(&item(7)), None);

    let f = Fixture::open(10);
    f.put(&item(7), 1, 10);
    f.cache.close();
    f.cache.renew(f.clock.now() + LEASE);
    assert_eq!(f.get(&item(7)), None);
    f.put(&item(7), 1, 1_000);
    assert_eq!(f.get(&item(7)), None);
}

#[test]
fn a_new_session_begins_empty_and_forgets_floors() {
    let f = Fixture::open(10);
    f.put(&item(7), 1, 10);
    f.cache.erase(50, &[item(8)]);
    f.cache.open(20);
    assert_eq!(f.get(&item(7)), None, "not served before it is renewed");
    f.cache.renew(f.clock.now() + LEASE);
    assert_eq!(f.get(&item(7)), None);
    f.put(&item(7), 2, 19);
    assert_eq!(f.get(&item(7)), None);
    f.put(&item(8), 3, 20);
    assert_eq!(f.get(&item(8)), Some(3));
}

#[test]
fn everything_is_dropped_and_refused_below_the_index_of_all() {
    let f = Fixture::open(10);
    for n in 1..=100 {
        f.put(&item(n), n, 10);
    }
    f.cache.erase(20, &[CacheKey::All]);
    for n in 1..=100 {
        assert_eq!(f.get(&item(n)), None);
        f.put(&item(n), n, 19);
        assert_eq!(f.get(&item(n)), None);
        f.put(&item(n), n, 20);
        assert_eq!(f.get(&item(n)), Some(n));
    }
}

#[test]
fn however_many_floors_there_are_none_is_forgotten() {
    let f = Fixture::open(0);
    let items = 1..=3 * (SHARDS * FLOORS) as u64;
    for n in items.clone() {
        f.cache.erase(n, &[item(n)]);
    }
    for n in items {
        f.put(&item(n), 0, n - 1);
        assert_eq!(f.get(&item(n)), None, "item {n}");
    }
}

#[test]
fn nothing_is_served_after_the_lease() {
    let f = Fixture::open(10);
    f.put(&item(7), 1, 10);
    *f.clock.0.lock().unwrap() = LEASE - Duration::from_nanos(1);
    assert_eq!(f.get(&item(7)), Some(1));
    *f.clock.0.lock().unwrap() = LEASE;
    assert_eq!(f.get(&item(7)), None);
    f.cache.renew(f.clock.now() + LEASE);
    assert_eq!(f.get(&item(7)), Some(1), "a lease that lapsed needs no drop");
}

#[test]
fn a_search_is_served_only_whole() {
    let f = Fixture::open(10);
    f.cache.put_page(topic(), WHICH, page(&[1, 2]), 10);
    f.put(&item(1), 1, 10);
    assert!(f.cache.get_page(&topic(), WHICH).is_none());
    f.put(&item(2), 2, 10);
    let WholePage { items, next } = f.cache.get_page(&topic(), WHICH).unwrap();
    assert_eq!((value(&items[0]), value(&items[1]), next), (1, 2, None));

    f.cache.erase(11, &[item(1)]);
    assert!(f.cache.get_page(&topic(), WHICH).is_none());
    f.put(&item(1), 3, 11);
    assert!(f.cache.get_page(&topic(), WHICH).is_some(), "a sale leaves the page");

    f.cache.put_page(topic(), PageRequest { limit: 1, after: 0 }, page(&[1]), 11);
    f.cache.erase(12, &[topic()]);
    assert!(f.cache.get_page(&topic(), WHICH).is_none());
    assert!(f.cache.get_page(&topic(), PageRequest { limit: 1, after: 0 }).is_none());
    f.cache.put_page(topic(), WHICH, page(&[1, 2]), 11);
    assert!(f.cache.get_page(&topic(), WHICH).is_none());
}

#[test]
fn an_operators_drop_refuses_what_was_read_before_the_last_invalidation() {
    let f = Fixture::open(10);
    f.put(&item(7), 1, 10);
    f.cache.erase(20, &[item(8)]);
    f.cache.erase_by_hand(&[item(7)]);
    assert_eq!(f.get(&item(7)), None);
    f.put(&item(7), 1, 19);
    assert_eq!(f.get(&item(7)), None);
    f.put(&item(7), 2, 20);
    assert_eq!(f.get(&item(7)), Some(2));
}

#[test]
fn a_late_drop_by_hand_lowers_no_floor() {
    let f = Fixture::open(10);
    f.cache.erase(20, &[item(7)]);
    // The operator's drop took its index before the invalidation and comes after it.
    f.cache.erase(15, &[item(7), CacheKey::All]);
    f.put(&item(7), 1, 19);
    assert_eq!(f.get(&item(7)), None);
}

#[test]
fn the_cache_stays_within_its_bytes() {
    let f = Fixture::open(0);
    for n in 1..=10_000 {
        f.cache.put(item(n), Document::new(vec![b'1'; 1_000]), 0);
        f.cache.put_page(CacheKey::Topic(n.to_string()), WHICH, page(&[n; 100]), 0);
    }
    let weight: u64 = f.cache.all_shards().iter().map(|shard| shard.entries.weight()).sum();
    assert!((1 << 19..=1 << 20).contains(&weight), "{weight}");
    assert!(f.counters.evictions.get() > 15_000);
}

/// What the property test does, in any order.
#[derive(Debug, Clone)]
enum Step {
    /// Item changes in the catalog; its invalidation waits on the stream.
    Change(u64),
    /// The topic gets other items, or these in another order.
    ChangeTopic,
    /// The next waiting invalidation arrives and is acknowledged.
    Deliver,
    /// A replica that may lag reads an item; the answer is on its way.
    BeginFill(u64, u64),
    /// The same for a whole page.
    BeginPage(u64),
    /// One of the answers on their way arrives.
    EndFill(usize),
    /// A read.
    Get(u64),
    /// A search.
    GetPage,
    /// The stream breaks and a new session opens, at the current index.
    Reopen,
    /// An operator drops an item, or everything.
    EraseByHand(Option<u64>),
    /// As the stream may do.
    InvalidateAll,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let item = 1..=3_u64;
    let step = prop_oneof![
        6 => item.clone().prop_map(Step::Change),
        2 => Just(Step::ChangeTopic),
        8 => Just(Step::Deliver),
        6 => (item.clone(), 0..4_u64).prop_map(|(item, lag)| Step::BeginFill(item, lag)),
        4 => (0..4_u64).prop_map(Step::BeginPage),
        10 => any::<usize>().prop_map(Step::EndFill),
        8 => item.clone().prop_map(Step::Get),
        6 => Just(Step::GetPage),
        1 => Just(Step::Reopen),
        1 => proptest::option::of(item).prop_map(Step::EraseByHand),
        1 => Just(Step::InvalidateAll),
    ];
    proptest::collection::vec(step, 1..200)
}

/// Places in the history: items 1 to 3, and the topic.
const TOPIC: u64 = 0;

/// The catalog and the stream, as simple as can be. The value of an item is the log index of its
/// last change; the topic lists the three items, rotated by the log index of its own.
struct Model {
    fixture: Fixture,
    index: u64,
    /// Who changed, by log index.
    history: Vec<u64>,
    waiting: std::collections::VecDeque<(u64, CacheKey)>,
    fills: Vec<(Vec<u64>, Option<u64>, u64)>,
    /// Changes up to here are acknowledged, by place.
    acknowledged: [u64; 4],
    served: usize,
}

impl Model {
    fn new() -> Model {
        Model {
            fixture: Fixture::open(0),
            index: 0,
            history: Vec::new(),
            waiting: [].into(),
            fills: Vec::new(),
            acknowledged: [0; 4],
            served: 0,
        }
    }

    fn change(&mut self, place: u64) {
        self.index += 1;
        self.history.push(place);
        let key = if place == TOPIC { topic() } else { item(place) };
        self.waiting.push_back((self.index, key));
    }

    /// The last change of `place` up to log index `at`; 0 if there was none.
    fn last_change(&self, place: u64, at: u64) -> u64 {
        let known = &self.history[..at as usize];
        known.iter().rposition(|p| *p == place).map_or(0, |i| i as u64 + 1)
    }

    fn listed(version: u64) -> [u64; 3] {
        [0, 1, 2].map(|i| 1 + (version + i) % 3)
    }

    fn deliver(&mut self) {
        let Some((index, key)) = self.waiting.pop_front() else { return };
        self.fixture.cache.erase(index, std::slice::from_ref(&key));
        match self.history[index as usize - 1] {
            _ if key == CacheKey::All => self.acknowledged = [index; 4],
            place => self.acknowledged[place as usize] = index,
        }
    }

    fn begin(&mut self, items: Vec<u64>, lag: u64, paged: bool) {
        let read_at = self.index.saturating_sub(lag);
        let page = paged.then(|| self.last_change(TOPIC, read_at));
        self.fills.push((items, page, read_at));
    }

    fn end(&mut self, which: usize) {
        if self.fills.is_empty() {
            return;
        }
        let (items, paged, read_at) = self.fills.swap_remove(which % self.fills.len());
        for place in items {
            self.fixture.put(&item(place), self.last_change(place, read_at), read_at);
        }
        if let Some(version) = paged {
            let page = page(&Model::listed(version));
            self.fixture.cache.put_page(topic(), WHICH, page, read_at);
        }
    }

    fn reopen(&mut self) {
        self.fixture.cache.close();
        self.waiting.clear();
        self.fixture.cache.open(self.index);
        self.fixture.cache.renew(self.fixture.clock.now() + LEASE);
        self.acknowledged = [self.index; 4];
    }

    /// A value that the cache gave must be at least as new as the last acknowledged change of its
    /// key, and one that the item really had.
    fn check(&mut self, place: u64, found: u64) {
        self.served += 1;
        let newest_acknowledged = self.last_change(place, self.acknowledged[place as usize]);
        assert!(found >= newest_acknowledged, "{place}: {found} < {newest_acknowledged}");
        assert_eq!(found, self.last_change(place, found), "{place}");
    }

    fn get_page(&mut self) {
        let Some(page) = self.fixture.cache.get_page(&topic(), WHICH) else { return };
        // The order tells the version modulo 3; the list must be that of the acknowledged
        // version or of one not yet acknowledged.
        let acknowledged = self.last_change(TOPIC, self.acknowledged[TOPIC as usize]);
        let versions: Vec<u64> = (acknowledged..=self.index)
            .filter(|v| *v == acknowledged || self.history[*v as usize - 1] == TOPIC)
            .collect();
        let values: Vec<u64> = page.items.iter().map(|document| value(document)).collect();
        let fits = versions.iter().any(|version| {
            Model::listed(*version).iter().zip(&values).all(|(place, value)| {
                *value >= self.last_change(*place, self.acknowledged[*place as usize])
                    && *value == self.last_change(*place, *value)
            })
        });
        assert!(fits, "{values:?} fits none of {versions:?}");
        self.served += 1;
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Change(place) => self.change(place),
            Step::ChangeTopic => self.change(TOPIC),
            Step::Deliver => self.deliver(),
            Step::BeginFill(place, lag) => self.begin(vec![place], lag, false),
            Step::BeginPage(lag) => self.begin(vec![1, 2, 3], lag, true),
            Step::EndFill(which) => self.end(which),
            Step::Get(place) => {
                if let Some(found) = self.fixture.get(&item(place)) {
                    self.check(place, found);
                }
            }
            Step::GetPage => self.get_page(),
            Step::Reopen => self.reopen(),
            Step::EraseByHand(which) => {
                self.fixture.cache.erase_by_hand(&[which.map_or(CacheKey::All, item)]);
            }
            Step::InvalidateAll => {
                self.change(TOPIC);
                if let Some((_, key)) = self.waiting.back_mut() {
                    *key = CacheKey::All;
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn what_was_acknowledged_is_never_served_again(steps in steps()) {
        let mut model = Model::new();
        steps.into_iter().for_each(|step| model.run(step));
    }
}

/// Guards the property above against proving something about a cache that never answers.
#[test]
fn the_model_does_get_answers() {
    let mut model = Model::new();
    for _ in 0..10 {
        model.run(Step::BeginPage(0));
        model.run(Step::EndFill(0));
        model.run(Step::GetPage);
        model.run(Step::Get(1));
        model.run(Step::Change(1));
        model.run(Step::Deliver);
    }
    assert_eq!(model.served, 20);
}
