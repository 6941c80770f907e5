//! Admission: how many requests this front end lets into the store at a time.
//!
//! A store that takes in more than it can do makes everyone wait, until what it works on has been
//! given up by those who asked for it. So a front end lets in as many requests as the store
//! answers within `answer_goal_ms`, and refuses the others at once, with 429: before they cost
//! another server anything, and itself more than a small part of a buy, so that nearly all of the
//! capacity goes to those that are let in.
//!
//! How many that is follows from Little's law: of `R` requests a second that take `L` seconds each,
//! `R * L` are under way. The front end measures `R` in windows of [`WINDOW`] and sets its limit to
//! `R * answer_goal`: up if the limit held requests back while the answers were faster than the
//! goal, down if they were slower, by a factor of two a window at most. Answers from the cache need
//! no admission. Each front end sees only its own share of `R`, so the shares of several add up to
//! what the store can do, without a word between them. The idea is that of TCP's congestion
//! control, and of Netflix's concurrency-limits, with a goal that people set in the place of a
//! shortest time that is guessed.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use pygmy_protocol::{
    Code, Env, Problem,
    env::Instant,
    metrics::{Counter, Metrics},
};

/// For so long at least the rate is measured before the limit may change.
const WINDOW: Duration = Duration::from_millis(100);
/// And over so many answers at least.
const WINDOW_ANSWERS: u32 = 16;
/// The limit is never lower: enough to see when the store is faster again.
const LIMIT_MIN: usize = 32;
/// Where a front end begins.
const LIMIT_START: usize = 1_000;

/// The gate of one front end.
pub(crate) struct Admission {
    env: Env,
    goal: Duration,
    most: usize,
    limit: AtomicUsize,
    in_flight: AtomicUsize,
    window: Mutex<Window>,
    refused: Counter,
}

/// What happened since the limit was last looked at.
struct Window {
    since: Instant,
    answers: u32,
    /// Of all these answers together.
    time: Duration,
    held_back: bool,
}

/// A request that was let in. Its answer, or its end without one, is when this is dropped.
pub(crate) struct Admitted<'a> {
    admission: &'a Admission,
    at: Instant,
}

impl Window {
    fn new(since: Instant) -> Window {
        Window { since, answers: 0, time: Duration::ZERO, held_back: false }
    }
}

impl Admission {
    /// Lets in what the store answers within `goal`, and `most` requests at most.
    pub(crate) fn new(env: &Env, metrics: &Metrics, goal: Duration, most: usize) -> Arc<Admission> {
        Arc::new(Admission {
            env: env.clone(),
            goal,
            most,
            limit: AtomicUsize::new(LIMIT_START.min(most)),
            in_flight: AtomicUsize::new(0),
            window: Mutex::new(Window::new(env.now())),
            refused: metrics.rejections("answer_goal_ms"),
        })
    }

    /// Lets a request in. It counts until the guard is dropped.
    ///
    /// # Errors
    /// `too_many_requests`: nothing was done.
    pub(crate) fn enter(&self) -> Result<Admitted<'_>, Problem> {
        let limit = self.limit.load(Relaxed);
        if self.in_flight.fetch_add(1, Relaxed) < limit {
            return Ok(Admitted { admission: self, at: self.env.now() });
        }
        self.in_flight.fetch_sub(1, Relaxed);
        self.lock().held_back = true;
        self.refused.inc();
        let detail = "the store has more requests than it can answer in time; nothing was done, \
                      try again in a moment";
        Err(Problem::new(Code::TooManyRequests, detail))
    }

    /// Requests that were let in and are not answered.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Relaxed)
    }

    /// How many are let in at a time.
    pub(crate) fn limit(&self) -> usize {
        self.limit.load(Relaxed)
    }

    fn leave(&self, took: Duration, now: Instant) {
        self.in_flight.fetch_sub(1, Relaxed);
        let mut window = self.lock();
        window.answers += 1;
        window.time += took;
        let lasted = now.saturating_since(window.since);
        if lasted < WINDOW || window.answers < WINDOW_ANSWERS {
            return;
        }
        let limit = self.limit.load(Relaxed);
        self.limit.store(self.adjusted(limit, &window, lasted), Relaxed);
        *window = Window::new(now);
    }

    fn adjusted(&self, limit: usize, window: &Window, lasted: Duration) -> usize {
        let rate = f64::from(window.answers) / lasted.as_secs_f64();
        // Whole requests; as far as a float goes, which is far beyond `most`.
        let wanted = (rate * self.goal.as_secs_f64()) as usize;
        let too_slow = window.time / window.answers > self.goal;
        let limit = match (too_slow, window.held_back) {
            (true, _) => wanted.clamp(limit / 2, limit),
            (false, true) => wanted.clamp(limit, limit * 2),
            (false, false) => limit,
        };
        limit.max(LIMIT_MIN).min(self.most)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        let now = self.admission.env.now();
        self.admission.leave(now.saturating_since(self.at), now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOAL: Duration = Duration::from_millis(500);

    fn admission(most: usize) -> Arc<Admission> {
        let env = Env::production();
        Admission::new(&env, &Metrics::new(&env), GOAL, most)
    }

    /// A store that does `per_second` requests one after the other, and clients that want more:
    /// what is let in takes its turn. Gives the limit after `seconds`.
    fn saturate(admission: &Admission, per_second: u32, seconds: u32) -> usize {
        let each = Duration::from_secs(1) / per_second;
        let from = admission.lock().since;
        for turn in 1..=per_second * seconds {
            // Whoever is answered now came in when the queue had the length of the limit.
            let held_back = admission.limit() as u32;
            admission.lock().held_back = true;
            admission.in_flight.fetch_add(1, Relaxed);
            admission.leave(each * held_back, from + each * turn);
        }
        admission.limit()
    }

    fn is_near(limit: usize, wanted: usize) -> bool {
        (wanted * 9 / 10..=wanted * 11 / 10).contains(&limit)
    }

    #[test]
    fn as_many_are_let_in_as_the_store_answers_within_the_goal() {
        let admission = admission(100_000);
        assert!(is_near(saturate(&admission, 20_000, 2), 10_000));
        // The disk is slow for a while: from there too it finds its way.
        assert!(is_near(saturate(&admission, 400, 5), 200));
        assert!(is_near(saturate(&admission, 20_000, 2), 10_000));
    }

    #[test]
    fn the_limit_stays_within_its_bounds() {
        let bounded = admission(2_000);
        assert_eq!(saturate(&bounded, 20_000, 2), 2_000);
        assert_eq!(saturate(&bounded, 20, 60), LIMIT_MIN);
        assert_eq!(admission(7).limit(), 7);
    }

    #[test]
    fn fast_answers_do_not_raise_a_limit_that_holds_nobody_back() {
        let admission = admission(100_000);
        let from = admission.lock().since;
        for turn in 1..=10_000 {
            admission.in_flight.fetch_add(1, Relaxed);
            admission.leave(Duration::from_millis(1), from + Duration::from_millis(1) * turn);
        }
        assert_eq!(admission.limit(), LIMIT_START);
    }

    #[test]
    fn over_the_limit_it_is_refused_and_room_is_given_back() {
        let admission = admission(2);
        let first = admission.enter();
        let second = admission.enter();
        assert!(first.is_ok() && second.is_ok());
        let refusal = admission.enter().map(drop).unwrap_err();
        assert_eq!(refusal.code, Code::TooManyRequests);
        assert_eq!(admission.refused.get(), 1);
        drop(first);
        assert!(admission.enter().is_ok());
        drop(second);
        assert_eq!(admission.in_flight(), 0);
    }
}
