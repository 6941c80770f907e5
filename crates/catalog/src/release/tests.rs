use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use pygmy_protocol::{
    env::{BoxFuture, Clock},
    invalidation::{CacheKey, FromCatalog, nonce},
    item::{Item, ItemNumber},
};

use super::{leading::LEASES_UNTIL_LAPSED, *};
use crate::raft::log_id;

const LIMIT: Duration = Duration::from_secs(5);
const NO_TIME: Duration = Duration::ZERO;
const LEASE_MS: u64 = 500;
/// By the leader's clock: one per cent longer.
const LEASE_HERE_MS: u64 = 505;

/// Stands still unless it is told. Whoever sleeps is not woken.
#[derive(Default)]
struct Stopped(AtomicU64);

impl Clock for Stopped {
    fn now(&self) -> Instant {
        Instant::from_origin(Duration::from_millis(1_000 + self.0.load(SeqCst)))
    }

    fn wall_ms(&self) -> u64 {
        0
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        match duration.is_zero() {
            true => Box::pin(std::future::ready(())),
            false => Box::pin(std::future::pending()),
        }
    }
}

struct Store {
    gate: Gate,
    clock: Arc<Stopped>,
}

impl Store {
    /// A replica that knows of front ends 1 and 2, and does not lead.
    fn new() -> Store {
        Store::that_waits(true)
    }

    fn that_waits(waits: bool) -> Store {
        let clock = Arc::new(Stopped::default());
        let env = Env { clock: Arc::clone(&clock) as Arc<dyn Clock>, ..Env::production() };
        let gate = Gate::new(&env, Duration::from_millis(LEASE_MS), waits);
        let name = |nonce: u128| (nonce, format!("frontend-{nonce}"));
        gate.holders(Arc::new([1, 2].map(name).into()));
        Store { gate, clock }
    }

    /// The leader of term 1 that has applied the first entry of its term at index 1, and waits
    /// no more for whoever was there before.
    fn leading() -> Store {
        let store = Store::new();
        store.gate.lead(1, true);
        store.gate.applied(log_id(1, 1), Changed::default());
        store.pass(LEASE_HERE_MS);
        store
    }

    fn pass(&self, ms: u64) {
        self.clock.0.fetch_add(ms, SeqCst);
        self.gate.settle(self.gate.lock());
    }

    fn sell(&self, index: u64) {
        self.gate.applied(log_id(1, index), item(7).into());
    }

    /// A front end with a session that has acknowledged its start.
    fn session(&self, nonce: u128) -> Opened {
        let opened = self.gate.open_session(nonce).unwrap();
        self.gate.acknowledged(opened.session, opened.base);
        opened
    }

    /// The same with a lease from now on.
    fn lease(&self, nonce: u128) -> Opened {
        let mut opened = self.session(nonce);
        self.ask(&opened, 1);
        assert_eq!(opened.outgoing.try_recv(), Ok(FromCatalog::Granted { number: 1 }));
        opened
    }

    fn ask(&self, opened: &Opened, number: u64) {
        self.gate.renew(opened.session, number, true);
        self.gate.confirm(opened.session, number, opened.term);
    }

    fn released(&self) -> u64 {
        self.gate.progress().released
    }
}

/// The releases that a front end is told of.
fn heard(opened: &mut Opened) -> Vec<u64> {
    let said = std::iter::from_fn(|| opened.outgoing.try_recv().ok());
    let released = |message| match message {
        FromCatalog::Released { index } => Some(index),
        _ => None,
    };
    said.filter_map(released).collect()
}

fn item(number: u64) -> Vec<CacheKey> {
    vec![CacheKey::Item(ItemNumber::try_from(number).unwrap())]
}

#[tokio::test]
async fn without_leases_what_is_applied_is_released() {
    let store = Store::leading();
    let mut opened = store.session(1);
    store.sell(2);
    store.gate.await_released(1, 2, LIMIT).await.unwrap();
    let message = opened.outgoing.try_recv().unwrap();
    assert_eq!(
        message,
        FromCatalog::Invalidate { index: 2, keys: item(7), items: Vec::new() },
        "it hears of it"
    );
}

#[tokio::test]
async fn a_change_waits_for_every_lease() {
    let store = Store::leading();
    let mut leases = [store.lease(1), store.lease(2)];
    store.sell(2);
    for lease in &mut leases {
        let message = lease.outgoing.try_recv().unwrap();
        assert_eq!(message, FromCatalog::Invalidate { index: 2, keys: item(7), items: Vec::new() });
    }
    store.gate.acknowledged(leases[0].session, 2);
    assert_eq!(store.gate.await_released(1, 2, NO_TIME).await, Err(NotReleased::TimedOut));
    store.gate.acknowledged(leases[1].session, 2);
    store.gate.await_released(1, 2, LIMIT).await.unwrap();
}

#[test]
fn a_lease_counts_from_its_request_and_runs_out() {
    let store = Store::leading();
    let opened = store.session(1);
    store.gate.renew(opened.session, 1, true);
    store.pass(100);
    store.gate.confirm(opened.session, 1, 1);
    store.sell(2);
    store.pass(LEASE_HERE_MS - 101);
    assert_eq!(store.released(), 1);
    store.pass(1);
    assert_eq!(store.released(), 2);
}

#[test]
fn a_broken_stream_leaves_the_lease_and_an_ended_one_does_not() {
    for (ends_itself, released) in [(false, 1), (true, 2)] {
        let store = Store::leading();
        let opened = store.lease(1);
        match ends_itself {
            true => store.gate.forget_session(opened.session),
            false => store.gate.close_session(opened.session),
        }
        store.sell(2);
        assert_eq!(store.released(), released);
        assert!(store.gate.front_ends().is_empty());
        store.pass(LEASE_HERE_MS);
        assert_eq!(store.released(), 2);
    }
}

#[test]
fn a_new_session_ends_the_lease_of_the_old_one_when_its_start_is_acknowledged() {
    let store = Store::leading();
    let old = store.lease(1);
    store.sell(2);
    let new = store.gate.open_session(1).unwrap();
    assert_eq!((store.released(), new.base), (1, 2), "it may still have the old value");
    store.gate.acknowledged(old.session, 2);
    assert_eq!(store.released(), 1, "a late word about the old session");
    store.gate.acknowledged(new.session, 2);
    store.sell(3);
    assert_eq!(store.released(), 3);
}

#[test]
fn a_lease_is_granted_only_to_who_has_acknowledged_what_was_sent_and_released() {
    let store = Store::leading();
    let mut opened = store.session(1);
    store.sell(2);
    store.ask(&opened, 1);
    assert!(matches!(opened.outgoing.try_recv(), Ok(FromCatalog::Invalidate { .. })));
    assert!(opened.outgoing.try_recv().is_err(), "2 is released, and not acknowledged");
    store.sell(3);
    assert_eq!(store.released(), 2, "one who is about to get a lease is waited for");
    store.gate.acknowledged(opened.session, 2);
    assert!(matches!(opened.outgoing.try_recv(), Ok(FromCatalog::Invalidate { .. })));
    assert_eq!(opened.outgoing.try_recv(), Ok(FromCatalog::Granted { number: 1 }));
    store.gate.acknowledged(opened.session, 3);
    // Under the lease 4 is held back, and the next lease waits for what was sent by then only.
    store.sell(4);
    store.gate.renew(opened.session, 2, true);
    store.sell(5);
    store.gate.acknowledged(opened.session, 4);
    store.gate.confirm(opened.session, 2, 1);
    let said: Vec<_> = std::iter::from_fn(|| opened.outgoing.try_recv().ok()).collect();
    assert_eq!(said.last(), Some(&FromCatalog::Granted { number: 2 }));
    assert_eq!(store.released(), 4);
}

#[test]
fn a_confirmation_is_for_its_term_and_its_request() {
    let store = Store::leading();
    let mut opened = store.session(1);
    store.gate.renew(opened.session, 2, true);
    store.gate.confirm(opened.session, 2, 3);
    store.gate.confirm(opened.session, 1, 1);
    store.gate.confirm(opened.session + 1, 2, 1);
    assert!(opened.outgoing.try_recv().is_err());
    store.gate.confirm(opened.session, 2, 1);
    assert!(opened.outgoing.try_recv().is_ok());
}

#[test]
fn a_new_leader_waits_for_everybody_who_is_registered() {
    let store = Store::new();
    store.gate.lead(1, true);
    store.pass(100);
    store.gate.applied(log_id(1, 1), Changed::default());
    store.sell(2);
    assert_eq!(store.released(), 0);
    store.session(1);
    assert_eq!(store.released(), 0, "not of the other one");
    store.pass(LEASE_HERE_MS - 101);
    assert_eq!(store.released(), 0);
    store.pass(1);
    assert_eq!(store.released(), 2);

    let store = Store::new();
    store.gate.lead(1, true);
    store.gate.applied(log_id(1, 1), Changed::default());
    store.session(1);
    store.session(2);
    assert_eq!(store.released(), 1, "all have dropped what they had");
}

/// The nonce of a front end whose leases last six times as long as this leader's configuration says.
fn patient() -> u128 {
    nonce(7, Duration::from_millis(6 * LEASE_MS))
}

#[test]
fn a_lease_lasts_as_long_as_its_holder_says() {
    let store = Store::leading();
    store.gate.holders(Arc::new([(patient(), "frontend-7".to_owned())].into()));
    store.lease(patient());
    store.sell(2);
    store.pass(6 * LEASE_HERE_MS - 1);
    assert_eq!(store.released(), 1);
    store.pass(1);
    assert_eq!(store.released(), 2);
}

#[test]
fn a_new_leader_waits_as_long_as_a_lease_may_last() {
    let store = Store::new();
    store.gate.holders(Arc::new([(patient(), "frontend-7".to_owned())].into()));
    store.gate.lead(1, true);
    store.gate.applied(log_id(1, 1), Changed::default());
    store.pass(6 * LEASE_HERE_MS - 1);
    assert_eq!(store.released(), 0);
    store.pass(1);
    assert_eq!(store.released(), 1);
}

#[test]
fn the_end_of_a_session_that_never_started_ends_no_lease() {
    let store = Store::leading();
    let used = store.lease(1);
    store.sell(2);
    assert_eq!(store.released(), 1);
    // A hello that the front end had given up long ago, and the end of its stream.
    let late = store.gate.open_session(1).unwrap();
    store.gate.forget_session(late.session);
    store.gate.close_session(used.session);
    assert_eq!(store.released(), 1, "it serves what it has until it hears that");
    store.pass(LEASE_HERE_MS);
    assert_eq!(store.released(), 2);
}

#[test]
fn who_is_taken_out_gets_no_session_before_that_is_applied() {
    let store = Store::leading();
    let opened = store.lease(1);
    store.gate.close_session(opened.session);
    assert_eq!(store.gate.lapsed(), None);
    store.pass(LEASE_HERE_MS * (1 + u64::from(LEASES_UNTIL_LAPSED)));
    assert_eq!(store.gate.lapsed(), Some((1, vec![1, 2])));
    assert_eq!(store.gate.open_session(1).err(), Some(NoSession::BeingRemoved));
    assert_eq!(store.gate.lapsed(), None, "once");
    store.gate.holders(Arc::new([(2, "frontend-2".to_owned())].into()));
    assert_eq!(store.gate.open_session(1).err(), Some(NoSession::NotRegistered));
    assert!(!store.gate.is_registered(1));
}

#[test]
fn who_was_sent_items_is_told_when_they_are_released() {
    let store = Store::leading();
    let mut leases = [store.lease(1), store.lease(2)];
    let sold = |index| {
        let became = Item {
            item_number: 7.try_into().unwrap(),
            title: "t".to_owned(),
            topic: "a".to_owned(),
            stock: index,
            cost: 1,
        };
        store.gate.applied(log_id(1, index), Changed { keys: item(7), items: vec![became] });
    };
    sold(2);
    sold(3);
    let [first, second] = &mut leases;
    store.gate.acknowledged(first.session, 3);
    assert_eq!(heard(first), [0; 0], "the other one has not dropped it");
    store.gate.acknowledged(second.session, 3);
    assert_eq!((heard(first), heard(second)), (vec![3], vec![3]));
    store.gate.applied(log_id(1, 4), Changed::default());
    assert_eq!(heard(first), [0; 0], "nobody waits for that");
}

#[test]
fn eventually_nobody_is_waited_for() {
    let store = Store::that_waits(false);
    store.gate.lead(1, true);
    store.gate.applied(log_id(1, 1), Changed::default());
    store.sell(2);
    assert_eq!(store.released(), 2);
    let mut opened = store.lease(1);
    store.sell(3);
    assert_eq!(store.released(), 3);
    assert!(matches!(opened.outgoing.try_recv(), Ok(FromCatalog::Invalidate { .. })));
}

#[tokio::test]
async fn an_entry_of_a_later_term_ends_the_leadership() {
    let store = Store::leading();
    store.lease(1);
    store.gate.applied(log_id(2, 2), item(7).into());
    assert_eq!(store.gate.progress().leads, None);
    assert!(store.released() < 2, "only the new leader knows");
    store.gate.lead(1, true);
    assert_eq!(store.gate.progress().leads, None, "Raft's word was late");
}

#[test]
fn a_leader_without_a_majority_opens_no_session() {
    let store = Store::leading();
    store.gate.lead(1, false);
    assert_eq!(store.gate.open_session(1).err(), Some(NoSession::NotLeader));
}

#[test]
fn no_session_before_an_entry_of_the_own_term() {
    let store = Store::new();
    store.gate.applied(log_id(1, 5), Changed::default());
    store.gate.lead(2, true);
    assert_eq!(store.gate.open_session(1).err(), Some(NoSession::NotLeader));
    store.gate.applied(log_id(2, 6), Changed::default());
    assert_eq!(store.gate.open_session(1).unwrap().base, 6);
}

#[tokio::test]
async fn losing_the_leadership_ends_sessions_and_waits() {
    let store = Store::leading();
    let mut opened = store.lease(1);
    store.sell(2);
    store.gate.follow();
    let waited = store.gate.await_released(1, 2, LIMIT).await;
    assert_eq!(waited, Err(NotReleased::LeaderChanged));
    assert!(opened.outgoing.recv().await.is_some(), "what was sent is still delivered");
    assert!(opened.outgoing.recv().await.is_none());
}
