//! A connection to another replica, kept open, with many calls under way at a time.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http::HeaderMap;
use pygmy_client::upgrade::upgrade;
use pygmy_protocol::{
    env::{Connection, Env},
    frame,
    http::Secret,
};
use tokio::{
    io::{AsyncWriteExt, ReadHalf, WriteHalf},
    sync::{mpsc, oneshot},
};

use super::{
    PATH, PROTOCOL,
    message::{Hello, Message, Numbered, Reply},
};

/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// Calls that wait to be written. Raft and the forwarding of requests bound what is under way
/// far below; when a peer stops reading, further calls fail at once instead of piling up.
const WAITING_CALLS: usize = 1024;

/// Why a call has no reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("not sent: {0}")]
    NotSent(String),
    #[error("no reply: {0}")]
    NoReply(String),
}

/// A lazily opened, multiplexed connection to one replica. Calls are written in the order in
/// which they were made, replies come back in any.
pub(crate) struct Link {
    env: Env,
    url: String,
    hello: Hello,
    secret: Secret,
    live: tokio::sync::Mutex<Option<Live>>,
}

/// One connection's life.
#[derive(Clone)]
struct Live {
    calls: mpsc::Sender<Numbered<Message>>,
    replies: Arc<Replies>,
}

#[derive(Default)]
struct Replies(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    next_number: u64,
    /// `None` once the connection has ended: nobody will answer any more.
    by_number: Option<BTreeMap<u64, oneshot::Sender<Reply>>>,
}

impl Link {
    /// A link to the replica with the Raft id `to` at `url`.
    pub(crate) fn new(env: &Env, url: &str, from: u64, to: u64, secret: &Secret) -> Link {
        Link {
            env: env.clone(),
            url: url.to_owned(),
            hello: Hello { to, from },
            secret: secret.clone(),
            live: tokio::sync::Mutex::default(),
        }
    }

    /// Sends `message` and waits for the reply, for at most `limit`.
    pub(crate) async fn call(&self, message: Message, limit: Duration) -> Result<Reply, LinkError> {
        let begun = self.env.now();
        let pending = match self.env.timeout(limit, self.send(message)).await {
            Ok(sent) => sent?,
            Err(_) => return Err(self.not_sent("it takes too long")),
        };
        let spent = self.env.now().saturating_since(begun);
        pending.reply(&self.env, limit.saturating_sub(spent)).await
    }

    /// Queues `message`; its reply is to be awaited with [`PendingReply::reply`].
    pub(crate) async fn send(&self, message: Message) -> Result<PendingReply, LinkError> {
        let live = self.live().await?;
        let expected = Replies::expect(&live.replies, &self.url);
        let pending = expected.ok_or_else(|| self.not_sent("the connection broke"))?;
        let call = Numbered { number: pending.number, message };
        match live.calls.try_send(call) {
            Ok(()) => Ok(pending),
            Err(error) => Err(self.not_sent(&error.to_string())),
        }
    }

    async fn live(&self) -> Result<Live, LinkError> {
        let mut slot = self.live.lock().await;
        if let Some(live) = slot.as_ref().filter(|live| live.replies.is_open()) {
            return Ok(live.clone());
        }
        let live = self.connect().await.map_err(|e| self.not_sent(&e))?;
        *slot = Some(live.clone());
        Ok(live)
    }

    async fn connect(&self) -> Result<Live, String> {
        let headers = HeaderMap::new();
        let connection =
            upgrade(&self.env, &self.url, PATH, PROTOCOL, headers, &self.secret, CONNECT_TIMEOUT)
                .await;
        let (reader, mut writer) = tokio::io::split(connection.map_err(|e| e.to_string())?);
        frame::write(&mut writer, &self.hello).await.map_err(|e| e.to_string())?;
        let (calls, waiting) = mpsc::channel(WAITING_CALLS);
        let replies = Arc::new(Replies::default());
        replies.open();
        let shared = Arc::clone(&replies);
        let url = self.url.clone();
        self.env.spawn(async move {
            let ended = tokio::select! {
                ended = write_calls(writer, waiting) => ended,
                ended = read_replies(reader, &shared) => ended,
            };
            shared.close();
            if let Err(error) = ended {
                tracing::debug!(%error, url, "the connection to a replica broke");
            }
        });
        Ok(Live { calls, replies })
    }

    fn not_sent(&self, why: &str) -> LinkError {
        LinkError::NotSent(format!("{}: {why}", self.url))
    }
}

/// A call that was sent. Dropping it forgets the call; a reply that comes later is ignored.
pub(crate) struct PendingReply {
    number: u64,
    receiver: oneshot::Receiver<Reply>,
    replies: Arc<Replies>,
    url: String,
}

impl PendingReply {
    /// Waits for the reply, for at most `limit`.
    pub(crate) async fn reply(mut self, env: &Env, limit: Duration) -> Result<Reply, LinkError> {
        let why = match env.timeout(limit, &mut self.receiver).await {
            Ok(Ok(reply)) => return Ok(reply),
            Ok(Err(_)) => "the connection broke",
            Err(_) => "it takes too long",
        };
        Err(LinkError::NoReply(format!("{}: {why}", self.url)))
    }
}

impl Drop for PendingReply {
    fn drop(&mut self) {
        self.replies.take(self.number);
    }
}

impl Replies {
    fn open(&self) {
        self.lock().by_number = Some(BTreeMap::new());
    }

    fn is_open(&self) -> bool {
        self.lock().by_number.is_some()
    }

    /// Ends every wait: the senders are dropped.
    fn close(&self) {
        self.lock().by_number = None;
    }

    fn expect(replies: &Arc<Replies>, url: &str) -> Option<PendingReply> {
        let mut waiting = replies.lock();
        let number = waiting.next_number;
        waiting.next_number += 1;
        let (sender, receiver) = oneshot::channel();
        waiting.by_number.as_mut()?.insert(number, sender);
        Some(PendingReply { number, receiver, replies: Arc::clone(replies), url: url.to_owned() })
    }

    fn take(&self, number: u64) -> Option<oneshot::Sender<Reply>> {
        self.lock().by_number.as_mut()?.remove(&number)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes whatever waits in one go.
async fn write_calls(
    mut writer: WriteHalf<Connection>,
    mut waiting: mpsc::Receiver<Numbered<Message>>,
) -> io::Result<()> {
    let mut buffer = Vec::new();
    while let Some(call) = waiting.recv().await {
        buffer.clear();
        frame::encode(&call, &mut buffer)?;
        while let Ok(call) = waiting.try_recv() {
            frame::encode(&call, &mut buffer)?;
        }
        writer.write_all(&buffer).await?;
        writer.flush().await?;
    }
    Ok(())
}

async fn read_replies(reader: ReadHalf<Connection>, replies: &Replies) -> io::Result<()> {
    let mut reader = tokio::io::BufReader::with_capacity(64 * 1024, reader);
    while let Some(reply) = frame::read::<Numbered<Reply>>(&mut reader).await? {
        if let Some(sender) = replies.take(reply.number) {
            // The caller may have given up meanwhile.
            let _ = sender.send(reply.message);
        }
    }
    Ok(())
}
