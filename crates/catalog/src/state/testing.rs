//! What the tests of this module share.

use std::sync::{Arc, Mutex};

use openraft::EntryPayload;
use pygmy_protocol::{
    command::{Command, Outcome, Request},
    env::{Env, Wake, Workers},
    invalidation::CacheKey,
    item::{Item, ItemNumber},
};
use tempfile::TempDir;

use super::{
    AppliedHook, Changed, Holders, Reader, SnapshotFile, SnapshotStore, StateConfig, snapshot,
    writer::Writer,
};
use crate::raft::{Batch, Entry, LogId, SnapshotMeta};

/// 2026-11-22 13:37:00.123 UTC.
pub(super) const TIME_MS: u64 = 1_795_354_620_123;

/// Workers that do their work at once, in the thread that asks: what was submitted is done.
struct Inline;

impl Workers for Inline {
    fn start(&self, _name: &str, work: Box<dyn FnMut() + Send>) -> Box<dyn Wake> {
        Box::new(InlineWake(Mutex::new(work)))
    }
}

struct InlineWake(Mutex<Box<dyn FnMut() + Send>>);

impl Wake for InlineWake {
    fn wake(&self) {
        (self.0.lock().unwrap())();
    }
}

/// The machine's environment, without threads.
pub(super) fn inline_env() -> Env {
    Env { workers: Arc::new(Inline), ..Env::production() }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Heard {
    Applied(u64, Vec<CacheKey>),
    Holders(Vec<u128>),
    Restored(u64),
}

/// Remembers what the hook heard.
#[derive(Default)]
pub(super) struct Recorder(Mutex<Vec<Heard>>);

impl Recorder {
    pub(super) fn take(&self) -> Vec<Heard> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl AppliedHook for Recorder {
    fn damaged(&self, _error: &super::StateError) {}

    fn applied(&self, log_id: LogId, changed: Changed) {
        self.0.lock().unwrap().push(Heard::Applied(log_id.index, changed.keys));
    }

    fn holders(&self, holders: Arc<Holders>) {
        // Most states have none.
        if !holders.is_empty() {
            let nonces = holders.keys().copied().collect();
            self.0.lock().unwrap().push(Heard::Holders(nonces));
        }
    }

    fn restored(&self, log_id: LogId) {
        self.0.lock().unwrap().push(Heard::Restored(log_id.index));
    }
}

/// A replica's state without Raft: entries go straight to its writer.
pub(super) struct Replica {
    pub(super) dir: TempDir,
    pub(super) config: StateConfig,
    pub(super) hook: Arc<Recorder>,
    writer: Option<Writer>,
    snapshots: Option<SnapshotStore>,
    next_index: u64,
}

impl Replica {
    pub(super) fn new() -> Replica {
        Replica::with(StateConfig::default())
    }

    pub(super) fn with(config: StateConfig) -> Replica {
        let dir = tempfile::tempdir().unwrap();
        let mut replica = Replica {
            dir,
            config,
            hook: Arc::default(),
            writer: None,
            snapshots: None,
            next_index: 1,
        };
        replica.open();
        replica
    }

    /// A replica with item 1 (5 copies at 2000, topic "a") and item 2 (no copies, topic "b").
    pub(super) fn stocked() -> Replica {
        let mut replica = Replica::new();
        replica.one("stock", Command::AddItems { items: vec![item(1, "a", 5), item(2, "b", 0)] });
        replica.hook.take();
        replica
    }

    fn open(&mut self) {
        let env = inline_env();
        let snapshots = SnapshotStore::open(&env.files, self.dir.path().join("snapshots")).unwrap();
        let hook = Arc::clone(&self.hook) as Arc<dyn AppliedHook>;
        let writer =
            Writer::open(&env, self.dir.path(), self.config.clone(), hook, snapshots.clone());
        self.writer = Some(writer.unwrap());
        self.snapshots = Some(snapshots);
        self.next_index = self.reader().status().applied.map_or(1, |log_id| log_id.index + 1);
    }

    pub(super) fn close(&mut self) {
        self.writer = None;
        self.snapshots = None;
    }

    pub(super) fn reopen(&mut self) {
        self.close();
        self.open();
    }

    pub(super) fn writer(&mut self) -> &mut Writer {
        self.writer.as_mut().unwrap()
    }

    pub(super) fn snapshots(&self) -> SnapshotStore {
        self.snapshots.clone().unwrap()
    }

    pub(super) fn reader(&self) -> Reader {
        let shared = self.writer.as_ref().unwrap().shared();
        Reader { shared, snapshots: self.snapshots() }
    }

    /// Applies a group of entries, each a batch of requests.
    pub(super) fn group(&mut self, batches: Vec<Vec<Request>>) -> Vec<Vec<Outcome>> {
        let first = self.next_index;
        self.next_index += batches.len() as u64;
        let entries: Vec<Entry> =
            (first..).zip(batches).map(|(n, requests)| entry(n, requests)).collect();
        let outcomes = self.writer().apply(&entries).unwrap();
        self.writer().write_lines();
        outcomes.into_iter().map(|outcomes| outcomes.0).collect()
    }

    /// Applies one request in an entry of its own.
    pub(super) fn one(&mut self, key: &str, command: Command) -> Outcome {
        self.group(vec![vec![request(key, command)]]).remove(0).remove(0)
    }

    /// Dumps the state into a file that belongs to `to`.
    pub(super) fn dump(&self, to: &SnapshotStore) -> (SnapshotMeta, SnapshotFile) {
        let meta = self.reader().shared.meta();
        let db = self.reader().shared.pool.open().unwrap();
        let file = to.incoming().unwrap();
        snapshot::write(&file, &db, &meta, self.config.snapshot_chunk_bytes).unwrap();
        (meta.snapshot_meta(), file)
    }

    pub(super) fn text_log(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(name)).unwrap()
    }
}

pub(super) fn log_id(index: u64) -> LogId {
    LogId::new(1.into(), index)
}

pub(super) fn entry(index: u64, requests: Vec<Request>) -> Entry {
    let batch = Batch { time_ms: TIME_MS, requests };
    Entry { log_id: log_id(index), payload: EntryPayload::Normal(batch) }
}

pub(super) fn number(n: u64) -> ItemNumber {
    n.try_into().unwrap()
}

pub(super) fn item(n: u64, topic: &str, stock: u64) -> Item {
    Item {
        item_number: number(n),
        title: format!("Book {n}"),
        topic: topic.into(),
        stock,
        cost: 2000,
    }
}

pub(super) fn request(key: &str, command: Command) -> Request {
    Request { key: key.parse().unwrap(), command }
}

pub(super) fn buy(n: u64, quantity: u64) -> Command {
    Command::Buy { item: number(n), quantity, expected_cost: None }
}

/// What comes of the same request when it is repeated.
pub(super) fn replayed(outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Ordered { order, .. } => Outcome::Ordered { order, replayed: true },
        Outcome::Updated { item, .. } => Outcome::Updated { item, replayed: true },
        Outcome::Added { items, .. } => Outcome::Added { items, replayed: true },
        Outcome::Imported { items, .. } => Outcome::Imported { items, replayed: true },
        refusal => refusal,
    }
}

pub(super) fn set_stock(n: u64, stock: u64) -> Command {
    Command::SetStock { item: number(n), stock }
}
