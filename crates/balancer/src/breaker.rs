//! Sets a server aside that leaves request after request without an answer. Faster than probes,
//! because it learns from the requests themselves.
//!
//! ```text
//!            failures in a row              the backoff has passed
//!   Closed ----------------------> Open ---------------------------> Trial
//!     ^                              ^                                 |
//!     |                              |    failure: twice the backoff   |
//!     |                              +---------------------------------+
//!     |                                 success                        |
//!     +----------------------------------------------------------------+
//! ```
//!
//! Aside means last in line, not out: a server that is set aside is still picked when there is no
//! other one, so the last server of a role is never ejected.

use std::time::Duration;

use pygmy_protocol::env::Instant;

/// First time aside: about what a server takes to close and reopen its port.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// Longest time aside: a server that is back waits no longer for its traffic.
const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// The breaker of one server.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Breaker {
    /// Gets requests.
    Closed { failures: u64 },
    /// Gets none until then.
    Open { until: Instant, backoff: Duration },
    /// One request is trying it. If that one is not heard of by `until` (its caller may have gone
    /// away), another may try.
    Trial { until: Instant, backoff: Duration },
}

impl Breaker {
    pub(crate) fn new() -> Breaker {
        Breaker::Closed { failures: 0 }
    }

    /// Whether a request may be sent.
    pub(crate) fn admits(&self, now: Instant) -> bool {
        match self {
            Breaker::Closed { .. } => true,
            Breaker::Open { until, .. } | Breaker::Trial { until, .. } => now >= *until,
        }
    }

    /// A request is sent.
    pub(crate) fn begin(&mut self, now: Instant) {
        match *self {
            Breaker::Open { until, backoff } | Breaker::Trial { until, backoff }
                if now >= until =>
            {
                *self = Breaker::Trial { until: now + backoff, backoff };
            }
            _ => {}
        }
    }

    /// A request was answered.
    pub(crate) fn success(&mut self) {
        *self = Breaker::new();
    }

    /// A request was not answered. `limit` in a row open the breaker.
    pub(crate) fn failure(&mut self, now: Instant, limit: u64) {
        *self = match *self {
            Breaker::Closed { failures } if failures + 1 < limit => {
                Breaker::Closed { failures: failures + 1 }
            }
            Breaker::Closed { .. } => open(now, BACKOFF_MIN),
            Breaker::Trial { backoff, .. } => open(now, (backoff * 2).min(BACKOFF_MAX)),
            // A request from before it opened: nothing new.
            Breaker::Open { until, backoff } => Breaker::Open { until, backoff },
        };
    }
}

fn open(now: Instant, backoff: Duration) -> Breaker {
    Breaker::Open { until: now + backoff, backoff }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u64 = 3;

    fn ms(ms: u64) -> Instant {
        Instant::from_origin(Duration::from_millis(ms))
    }

    fn opened_at(now: Instant) -> Breaker {
        let mut breaker = Breaker::new();
        (0..LIMIT).for_each(|_| breaker.failure(now, LIMIT));
        breaker
    }

    #[test]
    fn only_failures_in_a_row_open_it() {
        let mut breaker = Breaker::new();
        for _ in 0..10 {
            breaker.failure(ms(0), LIMIT);
            breaker.failure(ms(0), LIMIT);
            breaker.success();
        }
        assert!(breaker.admits(ms(0)));
        assert!(!opened_at(ms(0)).admits(ms(99)));
    }

    #[test]
    fn after_the_backoff_one_request_tries_it() {
        let mut breaker = opened_at(ms(0));
        assert!(breaker.admits(ms(100)));
        breaker.begin(ms(100));
        assert!(!breaker.admits(ms(100)));
        breaker.success();
        assert_eq!(breaker, Breaker::new());
    }

    #[test]
    fn a_failed_trial_doubles_the_backoff_up_to_its_maximum() {
        let mut breaker = opened_at(ms(0));
        let mut now = ms(0);
        for backoff_ms in [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000] {
            let end = now + Duration::from_millis(backoff_ms);
            assert!(!breaker.admits(end - Duration::from_millis(1)), "{backoff_ms}");
            assert!(breaker.admits(end), "{backoff_ms}");
            breaker.begin(end);
            breaker.failure(end, LIMIT);
            now = end;
        }
    }

    #[test]
    fn a_trial_that_nobody_finishes_makes_room_for_another() {
        let mut breaker = opened_at(ms(0));
        breaker.begin(ms(100));
        assert!(!breaker.admits(ms(199)));
        assert!(breaker.admits(ms(200)));
    }

    #[test]
    fn late_failures_do_not_keep_it_open() {
        let mut breaker = opened_at(ms(0));
        breaker.failure(ms(90), LIMIT);
        assert!(breaker.admits(ms(100)));
    }
}
