//! What every server does around its routes.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, OnceLock, PoisonError, RwLock},
    task::{Context, Poll},
};

use axum::{
    Router,
    extract::{Request, State},
    response::{IntoResponse, Response},
    routing::{self, get},
};
use http::{HeaderName, HeaderValue, StatusCode, header};
use tower::{Service, layer::layer_fn};

use super::{
    Json, Limits,
    measure::{Line, Route},
};
use crate::{
    context::{REQUEST_ID, RequestContext},
    env::{BoxFuture, Env},
    health::Readyz,
    metrics::{self, Metrics},
    problem::{Code, Problem},
};

/// Whether a server wants traffic, and why not. Shared between the server's parts and its
/// `/readyz`. A part says when it changes, or is asked whenever somebody wants to know.
#[derive(Clone, Default)]
pub struct Readiness(Arc<RwLock<Parts>>);

#[derive(Default)]
struct Parts {
    reasons: BTreeMap<&'static str, String>,
    checks: Vec<(&'static str, Check)>,
}

type Check = Box<dyn Fn() -> Option<String> + Send + Sync>;

impl Readiness {
    /// Ready until a part says otherwise.
    pub fn new() -> Readiness {
        Readiness::default()
    }

    /// `part` is not ready, because of `reason`.
    pub fn not_ready(&self, part: &'static str, reason: impl Into<String>) {
        let mut parts = self.0.write().unwrap_or_else(PoisonError::into_inner);
        parts.reasons.insert(part, reason.into());
    }

    /// `part` is ready.
    pub fn ready(&self, part: &'static str) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).reasons.remove(part);
    }

    /// From now on `part` is ready whenever `check` gives no reason why not. It must be quick.
    pub fn check(
        &self,
        part: &'static str,
        check: impl Fn() -> Option<String> + Send + Sync + 'static,
    ) {
        let mut parts = self.0.write().unwrap_or_else(PoisonError::into_inner);
        parts.checks.push((part, Box::new(check)));
    }

    /// Whether every part is ready.
    pub fn is_ready(&self) -> bool {
        self.reasons().is_empty()
    }

    /// What is missing, by part.
    pub fn reasons(&self) -> BTreeMap<&'static str, String> {
        let parts = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut reasons = parts.reasons.clone();
        reasons.extend(parts.checks.iter().filter_map(|(part, check)| Some((*part, check()?))));
        reasons
    }
}

/// What `/livez`, `/readyz` and `/metrics` answer from.
#[derive(Clone)]
pub struct Probes {
    /// The server's name.
    pub name: String,
    /// Names its process: random, new with every start.
    pub process: String,
    /// Its job, as its requests are labelled with in the metrics.
    pub tier: &'static str,
    /// Its readiness.
    pub readiness: Readiness,
    /// The metrics of its process.
    pub metrics: Metrics,
}

/// Puts the common layers and the probe routes around a tier's routes. To be called once per
/// listener or in-process router.
pub fn wrap(router: Router, env: &Env, limits: &Limits, probes: &Probes) -> Router {
    let Probes { tier, metrics, .. } = probes.clone();
    let around = Arc::new(Around { env: env.clone(), limits: limits.clone(), tier, metrics });
    // Put around each endpoint on its own: so that each keeps its route's measures.
    let around_endpoint = layer_fn(move |inner: routing::Route| {
        let endpoint = Endpoint { around: Arc::clone(&around), route: OnceLock::new() };
        Measured { endpoint: Arc::new(endpoint), inner }
    });
    router
        .route("/livez", get(livez).with_state(probes.process.clone()))
        .route("/readyz", get(readyz).with_state((env.clone(), probes.clone())))
        .route("/metrics", get(metrics_text).with_state(probes.metrics.clone()))
        .fallback(unknown_route)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(around_endpoint)
        // Builds all endpoints now; else those without a state are built anew for each request.
        .with_state(())
}

/// Says in an answer of `/livez` which process gives it.
pub const PROCESS: HeaderName = HeaderName::from_static("pygmy-process");

/// `GET /livez` of the process that calls itself so, also for routes that are not wrapped.
pub async fn livez(State(process): State<String>) -> Response {
    ([(PROCESS, process)], "alive\n").into_response()
}

async fn readyz(State((env, probes)): State<(Env, Probes)>) -> Response {
    let reasons = probes.readiness.reasons();
    let readyz = Readyz {
        name: probes.name,
        ready: reasons.is_empty(),
        reasons: reasons.into_iter().map(|(part, why)| (part.to_owned(), why)).collect(),
        version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        wall_ms: Some(env.wall_ms()),
    };
    let status = if readyz.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Json(status, readyz).into_response()
}

/// `GET /metrics`, also for routes that are not wrapped.
pub async fn metrics_text(State(metrics): State<Metrics>) -> Response {
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics.text()).into_response()
}

async fn unknown_route(request: Request) -> Problem {
    let path: String = request.uri().path().chars().take(100).collect();
    Problem::new(Code::UnknownRoute, format!("there is nothing at {path}"))
}

async fn method_not_allowed(request: Request) -> Problem {
    Problem::new(Code::MethodNotAllowed, format!("this path does not take {}", request.method()))
}

/// Says in a 405 of ours which methods there are. Only here, outside of the router, has the answer
/// its `Allow`.
pub(super) fn name_allowed_methods(mut response: Response) -> Response {
    if response.status() != StatusCode::METHOD_NOT_ALLOWED {
        return response;
    }
    let Some(allowed) = response.headers().get(header::ALLOW) else { return response };
    let allowed = allowed.to_str().unwrap_or_default().replace(',', " or ");
    let detail = format!("this path takes only {allowed}");
    let body = Problem::new(Code::MethodNotAllowed, detail).to_json();
    response.headers_mut().insert(header::CONTENT_LENGTH, body.len().into());
    *response.body_mut() = body.into();
    response
}

struct Around {
    env: Env,
    limits: Limits,
    tier: &'static str,
    metrics: Metrics,
}

/// What is around one endpoint.
struct Endpoint {
    around: Arc<Around>,
    /// Known since its first request.
    route: OnceLock<Arc<Route>>,
}

/// An endpoint with what is around it. A service of its own and not axum's `from_fn`, which clones
/// the endpoint and boxes it and its answer once more for each request.
#[derive(Clone)]
struct Measured {
    endpoint: Arc<Endpoint>,
    inner: routing::Route,
}

impl Service<Request> for Measured {
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Service::<Request>::poll_ready(&mut self.inner, context)
    }

    fn call(&mut self, mut request: Request) -> Self::Future {
        let endpoint = Arc::clone(&self.endpoint);
        let Around { env, limits, tier, metrics } = &*endpoint.around;
        let route = endpoint.route.get_or_init(|| metrics.routes().find(tier, &request));
        let route = Arc::clone(route);
        // In-process calls bring their context along; from a socket it is in the headers.
        let context = match request.extensions().get::<RequestContext>() {
            Some(context) => context.clone(),
            None => {
                let context =
                    RequestContext::arriving(env, request.headers(), limits.request_timeout());
                request.extensions_mut().insert(context.clone());
                context
            }
        };
        let line = Line::new(&context, request.method(), request.uri().path());
        let answering = if header_bytes(&request) > limits.max_header_bytes {
            Err(headers_too_large(limits))
        } else {
            Ok(self.inner.call(request))
        };
        Box::pin(async move {
            let env = &endpoint.around.env;
            let (in_flight, begun) = (route.begin(), env.now());
            let mut response = match answering {
                Ok(answering) => answering.await?,
                Err(problem) => problem.into_response(),
            };
            let took = env.now().saturating_since(begun);
            in_flight.answered(response.status(), took);
            line.write(response.status(), took);
            let headers = response.headers_mut();
            headers.insert(REQUEST_ID, context.id);
            headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-cache"));
            Ok(response)
        })
    }
}

fn headers_too_large(limits: &Limits) -> Problem {
    let detail =
        format!("target and headers may have {} bytes (max_header_bytes)", limits.max_header_bytes);
    Problem::new(Code::HeadersTooLarge, detail)
}

fn header_bytes(request: &Request) -> usize {
    let target = request.uri().path_and_query().map_or(0, |p| p.as_str().len());
    let headers =
        request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4);
    target + headers.sum::<usize>()
}
