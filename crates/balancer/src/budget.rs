//! How many attempts may be repeated.
//!
//! A retry helps when one server of several fails; when all of them are overloaded it only adds
//! to the load. So over the last ten seconds there may be a certain percentage as many retries as
//! there were requests, plus a floor per second, without which a store with little traffic could
//! not retry at all. (The rule is that of Finagle's `RetryBudget` and of tower's.)

use std::sync::{Mutex, MutexGuard, PoisonError};

use pygmy_protocol::env::Instant;

/// Seconds that are looked back on: long enough for one second's burst not to decide, short
/// enough for traffic of the past not to pay for a storm now.
const WINDOW_S: usize = 10;

/// The retry budget of one role.
pub(crate) struct Budget {
    percent: u64,
    floor_per_s: u64,
    window: Mutex<Window>,
}

/// One slot per second, used in a circle, and the sums over them.
#[derive(Default)]
struct Window {
    newest_second: u64,
    slots: [Counts; WINDOW_S],
    total: Counts,
}

#[derive(Default, Clone, Copy)]
struct Counts {
    requests: u64,
    retries: u64,
}

impl Budget {
    pub(crate) fn new(percent: u64, floor_per_s: u64) -> Budget {
        Budget { percent, floor_per_s, window: Mutex::default() }
    }

    /// Counts a request.
    pub(crate) fn deposit(&self, now: Instant) {
        self.window_at(now).add(Counts { requests: 1, retries: 0 });
    }

    /// Takes one retry, if there is one left.
    pub(crate) fn withdraw(&self, now: Instant) -> bool {
        let mut window = self.window_at(now);
        let floor = self.floor_per_s * WINDOW_S as u64;
        let allowed = window.total.retries < floor + window.total.requests * self.percent / 100;
        if allowed {
            window.add(Counts { requests: 0, retries: 1 });
        }
        allowed
    }

    fn window_at(&self, now: Instant) -> MutexGuard<'_, Window> {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        window.advance(now.since_origin().as_secs());
        window
    }
}

impl Window {
    fn advance(&mut self, second: u64) {
        let passed = second.saturating_sub(self.newest_second).min(WINDOW_S as u64);
        self.newest_second = self.newest_second.max(second);
        for back in 0..passed {
            let slot = slot(self.newest_second - back);
            let old = std::mem::take(&mut self.slots[slot]);
            self.total.requests -= old.requests;
            self.total.retries -= old.retries;
        }
    }

    fn add(&mut self, counts: Counts) {
        for sum in [&mut self.slots[slot(self.newest_second)], &mut self.total] {
            sum.requests += counts.requests;
            sum.retries += counts.retries;
        }
    }
}

fn slot(second: u64) -> usize {
    (second % WINDOW_S as u64) as usize
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn second(s: u64) -> Instant {
        Instant::from_origin(Duration::from_secs(s))
    }

    fn withdrawals(budget: &Budget, now: Instant) -> usize {
        (0..10_000).take_while(|_| budget.withdraw(now)).count()
    }

    #[test]
    fn without_traffic_the_floor_remains() {
        let budget = Budget::new(20, 10);
        assert_eq!(withdrawals(&budget, second(1000)), 100);
        assert_eq!(withdrawals(&budget, second(1009)), 0);
        assert_eq!(withdrawals(&budget, second(1010)), 100);
    }

    #[test]
    fn requests_pay_for_a_percentage_of_retries() {
        let budget = Budget::new(20, 0);
        assert_eq!(withdrawals(&budget, second(0)), 0);
        for s in 0..5 {
            (0..100).for_each(|_| budget.deposit(second(s)));
        }
        assert_eq!(withdrawals(&budget, second(5)), 100);
    }

    #[test]
    fn what_was_long_ago_pays_for_nothing() {
        let budget = Budget::new(20, 0);
        (0..100).for_each(|_| budget.deposit(second(0)));
        (0..50).for_each(|_| budget.deposit(second(9)));
        assert_eq!(withdrawals(&budget, second(10)), 10);
        assert_eq!(withdrawals(&budget, second(3600)), 0);
    }

    #[test]
    fn zero_forbids_retries() {
        let budget = Budget::new(0, 0);
        budget.deposit(second(1));
        assert!(!budget.withdraw(second(1)));
    }
}
