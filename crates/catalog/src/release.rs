//! Release: nothing that reveals state leaves before the front ends have dropped what it changed.
//!
//! Every applied entry passes [`Gate::applied`], in log order, with the cache keys that it changed.
//! On the leader the gate sends them to each front end's session and *releases* the entry when
//! every front end that holds a lease has acknowledged it, or its lease has run out. Answers wait
//! in [`Gate::await_released`]: a buy for the index of its own entry, a read for the index of the
//! state that it saw.
//!
//! The rules are those of the architecture's consistency paper, and each stands in one place:
//!
//! 1. *Holders* are registered through the log ([`Gate::holders`] hears of them, [`crate::holders`]
//!    proposes); one whose lease has run out may be taken out ([`Gate::lapsed`]), and from then on
//!    it gets no session and no lease here.
//! 2. *Renewal*: [`Gate::renew`] notes when the request came, [`Gate::confirm`] that a majority
//!    still followed this leader after that, and [`Leading::grant`] records the lease and sends the
//!    answer, in one step.
//! 3. *Release*: [`Gate::settle`].
//! 4. *Session*: [`Gate::open_session`] sets the base and queues all that comes after it.
//! 9. *New leader*: [`Leading::establish`]. Whoever is registered then counts as holding a lease,
//!    until it has acknowledged the start of a session here, or the time of a lease has passed
//!    since this replica began to lead. All of it ends with the term.
//!
//! Rules 5 to 8 are the front end's. With `waits` unset (`consistency = "eventual"`) everything is
//! sent and nothing is waited for.

use std::{
    collections::{BTreeMap, VecDeque},
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use pygmy_protocol::{
    env::{Env, Instant},
    invalidation::FromCatalog,
    planted,
};
use tokio::sync::{mpsc, watch};

use crate::{
    raft::LogId,
    state::{Changed, Holders},
};

/// Messages to one front end that wait to be written. One that falls behind by more is closed
/// and starts over with an empty cache.
const WAITING_MESSAGES: usize = 4096;

/// The clock of a front end may run slower than ours by this factor: one per cent.
const CLOCK_DRIFT_PER_MILLE: u32 = 10;
/// A holder without a lease and a session is taken out after so many times the lease: long enough
/// for one that restarts its connection, short enough that the dead do not gather.
const LEASES_UNTIL_LAPSED: u32 = 4;

/// Whether this replica may answer, and what waits for that.
pub(crate) struct Gate {
    env: Env,
    /// How long a lease may last by our clock, counted from when its request came.
    lease: Duration,
    /// Whether answers wait for the front ends.
    waits: bool,
    state: Mutex<State>,
    progress: watch::Sender<Progress>,
    /// When the next lease runs out that holds something back.
    expiry: watch::Sender<Option<Instant>>,
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
    /// As of `applied`.
    registered: Arc<Holders>,
    leading: Option<Leading>,
    led: u64,
    released: u64,
    sessions_opened: u64,
}

struct Leading {
    term: u64,
    /// When it began, or a little later.
    since: Instant,
    /// Whether an entry of this term is applied: before that the leader neither releases nor
    /// opens sessions.
    established: bool,
    /// Whether a majority answers. A leader that is not sure of that opens no session.
    has_quorum: bool,
    /// Those that are registered and may have something in their caches, by their nonces.
    holders: BTreeMap<u128, Holder>,
}

struct Holder {
    name: String,
    session: Option<Session>,
    /// Changes that it has not acknowledged, oldest first, with the time of sending: sent in its
    /// session, or not sent because it has none.
    unacknowledged: VecDeque<(u64, Instant)>,
    /// It may serve from its cache until then, by our clock.
    lease_until: Option<Instant>,
    /// Since when it has had neither a session nor a lease.
    gone_since: Instant,
    /// It is being taken out.
    removing: bool,
}

struct Session {
    /// Never used again: a late word about a session is not taken for one about another.
    number: u64,
    base: u64,
    /// The start is acknowledged: what the process had before is gone.
    started: bool,
    /// The last index that was sent.
    sent: u64,
    /// Whether it is sent what items have become.
    wants_items: bool,
    /// From here on it waits for the release of items that were sent to it.
    items_from: Option<u64>,
    /// The last index that was sent with items.
    items_at: u64,
    outgoing: mpsc::Sender<FromCatalog>,
    renewal: Option<Renewal>,
}

/// A request for a lease.
#[derive(Debug, Clone, Copy)]
struct Renewal {
    number: u64,
    received: Instant,
    /// What had been sent when it came.
    sent: u64,
    /// A majority has followed this leader after that.
    confirmed: bool,
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
    #[error("the front end is not registered")]
    NotRegistered,
    #[error("the front end is being taken out")]
    BeingRemoved,
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
    /// A gate of a replica that does not lead yet. Front ends may serve for `lease` by their own
    /// clocks.
    pub(crate) fn new(env: &Env, lease: Duration, waits: bool) -> Gate {
        Gate {
            env: env.clone(),
            lease: lease + lease * CLOCK_DRIFT_PER_MILLE / 1000,
            waits,
            state: Mutex::default(),
            progress: watch::Sender::default(),
            expiry: watch::Sender::default(),
        }
    }

    /// What is applied and released now.
    pub(crate) fn progress(&self) -> Progress {
        *self.progress.borrow()
    }

    /// These are the holders from the next applied entry on.
    pub(crate) fn holders(&self, holders: Arc<Holders>) {
        let mut state = self.lock();
        if let Some(leading) = &mut state.leading {
            leading.holders.retain(|nonce, _| holders.contains_key(nonce));
        }
        state.registered = holders;
    }

    /// An entry was applied. Called in log order.
    pub(crate) fn applied(&self, log_id: LogId, changed: Changed) {
        let mut state = self.lock();
        state.applied = log_id.index;
        state.applied_term = log_id.committed_leader_id().term;
        let (term, now) = (state.applied_term, self.env.now());
        // An entry of a later term: somebody else leads, and knows what is released.
        state.leading.take_if(|leading| leading.term < term);
        if let Some(leading) = &mut state.leading
            && leading.established
            && !changed.keys.is_empty()
        {
            let holders = leading.holders.values_mut();
            holders.for_each(|holder| holder.invalidate(log_id.index, &changed, now));
        }
        self.settle(state);
    }

    /// This replica leads in `term`, and a majority answers it or not. Sessions and leases of an
    /// earlier term end here; their holders are among those that are waited for.
    pub(crate) fn lead(&self, term: u64, has_quorum: bool) {
        let mut state = self.lock();
        if state.applied_term > term {
            // Raft is about to hear of its successor.
            return;
        }
        match &mut state.leading {
            Some(leading) if leading.term == term => leading.has_quorum = has_quorum,
            leading => {
                let (since, holders) = (self.env.now(), BTreeMap::new());
                let new = Leading { term, since, established: false, has_quorum, holders };
                *leading = Some(new);
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

    /// Whether a front-end process is registered.
    pub(crate) fn is_registered(&self, nonce: u128) -> bool {
        self.lock().registered.contains_key(&nonce)
    }

    /// Opens the session of a front-end process. An earlier one of the same process ends: it has
    /// dropped its cache before it asked for another, but that counts only when it acknowledges
    /// the start.
    pub(crate) fn open_session(&self, nonce: u128) -> Result<Opened, NoSession> {
        let mut state = self.lock();
        let (base, now) = (state.applied, self.env.now());
        let name = state.registered.get(&nonce).cloned();
        state.sessions_opened += 1;
        let number = state.sessions_opened;
        let sure = |leading: &&mut Leading| leading.established && leading.has_quorum;
        let leading = state.leading.as_mut().filter(sure).ok_or(NoSession::NotLeader)?;
        let name = name.ok_or(NoSession::NotRegistered)?;
        let holder = leading.holders.entry(nonce).or_insert_with(|| Holder::new(name, now));
        if holder.removing {
            return Err(NoSession::BeingRemoved);
        }
        let (outgoing, receiver) = mpsc::channel(WAITING_MESSAGES);
        // Whatever it has not acknowledged it drops with the start. Until then, a lease that it
        // may have holds back what it did.
        let oldest = holder.unacknowledged.front().map_or(base, |(index, _)| *index);
        holder.unacknowledged = VecDeque::from([(oldest, now), (base, now)]);
        holder.session = Some(Session {
            number,
            base,
            started: false,
            sent: base,
            wants_items: false,
            items_from: None,
            items_at: 0,
            outgoing,
            renewal: None,
        });
        let term = leading.term;
        self.settle(state);
        Ok(Opened { session: number, term, base, outgoing: receiver })
    }

    /// A front end has dropped everything up to `index`.
    pub(crate) fn acknowledged(&self, session: u64, index: u64) {
        let mut state = self.lock();
        if let Some(leading) = &mut state.leading
            && let Some(holder) = leading.holder_of(session)
        {
            holder.acknowledged(index);
        }
        self.settle(state);
    }

    /// A front end asks for a lease, its `number`-th time. The caller has a majority asked, from
    /// now on, and says so.
    pub(crate) fn renew(&self, session: u64, number: u64, wants_items: bool) {
        let mut state = self.lock();
        let received = self.env.now();
        if let Some(leading) = &mut state.leading
            && let Some(session) = leading.session(session)
        {
            let sent = session.sent;
            session.wants_items = wants_items;
            session.renewal = Some(Renewal { number, received, sent, confirmed: false });
        }
        self.settle(state);
    }

    /// A majority followed the leader of `term` after the request with this number had come.
    pub(crate) fn confirm(&self, session: u64, number: u64, term: u64) {
        let mut state = self.lock();
        if let Some(leading) = state.leading.as_mut().filter(|leading| leading.term == term)
            && let Some(session) = leading.session(session)
            && let Some(renewal) = session.renewal.as_mut().filter(|r| r.number == number)
        {
            renewal.confirmed = true;
        }
        self.settle(state);
    }

    /// The stream of a front end has ended, and it may not know: its lease runs on.
    pub(crate) fn close_session(&self, session: u64) {
        let mut state = self.lock();
        if let Some(leading) = &mut state.leading
            && let Some(holder) = leading.holder_of(session)
        {
            holder.close(self.env.now());
        }
        self.settle(state);
    }

    /// A front end has ended its stream: it serves nothing any more of what it had.
    pub(crate) fn forget_session(&self, session: u64) {
        let mut state = self.lock();
        if let Some(leading) = &mut state.leading
            && let Some(holder) = leading.holder_of(session)
        {
            holder.close(self.env.now());
            holder.lease_until = None;
            holder.unacknowledged.clear();
        }
        self.settle(state);
    }

    /// Holders that have had neither a session nor a lease for a while, by our clock and in this
    /// term. From now on they get none here.
    pub(crate) fn lapsed(&self) -> Option<(u64, Vec<u128>)> {
        let mut state = self.lock();
        let (now, patience) = (self.env.now(), self.lease * LEASES_UNTIL_LAPSED);
        let registered = Arc::clone(&state.registered);
        let leading = state.leading.as_mut().filter(|leading| leading.established)?;
        for (nonce, name) in &*registered {
            // One that registered and never asked for a session.
            leading.holders.entry(*nonce).or_insert_with(|| Holder::new(name.clone(), now));
        }
        let is_gone = |holder: &Holder| {
            let free = holder.session.is_none() && !holder.holds_lease(now);
            free && !holder.removing && now.saturating_since(holder.gone_since) >= patience
        };
        let gone = leading.holders.iter_mut().filter(|(_, holder)| is_gone(holder));
        let nonces: Vec<_> = gone
            .map(|(nonce, holder)| {
                holder.removing = true;
                *nonce
            })
            .collect();
        (!nonces.is_empty()).then_some((leading.term, nonces))
    }

    /// Whether the front end has left a message unacknowledged for the time of a lease.
    pub(crate) fn is_late(&self, session: u64) -> bool {
        let now = self.env.now();
        let mut state = self.lock();
        let holder = state.leading.as_mut().and_then(|leading| leading.holder_of(session));
        holder.is_some_and(|holder| {
            let oldest = holder.unacknowledged.front();
            oldest.is_some_and(|(_, sent)| now.saturating_since(*sent) > self.lease)
        })
    }

    /// Names of the front ends that listen.
    pub(crate) fn front_ends(&self) -> Vec<String> {
        let state = self.lock();
        let holders = state.leading.iter().flat_map(|leading| leading.holders.values());
        holders.filter(|h| h.session.is_some()).map(|h| h.name.clone()).collect()
    }

    /// Whether any front end wants to hear what items become.
    pub(crate) fn wants_items(&self) -> bool {
        let state = self.lock();
        let holders = state.leading.iter().flat_map(|leading| leading.holders.values());
        holders.filter_map(|holder| holder.session.as_ref()).any(|session| session.wants_items)
    }

    /// How many front ends hold a lease, as far as this leader knows.
    pub(crate) fn leases(&self) -> usize {
        let now = self.env.now();
        let state = self.lock();
        let holders = state.leading.iter().flat_map(|leading| leading.holders.values());
        holders.filter(|holder| holder.holds_lease(now)).count()
    }

    /// Releases what leases have held back when they run out. Never ends.
    pub(crate) async fn watch_leases(&self) -> Infallible {
        let mut expiry = self.expiry.subscribe();
        loop {
            let next = *expiry.borrow_and_update();
            let run_out = async {
                match next {
                    Some(at) => self.env.sleep(at.saturating_since(self.env.now())).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                // The sender lives as long as the gate.
                _ = expiry.changed() => {}
                () = run_out => self.settle(self.lock()),
            }
        }
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

    /// Works out what is released and which leases are granted, and tells the waiters if anything
    /// changed. The state stays locked until they are told, so that they see changes in their
    /// order.
    fn settle(&self, mut state: MutexGuard<'_, State>) {
        let State { applied, applied_term, registered, leading, led, released, .. } = &mut *state;
        let mut expiry = None;
        if let Some(leading) = leading {
            if !leading.established
                && (*applied_term == leading.term || planted!(NewLeaderNoOwnEntry))
            {
                leading.establish(registered, self.lease);
            }
            if leading.established {
                let now = self.env.now();
                let held = self.waits.then(|| leading.held_back(now, self.lease)).flatten();
                *released = (*released).max(held.unwrap_or(*applied));
                if planted!(ReleaseBeforeAcknowledged) {
                    *released = *applied;
                }
                leading.tell_released(now, *released);
                leading.grant(now, if self.waits { *released } else { 0 }, self.lease);
                let holds_back = self.waits && *released < *applied;
                expiry = holds_back.then(|| leading.next_expiry(now, self.lease)).flatten();
            }
        }
        let leads = leading.as_ref().filter(|l| l.established).map(|l| l.term);
        let next = Progress { applied: *applied, leads, led: *led, released: *released };
        self.progress.send_if_modified(|progress| std::mem::replace(progress, next) != next);
        self.expiry.send_if_modified(|at| std::mem::replace(at, expiry) != expiry);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Leading {
    /// The first entry of this term is applied. Whoever is registered may have a lease from an
    /// earlier leader, of which nothing is known here but when it has run out at the latest.
    fn establish(&mut self, registered: &Holders, lease: Duration) {
        self.established = true;
        let until = self.since + lease;
        for (nonce, name) in registered {
            let holder = self.holders.entry(*nonce);
            let holder = holder.or_insert_with(|| Holder::new(name.clone(), until));
            if !planted!(NewLeaderDoesNotWait) {
                holder.lease_until = Some(until);
                // Anything may be in its cache.
                holder.unacknowledged.push_front((0, self.since));
            }
        }
    }

    /// Up to where it may be released, if anybody is waited for.
    fn held_back(&self, now: Instant, lease: Duration) -> Option<u64> {
        let waited_for = |holder: &&Holder| holder.waited_for_until(lease).is_some_and(|t| now < t);
        self.holders.values().filter(waited_for).filter_map(Holder::held_back).min()
    }

    /// Grants what was asked for, confirmed, and is safe: the holder has acknowledged all that is
    /// released, and all that had been sent to it when it asked.
    fn grant(&mut self, now: Instant, released: u64, lease: Duration) {
        for holder in self.holders.values_mut() {
            if !holder.holds_lease(now) {
                holder.lease_until = None;
            }
            let Some(session) = &mut holder.session else {
                // Nothing is held back any more, and a session would begin anew.
                if holder.lease_until.is_none() {
                    holder.unacknowledged.clear();
                }
                continue;
            };
            let Some(renewal) = session.renewal.filter(|r| r.confirmed) else { continue };
            let oldest = holder.unacknowledged.front().map(|(index, _)| *index);
            let current = oldest.is_none_or(|oldest| oldest > renewal.sent.max(released));
            if !current || holder.removing {
                continue;
            }
            session.renewal = None;
            if !planted!(GrantNotRecorded) {
                // A lease that was granted before ends no later.
                holder.lease_until = Some(renewal.received + lease);
            }
            let granted = FromCatalog::Granted { number: renewal.number };
            if session.outgoing.try_send(granted).is_err() {
                holder.close(now);
            }
        }
    }

    /// Tells those that wait with items in their hands.
    fn tell_released(&mut self, now: Instant, released: u64) {
        for holder in self.holders.values_mut() {
            let Some(session) = &mut holder.session else { continue };
            if session.items_from.is_none_or(|from| released < from) {
                continue;
            }
            session.items_from = (session.items_at > released).then_some(released + 1);
            let message = FromCatalog::Released { index: released };
            if session.outgoing.try_send(message).is_err() {
                holder.close(now);
            }
        }
    }

    /// When the next one who holds something back is waited for no more.
    fn next_expiry(&self, now: Instant, lease: Duration) -> Option<Instant> {
        let holding = self.holders.values().filter(|holder| holder.held_back().is_some());
        holding.filter_map(|h| h.waited_for_until(lease)).filter(|until| *until > now).min()
    }

    fn holder_of(&mut self, session: u64) -> Option<&mut Holder> {
        let has =
            |holder: &&mut Holder| holder.session.as_ref().is_some_and(|s| s.number == session);
        self.holders.values_mut().find(has)
    }

    fn session(&mut self, session: u64) -> Option<&mut Session> {
        self.holder_of(session)?.session.as_mut()
    }
}

impl Holder {
    fn new(name: String, gone_since: Instant) -> Holder {
        Holder {
            name,
            session: None,
            unacknowledged: VecDeque::new(),
            lease_until: None,
            gone_since,
            removing: false,
        }
    }

    fn holds_lease(&self, now: Instant) -> bool {
        self.lease_until.is_some_and(|until| now < until)
    }

    /// Until when it is waited for: while its lease lasts, and while it is about to get one. Without
    /// the latter, a store that sells all the time would always have released more than a front end
    /// has acknowledged, and one whose lease has run out would never get another.
    fn waited_for_until(&self, lease: Duration) -> Option<Instant> {
        let session = self.session.as_ref().filter(|session| session.started);
        let renewal = session.and_then(|session| session.renewal.filter(|r| r.confirmed));
        self.lease_until.max(renewal.map(|renewal| renewal.received + lease))
    }

    /// The last index that may be released while it is waited for.
    fn held_back(&self) -> Option<u64> {
        self.unacknowledged.front().map(|(index, _)| index.saturating_sub(1))
    }

    /// Queues a message. A front end that reads too slowly hears no more: its stream ends.
    fn invalidate(&mut self, index: u64, changed: &Changed, now: Instant) {
        let sent = match &mut self.session {
            Some(session) => {
                session.sent = index;
                let Changed { keys, mut items } = changed.clone();
                if !session.wants_items {
                    items.clear();
                }
                if !items.is_empty() {
                    session.items_from.get_or_insert(index);
                    session.items_at = index;
                }
                let message = FromCatalog::Invalidate { index, keys, items };
                session.outgoing.try_send(message).is_ok()
            }
            None => true,
        };
        self.unacknowledged.push_back((index, now));
        if !sent {
            self.close(now);
        }
    }

    fn acknowledged(&mut self, index: u64) {
        while self.unacknowledged.front().is_some_and(|(sent, _)| *sent <= index) {
            self.unacknowledged.pop_front();
        }
        if let Some(session) = &mut self.session
            && !session.started
            && index >= session.base
        {
            session.started = true;
            // That was of an earlier session: it is dropped with the cache.
            self.lease_until = None;
        }
    }

    fn close(&mut self, now: Instant) {
        self.session = None;
        self.gone_since = self.lease_until.map_or(now, |until| until.max(now));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

    use pygmy_protocol::{
        env::{BoxFuture, Clock},
        invalidation::CacheKey,
        item::{Item, ItemNumber},
    };

    use super::*;
    use crate::raft::log_id;

    const LIMIT: Duration = Duration::from_secs(5);
    const NO_TIME: Duration = Duration::ZERO;
    const LEASE_MS: u64 = 500;
    /// By the leader's clock: one per cent longer.
    const LEASE_HERE_MS: u64 = 505;

    /// Stands still unless it is told. Whoever sleeps is not woken.
    #[derive(Default)]
    struct Stopped(AtomicU64);

    impl Clock for Stopped {
        fn now(&self) -> Instant {
            Instant::from_origin(Duration::from_millis(1_000 + self.0.load(SeqCst)))
        }

        fn wall_ms(&self) -> u64 {
            0
        }

        fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
            match duration.is_zero() {
                true => Box::pin(std::future::ready(())),
                false => Box::pin(std::future::pending()),
            }
        }
    }

    struct Store {
        gate: Gate,
        clock: Arc<Stopped>,
    }

    impl Store {
        /// A replica that knows of front ends 1 and 2, and does not lead.
        fn new() -> Store {
            Store::that_waits(true)
        }

        fn that_waits(waits: bool) -> Store {
            let clock = Arc::new(Stopped::default());
            let env = Env { clock: Arc::clone(&clock) as Arc<dyn Clock>, ..Env::production() };
            let gate = Gate::new(&env, Duration::from_millis(LEASE_MS), waits);
            let name = |nonce: u128| (nonce, format!("frontend-{nonce}"));
            gate.holders(Arc::new([1, 2].map(name).into()));
            Store { gate, clock }
        }

        /// The leader of term 1 that has applied the first entry of its term at index 1, and waits
        /// no more for whoever was there before.
        fn leading() -> Store {
            let store = Store::new();
            store.gate.lead(1, true);
            store.gate.applied(log_id(1, 1), Changed::default());
            store.pass(LEASE_HERE_MS);
            store
        }

        fn pass(&self, ms: u64) {
            self.clock.0.fetch_add(ms, SeqCst);
            self.gate.settle(self.gate.lock());
        }

        fn sell(&self, index: u64) {
            self.gate.applied(log_id(1, index), item(7).into());
        }

        /// A front end with a session that has acknowledged its start.
        fn session(&self, nonce: u128) -> Opened {
            let opened = self.gate.open_session(nonce).unwrap();
            self.gate.acknowledged(opened.session, opened.base);
            opened
        }

        /// The same with a lease from now on.
        fn lease(&self, nonce: u128) -> Opened {
            let mut opened = self.session(nonce);
            self.ask(&opened, 1);
            assert_eq!(opened.outgoing.try_recv(), Ok(FromCatalog::Granted { number: 1 }));
            opened
        }

        fn ask(&self, opened: &Opened, number: u64) {
            self.gate.renew(opened.session, number, true);
            self.gate.confirm(opened.session, number, opened.term);
        }

        fn released(&self) -> u64 {
            self.gate.progress().released
        }
    }

    /// The releases that a front end is told of.
    fn heard(opened: &mut Opened) -> Vec<u64> {
        let said = std::iter::from_fn(|| opened.outgoing.try_recv().ok());
        let released = |message| match message {
            FromCatalog::Released { index } => Some(index),
            _ => None,
        };
        said.filter_map(released).collect()
    }

    fn item(number: u64) -> Vec<CacheKey> {
        vec![CacheKey::Item(ItemNumber::try_from(number).unwrap())]
    }

    #[tokio::test]
    async fn without_leases_what_is_applied_is_released() {
        let store = Store::leading();
        let mut opened = store.session(1);
        store.sell(2);
        store.gate.await_released(1, 2, LIMIT).await.unwrap();
        let message = opened.outgoing.try_recv().unwrap();
        assert_eq!(
            message,
            FromCatalog::Invalidate { index: 2, keys: item(7), items: Vec::new() },
            "it hears of it"
        );
    }

    #[tokio::test]
    async fn a_change_waits_for_every_lease() {
        let store = Store::leading();
        let mut leases = [store.lease(1), store.lease(2)];
        store.sell(2);
        for lease in &mut leases {
            let message = lease.outgoing.try_recv().unwrap();
            assert_eq!(
                message,
                FromCatalog::Invalidate { index: 2, keys: item(7), items: Vec::new() }
            );
        }
        store.gate.acknowledged(leases[0].session, 2);
        assert_eq!(store.gate.await_released(1, 2, NO_TIME).await, Err(NotReleased::TimedOut));
        store.gate.acknowledged(leases[1].session, 2);
        store.gate.await_released(1, 2, LIMIT).await.unwrap();
    }

    #[test]
    fn a_lease_counts_from_its_request_and_runs_out() {
        let store = Store::leading();
        let opened = store.session(1);
        store.gate.renew(opened.session, 1, true);
        store.pass(100);
        store.gate.confirm(opened.session, 1, 1);
        store.sell(2);
        store.pass(LEASE_HERE_MS - 101);
        assert_eq!(store.released(), 1);
        store.pass(1);
        assert_eq!(store.released(), 2);
    }

    #[test]
    fn a_broken_stream_leaves_the_lease_and_an_ended_one_does_not() {
        for (ends_itself, released) in [(false, 1), (true, 2)] {
            let store = Store::leading();
            let opened = store.lease(1);
            match ends_itself {
                true => store.gate.forget_session(opened.session),
                false => store.gate.close_session(opened.session),
            }
            store.sell(2);
            assert_eq!(store.released(), released);
            assert!(store.gate.front_ends().is_empty());
            store.pass(LEASE_HERE_MS);
            assert_eq!(store.released(), 2);
        }
    }

    #[test]
    fn a_new_session_ends_the_lease_of_the_old_one_when_its_start_is_acknowledged() {
        let store = Store::leading();
        let old = store.lease(1);
        store.sell(2);
        let new = store.gate.open_session(1).unwrap();
        assert_eq!((store.released(), new.base), (1, 2), "it may still have the old value");
        store.gate.acknowledged(old.session, 2);
        assert_eq!(store.released(), 1, "a late word about the old session");
        store.gate.acknowledged(new.session, 2);
        store.sell(3);
        assert_eq!(store.released(), 3);
    }

    #[test]
    fn a_lease_is_granted_only_to_who_has_acknowledged_what_was_sent_and_released() {
        let store = Store::leading();
        let mut opened = store.session(1);
        store.sell(2);
        store.ask(&opened, 1);
        assert!(matches!(opened.outgoing.try_recv(), Ok(FromCatalog::Invalidate { .. })));
        assert!(opened.outgoing.try_recv().is_err(), "2 is released, and not acknowledged");
        store.sell(3);
        assert_eq!(store.released(), 2, "one who is about to get a lease is waited for");
        store.gate.acknowledged(opened.session, 2);
        assert!(matches!(opened.outgoing.try_recv(), Ok(FromCatalog::Invalidate { .. })));
        assert_eq!(opened.outgoing.try_recv(), Ok(FromCatalog::Granted { number: 1 }));
        store.gate.acknowledged(opened.session, 3);
        // Under the lease 4 is held back, and the next lease waits for what was sent by then only.
        store.sell(4);
        store.gate.renew(opened.session, 2, true);
        store.sell(5);
        store.gate.acknowledged(opened.session, 4);
        store.gate.confirm(opened.session, 2, 1);
        let said: Vec<_> = std::iter::from_fn(|| opened.outgoing.try_recv().ok()).collect();
        assert_eq!(said.last(), Some(&FromCatalog::Granted { number: 2 }));
        assert_eq!(store.released(), 4);
    }

    #[test]
    fn a_confirmation_is_for_its_term_and_its_request() {
        let store = Store::leading();
        let mut opened = store.session(1);
        store.gate.renew(opened.session, 2, true);
        store.gate.confirm(opened.session, 2, 3);
        store.gate.confirm(opened.session, 1, 1);
        store.gate.confirm(opened.session + 1, 2, 1);
        assert!(opened.outgoing.try_recv().is_err());
        store.gate.confirm(opened.session, 2, 1);
        assert!(opened.outgoing.try_recv().is_ok());
    }

    #[test]
    fn a_new_leader_waits_for_everybody_who_is_registered() {
        let store = Store::new();
        store.gate.lead(1, true);
        store.pass(100);
        store.gate.applied(log_id(1, 1), Changed::default());
        store.sell(2);
        assert_eq!(store.released(), 0);
        store.session(1);
        assert_eq!(store.released(), 0, "not of the other one");
        store.pass(LEASE_HERE_MS - 101);
        assert_eq!(store.released(), 0);
        store.pass(1);
        assert_eq!(store.released(), 2);

        let store = Store::new();
        store.gate.lead(1, true);
        store.gate.applied(log_id(1, 1), Changed::default());
        store.session(1);
        store.session(2);
        assert_eq!(store.released(), 1, "all have dropped what they had");
    }

    #[test]
    fn who_is_taken_out_gets_no_session_before_that_is_applied() {
        let store = Store::leading();
        let opened = store.lease(1);
        store.gate.close_session(opened.session);
        assert_eq!(store.gate.lapsed(), None);
        store.pass(LEASE_HERE_MS * (1 + u64::from(LEASES_UNTIL_LAPSED)));
        assert_eq!(store.gate.lapsed(), Some((1, vec![1, 2])));
        assert_eq!(store.gate.lapsed(), None, "once");
        assert_eq!(store.gate.open_session(1).err(), Some(NoSession::BeingRemoved));
        store.gate.holders(Arc::new([(2, "frontend-2".to_owned())].into()));
        assert_eq!(store.gate.open_session(1).err(), Some(NoSession::NotRegistered));
        assert!(!store.gate.is_registered(1));
    }

    #[test]
    fn who_was_sent_items_is_told_when_they_are_released() {
        let store = Store::leading();
        let mut leases = [store.lease(1), store.lease(2)];
        let sold = |index| {
            let item = Item {
                item_number: 7.try_into().unwrap(),
                title: "t".to_owned(),
                topic: "a".to_owned(),
                stock: index,
                cost: 1,
            };
            store
                .gate
                .applied(log_id(1, index), Changed { keys: self::item(7), items: vec![item] });
        };
        sold(2);
        sold(3);
        let [first, second] = &mut leases;
        store.gate.acknowledged(first.session, 3);
        assert_eq!(heard(first), [0; 0], "the other one has not dropped it");
        store.gate.acknowledged(second.session, 3);
        assert_eq!((heard(first), heard(second)), (vec![3], vec![3]));
        store.gate.applied(log_id(1, 4), Changed::default());
        assert_eq!(heard(first), [0; 0], "nobody waits for that");
    }

    #[test]
    fn eventually_nobody_is_waited_for() {
        let store = Store::that_waits(false);
        store.gate.lead(1, true);
        store.gate.applied(log_id(1, 1), Changed::default());
        store.sell(2);
        assert_eq!(store.released(), 2);
        let mut opened = store.lease(1);
        store.sell(3);
        assert_eq!(store.released(), 3);
        assert!(matches!(opened.outgoing.try_recv(), Ok(FromCatalog::Invalidate { .. })));
    }

    #[tokio::test]
    async fn an_entry_of_a_later_term_ends_the_leadership() {
        let store = Store::leading();
        store.lease(1);
        store.gate.applied(log_id(2, 2), item(7).into());
        assert_eq!(store.gate.progress().leads, None);
        assert!(store.released() < 2, "only the new leader knows");
        store.gate.lead(1, true);
        assert_eq!(store.gate.progress().leads, None, "Raft's word was late");
    }

    #[test]
    fn a_leader_without_a_majority_opens_no_session() {
        let store = Store::leading();
        store.gate.lead(1, false);
        assert_eq!(store.gate.open_session(1).err(), Some(NoSession::NotLeader));
    }

    #[test]
    fn no_session_before_an_entry_of_the_own_term() {
        let store = Store::new();
        store.gate.applied(log_id(1, 5), Changed::default());
        store.gate.lead(2, true);
        assert_eq!(store.gate.open_session(1).err(), Some(NoSession::NotLeader));
        store.gate.applied(log_id(2, 6), Changed::default());
        assert_eq!(store.gate.open_session(1).unwrap().base, 6);
    }

    #[tokio::test]
    async fn losing_the_leadership_ends_sessions_and_waits() {
        let store = Store::leading();
        let mut opened = store.lease(1);
        store.sell(2);
        store.gate.follow();
        let waited = store.gate.await_released(1, 2, LIMIT).await;
        assert_eq!(waited, Err(NotReleased::LeaderChanged));
        assert!(opened.outgoing.recv().await.is_some(), "what was sent is still delivered");
        assert!(opened.outgoing.recv().await.is_none());
    }
}
