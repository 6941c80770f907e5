//! Does the state add up?

use std::collections::BTreeMap;

use pygmy_protocol::item::ItemNumber;
use rusqlite::Connection;

use super::{
    StateError,
    imports::ImportRow,
    keys::Check,
    meta::{Holders, Meta, hash_of_holder},
    query::Shared,
    rows::{ImportNumber, ItemRow, KeyRow, OrderRow, TableRow, each, whole},
};

/// Checks everything that the read transaction on `db` sees, and the index of its keys.
pub(super) fn verify(db: &Connection, shared: &Shared) -> Result<(), StateError> {
    let meta = Meta::load(db)?;
    let mut found = Found::default();
    found.holders(&meta.holders);
    each::<ImportRow, StateError>(db, |row| found.import(row))?;
    each::<ItemRow, StateError>(db, |row| found.item(&row))?;
    let mut keys = Check::begin(db, shared)?;
    each::<OrderRow, StateError>(db, |row| {
        found.order(&row);
        Ok(keys.order(&row)?)
    })?;
    each::<KeyRow, StateError>(db, |row| found.key(&row))?;
    found.topics(db)?;
    match found.complaint(&meta).or(keys.finish()?) {
        None => Ok(()),
        Some(detail) => Err(StateError::Corrupt { path: shared.pool.path().to_owned(), detail }),
    }
}

/// What the rows come to.
#[derive(Default)]
struct Found {
    state_hash: u128,
    items: u64,
    orders: u64,
    keys: u64,
    /// Copies sold by the items' own account, less those in orders: all must be zero.
    unaccounted: BTreeMap<ItemNumber, i128>,
    /// Items of each topic, those of unfinished imports apart.
    topics: BTreeMap<(ImportNumber, String), u64>,
    /// The imports, and how many of their items are still to be found.
    imports: BTreeMap<ImportNumber, (ImportRow, i128)>,
    complaint: Option<String>,
}

impl Found {
    fn item(&mut self, row: &ItemRow) -> Result<(), StateError> {
        if !row.adds_up() {
            self.complain(format!("the stock of item {} does not add up", row.item.item_number));
        }
        self.items += 1;
        self.state_hash = self.state_hash.wrapping_add(row.hash());
        if row.sold > 0 {
            self.unaccounted.insert(row.item.item_number, row.sold.into());
        }
        let mut shown_under = 0;
        match self.imports.get_mut(&row.import) {
            Some((import, missing)) => {
                *missing -= 1;
                if import.is_unfinished() {
                    shown_under = row.import;
                }
            }
            None if row.import == 0 => {}
            None => self.complain(format!("item {} has no import", row.item.item_number)),
        }
        *self.topics.entry((shown_under, row.item.topic.clone())).or_default() += 1;
        Ok(())
    }

    fn holders(&mut self, holders: &Holders) {
        for (nonce, name) in holders {
            self.state_hash = self.state_hash.wrapping_add(hash_of_holder(*nonce, name));
        }
    }

    fn import(&mut self, row: ImportRow) -> Result<(), StateError> {
        self.state_hash = self.state_hash.wrapping_add(row.hash());
        let missing = row.items.into();
        self.imports.insert(row.number, (row, missing));
        Ok(())
    }

    fn order(&mut self, row: &OrderRow) {
        self.orders += 1;
        self.keys += 1;
        if row.order.order_number.0 != self.orders {
            self.complain(format!("order {} is missing", self.orders));
        }
        self.state_hash = self.state_hash.wrapping_add(row.hash());
        *self.unaccounted.entry(row.order.item_number).or_default() -=
            i128::from(row.order.quantity);
    }

    fn key(&mut self, row: &KeyRow) -> Result<(), StateError> {
        self.keys += 1;
        self.state_hash = self.state_hash.wrapping_add(row.hash());
        Ok(())
    }

    fn topics(&mut self, db: &Connection) -> Result<(), StateError> {
        let mut statement = db.prepare_cached("SELECT import, topic, items FROM topics")?;
        let counts = statement
            .query_map((), |row| Ok(((whole(row, 0)?, row.get(1)?), whole(row, 2)?)))?
            .collect::<rusqlite::Result<BTreeMap<_, u64>>>()?;
        if counts != self.topics {
            self.complain("the topics are counted wrongly".to_owned());
        }
        Ok(())
    }

    fn complain(&mut self, complaint: String) {
        self.complaint.get_or_insert(complaint);
    }

    fn complaint(mut self, meta: &Meta) -> Option<String> {
        if let Some((item, _)) = self.unaccounted.iter().find(|(_, copies)| **copies != 0) {
            self.complain(format!("the orders of item {item} are not what it sold"));
        }
        if let Some((import, _)) = self.imports.values().find(|(_, missing)| *missing != 0) {
            self.complain(format!("the items of import {} are not all there", import.id));
        }
        if (self.items, self.orders, self.keys) != (meta.items, meta.orders, meta.keys) {
            self.complain("rows are missing or there are too many".to_owned());
        }
        if self.state_hash != meta.state_hash {
            self.complain("the state hash is not that of the rows".to_owned());
        }
        self.complaint
    }
}

#[cfg(test)]
mod tests {
    use pygmy_protocol::{command::Command, order::OrderNumber};

    use super::{
        super::testing::{Replica, buy, item},
        *,
    };

    #[test]
    fn a_row_that_changed_by_itself_is_not_read() {
        for (change, number) in [
            ("UPDATE items SET title = 'x' WHERE item_number = 1", "row 1 fails"),
            ("UPDATE items SET stock = stock + 1 WHERE item_number = 1", "row 1 fails"),
            ("UPDATE items SET item_number = 39 WHERE item_number = 1", "row 39 fails"),
            ("UPDATE orders SET quantity = 1", "row 1 fails"),
            ("UPDATE keys SET outcome = x'00' WHERE key = 'stock'", "row stock fails"),
            ("UPDATE meta SET orders = 2", "meta fails its check"),
        ] {
            let mut replica = Replica::stocked();
            replica.one("k1", buy(1, 2));
            let db = Connection::open(replica.dir.path().join("catalog.db")).unwrap();
            assert_eq!(db.execute(change, ()).unwrap(), 1);
            let error = replica.reader().verify().unwrap_err();
            let found =
                matches!(&error, StateError::Corrupt { detail, .. } if detail.contains(number));
            assert!(found, "{change}: {error}");
        }
    }

    #[test]
    fn an_order_that_is_gone_is_damage_and_not_unknown() {
        let mut replica = Replica::stocked();
        replica.one("k1", buy(1, 2));
        let db = Connection::open(replica.dir.path().join("catalog.db")).unwrap();
        db.execute("DELETE FROM orders", ()).unwrap();
        let order = |number| replica.reader().order(OrderNumber(number));
        assert!(matches!(order(1), Err(StateError::Corrupt { .. })));
        assert_eq!(order(2).unwrap().value, None);
    }

    #[test]
    fn whatever_is_changed_behind_our_back_is_found() {
        for (change, complaint) in [
            ("UPDATE items SET stock = stock + 1 WHERE item_number = 1", "the stock of item 1"),
            ("UPDATE items SET title = 'x' WHERE item_number = 1", "the state hash"),
            ("UPDATE items SET stock = 9, sold = 0, initial_stock = 9", "the orders of item 1"),
            ("UPDATE orders SET key = 'other'", "the state hash"),
            ("DELETE FROM orders", "the orders of item 1"),
            (
                "UPDATE orders SET fingerprint = x'00000000000000000000000000000000'",
                "the state hash",
            ),
            ("DELETE FROM keys WHERE key = 'stock'", "rows are missing"),
            ("UPDATE topics SET items = 2", "the topics"),
            ("UPDATE imports SET items = 2", "the items of import i"),
            ("UPDATE imports SET state = 2", "the topics"),
            ("DELETE FROM imports", "item 9 has no import"),
        ] {
            let mut replica = Replica::stocked();
            let staged =
                Command::StageItems { import: "i".parse().unwrap(), items: vec![item(9, "a", 0)] };
            replica.one("part", staged);
            replica.one("k1", buy(1, 2));
            let db = Connection::open(replica.dir.path().join("catalog.db")).unwrap();
            for table in ["items", "orders", "keys", "imports"] {
                // By somebody who knows about checksums.
                db.execute(&format!("UPDATE {table} SET checksum = NULL"), ()).unwrap();
            }
            assert!(db.execute(change, ()).unwrap() > 0);
            let error = replica.reader().verify().unwrap_err();
            let found = matches!(&error, StateError::Corrupt { detail, .. } if detail.starts_with(complaint));
            assert!(found, "{change}: {error}");
        }
    }
}
