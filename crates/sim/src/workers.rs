//! Workers as tasks: each call comes after a delay from the seed, so that a crash can come in
//! between what was asked for and what is done.

use std::{
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use pygmy_protocol::env::{Env, Random, Wake, Workers};
use tokio::sync::Notify;

use crate::rng::Rng;

/// The workers of one life of a host. Clones are the same.
#[derive(Clone)]
pub(crate) struct SimWorkers(Arc<Inner>);

struct Inner {
    rng: Rng,
    /// Set once the environment that the workers belong to is made.
    env: Mutex<Weak<Env>>,
    /// Longest usual delay. A slow disk has a longer one.
    delay_us_max: AtomicU64,
}

impl SimWorkers {
    pub(crate) fn new(rng: Rng) -> SimWorkers {
        SimWorkers(Arc::new(Inner { rng, env: Mutex::default(), delay_us_max: 400.into() }))
    }

    pub(crate) fn belong_to(&self, env: &Arc<Env>) {
        *self.0.env.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(env);
    }

    /// Makes the disk slow, or quick again.
    pub(crate) fn set_delay(&self, delay_us_max: u64) {
        self.0.delay_us_max.store(delay_us_max, Ordering::Relaxed);
    }

    fn delay(&self) -> Duration {
        let most = self.0.delay_us_max.load(Ordering::Relaxed);
        Duration::from_micros(20 + self.0.rng.below(most))
    }
}

impl Workers for SimWorkers {
    fn start(&self, _name: &str, mut work: Box<dyn FnMut() + Send>) -> Box<dyn Wake> {
        let notify = Arc::new(Notify::new());
        let env = self.0.env.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        // A worker that is started when its host is gone has nothing to do.
        let Some(env) = env else { return Box::new(Bell(notify)) };
        let (woken, workers) = (Arc::clone(&notify), self.clone());
        env.spawn(async move {
            loop {
                woken.notified().await;
                #[allow(clippy::disallowed_methods, reason = "a disk has no clock")]
                tokio::time::sleep(workers.delay()).await;
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
