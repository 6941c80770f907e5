//! Commands: what changes the catalog, as it stands in the Raft log.
//!
//! One enum, so that what comes later (orders of several items, reservations, cancellations)
//! joins it as a variant. Applying a command uses nothing but the command, the state, and the
//! time of its batch: it gives the same outcome on every replica.

use serde::{Deserialize, Serialize};

use crate::{
    import::{ImportId, MAX_IMPORT_TOPICS, MAX_ITEMS, MAX_UNFINISHED_IMPORTS},
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
    /// Stage items for an import, which begins with its first ones; all or none, and no number
    /// that exists. Nobody sees them before [`Command::PublishImport`].
    StageItems {
        /// Which import.
        import: ImportId,
        /// The items.
        items: Vec<Item>,
    },
    /// Put everything that an import has staged on sale.
    PublishImport {
        /// Which import.
        import: ImportId,
        /// How many items it must have.
        items: u64,
    },
    /// Drop what an import has staged, so much of it at a time as buys can wait for. Nothing can
    /// be added to it from now on.
    DiscardImport {
        /// Which import.
        import: ImportId,
    },
    /// Register a front-end process: it may be given leases on its cache from now on. The leader's
    /// own command, which no key remembers.
    JoinHolder {
        /// The process.
        nonce: u128,
        /// The front end's name in the configuration.
        name: String,
    },
    /// Take a front-end process out whose lease has run out by the clock of the leader of `term`.
    /// Without effect in an entry of another term: what that leader saw is no longer known then.
    RemoveHolder {
        /// The process.
        nonce: u128,
        /// The term of the leader that says so.
        term: u64,
    },
}

impl Command {
    /// How much work it is, in requests of the usual kind: the bound of what goes together in one
    /// log entry and in one transaction.
    pub fn weight(&self) -> usize {
        match self {
            Command::AddItems { items } | Command::StageItems { items, .. } => items.len().max(1),
            Command::DiscardImport { .. } => MAX_ITEMS,
            Command::Buy { .. }
            | Command::ReduceStock { .. }
            | Command::SetStock { .. }
            | Command::SetCost { .. }
            | Command::PublishImport { .. }
            | Command::JoinHolder { .. }
            | Command::RemoveHolder { .. } => 1,
        }
    }
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
    /// Items were staged, published or discarded.
    Imported {
        /// How many items the import has now; after a discard, how many are left to be dropped.
        items: u64,
        /// As in [`Outcome::Ordered`].
        replayed: bool,
    },
    /// An item with this number exists, or is in an import that is not published yet.
    ItemExists {
        /// The number.
        item: ItemNumber,
        /// The import that holds it.
        import: Option<ImportId>,
    },
    /// The import cannot be done, or not now.
    ImportRefused(ImportRefusal),
    /// A front-end process is registered now, or is not: too many are, or it was taken out.
    Holder {
        /// Whether it is.
        registered: bool,
    },
}

/// Why an import is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImportRefusal {
    /// Too many others are neither published nor discarded.
    TooMany,
    /// It is published, discarded or being discarded, or there is none of this name.
    NotOpen,
    /// It has more or fewer items than it should have.
    Incomplete {
        /// How many it has.
        items: u64,
    },
    /// Its items have too many topics.
    TooManyTopics,
}

impl Outcome {
    /// The problem that a refusal is on the wire; `None` for a success.
    pub fn problem(&self) -> Option<Problem> {
        use crate::problem::Code;
        match self {
            Outcome::Ordered { .. }
            | Outcome::Updated { .. }
            | Outcome::Added { .. }
            | Outcome::Imported { .. }
            | Outcome::Holder { .. } => None,
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
            Outcome::ItemExists { item, import: None } => {
                Some(Problem::new(Code::ItemExists, format!("item {item} exists already")))
            }
            Outcome::ItemExists { item, import: Some(import) } => Some(Problem::new(
                Code::ItemExists,
                format!("item {item} is in the import {import}, which is not finished"),
            )),
            Outcome::ImportRefused(refusal) => {
                Some(Problem::new(Code::ImportRefused, refusal.to_string()))
            }
        }
    }
}

impl std::fmt::Display for ImportRefusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ImportRefusal::TooMany => write!(
                f,
                "{MAX_UNFINISHED_IMPORTS} imports are not finished: publish or discard one first"
            ),
            ImportRefusal::NotOpen => {
                f.write_str("the import is finished, is being discarded, or never began")
            }
            ImportRefusal::Incomplete { items } => write!(f, "the import has {items} items"),
            ImportRefusal::TooManyTopics => {
                write!(f, "an import may have {MAX_IMPORT_TOPICS} topics")
            }
        }
    }
}
