//! The log in memory: what readers see.
//!
//! The newest entries are kept decoded; of all others there is the place in their segment, eight
//! bytes each. The lock is held for moments: never across an await, a read or a write.

use std::{
    collections::VecDeque,
    io,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use openraft::entry::RaftEntry;
use pygmy_protocol::metrics::{Counter, Histogram};

use super::{
    error::{Context, LogError},
    record::{self, Encoded},
    segment::{Place, Segment},
};
use crate::raft::{Entry, LogId, Vote};

/// Figures for the metrics, counted since the log was opened.
#[derive(Debug)]
pub(crate) struct LogFigures {
    /// How long the worker waited for something to be durable.
    pub(crate) fsync: Histogram,
    /// Bytes of records that were written.
    pub(crate) bytes_written: Counter,
}

impl Default for LogFigures {
    fn default() -> LogFigures {
        LogFigures { fsync: Histogram::of_times(), bytes_written: Counter::default() }
    }
}

impl LogFigures {
    pub(super) fn count_fsync(&self, took: Duration) {
        self.fsync.observe_time(took);
    }

    pub(super) fn count_bytes(&self, bytes: usize) {
        self.bytes_written.inc_by(bytes as u64);
    }
}

/// What the store, its readers and the worker share.
pub(super) struct Shared {
    table: Mutex<Table>,
    pub(super) figures: LogFigures,
    cache_bytes: usize,
}

/// An entry in memory.
struct Cached {
    entry: Arc<Entry>,
    /// Of its payload.
    bytes: usize,
}

/// A segment and where its records are.
pub(super) struct Indexed {
    pub(super) segment: Segment,
    pub(super) places: Vec<Place>,
}

/// The entries from `first` up to before `next`. Those from `cached_from` on are in `cache`, those
/// before `written_next` in `segments`: every entry is in one, most are in both.
pub(super) struct Table {
    pub(super) vote: Option<Vote>,
    pub(super) purged: Option<LogId>,
    /// Of the last entry; of the last purged one if there is none.
    pub(super) last: Option<LogId>,
    pub(super) first: u64,
    pub(super) next: u64,
    pub(super) segments: VecDeque<Indexed>,
    cache: VecDeque<Cached>,
    cached_from: u64,
    cache_used_bytes: usize,
    /// How often entries were taken back: tells a reader that was overtaken from a damaged disk.
    truncations: u64,
    failure: Option<(io::ErrorKind, String)>,
}

impl Table {
    /// The table of what recovery found.
    pub(super) fn recovered(
        vote: Option<Vote>,
        purged: Option<LogId>,
        segments: VecDeque<Indexed>,
    ) -> Table {
        let first_kept = purged.map_or(0, |id| id.index + 1);
        let first =
            segments.front().map_or(first_kept, |front| front.segment.first.max(first_kept));
        let next = segments
            .back()
            .map_or(first, |back| back.segment.first + back.places.len() as u64)
            .max(first);
        Table {
            vote,
            purged,
            last: purged,
            first,
            next,
            segments,
            cache: VecDeque::new(),
            cached_from: next,
            cache_used_bytes: 0,
            truncations: 0,
            failure: None,
        }
    }

    /// Whether there are no entries.
    pub(super) fn is_empty(&self) -> bool {
        self.first == self.next
    }

    /// Fails if the worker has failed: whatever comes after that is not known to be durable.
    pub(super) fn check(&self) -> io::Result<()> {
        match &self.failure {
            None => Ok(()),
            Some((kind, why)) => Err(io::Error::new(*kind, why.clone())),
        }
    }

    /// Remembers for all later calls that the worker has failed.
    pub(super) fn fail(&mut self, kind: io::ErrorKind, why: String) {
        self.failure.get_or_insert((kind, why));
    }

    /// Adds entries that follow the last one, or start an empty log; all or none. `records` are
    /// the same entries, encoded.
    ///
    /// # Errors
    /// [`LogError::Hole`].
    pub(super) fn extend(
        &mut self,
        entries: Vec<Arc<Entry>>,
        records: &[Encoded],
    ) -> Result<(), LogError> {
        let Some(start) = records.first().map(|record| record.index) else { return Ok(()) };
        let behind = if self.is_empty() { start.max(self.next) } else { self.next };
        let misfit = (behind..).zip(records).find(|(index, record)| *index != record.index);
        if let Some((_, record)) = misfit {
            return Err(LogError::Hole {
                found: record.index,
                last: self.last.map(|last| last.index),
            });
        }
        if self.is_empty() {
            (self.first, self.cached_from) = (start, start);
        }
        self.next = start + entries.len() as u64;
        self.last = entries.last().map(|entry| entry.log_id());
        for (entry, record) in entries.into_iter().zip(records) {
            let bytes = record.payload.len();
            self.cache_used_bytes += bytes;
            self.cache.push_back(Cached { entry, bytes });
        }
        Ok(())
    }

    /// Drops the oldest decoded entries that are over `limit_bytes`, if they are durable.
    pub(super) fn evict(&mut self, limit_bytes: usize, durable_before: u64) {
        while self.cache_used_bytes > limit_bytes && self.cached_from < durable_before {
            self.drop_oldest_cached();
        }
    }

    fn drop_oldest_cached(&mut self) {
        if let Some(dropped) = self.cache.pop_front() {
            self.cache_used_bytes -= dropped.bytes;
            self.cached_from += 1;
        }
    }

    /// Takes back the entries from `from` on, `last` being the last that stays.
    pub(super) fn truncate(&mut self, from: u64, last: Option<LogId>) {
        while self.next > from.max(self.cached_from) {
            self.next -= 1;
            self.cache_used_bytes -= self.cache.pop_back().map_or(0, |dropped| dropped.bytes);
        }
        self.next = from;
        self.cached_from = self.cached_from.min(from);
        self.last = last;
        self.truncations += 1;
    }

    /// Forgets the entries up to `upto`, which may be behind the last one.
    pub(super) fn purge(&mut self, upto: LogId) {
        self.purged = Some(upto);
        self.first = self.first.max(upto.index + 1);
        while self.cached_from < self.first && !self.cache.is_empty() {
            self.drop_oldest_cached();
        }
        self.cached_from = self.cached_from.max(self.first);
        self.next = self.next.max(self.first);
        if self.is_empty() {
            self.last = Some(upto);
        }
    }

    /// The segment that entry `index` is in or would be in.
    pub(super) fn segment_of(&self, index: u64) -> Option<&Indexed> {
        let after = self.segments.partition_point(|indexed| indexed.segment.first <= index);
        self.segments.get(after.checked_sub(1)?)
    }

    fn place_of(&self, index: u64) -> Option<(&Segment, Place)> {
        let indexed = self.segment_of(index)?;
        let place = indexed.places.get((index - indexed.segment.first) as usize)?;
        Some((&indexed.segment, *place))
    }

    fn cached(&self, index: u64) -> Option<&Cached> {
        self.cache.get(index.checked_sub(self.cached_from)? as usize)
    }

    /// Where the entries of `range` that exist are to be had, until they have `limit_bytes`
    /// together; one at least.
    fn locate(&self, range: Range<u64>, limit_bytes: usize) -> Vec<Located> {
        let mut located = Vec::new();
        let mut bytes = 0;
        for index in range.start.max(self.first)..range.end.min(self.next) {
            let (one, its_bytes) = match (self.cached(index), self.place_of(index)) {
                (Some(cached), _) => (Located::Memory(Arc::clone(&cached.entry)), cached.bytes),
                (None, Some((segment, place))) => (
                    Located::Disk { segment: segment.clone(), place, index },
                    place.length as usize,
                ),
                // Cannot be; Raft takes the missing end for the fault that it would be.
                (None, None) => break,
            };
            bytes += its_bytes;
            if bytes > limit_bytes && !located.is_empty() {
                break;
            }
            located.push(one);
        }
        located
    }
}

/// Where an entry is to be had.
enum Located {
    Memory(Arc<Entry>),
    Disk { segment: Segment, place: Place, index: u64 },
}

impl Located {
    fn load(self) -> Result<Entry, LogError> {
        match self {
            Located::Memory(entry) => Ok(Entry::clone(&entry)),
            Located::Disk { segment, place, index } => read_stored(&segment, place, index),
        }
    }
}

/// Reads one entry back from its segment.
fn read_stored(segment: &Segment, place: Place, index: u64) -> Result<Entry, LogError> {
    let (path, offset) = (&segment.path, u64::from(place.offset));
    let mut bytes = vec![0; record::HEAD_BYTES + place.length as usize];
    segment.file.read_exact_at(&mut bytes, offset).context("read", path)?;
    match record::parse(&bytes, segment.first) {
        Some((head, payload)) if head.index == index => {
            record::decode(payload).context("decode an entry of", path)
        }
        _ => Err(LogError::corrupt(
            path,
            offset,
            format!("the record of entry {index} fails its check"),
        )),
    }
}

impl Shared {
    pub(super) fn new(table: Table, cache_bytes: usize) -> Shared {
        Shared { table: Mutex::new(table), figures: LogFigures::default(), cache_bytes }
    }

    /// Locks the table.
    pub(super) fn table(&self) -> MutexGuard<'_, Table> {
        // A panic while the lock was held leaves at worst an entry that is not flushed: Raft
        // never hears of it.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything before `durable_before` is fsynced now.
    pub(super) fn flushed(&self, durable_before: u64) {
        self.table().evict(self.cache_bytes, durable_before);
    }

    /// The entries of `range` that exist, until they have `limit_bytes` together; one at least.
    ///
    /// # Errors
    /// If the worker has failed, or as the disk says.
    pub(super) fn read(&self, range: Range<u64>, limit_bytes: usize) -> io::Result<Vec<Entry>> {
        loop {
            let (located, truncations) = {
                let table = self.table();
                table.check()?;
                (table.locate(range.clone(), limit_bytes), table.truncations)
            };
            let entries: Result<Vec<Entry>, LogError> =
                located.into_iter().map(Located::load).collect();
            match entries {
                Ok(entries) => return Ok(entries),
                // A truncation wiped what was about to be read: look again. Each round needs
                // another truncation, and Raft makes one per term.
                Err(_) if self.table().truncations != truncations => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The id of entry `index`, which must exist.
    pub(super) fn log_id(&self, index: u64) -> io::Result<LogId> {
        match self.read(index..index + 1, 0)?.first() {
            Some(entry) => Ok(entry.log_id()),
            None => Err(io::Error::other(format!("entry {index} is not in the log"))),
        }
    }
}
