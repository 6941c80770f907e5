//! One process of a registered server: what it says, what probes say, and how it is judged.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use pygmy_client::Upstream;
use pygmy_protocol::{
    env::Instant,
    registration::{Health, Registration, Role, ServerStatus},
    watched::{CaughtUp, Story},
};

use crate::{breaker::Breaker, metrics::Counters, settings::Settings};

/// What decides that a server is gone.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    missed_heartbeats: u32,
    probe_failures: u64,
    breaker_failures: u64,
}

impl Rules {
    pub(crate) fn new(settings: &Settings) -> Rules {
        Rules {
            // Checked to be 100 at most.
            missed_heartbeats: settings.missed_heartbeats as u32,
            probe_failures: settings.probe_failures,
            breaker_failures: settings.breaker_failures,
        }
    }
}

/// A registered process. Its successor of the same name gets a `Server` of its own, so that no
/// answer, probe or failure of the old one counts for the new one.
pub(crate) struct Server {
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) upstream: Upstream,
    pub(crate) load: Arc<Load>,
    nonce: String,
    rules: Rules,
    counters: Arc<Counters>,
    standing: Mutex<Standing>,
}

struct Standing {
    heard_at: Instant,
    heartbeat: Duration,
    wants_traffic: bool,
    /// When `wants_traffic` last changed.
    changed_at: Instant,
    leads_term: Option<u64>,
    caught_up: Option<CaughtUp>,
    /// The last probe that was answered: ready, or why not.
    probe: Option<Result<(), String>>,
    /// Nobody listened at its address, and it was not heard of since.
    refused: Option<String>,
    /// Probes in a row that were not answered, and why the last was not.
    silent: u64,
    silence: String,
    breaker: Breaker,
    was_ready: bool,
    told: Health,
}

/// A server that may get traffic.
pub(crate) struct Fit {
    /// The term in which it says that it leads the catalog.
    pub(crate) leads_term: Option<u64>,
    /// Its breaker puts it last in line.
    pub(crate) set_aside: bool,
}

/// What became of a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Probed {
    Ready,
    Unready(String),
    /// Nobody listens there.
    Refused(String),
    Unanswered(String),
}

impl Server {
    /// The process that sent `registration`, at `upstream`. `load` goes on from its predecessor
    /// of the same name.
    pub(crate) fn new(
        registration: &Registration,
        upstream: Upstream,
        load: Arc<Load>,
        rules: Rules,
        counters: Arc<Counters>,
        now: Instant,
    ) -> Server {
        let standing = Standing {
            heard_at: now,
            heartbeat: Duration::from_millis(registration.heartbeat_ms),
            wants_traffic: registration.ready,
            changed_at: now,
            leads_term: registration.leads_term,
            caught_up: registration.caught_up,
            probe: None,
            refused: None,
            silent: 0,
            silence: String::new(),
            breaker: Breaker::new(),
            was_ready: false,
            told: Health::Starting,
        };
        let server = Server {
            name: registration.name.clone(),
            role: registration.role,
            upstream,
            load,
            nonce: registration.nonce.clone(),
            rules,
            counters,
            standing: Mutex::new(standing),
        };
        server.observe(now);
        server
    }

    /// Names its process.
    pub(crate) fn nonce(&self) -> &str {
        &self.nonce
    }

    /// Whether `registration` is from this very process.
    pub(crate) fn sent(&self, registration: &Registration) -> bool {
        self.nonce == registration.nonce
            && self.role == registration.role
            && self.upstream.url() == registration.url
    }

    /// Takes a repeated registration.
    pub(crate) fn heartbeat(&self, registration: &Registration, now: Instant) {
        {
            let mut standing = self.standing();
            standing.heard_at = now;
            standing.heartbeat = Duration::from_millis(registration.heartbeat_ms);
            standing.leads_term = registration.leads_term;
            standing.caught_up = registration.caught_up;
            standing.refused = None;
            if standing.wants_traffic != registration.ready {
                standing.wants_traffic = registration.ready;
                standing.changed_at = now;
                // Newer than what the probe found: after an election all replicas become ready
                // together, and nobody should wait for the next round of probes.
                standing.probe = None;
            }
        }
        self.observe(now);
    }

    /// Takes the outcome of a probe that was sent at `sent_at`. Gives whether only another one can
    /// tell if the server is dead.
    pub(crate) fn probed(&self, outcome: Probed, sent_at: Instant, now: Instant) -> bool {
        let is_in_doubt = {
            let mut standing = self.standing();
            let answer = match outcome {
                Probed::Ready => Some(Ok(())),
                Probed::Unready(reason) => Some(Err(reason)),
                Probed::Refused(reason) => {
                    standing.refused = Some(reason);
                    None
                }
                Probed::Unanswered(reason) => {
                    standing.silent += 1;
                    standing.silence = reason;
                    None
                }
            };
            if answer.is_some() {
                (standing.silent, standing.refused) = (0, None);
                // A change that was registered meanwhile is newer than this answer.
                if standing.changed_at <= sent_at {
                    standing.probe = answer;
                }
            }
            standing.refused.is_none() && (1..self.rules.probe_failures).contains(&standing.silent)
        };
        self.observe(now);
        is_in_doubt
    }

    /// A request is sent to it.
    pub(crate) fn begin(&self, now: Instant) {
        self.standing().breaker.begin(now);
    }

    /// It answered a request.
    pub(crate) fn answered(&self) {
        self.standing().breaker.success();
    }

    /// Nobody listened when a request was to be sent to it: it is dead, and no probe has to say so.
    pub(crate) fn refused(&self, reason: &str, now: Instant) {
        self.standing().refused = Some(reason.to_owned());
        self.observe(now);
    }

    /// It did not answer a request.
    pub(crate) fn unanswered(&self, now: Instant) {
        let mut standing = self.standing();
        let was_admitted = standing.breaker.admits(now);
        standing.breaker.failure(now, self.rules.breaker_failures);
        if was_admitted && !standing.breaker.admits(now) {
            self.counters.ejected_by_breaker.inc();
        }
    }

    /// How it stands if it may get traffic.
    pub(crate) fn fit(&self, now: Instant) -> Option<Fit> {
        let standing = self.standing();
        let is_ready = standing.health(&self.rules, now) == Health::Ready;
        let set_aside = !standing.breaker.admits(now);
        is_ready.then_some(Fit { leads_term: standing.leads_term, set_aside })
    }

    /// The term in which it says that it leads the catalog.
    pub(crate) fn leads_term(&self) -> Option<u64> {
        self.standing().leads_term
    }

    /// For how long its registration has been expired, if it is.
    pub(crate) fn expired_for(&self, now: Instant) -> Option<Duration> {
        self.standing().expired_for(&self.rules, now)
    }

    /// Its line in `GET /servers`; `leads` is whether its term as the leader is the newest,
    /// `remembered` how often its process was started again and how the last time.
    pub(crate) fn status(
        &self,
        leads: bool,
        remembered: (u64, Option<Story>),
        now: Instant,
    ) -> ServerStatus {
        let standing = self.standing();
        let (respawns, story) = remembered;
        let caught_up = standing.caught_up;
        let story = story.map(|story| Story { caught_up, ..story });
        let health = match standing.health(&self.rules, now) {
            Health::Ready if !standing.breaker.admits(now) => Health::Unready,
            health => health,
        };
        ServerStatus {
            name: self.name.clone(),
            role: self.role,
            url: self.upstream.url().to_owned(),
            health,
            reason: standing.reason(&self.rules, now),
            in_flight: self.load.in_flight(),
            served: self.load.served(),
            leader: leads && health != Health::Dead,
            respawns,
            story,
        }
    }

    /// Notes how it is judged now, and tells the log when that has changed.
    pub(crate) fn observe(&self, now: Instant) {
        let mut standing = self.standing();
        let health = standing.health(&self.rules, now);
        standing.was_ready |= health == Health::Ready;
        let before = std::mem::replace(&mut standing.told, health);
        if before == health {
            return;
        }
        match health {
            Health::Dead if before == Health::Ready => self.counters.ejected_silent.inc(),
            _ if before == Health::Ready => self.counters.ejected_unready.inc(),
            _ => 0,
        };
        let (server, role) = (&self.name, self.role);
        match standing.reason(&self.rules, now) {
            None => tracing::info!(server, %role, "gets traffic"),
            Some(reason) => tracing::warn!(server, %role, %health, reason, "gets no traffic"),
        }
    }

    /// Never held across an await.
    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Standing {
    fn health(&self, rules: &Rules, now: Instant) -> Health {
        let refuses = matches!(self.probe, Some(Err(_)));
        let is_silent = self.silent >= rules.probe_failures;
        if self.expired_for(rules, now).is_some() || self.refused.is_some() || is_silent {
            Health::Dead
        } else if self.wants_traffic && !refuses {
            Health::Ready
        } else if self.was_ready {
            Health::Unready
        } else {
            Health::Starting
        }
    }

    fn reason(&self, rules: &Rules, now: Instant) -> Option<String> {
        if self.expired_for(rules, now).is_some() {
            return Some(format!("silent for {}", rounded(now.saturating_since(self.heard_at))));
        }
        if let Some(reason) = &self.refused {
            return Some(reason.clone());
        }
        if self.silent >= rules.probe_failures {
            return Some(self.silence.clone());
        }
        if let Some(Err(reason)) = &self.probe {
            return Some(reason.clone());
        }
        if !self.wants_traffic {
            return Some("it registered as not ready".to_owned());
        }
        (!self.breaker.admits(now)).then(|| "set aside: it left requests unanswered".to_owned())
    }

    fn expired_for(&self, rules: &Rules, now: Instant) -> Option<Duration> {
        let expiry = self.heard_at + self.heartbeat * rules.missed_heartbeats;
        (now > expiry).then(|| now.saturating_since(expiry))
    }
}

/// For people: two digits or three, and the unit that gives them.
fn rounded(duration: Duration) -> String {
    match duration.as_secs() {
        0 => format!("{} ms", duration.as_millis()),
        s @ 1..120 => format!("{s} s"),
        s @ 120..7_200 => format!("{} min", s / 60),
        s => format!("{} h", s / 3_600),
    }
}

/// How many requests a server has and had.
#[derive(Default)]
pub(crate) struct Load {
    in_flight: AtomicU64,
    served: AtomicU64,
}

impl Load {
    /// Counts a request in until the guard is dropped, also if its caller goes away.
    pub(crate) fn enter(self: &Arc<Load>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(Arc::clone(self))
    }

    pub(crate) fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    pub(crate) fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }
}

/// One request in flight.
pub(crate) struct InFlight(Arc<Load>);

impl InFlight {
    /// It was answered.
    pub(crate) fn answered(&self) {
        self.0.served.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
