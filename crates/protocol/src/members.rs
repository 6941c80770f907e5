//! Which replicas belong to the cluster, and how that is changed.
//!
//! A change is a wish, sent to the leader as the body of `POST /members` and repeated until the
//! answer says that it is done. Each time the leader does at most one step towards it. So nobody
//! has to remember a change that is half done: not the leader, which may be another one by then,
//! and not the cluster.

use serde::{Deserialize, Serialize};

/// The path of the route, at every catalog server. One that does not lead answers 503 and names
/// the leader, as for an invalidation stream.
pub const PATH: &str = "/members";

/// A replica that is to belong to the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Candidate {
    /// The Raft id of its data directory.
    pub id: u64,
    /// Its name in the configuration.
    pub name: String,
    /// Its base URL.
    pub url: String,
}

/// What is to become of the membership.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum MemberChange {
    /// A replica with a new, empty directory takes the place of the one of its name. Refused if
    /// there is none of that name, or if that one still answers.
    Join(Candidate),
    /// A replica with a new name joins.
    Add(Candidate),
    /// The replica of this name leaves.
    Remove {
        /// Who.
        name: String,
    },
    /// One replica takes the place of another, in one step.
    Replace {
        /// The name of the one that leaves.
        old: String,
        /// The one that comes.
        new: Candidate,
    },
    /// The replica of this name leads.
    Lead {
        /// Who.
        name: String,
    },
}

/// How far a change has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberProgress {
    /// Whether the membership is as it was wished; otherwise ask again soon.
    pub done: bool,
    /// What has just been done or is waited for, for people.
    pub detail: String,
}
