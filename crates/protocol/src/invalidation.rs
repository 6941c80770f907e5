//! The stream between the catalog's leader and one front end, which keeps its cache fresh.
//!
//! A front end opens it with an upgrade of `GET /invalidations` (protocol
//! `pygmy-invalidations`) on a catalog server; one that does not lead answers 503 and names the
//! leader in [`LEADER_URL`]. The first message of the front end is [`ToCatalog::Hello`], the
//! first of the leader [`FromCatalog::Start`]. Everything after is in log order. The front end
//! acknowledges what it has dropped, and asks for a lease on its cache again and again; the whole
//! protocol is in `crates/frontend/DESIGN.md`.

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
        /// Random, new with every start of the process.
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
