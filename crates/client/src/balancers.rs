use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use pygmy_protocol::{Env, env::Instant};

use crate::{Answer, Attempts, Call, Failure, Upstream};

/// How long a balancer that failed is only a last resort. Then one request tries it, and the others
/// wait for what becomes of that.
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
            let begun = self.env.now();
            balancer.begin(begun + self.attempt_limit.max(AVOID));
            let result = balancer.upstream.send(call, limit).await;
            let now = self.env.now();
            // Cut short because the caller has little time left: that says nothing about the balancer.
            let cut_short = limit < self.attempt_limit / 2 && now.saturating_since(begun) >= limit;
            if result.is_ok() || !cut_short {
                balancer.note(now, &result);
            }
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

    /// A request is sent. If it is the first after a failure, it is the only one until `until`.
    fn begin(&self, until: Instant) {
        if let Some(avoid_until) = &mut *self.lock() {
            *avoid_until = until;
        }
    }

    fn note(&self, now: Instant, result: &Result<Answer, Failure>) {
        *self.lock() = result.is_err().then(|| now + AVOID);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.avoid_until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use http::Method;
    use pygmy_protocol::RequestContext;

    use super::*;
    use crate::testing::{answer, environment};

    const ATTEMPT: Duration = Duration::from_secs(2);

    /// Two balancers, of which `hung` answers nobody.
    fn balancers() -> (Env, Arc<Balancers>) {
        let env = environment(|_, asked| match asked.authority.as_str() {
            "hung:80" => (Duration::from_secs(3600), String::new()),
            _ => (Duration::from_millis(1), answer(200, "{}")),
        });
        let upstream = |url| Arc::new(Upstream::remote(&env, url).unwrap());
        let upstreams = ["http://hung", "http://well"].map(upstream);
        (env.clone(), Arc::new(Balancers::new(&env, upstreams.into(), ATTEMPT)))
    }

    /// Whether a request took as long as an attempt at the one that hangs.
    async fn is_slow(env: &Env, balancers: &Balancers, deadline: Duration) -> bool {
        let begun = env.now();
        let context = RequestContext::fresh(env, deadline);
        balancers.call(&Call::new(Method::GET, "/", context)).await;
        env.now().saturating_since(begun) >= ATTEMPT.min(deadline / 4)
    }

    #[tokio::test(start_paused = true)]
    async fn one_request_at_a_time_tries_a_balancer_that_failed() {
        let (env, balancers) = balancers();
        assert!(is_slow(&env, &balancers, 5 * ATTEMPT).await, "nobody knows yet");
        for _ in 0..3 {
            env.sleep(AVOID).await;
            let requests = (0..20).map(|_| is_slow(&env, &balancers, 5 * ATTEMPT));
            let slow = futures_util::future::join_all(requests).await;
            assert_eq!(slow.into_iter().filter(|slow| *slow).count(), 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_with_little_time_says_nothing_about_a_balancer() {
        let (env, balancers) = balancers();
        is_slow(&env, &balancers, ATTEMPT / 8).await;
        assert!(balancers.balancers.iter().all(|b| !b.is_avoided(env.now())));
    }
}
