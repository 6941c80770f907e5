//! Answers to other replicas.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use openraft::{errors::RaftError, storage::Snapshot};
use pygmy_protocol::{env::BoxFuture, planted};

use crate::{
    peer::{Answering, Message, Reply},
    propose::WriteError,
    raft::{SnapshotMeta, Vote},
    replica::Shared,
    state::{SnapshotFile, StateError},
};

/// Answers the calls of one connection. A snapshot arrives in pieces, so each connection keeps
/// what it has of one.
pub(crate) struct Answers {
    shared: Arc<Shared>,
    incoming: Arc<Mutex<Option<Incoming>>>,
}

struct Incoming {
    vote: Vote,
    meta: SnapshotMeta,
    /// How many bytes there will be, and how many have come.
    bytes: u64,
    received: u64,
    file: SnapshotFile,
}

impl Answers {
    pub(crate) fn new(shared: Arc<Shared>) -> Answers {
        Answers { shared, incoming: Arc::default() }
    }
}

impl Answering for Answers {
    fn id(&self) -> u64 {
        self.shared.id
    }

    fn answer(&self, message: Message) -> BoxFuture<'static, Reply> {
        let (shared, incoming) = (Arc::clone(&self.shared), Arc::clone(&self.incoming));
        match message {
            Message::SnapshotBegin { .. } | Message::SnapshotChunk(_) | Message::SnapshotEnd => {
                Box::pin(async move { answer_snapshot(&shared, &incoming, message).await })
            }
            Message::Forward { .. }
            | Message::ReadIndex
            | Message::AwaitReleased { .. }
            | Message::Room => Box::pin(async move { answer_follower(&shared, message).await }),
            Message::Append(_)
            | Message::Vote(_)
            | Message::PreVote(_)
            | Message::TransferLeader(_) => {
                Box::pin(async move { answer_raft(&shared, message).await })
            }
        }
    }
}

async fn answer_raft(shared: &Shared, message: Message) -> Reply {
    let raft = &shared.raft;
    let reply = match message {
        Message::Append(request) if !shared.room.takes(&request.entries) => {
            if planted!(FullFollowerAcknowledges) {
                return Reply::Append(openraft::raft::AppendEntriesResponse::Success);
            }
            return Reply::Failed("there is no room for more entries".to_owned());
        }
        Message::Append(request) => raft.append_entries(request).await.map(Reply::Append),
        Message::Vote(request) => raft.vote(request).await.map(Reply::Vote),
        Message::PreVote(request) => raft.pre_vote(request).await.map(Reply::Vote),
        Message::TransferLeader(request) => {
            let handled = raft.handle_transfer_leader(request).await;
            handled.map(Reply::TransferLeader).map_err(RaftError::Fatal)
        }
        _ => return Reply::Failed("not a message of Raft".to_owned()),
    };
    reply.unwrap_or_else(|error| Reply::Failed(error.to_string()))
}

async fn answer_follower(shared: &Shared, message: Message) -> Reply {
    match message {
        Message::Forward { requests, deadline_ms } => {
            let deadline = shared.env.now() + Duration::from_millis(deadline_ms);
            match shared.queue.write_forwarded(requests, deadline).await {
                Ok(outcomes) => Reply::Outcomes(outcomes),
                Err(WriteError::NotDone(_)) => Reply::NotLeader,
                Err(WriteError::Refused(why)) => Reply::Refused(why),
                Err(WriteError::Unknown(why)) => Reply::Unknown(why),
            }
        }
        Message::ReadIndex
            if shared.gate.progress().leads.is_some() || planted!(ReadBeforeOwnEntry) =>
        {
            match shared.rounds.join().await {
                Ok(fresh) => Reply::ReadIndex {
                    index: fresh.index,
                    released: shared.gate.progress().released,
                },
                Err(why) => Reply::Failed(why),
            }
        }
        Message::AwaitReleased { index, deadline_ms } => {
            let Some(term) = shared.gate.progress().leads else { return Reply::NotLeader };
            let limit = Duration::from_millis(deadline_ms);
            match shared.gate.await_released(term, index, limit).await {
                Ok(()) => Reply::Released,
                Err(error) => Reply::Failed(error.to_string()),
            }
        }
        Message::Room => Reply::Room { is_short: shared.room.is_short() },
        _ => Reply::NotLeader,
    }
}

async fn answer_snapshot(
    shared: &Shared,
    slot: &Mutex<Option<Incoming>>,
    message: Message,
) -> Reply {
    let lock = || slot.lock().unwrap_or_else(PoisonError::into_inner);
    let taken = match message {
        Message::SnapshotBegin { vote, meta, bytes } => {
            begin(shared, vote, *meta, bytes).map(|incoming| {
                *lock() = Some(incoming);
            })
        }
        Message::SnapshotChunk(chunk) => match lock().as_mut() {
            Some(incoming) => incoming.take(&chunk),
            None => Err(TransferError::OutOfOrder("a piece of a snapshot that never began")),
        },
        _ => {
            let Some(incoming) = lock().take() else {
                return Reply::Failed("the end of a snapshot that never began".to_owned());
            };
            return install(shared, incoming).await;
        }
    };
    match taken {
        Ok(()) => Reply::SnapshotTaken,
        Err(error) => Reply::Failed(format!("the snapshot cannot be stored: {error}")),
    }
}

/// Why a snapshot cannot be taken.
#[derive(Debug, thiserror::Error)]
enum TransferError {
    #[error("{0}")]
    OutOfOrder(&'static str),
    #[error("it has {bytes} bytes, and {room} are free: it takes twice as many and min_free_bytes")]
    NoRoom { bytes: u64, room: u64 },
    #[error("it has {bytes} bytes, and {received} came")]
    Length { bytes: u64, received: u64 },
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    File(#[from] StateError),
}

fn begin(
    shared: &Shared,
    vote: Vote,
    meta: SnapshotMeta,
    bytes: u64,
) -> Result<Incoming, TransferError> {
    let room = shared.env.files.free_bytes(&shared.dir)?;
    // Twice: the file, and the database that it becomes.
    if room < bytes.saturating_mul(2).saturating_add(shared.settings.min_free_bytes) {
        return Err(TransferError::NoRoom { bytes, room });
    }
    tracing::info!(%meta, bytes, "receiving a snapshot");
    Ok(Incoming { vote, meta, bytes, received: 0, file: shared.snapshots.incoming()? })
}

impl Incoming {
    fn take(&mut self, chunk: &[u8]) -> Result<(), TransferError> {
        let received = self.received + chunk.len() as u64;
        if received > self.bytes {
            return Err(TransferError::Length { bytes: self.bytes, received });
        }
        self.file.write_all_at(chunk, self.received)?;
        self.received = received;
        Ok(())
    }

    /// A damaged snapshot must not reach Raft: there it would end the node.
    async fn verify(&self, shared: &Shared) -> Result<(), TransferError> {
        if self.received < self.bytes {
            return Err(TransferError::Length { bytes: self.bytes, received: self.received });
        }
        let file = self.file.clone();
        match shared.checks.run(move || file.verify()).await {
            Some(verified) => Ok(verified.map(|_| ())?),
            None => Err(TransferError::OutOfOrder("the replica is stopping")),
        }
    }
}

async fn install(shared: &Shared, incoming: Incoming) -> Reply {
    if let Err(error) = incoming.verify(shared).await {
        return Reply::Failed(format!("the snapshot cannot be used: {error}"));
    }
    let Incoming { vote, meta, file, .. } = incoming;
    match shared.raft.install_full_snapshot(vote, Snapshot { meta, snapshot: file }).await {
        Ok(response) => Reply::SnapshotInstalled(response),
        Err(error) => Reply::Failed(error.to_string()),
    }
}
