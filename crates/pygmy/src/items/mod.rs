//! Files of items: `pygmy admin import` and `export`, `pygmy demo --items`.
//!
//! A file is CSV or JSON lines. [`ItemsFile`] reads it line by line ([`csv`] for
//! the one, serde for the other) and gives an item or a [`BadLine`](file::BadLine) for each.
//! [`check()`] reads all of it and keeps no item; only a file without a bad line is
//! read once more and sent, part by part, by [`load()`], which publishes it in the end. [`export()`]
//! writes such a file.

mod check;
mod csv;
mod export;
mod file;
mod load;

pub(crate) use check::{Checked, check};
pub(crate) use export::export;
pub(crate) use file::{Format, ItemsFile};
pub(crate) use load::{discard, load};

/// A number with its thousands apart: `1,000,000`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// `1 item`, `2,000 items`.
pub(crate) fn count(number: u64, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {what}{plural}", grouped(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_apart() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_000), "1,000");
        assert_eq!(count(1, "item"), "1 item");
        assert_eq!(count(12_345_678, "item"), "12,345,678 items");
    }
}
