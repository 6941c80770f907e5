//! The database file: tables, settings, versions.

use std::{path::Path, time::Duration};

use pygmy_protocol::order::OrderNumber;
use rusqlite::{
    Connection, ErrorCode, OpenFlags, OptionalExtension, TransactionBehavior, hooks::Wal, params,
    wal::CheckpointMode,
};

use super::{StateError, meta::Meta, rows::sql};

/// Version of the tables below. A file with a higher one is refused.
pub(crate) const SCHEMA_VERSION: u32 = 5;

/// How long SQLite waits for a lock. Readers and the writer do not lock each other out; only a
/// restart of the write-ahead log is ever waited for, and that is short.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Statements that a connection keeps prepared: more than there are in this module.
const PREPARED_STATEMENTS: usize = 64;
/// After a checkpoint the write-ahead log is cut to this: a long snapshot may have let it grow.
const WAL_BYTES_KEPT: u32 = 64 * 1024 * 1024;

/// The rows of `items`, `imports`, `orders` and `keys` are the replicated state; `topics` follows
/// from `items`, `key_index` from `orders`, and `meta` says where the state stands.
const TABLES: &str = "
    CREATE TABLE meta (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        schema_version INTEGER NOT NULL,
        applied_term INTEGER,
        applied_index INTEGER,
        membership BLOB NOT NULL,
        state_hash BLOB NOT NULL,
        orders INTEGER NOT NULL,
        items INTEGER NOT NULL,
        keys INTEGER NOT NULL,
        lines_index INTEGER NOT NULL,
        lines_count INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE items (
        item_number INTEGER PRIMARY KEY,
        title TEXT NOT NULL,
        topic TEXT NOT NULL,
        stock INTEGER NOT NULL CHECK (stock >= 0),
        cost INTEGER NOT NULL,
        initial_stock INTEGER NOT NULL,
        sold INTEGER NOT NULL,
        adjusted INTEGER NOT NULL,
        import INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE TABLE orders (
        order_number INTEGER PRIMARY KEY,
        item_number INTEGER NOT NULL,
        title TEXT NOT NULL,
        quantity INTEGER NOT NULL,
        cost INTEGER NOT NULL,
        stock INTEGER NOT NULL,
        time_ms INTEGER NOT NULL,
        key TEXT NOT NULL,
        fingerprint BLOB NOT NULL
    ) STRICT;
";

/// What version 2 brought for keys. The table has those that made no order; those of orders are in
/// `orders` and are found as [`super::keys`] says.
const KEYS: &str = "
    CREATE TABLE keys (
        key TEXT PRIMARY KEY,
        fingerprint BLOB NOT NULL,
        outcome BLOB NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE key_index (
        run INTEGER,
        hash INTEGER,
        order_number INTEGER,
        PRIMARY KEY (run, hash, order_number)
    ) STRICT, WITHOUT ROWID;
    ALTER TABLE meta ADD COLUMN indexed_orders INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE meta ADD COLUMN index_run_orders INTEGER NOT NULL DEFAULT 0;
";

/// What version 2 brought for items. `topics` counts the items of unfinished imports apart, those of all
/// others under import 0. The items of a topic are in the order of their imports first, so that a
/// search leaps over an import that is not published, however large it is.
const IMPORTS: &str = "
    CREATE TABLE imports (
        import INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        state INTEGER NOT NULL,
        items INTEGER NOT NULL,
        begun_ms INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX unfinished_imports ON imports (import) WHERE state < 2;
    CREATE INDEX items_of_topic ON items (topic, import, item_number);
    CREATE TABLE topics (
        import INTEGER NOT NULL,
        topic TEXT NOT NULL,
        items INTEGER NOT NULL,
        PRIMARY KEY (import, topic)
    ) STRICT, WITHOUT ROWID;
";

/// What version 3 brought: the front-end processes that may hold leases.
const HOLDERS: &str = "ALTER TABLE meta ADD COLUMN holders BLOB NOT NULL DEFAULT x'';";

/// What version 4 brought: a checksum of each row, as [`super::rows::TableRow::checksum`] says. Rows
/// of before have none until they are written again.
const CHECKSUMS: &str = "
    ALTER TABLE meta ADD COLUMN checksum INTEGER;
    ALTER TABLE items ADD COLUMN checksum INTEGER;
    ALTER TABLE orders ADD COLUMN checksum INTEGER;
    ALTER TABLE keys ADD COLUMN checksum INTEGER;
";

/// What version 5 brought: the same for imports, whose states decide what is on sale.
const IMPORT_CHECKSUMS: &str = "ALTER TABLE imports ADD COLUMN checksum INTEGER;";

/// Makes the tables of version 1 those of version 2.
const FROM_VERSION_1: &str = "
    ALTER TABLE items ADD COLUMN import INTEGER NOT NULL DEFAULT 0;
    DROP INDEX items_of_topic;
    DROP TABLE topics;
    ALTER TABLE orders ADD COLUMN fingerprint BLOB NOT NULL
        DEFAULT x'00000000000000000000000000000000';
    ALTER TABLE keys RENAME TO keys_1;
";

/// Puts the fingerprints of the table `keys_1`, which is as `keys` was in version 1, into the rows
/// of their orders. Its keys are in no order: they are sorted once, so that what is written is
/// written from front to back, also where nothing of this fits the memory. The `+` keeps SQLite
/// from reading all orders where there are no such keys.
const FINGERPRINTS_FROM_VERSION_1: &str = "
    CREATE TABLE fingerprints (order_number INTEGER PRIMARY KEY, fingerprint BLOB NOT NULL) STRICT;
    INSERT INTO fingerprints SELECT order_number, fingerprint FROM keys_1
        WHERE order_number IS NOT NULL ORDER BY order_number;
    DROP TABLE keys_1;
    UPDATE orders SET fingerprint = fingerprints.fingerprint, checksum = NULL FROM fingerprints
        WHERE +fingerprints.order_number = orders.order_number;
    DROP TABLE fingerprints;
";

/// Opens the database for the writer; a missing one is made.
pub(super) fn open_writer(
    path: &Path,
    wal_autocheckpoint_pages: u32,
) -> Result<Connection, StateError> {
    let open = || {
        let mut db = Connection::open(path)?;
        db.busy_timeout(BUSY_TIMEOUT)?;
        db.set_prepared_statement_cache_capacity(PREPARED_STATEMENTS);
        db.pragma_update(None, "journal_mode", "WAL")?;
        db.pragma_update(None, "synchronous", "NORMAL")?;
        // SQLite's own checkpoints forget their errors and are tried again: an fsync that failed, after
        // which the system takes for clean what it has not written, would then have seemed to succeed.
        db.wal_hook(Some(move |wal: &mut Wal, pages| match pages {
            few if few < wal_autocheckpoint_pages.cast_signed() => Ok(()),
            _ => checkpoint(wal),
        }))?;
        db.pragma_update(None, "journal_size_limit", WAL_BYTES_KEPT)?;
        // 64 MiB: the items that sell and the upper pages of the tables stay in memory.
        db.pragma_update(None, "cache_size", -64 * 1024)?;
        check_version(&db, path)?;
        Ok(db)
    };
    open().map_err(|e: StateError| e.in_database(path))
}

/// Moves what the write-ahead log holds into the database, as far as no reader needs it.
fn checkpoint(wal: &mut Wal) -> rusqlite::Result<()> {
    match wal.checkpoint_v2(CheckpointMode::PASSIVE) {
        // Somebody else is at it.
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => Ok(()),
        // What has no room is refused, and nothing is lost: the log of SQLite grows until there is some.
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::DiskFull) => {
            tracing::warn!(%error, "the database has no room to grow");
            Ok(())
        }
        done => done.map(drop),
    }
}

/// Opens the database, which the writer has opened before, for reading.
pub(super) fn open_reader(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags)?;
    db.busy_timeout(BUSY_TIMEOUT)?;
    db.set_prepared_statement_cache_capacity(PREPARED_STATEMENTS);
    db.pragma_update(None, "cache_size", -8 * 1024)?;
    Ok(db)
}

/// Makes the tables of an empty database, with a row of `meta` that says that nothing was applied.
pub(super) fn create(db: &Connection) -> rusqlite::Result<()> {
    let transaction = rusqlite::Transaction::new_unchecked(db, TransactionBehavior::Immediate)?;
    db.execute_batch(TABLES)?;
    db.execute_batch(KEYS)?;
    db.execute_batch(IMPORTS)?;
    db.execute_batch(HOLDERS)?;
    db.execute_batch(CHECKSUMS)?;
    db.execute_batch(IMPORT_CHECKSUMS)?;
    db.execute(
        "INSERT INTO meta VALUES (1, ?, NULL, NULL, x'', x'', 0, 0, 0, 0, 0, 0, 0, x'', NULL)",
        [SCHEMA_VERSION],
    )?;
    Meta::default().store(db)?;
    transaction.commit()
}

fn check_version(db: &Connection, path: &Path) -> Result<(), StateError> {
    let table = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'meta'";
    if db.query_row(table, (), |_| Ok(())).optional()?.is_none() {
        return Ok(create(db)?);
    }
    let found: u32 = db.query_row("SELECT schema_version FROM meta", (), |row| row.get(0))?;
    match found {
        SCHEMA_VERSION => Ok(()),
        1..SCHEMA_VERSION => Ok(migrate(db, found)?),
        _ => Err(StateError::Newer { path: path.to_owned(), found, known: SCHEMA_VERSION }),
    }
}

/// From an earlier version, all or nothing. Takes some seconds for a million items or orders of
/// version 1.
fn migrate(db: &Connection, version: u32) -> rusqlite::Result<()> {
    let transaction = rusqlite::Transaction::new_unchecked(db, TransactionBehavior::Immediate)?;
    if version == 1 {
        migrate_from_1(db)?;
    }
    if version < 3 {
        db.execute_batch(HOLDERS)?;
    }
    if (2..4).contains(&version) {
        db.execute_batch(CHECKSUMS)?;
    }
    db.execute_batch(IMPORT_CHECKSUMS)?;
    db.execute("UPDATE meta SET schema_version = ?", [SCHEMA_VERSION])?;
    transaction.commit()
}

fn migrate_from_1(db: &Connection) -> rusqlite::Result<()> {
    db.execute_batch(FROM_VERSION_1)?;
    db.execute_batch(KEYS)?;
    db.execute_batch(IMPORTS)?;
    db.execute_batch(CHECKSUMS)?;
    count_topics(db)?;
    db.execute(
        "INSERT INTO keys (key, fingerprint, outcome) \
         SELECT key, fingerprint, outcome FROM keys_1 WHERE outcome IS NOT NULL",
        (),
    )?;
    db.execute_batch(FINGERPRINTS_FROM_VERSION_1)
}

/// Makes room for the keys of orders that a snapshot of version 1 has apart from their orders.
pub(super) fn expect_keys_of_orders(db: &Connection) -> rusqlite::Result<()> {
    db.execute_batch("CREATE TABLE keys_1 (order_number INTEGER, fingerprint BLOB) STRICT")
}

/// Keeps such a key until [`put_keys_to_orders`].
pub(super) fn keep_key_of_order(
    db: &Connection,
    order: OrderNumber,
    fingerprint: u128,
) -> rusqlite::Result<()> {
    let mut insert = db.prepare_cached("INSERT INTO keys_1 VALUES (?, ?)")?;
    insert.execute(params![sql(order.0), fingerprint.to_le_bytes()])?;
    Ok(())
}

/// Puts all that were kept into the rows of their orders.
pub(super) fn put_keys_to_orders(db: &Connection) -> rusqlite::Result<()> {
    db.execute_batch(FINGERPRINTS_FROM_VERSION_1)
}

/// Counts the empty table of topics anew.
pub(super) fn count_topics(db: &Connection) -> rusqlite::Result<()> {
    db.execute(
        "INSERT INTO topics \
         SELECT iif(import IN (SELECT import FROM imports WHERE state < 2), import, 0) AS shown, \
             topic, COUNT(*) \
         FROM items GROUP BY shown, topic",
        (),
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use pygmy_protocol::command::Outcome;

    use super::*;

    #[test]
    fn a_newer_schema_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("catalog.db");
        let db = open_writer(&path, 1000).unwrap();
        db.execute("UPDATE meta SET schema_version = 99", ()).unwrap();
        drop(db);
        let error = open_writer(&path, 1000).unwrap_err();
        assert!(
            matches!(error, StateError::Newer { found: 99, known: SCHEMA_VERSION, .. }),
            "{error}"
        );
    }

    #[test]
    fn a_database_of_version_1_goes_on() {
        use super::super::testing::{Replica, buy, replayed, set_stock};
        let mut replica = Replica::stocked();
        let made = replica.one("k1", buy(1, 2));
        replica.one("k2", buy(1, 1));
        replica.one("k0", set_stock(2, 1));
        let before = replica.reader().status();
        replica.close();
        let db = Connection::open(replica.dir.path().join("catalog.db")).unwrap();
        let as_it_was = "
            DROP INDEX items_of_topic;
            DROP TABLE topics;
            DROP TABLE imports;
            ALTER TABLE items DROP COLUMN import;
            ALTER TABLE items DROP COLUMN checksum;
            ALTER TABLE orders DROP COLUMN checksum;
            ALTER TABLE meta DROP COLUMN checksum;
            CREATE INDEX items_of_topic ON items (topic, item_number);
            CREATE TABLE topics (topic TEXT PRIMARY KEY, items INTEGER NOT NULL)
                STRICT, WITHOUT ROWID;
            INSERT INTO topics SELECT topic, COUNT(*) FROM items GROUP BY topic;
            ALTER TABLE keys RENAME TO keys_2;
            CREATE TABLE keys (key TEXT PRIMARY KEY, fingerprint BLOB NOT NULL,
                order_number INTEGER, outcome BLOB) STRICT, WITHOUT ROWID;
            INSERT INTO keys SELECT key, fingerprint, NULL, outcome FROM keys_2;
            INSERT INTO keys SELECT key, fingerprint, order_number, NULL FROM orders;
            DROP TABLE keys_2;
            ALTER TABLE orders DROP COLUMN fingerprint;
            DROP TABLE key_index;
            ALTER TABLE meta DROP COLUMN indexed_orders;
            ALTER TABLE meta DROP COLUMN index_run_orders;
            ALTER TABLE meta DROP COLUMN holders;
            UPDATE meta SET schema_version = 1;";
        db.execute_batch(as_it_was).unwrap();
        drop(db);
        replica.config.key_index.run_orders = 1;
        replica.reopen();
        assert_eq!(replica.reader().status(), before);
        replica.reader().verify().unwrap();
        assert_eq!(replica.one("k1", buy(1, 2)), replayed(made));
        assert_eq!(replica.one("k2", buy(1, 2)), Outcome::KeyReused);
        assert_eq!(replica.one("k0", buy(1, 2)), Outcome::KeyReused);
        replica.one("k3", buy(1, 2));
        replica.reader().verify().unwrap();
    }

    #[test]
    fn a_database_of_version_2_goes_on() {
        use super::super::testing::{Replica, buy};
        let mut replica = Replica::stocked();
        replica.one("k1", buy(1, 2));
        let before = replica.reader().status();
        replica.close();
        let db = Connection::open(replica.dir.path().join("catalog.db")).unwrap();
        db.execute_batch(
            "ALTER TABLE items DROP COLUMN checksum;
             ALTER TABLE orders DROP COLUMN checksum;
             ALTER TABLE keys DROP COLUMN checksum;
             ALTER TABLE imports DROP COLUMN checksum;
             ALTER TABLE meta DROP COLUMN checksum;
             ALTER TABLE meta DROP COLUMN holders;
             UPDATE meta SET schema_version = 2",
        )
        .unwrap();
        drop(db);
        replica.reopen();
        assert_eq!(replica.reader().status(), before);
        replica.reader().verify().unwrap();
    }

    #[test]
    fn what_is_no_database_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("catalog.db");
        std::fs::write(&path, "x".repeat(8192)).unwrap();
        let error = open_writer(&path, 1000).unwrap_err();
        assert!(
            matches!(&error, StateError::Corrupt { path: named, .. } if *named == path),
            "{error}"
        );
    }
}
