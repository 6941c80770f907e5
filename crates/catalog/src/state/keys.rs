//! Which order was made under a key?
//!
//! An order has its Idempotency-Key in its own row. To find it by that key, an index from the
//! hash of the key to the order's number is kept. Keys are random: in a B-tree of its own, every
//! buy would change a page of its own, and pages are what SQLite writes, twice. So the index comes
//! in runs. Run `r` has the orders `r * N + 1` to `(r + 1) * N`, with `N` as in
//! [`KeyIndexConfig::run_orders`].
//!
//! - A run whose orders are not all there is in memory only, and built anew from `orders` at open.
//! - Once they are, its rows go into the table `key_index` in the order of their hashes, which
//!   puts them at the end of that table. Each transaction writes a few of them ([`KeyIndex::write`])
//!   and the last one moves `meta.indexed_orders` on. What a crash leaves of an unfinished run is
//!   deleted at open ([`catch_up`]), and the run is written at once.
//! - Memory has a Bloom filter of every run ([`filters`]): a new key, which is the normal case, is
//!   known to be new without a look into the table or into the runs in memory.
//!
//! Hashes may collide and filters may err: what counts is the key in the order's row.
//!
//! Keys that made no order are few, and have a table and an index of SQLite's. Memory has their
//! hashes, so that a buy does not look for its key there.
//!
//! All of this follows from `orders`. Replicas need not have it in common, and snapshots do
//! without.

mod check;
mod filters;

use std::{
    collections::{BTreeSet, VecDeque},
    ops::Bound,
};

use pygmy_protocol::{IdempotencyKey, order::OrderNumber};
use rusqlite::{Connection, Transaction, TransactionBehavior};
use xxhash_rust::xxh3::xxh3_64;

pub(super) use self::check::Check;
use self::filters::Filters;
use super::{
    error::nonsense,
    rows::{KeyRow, OrderRow, key, sql, whole},
};

/// Rows of a full run that a transaction writes for each order that it makes. More than one, so
/// that a run is written long before the next is full.
const ROWS_PER_ORDER: u64 = 4;
/// A transaction writes at least this part of a run, if one is full: 256 rows of 131,072, some
/// 200 microseconds. They fill two pages; fewer rows would write the same page again and again.
const LEAST_PART_OF_RUN: u64 = 512;

/// How the keys of orders are indexed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KeyIndexConfig {
    /// Orders of a run, at least 1. One or two runs are in memory, at some 30 bytes an order. A
    /// database that has runs of another length gets new ones at open.
    pub(crate) run_orders: u64,
    /// The hash of a key, below 2^63. It must be the same each time a database is opened.
    pub(crate) hash: fn(&IdempotencyKey) -> u64,
}

impl Default for KeyIndexConfig {
    fn default() -> KeyIndexConfig {
        KeyIndexConfig { run_orders: 131_072, hash }
    }
}

/// SQLite's integers are signed, and rows must sort there as they do here.
fn hash(key: &IdempotencyKey) -> u64 {
    xxh3_64(key.as_str().as_bytes()) >> 1
}

/// The hash of a key and the number of the order made under it.
type Entry = (u64, u64);

/// The part of the index that is in memory. After an error it and the table may differ: then it
/// must be opened anew.
pub(super) struct KeyIndex {
    config: KeyIndexConfig,
    /// Of all runs.
    filters: Filters,
    finished_runs: u64,
    /// The runs after these, the oldest first; all but the last are full.
    recent: VecDeque<BTreeSet<Entry>>,
    /// The last row of the oldest one that is in the table already.
    written: Option<Entry>,
    /// Hashes of the keys that made no order.
    others: BTreeSet<u64>,
}

impl KeyIndex {
    /// The index of the database, complete: whatever the table lacks is written first.
    pub(super) fn open(db: &Connection, config: KeyIndexConfig) -> rusqlite::Result<KeyIndex> {
        let finished_runs = catch_up(db, config)?;
        let mut filters = Filters::new(config.run_orders);
        let mut statement = db.prepare("SELECT run, hash FROM key_index")?;
        let mut rows = statement.query(())?;
        while let Some(row) = rows.next()? {
            filters.add(whole(row, 0)?, whole(row, 1)?);
        }
        // Fewer than a run.
        let recent = entries(db, config, finished_runs * config.run_orders, config.run_orders)?;
        recent.iter().for_each(|(hash, _)| filters.add(finished_runs, *hash));
        let recent = VecDeque::from([recent]);
        let mut statement = db.prepare("SELECT key FROM keys")?;
        let others = statement.query_map((), |row| Ok((config.hash)(&key(row, 0)?)))?;
        let others = others.collect::<rusqlite::Result<_>>()?;
        Ok(KeyIndex { config, filters, finished_runs, recent, written: None, others })
    }

    /// What was made under `key`, if it was no order.
    pub(super) fn find_other(
        &self,
        db: &Connection,
        key: &IdempotencyKey,
    ) -> rusqlite::Result<Option<KeyRow>> {
        match self.others.contains(&(self.config.hash)(key)) {
            true => KeyRow::find_key(db, key),
            false => Ok(None),
        }
    }

    /// Adds a key that made no order.
    pub(super) fn add_other(&mut self, key: &IdempotencyKey) {
        self.others.insert((self.config.hash)(key));
    }

    /// The order made under `key`.
    pub(super) fn find(
        &self,
        db: &Connection,
        key: &IdempotencyKey,
    ) -> rusqlite::Result<Option<OrderRow>> {
        let hash = (self.config.hash)(key);
        for run in self.filters.runs(hash) {
            for number in self.numbers(db, run, hash)? {
                if let Some(row) = made_under(db, key, number)? {
                    return Ok(Some(row));
                }
            }
        }
        Ok(None)
    }

    /// The orders of `run` whose keys have this hash.
    fn numbers(&self, db: &Connection, run: u64, hash: u64) -> rusqlite::Result<Vec<u64>> {
        if let Some(recent) = run.checked_sub(self.finished_runs) {
            let recent = self.recent.get(recent as usize).into_iter();
            let found = recent.flat_map(|run| run.range((hash, 0)..=(hash, u64::MAX)));
            return Ok(found.map(|(_, number)| *number).collect());
        }
        let mut statement =
            db.prepare_cached("SELECT order_number FROM key_index WHERE run = ? AND hash = ?")?;
        statement.query_map([sql(run), sql(hash)], |row| whole(row, 0))?.collect()
    }

    /// Adds an order; they come in the order of their numbers.
    pub(super) fn add(&mut self, key: &IdempotencyKey, number: OrderNumber) {
        let entry = ((self.config.hash)(key), number.0);
        self.filters.add(self.run_of(number.0), entry.0);
        match self.recent.back_mut() {
            Some(run) if (run.len() as u64) < self.config.run_orders => {
                run.insert(entry);
            }
            _ => self.recent.push_back(BTreeSet::from([entry])),
        }
    }

    /// Writes some rows of full runs, if there are any, in the transaction that makes `orders`
    /// orders.
    pub(super) fn write(&mut self, db: &Connection, orders: u64) -> rusqlite::Result<()> {
        let run_orders = self.config.run_orders;
        let mut room = (orders * ROWS_PER_ORDER).max(run_orders / LEAST_PART_OF_RUN);
        while room > 0
            && let Some(run) = self.recent.front()
            && run.len() as u64 == run_orders
        {
            let begin = self.written.map_or(Bound::Unbounded, Bound::Excluded);
            for &(hash, number) in run.range((begin, Bound::Unbounded)).take(room as usize) {
                insert(db, self.finished_runs, (hash, number))?;
                self.written = Some((hash, number));
                room -= 1;
            }
            if self.written.as_ref() == run.last() {
                self.recent.pop_front();
                self.written = None;
                self.finished_runs += 1;
                set_indexed_orders(db, self.finished_runs * run_orders)?;
            }
        }
        Ok(())
    }

    /// Whether memory says where an order is: here, or in the table.
    fn leads_to(&self, entry: &Entry) -> bool {
        let run = self.run_of(entry.1);
        let recent = run.checked_sub(self.finished_runs);
        let recent = recent.map(|run| self.recent.get(run as usize));
        self.filters.runs(entry.0).any(|candidate| candidate == run)
            && recent.is_none_or(|run| run.is_some_and(|run| run.contains(entry)))
    }

    fn run_of(&self, number: u64) -> u64 {
        number.saturating_sub(1) / self.config.run_orders
    }
}

/// Deletes what a crash has left of an unfinished run and writes all runs that are full, each in
/// a transaction. Gives how many there are.
pub(super) fn catch_up(db: &Connection, config: KeyIndexConfig) -> rusqlite::Result<u64> {
    let run_orders = config.run_orders;
    let begin = || Transaction::new_unchecked(db, TransactionBehavior::Immediate);
    let transaction = begin()?;
    let sql_of_meta = "SELECT orders, indexed_orders, index_run_orders FROM meta";
    let (orders, indexed, run_orders_there) =
        db.query_row(sql_of_meta, (), |row| Ok((whole(row, 0)?, whole(row, 1)?, whole(row, 2)?)))?;
    let mut runs = indexed / run_orders;
    if run_orders_there != run_orders {
        runs = 0;
        db.execute("UPDATE meta SET index_run_orders = ?", [sql(run_orders)])?;
        set_indexed_orders(db, 0)?;
    }
    match runs {
        // Quicker than with a condition.
        0 => db.execute("DELETE FROM key_index", ())?,
        _ => db.execute("DELETE FROM key_index WHERE run >= ?", [sql(runs)])?,
    };
    transaction.commit()?;
    while (runs + 1) * run_orders <= orders {
        let transaction = begin()?;
        for entry in entries(db, config, runs * run_orders, run_orders)? {
            insert(db, runs, entry)?;
        }
        runs += 1;
        set_indexed_orders(db, runs * run_orders)?;
        transaction.commit()?;
    }
    Ok(runs)
}

/// The entries of up to `most` orders after the order `after`, sorted.
fn entries(
    db: &Connection,
    config: KeyIndexConfig,
    after: u64,
    most: u64,
) -> rusqlite::Result<BTreeSet<Entry>> {
    let mut statement = db.prepare_cached(
        "SELECT order_number, key FROM orders WHERE order_number > ? \
         ORDER BY order_number LIMIT ?",
    )?;
    let entry = |row: &rusqlite::Row<'_>| Ok(((config.hash)(&key(row, 1)?), whole(row, 0)?));
    statement.query_map([sql(after), sql(most)], entry)?.collect()
}

fn made_under(
    db: &Connection,
    key: &IdempotencyKey,
    number: u64,
) -> rusqlite::Result<Option<OrderRow>> {
    match OrderRow::find_number(db, OrderNumber(number))? {
        Some(row) => Ok(Some(row).filter(|row| row.key == *key)),
        None => Err(nonsense(format!("a key belongs to order {number}, which is missing"))),
    }
}

fn insert(db: &Connection, run: u64, (hash, number): Entry) -> rusqlite::Result<()> {
    let mut statement =
        db.prepare_cached("INSERT INTO key_index (run, hash, order_number) VALUES (?, ?, ?)")?;
    statement.execute([sql(run), sql(hash), sql(number)])?;
    Ok(())
}

fn set_indexed_orders(db: &Connection, orders: u64) -> rusqlite::Result<()> {
    let mut statement = db.prepare_cached("UPDATE meta SET indexed_orders = ?")?;
    statement.execute([sql(orders)])?;
    Ok(())
}

#[cfg(test)]
mod tests;
