//! What replicas say to one another.

use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    VoteRequest, VoteResponse,
};
use pygmy_protocol::command::{Outcome, Request};
use serde::{Deserialize, Serialize};

use crate::raft::{SnapshotMeta, TypeConfig, Vote};

/// The first frame on a connection.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// The Raft id that the caller wants to talk to. Another one hangs up: its directory is not
    /// the one that the caller knows.
    pub(crate) to: u64,
    /// The caller's Raft id, for the logs.
    pub(crate) from: u64,
}

/// A call, with the number that its reply carries.
#[derive(Serialize, Deserialize)]
pub(crate) struct Numbered<M> {
    pub(crate) number: u64,
    pub(crate) message: M,
}

/// A call from one replica to another.
#[derive(Serialize, Deserialize)]
pub(crate) enum Message {
    /// Raft: log entries, or a heartbeat.
    Append(AppendEntriesRequest<TypeConfig>),
    /// Raft: an election.
    Vote(VoteRequest<TypeConfig>),
    /// Raft: would you vote for me?
    PreVote(VoteRequest<TypeConfig>),
    /// Raft: become the leader.
    TransferLeader(TransferLeaderRequest<TypeConfig>),
    /// A snapshot of this many bytes begins.
    SnapshotBegin { vote: Vote, meta: Box<SnapshotMeta>, bytes: u64 },
    /// Its next bytes.
    SnapshotChunk(Vec<u8>),
    /// All bytes were sent: install it.
    SnapshotEnd,
    /// Requests that came to a follower. Answered when their effect is released.
    Forward { requests: Vec<Request>, deadline_ms: u64 },
    /// From which index on is a read fresh that begins now?
    ReadIndex,
    /// Answer when the state up to this index may be revealed.
    AwaitReleased { index: u64, deadline_ms: u64 },
    /// Is there room on your disk?
    Room,
}

/// The answer to a [`Message`].
#[derive(Serialize, Deserialize)]
pub(crate) enum Reply {
    Append(AppendEntriesResponse<TypeConfig>),
    Vote(VoteResponse<TypeConfig>),
    TransferLeader(openraft::raft::TransferLeaderResponse<TypeConfig>),
    /// The bytes were taken.
    SnapshotTaken,
    SnapshotInstalled(SnapshotResponse<TypeConfig>),
    /// One outcome per forwarded request.
    Outcomes(Vec<Outcome>),
    /// The index, and up to where the leader's answers may reveal the state.
    ReadIndex {
        index: u64,
        released: u64,
    },
    Released,
    /// The replica does not lead: certainly nothing was done.
    NotLeader,
    /// The call may have had its effect.
    Unknown(String),
    /// The call failed, without any effect that counts.
    Failed(String),
    /// The leader does none of it, for a reason that whoever asked should hear.
    Refused(String),
    /// Whether there is too little room for changes.
    Room {
        is_short: bool,
    },
}
