//! The data directory: one process at a time, one identity for its whole life.
//!
//! A replica's Raft id is drawn at random when its directory is made, and lives in it. A directory
//! that was wiped comes back under another id: whatever the old one voted for or acknowledged can
//! never be contradicted by an empty log that claims its name. Messages name the id that they are
//! for, so none of them reaches the wrong directory.

use std::{
    io,
    path::{Path, PathBuf},
};

use pygmy_protocol::env::{Env, LockGuard};
use serde::{Deserialize, Serialize};

/// The file that holds the identity.
const FILE: &str = "identity.json";
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
    #[error(
        "the data directory {dir} belongs to {owner}, not to {name}: directories were swapped; \
         put each back in its place"
    )]
    Swapped { dir: String, owner: String, name: String },
    #[error("{dir}/{FILE} is damaged ({why}); restore it, or remove the directory to join anew")]
    Damaged { dir: String, why: String },
    #[error(
        "the data directory {dir} is not whole: {why}; remove it, so that the replica joins anew"
    )]
    Incomplete { dir: String, why: String },
    #[error(
        "the data directory {dir} has format {found}; this build reads up to {FORMAT}: use a newer one"
    )]
    TooNew { dir: String, found: u32 },
}

impl DataDir {
    /// Locks `dir` for the server `name` and reads its identity, if it has one.
    pub(crate) fn open(env: &Env, dir: &Path, name: &str) -> Result<DataDir, IdentityError> {
        let shown = || dir.display().to_string();
        let io = |source| IdentityError::Io { dir: shown(), source };
        env.files.create_dir_all(dir).map_err(io)?;
        let lock = env.files.lock(&dir.join(LOCK)).map_err(|e| match e.kind() {
            io::ErrorKind::WouldBlock => IdentityError::Locked(shown()),
            _ => io(e),
        })?;
        let opened = |id| DataDir { dir: dir.to_owned(), name: name.to_owned(), id, _lock: lock };
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

    /// The directory's Raft id, or a fresh one, which becomes its own for good. A directory gets
    /// one only when everything else in it was made, so that an identity without its log, or a
    /// log without its identity, is known to have lost something. `holds_data`: whether the log
    /// or the database has anything in it.
    pub(crate) fn identity(
        &mut self,
        env: &Env,
        log_was_there: bool,
        holds_data: bool,
    ) -> Result<u64, IdentityError> {
        let shown = self.dir.display().to_string();
        let damaged =
            |why: &str| IdentityError::Incomplete { dir: shown.clone(), why: why.to_owned() };
        match self.id {
            Some(_) if !log_was_there => Err(damaged("its Raft log is gone")),
            Some(id) => Ok(id),
            None if holds_data => Err(damaged("its identity is gone")),
            None => {
                let id = 1 + env.random.below(ID_BOUND - 1);
                let identity = Identity { format: FORMAT, name: self.name.clone(), id };
                write(env, &self.dir, &identity)
                    .map_err(|source| IdentityError::Io { dir: shown.clone(), source })?;
                self.id = Some(id);
                Ok(id)
            }
        }
    }
}

fn read(env: &Env, dir: &Path) -> Result<Identity, IdentityError> {
    let path = dir.join(FILE);
    let bytes = || {
        let file = env.files.open(&path)?;
        // A few dozen bytes; what is longer is not ours.
        let mut bytes = vec![0; file.len()?.min(64 * 1024) as usize];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    };
    let bytes =
        bytes().map_err(|source| IdentityError::Io { dir: dir.display().to_string(), source })?;
    serde_json::from_slice(&bytes)
        .map_err(|e| IdentityError::Damaged { dir: dir.display().to_string(), why: e.to_string() })
}

fn write(env: &Env, dir: &Path, identity: &Identity) -> io::Result<()> {
    let temporary = dir.join(format!("{FILE}.new"));
    let file = env.files.create(&temporary)?;
    file.write_all_at(&serde_json::to_vec(identity)?, 0)?;
    file.sync_data()?;
    env.files.rename(&temporary, &dir.join(FILE))?;
    env.files.sync_dir(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(env: &Env, dir: &Path, name: &str) -> Result<(DataDir, u64), IdentityError> {
        let mut dir = DataDir::open(env, dir, name)?;
        let id = dir.identity(env, true, false)?;
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
        assert!(matches!(new.identity(&env, true, true), Err(IdentityError::Incomplete { .. })));
        new.identity(&env, true, false).unwrap();
        assert!(matches!(new.identity(&env, false, false), Err(IdentityError::Incomplete { .. })));
    }
}
