//! Release: nothing that reveals state leaves before the front ends have dropped what it changed.
//!
//! Every applied entry passes [`Gate::applied`], in log order, with the cache keys that it changed.
//! On the leader the gate sends them to each front end's session and *releases* the entry when
//! every front end that holds a lease has acknowledged it, or its lease has run out. Answers wait
//! in [`Gate::await_released`]: a buy for the index of its own entry, a read for the index of the
//! state that it saw.
//!
//! The [`Gate`] is what others see of it, and knows what is applied and released; what a leader
//! knows of the front ends, in one term, is in [`leading`]. The rules are numbered as in
//! `crates/frontend/DESIGN.md`, and each stands in one place:
//!
//! 1. *Holders* are registered through the log ([`Gate::holders`] hears of them, [`crate::holders`]
//!    proposes); one whose lease has run out may be taken out ([`Gate::lapsed`]), and from then on
//!    it gets no session and no lease here.
//! 2. *Renewal*: [`Gate::renew`] notes when the request came, [`Gate::confirm`] that a majority
//!    still followed this leader after that, and [`Leading::grant`] records the lease and sends the
//!    answer, in one step.
//! 3. *Release*: [`Gate::settle`].
//! 4. *Session*: [`Leading::open_session`] sets the base and queues all that comes after it.
//! 9. *New leader*: [`Leading::establish`]. Whoever is registered then counts as holding a lease,
//!    until it has acknowledged the start of a session here, or the time of a lease has passed
//!    since this replica began to lead. All of it ends with the term.
//!
//! Rules 5 to 8 are the front end's. With `waits` unset (`consistency = "eventual"`) everything is
//! sent and nothing is waited for.

mod leading;
#[cfg(test)]
mod tests;

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use pygmy_protocol::{
    env::{Env, Instant},
    invalidation::lease_of,
    planted,
};
use tokio::sync::watch;

use self::leading::Leading;
pub(crate) use self::leading::{NoSession, Opened};

use crate::{
    raft::LogId,
    state::{Changed, Holders},
};

/// The clock of a front end may run slower than ours by this factor: one per cent.
const CLOCK_DRIFT_PER_MILLE: u32 = 10;

/// How long leases last by our clock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Leases {
    /// Those of a process that does not say: as long as is configured here.
    own: Duration,
}

impl Leases {
    /// Those of the process with that nonce, counted from when it asked.
    fn of(self, nonce: u128) -> Duration {
        let said = lease_of(nonce).filter(|_| !planted!(LeaseOfLeader));
        let lease = said.unwrap_or(self.own);
        lease + lease * CLOCK_DRIFT_PER_MILLE / 1000
    }
}

/// Whether this replica may answer, and what waits for that.
pub(crate) struct Gate {
    env: Env,
    leases: Leases,
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

/// The wait for a release ended without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotReleased {
    #[error("the front ends did not acknowledge in time")]
    TimedOut,
    #[error("the leadership was lost")]
    LeaderChanged,
}

impl Gate {
    /// A gate of a replica that does not lead yet. Front ends that say nothing else may serve for
    /// `lease` by their own clocks.
    pub(crate) fn new(env: &Env, lease: Duration, waits: bool) -> Gate {
        Gate {
            env: env.clone(),
            leases: Leases { own: lease },
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
            && !(planted!(NewLeaderNoOwnEntry) && term < leading.term)
        {
            leading.invalidate(log_id.index, &changed, now);
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
                *leading = Some(Leading::new(term, has_quorum, self.leases, self.env.now()));
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
        let opened = leading.open_session(nonce, &name, number, base, now)?;
        self.settle(state);
        Ok(opened)
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
            session.ask(number, received, wants_items);
        }
        self.settle(state);
    }

    /// A majority followed the leader of `term` after the request with this number had come.
    pub(crate) fn confirm(&self, session: u64, number: u64, term: u64) {
        let mut state = self.lock();
        if let Some(leading) = state.leading.as_mut().filter(|leading| leading.term == term)
            && let Some(session) = leading.session(session)
        {
            session.confirm(number);
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
            holder.forget(self.env.now());
        }
        self.settle(state);
    }

    /// Holders that have had neither a session nor a lease for a while, by our clock and in this
    /// term. From now on they get none here. Each is named once: who is taken out may register again,
    /// and a second removal that was on its way would take out that one, with its lease.
    pub(crate) fn lapsed(&self) -> Option<(u64, Vec<u128>)> {
        let mut state = self.lock();
        let (now, registered) = (self.env.now(), Arc::clone(&state.registered));
        let leading = state.leading.as_mut().filter(|leading| leading.established)?;
        let nonces = leading.lapsed(&registered, now);
        (!nonces.is_empty()).then_some((leading.term, nonces))
    }

    /// Whether the front end has left a message unacknowledged for the time of a lease.
    pub(crate) fn is_late(&self, session: u64) -> bool {
        let now = self.env.now();
        let mut state = self.lock();
        let holder = state.leading.as_mut().and_then(|leading| leading.holder_of(session));
        holder.is_some_and(|holder| holder.is_late(now))
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
                leading.establish(registered);
            }
            if leading.established {
                let now = self.env.now();
                let held = self.waits.then(|| leading.held_back(now)).flatten();
                *released = (*released).max(held.unwrap_or(*applied));
                if planted!(ReleaseBeforeAcknowledged) {
                    *released = *applied;
                }
                leading.tell_released(now, *released);
                leading.grant(now, if self.waits { *released } else { 0 });
                let holds_back = self.waits && *released < *applied;
                expiry = holds_back.then(|| leading.next_expiry(now)).flatten();
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
