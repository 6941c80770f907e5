//! The judges of a run.
//!
//! Clients on simulated hosts buy, update and look up; what they asked and were told is a
//! [`history::History`]. When the run is over and the cluster healed, the driver reads all orders
//! and items ([`orders::Found`]) and asks:
//! - [`linearizable::check`]: is there one order of the operations, in keeping with the times,
//!   in which each answer is right? This is where stale reads and double sales show.
//! - [`orders::check`]: are all acknowledged orders there, each once, none that nobody asked
//!   for, and do the copies add up?
//! - [`replicas::Replicas`] watches all along: do the replicas hold the same at each index?
//!
//! The judges know the rules of the store, nothing of how it works, and share no code with it.
//! They see what was observed: an error that no client met leaves no trace here, but for the
//! final reads. So a driver ends its run with a read of every item, in the history as well. By
//! then no request may be under way: a lost buy that is made after its order was looked for in
//! vain looks like copies that vanish.

pub(crate) mod history;
pub(crate) mod linearizable;
pub(crate) mod orders;
pub(crate) mod replicas;

use pygmy_protocol::{
    IdempotencyKey,
    item::ItemNumber,
    order::{Order, OrderNumber},
};

use history::Event;
use replicas::Observation;

/// A promise that the store has broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Violation {
    #[error("the answers about item {item} have no explanation: {why}")]
    NotLinearizable { item: ItemNumber, why: String },
    /// Not a fault of the store: the run has too many unknown outcomes on one item.
    #[error(
        "after {configurations} configurations it is open whether the answers about item {item} \
         have an explanation; use shorter runs or fewer kinds of requests that may get lost"
    )]
    Undecided { item: ItemNumber, configurations: usize },
    #[error("acknowledged, but not there at the end:\n  {event}")]
    OrderLost { event: Box<Event> },
    #[error("at the end the order is {found:?}, and yet\n  {event}")]
    OrderDiffers { event: Box<Event>, found: Box<Order> },
    #[error("one key has two answers:\n  {first}\n  {second}")]
    TwoAnswers { first: Box<Event>, second: Box<Event> },
    #[error("order {number} was the answer to two keys, {first} and {second}")]
    TwoKeys { number: OrderNumber, first: IdempotencyKey, second: IdempotencyKey },
    #[error("nobody asked for the order {order:?}")]
    NotAsked { order: Box<Order> },
    #[error("the orders found at the end lack number {number}")]
    NumberMissing { number: OrderNumber },
    #[error(
        "made after the other was acknowledged, yet with a lower number:\n  {first}\n  {second}"
    )]
    NumbersOutOfOrder { first: Box<Event>, second: Box<Event> },
    #[error("order {number} was there before, and yet\n  {event}")]
    OrderHidden { number: OrderNumber, event: Box<Event> },
    #[error("found before anybody can have made it:\n  {event}")]
    OrderFromTheFuture { event: Box<Event> },
    #[error(
        "the copies of item {item} do not add up: {expected} or what an update set should be the \
         stock before {at}, it is {actual}"
    )]
    StockDoesNotAddUp { item: ItemNumber, at: String, expected: u64, actual: u64 },
    #[error("a stock out of range, {stock}, in {at}")]
    StockOutOfRange { stock: u64, at: String },
    #[error("at the end, item {item} is missing or has another title or topic, or it was added")]
    ItemDiffers { item: ItemNumber },
    #[error("two states at one index: {first:?}, {new:?}")]
    ReplicasDiffer { first: Observation, new: Observation },
    #[error("had applied index {before}, then said {new:?}")]
    ReplicaWentBack { new: Observation, before: u64 },
}
