//! Release: nothing that reveals state leaves before the front ends have dropped what it changed.
//!
//! Every applied entry passes [`Gate::applied`], in log order, with the cache keys that it
//! changed. On the leader the gate sends them to each front end's session and *releases* the
//! entry when all of them acknowledged it. Answers wait in [`Gate::await_released`]: a buy for the
//! index of its own entry, a read for the index of the state that it saw.
//!
//! A front end that does not acknowledge within the lease is gone for the leader: its session is
//! closed, and it serves nothing from its cache once it has heard nothing for that long. That is
//! the `eventual` protocol: a front end that is paused with unread messages may serve a stale
//! entry when it wakes. Leases close that gap; they take the place of [`Session::is_late`].

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use pygmy_protocol::{
    env::{Env, Instant},
    invalidation::{CacheKey, FromCatalog},
};
use tokio::sync::{mpsc, watch};

use crate::raft::LogId;

/// Messages to one front end that wait to be written. One that falls behind by more is closed
/// and starts over with an empty cache.
const WAITING_MESSAGES: usize = 4096;
/// Sessions at a time: front ends are few.
const MAX_SESSIONS: usize = 256;

/// Whether this replica may answer, and what waits for that.
pub(crate) struct Gate {
    env: Env,
    state: Mutex<State>,
    progress: watch::Sender<Progress>,
}

/// What waiters look at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Everything up to here is in the database.
    pub(crate) applied: u64,
    /// The term in which this replica leads and has applied an entry of its own.
    pub(crate) leads: Option<u64>,
    /// The highest term in which it ever led, 0 for none.
    pub(crate) led: u64,
    /// Answers may reveal the state up to here. On a follower: as far as the leader has said.
    pub(crate) released: u64,
}

#[derive(Default)]
struct State {
    applied: u64,
    applied_term: u64,
    leading: Option<Leading>,
    led: u64,
    released: u64,
}

struct Leading {
    term: u64,
    /// Whether an entry of this term is applied: before that the leader neither releases nor
    /// opens sessions.
    established: bool,
    sessions: BTreeMap<u128, Session>,
}

struct Session {
    name: String,
    outgoing: mpsc::Sender<FromCatalog>,
    /// Sent and not acknowledged, oldest first, with the time of sending.
    unacknowledged: VecDeque<(u64, Instant)>,
}

/// The wait for a release ended without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotReleased {
    #[error("the front ends did not acknowledge in time")]
    TimedOut,
    #[error("the leadership was lost")]
    LeaderChanged,
}

/// A session cannot be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoSession {
    #[error("this replica does not lead")]
    NotLeader,
    #[error("there are {MAX_SESSIONS} front ends already")]
    TooMany,
}

/// What a new session begins with.
pub(crate) struct Opened {
    pub(crate) term: u64,
    pub(crate) base: u64,
    /// Ends when the session is closed by the leader.
    pub(crate) outgoing: mpsc::Receiver<FromCatalog>,
}

impl Gate {
    /// A gate of a replica that does not lead yet.
    pub(crate) fn new(env: &Env) -> Gate {
        Gate { env: env.clone(), state: Mutex::default(), progress: watch::Sender::default() }
    }

    /// What is applied and released now.
    pub(crate) fn progress(&self) -> Progress {
        *self.progress.borrow()
    }

    /// An entry was applied, which changed `keys`. Called in log order.
    pub(crate) fn applied(&self, log_id: LogId, keys: Vec<CacheKey>) {
        let mut state = self.lock();
        state.applied = log_id.index;
        state.applied_term = log_id.committed_leader_id().term;
        let now = self.env.now();
        if let Some(leading) = &mut state.leading
            && leading.established
            && !keys.is_empty()
        {
            let message = FromCatalog::Invalidate { index: log_id.index, keys };
            leading.sessions.retain(|_, session| session.send(&message, log_id.index, now));
        }
        self.settle(state);
    }

    /// This replica leads in `term`. Sessions of an earlier term end.
    pub(crate) fn lead(&self, term: u64) {
        let mut state = self.lock();
        if state.leading.as_ref().is_none_or(|leading| leading.term != term) {
            let sessions = BTreeMap::new();
            state.leading = Some(Leading { term, established: false, sessions });
            state.led = term;
        }
        self.settle(state);
    }

    /// This replica does not lead. All sessions end.
    pub(crate) fn follow(&self) {
        let mut state = self.lock();
        state.leading = None;
        self.settle(state);
    }

    /// The leader said that everything up to `index` is released.
    pub(crate) fn heard_released(&self, index: u64) {
        let mut state = self.lock();
        state.released = state.released.max(index);
        self.settle(state);
    }

    /// Opens the session of a front-end process. An earlier one of the same process ends.
    pub(crate) fn open_session(&self, name: &str, nonce: u128) -> Result<Opened, NoSession> {
        let mut state = self.lock();
        let (base, now) = (state.applied, self.env.now());
        let leading =
            state.leading.as_mut().filter(|l| l.established).ok_or(NoSession::NotLeader)?;
        leading.sessions.remove(&nonce);
        if leading.sessions.len() >= MAX_SESSIONS {
            return Err(NoSession::TooMany);
        }
        let (sender, outgoing) = mpsc::channel(WAITING_MESSAGES);
        // It holds back releases from here on, until it has dropped what it had.
        let unacknowledged = VecDeque::from([(base, now)]);
        let session = Session { name: name.to_owned(), outgoing: sender, unacknowledged };
        leading.sessions.insert(nonce, session);
        let term = leading.term;
        self.settle(state);
        Ok(Opened { term, base, outgoing })
    }

    /// A front end has dropped everything up to `index`.
    pub(crate) fn acknowledged(&self, nonce: u128, index: u64) {
        let mut state = self.lock();
        if let Some(session) = state.leading.as_mut().and_then(|l| l.sessions.get_mut(&nonce)) {
            while session.unacknowledged.front().is_some_and(|(sent, _)| *sent <= index) {
                session.unacknowledged.pop_front();
            }
        }
        self.settle(state);
    }

    /// A front end is gone: it drops its cache by itself.
    pub(crate) fn close_session(&self, nonce: u128, term: u64) {
        let mut state = self.lock();
        if let Some(leading) = state.leading.as_mut().filter(|l| l.term == term) {
            leading.sessions.remove(&nonce);
        }
        self.settle(state);
    }

    /// Whether the front end has left a message unacknowledged for longer than `limit`.
    pub(crate) fn is_late(&self, nonce: u128, limit: Duration) -> bool {
        let state = self.lock();
        let session = state.leading.as_ref().and_then(|l| l.sessions.get(&nonce));
        session.is_some_and(|s| s.is_late(self.env.now(), limit))
    }

    /// Names of the front ends with a session.
    pub(crate) fn front_ends(&self) -> Vec<String> {
        let state = self.lock();
        let sessions = state.leading.iter().flat_map(|l| l.sessions.values());
        sessions.map(|s| s.name.clone()).collect()
    }

    /// Waits until `index` is in the database. The caller sets the limit.
    pub(crate) async fn await_applied(&self, index: u64) {
        let mut progress = self.progress.subscribe();
        // The sender lives as long as the gate.
        let _ = progress.wait_for(|p| p.applied >= index).await;
    }

    /// Waits until the state at `index`, which this replica applied as the leader of `term`, may
    /// be revealed.
    pub(crate) async fn await_released(
        &self,
        term: u64,
        index: u64,
        limit: Duration,
    ) -> Result<(), NotReleased> {
        let mut progress = self.progress.subscribe();
        // A replica that has not led in `term` yet is about to hear of it from Raft.
        let decided = progress.wait_for(|p| match p.leads {
            Some(leads) if leads == term => p.released >= index,
            _ => p.led >= term,
        });
        match self.env.timeout(limit, decided).await {
            Ok(Ok(progress)) if progress.leads == Some(term) => Ok(()),
            Ok(_) => Err(NotReleased::LeaderChanged),
            Err(_) => Err(NotReleased::TimedOut),
        }
    }

    /// Works out what is released, and tells the waiters if anything changed. The state stays
    /// locked until they are told, so that they see changes in their order.
    fn settle(&self, mut state: MutexGuard<'_, State>) {
        let State { applied, applied_term, leading, led, released } = &mut *state;
        if let Some(leading) = leading {
            leading.established |= *applied_term == leading.term;
            if leading.established {
                let holds = leading.sessions.values().filter_map(Session::holds_back);
                *released = (*released).max(holds.min().unwrap_or(*applied));
            }
        }
        let leads = leading.as_ref().filter(|l| l.established).map(|l| l.term);
        let next = Progress { applied: *applied, leads, led: *led, released: *released };
        self.progress.send_if_modified(|progress| std::mem::replace(progress, next) != next);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    /// Queues a message; `false` ends the session, because the front end reads too slowly.
    fn send(&mut self, message: &FromCatalog, index: u64, now: Instant) -> bool {
        self.unacknowledged.push_back((index, now));
        self.outgoing.try_send(message.clone()).is_ok()
    }

    /// The last index that may be released as far as this front end is concerned.
    fn holds_back(&self) -> Option<u64> {
        self.unacknowledged.front().map(|(index, _)| index.saturating_sub(1))
    }

    fn is_late(&self, now: Instant, limit: Duration) -> bool {
        self.unacknowledged.front().is_some_and(|(_, sent)| now.saturating_since(*sent) > limit)
    }
}

#[cfg(test)]
mod tests {
    use pygmy_protocol::item::ItemNumber;

    use super::*;
    use crate::raft::log_id;

    const LIMIT: Duration = Duration::from_secs(5);
    const NO_TIME: Duration = Duration::ZERO;

    fn item(number: u64) -> Vec<CacheKey> {
        vec![CacheKey::Item(ItemNumber::try_from(number).unwrap())]
    }

    /// A gate of the leader of term 1 that has applied the first entry of its term at index 1.
    fn leading() -> Gate {
        let gate = Gate::new(&Env::production());
        gate.lead(1);
        gate.applied(log_id(1, 1), Vec::new());
        gate
    }

    #[tokio::test]
    async fn without_front_ends_what_is_applied_is_released() {
        let gate = leading();
        gate.applied(log_id(1, 2), item(7));
        gate.await_released(1, 2, LIMIT).await.unwrap();
    }

    #[tokio::test]
    async fn a_change_waits_for_every_front_end() {
        let gate = leading();
        let mut sessions = Vec::new();
        for nonce in [1, 2] {
            let opened = gate.open_session("frontend", nonce).unwrap();
            gate.acknowledged(nonce, opened.base);
            sessions.push(opened);
        }
        gate.applied(log_id(1, 2), item(7));
        for session in &mut sessions {
            let message = session.outgoing.try_recv().unwrap();
            assert_eq!(message, FromCatalog::Invalidate { index: 2, keys: item(7) });
        }
        gate.acknowledged(1, 2);
        assert_eq!(gate.await_released(1, 2, NO_TIME).await, Err(NotReleased::TimedOut));
        gate.acknowledged(2, 2);
        gate.await_released(1, 2, LIMIT).await.unwrap();
    }

    #[tokio::test]
    async fn a_new_session_holds_back_until_it_has_acknowledged_its_base() {
        let gate = leading();
        let opened = gate.open_session("frontend-1", 1).unwrap();
        gate.applied(log_id(1, 2), Vec::new());
        assert_eq!(gate.await_released(1, 2, NO_TIME).await, Err(NotReleased::TimedOut));
        gate.acknowledged(1, opened.base);
        gate.await_released(1, 2, LIMIT).await.unwrap();
    }

    #[tokio::test]
    async fn a_front_end_that_is_gone_holds_back_nothing() {
        let gate = leading();
        let _opened = gate.open_session("frontend-1", 1).unwrap();
        gate.applied(log_id(1, 2), item(7));
        gate.close_session(1, 1);
        gate.await_released(1, 2, LIMIT).await.unwrap();
    }

    #[tokio::test]
    async fn no_session_before_an_entry_of_the_own_term() {
        let gate = Gate::new(&Env::production());
        gate.applied(log_id(1, 5), Vec::new());
        gate.lead(2);
        assert_eq!(gate.open_session("frontend-1", 1).err(), Some(NoSession::NotLeader));
        gate.applied(log_id(2, 6), Vec::new());
        assert_eq!(gate.open_session("frontend-1", 1).unwrap().base, 6);
    }

    #[tokio::test]
    async fn losing_the_leadership_ends_sessions_and_waits() {
        let gate = leading();
        let mut opened = gate.open_session("frontend-1", 1).unwrap();
        gate.applied(log_id(1, 2), item(7));
        gate.follow();
        assert_eq!(gate.await_released(1, 2, LIMIT).await, Err(NotReleased::LeaderChanged));
        assert!(opened.outgoing.recv().await.is_some(), "what was sent is still delivered");
        assert!(opened.outgoing.recv().await.is_none());
    }
}
