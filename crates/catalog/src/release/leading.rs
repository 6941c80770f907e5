//! What a leader knows of the front ends, in one term: their sessions, their leases, and what they
//! have yet to acknowledge. It ends with the term.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use pygmy_protocol::{env::Instant, invalidation::FromCatalog, planted};
use tokio::sync::mpsc;

use super::Leases;
use crate::state::{Changed, Holders};

/// Messages to one front end that wait to be written. One that falls behind by more is closed
/// and starts over with an empty cache.
const WAITING_MESSAGES: usize = 4096;

/// A holder without a lease and a session is taken out after so many times the lease: long enough
/// for one that restarts its connection, short enough that the dead do not gather.
pub(super) const LEASES_UNTIL_LAPSED: u32 = 4;

/// A leader in its term.
pub(super) struct Leading {
    pub(super) term: u64,
    leases: Leases,
    /// When it began, or a little later.
    since: Instant,
    /// Whether an entry of this term is applied: before that the leader neither releases nor
    /// opens sessions.
    pub(super) established: bool,
    /// Whether a majority answers. A leader that is not sure of that opens no session.
    pub(super) has_quorum: bool,
    /// Those that are registered and may have something in their caches, by their nonces.
    pub(super) holders: BTreeMap<u128, Holder>,
}

/// A front-end process.
pub(super) struct Holder {
    pub(super) name: String,
    /// How long its leases last by our clock.
    lease: Duration,
    pub(super) session: Option<Session>,
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

/// An open stream to it.
pub(super) struct Session {
    /// Never used again: a late word about a session is not taken for one about another.
    number: u64,
    base: u64,
    /// The start is acknowledged: what the process had before is gone.
    started: bool,
    /// The last index that was sent.
    sent: u64,
    /// Whether it is sent what items have become.
    pub(super) wants_items: bool,
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

impl Leading {
    /// A leader that has yet to apply an entry of its own.
    pub(super) fn new(term: u64, has_quorum: bool, leases: Leases, since: Instant) -> Leading {
        Leading { term, leases, since, established: false, has_quorum, holders: BTreeMap::new() }
    }

    /// The holder of that nonce, which is new here at `now` if it is not known.
    fn holder(&mut self, nonce: u128, name: &str, now: Instant) -> &mut Holder {
        let lease = self.leases.of(nonce);
        self.holders.entry(nonce).or_insert_with(|| Holder::new(name.to_owned(), lease, now))
    }

    /// The first entry of this term is applied. Whoever is registered may have a lease from an
    /// earlier leader, of which nothing is known here but when it has run out at the latest.
    pub(super) fn establish(&mut self, registered: &Holders) {
        self.established = true;
        let since = self.since;
        for (nonce, name) in registered {
            let until = since + self.leases.of(*nonce);
            let holder = self.holder(*nonce, name, until);
            if !planted!(NewLeaderDoesNotWait) {
                holder.lease_until = Some(until);
                // Anything may be in its cache.
                holder.unacknowledged.push_front((0, since));
            }
        }
    }

    /// Opens the `number`-th session, which begins at `base`.
    pub(super) fn open_session(
        &mut self,
        nonce: u128,
        name: &str,
        number: u64,
        base: u64,
        now: Instant,
    ) -> Result<Opened, NoSession> {
        let term = self.term;
        let holder = self.holder(nonce, name, now);
        if holder.removing {
            return Err(NoSession::BeingRemoved);
        }
        let (sender, outgoing) = mpsc::channel(WAITING_MESSAGES);
        // Whatever it has not acknowledged it drops with the start. Until then, a lease that it
        // may have holds back what it did.
        let oldest = holder.unacknowledged.front().map_or(base, |(index, _)| *index);
        holder.unacknowledged = VecDeque::from([(oldest, now), (base, now)]);
        holder.session = Some(Session::new(number, base, sender));
        Ok(Opened { session: number, term, base, outgoing })
    }

    /// Tells all that listen.
    pub(super) fn invalidate(&mut self, index: u64, changed: &Changed, now: Instant) {
        self.holders.values_mut().for_each(|holder| holder.invalidate(index, changed, now));
    }

    /// Those that have had neither a session nor a lease for a while. From now on they get none.
    pub(super) fn lapsed(&mut self, registered: &Holders, now: Instant) -> Vec<u128> {
        for (nonce, name) in registered {
            // One that registered and never asked for a session.
            self.holder(*nonce, name, now);
        }
        let gone = self.holders.iter_mut().filter(|(_, holder)| {
            let free = holder.session.is_none() && !holder.holds_lease(now);
            let patience = holder.lease * LEASES_UNTIL_LAPSED;
            free && !holder.removing && now.saturating_since(holder.gone_since) >= patience
        });
        let remove = |(nonce, holder): (&u128, &mut Holder)| {
            holder.removing = true;
            *nonce
        };
        gone.map(remove).collect()
    }

    /// Up to where it may be released, if anybody is waited for.
    pub(super) fn held_back(&self, now: Instant) -> Option<u64> {
        let waited_for = |holder: &&Holder| holder.waited_for_until().is_some_and(|t| now < t);
        self.holders.values().filter(waited_for).filter_map(Holder::held_back).min()
    }

    /// Grants what was asked for, confirmed, and is safe: the holder has acknowledged all that is
    /// released, and all that had been sent to it when it asked.
    pub(super) fn grant(&mut self, now: Instant, released: u64) {
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
                holder.lease_until = Some(renewal.received + holder.lease);
            }
            let granted = FromCatalog::Granted { number: renewal.number };
            if session.outgoing.try_send(granted).is_err() {
                holder.close(now);
            }
        }
    }

    /// Tells those that wait with items in their hands.
    pub(super) fn tell_released(&mut self, now: Instant, released: u64) {
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
    pub(super) fn next_expiry(&self, now: Instant) -> Option<Instant> {
        let holding = self.holders.values().filter(|holder| holder.held_back().is_some());
        holding.filter_map(Holder::waited_for_until).filter(|until| *until > now).min()
    }

    pub(super) fn holder_of(&mut self, session: u64) -> Option<&mut Holder> {
        let has =
            |holder: &&mut Holder| holder.session.as_ref().is_some_and(|s| s.number == session);
        self.holders.values_mut().find(has)
    }

    pub(super) fn session(&mut self, session: u64) -> Option<&mut Session> {
        self.holder_of(session)?.session.as_mut()
    }
}

impl Session {
    fn new(number: u64, base: u64, outgoing: mpsc::Sender<FromCatalog>) -> Session {
        Session {
            number,
            base,
            started: false,
            sent: base,
            wants_items: false,
            items_from: None,
            items_at: 0,
            outgoing,
            renewal: None,
        }
    }

    /// It asks for a lease. An earlier request is not answered any more.
    pub(super) fn ask(&mut self, number: u64, received: Instant, wants_items: bool) {
        self.wants_items = wants_items;
        self.renewal = Some(Renewal { number, received, sent: self.sent, confirmed: false });
    }

    /// A majority followed the leader after the request with this number had come.
    pub(super) fn confirm(&mut self, number: u64) {
        if let Some(renewal) = self.renewal.as_mut().filter(|r| r.number == number) {
            renewal.confirmed = true;
        }
    }
}

impl Holder {
    fn new(name: String, lease: Duration, gone_since: Instant) -> Holder {
        Holder {
            name,
            lease,
            session: None,
            unacknowledged: VecDeque::new(),
            lease_until: None,
            gone_since,
            removing: false,
        }
    }

    pub(super) fn holds_lease(&self, now: Instant) -> bool {
        self.lease_until.is_some_and(|until| now < until)
    }

    /// Until when it is waited for: while its lease lasts, and while it is about to get one. Without
    /// the latter, a store that sells all the time would always have released more than a front end
    /// has acknowledged, and one whose lease has run out would never get another.
    fn waited_for_until(&self) -> Option<Instant> {
        let session = self.session.as_ref().filter(|session| session.started);
        let renewal = session.and_then(|session| session.renewal.filter(|r| r.confirmed));
        self.lease_until.max(renewal.map(|renewal| renewal.received + self.lease))
    }

    /// The last index that may be released while it is waited for.
    pub(super) fn held_back(&self) -> Option<u64> {
        self.unacknowledged.front().map(|(index, _)| index.saturating_sub(1))
    }

    /// Queues a message. A front end that reads too slowly hears no more: its stream ends.
    fn invalidate(&mut self, index: u64, changed: &Changed, now: Instant) {
        let sent = match &mut self.session {
            Some(session) => {
                session.sent = index;
                let items = match session.wants_items {
                    true => changed.items.clone(),
                    false => Vec::new(),
                };
                if !items.is_empty() {
                    session.items_from.get_or_insert(index);
                    session.items_at = index;
                }
                let keys = changed.keys.clone();
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

    pub(super) fn acknowledged(&mut self, index: u64) {
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

    pub(super) fn close(&mut self, now: Instant) {
        self.session = None;
        self.gone_since = self.lease_until.map_or(now, |until| until.max(now));
    }

    /// It has ended its stream, and serves nothing any more of what it had in this session. What it
    /// may have had before is gone only if it has acknowledged the start: a hello that comes late may
    /// have replaced a later session, whose cache and lease the process still has.
    pub(super) fn forget(&mut self, now: Instant) {
        if self.session.as_ref().is_some_and(|session| session.started) {
            self.lease_until = None;
            self.unacknowledged.clear();
        }
        self.close(now);
    }

    /// Whether it has left a message unacknowledged for the time of a lease.
    pub(super) fn is_late(&self, now: Instant) -> bool {
        let oldest = self.unacknowledged.front();
        oldest.is_some_and(|(_, sent)| now.saturating_since(*sent) > self.lease)
    }
}
