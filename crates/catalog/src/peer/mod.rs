//! Replicas talking to one another, over connections of their own.
//!
//! A connection begins as an upgrade of `GET /peer` and carries [`message`]s as frames. [`link`]
//! is the calling side, [`network`] gives it to Raft, [`serve`] is the answering side. Raft has a
//! link each for the log, for heartbeats and for snapshots, so that none holds up another; what
//! followers pass on has one as well.

mod link;
mod message;
mod network;
mod serve;

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;

pub(crate) use link::{Link, LinkError};
pub(crate) use message::{Message, Reply};
pub(crate) use network::PeerNetwork;
pub(crate) use serve::{Answering, serve_peer};

/// The path of the upgrade.
pub(crate) const PATH: &str = "/peer";
/// The name in the `Upgrade` header.
pub(crate) const PROTOCOL: &str = "pygmy-peer";
