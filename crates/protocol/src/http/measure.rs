//! What is measured of every request, by route.
//!
//! A route is known by its template (`/lookup/{item}`), so there are as many as the code has,
//! whatever clients ask for; all paths that lead nowhere are one. Each endpoint of a router finds
//! its [`Route`] when the first request comes to it and keeps it: from then on a request costs
//! five atomic additions and one reading of the clock.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::extract::{MatchedPath, Request};
use http::{HeaderValue, Method, StatusCode};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

use super::Answer;
use crate::{
    context::RequestContext,
    env::Env,
    metrics::{Histogram, Metrics},
};

/// Where paths go that no route takes.
const UNKNOWN_ROUTE: &str = "unknown";
/// The statuses that a store answers with, ascending; each has a counter of its own.
const STATUSES: [u16; 21] = [
    101, 200, 201, 204, 304, 400, 401, 404, 405, 409, 410, 413, 415, 422, 429, 431, 500, 501, 502,
    503, 504,
];
/// In place of a status: any other one; none, because the client went away.
const OTHER: usize = STATUSES.len();
const ABANDONED: usize = STATUSES.len() + 1;

/// All routes of a server process that have been asked for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Routes(Arc<Mutex<Vec<Arc<Route>>>>);

/// One route of one tier.
#[derive(Debug)]
pub(super) struct Route {
    tier: &'static str,
    template: String,
    in_flight: AtomicU64,
    ended: [AtomicU64; STATUSES.len() + 2],
    times: Histogram,
}

/// Measures the calls of one route that come without HTTP, together with those that come with it.
#[derive(Debug, Clone)]
pub struct Measure(Arc<Route>);

impl Measure {
    /// Of the route of `tier` that its router knows as `template`.
    pub fn new(metrics: &Metrics, tier: &'static str, template: &str) -> Measure {
        Measure(metrics.routes().get(tier, template))
    }

    /// The answer to `call` as `answering` makes it, counted, timed and told in the log.
    pub async fn answer(
        &self,
        env: &Env,
        line: Line,
        answering: impl Future<Output = Answer>,
    ) -> Answer {
        let (in_flight, begun) = (self.0.begin(), env.now());
        let answer = answering.await;
        let took = env.now().saturating_since(begun);
        in_flight.answered(answer.status, took);
        line.write(answer.status, took);
        answer
    }
}

/// What the log says of a request when it is answered; nothing unless somebody wants to know.
pub struct Line(Option<(HeaderValue, String)>);

impl Line {
    /// Of a request for `path`.
    pub fn new(context: &RequestContext, method: &Method, path: &str) -> Line {
        let wanted = tracing::enabled!(tracing::Level::DEBUG);
        Line(wanted.then(|| (context.id.clone(), format!("{method} {path}"))))
    }

    pub(super) fn write(self, status: StatusCode, took: Duration) {
        let Some((id, line)) = self.0 else { return };
        let (id, ms) = (id.to_str().unwrap_or_default(), took.as_secs_f64() * 1e3);
        tracing::debug!(request_id = id, status = status.as_u16(), ms, "{line}");
    }
}

/// A request in flight. Dropped without an answer, it was abandoned.
pub(super) struct InFlight<'a> {
    route: &'a Route,
    answered: bool,
}

impl Routes {
    /// The route that `request` was matched with, in `tier`.
    pub(super) fn find(&self, tier: &'static str, request: &Request) -> Arc<Route> {
        let matched = request.extensions().get::<MatchedPath>();
        let template = matched.map_or(UNKNOWN_ROUTE, MatchedPath::as_str);
        // In a server with all tiers a request from a socket has the tier's name before its path,
        // and one from the same process has not: one route.
        let inner = template.strip_prefix('/').and_then(|path| path.strip_prefix(tier));
        let template = inner.filter(|path| path.starts_with('/')).unwrap_or(template);
        self.get(tier, template)
    }

    /// The route of `tier` that is known as `template`.
    fn get(&self, tier: &'static str, template: &str) -> Arc<Route> {
        let mut routes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(route) = routes.iter().find(|r| r.tier == tier && r.template == template) {
            return Arc::clone(route);
        }
        let route = Arc::new(Route {
            tier,
            template: template.to_owned(),
            in_flight: AtomicU64::new(0),
            ended: std::array::from_fn(|_| AtomicU64::new(0)),
            times: Histogram::of_times(),
        });
        routes.push(Arc::clone(&route));
        route
    }
}

impl Route {
    /// Counts a request in.
    pub(super) fn begin(&self) -> InFlight<'_> {
        self.in_flight.fetch_add(1, Relaxed);
        InFlight { route: self, answered: false }
    }

    fn was_asked(&self) -> bool {
        self.in_flight.load(Relaxed) > 0 || self.ended.iter().any(|ended| ended.load(Relaxed) > 0)
    }

    fn labels(&self) -> [(&'static str, &str); 2] {
        [("tier", self.tier), ("route", &self.template)]
    }
}

impl InFlight<'_> {
    /// The request was answered with `status` after `took`.
    pub(super) fn answered(mut self, status: StatusCode, took: Duration) {
        self.answered = true;
        let place = STATUSES.binary_search(&status.as_u16()).unwrap_or(OTHER);
        self.route.ended[place].fetch_add(1, Relaxed);
        self.route.times.observe_time(took);
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.route.in_flight.fetch_sub(1, Relaxed);
        if !self.answered {
            self.route.ended[ABANDONED].fetch_add(1, Relaxed);
        }
    }
}

impl Collector for Routes {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let routes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A [`Measure`] is there before anybody calls.
        let routes: Vec<_> = routes.iter().filter(|route| route.was_asked()).cloned().collect();
        // Here, other than in `Metrics::register`, nobody adds the full stop.
        let help = "Requests that have ended, by the status of the answer.";
        let mut family =
            encoder.encode_descriptor("http_requests", help, None, MetricType::Counter)?;
        for route in &routes {
            for (place, ended) in route.ended.iter().enumerate() {
                let ended = ended.load(Relaxed);
                if ended > 0 {
                    let [tier, template] = route.labels();
                    let status = status_name(place);
                    let labels = [tier, template, ("status", &status)];
                    ConstCounter::new(ended).encode(family.encode_family(&labels)?)?;
                }
            }
        }
        let help = "Time from a request's head to the head of its answer.";
        let name = "http_request_duration_seconds";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for route in &routes {
            route.times.encode(family.encode_family(&route.labels())?)?;
        }
        let help = "Requests that are being answered.";
        let name = "http_requests_in_flight";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for route in &routes {
            let in_flight = ConstGauge::new(route.in_flight.load(Relaxed));
            in_flight.encode(family.encode_family(&route.labels())?)?;
        }
        Ok(())
    }
}

fn status_name(place: usize) -> String {
    match (STATUSES.get(place), place) {
        (Some(status), _) => status.to_string(),
        (None, ABANDONED) => "abandoned".to_owned(),
        (None, _) => "other".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use axum::{Router, body::Body, routing::get};
    use http::Request;
    use tower::ServiceExt;

    use super::*;
    use crate::{
        env::Env,
        http::{Limits, Probes, Readiness, wrap},
        metrics::Metrics,
    };

    fn tier(env: &Env, metrics: &Metrics) -> Router {
        let routes = Router::new()
            .route("/lookup/{item}", get(|| async { "an item" }))
            .route("/wait", get(std::future::pending::<()>));
        let probes = Probes {
            name: "catalog-1".to_owned(),
            process: "process-1".to_owned(),
            tier: "catalog",
            readiness: Readiness::new(),
            metrics: metrics.clone(),
        };
        wrap(routes, env, &Limits::default(), &probes)
    }

    fn request(path: &str) -> Request<Body> {
        Request::get(path).body(Body::empty()).unwrap()
    }

    /// The value of the one series of `name` that has all `labels`.
    fn value(metrics: &Metrics, name: &str, labels: &[&str]) -> Option<u64> {
        let text = metrics.text();
        let wanted = |line: &&str| {
            line.starts_with(&format!("{name}{{"))
                && labels.iter().all(|label| line.contains(label))
        };
        let mut lines = text.lines().filter(wanted);
        let line = lines.next()?;
        assert_eq!(lines.next(), None, "{name} {labels:?} in\n{text}");
        line.rsplit_once(' ')?.1.parse().ok()
    }

    #[tokio::test]
    async fn requests_are_counted_by_template_wherever_they_come_from() {
        let env = Env::production();
        let metrics = Metrics::new(&env);
        let inner = tier(&env, &metrics);
        let outer = Router::new().nest_service("/catalog", inner.clone());
        for (router, path) in
            [(&inner, "/lookup/7"), (&outer, "/catalog/lookup/8"), (&inner, "/lookup/9?a=b")]
        {
            let response = router.clone().oneshot(request(path)).await.unwrap();
            assert_eq!(response.status(), 200);
        }
        let labels = ["tier=\"catalog\"", "route=\"/lookup/{item}\"", "status=\"200\""];
        assert_eq!(value(&metrics, "pygmy_http_requests_total", &labels), Some(3));
        let name = "pygmy_http_request_duration_seconds_count";
        assert_eq!(value(&metrics, name, &labels[..2]), Some(3));
        assert_eq!(value(&metrics, "pygmy_http_requests_in_flight", &labels[..2]), Some(0));
    }

    #[tokio::test]
    async fn no_path_and_no_method_makes_a_series() {
        let env = Env::production();
        let metrics = Metrics::new(&env);
        let inner = tier(&env, &metrics);
        let outer = Router::new().nest_service("/catalog", inner.clone());
        let series = || metrics.text().lines().filter(|line| line.contains("route=")).count();
        let ask = async |router: &Router, path: &str| {
            router.clone().oneshot(request(path)).await.unwrap().status()
        };
        assert_eq!(ask(&inner, "/nowhere").await, 404);
        let before = series();
        for number in 0..100 {
            assert_eq!(ask(&inner, &format!("/nowhere/{number}")).await, 404);
            assert_eq!(ask(&outer, &format!("/catalog/{number}")).await, 404);
            let mut strange = request(&format!("/{number}"));
            *strange.method_mut() = format!("M{number}").parse().unwrap();
            assert_eq!(inner.clone().oneshot(strange).await.unwrap().status(), 404);
        }
        assert_eq!(series(), before);
        let labels = ["route=\"unknown\"", "status=\"404\""];
        assert_eq!(value(&metrics, "pygmy_http_requests_total", &labels), Some(301));
    }

    #[tokio::test]
    async fn an_endpoint_looks_its_route_up_once() {
        let env = Env::production();
        let metrics = Metrics::new(&env);
        let router = tier(&env, &metrics);
        for path in ["/lookup/7", "/lookup/8", "/nowhere", "/nowhere/else"] {
            router.clone().oneshot(request(path)).await.unwrap();
        }
        let routes = metrics.routes().0.lock().unwrap();
        let templates: Vec<_> = routes.iter().map(|route| &*route.template).collect();
        assert_eq!(templates, ["/lookup/{item}", UNKNOWN_ROUTE]);
        // The list has one, and the endpoint has kept one.
        assert!(routes.iter().all(|route| Arc::strong_count(route) == 2));
    }

    #[tokio::test]
    async fn a_request_whose_client_goes_away_is_no_longer_in_flight() {
        let env = Env::production();
        let metrics = Metrics::new(&env);
        let router = tier(&env, &metrics);
        let labels = ["route=\"/wait\""];
        let mut asked = Box::pin(router.oneshot(request("/wait")));
        tokio::select! {
            biased;
            answer = &mut asked => panic!("{answer:?}"),
            () = std::future::ready(()) => {}
        }
        assert_eq!(value(&metrics, "pygmy_http_requests_in_flight", &labels), Some(1));
        drop(asked);
        assert_eq!(value(&metrics, "pygmy_http_requests_in_flight", &labels), Some(0));
        let labels = ["route=\"/wait\"", "status=\"abandoned\""];
        assert_eq!(value(&metrics, "pygmy_http_requests_total", &labels), Some(1));
    }
}
