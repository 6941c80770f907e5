//! Answers to other replicas.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use openraft::{errors::RaftError, storage::Snapshot};
use pygmy_protocol::{env::BoxFuture, planted};

use crate::{
    apart::Apart,
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
    worker: Apart,
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
    shared: &Arc<Shared>,
    slot: &Mutex<Option<Incoming>>,
    message: Message,
) -> Reply {
    let lock = || slot.lock().unwrap_or_else(PoisonError::into_inner);
    // Taken out for as long as it is worked on: the sender waits for each answer.
    let incoming = lock().take();
    let taken = match (message, incoming) {
        (Message::SnapshotBegin { vote, meta, bytes }, _) => {
            begin(shared, vote, *meta, bytes).await
        }
        (Message::SnapshotChunk(chunk), Some(incoming)) => incoming.take(chunk).await,
        (Message::SnapshotChunk(_), None) => {
            Err(TransferError::OutOfOrder("a piece of a snapshot that never began"))
        }
        (_, Some(incoming)) => return install(shared, incoming).await,
        (_, None) => return Reply::Failed("the end of a snapshot that never began".to_owned()),
    };
    match taken {
        Ok(incoming) => {
            *lock() = Some(incoming);
            Reply::SnapshotTaken
        }
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
    #[error("the replica is stopping")]
    Stopped,
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    File(#[from] StateError),
}

async fn begin(
    shared: &Arc<Shared>,
    vote: Vote,
    meta: SnapshotMeta,
    bytes: u64,
) -> Result<Incoming, TransferError> {
    let worker = Apart::start(&shared.env, "receive");
    let replica = Arc::clone(shared);
    let made = worker.run(move || {
        let room = replica.env.files.free_bytes(&replica.dir)?;
        // Twice: the file, and the database that it becomes.
        let needed = bytes.saturating_mul(2).saturating_add(replica.settings.min_free_bytes);
        if room < needed {
            return Err(TransferError::NoRoom { bytes, room });
        }
        Ok(replica.snapshots.incoming()?)
    });
    let file = made.await.unwrap_or(Err(TransferError::Stopped))?;
    tracing::info!(%meta, bytes, "receiving a snapshot");
    Ok(Incoming { worker, vote, meta, bytes, received: 0, file })
}

impl Incoming {
    /// It with one piece more.
    async fn take(mut self, chunk: Vec<u8>) -> Result<Incoming, TransferError> {
        let offset = self.received;
        let received = offset + chunk.len() as u64;
        if received > self.bytes {
            return Err(TransferError::Length { bytes: self.bytes, received });
        }
        let file = self.file.clone();
        let written = self.worker.run(move || file.write_all_at(&chunk, offset)).await;
        written.ok_or(TransferError::Stopped)??;
        self.received = received;
        Ok(self)
    }

    /// A damaged snapshot must not reach Raft: there it would end the node.
    async fn verify(&self, shared: &Shared) -> Result<(), TransferError> {
        if self.received < self.bytes {
            return Err(TransferError::Length { bytes: self.bytes, received: self.received });
        }
        let file = self.file.clone();
        match shared.checks.run(move || file.verify()).await {
            Some(verified) => Ok(verified.map(|_| ())?),
            None => Err(TransferError::Stopped),
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
