//! The stream between the catalog's leader and one front end, which keeps its cache fresh.
//!
//! A front end opens it with an upgrade of `GET /invalidations` (protocol
//! `pygmy-invalidations`) on a catalog server; one that does not lead answers 503 and names the
//! leader in [`LEADER_URL`]. The first message of the front end is [`ToCatalog::Hello`], the
//! first of the leader [`FromCatalog::Start`]. Everything after is in log order. The front end
//! acknowledges what it has dropped, and asks for a lease on its cache again and again; the whole
//! protocol is in `crates/frontend/DESIGN.md`.

use std::{ops::RangeInclusive, time::Duration};

use http::HeaderName;
use serde::{Deserialize, Serialize};

use crate::item::{Item, ItemNumber};

/// The path of the upgrade.
pub const PATH: &str = "/invalidations";
/// The name in the `Upgrade` header.
pub const PROTOCOL: &str = "pygmy-invalidations";
/// On a 503 of a catalog server that does not lead: the base URL of the one that does.
pub const LEADER_URL: HeaderName = HeaderName::from_static("pygmy-leader-url");

/// Most front-end processes that may hold leases at a time.
pub const MAX_HOLDERS: usize = 256;
/// How long leases may be, in milliseconds.
pub const LEASE_MS: RangeInclusive<u64> = 50..=10_000;

/// Names a front-end process whose leases last `lease`: 96 random bits, new with every start, and
/// below them the lease in milliseconds. So whoever knows a process knows how long to wait for it,
/// also a leader that has never met it, and one that is configured otherwise because a changed
/// configuration is being rolled out.
pub fn nonce(random: u128, lease: Duration) -> u128 {
    random << 32 | u128::from(u32::try_from(lease.as_millis()).unwrap_or(u32::MAX))
}

/// How long the leases of the process with that nonce last; `None` if it does not say so.
pub fn lease_of(nonce: u128) -> Option<Duration> {
    let ms = nonce as u64 & u64::from(u32::MAX);
    LEASE_MS.contains(&ms).then(|| Duration::from_millis(ms))
}

/// What a cache entry is about. Items, topics and the list of topics are distinct.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum CacheKey {
    /// One item.
    Item(ItemNumber),
    /// The item numbers of one topic, not what the items are.
    Topic(String),
    /// The list of topics with their counts.
    Topics,
    /// Everything: an operator's wish, or more keys than are worth listing.
    All,
}

/// From the front end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToCatalog {
    /// Who it is.
    Hello {
        /// The front end's name in the configuration.
        name: String,
        /// As [`nonce`] makes it.
        nonce: u128,
    },
    /// Everything up to this log index is dropped from the cache. Cumulative.
    Acknowledge {
        /// The index of an [`FromCatalog::Invalidate`] or the base of [`FromCatalog::Start`].
        index: u64,
    },
    /// Asks for a lease, counted from now by the front end's clock.
    Renew {
        /// Higher with each request on this stream.
        number: u64,
        /// Whether items that changed since the last request were in the cache: then it pays to
        /// send what they become.
        wants_items: bool,
    },
}

/// From the leader.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromCatalog {
    /// The session is open. Nothing read before `base` may be cached.
    Start {
        /// The leader's term.
        term: u64,
        /// The leader's applied index when the session was opened.
        base: u64,
    },
    /// What changed at log index `index`.
    Invalidate {
        /// Higher than all before on this stream.
        index: u64,
        /// What to drop.
        keys: Vec<CacheKey>,
        /// What some of the items are after it. Not to be told to anybody before
        /// [`FromCatalog::Released`] has come with this index or a later one.
        items: Vec<Item>,
    },
    /// Everything up to this index may be told.
    Released {
        /// Of the log.
        index: u64,
    },
    /// The lease that was asked for with this number is granted.
    Granted {
        /// That of the [`ToCatalog::Renew`].
        number: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nonce_says_how_long_the_leases_are() {
        for ms in [*LEASE_MS.start(), 500, *LEASE_MS.end()] {
            let lease = Duration::from_millis(ms);
            assert_eq!(lease_of(nonce(u128::MAX, lease)), Some(lease));
            assert_ne!(nonce(1, lease), nonce(2, lease));
        }
        for ms in [0, LEASE_MS.start() - 1, LEASE_MS.end() + 1, u64::MAX] {
            assert_eq!(lease_of(nonce(7, Duration::from_millis(ms))), None);
        }
    }
}
