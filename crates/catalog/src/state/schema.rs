//! The database file: tables, settings, versions.

use std::{path::Path, time::Duration};

use rusqlite::{Connection, OpenFlags, OptionalExtension, TransactionBehavior};

use super::{StateError, meta::Meta};

/// Version of the tables below. A file with a higher one is refused.
const SCHEMA_VERSION: u32 = 1;

/// How long SQLite waits for a lock. Readers and the writer do not lock each other out; only a
/// restart of the write-ahead log is ever waited for, and that is short.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Statements that a connection keeps prepared: more than there are in this module.
const PREPARED_STATEMENTS: usize = 32;
/// After a checkpoint the write-ahead log is cut to this: a long snapshot may have let it grow.
const WAL_BYTES_KEPT: u32 = 64 * 1024 * 1024;

/// The rows of `items`, `orders` and `keys` are the replicated state; `topics` follows from
/// `items`, and `meta` says where the state stands.
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
        adjusted INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX items_of_topic ON items (topic, item_number);
    CREATE TABLE topics (
        topic TEXT PRIMARY KEY,
        items INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE orders (
        order_number INTEGER PRIMARY KEY,
        item_number INTEGER NOT NULL,
        title TEXT NOT NULL,
        quantity INTEGER NOT NULL,
        cost INTEGER NOT NULL,
        stock INTEGER NOT NULL,
        time_ms INTEGER NOT NULL,
        key TEXT NOT NULL
    ) STRICT;
    CREATE TABLE keys (
        key TEXT PRIMARY KEY,
        fingerprint BLOB NOT NULL,
        order_number INTEGER,
        outcome BLOB
    ) STRICT, WITHOUT ROWID;
";

/// Opens the database for the writer; a missing one is made.
pub(super) fn open_writer(
    path: &Path,
    wal_autocheckpoint_pages: u32,
) -> Result<Connection, StateError> {
    let open = || {
        let db = Connection::open(path)?;
        db.busy_timeout(BUSY_TIMEOUT)?;
        db.set_prepared_statement_cache_capacity(PREPARED_STATEMENTS);
        db.pragma_update(None, "journal_mode", "WAL")?;
        db.pragma_update(None, "synchronous", "NORMAL")?;
        db.pragma_update(None, "wal_autocheckpoint", wal_autocheckpoint_pages)?;
        db.pragma_update(None, "journal_size_limit", WAL_BYTES_KEPT)?;
        // 64 MiB: the items that sell and the upper pages of the keys stay in memory.
        db.pragma_update(None, "cache_size", -64 * 1024)?;
        check_version(&db, path)?;
        Ok(db)
    };
    open().map_err(|e: StateError| e.in_database(path))
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
    db.execute(
        "INSERT INTO meta VALUES (1, ?, NULL, NULL, x'', x'', 0, 0, 0, 0, 0)",
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
    if found > SCHEMA_VERSION {
        return Err(StateError::Newer { path: path.to_owned(), found, known: SCHEMA_VERSION });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
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
