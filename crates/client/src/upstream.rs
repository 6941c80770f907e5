use std::{
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body};
use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderValue, Request, Uri, header};
use http_body_util::{BodyExt, Full};
use pygmy_protocol::{Env, RequestContext, env::BoxFuture, http::Direct};
use tower::ServiceExt;

use crate::{Answer, Call, Failure, pool::Pool};

/// How much longer a caller waits than it says.
const ANSWER_TIME_MAX: Duration = Duration::from_millis(50);

/// The place of a tier of this process. Filled once all are made, because they call one another in
/// a circle (balancer to order to balancer). Whoever runs the tiers owns the places; the tiers know
/// only their [`LocalTier`]s, so that all of it goes when its owner ends.
#[derive(Default)]
pub struct LocalPlace(Arc<OnceLock<Occupant>>);

struct Occupant {
    router: Router,
    direct: Option<Arc<dyn Direct>>,
}

/// A tier of this process as others know it: gone when its [`LocalPlace`] is.
#[derive(Clone)]
pub struct LocalTier(Weak<OnceLock<Occupant>>);

impl LocalPlace {
    /// Puts a tier there: its routes, and those it answers directly. The first one stays.
    pub fn fill(&self, router: Router, direct: Option<Arc<dyn Direct>>) {
        let _ = self.0.set(Occupant { router, direct });
    }

    /// The routes of what is there; none until it is filled.
    pub fn router(&self) -> Router {
        self.0.get().map(|occupant| occupant.router.clone()).unwrap_or_default()
    }

    /// How others call it.
    pub fn local(&self) -> LocalTier {
        LocalTier(Arc::downgrade(&self.0))
    }
}

/// A server that calls can be sent to. It is known by its base URL.
pub struct Upstream {
    env: Env,
    url: String,
    target: Target,
}

enum Target {
    Local(LocalTier),
    Remote(Box<Remote>),
}

struct Remote {
    pool: Pool,
    host: HeaderValue,
    prefix: String,
}

impl Upstream {
    /// A server at `url`: `http://host:port`, with a path in front of its routes if it shares
    /// its port with others.
    ///
    /// # Errors
    /// A sentence that names the URL.
    pub fn remote(env: &Env, url: &str) -> Result<Upstream, String> {
        let (authority, prefix) = split_url(url)?;
        let host = HeaderValue::from_str(&authority).map_err(|e| format!("{url:?}: {e}"))?;
        let target =
            Target::Remote(Box::new(Remote { pool: Pool::new(env, &authority), host, prefix }));
        Ok(Upstream { env: env.clone(), url: url.to_owned(), target })
    }

    /// A tier of this process, known to others as `url`.
    pub fn local(env: &Env, url: &str, tier: LocalTier) -> Upstream {
        Upstream { env: env.clone(), url: url.to_owned(), target: Target::Local(tier) }
    }

    /// Its base URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Whether it is in this process.
    pub fn is_local(&self) -> bool {
        matches!(self.target, Target::Local(_))
    }

    /// Sends `call` and waits for the whole answer: until the call's deadline, and for `limit` at
    /// most. The server is told how long it has.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn send(&self, call: &Call, limit: Duration) -> Result<Answer, Failure> {
        let limit = limit.min(call.remaining(&self.env));
        if limit.is_zero() {
            return Err(Failure::NotSent("the deadline has passed".to_owned()));
        }
        // A little less than we wait, so that what the server knows at its deadline still arrives.
        let deadline = self.env.now() + limit - (limit / 10).min(ANSWER_TIME_MAX);
        let context = RequestContext { deadline, ..call.context.clone() };
        let handed_over = AtomicBool::new(false);
        let sent = match &self.target {
            Target::Local(tier) => {
                handed_over.store(true, Ordering::Relaxed);
                self.env.timeout(limit, send_local(tier, call, context)?).await
            }
            Target::Remote(remote) => {
                let request = self.request(call, &context, remote)?;
                // Boxed, as it is large, and would be copied with whatever waits for it.
                self.env.timeout(limit, Box::pin(remote.pool.send(request, &handed_over))).await
            }
        };
        sent.unwrap_or_else(|_| {
            let why = format!("{} did not answer in time", self.url);
            Err(if handed_over.load(Ordering::Relaxed) {
                Failure::Unanswered(why)
            } else {
                Failure::NotSent(why)
            })
        })
    }

    fn request(
        &self,
        call: &Call,
        context: &RequestContext,
        remote: &Remote,
    ) -> Result<Request<Full<Bytes>>, Failure> {
        let bad =
            |e: http::Error| Failure::NotSent(format!("no valid target {:?}: {e}", call.target));
        let target = format!("{}{}", remote.prefix, call.target);
        let mut request = Request::builder()
            .method(call.method.clone())
            .uri(target)
            .body(Full::new(call.body.clone()))
            .map_err(bad)?;
        *request.headers_mut() = call.headers.clone();
        context.write(&self.env, request.headers_mut());
        request.headers_mut().insert(header::HOST, remote.host.clone());
        Ok(request)
    }
}

fn send_local(
    tier: &LocalTier,
    call: &Call,
    context: RequestContext,
) -> Result<BoxFuture<'static, Result<Answer, Failure>>, Failure> {
    let place = tier.0.upgrade();
    let Some(Occupant { router, direct }) = place.as_ref().and_then(|place| place.get()) else {
        return Err(Failure::NotSent("the server is still starting, or has ended".to_owned()));
    };
    let mut call = Call { context, ..call.clone() };
    if let Some(direct) = direct {
        match Arc::clone(direct).call(call) {
            Ok(answering) => return Ok(Box::pin(answering.map(Ok))),
            Err(back) => call = *back,
        }
    }
    Ok(Box::pin(send_routed(router.clone(), call)))
}

async fn send_routed(router: Router, call: Call) -> Result<Answer, Failure> {
    let Call { method, target, headers, body, context } = call;
    let mut request = Request::builder()
        .method(method)
        .uri(&target)
        .body(Body::from(body))
        .map_err(|e| Failure::NotSent(format!("no valid target {target:?}: {e}")))?;
    *request.headers_mut() = headers;
    request.extensions_mut().insert(context);
    let Ok(response) = router.oneshot(request).await;
    let (parts, body) = response.into_parts();
    let body = body.collect().await.map_err(|e| Failure::Unanswered(e.to_string()))?.to_bytes();
    Ok(Answer { status: parts.status, headers: parts.headers, body })
}

/// Authority (`host:port`) and path prefix (empty or `/…` without a slash at the end) of a base
/// URL.
pub(crate) fn split_url(url: &str) -> Result<(String, String), String> {
    let uri: Uri = url.parse().map_err(|e| format!("{url:?} is no URL: {e}"))?;
    let parts = uri.into_parts();
    let scheme_is_http = parts.scheme.is_some_and(|s| s == http::uri::Scheme::HTTP);
    let authority = parts.authority.filter(|a| scheme_is_http && !a.as_str().contains('@'));
    let authority =
        authority.ok_or_else(|| format!("{url:?} is not of the form http://host:port"))?;
    let authority = match authority.port() {
        Some(_) => authority.to_string(),
        None => format!("{authority}:80"),
    };
    let path = parts.path_and_query.map(|p| p.path().trim_end_matches('/').to_owned());
    Ok((authority, path.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_urls_are_split() {
        let split = |url| split_url(url).unwrap();
        assert_eq!(split("http://127.0.0.1:8080"), ("127.0.0.1:8080".into(), String::new()));
        assert_eq!(split("http://node:8091/catalog/"), ("node:8091".into(), "/catalog".into()));
        assert_eq!(split("http://node"), ("node:80".into(), String::new()));
        for bad in ["", "node:8080", "https://node", "ftp://node", "/catalog", "http://u@h:1"] {
            assert!(split_url(bad).is_err(), "{bad}");
        }
    }
}
