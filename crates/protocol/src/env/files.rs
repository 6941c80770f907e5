use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Keeps a lock on a file until it is dropped or the process ends.
pub trait LockGuard: Send + Sync {}

/// The durable files of one host. Calls block: use them from a [`Worker`](super::Worker), or
/// while starting.
///
/// The crash rules that a simulated disk follows, and that callers must therefore expect: what
/// was written but not synced may be lost, whole or in part, in any order; a name that was
/// created, renamed or removed may revert until its directory is synced.
pub trait Files: Send + Sync {
    /// Creates `dir` and its parents if they are missing.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;

    /// The names in `dir`, sorted. A missing directory is an error.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Whether `path` exists.
    fn exists(&self, path: &Path) -> io::Result<bool>;

    /// Opens an existing file for reading and writing.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>>;

    /// Creates a new, empty file for reading and writing; an existing one is emptied.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>>;

    /// Renames `from` to `to`, which is replaced atomically if it exists. Durable only after
    /// [`Files::sync_dir`].
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file. Durable only after [`Files::sync_dir`].
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes the names in `dir` durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Bytes that can still be written to the file system of `dir`.
    fn free_bytes(&self, dir: &Path) -> io::Result<u64>;

    /// Takes the exclusive lock `path` (created if missing), which ends with the process at the
    /// latest. [`io::ErrorKind::WouldBlock`] if another process holds it.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn LockGuard>>;

    /// Where SQLite may open the database that belongs at `path`. SQLite does its own file
    /// access, so this is a path of the real file system also in the simulator.
    fn database_path(&self, path: &Path) -> PathBuf;
}

/// One open file.
pub trait File: Send + Sync {
    /// Reads up to `buffer.len()` bytes at `offset`; 0 at the end of the file.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of `bytes` at `offset`.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Makes the written bytes and the length durable (`fdatasync`). A failure is final: the
    /// caller must end the process, never try again, because the kernel may have dropped the
    /// unwritten pages.
    fn sync_data(&self) -> io::Result<()>;

    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Whether the file has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Cuts or extends (with zeros) the file to `len` bytes.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Reserves room for `len` bytes and sets the length, zero-filled, so that later writes
    /// neither fail for lack of room nor change metadata.
    fn allocate(&self, len: u64) -> io::Result<()>;

    /// Reads exactly `buffer.len()` bytes at `offset`.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] if the file ends before.
    fn read_exact_at(&self, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !buffer.is_empty() {
            match self.read_at(buffer, offset)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => {
                    buffer = &mut buffer[n..];
                    offset += n as u64;
                }
            }
        }
        Ok(())
    }
}
