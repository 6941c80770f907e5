//! Following the invalidation stream of the catalog's leader.
//!
//! Any catalog server is asked; one that does not lead names the leader. There the front end says
//! hello, and the leader opens a session. From then on everything that changes comes down the
//! stream in log order; it is dropped from the cache and acknowledged. The front end asks for a
//! lease every third of its time, and notes by its own clock when it asked: from that moment, and
//! not from the answer, the lease counts. While it lasts, the cache may be served, for the leader
//! lets nobody know of a change before all front ends with a lease have acknowledged it.
//!
//! A lease that has merely run out is renewed when the leader is there again; meanwhile reads go to
//! the catalog. When the stream breaks, or has been silent for the time of a lease, the session is
//! over: the cache is emptied first and a new session opened then.

use std::{collections::VecDeque, convert::Infallible, io, pin::pin, sync::Arc, time::Duration};

use futures_util::FutureExt;
use http::HeaderMap;
use pygmy_client::upgrade::{UpgradeError, upgrade};
use pygmy_protocol::{
    Env,
    env::{Instant, TimedOut},
    frame,
    http::{Fatal, Secret, Shutdown},
    invalidation::{FromCatalog, LEADER_URL, PATH, PROTOCOL, ToCatalog},
    item::{Item, ItemNumber},
    planted,
};
use tokio::io::{AsyncWrite, BufReader};

use crate::{becoming::Becoming, read::Reader};

/// Longest wait for a catalog server to take the connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest wait for the session. Generous: another try would not be faster.
const START_TIMEOUT: Duration = Duration::from_secs(5);
/// Wait before the next server is tried; doubled with each failure.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// The wait does not grow beyond this: a new leader answers nobody until all front ends have opened
/// a session with it, or the time of a lease has passed.
const BACKOFF_MAX: Duration = Duration::from_millis(100);
/// Most messages that one acknowledgement waits for. Whatever is there already is applied first,
/// but a stream that never pauses must not keep the writers waiting.
const BATCH_MAX: usize = 256;

/// Changes whose items wait for their release.
const WAITING_MAX: usize = 1024;

/// The next lease is asked for after this part of the time of the last one.
const RENEW_AFTER: u32 = 3;
/// A request for a lease that has waited for this part of its time is made anew. Sooner would be too
/// soon: the leader answers the last request only, so if it takes longer it would never answer.
const ASK_AGAIN_AFTER: u32 = 2;

/// One front end's side of the stream.
pub(crate) struct Follower {
    pub(crate) env: Env,
    pub(crate) reader: Arc<Reader>,
    /// Base URLs of the catalog servers; at least one.
    pub(crate) catalogs: Vec<String>,
    pub(crate) secret: Secret,
    /// Its name in the configuration.
    pub(crate) name: String,
    /// New with every start of the process.
    pub(crate) nonce: u128,
    /// How long the cache may be served after a lease was asked for.
    pub(crate) lease: Duration,
    /// The highest term seen; never back to a lower one.
    pub(crate) term: u64,
}

/// Why a stream ended, or never began.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("no stream: {0}")]
    Refused(#[from] UpgradeError),
    #[error("the stream broke: {0}")]
    Io(#[from] io::Error),
    #[error("the catalog server closed the stream")]
    Closed,
    #[error("nothing came for the time of the lease (lease_ms)")]
    Silent,
    #[error("the catalog server opened no session")]
    NoSession,
    #[error("the catalog server opened a second session on one stream")]
    SecondSession,
    #[error("the catalog server leads term {offered}, but term {seen} was seen")]
    OldTerm { offered: u64, seen: u64 },
    #[error("log index {index} came after {last}")]
    Backwards { index: u64, last: u64 },
}

/// An open session.
struct Session {
    /// The highest log index that is applied here.
    last: u64,
    /// Whether the leader does not know that yet.
    unacknowledged: bool,
    /// Leases asked for so far.
    asked: u64,
    /// When the last one was, if it is not granted yet.
    asked_at: Option<Instant>,
    /// When the next one is to be asked for.
    ask_at: Instant,
    /// Without another message until then, the stream is silent.
    silent_at: Instant,
    /// What items that were in the cache have become, by the index of the change, until that may
    /// be told.
    waiting: VecDeque<(u64, Vec<Item>)>,
    /// Whether anything that changed since the last request for a lease was in the cache.
    wants_items: bool,
}

impl Session {
    /// Keeps those of `items` that are asked for here: they were in the cache, or wait already.
    fn keep_waiting(
        &mut self,
        index: u64,
        mut items: Vec<Item>,
        dropped: &[ItemNumber],
        becoming: &Becoming,
    ) {
        items.retain(|item| {
            let number = item.item_number;
            let waits =
                |(_, items): &(u64, Vec<Item>)| items.iter().any(|i| i.item_number == number);
            dropped.contains(&number) || self.waiting.iter().any(waits)
        });
        items.iter().for_each(|item| becoming.begin(item.item_number, index));
        if !items.is_empty() {
            self.waiting.push_back((index, items));
        }
        if self.waiting.len() > WAITING_MAX {
            // It is read from the catalog when it is asked for.
            self.waiting.pop_front();
        }
    }

    /// What may be told now that `released` is.
    fn take_released(&mut self, released: u64) -> impl Iterator<Item = (u64, Vec<Item>)> {
        let count = self.waiting.iter().take_while(|(index, _)| *index <= released).count();
        self.waiting.drain(..count)
    }
}

/// Empties the cache and serves nothing from it when it goes.
struct CloseCache(Arc<Reader>);

impl Drop for CloseCache {
    fn drop(&mut self) {
        self.0.cache.close();
        self.0.becoming.clear();
    }
}

impl Follower {
    /// Follows the leader, whoever it is, until `shutdown`.
    pub(crate) async fn run(mut self, mut shutdown: Shutdown) -> Result<(), Fatal> {
        // With the stream the cache ends: nobody acknowledges for it any more. What is in flight
        // is read from the catalog.
        tokio::select! {
            biased;
            () = shutdown.stopped() => Ok(()),
            never = self.follow_leaders() => match never {},
        }
    }

    async fn follow_leaders(&mut self) -> Infallible {
        let mut backoff = BACKOFF_MIN;
        let mut turn = 0;
        loop {
            let url = self.catalogs[turn % self.catalogs.len()].clone();
            turn += 1;
            let mut ended = self.follow(&url).await;
            // At once to the leader, but no further: two may each take the other for it.
            if let Some(leader) = ended.leader() {
                ended = self.follow(&leader).await;
            }
            if ended.had_session {
                backoff = BACKOFF_MIN;
            }
            self.env.sleep(backoff).await;
            backoff = BACKOFF_MAX.min(backoff * 2);
        }
    }

    /// Follows the server at `url` to the end of the session.
    async fn follow(&mut self, url: &str) -> Ended {
        let mut had_session = false;
        let Err(broken) = self.stream(url, &mut had_session).await;
        if had_session {
            tracing::warn!(catalog = url, %broken, "the cache is empty until a new session opens");
        } else {
            tracing::debug!(catalog = url, %broken, "no session with this catalog server");
        }
        Ended { broken, had_session }
    }

    async fn stream(&mut self, url: &str, opened: &mut bool) -> Result<Infallible, Broken> {
        let (env, headers) = (self.env.clone(), HeaderMap::new());
        let upgraded = upgrade(&env, url, PATH, PROTOCOL, headers, &self.secret, CONNECT_TIMEOUT);
        let (reading, mut writer) = tokio::io::split(upgraded.await?);
        let mut reading = BufReader::new(reading);
        let hello = ToCatalog::Hello { name: self.name.clone(), nonce: self.nonce };
        self.send(&mut writer, &hello).await?;
        let first = env.timeout(START_TIMEOUT, frame::read(&mut reading)).await;
        let first = first.map_err(|TimedOut| Broken::NoSession)??.ok_or(Broken::Closed)?;
        let mut session = self.open(url, &first)?;
        // Dropped before the connection is: whoever sees that closed may rely on an empty cache.
        let _closing = CloseCache(Arc::clone(&self.reader));
        *opened = true;
        let mut batched = 0;
        loop {
            let mut next = pin!(frame::read::<FromCatalog>(&mut reading));
            // What is there already is applied before anything is acknowledged.
            let ready = if batched < BATCH_MAX { next.as_mut().now_or_never() } else { None };
            let message = match ready {
                Some(message) => message,
                None => {
                    self.acknowledge(&mut session, &mut writer).await?;
                    batched = 0;
                    loop {
                        let wait = session.ask_at.saturating_since(env.now());
                        if let Ok(message) = env.timeout(wait, next.as_mut()).await {
                            break message;
                        }
                        if env.now() >= session.silent_at {
                            return Err(Broken::Silent);
                        }
                        self.ask_for_lease(&mut session, &mut writer).await?;
                    }
                }
            };
            self.apply(&mut session, message?.ok_or(Broken::Closed)?)?;
            batched += 1;
        }
    }

    /// Asks for a lease, which counts from now.
    async fn ask_for_lease(
        &self,
        session: &mut Session,
        writer: &mut (impl AsyncWrite + Unpin),
    ) -> Result<(), Broken> {
        let now = self.env.now();
        session.asked += 1;
        // One that was asked for before and is answered now is not this one.
        session.asked_at = Some(now);
        session.ask_at = now + self.lease / ASK_AGAIN_AFTER;
        let wants_items = std::mem::take(&mut session.wants_items);
        self.send(writer, &ToCatalog::Renew { number: session.asked, wants_items }).await
    }

    /// Takes the session that `first` offers. Its base is yet to be acknowledged.
    fn open(&mut self, url: &str, first: &FromCatalog) -> Result<Session, Broken> {
        let FromCatalog::Start { term, base } = *first else { return Err(Broken::NoSession) };
        if term < self.term {
            return Err(Broken::OldTerm { offered: term, seen: self.term });
        }
        self.term = term;
        self.reader.cache.open(base);
        tracing::info!(catalog = url, term, base, "the cache follows the catalog's leader");
        let now = self.env.now();
        Ok(Session {
            last: base,
            unacknowledged: true,
            asked: 0,
            asked_at: None,
            ask_at: now,
            silent_at: now + self.lease,
            waiting: VecDeque::new(),
            wants_items: false,
        })
    }

    fn apply(&self, session: &mut Session, message: FromCatalog) -> Result<(), Broken> {
        session.silent_at = self.env.now() + self.lease;
        match message {
            FromCatalog::Granted { number } => {
                // Any other than the last one is no answer to it.
                if let Some(asked_at) = session.asked_at.take_if(|_| number == session.asked) {
                    let from = if planted!(LeaseFromAnswer) { self.env.now() } else { asked_at };
                    self.reader.cache.renew(from + self.lease);
                    session.ask_at = asked_at + self.lease / RENEW_AFTER;
                }
                Ok(())
            }
            FromCatalog::Released { index } => {
                for (changed_at, items) in session.take_released(index) {
                    items.iter().for_each(|item| self.reader.refresh(changed_at, item));
                }
                self.reader.becoming.settle(index);
                Ok(())
            }
            FromCatalog::Start { .. } => Err(Broken::SecondSession),
            // An equal index is an error as well: it would have been acknowledged already.
            FromCatalog::Invalidate { index, .. } if index <= session.last => {
                Err(Broken::Backwards { index, last: session.last })
            }
            FromCatalog::Invalidate { index, keys, items } => {
                let dropped = self.reader.erase(index, &keys);
                session.wants_items |= !dropped.is_empty();
                if planted!(ValueBeforeRelease) {
                    items.iter().for_each(|item| self.reader.refresh(index, item));
                }
                session.keep_waiting(index, items, &dropped, &self.reader.becoming);
                session.last = index;
                session.unacknowledged = true;
                Ok(())
            }
        }
    }

    async fn acknowledge(
        &self,
        session: &mut Session,
        writer: &mut (impl AsyncWrite + Unpin),
    ) -> Result<(), Broken> {
        if session.unacknowledged {
            self.send(writer, &ToCatalog::Acknowledge { index: session.last }).await?;
            session.unacknowledged = false;
        }
        Ok(())
    }

    async fn send(
        &self,
        writer: &mut (impl AsyncWrite + Unpin),
        message: &ToCatalog,
    ) -> Result<(), Broken> {
        let sent = self.env.timeout(self.lease, frame::write(writer, message)).await;
        Ok(sent.map_err(|TimedOut| Broken::Silent)??)
    }
}

/// How following one server ended.
struct Ended {
    broken: Broken,
    had_session: bool,
}

impl Ended {
    /// Where to go instead, if the server said so.
    fn leader(&self) -> Option<String> {
        let Broken::Refused(UpgradeError::Refused { headers, .. }) = &self.broken else {
            return None;
        };
        Some(headers.get(LEADER_URL)?.to_str().ok()?.to_owned())
    }
}
