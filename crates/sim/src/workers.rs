//! Workers as tasks: each call comes after a delay from the seed, so that a crash can come in
//! between what was asked for and what is done.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use pygmy_protocol::env::{Env, Random, Wake, Workers};
use tokio::{sync::Notify, time::Instant};

use crate::rng::Rng;

/// The name of the worker that applies entries, in `pygmy_catalog::state`.
const APPLY: &str = "apply";
/// Longest delay when nothing is slow.
pub(crate) const USUAL_US_MAX: u64 = 400;

/// The workers of one life of a host. Clones are the same.
#[derive(Clone)]
pub(crate) struct SimWorkers(Arc<Inner>);

struct Inner {
    rng: Rng,
    /// Set once the environment that the workers belong to is made.
    env: Mutex<Weak<Env>>,
    /// Longest usual delay. A slow disk has a longer one.
    delay_us_max: AtomicU64,
    /// Until when what applies entries is slow, and its longest delay.
    slow_apply: Mutex<Option<(Instant, u64)>>,
}

impl SimWorkers {
    pub(crate) fn new(rng: Rng) -> SimWorkers {
        SimWorkers(Arc::new(Inner {
            rng,
            env: Mutex::default(),
            delay_us_max: USUAL_US_MAX.into(),
            slow_apply: Mutex::default(),
        }))
    }

    pub(crate) fn belong_to(&self, env: &Arc<Env>) {
        *self.0.env.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(env);
    }

    /// Makes the disk slow, or quick again.
    pub(crate) fn set_delay(&self, delay_us_max: u64) {
        self.0.delay_us_max.store(delay_us_max, Ordering::Relaxed);
    }

    /// Makes only what applies entries slow, for this long.
    pub(crate) fn slow_apply(&self, delay_us_max: u64, how_long: Duration) {
        *self.0.slow_apply() = Some((Instant::now() + how_long, delay_us_max));
    }

    fn delay(&self, applies: bool) -> Duration {
        let slow = self.0.slow_apply().filter(|(until, _)| applies && Instant::now() < *until);
        let usual = self.0.delay_us_max.load(Ordering::Relaxed);
        Duration::from_micros(20 + self.0.rng.below(slow.map_or(usual, |(_, most)| most)))
    }
}

impl Inner {
    fn slow_apply(&self) -> MutexGuard<'_, Option<(Instant, u64)>> {
        self.slow_apply.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Workers for SimWorkers {
    fn start(&self, name: &str, mut work: Box<dyn FnMut() + Send>) -> Box<dyn Wake> {
        let notify = Arc::new(Notify::new());
        let env = self.0.env.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        // A worker that is started when its host is gone has nothing to do.
        let Some(env) = env else { return Box::new(Bell(notify)) };
        let (woken, workers) = (Arc::clone(&notify), self.clone());
        let applies = name == APPLY;
        env.spawn(async move {
            loop {
                woken.notified().await;
                #[allow(clippy::disallowed_methods, reason = "a disk has no clock")]
                tokio::time::sleep(workers.delay(applies)).await;
                work();
            }
        });
        Box::new(Bell(notify))
    }
}

/// A worker whose handle is dropped is ended by the end of its host at the latest.
struct Bell(Arc<Notify>);

impl Wake for Bell {
    fn wake(&self) {
        self.0.notify_one();
    }
}
