//! What the clients of a run did and what they were told.
//!
//! The driver writes one [`Event`] for all tries of a request: called at the first try, returned
//! at the last. Two things only the driver can know, and must get right:
//! - [`Outcome::NotDone`] is for requests of which *every* try was certainly not done. Any try
//!   with an unknown outcome makes the whole one [`Outcome::Unknown`].
//! - A refusal leaves nothing behind in the store, so a try that got lost may still be carried
//!   out after a later one was refused. Such a request is two events of one key: an unknown one
//!   that covers the lost tries, and the refusal, called when that try was.

use std::{collections::BTreeMap, fmt};

use pygmy_protocol::{
    Code, IdempotencyKey,
    item::{Item, ItemNumber},
    order::{Order, OrderNumber},
};

/// All that happened, in any order: the checkers go by the times.
#[derive(Debug, Clone, Default)]
pub(crate) struct History {
    pub(crate) events: Vec<Event>,
}

/// One request of one client. The times are those of the simulation, the same for all hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) client: u32,
    pub(crate) called_ns: u64,
    /// `None`: never answered.
    pub(crate) returned_ns: Option<u64>,
    pub(crate) operation: Operation,
    pub(crate) outcome: Outcome,
}

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Operation {
    Buy { item: ItemNumber, quantity: u64, expected_cost: Option<u64>, key: IdempotencyKey },
    SetStock { item: ItemNumber, stock: u64, key: IdempotencyKey },
    SetCost { item: ItemNumber, cost: u64, key: IdempotencyKey },
    ReadItem { item: ItemNumber },
    OrderLookup { number: OrderNumber },
}

/// What a client is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// To a buy, and to the look-up of an order.
    Ordered { order: Order, replayed: bool },
    /// The item after the update.
    Updated(Item),
    /// `None`: there is no such item.
    Read(Option<Item>),
    /// Judged by the store, and turned down.
    Refused(Code),
    /// May take effect at any time after the call, or never.
    Unknown,
    /// Certainly without effect, now and later.
    NotDone,
}

/// All events of one key that may have had an effect, as the one request that they are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request<'a> {
    /// Who asked; keys are not shared.
    pub(crate) client: u32,
    pub(crate) operation: &'a Operation,
    /// When the first try was made: the effect is not before.
    pub(crate) called_ns: u64,
    /// The success that was told first: the effect is not after. `None` if nobody was told.
    pub(crate) answer: Option<&'a Event>,
}

impl History {
    /// The requests that took effect or may have, by their keys.
    pub(crate) fn requests(&self) -> BTreeMap<&IdempotencyKey, Request<'_>> {
        let mut requests: BTreeMap<&IdempotencyKey, Request<'_>> = BTreeMap::new();
        for event in &self.events {
            let answer = match event.outcome {
                Outcome::Ordered { .. } | Outcome::Updated(_) => Some(event),
                Outcome::Unknown => None,
                Outcome::Read(_) | Outcome::Refused(_) | Outcome::NotDone => continue,
            };
            let Some(key) = event.operation.key() else { continue };
            let Event { client, called_ns, ref operation, .. } = *event;
            let new = Request { client, operation, called_ns, answer: None };
            let request = requests.entry(key).or_insert(new);
            request.called_ns = request.called_ns.min(called_ns);
            request.answer =
                request.answer.into_iter().chain(answer).min_by_key(|event| event.end_ns());
        }
        requests
    }
}

impl Event {
    /// When it was over; the end of time if never.
    pub(crate) fn end_ns(&self) -> u64 {
        self.returned_ns.unwrap_or(u64::MAX)
    }
}

impl Request<'_> {
    /// When its effect was certain; the end of time if it never was.
    pub(crate) fn end_ns(&self) -> u64 {
        self.answer.map_or(u64::MAX, Event::end_ns)
    }
}

impl Operation {
    /// The item that it is about.
    pub(crate) fn item(&self) -> Option<ItemNumber> {
        match self {
            Operation::Buy { item, .. }
            | Operation::SetStock { item, .. }
            | Operation::SetCost { item, .. }
            | Operation::ReadItem { item } => Some(*item),
            Operation::OrderLookup { .. } => None,
        }
    }

    /// Whether `order` is what it asked for.
    pub(crate) fn can_make(&self, order: &Order) -> bool {
        matches!(self, Operation::Buy { item, quantity, expected_cost, .. }
            if (*item, *quantity) == (order.item_number, order.quantity)
                && expected_cost.is_none_or(|cost| cost == order.cost))
    }

    /// The key, if it changes something.
    pub(crate) fn key(&self) -> Option<&IdempotencyKey> {
        match self {
            Operation::Buy { key, .. }
            | Operation::SetStock { key, .. }
            | Operation::SetCost { key, .. } => Some(key),
            Operation::ReadItem { .. } | Operation::OrderLookup { .. } => None,
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{} .. ", Millis(self.called_ns))?;
        match self.returned_ns {
            Some(returned_ns) => write!(f, "{}", Millis(returned_ns))?,
            None => f.write_str("never")?,
        }
        write!(f, "] client {}: {} -> {}", self.client, self.operation, self.outcome)
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Operation::Buy { item, quantity, expected_cost, key } => {
                write!(f, "buy {quantity} of item {item}")?;
                if let Some(cost) = expected_cost {
                    write!(f, " at {cost}")?;
                }
                write!(f, " ({key})")
            }
            Operation::SetStock { item, stock, key } => {
                write!(f, "set stock of item {item} to {stock} ({key})")
            }
            Operation::SetCost { item, cost, key } => {
                write!(f, "set cost of item {item} to {cost} ({key})")
            }
            Operation::ReadItem { item } => write!(f, "read item {item}"),
            Operation::OrderLookup { number } => write!(f, "look up order {number}"),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Ordered { order, replayed } => {
                let Order { order_number, item_number, quantity, cost, stock, .. } = order;
                let again = if *replayed { " (replayed)" } else { "" };
                write!(
                    f,
                    "order {order_number}: {quantity} of item {item_number} at {cost}, {stock} left{again}"
                )
            }
            Outcome::Updated(item) | Outcome::Read(Some(item)) => {
                write!(f, "stock {}, cost {}", item.stock, item.cost)
            }
            Outcome::Read(None) => f.write_str("no such item"),
            Outcome::Refused(code) => f.write_str(code.as_str()),
            Outcome::Unknown => f.write_str("unknown"),
            Outcome::NotDone => f.write_str("not done"),
        }
    }
}

/// Nanoseconds, shown to the last one as milliseconds.
struct Millis(u64);

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06} ms", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}

/// Short ways to write histories down.
#[cfg(test)]
pub(super) mod testing {
    use super::*;

    pub(in crate::check) const COST: u64 = 500;

    pub(in crate::check) fn number(item: u64) -> ItemNumber {
        item.try_into().unwrap()
    }

    pub(in crate::check) fn item(n: u64, stock: u64, cost: u64) -> Item {
        Item { item_number: number(n), title: "t".into(), topic: "u".into(), stock, cost }
    }

    /// Item 1 with this stock.
    pub(in crate::check) fn stocked(stock: u64) -> BTreeMap<ItemNumber, Item> {
        BTreeMap::from([(number(1), item(1, stock, COST))])
    }

    pub(in crate::check) fn event(
        (called_ns, returned_ns): (u64, u64),
        operation: Operation,
        outcome: Outcome,
    ) -> Event {
        Event { client: 1, called_ns, returned_ns: Some(returned_ns), operation, outcome }
    }

    pub(in crate::check) fn buy(quantity: u64, key: &str) -> Operation {
        let key = key.parse().unwrap();
        Operation::Buy { item: number(1), quantity, expected_cost: None, key }
    }

    pub(in crate::check) fn set_stock(stock: u64, key: &str) -> Operation {
        Operation::SetStock { item: number(1), stock, key: key.parse().unwrap() }
    }

    pub(in crate::check) fn read() -> Operation {
        Operation::ReadItem { item: number(1) }
    }

    pub(in crate::check) fn look_up(number: u64) -> Operation {
        Operation::OrderLookup { number: OrderNumber(number) }
    }

    pub(in crate::check) fn order(n: u64, quantity: u64, stock: u64) -> Order {
        let (title, order_number) = ("t".into(), OrderNumber(n));
        Order { order_number, item_number: number(1), title, quantity, cost: COST, stock }
    }

    pub(in crate::check) fn ordered(n: u64, quantity: u64, left: u64) -> Outcome {
        Outcome::Ordered { order: order(n, quantity, left), replayed: false }
    }

    pub(in crate::check) fn updated(stock: u64) -> Outcome {
        Outcome::Updated(item(1, stock, COST))
    }

    pub(in crate::check) fn seen(stock: u64) -> Outcome {
        Outcome::Read(Some(item(1, stock, COST)))
    }

    pub(in crate::check) fn history(events: impl IntoIterator<Item = Event>) -> History {
        History { events: events.into_iter().collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::{testing::*, *};

    #[test]
    fn an_event_reads_as_one_line() {
        let bought = event((1_000_001, 2_500_000), buy(2, "k"), ordered(7, 2, 3));
        let line = "[1.000001 ms .. 2.500000 ms] client 1: buy 2 of item 1 (k) -> \
                    order 7: 2 of item 1 at 500, 3 left";
        assert_eq!(bought.to_string(), line);
        let lost = Event { returned_ns: None, outcome: Outcome::Unknown, ..bought };
        assert!(lost.to_string().ends_with("never] client 1: buy 2 of item 1 (k) -> unknown"));
    }

    #[test]
    fn the_events_of_a_key_are_one_request() {
        let history = history([
            event((30, 40), buy(1, "k"), ordered(1, 1, 4)),
            event((10, 20), buy(1, "k"), Outcome::Unknown),
            event((50, 60), buy(1, "k"), ordered(1, 1, 4)),
            event((70, 80), buy(1, "refused"), Outcome::Refused(Code::OutOfStock)),
            event((70, 80), buy(1, "not-done"), Outcome::NotDone),
        ]);
        let requests = history.requests();
        assert_eq!(requests.len(), 1);
        let request = requests.values().next().unwrap();
        assert_eq!((request.called_ns, request.end_ns()), (10, 40));
    }
}
