//! What openraft's many type parameters are here.

use std::fmt;

use pygmy_protocol::command::{Outcome, Request};
use serde::{Deserialize, Serialize};

use super::runtime::EnvRuntime;

openraft::declare_raft_types!(
    /// Raft as this store uses it. The standard leader id allows one leader in a term: the
    /// cache protocol compares terms.
    pub(crate) TypeConfig:
        D = Batch,
        R = Outcomes,
        NodeId = u64,
        Node = Member,
        LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>,
        AsyncRuntime = EnvRuntime,
);

/// A log entry: whatever the leader had waiting when it proposed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Batch {
    /// The leader's wall clock, in milliseconds since 1970: the only time that applying knows.
    pub(crate) time_ms: u64,
    /// Applied in this order.
    pub(crate) requests: Vec<Request>,
}

impl fmt::Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} requests", self.requests.len())
    }
}

/// What an entry came to: one outcome per request. Empty for entries of Raft's own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Outcomes(pub(crate) Vec<Outcome>);

/// A replica, as the membership in the log knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Member {
    /// Its name in the configuration.
    pub(crate) name: String,
    /// Its base URL.
    pub(crate) url: String,
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.name, self.url)
    }
}

pub(crate) type CatalogRaft = openraft::Raft<TypeConfig, crate::state::StateMachine>;
pub(crate) type Entry = openraft::type_config::alias::EntryOf<TypeConfig>;
pub(crate) type LogId = openraft::type_config::alias::LogIdOf<TypeConfig>;
pub(crate) type Vote = openraft::type_config::alias::VoteOf<TypeConfig>;
pub(crate) type StoredMembership = openraft::type_config::alias::StoredMembershipOf<TypeConfig>;
pub(crate) type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<TypeConfig>;
pub(crate) type Snapshot =
    openraft::type_config::alias::SnapshotOf<TypeConfig, crate::state::SnapshotFile>;

/// The id of entry `index` that the leader of `term` made.
#[cfg(test)]
pub(crate) fn log_id(term: u64, index: u64) -> LogId {
    use openraft::vote::RaftLeaderIdExt;
    LogId::new(openraft::impls::leader_id_std::LeaderId::<u64, u64>::new_committed(term, 1), index)
}
