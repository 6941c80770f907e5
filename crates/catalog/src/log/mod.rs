//! The Raft log: what a replica has promised to remember.
//!
//! An append ([`LogStore`], `store.rs`) puts its entries into the table in memory, where readers
//! see them at once, and queues them for the worker. The worker (`Writer::drain`, `writer.rs`)
//! takes all that waits, turns it into records (`record.rs`), writes them into the newest segment
//! (`segment.rs`) with one fdatasync for all, and fires the callbacks: only then does Raft count
//! them. Readers get the newest entries from memory and older ones from their segment
//! (`table.rs`).
//!
//! In the directory:
//!
//! | file | holds |
//! |---|---|
//! | `00000000000000000000.log`, … | segments, each named after its first entry, reserved in full |
//! | `state` | the vote, what is purged, and what is known to be durable (`hard_state.rs`) |
//! | `spare` | room for the next segment |
//!
//! Votes, truncations and purges go through the same queue, in order, and are awaited. A
//! truncation first saves its intention, then removes later segments and wipes the rest of its
//! own, then withdraws the intention: an entry that was taken back never comes back, and never
//! leaves a hole. A purge saves how far it goes and removes the segments that are wholly behind.
//! A purge past the last entry, after a snapshot was installed, starts a new segment that makes
//! all others void.
//!
//! When the log is opened (`recovery.rs`) a torn tail is cut, and half-done work is finished.
//! Whatever else is wrong may have been acknowledged, and is an error that names the file: such a
//! replica must not vote again.
//!
//! Caveats. Damage to the very last records before a crash, with nothing behind them, cannot be
//! told from a torn tail. A purge frees whole segments only. The table keeps eight bytes for each
//! entry in the log, so a log that is never purged grows in memory, too. Opening reads the whole
//! log once.

mod error;

mod store;
mod table;

mod hard_state;
mod record;
mod segment;
mod writer;

mod recovery;

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;

#[cfg(test)]
mod tests;

pub(crate) use error::LogError;
pub(crate) use segment::VERSION;
pub(crate) use store::LogStore;

/// Smallest segment: a few small records.
const MIN_SEGMENT_BYTES: u64 = 256;
/// Largest segment: places in it are 32 bits, also behind one largest record.
const MAX_SEGMENT_BYTES: u64 = 1024 * 1024 * 1024;

/// Sizes of the log.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LogConfig {
    /// Room that is reserved at once, in bytes, and freed at once by a purge; 256 bytes to 1 GiB.
    /// A record that is larger gets a segment of its own size.
    pub(crate) segment_bytes: u64,
    /// Newest entries that are kept decoded, in bytes of their records: enough that replication
    /// to a follower that keeps up, and applying, never read from the disk. Entries that are not
    /// durable yet stay whatever their size.
    pub(crate) cache_bytes: usize,
}

impl Default for LogConfig {
    fn default() -> LogConfig {
        LogConfig { segment_bytes: 16 * 1024 * 1024, cache_bytes: 32 * 1024 * 1024 }
    }
}

impl LogConfig {
    fn clamped(self) -> LogConfig {
        LogConfig {
            segment_bytes: self.segment_bytes.clamp(MIN_SEGMENT_BYTES, MAX_SEGMENT_BYTES),
            ..self
        }
    }
}
