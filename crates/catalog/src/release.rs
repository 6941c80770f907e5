//! Release: nothing that reveals state leaves before the front ends have dropped what it changed.
//!
//! Every applied entry passes [`Gate::applied`], in log order, with the cache keys that it
//! changed. On the leader the gate sends them to each front end's session and *releases* the
//! entry when all of them acknowledged it. Answers wait in [`Gate::await_released`]: a buy for the
//! index of its own entry, a read for the index of the state that it saw.
//!
//! A front end that does not acknowledge within the lease, or whose connection broke, is gone for
//! the leader: it serves nothing from its cache once it has heard nothing for the time of the
//! lease, and so long its session still holds releases back ([`Gate::close_session`]). One that
//! closed its stream by itself has dropped its cache before. This is the `eventual` protocol: a
//! front end that is paused with unread messages may serve a stale entry when it wakes, and a new
//! leader does not know the sessions of the old one. Leases close both gaps.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use pygmy_protocol::{
    env::{Env, Instant},
    invalidation::{CacheKey, FromCatalog},
    planted,
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
    sessions_opened: u64,
}

struct Leading {
    term: u64,
    /// Whether an entry of this term is applied: before that the leader neither releases nor
    /// opens sessions.
    established: bool,
    /// Whether a majority answers. A leader that is not sure of that vouches for no cache.
    has_quorum: bool,
    /// By a number that is never used again: a late word about a session is not taken for another.
    sessions: BTreeMap<u64, Session>,
}

struct Session {
    name: String,
    /// The front-end process.
    nonce: u128,
    /// Nobody reads any more if it is `None`, but the front end may still serve what it has.
    outgoing: Option<mpsc::Sender<FromCatalog>>,
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
    pub(crate) session: u64,
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
        let (term, now) = (state.applied_term, self.env.now());
        // An entry of a later term: somebody else leads, and knows what is released.
        state.leading.take_if(|leading| leading.term < term);
        if let Some(leading) = &mut state.leading
            && leading.established
            && !keys.is_empty()
        {
            let message = FromCatalog::Invalidate { index: log_id.index, keys };
            leading.sessions.values_mut().for_each(|s| s.send(&message, log_id.index, now));
        }
        self.settle(state);
    }

    /// This replica leads in `term`, and a majority answers it or not. Sessions of an earlier
    /// term end.
    pub(crate) fn lead(&self, term: u64, has_quorum: bool) {
        let mut state = self.lock();
        if state.applied_term > term {
            // Raft is about to hear of its successor.
            return;
        }
        match &mut state.leading {
            Some(leading) if leading.term == term => leading.has_quorum = has_quorum,
            leading => {
                let sessions = BTreeMap::new();
                *leading = Some(Leading { term, established: false, has_quorum, sessions });
                state.led = term;
            }
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

    /// Opens the session of a front-end process. An earlier one of the same process ends: it has
    /// dropped its cache before it asked for another.
    pub(crate) fn open_session(&self, name: &str, nonce: u128) -> Result<Opened, NoSession> {
        let mut state = self.lock();
        state.sessions_opened += 1;
        let (session, base, now) = (state.sessions_opened, state.applied, self.env.now());
        let sure = |leading: &&mut Leading| leading.established && leading.has_quorum;
        let leading = state.leading.as_mut().filter(sure).ok_or(NoSession::NotLeader)?;
        leading.sessions.retain(|_, other| other.nonce != nonce);
        if leading.sessions.len() >= MAX_SESSIONS {
            return Err(NoSession::TooMany);
        }
        let (sender, outgoing) = mpsc::channel(WAITING_MESSAGES);
        // It holds back releases from here on, until it has dropped what it had.
        let unacknowledged = VecDeque::from([(base, now)]);
        let name = name.to_owned();
        let opened = Session { name, nonce, outgoing: Some(sender), unacknowledged };
        leading.sessions.insert(session, opened);
        let term = leading.term;
        self.settle(state);
        Ok(Opened { session, term, base, outgoing })
    }

    /// A front end has dropped everything up to `index`.
    pub(crate) fn acknowledged(&self, session: u64, index: u64) {
        let mut state = self.lock();
        if let Some(session) = state.session_mut(session) {
            while session.unacknowledged.front().is_some_and(|(sent, _)| *sent <= index) {
                session.unacknowledged.pop_front();
            }
        }
        self.settle(state);
    }

    /// The stream of a front end has ended, and it may not know: what it has not acknowledged,
    /// and what comes, is held back until [`Gate::forget_session`].
    pub(crate) fn close_session(&self, session: u64) {
        if let Some(session) = self.lock().session_mut(session) {
            session.outgoing = None;
        }
    }

    /// A front end serves nothing any more of what it had.
    pub(crate) fn forget_session(&self, session: u64) {
        let mut state = self.lock();
        if let Some(leading) = &mut state.leading {
            leading.sessions.remove(&session);
        }
        self.settle(state);
    }

    /// Whether the front end has left a message unacknowledged for longer than `limit`.
    pub(crate) fn is_late(&self, session: u64, limit: Duration) -> bool {
        let now = self.env.now();
        self.lock().session_mut(session).is_some_and(|session| session.is_late(now, limit))
    }

    /// Whether the leader may tell front ends that it is still there.
    pub(crate) fn has_quorum(&self) -> bool {
        self.lock().leading.as_ref().is_some_and(|leading| leading.has_quorum)
    }

    /// Names of the front ends that listen.
    pub(crate) fn front_ends(&self) -> Vec<String> {
        let state = self.lock();
        let sessions = state.leading.iter().flat_map(|leading| leading.sessions.values());
        sessions.filter(|s| s.outgoing.is_some()).map(|s| s.name.clone()).collect()
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
        let State { applied, applied_term, leading, led, released, .. } = &mut *state;
        if let Some(leading) = leading {
            leading.established |= *applied_term == leading.term || planted!(NewLeaderNoOwnEntry);
            if leading.established {
                let holds = leading.sessions.values().filter_map(Session::holds_back);
                *released = (*released).max(holds.min().unwrap_or(*applied));
                if planted!(ReleaseBeforeAcknowledged) {
                    *released = *applied;
                }
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

impl State {
    fn session_mut(&mut self, session: u64) -> Option<&mut Session> {
        self.leading.as_mut()?.sessions.get_mut(&session)
    }
}

impl Session {
    /// Queues a message. A front end that reads too slowly hears no more: its stream ends.
    fn send(&mut self, message: &FromCatalog, index: u64, now: Instant) {
        self.unacknowledged.push_back((index, now));
        let sent = self.outgoing.as_ref().is_some_and(|to| to.try_send(message.clone()).is_ok());
        if !sent {
            self.outgoing = None;
        }
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
        gate.lead(1, true);
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
            gate.acknowledged(opened.session, opened.base);
            sessions.push(opened);
        }
        gate.applied(log_id(1, 2), item(7));
        for session in &mut sessions {
            let message = session.outgoing.try_recv().unwrap();
            assert_eq!(message, FromCatalog::Invalidate { index: 2, keys: item(7) });
        }
        gate.acknowledged(sessions[0].session, 2);
        assert_eq!(gate.await_released(1, 2, NO_TIME).await, Err(NotReleased::TimedOut));
        gate.acknowledged(sessions[1].session, 2);
        gate.await_released(1, 2, LIMIT).await.unwrap();
    }

    #[tokio::test]
    async fn a_new_session_holds_back_until_it_has_acknowledged_its_base() {
        let gate = leading();
        let opened = gate.open_session("frontend-1", 1).unwrap();
        gate.applied(log_id(1, 2), Vec::new());
        assert_eq!(gate.await_released(1, 2, NO_TIME).await, Err(NotReleased::TimedOut));
        gate.acknowledged(opened.session, opened.base);
        gate.await_released(1, 2, LIMIT).await.unwrap();
    }

    #[tokio::test]
    async fn a_broken_stream_holds_back_until_the_front_end_is_forgotten() {
        let gate = leading();
        let opened = gate.open_session("frontend-1", 1).unwrap();
        gate.acknowledged(opened.session, opened.base);
        gate.close_session(opened.session);
        gate.applied(log_id(1, 2), item(7));
        assert_eq!(gate.await_released(1, 2, NO_TIME).await, Err(NotReleased::TimedOut));
        assert!(gate.front_ends().is_empty());
        gate.forget_session(opened.session);
        gate.await_released(1, 2, LIMIT).await.unwrap();
    }

    #[tokio::test]
    async fn a_late_word_about_an_old_session_does_not_touch_the_new_one() {
        let gate = leading();
        let old = gate.open_session("frontend-1", 1).unwrap();
        let new = gate.open_session("frontend-1", 1).unwrap();
        gate.acknowledged(new.session, new.base);
        gate.applied(log_id(1, 2), item(7));
        gate.acknowledged(old.session, 2);
        gate.forget_session(old.session);
        assert_eq!(gate.await_released(1, 2, NO_TIME).await, Err(NotReleased::TimedOut));
        gate.acknowledged(new.session, 2);
        gate.await_released(1, 2, LIMIT).await.unwrap();
    }

    #[tokio::test]
    async fn an_entry_of_a_later_term_ends_the_leadership() {
        let gate = leading();
        gate.open_session("frontend-1", 1).unwrap();
        gate.applied(log_id(2, 2), item(7));
        assert_eq!(gate.progress().leads, None);
        assert!(gate.progress().released < 2, "only the new leader knows");
        gate.lead(1, true);
        assert_eq!(gate.progress().leads, None, "Raft's word was late");
    }

    #[tokio::test]
    async fn a_leader_without_a_majority_opens_no_session() {
        let gate = leading();
        gate.lead(1, false);
        let refused = gate.open_session("frontend-1", 1).err();
        assert_eq!(refused, Some(NoSession::NotLeader));
        assert!(!gate.has_quorum());
    }

    #[tokio::test]
    async fn no_session_before_an_entry_of_the_own_term() {
        let gate = Gate::new(&Env::production());
        gate.applied(log_id(1, 5), Vec::new());
        gate.lead(2, true);
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
