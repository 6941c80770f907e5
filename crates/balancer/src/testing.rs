//! What the unit tests share: a clock that is set by hand.

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
