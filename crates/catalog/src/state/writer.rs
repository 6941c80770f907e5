//! The one that changes the state: owner of the only connection that writes, on the worker
//! "apply".

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use pygmy_protocol::{env::Env, planted};
use rusqlite::Connection;

use super::{
    AppliedHook, SnapshotFile, SnapshotStore, StateConfig, StateError,
    apply::{Applied, Group, Memory},
    install,
    keys::KeyIndex,
    meta::Meta,
    query::{Pool, Shared},
    requests_log::RequestsLog,
    schema,
};
use crate::raft::{Entry, Outcomes, SnapshotMeta};

pub(super) struct Writer {
    path: PathBuf,
    config: StateConfig,
    hook: Arc<dyn AppliedHook>,
    snapshots: SnapshotStore,
    shared: Arc<Shared>,
    /// Taken for the time of a change, and not put back if it fails: after an error, what is in
    /// memory and what is in the database may differ.
    db: Option<Connection>,
    meta: Meta,
    requests: RequestsLog,
    /// What the last group has left; its lines until they are written.
    memory: Memory,
}

impl Writer {
    /// Opens the state in `dir`: `catalog.db`, `requests.txt`, and the snapshots that
    /// `snapshots` has found.
    pub(super) fn open(
        env: &Env,
        dir: &Path,
        config: StateConfig,
        hook: Arc<dyn AppliedHook>,
        snapshots: SnapshotStore,
    ) -> Result<Writer, StateError> {
        let path = database(env, dir);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(StateError::io("create", parent))?;
        }
        install::clean_up(&path)?;
        let db = schema::open_writer(&path, config.wal_autocheckpoint_pages)?;
        let mut meta = Meta::load(&db).map_err(|e| StateError::from(e).in_database(&path))?;
        let requests = RequestsLog::open(&env.files, dir, &config, &meta)?;
        if planted!(ApplyTwice)
            && let Some(applied) = &mut meta.applied
        {
            applied.index = applied.index.saturating_sub(64);
        }
        let keys = open_keys(&db, &config, &path)?;
        let shared = Arc::new(Shared::new(Pool::new(path.clone()), &meta, keys));
        let (db, memory) = (Some(db), Memory::default());
        let mut writer =
            Writer { path, config, hook, snapshots, shared, db, meta, requests, memory };
        writer.restore_from_snapshot_if_newer()?;
        Ok(writer)
    }

    pub(super) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// Applies `entries` in one transaction. When this returns, they are committed, the status
    /// and the hook know of them, and the outcomes may be told.
    pub(super) fn apply(&mut self, entries: &[Entry]) -> Result<Vec<Outcomes>, StateError> {
        let db = self.db.take().ok_or(StateError::Stopped)?;
        let memory = std::mem::take(&mut self.memory);
        let (meta, memory, applied) =
            commit(&db, &self.meta, memory, &self.shared, entries, self.hook.wants_items())
                .map_err(|e| e.in_database(&self.path))
                .inspect_err(|e| self.hook.damaged(e))?;
        self.db = Some(db);
        self.meta = meta;
        self.memory = memory;
        // The status comes before the hook: whoever takes its index as the base of an
        // invalidation stream must not miss an entry between the two.
        self.shared.publish(&self.meta);
        let mut outcomes = Vec::with_capacity(applied.len());
        for entry in applied {
            if let Some(holders) = entry.holders {
                self.hook.holders(holders);
            }
            self.hook.applied(entry.log_id, entry.changed);
            outcomes.push(entry.outcomes);
        }
        Ok(outcomes)
    }

    /// Writes the text log of what was applied last. Apart from [`Writer::apply`], so that
    /// nobody's answer waits for it.
    pub(super) fn write_lines(&mut self) {
        self.requests.append(&self.memory.lines, self.meta.index());
        self.memory.lines.clear();
    }

    /// Makes `file`, which claims to be `meta`, the newest snapshot and the state that of the
    /// snapshot.
    pub(super) fn install(
        &mut self,
        meta: &SnapshotMeta,
        file: SnapshotFile,
    ) -> Result<(), StateError> {
        let found = file.verify()?;
        if found != *meta {
            return Err(file.corrupt(format!("it holds {found}, not {meta}")));
        }
        if meta.last_log_id <= self.meta.applied {
            tracing::warn!(
                "snapshot {meta} ignored: the state is at {} already",
                self.meta.index()
            );
            return Ok(());
        }
        // First the snapshot, then the database: after a crash in between, the next start finds
        // the snapshot newer and goes on from here.
        let file = self.snapshots.publish(meta, file)?;
        self.restore(&file)
    }

    /// SQLite may have lost its last transactions, or an installation was interrupted, and the
    /// log may be purged up to the newest snapshot.
    fn restore_from_snapshot_if_newer(&mut self) -> Result<(), StateError> {
        match self.snapshots.current() {
            Some((meta, file)) if meta.last_log_id > self.meta.applied => self.restore(&file),
            _ => Ok(()),
        }
    }

    fn restore(&mut self, file: &SnapshotFile) -> Result<(), StateError> {
        let db = self.db.take().ok_or(StateError::Stopped)?;
        self.memory = Memory::default();
        install::load(file, &self.path, self.config.key_index)?;
        let reopen = || {
            install::swap(db, &self.path)?;
            let db = schema::open_writer(&self.path, self.config.wal_autocheckpoint_pages)?;
            *self.shared.keys() = open_keys(&db, &self.config, &self.path)?;
            Ok::<_, StateError>(db)
        };
        let db = self.shared.pool.exclusive(reopen)?;
        self.meta = Meta::load(&db).map_err(|e| StateError::from(e).in_database(&self.path))?;
        self.db = Some(db);
        self.shared.publish(&self.meta);
        self.requests.snapshot_installed(self.meta.index());
        if let Some(log_id) = self.meta.applied {
            self.hook.holders(Arc::clone(&self.meta.holders));
            self.hook.restored(log_id);
        }
        Ok(())
    }
}

/// Where SQLite has the state of `dir`.
pub(super) fn database(env: &Env, dir: &Path) -> PathBuf {
    env.files.database_path(&dir.join("catalog.db"))
}

fn open_keys(db: &Connection, config: &StateConfig, path: &Path) -> Result<KeyIndex, StateError> {
    KeyIndex::open(db, config.key_index).map_err(|e| StateError::from(e).in_database(path))
}

/// Applies `entries` in one transaction. After an error it is still open, and ends with the
/// connection.
fn commit(
    db: &Connection,
    meta: &Meta,
    memory: Memory,
    shared: &Shared,
    entries: &[Entry],
    wants_items: bool,
) -> Result<(Meta, Memory, Vec<Applied>), StateError> {
    db.prepare_cached("BEGIN IMMEDIATE")?.execute(())?;
    let mut keys = shared.keys();
    let mut group = Group::new(db, meta.clone(), &mut keys, memory, wants_items);
    let mut before = meta.applied;
    let mut applied = Vec::with_capacity(entries.len());
    for entry in entries {
        let log_id = entry.log_id;
        if let Some(before) = before.filter(|before| before.index >= log_id.index) {
            return Err(StateError::OutOfOrder { applied: before.index, entry: log_id.index });
        }
        before = Some(log_id);
        applied.push(group.entry(entry)?);
    }
    let (meta, memory) = group.finish()?;
    db.prepare_cached("COMMIT")?.execute(())?;
    Ok((meta, memory, applied))
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{Replica, buy, entry, number, request},
        *,
    };

    #[test]
    fn an_entry_is_applied_once_or_the_writer_stops() {
        let mut replica = Replica::stocked();
        let again = [entry(1, vec![request("k1", buy(1, 1))])];
        let error = replica.writer().apply(&again).unwrap_err();
        assert!(matches!(error, StateError::OutOfOrder { applied: 1, entry: 1 }), "{error}");
        let next = [entry(2, vec![])];
        assert!(matches!(replica.writer().apply(&next), Err(StateError::Stopped)));
        // Reads go on, and the next start goes on where it stopped.
        assert_eq!(replica.reader().item(number(1)).unwrap().index, 1);
        replica.reopen();
        replica.writer().apply(&next).unwrap();
    }

    #[test]
    fn a_group_that_fails_leaves_nothing() {
        let mut replica = Replica::stocked();
        let group = [entry(2, vec![request("k1", buy(1, 1))]), entry(2, vec![])];
        replica.writer().apply(&group).unwrap_err();
        replica.reopen();
        assert_eq!(replica.reader().item(number(1)).unwrap().value.unwrap().stock, 5);
        replica.reader().verify().unwrap();
    }
}
