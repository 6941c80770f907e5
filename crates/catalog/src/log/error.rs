//! What can go wrong with the log. Nothing here is retryable: the replica stops, and what to do
//! is in the message.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::record::MAX_RECORD_BYTES;

/// Why the log cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    /// The operating system refused. The kind of the source tells a full disk
    /// ([`io::ErrorKind::StorageFull`]) from a broken one.
    #[error("cannot {action} {}: {source}; this replica stops, start it again when the disk is well", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// With which file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Something is damaged or missing that this replica may have acknowledged.
    #[error(
        "{} is damaged at byte {offset}: {what}",
        path.display()
    )]
    Corrupt {
        /// Where: a file, or the directory that lacks one.
        path: PathBuf,
        /// From which byte on.
        offset: u64,
        /// In which way.
        what: String,
    },
    /// A later build wrote this.
    #[error(
        "{} has format {found} and this build reads up to {supported}: start the newer build that wrote it",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The newest version that this build knows.
        supported: u32,
    },
    /// An entry that no record can hold. Only this append fails.
    #[error(
        "log entry {index} has {bytes} bytes and a record holds {MAX_RECORD_BYTES}: propose smaller batches"
    )]
    TooLarge {
        /// The entry.
        index: u64,
        /// Its size.
        bytes: usize,
    },
    /// An append that would leave a hole. Only this append fails.
    #[error("log entry {found} cannot follow entry {last:?}: the log has no holes")]
    Hole {
        /// The entry.
        found: u64,
        /// What it would follow.
        last: Option<u64>,
    },
}

impl LogError {
    pub(super) fn corrupt(path: &Path, offset: u64, what: impl Into<String>) -> LogError {
        LogError::Corrupt { path: path.to_owned(), offset, what: what.into() }
    }

    fn kind(&self) -> io::ErrorKind {
        match self {
            LogError::Io { source, .. } => source.kind(),
            LogError::Corrupt { .. } => io::ErrorKind::InvalidData,
            LogError::Newer { .. } => io::ErrorKind::Unsupported,
            LogError::TooLarge { .. } | LogError::Hole { .. } => io::ErrorKind::InvalidInput,
        }
    }
}

impl From<LogError> for io::Error {
    fn from(error: LogError) -> io::Error {
        io::Error::new(error.kind(), error)
    }
}

/// Adds to an error of the operating system what was tried, with what.
pub(super) trait Context<T> {
    fn context(self, action: &'static str, path: &Path) -> Result<T, LogError>;
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, action: &'static str, path: &Path) -> Result<T, LogError> {
        self.map_err(|source| LogError::Io { action, path: path.to_owned(), source })
    }
}
