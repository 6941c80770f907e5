//! Passing requests on.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    extract::Request,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use pygmy_client::{Answer, Attempts, Call, Failure, ServerConfig};
use pygmy_protocol::{
    Env, IdempotencyKey, Problem, RequestContext,
    context::{IDEMPOTENCY_KEY, key_of, key_value},
    http::{Limits, Secret, read_body, read_body_up_to},
    metrics::Counter,
    registration::Role,
};

use crate::{
    budget::Budget,
    pick::{Policy, pick},
    registry::Registry,
    server::{InFlight, Load, Server},
    settings::Settings,
};

/// What of a request's headers is meant for the server. Id and deadline travel in the call's
/// context, the key on its own.
const FORWARDED: [HeaderName; 2] = [header::CONTENT_TYPE, header::IF_NONE_MATCH];

pub(crate) struct Forwarder {
    env: Env,
    secret: Secret,
    limits: Limits,
    attempt_timeout: Duration,
    max_in_flight: u64,
    registry: Arc<Registry>,
    load: Arc<Load>,
    rejected: Counter,
    order: Lane,
    catalog: Lane,
}

/// What the requests for one role share.
struct Lane {
    role: Role,
    policy: Policy,
    turn: AtomicUsize,
    budget: Budget,
}

impl Lane {
    fn new(role: Role, settings: &Settings) -> Lane {
        Lane {
            role,
            policy: settings.policy(role),
            turn: AtomicUsize::new(0),
            budget: Budget::new(settings.retry_percent, settings.retry_floor_per_s),
        }
    }
}

impl Forwarder {
    pub(crate) fn new(
        env: &Env,
        server: &ServerConfig,
        settings: &Settings,
        registry: Arc<Registry>,
    ) -> Forwarder {
        Forwarder {
            env: env.clone(),
            secret: server.secret.clone(),
            limits: server.limits.clone(),
            attempt_timeout: server.attempt_timeout,
            max_in_flight: settings.max_in_flight,
            registry,
            load: Arc::default(),
            rejected: server.metrics.rejections("max_in_flight"),
            order: Lane::new(Role::Order, settings),
            catalog: Lane::new(Role::Catalog, settings),
        }
    }

    /// Requests that this balancer has and had.
    pub(crate) fn load(&self) -> &Load {
        &self.load
    }

    /// Passes `request` on to a server of `role` and gives its answer back as it is. The answer to
    /// a change carries the key that was in effect. `max_body_bytes` stands in for the configured
    /// limit.
    pub(crate) async fn forward(
        &self,
        role: Role,
        max_body_bytes: Option<usize>,
        context: RequestContext,
        request: Request,
    ) -> Response {
        let in_flight = match self.admit() {
            Ok(in_flight) => in_flight,
            Err(problem) => return problem.into_response(),
        };
        let key = match self.key(&request) {
            Ok(key) => key,
            Err(problem) => return problem.into_response(),
        };
        let answer = match self.call(context, key.as_ref(), max_body_bytes, request).await {
            Ok(call) => self.deliver(role, &call).await,
            Err(problem) => problem.into(),
        };
        in_flight.answered();
        with_key(answer, key.map(|key| key_value(&key))).into_response()
    }

    /// As [`Forwarder::forward`], for a call of a tier of this process: its body is here, and its
    /// headers are for the server.
    pub(crate) async fn pass(&self, role: Role, mut call: Call) -> Answer {
        let in_flight = match self.admit() {
            Ok(in_flight) => in_flight,
            Err(problem) => return problem.into(),
        };
        if !call.is_read() && !call.headers.contains_key(IDEMPOTENCY_KEY) {
            call = call.with_key(&IdempotencyKey::random(&self.env));
        }
        let key = call.headers.get(IDEMPOTENCY_KEY).cloned();
        let answer = self.deliver(role, &call).await;
        in_flight.answered();
        with_key(answer, key)
    }

    /// Counts a request in, unless there are too many.
    fn admit(&self) -> Result<InFlight, Problem> {
        let in_flight = self.load.enter();
        if self.load.in_flight() > self.max_in_flight {
            self.rejected.inc();
            let detail = "the balancer has too many requests in flight (max_in_flight)";
            return Err(Problem::unavailable(detail));
        }
        Ok(in_flight)
    }

    /// The key of a changing request: its own, or a fresh one, so that it may be repeated.
    fn key(&self, request: &Request) -> Result<Option<IdempotencyKey>, Problem> {
        match *request.method() {
            Method::GET | Method::HEAD => Ok(None),
            _ => key_of(&self.env, request.headers()).map(Some),
        }
    }

    async fn call(
        &self,
        context: RequestContext,
        key: Option<&IdempotencyKey>,
        max_body_bytes: Option<usize>,
        request: Request,
    ) -> Result<Call, Problem> {
        let (parts, body) = request.into_parts();
        let body = match max_body_bytes {
            None => read_body(&self.env, &context, &self.limits, body).await?,
            Some(max) => read_body_up_to(&self.env, &context, max, body).await?,
        };
        let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
        let mut call = Call::new(parts.method, target, context).with_secret(&self.secret);
        copy(&FORWARDED, &parts.headers, &mut call.headers);
        call.body = body;
        Ok(match key {
            Some(key) => call.with_key(key),
            None => call,
        })
    }

    /// Tries one server after the other until one gives a final answer.
    async fn deliver(&self, role: Role, call: &Call) -> Answer {
        let lane = if role == Role::Order { &self.order } else { &self.catalog };
        let turn = lane.turn.fetch_add(1, Ordering::Relaxed);
        lane.budget.deposit(self.env.now());
        let mut attempts = Attempts::new();
        let mut tried = Vec::new();
        let mut was_sent = false;
        while let Some(server) = self.pick(lane, turn, call, &tried) {
            if !tried.is_empty() && !self.may_retry(lane, call, was_sent) {
                break;
            }
            let result = self.attempt(&server, call).await;
            was_sent = !matches!(result, Err(Failure::Refused(_) | Failure::NotSent(_)));
            if let Some(answer) = attempts.judge(call, result) {
                return answer;
            }
            tried.push(server);
        }
        if tried.is_empty() {
            return Problem::unavailable(format!("no {role} server is ready")).into();
        }
        attempts.give_up()
    }

    fn pick(
        &self,
        lane: &Lane,
        turn: usize,
        call: &Call,
        tried: &[Arc<Server>],
    ) -> Option<Arc<Server>> {
        let mut candidates = self.registry.candidates(lane.role);
        candidates.retain(|c| !tried.iter().any(|server| Arc::ptr_eq(server, &c.server)));
        let picked = pick(lane.policy, turn, !call.is_read(), &candidates)?;
        Some(Arc::clone(&picked.server))
    }

    /// The budget keeps retries from multiplying the servers' load. An attempt that was not even
    /// sent (connection refused) put no load on anybody, so another one in its place is free: the
    /// death of a busy server must not use up what slow ones will need.
    fn may_retry(&self, lane: &Lane, call: &Call, was_sent: bool) -> bool {
        if call.remaining(&self.env).is_zero() {
            return false;
        }
        let paid = !was_sent || lane.budget.withdraw(self.env.now());
        let counters = self.registry.counters();
        let retries = if paid { &counters.retries } else { &counters.retries_refused };
        retries.of(lane.role).inc();
        paid
    }

    async fn attempt(&self, server: &Server, call: &Call) -> Result<Answer, Failure> {
        let in_flight = server.load.enter();
        server.begin(self.env.now());
        let limit = call.attempt_limit(&self.env, self.attempt_timeout);
        let begun = self.env.now();
        let result = server.upstream.send(call, limit).await;
        let now = self.env.now();
        // Cut short because the caller has little time left: that says nothing about the server.
        let cut_short = limit < self.attempt_timeout / 2 && now.saturating_since(begun) >= limit;
        match &result {
            Ok(_) => {
                in_flight.answered();
                server.answered();
            }
            Err(Failure::Refused(reason)) => server.refused(reason, now),
            Err(_) if cut_short => {}
            Err(_) => server.unanswered(now),
        }
        result
    }
}

/// `answer` with the key that was in effect, if there was one.
fn with_key(mut answer: Answer, key: Option<HeaderValue>) -> Answer {
    if let Some(key) = key {
        answer.headers.insert(IDEMPOTENCY_KEY, key);
    }
    answer
}

fn copy(names: &[HeaderName], from: &HeaderMap, to: &mut HeaderMap) {
    for name in names {
        if let Some(value) = from.get(name) {
            to.insert(name, value.clone());
        }
    }
}
