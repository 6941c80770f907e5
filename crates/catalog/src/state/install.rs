//! Putting a snapshot in the place of the database.
//!
//! The rows are loaded into `catalog.db.new`, which then takes the name `catalog.db`. A crash
//! before the rename leaves the old database whole, and one after it the new one:
//!
//! 1. The new file is written without a journal and fsynced, while the old one is in use. After
//!    a crash the next start removes it.
//! 2. No connection for reading is open. The old write-ahead log is moved into the old database
//!    with a full checkpoint, which fsyncs, and the last connection is closed. From here on the
//!    old database is one file.
//! 3. Its `-wal` and `-shm` go, and the directory is fsynced: were a log to come back after a
//!    power loss, SQLite would replay it into the new database, to which it does not belong.
//! 4. Rename, fsync of the directory.
//!
//! This works on SQLite's files with `std::fs`, at the path that the environment gave for the
//! database: SQLite goes past the environment's files in any case.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
};

use rusqlite::{Connection, TransactionBehavior};

use super::{
    StateError,
    keys::{self, KeyIndexConfig},
    rows::{ItemRow, KeyRow, Made, OrderRow, TableRow},
    schema,
    snapshot::{self, Record},
    store::SnapshotFile,
};

/// Removes what an interrupted installation left beside the database at `path`.
pub(super) fn clean_up(path: &Path) -> Result<(), StateError> {
    remove_if_there(&beside(path, ".new"))
}

/// Removes the database at `path` and all that belongs to it, durably.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    let remove_all = || {
        for suffix in ["", "-wal", "-shm", ".new"] {
            remove_if_there(&beside(path, suffix))?;
        }
        match path.parent().is_some_and(Path::exists) {
            true => sync_parent(path),
            false => Ok(()),
        }
    };
    remove_all().map_err(io::Error::from)
}

/// Loads `file` into a new database beside the one at `path`, complete and durable.
pub(super) fn load(
    file: &SnapshotFile,
    path: &Path,
    key_index: KeyIndexConfig,
) -> Result<(), StateError> {
    clean_up(path)?;
    let new = beside(path, ".new");
    let fill = || {
        let db = Connection::open(&new)?;
        // No journal, no fsync: until it is complete, the file is worth nothing.
        db.pragma_update(None, "journal_mode", "OFF")?;
        db.pragma_update(None, "synchronous", "OFF")?;
        schema::create(&db)?;
        let transaction =
            rusqlite::Transaction::new_unchecked(&db, TransactionBehavior::Immediate)?;
        schema::expect_keys_of_orders(&db)?;
        let meta = snapshot::scan(file, |record| insert(&db, record))?;
        schema::put_keys_to_orders(&db)?;
        schema::count_topics(&db)?;
        meta.store(&db)?;
        transaction.commit()?;
        // Here, and not when it is opened: buys go on in the old database meanwhile.
        keys::catch_up(&db, key_index)?;
        Ok(())
    };
    fill().map_err(|e: StateError| e.in_database(&new))?;
    let sync = |path: &Path| fs::File::open(path)?.sync_all();
    sync(&new).map_err(StateError::io("sync", &new))
}

/// Puts the loaded database in the place of the one at `path`, of which `writer` is the only
/// open connection.
pub(super) fn swap(writer: Connection, path: &Path) -> Result<(), StateError> {
    let close = || {
        let busy: bool =
            writer.query_one("PRAGMA wal_checkpoint(TRUNCATE)", (), |row| row.get(0))?;
        writer.close().map_err(|(_, e)| e)?;
        Ok(busy)
    };
    if close().map_err(|e: rusqlite::Error| StateError::from(e).in_database(path))? {
        let e = io::Error::other("somebody else has the database open");
        return Err(StateError::io("checkpoint", path)(e));
    }
    remove_if_there(&beside(path, "-wal"))?;
    remove_if_there(&beside(path, "-shm"))?;
    sync_parent(path)?;
    fs::rename(beside(path, ".new"), path).map_err(StateError::io("replace", path))?;
    sync_parent(path)
}

fn insert(db: &Connection, record: &Record) -> Result<(), StateError> {
    match record {
        Record::Item(row) => row.insert(db)?,
        Record::ImportedItem(import, row) => {
            ItemRow { import: *import, ..row.clone() }.insert(db)?;
        }
        Record::Import(row) => row.insert(db)?,
        Record::Order(row) => row.insert(db)?,
        Record::KeyedOrder(fingerprint, row) => {
            OrderRow { fingerprint: *fingerprint, ..row.clone() }.insert(db)?;
        }
        Record::Key(KeyRow { made: Made::Order(order), fingerprint, .. }) => {
            schema::keep_key_of_order(db, *order, *fingerprint)?;
        }
        Record::Key(row) => row.insert(db)?,
        // The scan keeps these to itself.
        Record::Start { .. } | Record::Holders(_) | Record::End { .. } => {}
    }
    Ok(())
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

fn remove_if_there(path: &Path) -> Result<(), StateError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(StateError::io("remove", path)(e)),
        _ => Ok(()),
    }
}

fn sync_parent(path: &Path) -> Result<(), StateError> {
    let parent = path.parent().unwrap_or(path);
    let sync = || fs::File::open(parent)?.sync_all();
    sync().map_err(StateError::io("sync", parent))
}

#[cfg(test)]
mod tests {
    use pygmy_protocol::{command::Command, order::OrderNumber};

    use super::{
        super::testing::{Heard, Replica, buy, item, number},
        *,
    };

    /// A replica at log index 4, with other items than [`Replica::stocked`].
    fn ahead() -> Replica {
        let mut replica = Replica::new();
        replica.one("add", Command::AddItems { items: vec![item(1, "x", 3), item(7, "y", 1)] });
        replica.one("k1", buy(1, 1));
        replica.one("k2", buy(7, 1));
        replica.one("k3", buy(7, 1));
        replica
    }

    fn names(replica: &Replica) -> Vec<String> {
        let entries = fs::read_dir(replica.dir.path()).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn readers_see_the_installed_state() {
        let source = ahead();
        let mut replica = Replica::stocked();
        let reader = replica.reader();
        assert_eq!(reader.item(number(1)).unwrap().value.unwrap().topic, "a");
        let (meta, file) = source.dump(&replica.snapshots());

        replica.writer().install(&meta, file).unwrap();

        assert_eq!(replica.hook.take(), [Heard::Restored(4)]);
        let read = reader.item(number(1)).unwrap();
        assert_eq!((read.value.unwrap().topic.as_str(), read.index), ("x", 4));
        assert_eq!(reader.item(number(2)).unwrap().value, None);
        assert_eq!(reader.order(OrderNumber(2)).unwrap().value.unwrap().item_number, number(7));
        assert_eq!(reader.topics().unwrap().value, source.reader().topics().unwrap().value);
        assert_eq!(reader.status().state_hash, source.reader().status().state_hash);
        assert_eq!(reader.status().snapshot_index, 4);
        reader.verify().unwrap();
        let log = replica.text_log("requests.txt");
        assert!(log.lines().last().unwrap().starts_with("# 4: a snapshot was installed"), "{log}");
    }

    #[test]
    fn the_installed_state_goes_on_and_survives_a_restart() {
        let mut source = ahead();
        let mut replica = Replica::stocked();
        let (meta, file) = source.dump(&replica.snapshots());
        replica.writer().install(&meta, file).unwrap();
        replica.reopen();
        let (ours, theirs) = (replica.one("k9", buy(1, 1)), source.one("k9", buy(1, 1)));
        assert_eq!(ours, theirs);
        assert_eq!(replica.one("k1", buy(1, 1)), source.one("k1", buy(1, 1)));
        assert_eq!(replica.reader().status().state_hash, source.reader().status().state_hash);
        let log = replica.text_log("requests.txt");
        assert!(!log.contains("missing"), "{log}");
        replica.close();
        let expected = ["catalog.db", "requests.txt", "snapshots"];
        assert_eq!(names(&replica), expected);
    }

    #[test]
    fn a_snapshot_that_is_not_what_it_claims_changes_nothing() {
        let source = ahead();
        let mut replica = Replica::stocked();
        let (mut meta, file) = source.dump(&replica.snapshots());
        let damaged = source.dump(&replica.snapshots()).1;
        damaged.write_all_at(b"x", damaged.len().unwrap() / 2).unwrap();
        let error = replica.writer().install(&meta, damaged).unwrap_err();
        assert!(matches!(error, StateError::Corrupt { .. }), "{error}");
        meta.last_log_id = Some(super::super::testing::log_id(5));
        let error = replica.writer().install(&meta, file).unwrap_err();
        assert!(matches!(error, StateError::Corrupt { .. }), "{error}");
        assert_eq!(replica.reader().item(number(2)).unwrap().index, 1);
        replica.one("k1", buy(1, 1));
    }

    #[test]
    fn an_older_snapshot_is_ignored() {
        let source = Replica::stocked();
        let mut replica = ahead();
        let (meta, file) = source.dump(&replica.snapshots());
        replica.writer().install(&meta, file).unwrap();
        assert_eq!(replica.reader().item(number(7)).unwrap().index, 4);
    }

    #[test]
    fn a_database_behind_the_newest_snapshot_is_restored_at_open() {
        let mut replica = ahead();
        let (meta, file) = replica.dump(&replica.snapshots());
        replica.snapshots().publish(&meta, file).unwrap();
        let before = replica.reader().status();
        replica.hook.take();
        replica.close();
        // A power loss took everything that SQLite had; an installation was under way, too.
        fs::remove_file(replica.dir.path().join("catalog.db")).unwrap();
        fs::write(replica.dir.path().join("catalog.db.new"), "half").unwrap();
        replica.reopen();
        let after = replica.reader().status();
        assert_eq!((after.applied, after.state_hash), (before.applied, before.state_hash));
        assert_eq!(replica.hook.take(), [Heard::Restored(4)]);
        replica.reader().verify().unwrap();
        assert!(!names(&replica).contains(&"catalog.db.new".to_owned()));
    }
}
