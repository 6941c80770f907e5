//! Reading the state.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
};

use pygmy_protocol::{
    import::UnfinishedImports,
    item::{Item, ItemNumber, ItemPage, PageRequest, TopicCount, Topics},
    order::{Order, OrderNumber},
};
use rusqlite::{Connection, params};

use super::{
    SnapshotStore, StateError,
    error::nonsense,
    imports,
    keys::KeyIndex,
    meta::{Holders, Meta},
    rows::{ItemRow, OrderRow, TableRow, sql, whole},
    schema, verify,
};
use crate::raft::LogId;

/// Connections that are kept open while nobody reads. A read blocks its thread, so no more are
/// ever in use than there are threads; beyond this many, a read pays for opening its own.
const IDLE_CONNECTIONS_MAX: usize = 8;

/// A value and the state that it was read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Read<T> {
    /// What was read.
    pub(crate) value: T,
    /// Log index of the last entry applied to the very snapshot of the state that was read.
    pub(crate) index: u64,
}

/// Where the state machine stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StateStatus {
    /// The last applied entry.
    pub(crate) applied: Option<LogId>,
    /// Equal on all replicas at one log index. For people: 32 hexadecimal digits.
    pub(crate) state_hash: u128,
    /// Orders made, and the number of the last.
    pub(crate) orders: u64,
    /// Items in the catalog, with those that are staged.
    pub(crate) items: u64,
    /// Log index of the newest snapshot, 0 without one.
    pub(crate) snapshot_index: u64,
}

/// Reads the state. Calls block, but only for as long as SQLite takes: some 10 microseconds for
/// one row. Cloning gives a reader of the same state.
#[derive(Clone)]
pub(crate) struct Reader {
    pub(super) shared: Arc<Shared>,
    pub(super) snapshots: SnapshotStore,
}

impl Reader {
    /// One item.
    pub(crate) fn item(&self, number: ItemNumber) -> Result<Read<Option<Item>>, StateError> {
        self.read(|db| match ItemRow::find_number(db, number)? {
            Some(row) if imports::hiding(db, row.import)?.is_none() => Ok(Some(row.item)),
            _ => Ok(None),
        })
    }

    /// A page of the items of `topic`; an unknown topic has none. Those of later imports follow
    /// those of earlier ones.
    pub(crate) fn page(
        &self,
        topic: &str,
        page: PageRequest,
    ) -> Result<Read<ItemPage>, StateError> {
        let limit = page.limit.clamp(1, PageRequest::MAX_LIMIT) as usize;
        self.read(|db| {
            // One more than asked for tells whether there is a next page.
            let mut items = items_of_topic(db, topic, page.after, limit + 1)?;
            let more = items.len() > limit;
            items.truncate(limit);
            let next = items
                .last()
                .filter(|_| more)
                .map(|item| PageRequest::cursor_after(item.item_number));
            Ok(ItemPage { items, next })
        })
    }

    /// A page of all items, in the order of their numbers. It may have fewer than asked for, or
    /// none, and not be the last: hidden ones count.
    pub(crate) fn all_items(&self, page: PageRequest) -> Result<Read<ItemPage>, StateError> {
        let limit = page.limit.clamp(1, PageRequest::MAX_LIMIT) as usize;
        self.read(|db| {
            let hidden: Vec<_> = imports::unfinished(db)?.iter().map(|row| row.number).collect();
            let mut statement = db.prepare_cached(&format!(
                "{} WHERE item_number > ? ORDER BY item_number LIMIT ?",
                ItemRow::SELECT
            ))?;
            let values = params![sql(page.after), sql(limit as u64)];
            let rows = statement.query_map(values, ItemRow::read)?;
            let rows = rows.collect::<rusqlite::Result<Vec<ItemRow>>>()?;
            let next = rows
                .last()
                .filter(|_| rows.len() == limit)
                .map(|row| PageRequest::cursor_after(row.item.item_number));
            let shown = rows.into_iter().filter(|row| !hidden.contains(&row.import));
            Ok(ItemPage { items: shown.map(|row| row.item).collect(), next })
        })
    }

    /// The imports that are neither published nor discarded.
    pub(crate) fn imports(&self) -> Result<Read<UnfinishedImports>, StateError> {
        self.read(|db| Ok(UnfinishedImports { imports: imports::list(db)? }))
    }

    /// All topics.
    pub(crate) fn topics(&self) -> Result<Read<Topics>, StateError> {
        self.read(|db| {
            let mut statement = db.prepare_cached(
                "SELECT topic, items FROM topics WHERE import = 0 ORDER BY topic",
            )?;
            let count = |row: &rusqlite::Row<'_>| {
                Ok(TopicCount { topic: row.get(0)?, items: whole(row, 1)? })
            };
            let topics = statement.query_map((), count)?.collect::<rusqlite::Result<_>>()?;
            Ok(Topics { topics })
        })
    }

    /// One order.
    pub(crate) fn order(&self, number: OrderNumber) -> Result<Read<Option<Order>>, StateError> {
        self.read(|db| {
            let found = OrderRow::find_number(db, number)?;
            if found.is_none() && (1..=Meta::load(db)?.orders).contains(&number.0) {
                // They have no gaps.
                return Err(nonsense(format!("order {number} is missing")).into());
            }
            Ok(found.map(|row| row.order))
        })
    }

    /// Where the state machine stands, from memory.
    pub(crate) fn status(&self) -> StateStatus {
        let snapshot_index = self.snapshots.current_index();
        let meta = self.shared.meta();
        let Meta { applied, state_hash, orders, items, .. } = *meta;
        StateStatus { applied, state_hash, orders, items, snapshot_index }
    }

    /// The holders of leases, as of [`Reader::status`].
    pub(crate) fn holders(&self) -> Arc<Holders> {
        Arc::clone(&self.shared.meta().holders)
    }

    /// Reads the whole state and checks that it adds up: every stock, every count, and the state
    /// hash. Takes as long as reading everything does.
    pub(crate) fn verify(&self) -> Result<Read<()>, StateError> {
        self.read(|db| verify::verify(db, &self.shared))
    }

    fn read<T>(
        &self,
        query: impl FnOnce(&Connection) -> Result<T, StateError>,
    ) -> Result<Read<T>, StateError> {
        let read = |db: &Connection| {
            let transaction = db.unchecked_transaction()?;
            // The first statement takes the snapshot that the others see.
            let mut statement = db.prepare_cached("SELECT applied_index FROM meta")?;
            let index: Option<i64> = statement.query_one((), |row| row.get(0))?;
            let value = query(db)?;
            transaction.commit()?;
            Ok(Read { value, index: index.unwrap_or(0) as u64 })
        };
        self.shared.pool.with(read)
    }
}

/// Up to `most` items of `topic` behind the item `after`, leaping over hidden imports. If `after` is
/// no item that the topic shows, all of the topic that came without an import and has a higher number
/// follows it, whatever else has that number: so the answer changes only when the topic does.
fn items_of_topic(
    db: &Connection,
    topic: &str,
    after: u64,
    most: usize,
) -> rusqlite::Result<Vec<Item>> {
    let mut import = 0;
    if let Ok(number) = ItemNumber::try_from(after)
        && let Some(row) = ItemRow::find_number(db, number)?
        && row.item.topic == topic
        && imports::hiding(db, row.import)?.is_none()
    {
        import = row.import;
    }
    let mut statement = db.prepare_cached(&format!(
        "{} WHERE topic = ? AND (import, item_number) > (?, ?) AND import < ? \
         ORDER BY import, item_number LIMIT ?",
        ItemRow::SELECT
    ))?;
    let mut begin = (sql(import), sql(after));
    let mut items = Vec::new();
    let hidden = imports::unfinished(db)?.into_iter().map(|row| sql(row.number));
    for end in hidden.chain([i64::MAX]).filter(|end| *end >= begin.0).collect::<Vec<_>>() {
        let left = sql((most - items.len()) as u64);
        let rows =
            statement.query_map(params![topic, begin.0, begin.1, end, left], ItemRow::read)?;
        for row in rows {
            items.push(row?.item);
        }
        begin = (end, i64::MAX);
    }
    Ok(items)
}

/// What the writer and the readers share.
pub(super) struct Shared {
    pub(super) pool: Pool,
    meta: Mutex<Arc<Meta>>,
    keys: Mutex<KeyIndex>,
}

impl Shared {
    pub(super) fn new(pool: Pool, meta: &Meta, keys: KeyIndex) -> Shared {
        Shared { pool, meta: Mutex::new(Arc::new(meta.clone())), keys: Mutex::new(keys) }
    }

    /// The index of keys. The writer holds it while it applies a group: be brief.
    pub(super) fn keys(&self) -> MutexGuard<'_, KeyIndex> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the state stands, as last published.
    pub(super) fn meta(&self) -> Arc<Meta> {
        Arc::clone(&self.meta.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Lets readers of the status see what was committed.
    pub(super) fn publish(&self, meta: &Meta) {
        *self.meta.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(meta.clone());
    }
}

/// Connections for reading.
pub(super) struct Pool {
    path: PathBuf,
    /// Reads hold the outer lock together; [`Pool::exclusive`] holds it alone.
    idle: RwLock<Mutex<Vec<Connection>>>,
}

impl Pool {
    pub(super) fn new(path: PathBuf) -> Pool {
        Pool { path, idle: RwLock::default() }
    }

    /// The database.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A connection for a long read of its own. It must be closed before [`Pool::exclusive`].
    pub(super) fn open(&self) -> rusqlite::Result<Connection> {
        schema::open_reader(&self.path)
    }

    /// Size of the database.
    pub(super) fn database_bytes(&self) -> Result<u64, StateError> {
        self.with(|db| {
            let bytes = "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size";
            Ok(db.query_one(bytes, (), |row| whole(row, 0))?)
        })
    }

    /// Runs `read` on an idle connection, or a new one.
    fn with<T>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, StateError>,
    ) -> Result<T, StateError> {
        let pool = self.idle.read().unwrap_or_else(PoisonError::into_inner);
        let lock = || pool.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = lock().pop();
        let run = || {
            let db = match idle {
                Some(db) => db,
                None => self.open()?,
            };
            Ok((read(&db)?, db))
        };
        // A connection that met an error is closed: it may be in any state.
        let (value, db) = run().map_err(|e: StateError| e.in_database(&self.path))?;
        let mut idle = lock();
        if idle.len() < IDLE_CONNECTIONS_MAX {
            idle.push(db);
        }
        Ok(value)
    }

    /// Runs `change` while no connection for reading is open.
    pub(super) fn exclusive<T>(&self, change: impl FnOnce() -> T) -> T {
        let mut idle = self.idle.write().unwrap_or_else(PoisonError::into_inner);
        idle.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
        change()
    }
}
