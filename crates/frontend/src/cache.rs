//! The cache: `put`, `get`, `erase`, and the rules that keep it from ever going back in time.
//!
//! The race to beat: a read of item 7 is on its slow way here, item 7 is sold, its invalidation
//! arrives, then the slow answer fills the cache with what is no longer true, for ever. So every
//! answer carries `r`, the log index of the state that was read, and every invalidation its log
//! index `i`. An invalidation drops the entry and leaves a *floor* `i`; a fill below the floor is
//! refused. Both happen under the same lock. When the stream opens, everything below the
//! session's *base* is refused, because invalidations up to there were never sent here; without a
//! session nothing is kept at all.
//!
//! Floors must never be forgotten, and there may be as many as keys. So keys share a fixed table
//! of them by their hash: a floor is the highest of all keys in its place. That may refuse a
//! fill needlessly, when another key of the same place has just changed, and the next read fills
//! again; it can never let an old one in.
//!
//! A single key is read and filled under the lock of its shard. What touches several (a search
//! put together from a page and its items, an invalidation, a change of session) takes the locks
//! of all shards, always in the same order. So a search sees one moment: nothing in it can have
//! been invalidated while it was put together. All locks are free most of the time, and taking
//! them costs less than looking up the items of a page twice to see that none has changed.

use std::{
    array,
    hash::{BuildHasher, BuildHasherDefault},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
};

use pygmy_protocol::{
    Env,
    env::Instant,
    invalidation::CacheKey,
    item::{ItemNumber, PageRequest},
    planted,
};
use quick_cache::{Lifecycle, unsync};

use crate::{
    entry::{Bytewise, Document, Entry, FixedHasher, Page, Pages},
    metrics::Counters,
};

/// Parts with a lock of their own: more than a machine has threads that serve.
const SHARDS: usize = 16;
/// Floors of one shard. At ten thousand sales of different items a second and reads that take
/// 10 ms, fewer than one fill in a hundred is refused for another key's sake.
const FLOORS: usize = 1024;
/// A guess, for the tables that remember what was evicted lately.
const USUAL_ENTRY_BYTES: u64 = 512;

type FixedHash = BuildHasherDefault<FixedHasher>;
type Entries = unsync::Cache<CacheKey, Entry, Bytewise, FixedHash, CountEvictions>;

/// A bounded cache for all threads of one front end.
pub(crate) struct Cache {
    env: Env,
    shards: [Mutex<Shard>; SHARDS],
    /// Nanoseconds of this host's clock until which entries may be served; 0 without a session.
    fresh_until: AtomicU64,
    /// The highest log index that this session's stream has shown.
    seen: AtomicU64,
    counters: Arc<Counters>,
}

struct Shard {
    entries: Entries,
    /// Nothing read before this index is cached; none: there is no session.
    base: Option<u64>,
    floors: Box<[u64; FLOORS]>,
}

/// How much there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
}

/// A page with what its items are.
pub(crate) struct WholePage {
    pub(crate) items: Vec<Arc<Document>>,
    pub(crate) next: Option<Arc<str>>,
}

impl Cache {
    /// An empty cache of `bytes` at most, without a session.
    pub(crate) fn new(env: &Env, bytes: u64, counters: &Arc<Counters>) -> Cache {
        Cache {
            env: env.clone(),
            shards: array::from_fn(|_| Mutex::new(Shard::new(bytes / SHARDS as u64, counters))),
            fresh_until: AtomicU64::new(0),
            seen: AtomicU64::new(0),
            counters: Arc::clone(counters),
        }
    }

    /// The document under `key`.
    pub(crate) fn get(&self, key: &CacheKey) -> Option<Arc<Document>> {
        self.hit(|| self.shard(hash(key)).document(key))
    }

    /// A page of the topic under `key` with all its items, as they were at one moment. None if
    /// anything of it is missing.
    pub(crate) fn get_page(&self, key: &CacheKey, which: PageRequest) -> Option<WholePage> {
        self.hit(|| {
            let shards = self.all_shards();
            let page = shards[shard_of(hash(key))].pages(key)?.get(which)?;
            let items = page.items.iter().map(|number| {
                let key = CacheKey::Item(*number);
                shards[shard_of(hash(&key))].document(&key)
            });
            Some(WholePage { items: items.collect::<Option<_>>()?, next: page.next.clone() })
        })
    }

    /// The one way to a cached answer. The order matters: the end of the lease is read before the
    /// value and compared after it, so that a lease renewed in between does not vouch for a value
    /// that was found without it.
    fn hit<T>(&self, look: impl FnOnce() -> Option<T>) -> Option<T> {
        let end = self.fresh_until.load(SeqCst);
        let found = look()?;
        let within = nanoseconds(self.env.now()) < end || planted!(HitWithoutLease) && end > 0;
        within.then_some(found)
    }

    /// Keeps `document`, which was read at log index `read_at`, unless it may be out of date.
    pub(crate) fn put(&self, key: CacheKey, document: Arc<Document>, read_at: u64) {
        let hash = hash(&key);
        let mut shard = self.shard(hash);
        if shard.admits(hash, read_at) {
            shard.entries.insert(key, Entry::Document(document));
        } else {
            self.counters.fills_refused.inc();
        }
    }

    /// Keeps a page of the topic under `key`, as [`Cache::put`].
    pub(crate) fn put_page(&self, key: CacheKey, which: PageRequest, page: Page, read_at: u64) {
        let hash = hash(&key);
        let mut shard = self.shard(hash);
        if shard.admits(hash, read_at) {
            let mut pages = shard.pages(&key).cloned().unwrap_or_default();
            pages.put(which, page);
            shard.entries.insert(key, Entry::Topic(pages));
        } else {
            self.counters.fills_refused.inc();
        }
    }

    /// Drops `keys`, which changed at log index `index`: what was read before is not taken again.
    /// When this returns, the index may be acknowledged. Gives the items that were there.
    pub(crate) fn erase(&self, index: u64, keys: &[CacheKey]) -> Vec<ItemNumber> {
        let mut shards = self.all_shards();
        let mut dropped = Vec::new();
        for key in keys {
            if *key == CacheKey::All {
                shards.iter_mut().for_each(|shard| shard.erase_all(index));
                continue;
            }
            let hash = hash(key);
            let was_there = shards[shard_of(hash)].erase(hash, key, index);
            if let (true, CacheKey::Item(number)) = (was_there, key) {
                dropped.push(*number);
            }
        }
        self.seen.fetch_max(index, SeqCst);
        self.counters.invalidations.inc_by(keys.len() as u64);
        dropped
    }

    /// Drops `keys` at an operator's wish. No index comes with it, so the highest seen so far
    /// stands in: what is on its way from before that is not taken.
    pub(crate) fn erase_by_hand(&self, keys: &[CacheKey]) {
        self.erase(self.seen.load(SeqCst), keys);
    }

    /// Begins a session, empty: from now on every change after `base` will be erased. Nothing is
    /// served before [`Cache::renew`].
    pub(crate) fn open(&self, base: u64) {
        self.fresh_until.store(0, SeqCst);
        let mut shards = self.all_shards();
        shards.iter_mut().for_each(|shard| shard.restart(Some(base)));
        self.seen.store(base, SeqCst);
    }

    /// Ends the session: first nothing is served, then nothing is left, then nothing is kept.
    pub(crate) fn close(&self) {
        self.fresh_until.store(0, SeqCst);
        let mut shards = self.all_shards();
        shards.iter_mut().for_each(|shard| shard.restart(None));
        self.seen.store(0, SeqCst);
    }

    /// Entries may be served until `end` by this host's clock.
    pub(crate) fn renew(&self, end: Instant) {
        self.fresh_until.store(nanoseconds(end), SeqCst);
    }

    /// How much there is, shard after shard: not of one moment.
    pub(crate) fn size(&self) -> Size {
        self.shards.iter().fold(Size::default(), |sum, shard| {
            let entries = &lock(shard).entries;
            let (len, bytes) = (entries.len() as u64, entries.weight());
            Size { entries: sum.entries + len, bytes: sum.bytes + bytes }
        })
    }

    /// Whether a session is open.
    pub(crate) fn has_session(&self) -> bool {
        lock(&self.shards[0]).base.is_some()
    }

    fn shard(&self, hash: u64) -> MutexGuard<'_, Shard> {
        lock(&self.shards[shard_of(hash)])
    }

    /// In ascending order, everywhere: two threads cannot wait for each other.
    fn all_shards(&self) -> [MutexGuard<'_, Shard>; SHARDS] {
        array::from_fn(|i| lock(&self.shards[i]))
    }
}

impl Shard {
    fn new(bytes: u64, counters: &Arc<Counters>) -> Shard {
        let entries = Entries::with(
            (bytes / USUAL_ENTRY_BYTES) as usize,
            bytes,
            Bytewise,
            FixedHash::default(),
            CountEvictions(Arc::clone(counters)),
        );
        Shard { entries, base: None, floors: Box::new([0; FLOORS]) }
    }

    fn document(&self, key: &CacheKey) -> Option<Arc<Document>> {
        match self.entries.get(key)? {
            Entry::Document(document) => Some(Arc::clone(document)),
            Entry::Topic(_) => None,
        }
    }

    fn pages(&self, key: &CacheKey) -> Option<&Pages> {
        match self.entries.get(key)? {
            Entry::Topic(pages) => Some(pages),
            Entry::Document(_) => None,
        }
    }

    fn admits(&self, hash: u64, read_at: u64) -> bool {
        let floor = if planted!(FillWithoutFloor) { 0 } else { self.floors[floor_of(hash)] };
        self.base.is_some_and(|base| read_at >= base.max(floor))
    }

    fn erase(&mut self, hash: u64, key: &CacheKey, index: u64) -> bool {
        let was_there = self.entries.remove(key).is_some();
        let floor = &mut self.floors[floor_of(hash)];
        *floor = index.max(*floor);
        was_there
    }

    fn erase_all(&mut self, index: u64) {
        self.entries.clear();
        self.base = self.base.map(|base| base.max(index));
    }

    fn restart(&mut self, base: Option<u64>) {
        self.entries.clear();
        self.floors.fill(0);
        self.base = base;
    }
}

/// Counts what had to go for lack of room.
struct CountEvictions(Arc<Counters>);

impl Lifecycle<CacheKey, Entry> for CountEvictions {
    type RequestState = ();

    fn on_evict(&self, (): &mut (), _: CacheKey, _: Entry) {
        self.0.evictions.inc();
    }
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

fn hash(key: &CacheKey) -> u64 {
    FixedHash::default().hash_one(key)
}

// Shard and floor come from different bits, and none that the entries' own table begins with:
// else the keys of a shard would crowd in a sixteenth of its table.

fn shard_of(hash: u64) -> usize {
    (hash >> 32) as usize % SHARDS
}

fn floor_of(hash: u64) -> usize {
    (hash >> 40) as usize % FLOORS
}

/// 64 bits of nanoseconds last for 584 years of uptime.
fn nanoseconds(instant: Instant) -> u64 {
    u64::try_from(instant.since_origin().as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
