//! What travels with a request through all tiers: its id, its deadline, its key.

use std::time::Duration;

use axum::extract::FromRequestParts;
use http::{HeaderMap, HeaderName, HeaderValue, request::Parts};

use crate::{
    env::{Env, Instant},
    item::parse_whole_number,
    key::IdempotencyKey,
    problem::{Code, Problem},
};

/// Names the request in the answer and in every log it passes.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Milliseconds that the caller still waits. A duration, never a time: clocks differ.
pub const DEADLINE_MS: HeaderName = HeaderName::from_static("pygmy-deadline-ms");
/// Names a changing request.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// `true` on an answer that was made by an earlier request with the same key.
pub const IDEMPOTENCY_REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
/// On a read's answer: the applied log index of the state that was read. A cache needs it to
/// refuse an answer that an invalidation overtook.
pub const LOG_INDEX: HeaderName = HeaderName::from_static("pygmy-log-index");

/// Longest request id taken from outside, in bytes.
const MAX_REQUEST_ID_BYTES: usize = 64;

/// Identity and deadline of one request. The HTTP layer makes it on arrival (see
/// [`crate::http`]); handlers take it as an extractor.
#[derive(Debug, Clone)]
pub struct RequestContext {
    /// 1 to 64 visible ASCII characters.
    pub id: HeaderValue,
    /// When the caller stops waiting, by this host's clock.
    pub deadline: Instant,
}

impl RequestContext {
    /// A request that starts here, with a random id.
    pub fn fresh(env: &Env, timeout: Duration) -> RequestContext {
        let id = HeaderValue::from_str(&env.random.hex(8));
        RequestContext {
            // Hexadecimal digits are always a valid header value.
            id: id.unwrap_or(HeaderValue::from_static("unknown")),
            deadline: env.now() + timeout,
        }
    }

    /// Reads the headers of an arriving request. An id that is missing or malformed is replaced,
    /// a deadline beyond `timeout_max` (or none) becomes `timeout_max`.
    pub fn arriving(env: &Env, headers: &HeaderMap, timeout_max: Duration) -> RequestContext {
        let mut context = RequestContext::fresh(env, timeout_max);
        if let Some(id) = headers.get(REQUEST_ID) {
            let visible = id.as_bytes().iter().all(u8::is_ascii_graphic);
            if visible && (1..=MAX_REQUEST_ID_BYTES).contains(&id.len()) {
                context.id = id.clone();
            }
        }
        let asked =
            headers.get(DEADLINE_MS).and_then(|v| v.to_str().ok()).and_then(parse_whole_number);
        if let Some(ms) = asked {
            context.deadline = context.deadline.min(env.now() + Duration::from_millis(ms));
        }
        context
    }

    /// Time left, zero when the deadline has passed.
    pub fn remaining(&self, env: &Env) -> Duration {
        self.deadline.saturating_since(env.now())
    }

    /// Writes id and remaining time into the headers of a request to the next tier.
    pub fn write(&self, env: &Env, headers: &mut HeaderMap) {
        headers.insert(REQUEST_ID, self.id.clone());
        let ms = self.remaining(env).as_millis();
        headers.insert(DEADLINE_MS, HeaderValue::from(u64::try_from(ms).unwrap_or(u64::MAX)));
    }
}

impl<S: Sync> FromRequestParts<S> for RequestContext {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<RequestContext, Problem> {
        // Missing only if a router is called without the layers of `crate::http`.
        let context = parts.extensions.get::<RequestContext>().cloned();
        context.ok_or(Problem::unavailable("the request came in without a context"))
    }
}

/// The key of a changing request: the one it carries, or a fresh one.
///
/// # Errors
/// `bad_key`, also for a key that is sent twice.
pub fn key_of(env: &Env, headers: &HeaderMap) -> Result<IdempotencyKey, Problem> {
    let mut keys = headers.get_all(IDEMPOTENCY_KEY).iter();
    match (keys.next(), keys.next()) {
        (None, _) => Ok(IdempotencyKey::random(env)),
        (Some(key), None) => key.to_str().unwrap_or("").parse(),
        (Some(_), Some(_)) => {
            Err(Problem::new(Code::BadKey, "send one Idempotency-Key, not several"))
        }
    }
}

/// The key as a header value.
pub fn key_value(key: &IdempotencyKey) -> HeaderValue {
    // A key is visible ASCII: always a valid header value.
    HeaderValue::from_str(key.as_str()).unwrap_or(HeaderValue::from_static("invalid"))
}
