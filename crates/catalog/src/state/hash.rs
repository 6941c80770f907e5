//! Hashes of the state.
//!
//! The state hash is the sum, modulo 2^128, of the hashes of all rows, so that it can follow
//! every change of a row at once (subtract the old, add the new) and does not depend on the order
//! in which rows came. Equal states give equal hashes on all replicas; a difference at one log
//! index means that a replica is broken.
//!
//! What is hashed is an encoding that is written out here, not one that a serialiser derives:
//! replicas of two versions must agree during a rolling upgrade.

use pygmy_protocol::{command::Command, item::Item};
use xxhash_rust::xxh3::xxh3_128;

/// Bytes that stand for a value, and for no other.
pub(super) struct Canonical(Vec<u8>);

impl Canonical {
    /// Begins with `tag`, which keeps values of different kinds apart.
    pub(super) fn new(tag: &str) -> Canonical {
        Canonical(Vec::with_capacity(256)).text(tag)
    }

    pub(super) fn number(mut self, number: u64) -> Canonical {
        self.0.extend_from_slice(&number.to_le_bytes());
        self
    }

    pub(super) fn signed(mut self, number: i64) -> Canonical {
        self.0.extend_from_slice(&number.to_le_bytes());
        self
    }

    pub(super) fn wide(mut self, number: u128) -> Canonical {
        self.0.extend_from_slice(&number.to_le_bytes());
        self
    }

    pub(super) fn bytes(self, bytes: &[u8]) -> Canonical {
        let mut with_length = self.number(bytes.len() as u64);
        with_length.0.extend_from_slice(bytes);
        with_length
    }

    pub(super) fn text(self, text: &str) -> Canonical {
        self.bytes(text.as_bytes())
    }

    fn items(self, items: &[Item]) -> Canonical {
        items.iter().fold(self.number(items.len() as u64), |all, item| {
            all.number(item.item_number.get())
                .text(&item.title)
                .text(&item.topic)
                .number(item.stock)
                .number(item.cost)
        })
    }

    pub(super) fn hash(self) -> u128 {
        xxh3_128(&self.0)
    }
}

/// Tells two commands under one key apart.
pub(super) fn fingerprint(command: &Command) -> u128 {
    match command {
        Command::Buy { item, quantity, expected_cost } => {
            let buy = Canonical::new("buy").number(item.get()).number(*quantity);
            match expected_cost {
                Some(cost) => buy.text("at").number(*cost),
                None => buy.text("at any cost"),
            }
        }
        Command::ReduceStock { item } => Canonical::new("reduceStock").number(item.get()),
        Command::SetStock { item, stock } => {
            Canonical::new("updateStock").number(item.get()).number(*stock)
        }
        Command::SetCost { item, cost } => {
            Canonical::new("updateCost").number(item.get()).number(*cost)
        }
        Command::AddItems { items } => Canonical::new("addItems").items(items),
        Command::StageItems { import, items } => {
            Canonical::new("stageItems").text(import.as_str()).items(items)
        }
        Command::PublishImport { import, items } => {
            Canonical::new("publishImport").text(import.as_str()).number(*items)
        }
        Command::DiscardImport { import } => Canonical::new("discardImport").text(import.as_str()),
        Command::JoinHolder { nonce, name } => Canonical::new("joinHolder").wide(*nonce).text(name),
        Command::RemoveHolder { nonce, term } => {
            Canonical::new("removeHolder").wide(*nonce).number(*term)
        }
    }
    .hash()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// These values are in the databases of running stores: they may never change.
    #[test]
    fn fingerprints_last() {
        let item = 7.try_into().unwrap();
        let buy = Command::Buy { item, quantity: 1, expected_cost: Some(2000) };
        let set = Command::SetStock { item, stock: 1 };
        let known = [(buy, BUY), (set, SET)];
        for (command, hash) in known {
            assert_eq!(format!("{:032x}", fingerprint(&command)), hash, "{command:?}");
        }
    }

    const BUY: &str = "fc8d9871e976e55cb2b74fccadb4f68e";
    const SET: &str = "82fa528b1219701cbbcc85ab90886b36";

    #[test]
    fn every_part_of_a_command_counts() {
        let item = |n: u64| n.try_into().unwrap();
        let import = |id: &str| id.parse().unwrap();
        let mut all = vec![
            Command::Buy { item: item(1), quantity: 1, expected_cost: None },
            Command::Buy { item: item(1), quantity: 1, expected_cost: Some(0) },
            Command::Buy { item: item(1), quantity: 1, expected_cost: Some(1) },
            Command::Buy { item: item(1), quantity: 2, expected_cost: None },
            Command::Buy { item: item(2), quantity: 1, expected_cost: None },
            Command::ReduceStock { item: item(1) },
            Command::SetStock { item: item(1), stock: 1 },
            Command::SetCost { item: item(1), cost: 1 },
            Command::AddItems { items: vec![] },
            Command::StageItems { import: import("a"), items: vec![] },
            Command::StageItems { import: import("b"), items: vec![] },
            Command::PublishImport { import: import("a"), items: 0 },
            Command::PublishImport { import: import("a"), items: 1 },
            Command::PublishImport { import: import("b"), items: 1 },
            Command::DiscardImport { import: import("a") },
            Command::DiscardImport { import: import("b") },
        ];
        all.sort_by_key(fingerprint);
        assert!(all.windows(2).all(|pair| fingerprint(&pair[0]) != fingerprint(&pair[1])));
    }
}
