use std::{
    io,
    path::{Path, PathBuf},
};

use rusqlite::ErrorCode;

/// Why the state machine could not do something. Every one stops the node, except
/// [`StateError::Database`] on a read that met a busy database.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    /// A file could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    /// SQLite could not do its work.
    #[error("the catalog's database failed: {0}")]
    Database(#[from] rusqlite::Error),
    /// A file is not what was written.
    #[error("{} is damaged: {detail}", path.display())]
    Corrupt { path: PathBuf, detail: String },
    /// A file comes from a later version of this program.
    #[error("{} has format {found}, this build reads up to {known}; start a newer version", path.display())]
    Newer { path: PathBuf, found: u32, known: u32 },
    /// An entry that should have been applied before.
    #[error("entry {entry} was given to the state machine, which has applied {applied} already")]
    OutOfOrder { applied: u64, entry: u64 },
    /// An earlier error ended the state machine.
    #[error("the state machine has stopped after an earlier error; restart this server")]
    Stopped,
}

impl StateError {
    /// For `map_err`: an I/O error of `action` on `path`.
    pub(super) fn io<'a>(
        action: &'static str,
        path: &'a Path,
    ) -> impl FnOnce(io::Error) -> StateError + 'a {
        move |source| StateError::Io { action, path: path.to_owned(), source }
    }

    /// Names `database` as the damaged file if that is what SQLite complains about.
    pub(super) fn in_database(self, database: &Path) -> StateError {
        use rusqlite::Error;
        match self {
            StateError::Database(e) => {
                let malformed = matches!(
                    e.sqlite_error_code(),
                    Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
                );
                let nonsense = matches!(
                    e,
                    Error::FromSqlConversionFailure(..)
                        | Error::IntegralValueOutOfRange(..)
                        | Error::InvalidColumnType(..)
                        | Error::Utf8Error(..)
                );
                if malformed || nonsense {
                    let detail = match &e {
                        // What we say of it ourselves; SQLite has nothing to add.
                        Error::FromSqlConversionFailure(_, _, why) => why.to_string(),
                        _ => e.to_string(),
                    };
                    return StateError::Corrupt { path: database.to_owned(), detail };
                }
                StateError::Database(e)
            }
            other => other,
        }
    }
}

/// The error for a value in the database that this program never writes.
pub(super) fn nonsense(
    detail: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Null, detail.into())
}

impl From<StateError> for io::Error {
    fn from(e: StateError) -> io::Error {
        let kind = match &e {
            StateError::Io { source, .. } => source.kind(),
            StateError::Corrupt { .. } | StateError::Newer { .. } => io::ErrorKind::InvalidData,
            StateError::Database(_) | StateError::OutOfOrder { .. } | StateError::Stopped => {
                io::ErrorKind::Other
            }
        };
        io::Error::new(kind, e)
    }
}
