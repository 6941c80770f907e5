//! The log as openraft sees it.

use std::{
    fmt::Debug,
    io,
    ops::{Bound, Range, RangeBounds},
    path::Path,
    sync::Arc,
    time::Duration,
};

use futures_util::{Stream, TryStreamExt, future, stream};
use openraft::{
    LogState, OptionalSend, RaftLogReader,
    storage::{IOFlushed, RaftLogStorage},
};
use pygmy_protocol::env::{Env, Worker};
use tokio::sync::oneshot;

use super::{
    LogConfig, LogError, hard_state,
    record::Encoded,
    recovery,
    table::{LogFigures, Shared},
    writer::{Done, Job},
};
use crate::{
    identity::remove_files,
    raft::{Entry, LogId, TypeConfig, Vote},
};

/// What one read for replication gives at most, in bytes of payload: one AppendEntries. Small
/// enough not to hold up a heartbeat on a slow link, large enough to catch up at full speed.
const READ_BYTES: usize = 1024 * 1024;

/// The log. Clones are the same log; only one of them may write at a time, as openraft does.
#[derive(Clone)]
pub(crate) struct LogStore {
    shared: Arc<Shared>,
    worker: Arc<Worker<Job>>,
}

impl LogStore {
    /// Whether there is a log in `dir`, whole or not.
    pub(crate) fn exists(env: &Env, dir: &Path) -> io::Result<bool> {
        env.files.exists(&dir.join(hard_state::NAME))
    }

    /// Removes the log in `dir`, if there is one.
    pub(crate) fn remove(env: &Env, dir: &Path) -> io::Result<()> {
        remove_files(&*env.files, dir, |_| true)
    }

    /// Opens the log in `dir`, or makes a new one, and starts its worker. Blocks: for use at the
    /// start. The caller holds the lock of the data directory.
    ///
    /// # Errors
    /// [`LogError::Corrupt`] if something may be lost that was acknowledged; [`LogError::Newer`]
    /// for the data of a later build; [`LogError::Io`].
    pub(crate) fn open(env: &Env, dir: &Path, config: LogConfig) -> Result<LogStore, LogError> {
        let (shared, mut writer) = recovery::open(env, dir, config.clamped())?;
        // On a follower the queue is bounded by what the leader has under way. A leader whose disk
        // stalls goes on for a moment, until it gives way (`stall`).
        let worker = Worker::start(env, "log", move |jobs| writer.drain(jobs));
        Ok(LogStore { shared, worker: Arc::new(worker) })
    }

    /// Index of the last entry, durable or not; of the last purged one if there is none.
    pub(crate) fn last_index(&self) -> Option<u64> {
        self.shared.table().last.map(|id| id.index)
    }

    /// Index of the last entry that was purged.
    pub(crate) fn purged_index(&self) -> Option<u64> {
        self.shared.table().purged.map(|id| id.index)
    }

    /// Whether the log has ever held a vote or an entry.
    pub(crate) fn holds_data(&self) -> bool {
        let table = self.shared.table();
        table.vote.is_some() || table.last.is_some()
    }

    /// How long what is to be written has been waited for, or is being written.
    pub(crate) fn busy_for(&self) -> Duration {
        self.worker.busy_for()
    }

    /// Figures for the metrics.
    pub(crate) fn figures(&self) -> &LogFigures {
        &self.shared.figures
    }

    /// Hands a job to the worker and waits until it is done. Without a deadline: what a stalled
    /// disk will make of the job is unknown until it is done, and Raft may not go on before.
    async fn wait_for(&self, job: impl FnOnce(Done) -> Job) -> io::Result<()> {
        self.shared.table().check()?;
        let (done, outcome) = oneshot::channel();
        self.worker.submit(job(done));
        outcome.await.map_err(|_| io::Error::other("the worker of the Raft log has ended"))?
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> io::Result<Vec<Entry>> {
        self.shared.read(half_open(&range), usize::MAX)
    }

    /// In steps: after a power loss that took much from the database, all of it would be as much memory,
    /// and nobody else would have a turn meanwhile.
    async fn entries_stream<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> impl Stream<Item = io::Result<Entry>> + OptionalSend {
        let (shared, Range { start, end }) = (Arc::clone(&self.shared), half_open(&range));
        let steps = stream::try_unfold(start, move |next| {
            let step = if next < end { shared.read(next..end, READ_BYTES) } else { Ok(Vec::new()) };
            let step = step.map(|step| {
                let next = step.last()?.log_id.index + 1;
                Some((stream::iter(step.into_iter().map(Ok)), next))
            });
            future::ready(step)
        });
        steps.try_flatten()
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.shared.read(start..end, READ_BYTES)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        let table = self.shared.table();
        table.check()?;
        Ok(table.vote)
    }
}

// `save_committed` is left out on purpose. The state machine keeps its applied index in the same
// transaction as the state, so a restart needs the committed index only for what a power loss took
// from SQLite; that is applied again once the leader's commit index is known, and nobody is served
// before: a read waits until its replica has applied as far as the leader says. Saving it here would cost an fsync per batch, or be as old.
impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let table = self.shared.table();
        table.check()?;
        Ok(LogState { last_purged_log_id: table.purged, last_log_id: table.last })
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let vote = *vote;
        self.wait_for(|done| Job::Vote { vote, done }).await
    }

    async fn append<I>(&mut self, entries: I, flushed: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Arc<Entry>> = entries.into_iter().map(Arc::new).collect();
        let records: Vec<Encoded> =
            entries.iter().map(|entry| Encoded::new(entry)).collect::<Result<_, LogError>>()?;
        {
            let mut table = self.shared.table();
            table.check()?;
            table.extend(entries, &records)?;
        }
        self.worker.submit(Job::Append { records, flushed });
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let from = last.map_or(0, |id| id.index + 1);
        self.wait_for(|done| Job::Truncate { from, done }).await
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        self.wait_for(|done| Job::Purge { upto, done }).await
    }
}

fn half_open(range: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(&start) => start,
        Bound::Excluded(&before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(&last) => last.saturating_add(1),
        Bound::Excluded(&end) => end,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}
