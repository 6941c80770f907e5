//! Raft's calls, over links.

use std::{sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt, future};
use openraft::{
    OptionalSend, RaftNetworkFactory, RaftNetworkV2,
    base::{BoxFuture, BoxStream},
    errors::{RPCError, ReplicationClosed, StreamingError, Unreachable},
    network::RPCOption,
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult,
        TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
    },
    storage::Snapshot,
};
use pygmy_protocol::{env::Env, http::Secret};

use super::{
    link::{Link, LinkError, PendingReply},
    message::{Message, Reply},
};
use crate::{
    apart::Apart,
    damage::Damage,
    raft::{LogId, Member, TypeConfig, Vote},
    state::{SnapshotFile, StateError},
};

/// Appends under way to one follower.
const PIPELINE: usize = 64;
/// Longest wait for the reply to one of them. openraft's own limit is that of a heartbeat, too
/// short for an append that waits for an fsync behind others.
const APPEND_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest wait for the reply to one piece of a snapshot.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait while a follower installs a whole snapshot.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(600);
/// Bytes of a snapshot in one message.
const CHUNK_BYTES: usize = 256 * 1024;

/// Makes a network client for each replica, and one more for each of Raft's purposes.
pub(crate) struct PeerNetwork {
    pub(crate) env: Env,
    pub(crate) id: u64,
    pub(crate) secret: Secret,
    pub(crate) checks: Apart,
    pub(crate) damage: Arc<Damage>,
}

impl RaftNetworkFactory<TypeConfig> for PeerNetwork {
    type Network = PeerClient;

    async fn new_client(&mut self, target: u64, node: &Member) -> PeerClient {
        let link = Link::new(&self.env, &node.url, self.id, target, &self.secret);
        PeerClient {
            env: self.env.clone(),
            link: Arc::new(link),
            checks: self.checks.clone(),
            damage: Arc::clone(&self.damage),
        }
    }
}

/// Raft's client of one replica, for one purpose.
pub(crate) struct PeerClient {
    env: Env,
    link: Arc<Link>,
    checks: Apart,
    damage: Arc<Damage>,
}

type RpcError = RPCError<TypeConfig>;

impl From<LinkError> for RpcError {
    /// Raft retries either way; [`Unreachable`] makes it wait a little first.
    fn from(error: LinkError) -> RpcError {
        RPCError::Unreachable(Unreachable::new(&error))
    }
}

fn unexpected(reply: Reply) -> RpcError {
    let why = match reply {
        Reply::Failed(why) | Reply::Unknown(why) => why,
        _ => "a reply of another kind".to_owned(),
    };
    LinkError::NoReply(why).into()
}

impl PeerClient {
    async fn call(&self, message: Message, limit: Duration) -> Result<Reply, RpcError> {
        Ok(self.link.call(message, limit).await?)
    }
}

impl RaftNetworkV2<TypeConfig> for PeerClient {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RpcError> {
        match self.call(Message::Append(rpc), option.soft_ttl()).await? {
            Reply::Append(response) => Ok(response),
            other => Err(unexpected(other)),
        }
    }

    /// Sends appends as they come and awaits their replies in order.
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RpcError>>, RpcError>,
    >
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        let (env, link) = (self.env.clone(), Arc::clone(&self.link));
        let sent = input.then(move |request| {
            let link = Arc::clone(&link);
            async move {
                let range = Range::of(&request);
                (range, link.send(Message::Append(request)).await)
            }
        });
        let answered = sent
            .map(move |(range, sent)| {
                let env = env.clone();
                async move { await_append(&env, range, sent?).await }
            })
            .buffered(PIPELINE);
        // Whatever is not a plain success ends the stream: what was sent behind it is void.
        let until_trouble = answered.scan(false, |ended, result: Result<(_, bool), RpcError>| {
            if *ended {
                return future::ready(None);
            }
            *ended = !matches!(result, Ok((Ok(_), true)));
            future::ready(Some(result.map(|(appended, _)| appended)))
        });
        Box::pin(future::ready(Ok(Box::pin(until_trouble) as BoxStream<'s, _>)))
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        match self.call(Message::Vote(rpc), option.hard_ttl()).await? {
            Reply::Vote(response) => Ok(response),
            other => Err(unexpected(other)),
        }
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        match self.call(Message::PreVote(rpc), option.hard_ttl()).await? {
            Reply::Vote(response) => Ok(response),
            other => Err(unexpected(other)),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot<
            openraft::type_config::alias::CommittedLeaderIdOf<TypeConfig>,
            u64,
            Member,
            SnapshotFile,
        >,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        tokio::select! {
            biased;
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = self.send_snapshot(vote, snapshot) => Ok(sent?),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RpcError> {
        match self.call(Message::TransferLeader(request), option.hard_ttl()).await? {
            Reply::TransferLeader(response) => Ok(response),
            other => Err(unexpected(other)),
        }
    }
}

impl PeerClient {
    async fn send_snapshot(
        &self,
        vote: Vote,
        snapshot: crate::raft::Snapshot,
    ) -> Result<SnapshotResponse<TypeConfig>, RpcError> {
        let unreadable =
            |e: StateError| RpcError::from(LinkError::NotSent(format!("the snapshot: {e}")));
        let file = snapshot.snapshot;
        let bytes = file.len().map_err(unreadable)?;
        let last = snapshot.meta.last_log_id;
        let begin = Message::SnapshotBegin { vote, meta: Box::new(snapshot.meta), bytes };
        // Before the whole file is read: Raft comes back every half second for as long as a replica
        // is away.
        self.expect_taken(begin).await?;
        self.check(&file).await.map_err(unreadable)?;
        let url = self.link.url();
        tracing::info!(to = url, last = last.map(|id| id.index), bytes, "sending a snapshot");
        // Not behind a check of everything, which may take minutes.
        let reading = Apart::start(&self.env, "send");
        let mut offset = 0;
        while offset < bytes {
            let (file, length) = (file.clone(), CHUNK_BYTES.min((bytes - offset) as usize));
            let read = reading.run(move || {
                let mut chunk = vec![0; length];
                file.read_exact_at(&mut chunk, offset).map(|()| chunk)
            });
            let chunk = read.await.unwrap_or(Err(StateError::Stopped)).map_err(unreadable)?;
            offset += chunk.len() as u64;
            self.expect_taken(Message::SnapshotChunk(chunk)).await?;
        }
        match self.call(Message::SnapshotEnd, INSTALL_TIMEOUT).await? {
            Reply::SnapshotInstalled(response) => Ok(response),
            other => Err(unexpected(other)),
        }
    }

    /// A damaged snapshot would be refused by the other side, again and again.
    async fn check(&self, file: &SnapshotFile) -> Result<(), StateError> {
        let whole = file.clone();
        let verified = self.checks.run(move || whole.verify()).await;
        verified.unwrap_or(Err(StateError::Stopped)).map(drop).inspect_err(|error| {
            tracing::error!(%error, "the snapshot cannot be sent");
            // The next start removes it, and makes another from the database.
            self.damage.stop(error);
        })
    }

    async fn expect_taken(&self, message: Message) -> Result<(), RpcError> {
        match self.call(message, CHUNK_TIMEOUT).await? {
            Reply::SnapshotTaken => Ok(()),
            other => Err(unexpected(other)),
        }
    }
}

/// Which entries an append carries.
struct Range {
    before: Option<LogId>,
    last: Option<LogId>,
}

impl Range {
    fn of(request: &AppendEntriesRequest<TypeConfig>) -> Range {
        let last = request.entries.last().map(|entry| entry.log_id);
        Range { before: request.prev_log_id, last: last.or(request.prev_log_id) }
    }
}

/// The result of one append, and whether all of it was taken.
async fn await_append(
    env: &Env,
    range: Range,
    pending: PendingReply,
) -> Result<(StreamAppendResult<TypeConfig>, bool), RpcError> {
    let response = match pending.reply(env, APPEND_TIMEOUT).await? {
        Reply::Append(response) => response,
        other => return Err(unexpected(other)),
    };
    if response.is_conflict() && range.before.is_none() {
        return Err(LinkError::NoReply("a conflict where none can be".to_owned()).into());
    }
    let whole = match &response {
        AppendEntriesResponse::PartialSuccess(taken) => *taken == range.last,
        _ => true,
    };
    Ok((response.into_stream_result(range.before, range.last), whole))
}
