//! When requests are sent.
//!
//! In a closed loop each connection sends its next request when the last one is answered. A store
//! that stalls is then asked less, and the latency that customers would have had meanwhile is in
//! no figure (Gil Tene calls that coordinated omission).
//!
//! In an open loop a clock says when: request k is due at `first + k / rate`, whatever became of
//! the ones before. [`Tickets::release`] lets requests go at their time, and connections take them
//! in that order, each as soon as it is free. The latency of a request counts from the moment when
//! it was due, so the wait for a free connection is in it. What waits is a number, not a queue; it
//! is dropped when the warm-up ends, and each request of it after [`LATE_MAX`].

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use pygmy_protocol::{Env, env::Instant};
use tokio::sync::Semaphore;

use super::{Window, tally::Counter};

/// A request that is this late is not sent any more: its customer has left.
pub(crate) const LATE_MAX: Duration = Duration::from_secs(5);
/// Requests that are due within this time go together: at 100,000 a second a timer for each would
/// cost as much as the request.
const GRAIN: Duration = Duration::from_micros(100);
/// The pause between two looks whether the run was ended early.
const LOOK: Duration = Duration::from_millis(50);

#[derive(Clone)]
pub(crate) enum Pace {
    Closed,
    Open(Arc<Tickets>),
}

impl Pace {
    /// The moment from which the next request counts, once it is there. `None` when the run is
    /// over.
    pub(crate) async fn next(&self, env: &Env, window: &Window) -> Option<Instant> {
        match self {
            Pace::Closed => Some(env.now()).filter(|now| *now < window.end()),
            Pace::Open(tickets) => tickets.take(env, window).await,
        }
    }
}

/// The requests of an open loop.
pub(crate) struct Tickets {
    first: Instant,
    every_ns: f64,
    taken: AtomicU64,
    free: Semaphore,
    late: AtomicU64,
}

impl Tickets {
    /// From `first` on, `per_second` requests a second.
    pub(crate) fn new(first: Instant, per_second: f64) -> Tickets {
        Tickets {
            first,
            every_ns: 1e9 / per_second,
            taken: AtomicU64::new(0),
            free: Semaphore::new(0),
            late: AtomicU64::new(0),
        }
    }

    fn due(&self, ticket: u64) -> Instant {
        self.first + Duration::from_nanos((ticket as f64 * self.every_ns) as u64)
    }

    /// How many are due before `moment`.
    fn due_before(&self, moment: Instant) -> u64 {
        let passed = moment.saturating_since(self.first);
        (passed.as_nanos() as f64 / self.every_ns).ceil() as u64
    }

    /// Lets each request go when it is due, until the window ends; then counts what was not sent.
    pub(crate) async fn release(&self, env: &Env, window: &Window, counter: &Counter) {
        let mut released = 0;
        loop {
            let (now, end) = (env.now(), window.end());
            let due = self.due_before(now.min(end)).max(released);
            self.free.add_permits((due - released) as usize);
            released = due;
            if now >= end {
                break;
            }
            let next = self.due(released).saturating_since(now).max(GRAIN);
            let pause = next.min(end.saturating_since(now)).min(LOOK);
            env.sleep_precisely(pause).await;
        }
        // Connections that are free take the last ones before none are given any more.
        tokio::task::yield_now().await;
        self.free.close();
        let taken = self.taken.load(Ordering::Relaxed);
        let first_measured = self.due_before(window.measured_from());
        let waiting = released.saturating_sub(taken.max(first_measured));
        counter.with(|tally| tally.unsent += waiting + self.late.load(Ordering::Relaxed));
    }

    async fn take(&self, env: &Env, window: &Window) -> Option<Instant> {
        loop {
            self.free.acquire().await.ok()?.forget();
            let due = self.due(self.taken.fetch_add(1, Ordering::Relaxed));
            let now = env.now();
            let measured = window.is_measured(due);
            // What the warm-up leaves waiting would keep the rest from being measured at all.
            let left_over = !measured && now >= window.measured_from();
            if !left_over && now.saturating_since(due) < LATE_MAX {
                return Some(due);
            }
            self.late.fetch_add(u64::from(measured), Ordering::Relaxed);
        }
    }
}
