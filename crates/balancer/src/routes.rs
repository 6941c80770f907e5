//! The tier's routes: its own, and which of the others go where.

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::{
        Path, Query, Request, State,
        rejection::{PathRejection, QueryRejection},
    },
    response::{IntoResponse, Response},
    routing::{any, delete, get, post},
};
use http::{HeaderMap, StatusCode};
use pygmy_client::{ServerConfig, watch::Watcher};
use pygmy_protocol::{
    Code, Env, Problem, RequestContext,
    env::BoxFuture,
    http::{Answer, Call, Direct, Json, Line, Measure, Readiness, json_body, read_body},
    import::MAX_ITEMS_BODY_BYTES,
    metrics::Metrics,
    registration::{Health, Registration, Role, ServerStatus, Servers},
};
use serde::Deserialize;

use crate::{forward::Forwarder, registry::Registry};

/// First segments of forwarded paths. The `update_replica` routes of the reference design go
/// along: the catalog says what has replaced them.
const FORWARDED: [(&str, Role); 13] = [
    ("query", Role::Catalog),
    ("topics", Role::Catalog),
    ("updateStock", Role::Catalog),
    ("reduceStock", Role::Catalog),
    ("updateCost", Role::Catalog),
    ("purchases", Role::Catalog),
    ("items", Role::Catalog),
    ("imports", Role::Catalog),
    ("update_replica", Role::Catalog),
    ("update_replica_stock", Role::Catalog),
    ("update_replica_cost", Role::Catalog),
    ("buy", Role::Order),
    ("orders", Role::Order),
];

/// Those of them that take whole items, with a limit of their own for the body.
const WITH_ITEMS: [&str; 2] = ["items", "imports"];

pub(crate) struct Routes {
    pub(crate) env: Env,
    pub(crate) server: ServerConfig,
    pub(crate) readiness: Readiness,
    pub(crate) registry: Arc<Registry>,
    pub(crate) forwarder: Forwarder,
    pub(crate) watcher: Option<Arc<Watcher>>,
    pub(crate) ways: Ways,
}

/// The forwarded paths as the tiers of this process call them.
pub(crate) struct Ways(Vec<Way>);

struct Way {
    segment: &'static str,
    role: Role,
    /// Of the segment alone, and of what is below it.
    measures: [Measure; 2],
}

impl Ways {
    pub(crate) fn new(metrics: &Metrics) -> Ways {
        let way = |(segment, role): (&'static str, Role)| {
            let measure = |route: String| Measure::new(metrics, Role::Balancer.as_str(), &route);
            Way { segment, role, measures: templates(segment).map(measure) }
        };
        Ways(FORWARDED.into_iter().map(way).collect())
    }

    /// Where a call for `target` goes, and what measures it; none if that has a query.
    fn find(&self, target: &str) -> Option<(Role, &Measure)> {
        let path = target.strip_prefix('/')?;
        let (segment, below) =
            path.split_once('/').map_or((path, false), |(first, _)| (first, true));
        let way = self.0.iter().find(|way| way.segment == segment)?;
        Some((way.role, &way.measures[usize::from(below)]))
    }
}

/// How the router knows a forwarded segment alone, and what is below it.
fn templates(segment: &str) -> [String; 2] {
    [format!("/{segment}"), format!("/{segment}/{{*rest}}")]
}

/// All routes of the tier, without the layers that every server has.
pub(crate) fn router(routes: Arc<Routes>) -> Router {
    let mut router = Router::new()
        .route("/register", post(register))
        .route("/register/{name}", delete(leave))
        .route("/servers", get(servers));
    for (segment, role) in FORWARDED {
        let own_limit = WITH_ITEMS.contains(&segment).then_some(MAX_ITEMS_BODY_BYTES);
        let forward = move |State(routes): State<Arc<Routes>>,
                            context: RequestContext,
                            request: Request| async move {
            routes.forwarder.forward(role, own_limit, context, request).await
        };
        for path in templates(segment) {
            router = router.route(&path, any(forward));
        }
    }
    router.with_state(routes)
}

impl Direct for Routes {
    fn call(self: Arc<Self>, call: Call) -> Result<BoxFuture<'static, Answer>, Box<Call>> {
        let Some((role, measure)) = self.ways.find(&call.target) else {
            return Err(Box::new(call));
        };
        let measure = measure.clone();
        Ok(Box::pin(async move {
            let line = Line::new(&call.context, &call.method, &call.target);
            measure.answer(&self.env, line, self.forwarder.pass(role, call)).await
        }))
    }
}

impl Routes {
    async fn registration(
        &self,
        context: &RequestContext,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<Registration, Problem> {
        let body = read_body(&self.env, context, &self.server.limits, body).await?;
        json_body(headers, &body)?;
        serde_json::from_slice(&body)
            .map_err(|e| Problem::new(Code::BadBody, format!("the body is not as expected: {e}")))
    }

    /// All servers, with what the watcher remembers of their processes.
    fn statuses(&self) -> Vec<ServerStatus> {
        let remembered = |name: &str| {
            self.watcher.as_ref().map(|watcher| watcher.story_of(name)).unwrap_or_default()
        };
        let mut servers = self.registry.statuses(remembered);
        let (respawns, story) = remembered(&self.server.name);
        servers.push(ServerStatus { respawns, story, ..self.own_status() });
        servers.sort_by(|a, b| (a.role, &a.name).cmp(&(b.role, &b.name)));
        servers
    }

    fn own_status(&self) -> ServerStatus {
        let reason = self.readiness.reasons().into_iter().next().map(|(_, reason)| reason);
        ServerStatus {
            name: self.server.name.clone(),
            role: Role::Balancer,
            url: self.server.url.clone(),
            health: if reason.is_none() { Health::Ready } else { Health::Unready },
            reason,
            in_flight: self.forwarder.load().in_flight(),
            served: self.forwarder.load().served(),
            leader: false,
            respawns: 0,
            story: None,
        }
    }
}

async fn register(
    State(routes): State<Arc<Routes>>,
    context: RequestContext,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let registration = routes.registration(&context, &headers, body).await;
    match registration.and_then(|registration| routes.registry.register(&registration)) {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(problem) => problem.into_response(),
    }
}

#[derive(Deserialize)]
struct Leaving {
    nonce: Option<String>,
}

/// 204 also for a name that is not there: who leaves twice has left. A name that is no UTF-8 is
/// certainly not there. With a nonce only that process leaves, and not its successor.
async fn leave(
    State(routes): State<Arc<Routes>>,
    name: Result<Path<String>, PathRejection>,
    leaving: Result<Query<Leaving>, QueryRejection>,
) -> StatusCode {
    if let (Ok(Path(name)), Ok(Query(Leaving { nonce }))) = (name, leaving) {
        routes.registry.leave(&name, nonce.as_deref());
    }
    StatusCode::NO_CONTENT
}

async fn servers(State(routes): State<Arc<Routes>>) -> Response {
    let servers = routes.statuses();
    Json(StatusCode::OK, Servers { balancer: routes.server.name.clone(), servers }).into_response()
}
