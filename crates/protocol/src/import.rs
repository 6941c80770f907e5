//! Many items at once: adding them, importing a whole file of them, reading them all.

use serde::{Deserialize, Serialize};

use crate::{
    item::Item,
    problem::{Code, Problem},
};

/// Most items of one request, and so of one command in the log: applying it takes some
/// milliseconds, for which buys wait.
pub const MAX_ITEMS: usize = 1_000;
/// Largest body of a request with items, in bytes. [`MAX_ITEMS`] of the longest titles and topics
/// have 1.1 MB, more if much of them has to be escaped.
pub const MAX_ITEMS_BODY_BYTES: usize = 4 * 1024 * 1024;

/// The body of `POST /items`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ItemsBody {
    /// 1 to [`MAX_ITEMS`] items.
    pub items: Vec<Item>,
}

impl ItemsBody {
    /// Checks the items and how many there are.
    ///
    /// # Errors
    /// `bad_value`, naming the item.
    pub fn check(&self) -> Result<(), Problem> {
        if self.items.is_empty() || self.items.len() > MAX_ITEMS {
            let detail = format!("a request has 1 to {MAX_ITEMS} items");
            return Err(Problem::new(Code::BadValue, detail));
        }
        self.items.iter().try_for_each(|item| {
            item.check().map_err(|problem| {
                let detail = format!("item {}: {}", item.item_number, problem.detail);
                Problem::new(problem.code, detail)
            })
        })
    }
}

/// The answer to `POST /items`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ItemsAdded {
    /// How many of the items are new.
    pub items: u64,
}
