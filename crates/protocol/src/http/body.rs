//! Bodies, within their limits.

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::Serialize;

use super::Limits;
use crate::{
    context::RequestContext,
    env::Env,
    problem::{Code, Problem},
};

/// Reads a whole body within `max_body_bytes` and the request's deadline.
///
/// # Errors
/// `body_too_large`, `bad_body` if it breaks off, `unavailable` if it does not arrive in time.
pub async fn read_body(
    env: &Env,
    context: &RequestContext,
    limits: &Limits,
    body: Body,
) -> Result<Bytes, Problem> {
    let read = read_body_up_to(env, context, limits.max_body_bytes, body).await;
    read.map_err(|problem| match problem.code {
        Code::BodyTooLarge => {
            Problem::new(problem.code, format!("{} (max_body_bytes)", problem.detail))
        }
        _ => problem,
    })
}

/// Reads a whole body of at most `max_bytes`, for the routes that have a limit of their own.
///
/// # Errors
/// As [`read_body`].
pub async fn read_body_up_to(
    env: &Env,
    context: &RequestContext,
    max_bytes: usize,
    body: Body,
) -> Result<Bytes, Problem> {
    // Most requests have no body; they need no timer.
    if http_body::Body::is_end_stream(&body) {
        return Ok(Bytes::new());
    }
    let limited = Limited::new(body, max_bytes).collect();
    match env.timeout(context.remaining(env), limited).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(Problem::new(Code::BodyTooLarge, format!("a body may have {max_bytes} bytes")))
        }
        Ok(Err(error)) => Err(Problem::new(Code::BadBody, format!("the body broke off: {error}"))),
        Err(_) => Err(Problem::unavailable("the body did not arrive in time")),
    }
}

/// Checks that a body, if there is one, says that it is JSON (or says nothing).
///
/// # Errors
/// `unsupported_media_type`.
pub fn json_body(headers: &HeaderMap, body: &Bytes) -> Result<(), Problem> {
    let Some(kind) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let essence = kind.as_bytes().split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
    if body.is_empty() || essence.eq_ignore_ascii_case(b"application/json") {
        return Ok(());
    }
    Err(Problem::new(Code::UnsupportedMediaType, "send the body as application/json"))
}

/// Refuses a body where a route takes none.
///
/// # Errors
/// `bad_body`.
pub fn empty_body(body: &Bytes) -> Result<(), Problem> {
    if body.is_empty() {
        return Ok(());
    }
    Err(Problem::new(Code::BadBody, "this route takes no body"))
}

/// A JSON answer.
pub struct Json<T>(pub StatusCode, pub T);

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        match serde_json::to_vec(&self.1) {
            Ok(bytes) => {
                let mut response = (self.0, bytes).into_response();
                let json = HeaderValue::from_static("application/json");
                response.headers_mut().insert(header::CONTENT_TYPE, json);
                response
            }
            Err(error) => Problem::unavailable(format!("the answer has no JSON form: {error}"))
                .into_response(),
        }
    }
}
