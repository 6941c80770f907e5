//! A connection to another replica, kept open, with many calls under way at a time.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{FutureExt, future::Shared};
use http::HeaderMap;
use pygmy_client::upgrade::upgrade;
use pygmy_protocol::{
    env::{BoxFuture, Connection, Env, Instant},
    frame,
    http::{Secret, Stopper, shutdown},
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

/// A connection on which a reply is overdue and nothing has come for so long is given up.
const SILENCE: Duration = Duration::from_secs(1);
/// Bytes that are gathered for one write.
const WRITE_BYTES: usize = 1024 * 1024;

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
    address: Arc<Address>,
    connection: Mutex<Option<Connecting>>,
}

/// Where a link goes.
struct Address {
    env: Env,
    url: String,
    hello: Hello,
    secret: Secret,
}

/// A connection that is open, has ended, or is being opened: by a task of its own, because Raft
/// drops a call that takes longer than a heartbeat, and the next one would begin from scratch.
type Connecting = Shared<BoxFuture<'static, Result<Live, String>>>;

/// One connection's life.
#[derive(Clone)]
struct Live {
    calls: mpsc::Sender<Numbered<Message>>,
    replies: Arc<Replies>,
}

struct Replies {
    waiting: Mutex<Waiting>,
    /// Ends the tasks of the connection.
    stopper: Stopper,
}

struct Waiting {
    next_number: u64,
    /// When the last reply came, or when the connection was opened.
    heard: Instant,
    /// `None` once the connection has ended: nobody will answer any more.
    by_number: Option<BTreeMap<u64, oneshot::Sender<Reply>>>,
}

impl Link {
    /// A link to the replica with the Raft id `to` at `url`.
    pub(crate) fn new(env: &Env, url: &str, from: u64, to: u64, secret: &Secret) -> Link {
        let address = Address {
            env: env.clone(),
            url: url.to_owned(),
            hello: Hello { to, from },
            secret: secret.clone(),
        };
        Link { address: Arc::new(address), connection: Mutex::default() }
    }

    /// Base URL of the replica.
    pub(crate) fn url(&self) -> &str {
        &self.address.url
    }

    /// Sends `message` and waits for the reply, for at most `limit`.
    pub(crate) async fn call(&self, message: Message, limit: Duration) -> Result<Reply, LinkError> {
        let env = &self.address.env;
        let begun = env.now();
        let pending = match env.timeout(limit, self.send(message)).await {
            Ok(sent) => sent?,
            Err(_) => return Err(self.not_sent("it takes too long")),
        };
        let spent = env.now().saturating_since(begun);
        pending.reply(env, limit.saturating_sub(spent)).await
    }

    /// Queues `message`; its reply is to be awaited with [`PendingReply::reply`].
    pub(crate) async fn send(&self, message: Message) -> Result<PendingReply, LinkError> {
        let live = self.connecting().await.map_err(|why| self.not_sent(&why))?;
        let expected = Replies::expect(&live.replies, self.url());
        let pending = expected.ok_or_else(|| self.not_sent("the connection broke"))?;
        let call = Numbered { number: pending.number, message };
        match live.calls.try_send(call) {
            Ok(()) => Ok(pending),
            Err(error) => Err(self.not_sent(&error.to_string())),
        }
    }

    /// The connection, or the one that is being opened, or a new one.
    fn connecting(&self) -> Connecting {
        let mut slot = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let usable = |connecting: &&Connecting| match connecting.peek() {
            None => true,
            Some(Ok(live)) => live.replies.is_open(),
            Some(Err(_)) => false,
        };
        if let Some(connecting) = slot.as_ref().filter(usable) {
            return connecting.clone();
        }
        let address = Arc::clone(&self.address);
        let task = self.address.env.spawn(async move { address.connect().await });
        let opened = async { task.await.unwrap_or_else(|error| Err(error.to_string())) };
        let connecting = (Box::pin(opened) as BoxFuture<'static, _>).shared();
        *slot = Some(connecting.clone());
        connecting
    }

    fn not_sent(&self, why: &str) -> LinkError {
        LinkError::NotSent(format!("{}: {why}", self.url()))
    }
}

impl Address {
    async fn connect(&self) -> Result<Live, String> {
        let Address { env, url, hello, secret } = self;
        let headers = HeaderMap::new();
        let connection = upgrade(env, url, PATH, PROTOCOL, headers, secret, CONNECT_TIMEOUT).await;
        let (reader, mut writer) = tokio::io::split(connection.map_err(|e| e.to_string())?);
        let greeting = frame::write(&mut writer, hello);
        let greeted = env.timeout(CONNECT_TIMEOUT, greeting).await.map_err(|e| e.to_string())?;
        greeted.map_err(|e| e.to_string())?;
        let (calls, waiting) = mpsc::channel(WAITING_CALLS);
        let (stopper, mut stopped) = shutdown();
        let by_number = Some(BTreeMap::new());
        let waiting_replies = Mutex::new(Waiting { next_number: 0, heard: env.now(), by_number });
        let replies = Arc::new(Replies { waiting: waiting_replies, stopper });
        let (shared, url, clock) = (Arc::clone(&replies), url.clone(), env.clone());
        env.spawn(async move {
            let ended = tokio::select! {
                biased;
                () = stopped.stopped() => Err(io::Error::other("it has fallen silent")),
                ended = write_calls(writer, waiting) => ended,
                ended = read_replies(&clock, reader, &shared) => ended,
            };
            shared.close();
            if let Err(error) = ended {
                tracing::debug!(%error, url, "the connection to a replica ended");
            }
        });
        Ok(Live { calls, replies })
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
            Err(_) => {
                self.replies.close_if_silent(env.now());
                "it takes too long"
            }
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
    fn is_open(&self) -> bool {
        self.lock().by_number.is_some()
    }

    fn heard(&self, now: Instant) {
        self.lock().heard = now;
    }

    /// Gives the connection up if nothing has come for a while. TCP itself would go on for
    /// minutes, and what was sent before a network healed would hold up what is sent after.
    fn close_if_silent(&self, now: Instant) {
        if now.saturating_since(self.lock().heard) >= SILENCE {
            self.close();
        }
    }

    /// Ends every wait: the senders are dropped.
    fn close(&self) {
        self.lock().by_number = None;
        self.stopper.stop();
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
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes what waits in one go, up to a bound.
async fn write_calls(
    mut writer: WriteHalf<Connection>,
    mut waiting: mpsc::Receiver<Numbered<Message>>,
) -> io::Result<()> {
    let mut buffer = Vec::new();
    while let Some(call) = waiting.recv().await {
        buffer.clear();
        buffer.shrink_to(WRITE_BYTES);
        frame::encode(&call, &mut buffer)?;
        while buffer.len() < WRITE_BYTES
            && let Ok(call) = waiting.try_recv()
        {
            frame::encode(&call, &mut buffer)?;
        }
        writer.write_all(&buffer).await?;
        writer.flush().await?;
    }
    Ok(())
}

async fn read_replies(
    env: &Env,
    reader: ReadHalf<Connection>,
    replies: &Replies,
) -> io::Result<()> {
    let mut reader = tokio::io::BufReader::with_capacity(64 * 1024, reader);
    while let Some(reply) = frame::read::<Numbered<Reply>>(&mut reader).await? {
        replies.heard(env.now());
        if let Some(sender) = replies.take(reply.number) {
            // The caller may have given up meanwhile.
            let _ = sender.send(reply.message);
        }
    }
    Ok(())
}
