//! Many items at once: adding them, importing a whole file of them.
//!
//! An import is staged, up to [`MAX_ITEMS`] items at a time, and nobody sees any of it; then it is
//! published, all at once, or discarded.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    item::{Item, ItemNumber},
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

/// Most imports that are neither published nor discarded: their items take room and numbers.
pub const MAX_UNFINISHED_IMPORTS: usize = 4;
/// Most topics of one import: publishing counts each of them, while buys wait.
pub const MAX_IMPORT_TOPICS: usize = 10_000;
/// Longest name of an import.
const MAX_ID_BYTES: usize = 64;

/// Names an import: 1 to 64 ASCII letters, digits and `-`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImportId(String);

impl ImportId {
    /// The characters.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ImportId {
    type Err = Problem;

    fn from_str(text: &str) -> Result<ImportId, Problem> {
        let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if plain && (1..=MAX_ID_BYTES).contains(&text.len()) {
            return Ok(ImportId(text.to_owned()));
        }
        let detail =
            format!("the name of an import has 1 to {MAX_ID_BYTES} ASCII letters, digits and -");
        Err(Problem::new(Code::BadValue, detail))
    }
}

impl TryFrom<String> for ImportId {
    type Error = Problem;

    fn try_from(text: String) -> Result<ImportId, Problem> {
        text.parse()
    }
}

impl From<ImportId> for String {
    fn from(id: ImportId) -> String {
        id.0
    }
}

impl fmt::Display for ImportId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The item that a problem with the code `item_exists` is about.
pub fn item_that_exists(problem: &Problem) -> Option<ItemNumber> {
    if problem.code != Code::ItemExists {
        return None;
    }
    problem.detail.strip_prefix("item ")?.split(' ').next()?.parse().ok()
}

/// The body of `POST /imports/{id}/publish`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishBody {
    /// How many items the whole import has.
    pub items: u64,
}

/// The answer to a change of an import.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportProgress {
    /// Items that are in it: staged so far, on sale after a publication, or left by a discard that
    /// has to be asked for again.
    pub items: u64,
}

/// An import that is neither published nor discarded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UnfinishedImport {
    /// Its name.
    pub id: ImportId,
    /// Items staged in it.
    pub items: u64,
    /// When it began, by the leader's clock, in milliseconds since 1970.
    pub begun_ms: u64,
    /// Whether discarding it has begun: then it can only be discarded.
    pub discarding: bool,
}

/// `GET /imports`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnfinishedImports {
    /// The oldest first; at most [`MAX_UNFINISHED_IMPORTS`].
    pub imports: Vec<UnfinishedImport>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Outcome;

    #[test]
    fn a_problem_says_which_item_exists() {
        let item = 7.try_into().unwrap();
        for import in [None, Some("a-1".parse().unwrap())] {
            let problem = Outcome::ItemExists { item, import }.problem().unwrap();
            assert_eq!(item_that_exists(&problem), Some(item));
        }
        assert_eq!(item_that_exists(&Problem::unknown_item(7)), None);
    }

    #[test]
    fn names_are_plain_and_short() {
        assert!("a-1".parse::<ImportId>().is_ok());
        for bad in ["", "a b", "a/b", "\u{e4}", &"a".repeat(65)] {
            assert_eq!(bad.parse::<ImportId>().unwrap_err().code, Code::BadValue, "{bad:?}");
        }
    }
}
