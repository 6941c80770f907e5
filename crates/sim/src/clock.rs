//! Virtual time, and the clock of each host, which runs a little fast or slow and may jump.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use pygmy_protocol::env::{BoxFuture, Clock, Instant};

/// Wall time at the start of every run: 2026-11-22 00:00 UTC.
const START_WALL_MS: u64 = 1_795_305_600_000;
/// What every host's monotonic clock shows at the start, so that a jump back stays above zero.
const START: Duration = Duration::from_secs(1000);

/// The time of the world. tokio's clock is paused: it moves on when nobody has anything to do.
#[derive(Clone, Copy)]
pub(crate) struct WorldTime(tokio::time::Instant);

impl WorldTime {
    /// Begins now. Needs a paused runtime.
    pub(crate) fn begin() -> WorldTime {
        WorldTime(tokio::time::Instant::now())
    }

    /// Since the beginning.
    pub(crate) fn elapsed(self) -> Duration {
        self.0.elapsed()
    }
}

/// The clocks of one host. They belong to its machine: a restart does not change them.
pub(crate) struct HostClock {
    world: WorldTime,
    /// Parts per million that it is too fast; negative if too slow.
    drift_ppm: i64,
    /// How far the wall clock was set forward or back.
    wall_offset_ms: AtomicI64,
}

impl HostClock {
    pub(crate) fn new(world: WorldTime, drift_ppm: i64) -> Arc<HostClock> {
        Arc::new(HostClock { world, drift_ppm, wall_offset_ms: AtomicI64::new(0) })
    }

    /// Sets the wall clock forward or back.
    pub(crate) fn jump(&self, ms: i64) {
        self.wall_offset_ms.fetch_add(ms, Ordering::Relaxed);
    }

    fn scale(&self, duration: Duration, numerator: i64, denominator: i64) -> Duration {
        let nanos = duration.as_nanos() as i128 * i128::from(numerator) / i128::from(denominator);
        Duration::from_nanos(nanos as u64)
    }
}

const MILLION: i64 = 1_000_000;

impl Clock for HostClock {
    fn now(&self) -> Instant {
        let shown = self.scale(self.world.elapsed(), MILLION + self.drift_ppm, MILLION);
        Instant::from_origin(START + shown)
    }

    fn wall_ms(&self) -> u64 {
        let now = START_WALL_MS + self.world.elapsed().as_millis() as u64;
        now.saturating_add_signed(self.wall_offset_ms.load(Ordering::Relaxed))
    }

    #[allow(clippy::disallowed_methods, reason = "this is the clock")]
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        let bounded = duration.min(Duration::from_secs(3600));
        let scaled = self.scale(bounded, MILLION, MILLION + self.drift_ppm);
        // Never shorter than asked: who waits for a moment of this clock would find that it has
        // not come, and ask again without end.
        Box::pin(tokio::time::sleep(scaled + Duration::from_nanos(1)))
    }
}
