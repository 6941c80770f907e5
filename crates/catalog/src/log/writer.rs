//! The worker that writes: the only one that changes files after the start.
//!
//! Jobs are done strictly in order. Appends that wait together are written together and fsynced
//! once, then their callbacks fire in order; a vote, a truncation or a purge first has the appends
//! before it fsynced. An error is final: it goes to every callback from then on, and the fsync
//! that failed is never tried again, because the kernel may have dropped what it should have
//! written.

use std::{
    collections::VecDeque,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use openraft::storage::IOFlushed;
use pygmy_protocol::{
    env::{Env, File},
    planted,
};
use tokio::sync::oneshot;

use super::{
    LogConfig,
    error::{Context, LogError},
    hard_state::{HardState, HardStateFile},
    record::Encoded,
    segment::{self, Place, Segment},
    table::{Indexed, Shared},
};
use crate::raft::{LogId, TypeConfig, Vote};

/// How much of the buffer is kept between batches: a usual batch. It grows to a segment at most, or
/// to one record that is larger.
const KEPT_BUFFER_BYTES: usize = 1024 * 1024;

/// Tells how a job came out.
pub(super) type Done = oneshot::Sender<io::Result<()>>;

/// What the worker is asked to do.
pub(super) enum Job {
    /// Write entries; they are in the table already.
    Append { records: Vec<Encoded>, flushed: IOFlushed<TypeConfig> },
    /// Save a vote.
    Vote { vote: Vote, done: Done },
    /// Take back all entries from this index on.
    Truncate { from: u64, done: Done },
    /// Forget all entries up to this one.
    Purge { upto: LogId, done: Done },
}

/// What a truncation leaves to do on the disk.
struct Cut {
    /// The segment that the log now ends in.
    target: Segment,
    /// Where in it the log ends, and where the records end that are void now.
    records_end: u64,
    debris_end: u64,
    /// The segments after it.
    void: Vec<Segment>,
}

/// The worker's state.
pub(super) struct Writer {
    env: Env,
    dir: PathBuf,
    segment_bytes: u64,
    shared: Arc<Shared>,
    hard_state: HardStateFile,
    active: Segment,
    /// Length of the active segment's file, and the end of what is written in it.
    active_bytes: u64,
    written_bytes: u64,
    /// Records for the active segment that are not written yet, and where they will be.
    buffer: Vec<u8>,
    places: Vec<Place>,
    /// The index that the next record must have.
    next: u64,
    /// Every entry below is fsynced.
    durable_before: u64,
    spare: Option<Arc<dyn File>>,
    /// Whether the last try to reserve a spare failed.
    is_short: bool,
    /// Of the appends that are not fsynced yet.
    callbacks: Vec<IOFlushed<TypeConfig>>,
}

impl Writer {
    /// Takes over from recovery, which has made everything that it found durable. `active` is the
    /// last segment of the table.
    pub(super) fn new(
        env: &Env,
        dir: &Path,
        config: LogConfig,
        shared: Arc<Shared>,
        hard_state: HardStateFile,
        active: (Segment, u64),
    ) -> Result<Writer, LogError> {
        let (active, written_bytes) = active;
        let active_bytes = active.file.len().context("measure", &active.path)?;
        let next = shared.table().next;
        Ok(Writer {
            env: env.clone(),
            dir: dir.to_owned(),
            segment_bytes: config.segment_bytes,
            shared,
            hard_state,
            active,
            active_bytes,
            written_bytes,
            buffer: Vec::new(),
            places: Vec::new(),
            next,
            durable_before: next,
            spare: None,
            is_short: false,
            callbacks: Vec::new(),
        })
    }

    /// Does all jobs that wait.
    pub(super) fn drain(&mut self, jobs: &mut VecDeque<Job>) {
        while let Some(job) = jobs.pop_front() {
            match job {
                Job::Append { records, flushed } => {
                    self.callbacks.push(flushed);
                    // The outcome reaches the callback with the flush.
                    let _ = self
                        .attempt(|writer| records.iter().try_for_each(|record| writer.put(record)));
                }
                Job::Vote { vote, done } => self.finish(done, |writer| writer.save_vote(vote)),
                Job::Truncate { from, done } => self.finish(done, |writer| writer.truncate(from)),
                Job::Purge { upto, done } => self.finish(done, |writer| writer.purge(upto)),
            }
        }
        self.flush();
        if self.shared.table().check().is_ok() {
            self.prepare_spare();
        }
    }

    /// Does `work` unless the worker has failed before; a failure is remembered for all to come.
    fn attempt(
        &mut self,
        work: impl FnOnce(&mut Writer) -> Result<(), LogError>,
    ) -> io::Result<()> {
        self.shared.table().check()?;
        work(self).map_err(|error| {
            tracing::error!(%error, "the Raft log cannot go on");
            let error = io::Error::from(error);
            self.shared.table().fail(error.kind(), error.to_string());
            error
        })
    }

    /// Does a job that stands alone, behind the appends before it.
    fn finish(&mut self, done: Done, work: impl FnOnce(&mut Writer) -> Result<(), LogError>) {
        self.flush();
        // Whoever asked may be gone.
        let _ = done.send(self.attempt(work));
    }

    /// Makes the appends so far durable and says so.
    fn flush(&mut self) {
        if self.callbacks.is_empty() {
            return;
        }
        let result = self.attempt(Writer::sync_active);
        for callback in self.callbacks.drain(..) {
            let result = result.as_ref().map_err(|e| io::Error::new(e.kind(), e.to_string()));
            callback.io_completed(result.copied());
        }
    }

    /// Buffers one record, in a new segment if the active one has no room.
    fn put(&mut self, record: &Encoded) -> Result<(), LogError> {
        if record.index != self.next {
            // The table lets only an empty log go on elsewhere.
            self.restart_at(record.index)?;
        }
        self.make_room(record)?;
        let offset = self.written_bytes + self.buffer.len() as u64;
        record.write_to(&mut self.buffer, self.active.first, self.durable_before);
        self.places.push(Place { offset: offset as u32, length: record.payload.len() as u32 });
        self.next = record.index + 1;
        Ok(())
    }

    fn make_room(&mut self, record: &Encoded) -> Result<(), LogError> {
        let bytes = record.stored_bytes();
        if self.written_bytes + self.buffer.len() as u64 + bytes <= self.active_bytes {
            return Ok(());
        }
        self.sync_active()?;
        if self.written_bytes > segment::HEAD_BYTES {
            self.start_segment(record.index, false)?;
        }
        let needed = segment::HEAD_BYTES + bytes;
        if needed > self.active_bytes {
            let Segment { path, file, .. } = &self.active;
            file.allocate(needed).context("reserve room for", path)?;
            self.active_bytes = needed;
        }
        Ok(())
    }

    /// Writes what is buffered and syncs it.
    fn sync_active(&mut self) -> Result<(), LogError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let Segment { path, file, .. } = &self.active;
        file.write_all_at(&self.buffer, self.written_bytes).context("write", path)?;
        if !planted!(AckBeforeFsync) {
            self.timed(|| file.sync_data()).context("sync", path)?;
            self.durable_before = self.next;
        }
        self.written_bytes += self.buffer.len() as u64;
        self.shared.figures.count_bytes(self.buffer.len());
        self.buffer.clear();
        self.buffer.shrink_to(KEPT_BUFFER_BYTES);
        if let Some(newest) = self.shared.table().segments.back_mut() {
            newest.places.append(&mut self.places);
        }
        self.shared.flushed(self.next);
        Ok(())
    }

    /// Goes on in a new segment. The active one is synced: only the newest segment may have a torn
    /// tail.
    fn start_segment(&mut self, first: u64, starts_log: bool) -> Result<(), LogError> {
        let spare = match self.spare.take() {
            Some(spare) => spare,
            None => segment::reserve(&*self.env.files, &self.dir, self.segment_bytes)
                .context("reserve a segment in", &self.dir)?,
        };
        let segment =
            self.timed(|| Segment::create(&*self.env.files, &self.dir, spare, first, starts_log))?;
        // From here on a log without this segment is known to be damaged.
        self.save(|state| state.newest_segment = first)?;
        let indexed = Indexed { segment: segment.clone(), places: Vec::new() };
        self.shared.table().segments.push_back(indexed);
        self.active = segment;
        self.active_bytes = self.segment_bytes;
        self.written_bytes = segment::HEAD_BYTES;
        Ok(())
    }

    /// Goes on at `first`, and not behind the last entry: everything before is void.
    pub(super) fn restart_at(&mut self, first: u64) -> Result<(), LogError> {
        self.next = first;
        self.durable_before = first;
        self.start_segment(first, true)?;
        let void: Vec<Indexed> = {
            let mut table = self.shared.table();
            let newest = table.segments.len() - 1;
            table.segments.drain(..newest).collect()
        };
        self.remove(void.into_iter().map(|indexed| indexed.segment))
    }

    fn save_vote(&mut self, vote: Vote) -> Result<(), LogError> {
        if !planted!(VoteNotPersisted) {
            self.save(|state| state.vote = Some(vote))?;
        }
        self.shared.table().vote = Some(vote);
        Ok(())
    }

    /// Takes back the entries from `from` on.
    ///
    /// The intention is saved first: from then on recovery takes them back, too, whatever of the
    /// steps below was done. It is withdrawn when the records are wiped, before anything can be
    /// appended in their place.
    fn truncate(&mut self, from: u64) -> Result<(), LogError> {
        let (from, kept, purged) = {
            let table = self.shared.table();
            let from = from.max(table.first);
            if from >= table.next {
                return Ok(());
            }
            (from, (from > table.first).then(|| from - 1), table.purged)
        };
        let last = match kept {
            Some(index) => Some(self.shared.log_id(index).context("read the log in", &self.dir)?),
            None => purged,
        };
        let Cut { target, records_end, debris_end, void } = self.cut_table(from, last);
        self.next = from;
        self.durable_before = self.durable_before.min(from);
        self.save(|state| {
            state.truncating_from = Some(from);
            state.newest_segment = target.first;
        })?;
        if !void.is_empty() {
            self.remove(void.into_iter().rev())?;
            self.timed(|| self.env.files.sync_dir(&self.dir)).context("sync", &self.dir)?;
        }
        target.wipe(records_end, debris_end).context("write", &target.path)?;
        self.timed(|| target.file.sync_data()).context("sync", &target.path)?;
        self.save(|state| state.truncating_from = None)?;
        self.active_bytes = target.file.len().context("measure", &target.path)?;
        self.written_bytes = records_end;
        self.active = target;
        Ok(())
    }

    /// Takes the entries from `from` on out of the table.
    fn cut_table(&self, from: u64, last: Option<LogId>) -> Cut {
        let mut table = self.shared.table();
        table.truncate(from, last);
        let mut void = Vec::new();
        loop {
            // Recovery leaves one segment at least, and the first one starts at or before the
            // first entry.
            let newest = table.segments.back_mut().expect("a log has a segment");
            if newest.segment.first > from {
                void.insert(0, newest.segment.clone());
                table.segments.pop_back();
                continue;
            }
            let debris_end = segment::records_end(&newest.places);
            newest.places.truncate((from - newest.segment.first) as usize);
            let records_end = segment::records_end(&newest.places);
            return Cut { target: newest.segment.clone(), records_end, debris_end, void };
        }
    }

    /// Forgets the entries up to `upto`. It is a fact once it is saved; files that a crash leaves
    /// behind, or brings back, are removed by recovery, so the directory need not be synced.
    fn purge(&mut self, upto: LogId) -> Result<(), LogError> {
        if self.hard_state.saved().first_kept() > upto.index {
            return Ok(());
        }
        self.durable_before = self.durable_before.max(upto.index + 1);
        self.save(|state| state.purged = Some(upto))?;
        let mut void = Vec::new();
        {
            let mut table = self.shared.table();
            table.purge(upto);
            while table.segments.get(1).is_some_and(|second| second.segment.first <= upto.index + 1)
            {
                void.extend(table.segments.pop_front().map(|indexed| indexed.segment));
            }
        }
        self.remove(void.into_iter())?;
        if self.next <= upto.index {
            self.restart_at(upto.index + 1)?;
        }
        Ok(())
    }

    fn remove(&self, segments: impl Iterator<Item = Segment>) -> Result<(), LogError> {
        for Segment { path, .. } in segments {
            self.env.files.remove(&path).context("remove", &path)?;
        }
        Ok(())
    }

    /// Saves the hard state with a change.
    fn save(&mut self, change: impl FnOnce(&mut HardState)) -> Result<(), LogError> {
        let mut state = self.hard_state.saved().clone();
        change(&mut state);
        state.durable_before = self.durable_before;
        let start = self.env.now();
        self.hard_state.save(state).context("write the vote in", &self.dir)?;
        self.shared.figures.count_fsync(self.env.now().saturating_since(start));
        Ok(())
    }

    /// Reserves the next segment when the active one is half full, while nobody waits. Whatever keeps
    /// it from that, a full disk above all, is no failure yet: it is one when the segment is needed.
    fn prepare_spare(&mut self) {
        if self.spare.is_some() || self.written_bytes < self.active_bytes / 2 {
            return;
        }
        match segment::reserve(&*self.env.files, &self.dir, self.segment_bytes) {
            Ok(spare) => self.spare = Some(spare),
            Err(error) if !self.is_short => {
                tracing::warn!(%error, dir = %self.dir.display(), "the next segment of the Raft log cannot be reserved yet");
            }
            Err(_) => {}
        }
        self.is_short = self.spare.is_none();
    }

    fn timed<T>(&self, sync: impl FnOnce() -> T) -> T {
        let start = self.env.now();
        let result = sync();
        self.shared.figures.count_fsync(self.env.now().saturating_since(start));
        result
    }
}
