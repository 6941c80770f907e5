//! The catalog's state machine: what the log has come to, in SQLite.
//!
//! Raft hands committed entries to [`StateMachine`], which collects them into groups for the
//! worker "apply". There [`writer::Writer`] opens one transaction per group and lets
//! [`apply::Group`] judge the requests one after the other: first the idempotency key, then the
//! item, the price and the stock. Items are changed in memory and written once per group; orders
//! are inserted as they come, each with its key, by which [`keys`] finds it again. The position in
//! the log, the membership and the state hash ([`hash`]) go into the same transaction. After
//! COMMIT, and only then: the status is published, the [`AppliedHook`] hears of every entry, the
//! responders get their outcomes, and the text log ([`requests_log`]) gets its lines.
//!
//! What a buy writes is an order at the end of one table, and its place in the index of keys at
//! the end of another, sorted in memory before: no page is written for the sake of one order, and
//! a buy costs the same however many orders there are. Memory for this: two bytes an order,
//! allocated for 8.4 million at a time (16 MiB), and some 30 for each of the last 131,072 to
//! 163,840 (4 MiB).
//!
//! A [`Reader`] reads on connections of its own, each read in one read transaction, and says
//! which log index it saw. SQLite's write-ahead log keeps readers and the writer apart.
//!
//! A snapshot ([`snapshot`]) is a dump of the rows, not of SQLite's pages, so that it goes
//! through the environment's files and fits other schema versions. [`build`] makes one on the
//! worker "snapshot" while buys go on; [`store`] keeps the newest; [`install`] loads one into a
//! fresh database file and swaps it in.
//!
//! What a crash may take. SQLite runs with `synchronous=NORMAL`: a power loss may take its last
//! transactions, never its consistency, and the entries are applied again from the Raft log. The
//! Raft log may be purged up to a snapshot, because a snapshot is fsynced together with its name
//! before anyone hears of it; if SQLite is behind the newest snapshot at open, that is installed
//! first. An I/O error while applying is final: the writer lets go of its connection and refuses
//! everything until the server is started again.
//!
//! Caveats. SQLite goes past the environment's files, so the simulator sees it as a box that a
//! crash throws back to an older committed state. A snapshot in the making holds up SQLite's
//! checkpoints, so the write-ahead log grows meanwhile. Opening reads the index of keys from front
//! to back, and a key that made no order (an update, an import) is still a row of a table in random
//! order: these are few. Damage in SQLite's own pages is found
//! when SQLite trips over it, or by [`Reader::verify`], which reads everything.

mod machine;
mod writer;

mod apply;
mod hash;
mod imports;
mod keys;
mod meta;
mod rows;
mod schema;

mod query;
mod verify;

mod build;
mod install;
mod snapshot;
mod store;

mod requests_log;

mod error;

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;

#[cfg(test)]
mod model;
#[cfg(test)]
mod testing;

use std::sync::Arc;

use pygmy_protocol::{invalidation::CacheKey, item::Item};

pub(crate) use build::SnapshotTimes;
pub(crate) use error::StateError;
pub(crate) use keys::KeyIndexConfig;
pub(crate) use machine::StateMachine;
pub(crate) use meta::Holders;
pub(crate) use query::{Read, Reader};
pub(crate) use schema::SCHEMA_VERSION;
pub(crate) use snapshot::VERSION as SNAPSHOT_VERSION;
pub(crate) use store::{SnapshotFile, SnapshotStore};

use crate::raft::LogId;

/// What an entry changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Changed {
    /// In whatever a front end may have cached.
    pub(crate) keys: Vec<CacheKey>,
    /// What some of the items are after it, where somebody wanted to know.
    pub(crate) items: Vec<Item>,
}

impl From<Vec<CacheKey>> for Changed {
    fn from(keys: Vec<CacheKey>) -> Changed {
        Changed { keys, items: Vec::new() }
    }
}

/// Hears what was applied, on the apply worker. It must not block: buys wait for it.
pub(crate) trait AppliedHook: Send + Sync {
    /// Whether what the items became is wanted, too.
    fn wants_items(&self) -> bool {
        false
    }

    /// The entry `log_id` is committed to SQLite and changed `changed`. Called for every entry in
    /// log order, also when nothing changed, before its responder gets the outcomes. Readers and
    /// [`Reader::status`] are at this index or beyond by then.
    fn applied(&self, log_id: LogId, changed: Changed);

    /// The database is damaged: `error` says where.
    fn damaged(&self, error: &StateError);

    /// These are the holders of leases as of the entry that comes next: it, or the snapshot that is
    /// installed next, has changed them.
    fn holders(&self, holders: Arc<Holders>);

    /// A snapshot was installed: the state is now that of `log_id`, whatever it was before. Also
    /// called from within [`StateMachine::open`], if the newest snapshot was ahead of SQLite.
    fn restored(&self, log_id: LogId);
}

/// Settings of the state machine.
#[derive(Debug, Clone)]
pub(crate) struct StateConfig {
    /// Pages of SQLite's write-ahead log at which it is checkpointed. A checkpoint of 1000 pages
    /// takes 5 to 8 ms and comes at the same entry on every replica that has the same setting:
    /// add a different stagger to each, so that a majority is always at work.
    pub(crate) wal_autocheckpoint_pages: u32,
    /// How orders are found by their keys.
    pub(crate) key_index: KeyIndexConfig,
    /// Size of a snapshot's chunks, each with a checksum; at most [`snapshot::CHUNK_BYTES_MAX`].
    pub(crate) snapshot_chunk_bytes: usize,
    /// Size at which `requests.txt` is rotated.
    pub(crate) requests_log_bytes: u64,
    /// How many rotated text logs are kept, at least 1.
    pub(crate) requests_log_files: usize,
}

impl Default for StateConfig {
    fn default() -> StateConfig {
        StateConfig {
            wal_autocheckpoint_pages: 1000,
            key_index: KeyIndexConfig::default(),
            snapshot_chunk_bytes: 256 * 1024,
            requests_log_bytes: 16 * 1024 * 1024,
            requests_log_files: 4,
        }
    }
}
