//! What the unit tests share: clocks that are set by hand, or leap.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use pygmy_protocol::{
    Env,
    env::{BoxFuture, Clock, Instant},
    registration::{Registration, Role},
};

#[derive(Default)]
pub(crate) struct FakeClock(Mutex<Duration>);

impl FakeClock {
    /// An environment with a clock that stands still, and the clock.
    pub(crate) fn environment() -> (Env, Arc<FakeClock>) {
        let clock = Arc::new(FakeClock::default());
        clock.advance(Duration::from_secs(1000));
        (Env { clock: clock.clone(), ..Env::production() }, clock)
    }

    pub(crate) fn advance(&self, by: Duration) {
        *self.0.lock().unwrap() += by;
    }
}

impl Clock for FakeClock {
    fn now(&self) -> Instant {
        Instant::from_origin(*self.0.lock().unwrap())
    }

    fn wall_ms(&self) -> u64 {
        0
    }

    fn sleep(&self, _: Duration) -> BoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }
}

/// The time of a paused runtime, which leaps to the next thing that is waited for.
pub(crate) struct PausedClock(tokio::time::Instant);

impl PausedClock {
    #[allow(clippy::disallowed_methods, reason = "of the paused runtime")]
    pub(crate) fn environment() -> Env {
        Env { clock: Arc::new(PausedClock(tokio::time::Instant::now())), ..Env::production() }
    }
}

impl Clock for PausedClock {
    fn now(&self) -> Instant {
        Instant::from_origin(self.0.elapsed())
    }

    fn wall_ms(&self) -> u64 {
        0
    }

    #[allow(clippy::disallowed_methods, reason = "of the paused runtime")]
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }
}

/// A ready server that nothing is wrong with.
pub(crate) fn registration(name: &str, role: Role) -> Registration {
    Registration {
        name: name.to_owned(),
        role,
        url: format!("http://{name}:1"),
        nonce: "first".to_owned(),
        heartbeat_ms: 1000,
        ready: true,
        leads_term: None,
        caught_up: None,
    }
}
