//! Commands: what changes the catalog, as it stands in the Raft log.
//!
//! One enum, so that what comes later (orders of several items, reservations, cancellations)
//! joins it as a variant. Applying a command uses nothing but the command, the state, and the
//! time of its batch: it gives the same outcome on every replica.

use serde::{Deserialize, Serialize};

use crate::{
    item::{Item, ItemNumber},
    key::IdempotencyKey,
    order::Order,
    problem::Problem,
};

/// One change, at most once per key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Names the request: the same key again gives the same outcome and no second effect.
    pub key: IdempotencyKey,
    /// What to change.
    pub command: Command,
}

/// A change of the catalog.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Sell `quantity` copies, if that many are left and the price is the expected one.
    Buy {
        /// What to sell.
        item: ItemNumber,
        /// Copies.
        quantity: u64,
        /// Refuse if one copy costs something else.
        expected_cost: Option<u64>,
    },
    /// Take one copy out of the stock without selling it (`/reduceStock` of the reference
    /// design).
    ReduceStock {
        /// Of which item.
        item: ItemNumber,
    },
    /// Set the stock. Recorded as the difference that it makes when applied.
    SetStock {
        /// Of which item.
        item: ItemNumber,
        /// Copies.
        stock: u64,
    },
    /// Set the price of one copy.
    SetCost {
        /// Of which item.
        item: ItemNumber,
        /// In the minor unit of the store's currency.
        cost: u64,
    },
    /// Add items, all or none; a number that exists already is left as it is.
    AddItems {
        /// The items.
        items: Vec<Item>,
    },
}

/// What a request came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// A buy was made.
    Ordered {
        /// The order.
        order: Order,
        /// Whether this is the answer to an earlier request with the same key.
        replayed: bool,
    },
    /// An item was changed; this is it after the change.
    Updated {
        /// The item after the change.
        item: Item,
        /// As in [`Outcome::Ordered`].
        replayed: bool,
    },
    /// Items were added.
    Added {
        /// How many are new.
        items: u64,
        /// As in [`Outcome::Ordered`].
        replayed: bool,
    },
    /// There is no such item.
    UnknownItem {
        /// The number that was asked for.
        item: ItemNumber,
    },
    /// Fewer copies left than asked for.
    OutOfStock,
    /// The price is not the expected one.
    CostChanged {
        /// The price of one copy now.
        cost: u64,
    },
    /// The key belongs to another request.
    KeyReused,
}

impl Outcome {
    /// The problem that a refusal is on the wire; `None` for a success.
    pub fn problem(&self) -> Option<Problem> {
        use crate::problem::Code;
        match self {
            Outcome::Ordered { .. } | Outcome::Updated { .. } | Outcome::Added { .. } => None,
            Outcome::UnknownItem { item } => Some(Problem::unknown_item(item)),
            Outcome::OutOfStock => Some(Problem::out_of_stock()),
            Outcome::CostChanged { cost } => {
                let detail = format!("one copy costs {cost} now");
                Some(Problem::new(Code::CostChanged, detail))
            }
            Outcome::KeyReused => Some(Problem::new(
                Code::IdempotencyKeyReused,
                "this Idempotency-Key was used for a different request; use a fresh one",
            )),
        }
    }
}
