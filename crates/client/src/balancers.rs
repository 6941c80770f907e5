use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use pygmy_protocol::{Env, env::Instant};

use crate::{Answer, Attempts, Call, Failure, Upstream};

/// How long a balancer that failed is only a last resort.
const AVOID: Duration = Duration::from_secs(1);

/// All balancers, as front ends and order servers use them: one in this process first, else in
/// turns; within one request the next when one is gone.
pub struct Balancers {
    env: Env,
    attempt_limit: Duration,
    balancers: Vec<Balancer>,
    next: AtomicUsize,
}

struct Balancer {
    upstream: Arc<Upstream>,
    avoid_until: Mutex<Option<Instant>>,
}

impl Balancers {
    /// Of at least one balancer. A single attempt takes `attempt_limit` at most, so that a hung
    /// balancer leaves time for another.
    pub fn new(env: &Env, upstreams: Vec<Arc<Upstream>>, attempt_limit: Duration) -> Balancers {
        let balancers = upstreams
            .into_iter()
            .map(|upstream| Balancer { upstream, avoid_until: Mutex::default() });
        Balancers {
            env: env.clone(),
            attempt_limit,
            balancers: balancers.collect(),
            next: AtomicUsize::new(0),
        }
    }

    /// The balancers' upstreams.
    pub fn upstreams(&self) -> Vec<Arc<Upstream>> {
        self.balancers.iter().map(|b| Arc::clone(&b.upstream)).collect()
    }

    /// Sends `call` to one balancer after the other until one gives a final answer.
    pub async fn call(&self, call: &Call) -> Answer {
        let mut attempts = Attempts::new();
        for balancer in self.in_order() {
            if call.remaining(&self.env).is_zero() {
                break;
            }
            let limit = call.attempt_limit(&self.env, self.attempt_limit);
            let result = balancer.upstream.send(call, limit).await;
            balancer.note(&self.env, &result);
            if let Some(answer) = attempts.judge(call, result) {
                return answer;
            }
        }
        attempts.give_up()
    }

    fn in_order(&self) -> Vec<&Balancer> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.balancers.len().max(1);
        let now = self.env.now();
        let mut order: Vec<_> =
            self.balancers[turn..].iter().chain(&self.balancers[..turn]).collect();
        order.sort_by_key(|b| (b.is_avoided(now), !b.upstream.is_local()));
        order
    }
}

impl Balancer {
    fn is_avoided(&self, now: Instant) -> bool {
        self.lock().is_some_and(|until| now < until)
    }

    fn note(&self, env: &Env, result: &Result<Answer, Failure>) {
        *self.lock() = result.is_err().then(|| env.now() + AVOID);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.avoid_until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
