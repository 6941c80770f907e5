use std::sync::atomic::AtomicU64;

/// What the front end counts, since its start.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Reads answered from the cache.
    pub(crate) hits: AtomicU64,
    /// Reads that were not.
    pub(crate) misses: AtomicU64,
    /// Answers of the catalog that were not kept, because an invalidation may have overtaken
    /// them or there is no session.
    pub(crate) fills_refused: AtomicU64,
    /// Keys dropped because they changed.
    pub(crate) invalidations: AtomicU64,
    /// Entries dropped for lack of room.
    pub(crate) evictions: AtomicU64,
}
