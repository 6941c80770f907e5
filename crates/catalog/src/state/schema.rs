//! The database file: tables, settings, versions.

use std::{path::Path, time::Duration};

use rusqlite::{Connection, OpenFlags, OptionalExtension, TransactionBehavior};

use super::{StateError, meta::Meta};

/// Version of the tables below. A file with a higher one is refused.
const SCHEMA_VERSION: u32 = 2;

/// How long SQLite waits for a lock. Readers and the writer do not lock each other out; only a
/// restart of the write-ahead log is ever waited for, and that is short.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Statements that a connection keeps prepared: more than there are in this module.
const PREPARED_STATEMENTS: usize = 64;
/// After a checkpoint the write-ahead log is cut to this: a long snapshot may have let it grow.
const WAL_BYTES_KEPT: u32 = 64 * 1024 * 1024;

/// The rows of `items`, `imports`, `orders` and `keys` are the replicated state; `topics` follows
/// from `items`, and `meta` says where the state stands.
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
        key TEXT NOT NULL
    ) STRICT;
    CREATE TABLE keys (
        key TEXT PRIMARY KEY,
        fingerprint BLOB NOT NULL,
        order_number INTEGER,
        outcome BLOB
    ) STRICT, WITHOUT ROWID;
";

/// What version 2 brought. `topics` counts the items of unfinished imports apart, those of all
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

/// Makes the tables of version 1 those of version 2.
const FROM_VERSION_1: &str = "
    ALTER TABLE items ADD COLUMN import INTEGER NOT NULL DEFAULT 0;
    DROP INDEX items_of_topic;
    DROP TABLE topics;
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
    db.execute_batch(IMPORTS)?;
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
    match found {
        SCHEMA_VERSION => Ok(()),
        1 => Ok(migrate(db)?),
        _ => Err(StateError::Newer { path: path.to_owned(), found, known: SCHEMA_VERSION }),
    }
}

/// From version 1, all or nothing. Takes some seconds for a million items.
fn migrate(db: &Connection) -> rusqlite::Result<()> {
    let transaction = rusqlite::Transaction::new_unchecked(db, TransactionBehavior::Immediate)?;
    db.execute_batch(FROM_VERSION_1)?;
    db.execute_batch(IMPORTS)?;
    count_topics(db)?;
    db.execute("UPDATE meta SET schema_version = ?", [SCHEMA_VERSION])?;
    transaction.commit()
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
        use super::super::testing::{Replica, buy};
        let mut replica = Replica::stocked();
        replica.one("k1", buy(1, 2));
        let before = replica.reader().status();
        replica.close();
        let db = Connection::open(replica.dir.path().join("catalog.db")).unwrap();
        let as_it_was = "
            DROP INDEX items_of_topic;
            DROP TABLE topics;
            DROP TABLE imports;
            ALTER TABLE items DROP COLUMN import;
            CREATE INDEX items_of_topic ON items (topic, item_number);
            CREATE TABLE topics (topic TEXT PRIMARY KEY, items INTEGER NOT NULL)
                STRICT, WITHOUT ROWID;
            INSERT INTO topics SELECT topic, COUNT(*) FROM items GROUP BY topic;
            UPDATE meta SET schema_version = 1;";
        db.execute_batch(as_it_was).unwrap();
        drop(db);
        replica.reopen();
        assert_eq!(replica.reader().status(), before);
        replica.reader().verify().unwrap();
        replica.one("k2", buy(1, 3));
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
