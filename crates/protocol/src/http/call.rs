//! One exchange between two tiers, wherever the other one is.

use std::sync::Arc;

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use serde::{Serialize, de::DeserializeOwned};

use super::Secret;
use crate::{
    context::{IDEMPOTENCY_KEY, RequestContext, key_value},
    env::{BoxFuture, Env},
    key::IdempotencyKey,
    problem::Problem,
};

/// One request, ready to be sent to any server, and again to another.
#[derive(Debug, Clone)]
pub struct Call {
    /// GET reads, everything else changes.
    pub method: Method,
    /// Path and query, beginning with a slash.
    pub target: String,
    /// Without those of the connection; the context is written where it meets a socket.
    pub headers: HeaderMap,
    /// Empty for most.
    pub body: Bytes,
    /// Id and deadline.
    pub context: RequestContext,
}

impl Call {
    /// A call without headers or body.
    pub fn new(method: Method, target: impl Into<String>, context: RequestContext) -> Call {
        Call {
            method,
            target: target.into(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
            context,
        }
    }

    /// With the cluster's secret, for internal routes.
    #[must_use]
    pub fn with_secret(mut self, secret: &Secret) -> Call {
        secret.write(&mut self.headers);
        self
    }

    /// With an idempotency key.
    #[must_use]
    pub fn with_key(mut self, key: &IdempotencyKey) -> Call {
        self.headers.insert(IDEMPOTENCY_KEY, key_value(key));
        self
    }

    /// With a JSON body. A value that has no JSON form becomes `null`, which every route refuses.
    #[must_use]
    pub fn with_json(mut self, value: &impl Serialize) -> Call {
        self.body = serde_json::to_vec(value).unwrap_or_else(|_| b"null".to_vec()).into();
        self.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        self
    }

    /// Whether it only reads.
    pub fn is_read(&self) -> bool {
        self.method == Method::GET || self.method == Method::HEAD
    }

    /// Whether sending it twice has the effect of sending it once.
    pub fn is_repeatable(&self) -> bool {
        self.is_read()
            || self.method == Method::DELETE
            || self.headers.contains_key(IDEMPOTENCY_KEY)
    }

    /// How long one attempt may take: `most`, and four fifths of the time that is left, so that
    /// the servers behind the next one give up before it does, and another can be tried.
    pub fn attempt_limit(&self, env: &Env, most: std::time::Duration) -> std::time::Duration {
        most.min(self.remaining(env) * 4 / 5)
    }

    /// Time left until the caller gives up.
    pub fn remaining(&self, env: &Env) -> std::time::Duration {
        self.context.remaining(env)
    }
}

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its whole body.
    pub body: Bytes,
}

impl Answer {
    /// An answer with `value` as its JSON body.
    pub fn of_json(status: StatusCode, value: &impl Serialize) -> Answer {
        match serde_json::to_vec(value) {
            Ok(body) => {
                let json = HeaderValue::from_static("application/json");
                let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, json)]);
                Answer { status, headers, body: body.into() }
            }
            Err(error) => {
                Problem::unavailable(format!("the answer has no JSON form: {error}")).into()
            }
        }
    }

    /// Reads the body as JSON.
    ///
    /// # Errors
    /// The problem that the body is, or `unavailable` if the answer is neither a success of that
    /// shape nor a problem.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        if !self.status.is_success() {
            return Err(self.problem());
        }
        serde_json::from_slice(&self.body)
            .map_err(|e| Problem::unavailable(format!("the answer is not as expected: {e}")))
    }

    /// The problem of an answer that is no success.
    pub fn problem(&self) -> Problem {
        Problem::from_json(&self.body).unwrap_or_else(|| {
            Problem::unavailable(format!("an answer that is not of this store: {}", self.status))
        })
    }
}

impl From<Problem> for Answer {
    fn from(problem: Problem) -> Answer {
        let body = problem.to_json().into();
        let (parts, _) = problem.into_response().into_parts();
        Answer { status: parts.status, headers: parts.headers, body }
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.body));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response
    }
}

/// What a tier answers to the tiers beside it in the same process without HTTP in between: the
/// routes that every purchase takes. They do the same as over a socket, where an adapter makes the
/// call of a request; what is spared is the routing, the parsing and the layers, which cost more
/// than the tier's own work.
pub trait Direct: Send + Sync {
    /// Begins to answer `call`, by its deadline; gives it back if it is for the router.
    ///
    /// # Errors
    /// The call.
    fn call(self: Arc<Self>, call: Call) -> Result<BoxFuture<'static, Answer>, Box<Call>>;
}
