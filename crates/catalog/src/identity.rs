//! The data directory: one process at a time, one identity for its whole life.
//!
//! A replica's Raft id is drawn at random when its directory is made, and lives in it. A directory
//! that was wiped comes back under another id: whatever the old one voted for or acknowledged can
//! never be contradicted by an empty log that claims its name. Messages name the id that they are
//! for, so none of them reaches the wrong directory.
//!
//! An identity ends when something of its directory is lost or damaged: it never votes or
//! acknowledges again. A mark says so, where the next start would not find out by itself, and while
//! the directory is being cleared for a new identity (see [`crate::rejoin`]).

use std::{
    io,
    path::{Path, PathBuf},
};

use pygmy_protocol::{
    env::{Env, Files, LockGuard},
    planted,
};
use serde::{Deserialize, Serialize};

use crate::{log::LogStore, replica::LOG_DIR, state::StateMachine};

/// The file that holds the identity.
const FILE: &str = "identity.json";
/// The file that says that the identity has ended, and why.
const ENDED: &str = "ended";
const ENDED_NEW: &str = "ended.new";
/// Longest reason that is read back, in bytes.
const REASON_BYTES: u64 = 4096;
/// The file that is locked.
const LOCK: &str = "lock";
/// The format of what is in the directory. A build refuses a newer one.
const FORMAT: u32 = 1;
/// Raft ids are below 2^53, so that every JSON reader can show them.
const ID_BOUND: u64 = 1 << 53;

#[derive(Debug, Serialize, Deserialize)]
struct Identity {
    format: u32,
    name: String,
    id: u64,
}

/// A locked data directory.
pub(crate) struct DataDir {
    dir: PathBuf,
    name: String,
    /// The Raft id of what is in it; none yet in a new one.
    id: Option<u64>,
    _lock: Box<dyn LockGuard>,
}

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdentityError {
    #[error("cannot use the data directory {dir}: {source}")]
    Io { dir: String, source: io::Error },
    #[error("another process uses the data directory {0}; stop it first")]
    Locked(String),
    #[error("the data directory {dir} belongs to {owner}, not to {name}: directories were swapped")]
    Swapped { dir: String, owner: String, name: String },
    #[error("{dir}/{FILE} is damaged: {why}")]
    Damaged { dir: String, why: String },
    #[error("the data directory {dir} is not whole: {why}")]
    Incomplete { dir: String, why: String },
    #[error("{why}")]
    Ended { why: String },
    #[error(
        "the data directory {dir} has format {found}; this build reads up to {FORMAT}: use a newer one"
    )]
    TooNew { dir: String, found: u32 },
}

impl IdentityError {
    /// Whether what is in the directory is worth nothing any more.
    pub(crate) fn ends_identity(&self) -> bool {
        use IdentityError::{Damaged, Ended, Incomplete, Swapped};
        matches!(self, Swapped { .. } | Damaged { .. } | Incomplete { .. } | Ended { .. })
    }
}

/// Makes `dir` and what is above it. A directory whose own name a power loss may take keeps nothing.
fn create_durably(files: &dyn Files, dir: &Path) -> io::Result<()> {
    let mut missing = Vec::new();
    for dir in dir.ancestors().filter(|dir| !dir.as_os_str().is_empty()) {
        if files.exists(dir)? {
            break;
        }
        missing.push(dir);
    }
    files.create_dir_all(dir)?;
    for made in missing {
        let parent = made.parent().filter(|parent| !parent.as_os_str().is_empty());
        files.sync_dir(parent.unwrap_or(Path::new(".")))?;
    }
    Ok(())
}

/// Marks the identity in `dir` as ended, durably. The first reason stays.
pub(crate) fn end_identity(files: &dyn Files, dir: &Path, why: &str) -> io::Result<()> {
    let mark = dir.join(ENDED);
    if files.exists(&mark)? {
        return Ok(());
    }
    write_file(files, dir, ENDED, why.as_bytes())
}

impl DataDir {
    /// Locks `dir` for the server `name` and reads its identity, if it has one.
    pub(crate) fn open(env: &Env, dir: &Path, name: &str) -> Result<DataDir, IdentityError> {
        let shown = || dir.display().to_string();
        let io = |source| IdentityError::Io { dir: shown(), source };
        create_durably(&*env.files, dir).map_err(io)?;
        let lock = env.files.lock(&dir.join(LOCK)).map_err(|e| match e.kind() {
            io::ErrorKind::WouldBlock => IdentityError::Locked(shown()),
            _ => io(e),
        })?;
        let opened = |id| DataDir { dir: dir.to_owned(), name: name.to_owned(), id, _lock: lock };
        if env.files.exists(&dir.join(ENDED)).map_err(io)? {
            let why = read_file(&*env.files, &dir.join(ENDED), REASON_BYTES).map_err(io)?;
            return Err(IdentityError::Ended { why: String::from_utf8_lossy(&why).into_owned() });
        }
        if !env.files.exists(&dir.join(FILE)).map_err(io)? {
            return Ok(opened(None));
        }
        let identity = read(env, dir)?;
        if identity.format > FORMAT {
            return Err(IdentityError::TooNew { dir: shown(), found: identity.format });
        }
        if identity.name != name {
            let (owner, name) = (identity.name, name.to_owned());
            return Err(IdentityError::Swapped { dir: shown(), owner, name });
        }
        Ok(opened(Some(identity.id)))
    }

    /// Checks that an identity has its log.
    pub(crate) fn check_log(&self, log_was_there: bool) -> Result<(), IdentityError> {
        match self.id {
            Some(_) if !log_was_there => Err(self.incomplete("its Raft log is gone")),
            _ => Ok(()),
        }
    }

    fn incomplete(&self, why: &str) -> IdentityError {
        IdentityError::Incomplete { dir: self.dir.display().to_string(), why: why.to_owned() }
    }

    /// The directory's Raft id, or a fresh one, which becomes its own for good. A directory gets
    /// one only when everything else in it was made, so that an identity without its log, or a
    /// log without its identity, is known to have lost something. `holds_data`: whether the log
    /// or the database has anything in it.
    pub(crate) fn identity(&mut self, env: &Env, holds_data: bool) -> Result<u64, IdentityError> {
        let shown = self.dir.display().to_string();
        match self.id {
            Some(id) => Ok(id),
            None if holds_data => Err(self.incomplete("its identity is gone")),
            None => {
                let mut id = 1 + env.random.below(ID_BOUND - 1);
                if planted!(LostDiskKeepsIdentity) {
                    id = 1 + xxhash_rust::xxh3::xxh3_64(self.name.as_bytes()) % (ID_BOUND - 1);
                }
                let identity = Identity { format: FORMAT, name: self.name.clone(), id };
                serde_json::to_vec(&identity)
                    .map_err(io::Error::from)
                    .and_then(|bytes| write_file(&*env.files, &self.dir, FILE, &bytes))
                    .map_err(|source| IdentityError::Io { dir: shown.clone(), source })?;
                self.id = Some(id);
                Ok(id)
            }
        }
    }
}

/// Empties `dir` for a new identity. It is marked as ended first and the mark goes last, so that
/// nothing of the old identity is ever taken for a whole one. The caller holds no lock; one is
/// taken meanwhile.
pub(crate) fn clear(env: &Env, dir: &Path, why: &str) -> Result<(), IdentityError> {
    let shown = || dir.display().to_string();
    let io = |source| IdentityError::Io { dir: shown(), source };
    let _lock = env.files.lock(&dir.join(LOCK)).map_err(|e| match e.kind() {
        io::ErrorKind::WouldBlock => IdentityError::Locked(shown()),
        _ => io(e),
    })?;
    end_identity(&*env.files, dir, why).map_err(io)?;
    let identity = [FILE.to_owned(), format!("{FILE}.new")];
    let ours = |name: &str| identity.iter().any(|file| file == name);
    remove_files(&*env.files, dir, ours).map_err(io)?;
    LogStore::remove(env, &dir.join(LOG_DIR)).map_err(io)?;
    StateMachine::remove(env, dir).map_err(io)?;
    remove_files(&*env.files, dir, |name| name == ENDED || name == ENDED_NEW).map_err(io)
}

/// Removes the files in `dir` whose names fit, durably. A directory that is not there has none.
pub(crate) fn remove_files(
    files: &dyn Files,
    dir: &Path,
    fits: impl Fn(&str) -> bool,
) -> io::Result<()> {
    let names = match files.list(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        names => names?,
    };
    for name in names.iter().filter(|name| fits(name)) {
        files.remove(&dir.join(name))?;
    }
    files.sync_dir(dir)
}

fn read(env: &Env, dir: &Path) -> Result<Identity, IdentityError> {
    // A few dozen bytes; what is longer is not ours.
    let bytes = read_file(&*env.files, &dir.join(FILE), 64 * 1024)
        .map_err(|source| IdentityError::Io { dir: dir.display().to_string(), source })?;
    serde_json::from_slice(&bytes)
        .map_err(|e| IdentityError::Damaged { dir: dir.display().to_string(), why: e.to_string() })
}

fn read_file(files: &dyn Files, path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let file = files.open(path)?;
    let mut bytes = vec![0; file.len()?.min(most) as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Writes a whole file, durably, or nothing under its name.
fn write_file(files: &dyn Files, dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = dir.join(format!("{name}.new"));
    let file = files.create(&temporary)?;
    file.write_all_at(bytes, 0)?;
    file.sync_data()?;
    files.rename(&temporary, &dir.join(name))?;
    files.sync_dir(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(env: &Env, dir: &Path, name: &str) -> Result<(DataDir, u64), IdentityError> {
        let mut dir = DataDir::open(env, dir, name)?;
        let id = dir.identity(env, false)?;
        Ok((dir, id))
    }

    #[test]
    fn a_directory_keeps_its_identity_and_its_owner() {
        let env = Env::production();
        let dir = tempfile::tempdir().unwrap();
        let (first, id) = open(&env, dir.path(), "catalog-1").unwrap();
        assert!(matches!(open(&env, dir.path(), "catalog-1"), Err(IdentityError::Locked(_))));
        drop(first);
        assert_eq!(open(&env, dir.path(), "catalog-1").unwrap().1, id);
        assert!(matches!(open(&env, dir.path(), "catalog-2"), Err(IdentityError::Swapped { .. })));
    }

    #[test]
    fn a_damaged_identity_is_named() {
        let env = Env::production();
        let dir = tempfile::tempdir().unwrap();
        drop(open(&env, dir.path(), "catalog-1").unwrap());
        std::fs::write(dir.path().join(FILE), "{").unwrap();
        assert!(matches!(open(&env, dir.path(), "catalog-1"), Err(IdentityError::Damaged { .. })));
    }

    #[test]
    fn what_lost_a_part_never_gets_an_identity() {
        let env = Env::production();
        let dir = tempfile::tempdir().unwrap();
        let mut new = DataDir::open(&env, dir.path(), "catalog-1").unwrap();
        assert!(matches!(new.identity(&env, true), Err(IdentityError::Incomplete { .. })));
        new.check_log(false).unwrap();
        new.identity(&env, false).unwrap();
        assert!(matches!(new.check_log(false), Err(IdentityError::Incomplete { .. })));
        new.check_log(true).unwrap();
    }
}
