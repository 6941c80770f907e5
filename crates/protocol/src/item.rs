//! Items and the numbers that describe them.

use std::{fmt, num::NonZeroU64, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::problem::{Code, Problem};

/// The largest number on the wire: what every JSON reader can hold exactly, 2^53 - 1.
pub const MAX_NUMBER: u64 = (1 << 53) - 1;
/// Longest title or topic, in bytes of UTF-8.
pub const MAX_TEXT_BYTES: usize = 500;

/// The number of an item, 1 to [`MAX_NUMBER`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct ItemNumber(NonZeroU64);

impl ItemNumber {
    /// The number as such.
    pub fn get(self) -> u64 {
        self.0.get()
    }
}

impl TryFrom<u64> for ItemNumber {
    type Error = Problem;

    fn try_from(number: u64) -> Result<ItemNumber, Problem> {
        match NonZeroU64::new(number) {
            Some(n) if number <= MAX_NUMBER => Ok(ItemNumber(n)),
            _ => Err(bad_item_number()),
        }
    }
}

impl From<ItemNumber> for u64 {
    fn from(item: ItemNumber) -> u64 {
        item.get()
    }
}

impl FromStr for ItemNumber {
    type Err = Problem;

    /// Takes decimal digits only: no sign, no space.
    fn from_str(text: &str) -> Result<ItemNumber, Problem> {
        parse_whole_number(text).ok_or_else(bad_item_number)?.try_into()
    }
}

impl fmt::Display for ItemNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

fn bad_item_number() -> Problem {
    Problem::new(
        Code::BadItemNumber,
        format!("an item number is a whole number from 1 to {MAX_NUMBER}"),
    )
}

/// Decimal digits without sign or space, if they fit; leading zeros are allowed.
pub fn parse_whole_number(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// Parses a stock or cost: 0 to [`MAX_NUMBER`].
///
/// # Errors
/// `bad_value`.
pub fn parse_value(text: &str) -> Result<u64, Problem> {
    parse_whole_number(text).filter(|v| *v <= MAX_NUMBER).ok_or_else(|| {
        Problem::new(Code::BadValue, format!("a value is a whole number from 0 to {MAX_NUMBER}"))
    })
}

/// An item of the catalog. Fields that a newer server adds are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Item {
    /// Its number.
    pub item_number: ItemNumber,
    /// 1 to [`MAX_TEXT_BYTES`] bytes.
    pub title: String,
    /// 1 to [`MAX_TEXT_BYTES`] bytes; matches exactly.
    pub topic: String,
    /// Copies that can be sold, 0 to [`MAX_NUMBER`].
    pub stock: u64,
    /// Price of one copy in the minor unit of the store's currency, 0 to [`MAX_NUMBER`].
    pub cost: u64,
}

impl Item {
    /// Checks the limits that the type does not hold by itself.
    ///
    /// # Errors
    /// `bad_value`, naming the field.
    pub fn check(&self) -> Result<(), Problem> {
        for (name, text) in [("title", &self.title), ("topic", &self.topic)] {
            if text.is_empty() || text.len() > MAX_TEXT_BYTES {
                let detail = format!("{name} must have 1 to {MAX_TEXT_BYTES} bytes");
                return Err(Problem::new(Code::BadValue, detail));
            }
        }
        for (name, value) in [("stock", self.stock), ("cost", self.cost)] {
            if value > MAX_NUMBER {
                let detail = format!("{name} must be a whole number from 0 to {MAX_NUMBER}");
                return Err(Problem::new(Code::BadValue, detail));
            }
        }
        Ok(())
    }
}

/// One page of a topic: `GET /query?topic=` and `GET /search/{topic}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ItemPage {
    /// The items in the order of their numbers; those of later imports follow.
    pub items: Vec<Item>,
    /// The cursor of the next page; none on the last.
    pub next: Option<String>,
}

/// A topic and how many items it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicCount {
    /// The topic.
    pub topic: String,
    /// Items in it.
    pub items: u64,
}

/// `GET /topics`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topics {
    /// All topics, sorted.
    pub topics: Vec<TopicCount>,
}

/// Which page of a topic is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageRequest {
    /// Items at most, 1 to [`PageRequest::MAX_LIMIT`].
    pub limit: u32,
    /// Only items with higher numbers; 0 for the first page.
    pub after: u64,
}

impl PageRequest {
    /// Items of a page unless told otherwise.
    pub const DEFAULT_LIMIT: u32 = 100;
    /// Most items of a page.
    pub const MAX_LIMIT: u32 = 1000;

    /// Reads the query parameters `limit` and `cursor`.
    ///
    /// # Errors
    /// `bad_value` for the limit, `bad_cursor` for the cursor.
    pub fn parse(limit: Option<&str>, cursor: Option<&str>) -> Result<PageRequest, Problem> {
        let limit = match limit {
            None => Self::DEFAULT_LIMIT,
            Some(text) => match parse_whole_number(text) {
                Some(n) if (1..=u64::from(Self::MAX_LIMIT)).contains(&n) => n as u32,
                _ => {
                    let detail = format!("limit is a whole number from 1 to {}", Self::MAX_LIMIT);
                    return Err(Problem::new(Code::BadValue, detail));
                }
            },
        };
        let after = match cursor {
            None => 0,
            Some(text) => Self::parse_cursor(text)?,
        };
        Ok(PageRequest { limit, after })
    }

    /// The cursor of the page that begins after `item`. Its form is nobody's business but ours:
    /// the `a` keeps clients from doing arithmetic on it.
    pub fn cursor_after(item: ItemNumber) -> String {
        format!("a{item}")
    }

    fn parse_cursor(text: &str) -> Result<u64, Problem> {
        text.strip_prefix('a').and_then(parse_whole_number).filter(|n| *n <= MAX_NUMBER).ok_or_else(
            || Problem::new(Code::BadCursor, "use the cursor of an earlier answer as it is"),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn item_numbers_have_limits() {
        for good in ["1", "9007199254740991", "007"] {
            assert!(good.parse::<ItemNumber>().is_ok(), "{good}");
        }
        for bad in
            ["0", "9007199254740992", "-1", "+1", "1.0", "", " 1", "99999999999999999999", "１"]
        {
            let problem = bad.parse::<ItemNumber>().unwrap_err();
            assert_eq!(problem.code, Code::BadItemNumber, "{bad}");
        }
    }

    #[test]
    fn pages_have_limits() {
        assert_eq!(PageRequest::parse(None, None).unwrap(), PageRequest { limit: 100, after: 0 });
        assert_eq!(PageRequest::parse(Some("0"), None).unwrap_err().code, Code::BadValue);
        assert_eq!(PageRequest::parse(Some("1001"), None).unwrap_err().code, Code::BadValue);
        assert_eq!(PageRequest::parse(None, Some("7")).unwrap_err().code, Code::BadCursor);
        let cursor = PageRequest::cursor_after(7.try_into().unwrap());
        assert_eq!(PageRequest::parse(None, Some(&cursor)).unwrap().after, 7);
    }
}
