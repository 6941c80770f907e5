use std::{
    ops::{Add, Sub},
    time::Duration,
};

use super::BoxFuture;

/// A reading of one host's monotonic clock. Readings of two hosts must never be compared, so
/// this type is not serialisable: what travels is always a duration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(Duration);

impl Instant {
    /// The instant `since_origin` after the clock's own origin.
    pub fn from_origin(since_origin: Duration) -> Instant {
        Instant(since_origin)
    }

    /// Time since the clock's own origin.
    pub fn since_origin(self) -> Duration {
        self.0
    }

    /// How long after `earlier` this is; zero if it is before.
    pub fn saturating_since(self, earlier: Instant) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;
    fn add(self, duration: Duration) -> Instant {
        Instant(self.0.saturating_add(duration))
    }
}

impl Sub<Duration> for Instant {
    type Output = Instant;
    fn sub(self, duration: Duration) -> Instant {
        Instant(self.0.saturating_sub(duration))
    }
}

/// The clocks of one host.
pub trait Clock: Send + Sync {
    /// Monotonic time that goes on while the machine is suspended (`CLOCK_BOOTTIME`): leases
    /// depend on that.
    fn now(&self) -> Instant;

    /// Wall clock, milliseconds since 1970-01-01 UTC.
    fn wall_ms(&self) -> u64;

    /// Completes after `duration`.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;

    /// Completes after `duration`, as precisely as the machine can: [`Clock::sleep`] may be a
    /// millisecond late, and costs less.
    fn sleep_precisely(&self, duration: Duration) -> BoxFuture<'static, ()> {
        self.sleep(duration)
    }
}
