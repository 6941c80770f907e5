//! Tests of the log on the [fake disk](FakeDisk), with a worker that runs when told.

mod crash;
mod repair;
mod storage;

use std::{
    fmt,
    future::Future,
    io,
    path::{Path, PathBuf},
    pin::pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
};

use openraft::{
    EntryPayload, RaftLogReader,
    entry::RaftEntry,
    storage::{IOFlushed, RaftLogStorage},
    type_config::TypeConfigExt,
};
use pygmy_protocol::{
    command::{Command, Request},
    env::{Env, FakeDisk, Wake, Workers},
    item::Item,
};
use tokio::sync::oneshot;

use super::{LogConfig, LogError, LogStore, segment};
use crate::raft::{Batch, Entry, LogId, TypeConfig, Vote};

/// Small enough that a few entries fill a segment, and few stay in memory.
const CONFIG: LogConfig = LogConfig { segment_bytes: 512, cache_bytes: 300 };

type Work = Box<dyn FnMut() + Send>;

/// Runs the one worker of a log when told, or at each wake.
#[derive(Default)]
struct SteppedWorker {
    work: Arc<Mutex<Option<Work>>>,
    at_each_wake: bool,
}

impl SteppedWorker {
    fn step(&self) {
        run(&self.work);
    }
}

fn run(work: &Mutex<Option<Work>>) {
    if let Some(work) = &mut *work.lock().unwrap() {
        work();
    }
}

impl Workers for SteppedWorker {
    fn start(&self, _name: &str, work: Work) -> Box<dyn Wake> {
        *self.work.lock().unwrap() = Some(work);
        Box::new(Waking { work: self.at_each_wake.then(|| Arc::clone(&self.work)) })
    }
}

struct Waking {
    work: Option<Arc<Mutex<Option<Work>>>>,
}

impl Wake for Waking {
    fn wake(&self) {
        if let Some(work) = &self.work {
            run(work);
        }
    }
}

fn dir() -> PathBuf {
    PathBuf::from("/data/log")
}

fn segment_path(first: u64) -> PathBuf {
    dir().join(segment::name(first))
}

fn environment(disk: &FakeDisk, workers: Arc<dyn Workers>) -> Env {
    Env { files: Arc::new(disk.clone()), workers, ..Env::production() }
}

/// How an append came out, once that is known.
type Flushed = oneshot::Receiver<io::Result<()>>;

/// A log and its worker.
struct Log {
    store: LogStore,
    worker: Arc<SteppedWorker>,
}

impl Log {
    fn open(disk: &FakeDisk) -> Result<Log, LogError> {
        Log::open_with(disk, CONFIG)
    }

    fn open_with(disk: &FakeDisk, config: LogConfig) -> Result<Log, LogError> {
        let worker = Arc::new(SteppedWorker::default());
        let env = environment(disk, Arc::clone(&worker) as Arc<dyn Workers>);
        Ok(Log { store: LogStore::open(&env, &dir(), config)?, worker })
    }

    /// Opens the log of a process that has ended.
    fn reopen(self, disk: &FakeDisk) -> Result<Log, LogError> {
        drop(self);
        disk.process_death();
        Log::open(disk)
    }

    /// Polls `future`, letting the worker run in between.
    fn drive<F: Future>(worker: &SteppedWorker, future: F) -> F::Output {
        let mut future = pin!(future);
        let mut context = Context::from_waker(Waker::noop());
        loop {
            match future.as_mut().poll(&mut context) {
                Poll::Ready(output) => return output,
                Poll::Pending => worker.step(),
            }
        }
    }

    /// Queues an append. It is done with the next step of the worker.
    fn submit(&mut self, entries: &[Entry]) -> io::Result<Flushed> {
        let (sender, flushed) = TypeConfig::oneshot();
        let append = self.store.append(entries.to_vec(), IOFlushed::signal(sender));
        Log::drive(&self.worker, append)?;
        Ok(flushed)
    }

    fn append(&mut self, entries: &[Entry]) -> io::Result<()> {
        let mut flushed = self.submit(entries)?;
        self.worker.step();
        flushed.try_recv().expect("the worker has done the append")
    }

    fn vote(&mut self, vote: Vote) -> io::Result<()> {
        Log::drive(&self.worker, self.store.save_vote(&vote))
    }

    fn truncate_from(&mut self, from: u64) -> io::Result<()> {
        let last = from.checked_sub(1).map(|index| id(0, index));
        Log::drive(&self.worker, self.store.truncate_after(last))
    }

    fn purge(&mut self, upto: LogId) -> io::Result<()> {
        Log::drive(&self.worker, self.store.purge(upto))
    }

    /// Everything that can be read.
    fn state(&mut self) -> State {
        let log = Log::drive(&self.worker, self.store.get_log_state()).unwrap();
        let entries = Log::drive(&self.worker, self.store.try_get_log_entries(..)).unwrap();
        let vote = Log::drive(&self.worker, self.store.read_vote()).unwrap();
        let state = State { vote, purged: log.last_purged_log_id, entries };
        assert_eq!(log.last_log_id, state.last());
        assert_eq!(self.store.last_index(), state.last().map(|id| id.index));
        assert_eq!(self.store.purged_index(), state.purged.map(|id| id.index));
        state
    }
}

/// The simple model of a log.
#[derive(Clone, Default, PartialEq)]
struct State {
    vote: Option<Vote>,
    purged: Option<LogId>,
    entries: Vec<Entry>,
}

impl State {
    fn last(&self) -> Option<LogId> {
        self.entries.last().map(|entry| entry.log_id).or(self.purged)
    }

    fn next_index(&self) -> u64 {
        self.last().map_or(0, |last| last.index + 1)
    }

    fn truncate_from(&mut self, from: u64) {
        self.entries.retain(|entry| entry.index() < from);
    }

    fn purge(&mut self, upto: LogId) {
        self.purged = self.purged.max(Some(upto));
        self.entries.retain(|entry| entry.index() > upto.index);
    }
}

/// Short, because a failed test shows many of them.
impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids =
            self.entries.iter().map(|entry| entry.log_id.to_string()).collect::<Vec<_>>().join(" ");
        let State { vote, purged, .. } = self;
        write!(
            f,
            "vote {:?}, purged {:?}, entries {ids}",
            vote.map(|v| v.to_string()),
            purged.map(|p| p.to_string())
        )
    }
}

fn id(term: u64, index: u64) -> LogId {
    openraft::testing::log_id::<TypeConfig>(term, 0, index)
}

/// An entry of about `bytes` bytes that `stamp` tells from all others.
fn entry(term: u64, index: u64, stamp: u64, bytes: usize) -> Entry {
    let item_number = pygmy_protocol::item::ItemNumber::try_from(1).unwrap();
    let title = "x".repeat(bytes.saturating_sub(16));
    let item = Item { item_number, title, topic: String::new(), stock: 0, cost: 0 };
    let request =
        Request { key: "k".parse().unwrap(), command: Command::AddItems { items: vec![item] } };
    let batch = Batch { time_ms: stamp, requests: vec![request] };
    Entry { log_id: id(term, index), payload: EntryPayload::Normal(batch) }
}

/// Entries of term 1 and of 64 bytes or so.
fn entries(indexes: impl IntoIterator<Item = u64>) -> Vec<Entry> {
    indexes.into_iter().map(|index| entry(1, index, index, 64)).collect()
}

fn corrupt_path<T>(result: Result<T, LogError>) -> PathBuf {
    match result {
        Err(LogError::Corrupt { path, .. }) => path,
        Err(other) => panic!("not told as damage: {other}"),
        Ok(_) => panic!("the damage was not seen"),
    }
}

fn names(disk: &FakeDisk) -> Vec<String> {
    use pygmy_protocol::env::Files;
    disk.list(Path::new("/data/log")).unwrap()
}
