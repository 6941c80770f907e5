//! Flights: one query to the catalog for all who miss the same thing at the same time.
//!
//! A read may take any answer of a query that *began after the read did*: whatever was written
//! before the read, such a query sees it. The answer of an earlier query may miss a write that
//! was acknowledged in between. So reads and flights draw tickets from one counter, which says
//! what began first, and a read that finds an earlier flight waits for it but then looks in the
//! cache: what the flight filled is still there exactly if no invalidation came in between. If
//! it is not, the read starts a query or joins one that began after it, which is final. No read
//! waits for more than two queries, and a key that cannot be cached at all costs one query at a
//! time however many ask.
//!
//! An invalidation detaches the flights of its key: they go on for those who wait, and the next
//! read starts its own query at once instead of waiting for an answer that will be refused.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use pygmy_protocol::{
    Problem,
    invalidation::CacheKey,
    item::{ItemNumber, PageRequest},
};
use tokio::sync::watch;

/// What is asked of the catalog.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Query {
    /// One item.
    Item(ItemNumber),
    /// A page of a topic.
    Page(String, PageRequest),
    /// All topics.
    Topics,
}

/// What began first: of two tickets the lower one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(u64);

/// The flights under way; `T` is what they bring.
pub(crate) struct Flights<T> {
    table: Mutex<Table<T>>,
    flights_max: usize,
}

struct Table<T> {
    next: u64,
    /// Those that may be joined.
    flights: BTreeMap<Query, Flight<T>>,
    /// How many there are, with the detached.
    under_way: usize,
}

/// A query under way, for those who wait for it.
pub(crate) struct Flight<T> {
    /// When it began.
    pub(crate) ticket: Ticket,
    landed: watch::Receiver<Option<T>>,
}

/// The same for the one who flies it. Dropped without landing, it tells those who wait.
pub(crate) struct Landing<T> {
    flights: Arc<Flights<T>>,
    query: Query,
    ticket: Ticket,
    sender: watch::Sender<Option<T>>,
}

impl<T> Flights<T> {
    /// For `flights_max` queries at a time.
    pub(crate) fn new(flights_max: usize) -> Flights<T> {
        let table = Table { next: 0, flights: BTreeMap::new(), under_way: 0 };
        Flights { table: Mutex::new(table), flights_max }
    }

    /// The ticket of a read that begins now.
    pub(crate) fn ticket(&self) -> Ticket {
        self.lock().ticket()
    }

    /// The flight for `query`; with its landing if it was not under way, and the caller is to fly
    /// it.
    ///
    /// # Errors
    /// `unavailable` if too many are under way.
    pub(crate) fn join(
        self: &Arc<Self>,
        query: &Query,
    ) -> Result<(Flight<T>, Option<Landing<T>>), Problem> {
        let mut table = self.lock();
        if let Some(flight) = table.flights.get(query) {
            return Ok((flight.clone(), None));
        }
        if table.under_way >= self.flights_max {
            return Err(Problem::unavailable("too many reads wait for the catalog (flights_max)"));
        }
        let (sender, landed) = watch::channel(None);
        let flight = Flight { ticket: table.ticket(), landed };
        table.flights.insert(query.clone(), flight.clone());
        table.under_way += 1;
        let landing = Landing {
            flights: Arc::clone(self),
            query: query.clone(),
            ticket: flight.ticket,
            sender,
        };
        Ok((flight, Some(landing)))
    }

    /// How many queries there are.
    pub(crate) fn under_way(&self) -> usize {
        self.lock().under_way
    }

    /// Lets no later read join what is under way for `keys`.
    pub(crate) fn detach(&self, keys: &[CacheKey]) {
        let mut table = self.lock();
        for key in keys {
            match key {
                CacheKey::Item(item) => drop(table.flights.remove(&Query::Item(*item))),
                CacheKey::Topics => drop(table.flights.remove(&Query::Topics)),
                CacheKey::All => table.flights.clear(),
                CacheKey::Topic(topic) => {
                    let page =
                        |limit, after| Query::Page(topic.clone(), PageRequest { limit, after });
                    let all = page(0, 0)..=page(u32::MAX, u64::MAX);
                    table.flights.extract_if(all, |_, _| true).for_each(drop);
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table<T>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Table<T> {
    fn ticket(&mut self) -> Ticket {
        self.next += 1;
        Ticket(self.next)
    }
}

impl<T: Clone> Flight<T> {
    /// What the flight brings; none if it was lost.
    pub(crate) async fn landed(mut self) -> Option<T> {
        self.landed.wait_for(Option::is_some).await.ok()?.clone()
    }
}

impl<T> Clone for Flight<T> {
    fn clone(&self) -> Flight<T> {
        Flight { ticket: self.ticket, landed: self.landed.clone() }
    }
}

impl<T> Landing<T> {
    /// Hands `outcome` to all who wait. They may look for a new flight at once, so this one has
    /// left the table before.
    pub(crate) fn land(self, outcome: T) {
        let sender = self.sender.clone();
        drop(self);
        sender.send_replace(Some(outcome));
    }
}

impl<T> Drop for Landing<T> {
    fn drop(&mut self) {
        let mut table = self.flights.lock();
        table.under_way -= 1;
        // After a detachment the place may be taken by another.
        if table.flights.get(&self.query).is_some_and(|flight| flight.ticket == self.ticket) {
            table.flights.remove(&self.query);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn number(item: u64) -> ItemNumber {
        item.try_into().unwrap()
    }

    fn flights() -> Arc<Flights<u64>> {
        Arc::new(Flights::new(2))
    }

    #[test]
    fn who_asks_meanwhile_gets_the_same_answer() {
        let flights = flights();
        let query = Query::Item(number(7));
        let (first, landing) = flights.join(&query).unwrap();
        let (second, none) = flights.join(&query).unwrap();
        assert!(none.is_none() && first.ticket == second.ticket);
        let mut waiting = Box::pin(second.landed());
        assert_eq!(waiting.as_mut().now_or_never(), None);
        landing.unwrap().land(1);
        assert_eq!(first.landed().now_or_never(), Some(Some(1)));
        assert_eq!(waiting.now_or_never(), Some(Some(1)));
        assert!(flights.join(&query).unwrap().1.is_some(), "the flight has left the table");
    }

    #[test]
    fn an_invalidation_detaches_only_flights_of_its_key() {
        let flights = Arc::new(Flights::<u64>::new(10));
        let page =
            |topic: &str, after| Query::Page(topic.to_owned(), PageRequest { limit: 5, after });
        let all = [Query::Item(number(7)), Query::Topics, page("a", 0), page("a", 9), page("b", 0)];
        let landings: Vec<_> = all.iter().map(|q| flights.join(q).unwrap().1.unwrap()).collect();
        let joinable = || {
            let table = flights.lock();
            all.iter().map(|q| table.flights.contains_key(q)).collect::<Vec<_>>()
        };
        flights.detach(&[CacheKey::Item(number(8)), CacheKey::Topic("c".into())]);
        assert_eq!(joinable(), [true; 5]);
        flights.detach(&[CacheKey::Topic("a".into())]);
        assert_eq!(joinable(), [true, true, false, false, true]);
        flights.detach(&[CacheKey::Topics, CacheKey::Item(number(7))]);
        assert_eq!(joinable(), [false, false, false, false, true]);
        flights.detach(&[CacheKey::All]);
        assert_eq!(joinable(), [false; 5]);
        drop(landings);
    }

    #[test]
    fn a_detached_flight_leaves_its_successor_alone() {
        let flights = flights();
        let query = Query::Item(number(7));
        let (old, old_landing) = flights.join(&query).unwrap();
        flights.detach(&[CacheKey::Item(number(7))]);
        let (new, new_landing) = flights.join(&query).unwrap();
        old_landing.unwrap().land(1);
        assert_eq!(old.landed().now_or_never(), Some(Some(1)));
        assert!(flights.join(&query).unwrap().1.is_none(), "the successor is still there");
        new_landing.unwrap().land(2);
        assert_eq!(new.landed().now_or_never(), Some(Some(2)));
    }

    #[test]
    fn a_lost_flight_is_said_to_be_lost() {
        let flights = flights();
        let (flight, landing) = flights.join(&Query::Topics).unwrap();
        drop(landing);
        assert_eq!(flight.landed().now_or_never(), Some(None));
        assert!(flights.join(&Query::Topics).unwrap().1.is_some());
    }

    #[test]
    fn detached_flights_count_until_they_land() {
        let flights = flights();
        let (_, first) = flights.join(&Query::Topics).unwrap();
        flights.detach(&[CacheKey::All]);
        let (_, _second) = flights.join(&Query::Topics).unwrap();
        assert!(flights.join(&Query::Item(number(1))).is_err());
        drop(first);
        assert!(flights.join(&Query::Item(number(1))).is_ok());
    }
}
