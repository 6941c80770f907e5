//! The snapshots of a replica: `snapshots/INDEX.snap`, one that counts, and what is on its way.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use pygmy_protocol::env::{File, Files};

use super::{StateError, snapshot};
use crate::raft::SnapshotMeta;

/// What a finished snapshot's name ends with; before it stands the log index.
const FINISHED: &str = ".snap";

/// A snapshot's file. Its calls block: use them on a worker.
#[derive(Clone)]
pub(crate) struct SnapshotFile {
    path: PathBuf,
    file: Arc<dyn File>,
    /// An unfinished file goes when nobody holds it any more.
    _unfinished: Option<Arc<Unfinished>>,
}

struct Unfinished {
    files: Arc<dyn Files>,
    path: PathBuf,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // Under this name it is gone already if it was finished. If it stays, the next start
        // removes it.
        let _ = self.files.remove(&self.path);
    }
}

impl SnapshotFile {
    /// One that lies at `path` for good.
    #[cfg(feature = "fuzzing")]
    pub(super) fn existing(path: &Path, file: Arc<dyn File>) -> SnapshotFile {
        SnapshotFile { path: path.to_owned(), file, _unfinished: None }
    }

    /// Its name.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Its length in bytes.
    pub(crate) fn len(&self) -> Result<u64, StateError> {
        self.file.len().map_err(StateError::io("measure", &self.path))
    }

    /// Reads exactly `buffer.len()` bytes at `offset`.
    pub(crate) fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), StateError> {
        self.file.read_exact_at(buffer, offset).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => self.corrupt("it ends too early"),
            _ => StateError::io("read", &self.path)(e),
        })
    }

    /// Writes `bytes` at `offset`. Not durable until the snapshot is installed.
    pub(crate) fn write_all_at(&self, bytes: &[u8], offset: u64) -> Result<(), StateError> {
        self.file.write_all_at(bytes, offset).map_err(StateError::io("write", &self.path))
    }

    /// Reads all of it and checks everything that can be checked. Whoever received it from the
    /// network should ask before handing it to Raft: a damaged snapshot there ends the node.
    pub(crate) fn verify(&self) -> Result<SnapshotMeta, StateError> {
        Ok(snapshot::scan(self, |_| Ok(()))?.snapshot_meta())
    }

    pub(super) fn corrupt(&self, detail: impl Into<String>) -> StateError {
        StateError::Corrupt { path: self.path.clone(), detail: detail.into() }
    }
}

/// The directory of the snapshots. Cloning gives the same one.
#[derive(Clone)]
pub(crate) struct SnapshotStore(Arc<Inner>);

struct Inner {
    files: Arc<dyn Files>,
    dir: PathBuf,
    current: Mutex<Option<(SnapshotMeta, SnapshotFile)>>,
    next_unfinished: AtomicU64,
}

impl SnapshotStore {
    /// Finds the newest valid snapshot in `dir` and removes everything else.
    pub(super) fn open(files: &Arc<dyn Files>, dir: PathBuf) -> Result<SnapshotStore, StateError> {
        files.create_dir_all(&dir).map_err(StateError::io("create", &dir))?;
        let mut names = files.list(&dir).map_err(StateError::io("list", &dir))?;
        // Highest index first: indexes have leading zeros.
        names.sort_by(|a, b| b.cmp(a));
        let mut current = None;
        for name in names {
            let path = dir.join(&name);
            if current.is_none() && name.ends_with(FINISHED) {
                let file = files.open(&path).map_err(StateError::io("open", &path))?;
                let file = SnapshotFile { path: path.clone(), file, _unfinished: None };
                match file.verify() {
                    Ok(meta) => {
                        current = Some((meta, file));
                        continue;
                    }
                    // An older one, or the next that is built, takes its place.
                    Err(e @ StateError::Corrupt { .. }) => tracing::warn!("snapshot removed: {e}"),
                    Err(e) => return Err(e),
                }
            }
            files.remove(&path).map_err(StateError::io("remove", &path))?;
        }
        Ok(SnapshotStore(Arc::new(Inner {
            files: Arc::clone(files),
            dir,
            current: Mutex::new(current),
            next_unfinished: AtomicU64::new(0),
        })))
    }

    /// An empty file for a snapshot that arrives or is built. It is removed with its last handle
    /// unless it was installed.
    pub(crate) fn incoming(&self) -> Result<SnapshotFile, StateError> {
        let number = self.0.next_unfinished.fetch_add(1, Ordering::Relaxed);
        let path = self.0.dir.join(format!("{number}.tmp"));
        let file = self.0.files.create(&path).map_err(StateError::io("create", &path))?;
        let unfinished = Unfinished { files: Arc::clone(&self.0.files), path: path.clone() };
        Ok(SnapshotFile { path, file, _unfinished: Some(Arc::new(unfinished)) })
    }

    /// The newest snapshot.
    pub(crate) fn current(&self) -> Option<(SnapshotMeta, SnapshotFile)> {
        self.0.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Log index of the newest snapshot; 0 if there is none.
    pub(super) fn current_index(&self) -> u64 {
        let current = self.0.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().map_or(0, |(meta, _)| index(meta))
    }

    /// Makes a complete file the newest snapshot. When this returns, it and its name are durable,
    /// and the log may be purged up to it; only then are older ones removed.
    pub(super) fn publish(
        &self,
        meta: &SnapshotMeta,
        file: SnapshotFile,
    ) -> Result<SnapshotFile, StateError> {
        let Inner { files, dir, current, .. } = &*self.0;
        let name = format!("{:020}{FINISHED}", index(meta));
        let path = dir.join(&name);
        if file.path != path {
            file.file.sync_data().map_err(StateError::io("sync", &file.path))?;
            files.rename(&file.path, &path).map_err(StateError::io("rename", &file.path))?;
            files.sync_dir(dir).map_err(StateError::io("sync", dir))?;
        }
        let published = SnapshotFile { path, file: file.file, _unfinished: None };
        *current.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((meta.clone(), published.clone()));
        for old in files.list(dir).map_err(StateError::io("list", dir))? {
            if old.ends_with(FINISHED) && old != name {
                let old = dir.join(old);
                files.remove(&old).map_err(StateError::io("remove", &old))?;
            }
        }
        Ok(published)
    }
}

fn index(meta: &SnapshotMeta) -> u64 {
    meta.last_log_id.map_or(0, |log_id| log_id.index)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{
        super::testing::{Replica, buy, inline_env},
        *,
    };

    fn names(replica: &Replica) -> Vec<String> {
        inline_env().files.list(&replica.dir.path().join("snapshots")).unwrap()
    }

    fn publish(replica: &Replica) -> PathBuf {
        let (meta, file) = replica.dump(&replica.snapshots());
        replica.snapshots().publish(&meta, file).unwrap().path().to_owned()
    }

    #[test]
    fn only_the_newest_is_kept() {
        let mut replica = Replica::stocked();
        publish(&replica);
        replica.one("k1", buy(1, 1));
        publish(&replica);
        assert_eq!(names(&replica), ["00000000000000000002.snap"]);
        replica.reopen();
        let (meta, file) = replica.snapshots().current().unwrap();
        assert_eq!(meta.last_log_id, replica.reader().status().applied);
        assert_eq!(file.verify().unwrap(), meta);
    }

    #[test]
    fn a_damaged_one_is_not_offered() {
        let mut replica = Replica::stocked();
        let older = publish(&replica);
        let saved = fs::read(&older).unwrap();
        replica.one("k1", buy(1, 1));
        let newer = publish(&replica);
        replica.close();
        fs::write(&older, saved).unwrap();
        fs::write(&newer, "PYGMYSNP").unwrap();
        replica.reopen();
        assert_eq!(replica.reader().status().snapshot_index, 1);
        assert_eq!(names(&replica), ["00000000000000000001.snap"]);
    }

    #[test]
    fn one_of_a_newer_version_is_refused_and_kept() {
        let mut replica = Replica::stocked();
        let path = publish(&replica);
        replica.close();
        let mut bytes = fs::read(&path).unwrap();
        bytes[8] += 1;
        fs::write(&path, bytes).unwrap();
        let dir = replica.dir.path().join("snapshots");
        let error = SnapshotStore::open(&inline_env().files, dir).err().unwrap();
        assert!(matches!(error, StateError::Newer { .. }), "{error}");
        assert!(path.exists());
    }

    #[test]
    fn what_was_not_finished_goes() {
        let mut replica = Replica::stocked();
        let incoming = replica.snapshots().incoming().unwrap();
        let second_handle = incoming.clone();
        drop(incoming);
        assert_eq!(names(&replica).len(), 1);
        drop(second_handle);
        assert!(names(&replica).is_empty());
        replica.close();
        fs::write(replica.dir.path().join("snapshots/7.tmp"), "half").unwrap();
        replica.reopen();
        assert!(names(&replica).is_empty());
    }
}
