//! What a row of each table is: its columns, how it is read, written and hashed.
//!
//! SQLite's integers are signed 64 bits. Everything that is counted here stays below 2^63.

use pygmy_protocol::{
    IdempotencyKey,
    item::{Item, ItemNumber, MAX_NUMBER},
    order::{Order, OrderNumber},
};
use rusqlite::{Connection, OptionalExtension, Row, params, types::ValueRef};
use serde::{Deserialize, Serialize};

use super::{error::nonsense, hash::Canonical};

/// A number as SQLite takes it.
pub(super) fn sql(number: u64) -> i64 {
    // Only the leader's wall clock could be beyond, in a batch that tells lies about the time.
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The number in a column that holds no negative ones.
pub(super) fn whole(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let number: i64 = row.get(column)?;
    u64::try_from(number).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, number))
}

/// A hash.
pub(super) fn wide(row: &Row<'_>, column: usize) -> rusqlite::Result<u128> {
    Ok(u128::from_le_bytes(row.get(column)?))
}

fn item_number(row: &Row<'_>, column: usize) -> rusqlite::Result<ItemNumber> {
    whole(row, column)?.try_into().map_err(nonsense)
}

/// An Idempotency-Key.
pub(super) fn key(row: &Row<'_>, column: usize) -> rusqlite::Result<IdempotencyKey> {
    row.get_ref(column)?.as_str()?.parse().map_err(nonsense)
}

/// A row of a table that belongs to the replicated state.
pub(super) trait TableRow: Sized {
    /// Selects all rows, with the columns that [`TableRow::read`] wants.
    const SELECT: &str;

    /// Reads a row.
    fn read(row: &Row<'_>) -> rusqlite::Result<Self>;

    /// Inserts it; it must be new.
    fn insert(&self, db: &Connection) -> rusqlite::Result<()>;

    /// Its part of the state hash.
    fn hash(&self) -> u128;

    /// What is stored beside it, to find out when SQLite gives back something else.
    fn checksum(&self) -> i64 {
        folded(self.hash())
    }

    /// The row whose `condition` (on `?1`) holds.
    fn find(
        db: &Connection,
        condition: &str,
        value: impl rusqlite::ToSql,
    ) -> rusqlite::Result<Option<Self>> {
        let mut statement = db.prepare_cached(&format!("{} WHERE {condition}", Self::SELECT))?;
        statement.query_row([value], Self::read).optional()
    }
}

/// A checksum as SQLite takes it.
pub(super) fn folded(hash: u128) -> i64 {
    (hash as u64 ^ (hash >> 64) as u64).cast_signed()
}

/// Passes `row` on if the checksum in `column` is its own. Rows of before version 4, and
/// imports of before version 5, have none.
pub(super) fn checked<R: TableRow>(found: &Row<'_>, column: usize, row: R) -> rusqlite::Result<R> {
    match found.get::<_, Option<i64>>(column)? {
        Some(checksum) if checksum != row.checksum() => {
            Err(nonsense(format!("row {} fails its check", shown(found.get_ref(0)?))))
        }
        _ => Ok(row),
    }
}

/// A row's number or key, for people.
fn shown(first: ValueRef<'_>) -> String {
    match first {
        ValueRef::Integer(number) => number.to_string(),
        ValueRef::Text(key) => String::from_utf8_lossy(key).into_owned(),
        other => format!("{other:?}"),
    }
}

/// Calls `visit` with every row of a table, in the order of the primary key.
pub(super) fn each<R: TableRow, E: From<rusqlite::Error>>(
    db: &Connection,
    mut visit: impl FnMut(R) -> Result<(), E>,
) -> Result<(), E> {
    let mut statement = db.prepare_cached(&format!("{} ORDER BY 1", R::SELECT))?;
    let mut rows = statement.query(())?;
    while let Some(row) = rows.next()? {
        visit(R::read(row)?)?;
    }
    Ok(())
}

/// An item and how its stock came about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ItemRow {
    pub(super) item: Item,
    /// The stock that it was added with.
    pub(super) initial_stock: u64,
    /// Copies sold.
    pub(super) sold: u64,
    /// What all changes of the stock other than sales come to.
    pub(super) adjusted: i64,
    /// The import that it came with, 0 without one. A snapshot has records of its own for it.
    #[serde(skip)]
    pub(super) import: ImportNumber,
}

/// Imports in the order in which they began, from 1. See [`super::imports`].
pub(super) type ImportNumber = u64;

impl ItemRow {
    /// A new item. Bad values are refused by the routes; here they must stop nobody.
    pub(super) fn new(mut item: Item, import: ImportNumber) -> ItemRow {
        item.cost = item.cost.min(MAX_NUMBER);
        item.stock = item.stock.min(MAX_NUMBER);
        ItemRow { initial_stock: item.stock, sold: 0, adjusted: 0, import, item }
    }

    pub(super) fn find_number(
        db: &Connection,
        number: ItemNumber,
    ) -> rusqlite::Result<Option<ItemRow>> {
        Self::find(db, "item_number = ?1", sql(number.get()))
    }

    /// Whether the stock adds up.
    pub(super) fn adds_up(&self) -> bool {
        let expected =
            i128::from(self.initial_stock) + i128::from(self.adjusted) - i128::from(self.sold);
        expected == i128::from(self.item.stock)
    }

    /// Writes what can change.
    pub(super) fn update(&self, db: &Connection) -> rusqlite::Result<()> {
        let mut statement = db.prepare_cached(
            "UPDATE items SET stock = ?, cost = ?, sold = ?, adjusted = ?, checksum = ? \
             WHERE item_number = ?",
        )?;
        statement.execute(params![
            sql(self.item.stock),
            sql(self.item.cost),
            sql(self.sold),
            self.adjusted,
            self.checksum(),
            sql(self.item.item_number.get()),
        ])?;
        Ok(())
    }
}

impl TableRow for ItemRow {
    const SELECT: &str = "SELECT item_number, title, topic, stock, cost, initial_stock, sold, adjusted, import, \
         checksum FROM items";

    fn read(row: &Row<'_>) -> rusqlite::Result<ItemRow> {
        let item = ItemRow {
            item: Item {
                item_number: item_number(row, 0)?,
                title: row.get(1)?,
                topic: row.get(2)?,
                stock: whole(row, 3)?,
                cost: whole(row, 4)?,
            },
            initial_stock: whole(row, 5)?,
            sold: whole(row, 6)?,
            adjusted: row.get(7)?,
            import: whole(row, 8)?,
        };
        checked(row, 9, item)
    }

    fn insert(&self, db: &Connection) -> rusqlite::Result<()> {
        let mut statement = db.prepare_cached(
            "INSERT INTO items \
             (item_number, title, topic, stock, cost, initial_stock, sold, adjusted, import, checksum) \
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )?;
        statement.execute(params![
            sql(self.item.item_number.get()),
            self.item.title,
            self.item.topic,
            sql(self.item.stock),
            sql(self.item.cost),
            sql(self.initial_stock),
            sql(self.sold),
            self.adjusted,
            sql(self.import),
            self.checksum(),
        ])?;
        Ok(())
    }

    fn hash(&self) -> u128 {
        let row = Canonical::new("item")
            .number(self.item.item_number.get())
            .text(&self.item.title)
            .text(&self.item.topic)
            .number(self.item.stock)
            .number(self.item.cost)
            .number(self.initial_stock)
            .number(self.sold)
            .signed(self.adjusted);
        // Items without an import hash as they did before there were imports.
        match self.import {
            0 => row,
            import => row.number(import),
        }
        .hash()
    }
}

/// An order, when it was made, and the key that made it. It is two rows of the replicated state:
/// the order, and the [`KeyRow`] of its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OrderRow {
    pub(super) order: Order,
    pub(super) time_ms: u64,
    pub(super) key: IdempotencyKey,
    /// That of the key. A snapshot has it beside the row.
    #[serde(skip)]
    pub(super) fingerprint: u128,
}

impl OrderRow {
    pub(super) fn find_number(
        db: &Connection,
        number: OrderNumber,
    ) -> rusqlite::Result<Option<OrderRow>> {
        Self::find(db, "order_number = ?1", sql(number.0))
    }

    /// The part of the order alone.
    pub(super) fn hash_without_key(&self) -> u128 {
        Canonical::new("order")
            .number(self.order.order_number.0)
            .number(self.order.item_number.get())
            .text(&self.order.title)
            .number(self.order.quantity)
            .number(self.order.cost)
            .number(self.order.stock)
            .number(self.time_ms)
            .text(self.key.as_str())
            .hash()
    }

    /// For the planted bugs: a key that nobody has sent.
    pub(super) fn no_key(number: OrderNumber) -> rusqlite::Result<IdempotencyKey> {
        format!("no-key-{number}").parse().map_err(nonsense)
    }
}

impl TableRow for OrderRow {
    const SELECT: &str = "SELECT order_number, item_number, title, quantity, cost, stock, time_ms, key, fingerprint, \
         checksum FROM orders";

    fn read(row: &Row<'_>) -> rusqlite::Result<OrderRow> {
        let order = OrderRow {
            order: Order {
                order_number: OrderNumber(whole(row, 0)?),
                item_number: item_number(row, 1)?,
                title: row.get(2)?,
                quantity: whole(row, 3)?,
                cost: whole(row, 4)?,
                stock: whole(row, 5)?,
            },
            time_ms: whole(row, 6)?,
            key: key(row, 7)?,
            fingerprint: wide(row, 8)?,
        };
        checked(row, 9, order)
    }

    fn insert(&self, db: &Connection) -> rusqlite::Result<()> {
        let mut statement = db.prepare_cached(
            "INSERT INTO orders \
             (order_number, item_number, title, quantity, cost, stock, time_ms, key, fingerprint, \
              checksum) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )?;
        statement.execute(params![
            sql(self.order.order_number.0),
            sql(self.order.item_number.get()),
            self.order.title,
            sql(self.order.quantity),
            sql(self.order.cost),
            sql(self.order.stock),
            sql(self.time_ms),
            self.key.as_str(),
            self.fingerprint.to_le_bytes(),
            self.checksum(),
        ])?;
        Ok(())
    }

    /// One hash and not two: it is made for each buy.
    fn checksum(&self) -> i64 {
        folded(self.hash_without_key() ^ self.fingerprint)
    }

    fn hash(&self) -> u128 {
        let made = Made::Order(self.order.order_number);
        self.hash_without_key().wrapping_add(hash_of_key(&self.key, self.fingerprint, &made))
    }
}

/// A key that changed something. The table has those that made no order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeyRow {
    pub(super) key: IdempotencyKey,
    /// See [`super::hash::fingerprint`].
    pub(super) fingerprint: u128,
    pub(super) made: Made,
}

/// What a request made, from which a replay is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Made {
    /// An order. Such a key has no row of its own but in snapshots of version 1.
    Order(OrderNumber),
    /// Something else: the outcome that a replay gets, as postcard.
    Outcome(Vec<u8>),
}

impl KeyRow {
    pub(super) fn find_key(
        db: &Connection,
        key: &IdempotencyKey,
    ) -> rusqlite::Result<Option<KeyRow>> {
        Self::find(db, "key = ?1", key.as_str())
    }
}

impl TableRow for KeyRow {
    const SELECT: &str = "SELECT key, fingerprint, outcome, checksum FROM keys";

    fn read(row: &Row<'_>) -> rusqlite::Result<KeyRow> {
        let made = Made::Outcome(row.get(2)?);
        checked(row, 3, KeyRow { key: key(row, 0)?, fingerprint: wide(row, 1)?, made })
    }

    fn insert(&self, db: &Connection) -> rusqlite::Result<()> {
        let Made::Outcome(outcome) = &self.made else {
            return Err(nonsense(format!(
                "the key {} belongs into the row of its order",
                self.key
            )));
        };
        let mut statement = db.prepare_cached(
            "INSERT INTO keys (key, fingerprint, outcome, checksum) VALUES (?, ?, ?, ?)",
        )?;
        let (key, fingerprint) = (self.key.as_str(), self.fingerprint.to_le_bytes());
        statement.execute(params![key, fingerprint, outcome, self.checksum()])?;
        Ok(())
    }

    fn hash(&self) -> u128 {
        hash_of_key(&self.key, self.fingerprint, &self.made)
    }
}

fn hash_of_key(key: &IdempotencyKey, fingerprint: u128, made: &Made) -> u128 {
    let row = Canonical::new("key").text(key.as_str()).wide(fingerprint);
    match made {
        Made::Order(number) => row.text("order").number(number.0),
        Made::Outcome(outcome) => row.text("outcome").bytes(outcome),
    }
    .hash()
}
