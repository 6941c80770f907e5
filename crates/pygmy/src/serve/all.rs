//! The four tiers in one process.
//!
//! Each has its routes under its own name on the internal port; the public port has those of the
//! front end. They call one another without a socket, through places that are filled once all are
//! started, because they call in a circle (balancer to order to balancer).

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    Router,
    response::{IntoResponse, Response},
    routing::get,
};
use http::{Method, StatusCode, Uri};
use pygmy_balancer::LocalServer;
use pygmy_client::{Call, LocalPlace, Upstream};
use pygmy_protocol::{
    Code, Env, Problem, RequestContext,
    env::Listener,
    http::{Fatal, Json, Shutdown, Tier, livez, metrics_text, run_tasks, serve, serve_starting},
    registration::Role,
};

use tokio::task::JoinHandle;

use super::tiers::Tiers;

const PARTS: [Role; 4] = [Role::Catalog, Role::Order, Role::Balancer, Role::Frontend];
/// Longest wait for a part to say whether it is ready: it does not have to ask anybody.
const READY_TIMEOUT: Duration = Duration::from_secs(1);

/// Runs all tiers until `stopped`: internal routes on `internal`, public ones on `public`.
pub(super) async fn run(
    tiers: Tiers,
    mut internal: Box<dyn Listener>,
    mut public: Box<dyn Listener>,
    stopped: Shutdown,
) -> Result<(), Fatal> {
    let places: BTreeMap<Role, LocalPlace> =
        PARTS.into_iter().map(|role| (role, LocalPlace::default())).collect();
    let (env, process) = (&tiers.env, &tiers.process);
    let (tasks, background) = tokio::select! {
        biased;
        started = start_all(&tiers, &places, &stopped) => started?,
        never = serve_starting(env, &mut internal, process) => match never {},
        never = serve_starting(env, &mut public, process) => match never {},
    };
    let (limits, inner_limits) = (&tiers.limits(), &tiers.internal_limits());
    let metrics = &tiers.metrics;
    let inside = internal_routes(&tiers, &places);
    let outside = router_of(&places, Role::Frontend);
    let serving = async {
        tokio::join!(
            serve(env, internal, inside, inner_limits, metrics, stopped.clone()),
            serve(env, public, outside, limits, metrics, stopped.clone()),
        );
    };
    run_tasks(tasks, background, serving).await
}

type Tasks = (Vec<JoinHandle<Result<(), Fatal>>>, Vec<JoinHandle<Fatal>>);

/// Starts all tiers, each in its place. Gives their tasks, and those that go on while the server
/// drains.
async fn start_all(
    tiers: &Tiers,
    places: &BTreeMap<Role, LocalPlace>,
    stopped: &Shutdown,
) -> Result<Tasks, Fatal> {
    let (mut tasks, mut background) = (Vec::new(), Vec::new());
    for (role, place) in places {
        let tier = start(tiers, *role, places, stopped).await?;
        tasks.extend(tier.tasks);
        background.extend(tier.background);
        place.fill(tier.router, tier.direct);
    }
    Ok((tasks, background))
}

async fn start(
    tiers: &Tiers,
    role: Role,
    places: &BTreeMap<Role, LocalPlace>,
    stopped: &Shutdown,
) -> Result<Tier, Fatal> {
    let (env, stopped) = (&tiers.env, stopped.clone());
    let server = tiers.base(role, places.get(&Role::Balancer).map(LocalPlace::local))?;
    match role {
        Role::Catalog => {
            let config = pygmy_catalog::Config { server, ..tiers.catalog()? };
            pygmy_catalog::start(config, env, stopped).await
        }
        Role::Order => pygmy_order::start(pygmy_order::Config { server }, env, stopped),
        Role::Frontend => {
            let config = pygmy_frontend::Config { server, ..tiers.frontend()? };
            pygmy_frontend::start(config, env, stopped)
        }
        Role::Balancer => {
            let local = local_servers(tiers, places)?;
            let config = pygmy_balancer::Config { server, local, ..tiers.balancer()? };
            pygmy_balancer::start(config, env, stopped)
        }
        Role::All => Err(Fatal("a part of a server is of one tier".to_owned())),
    }
}

fn local_servers(
    tiers: &Tiers,
    places: &BTreeMap<Role, LocalPlace>,
) -> Result<Vec<LocalServer>, Fatal> {
    let local = |(role, place): (&Role, &LocalPlace)| {
        let part = tiers.part(*role)?;
        Ok(LocalServer { name: part.name, role: *role, url: part.url, tier: place.local() })
    };
    places.iter().filter(|(role, _)| **role != Role::Balancer).map(local).collect()
}

fn router_of(places: &BTreeMap<Role, LocalPlace>, role: Role) -> Router {
    places.get(&role).map(LocalPlace::router).unwrap_or_default()
}

fn internal_routes(tiers: &Tiers, places: &BTreeMap<Role, LocalPlace>) -> Router {
    let readyz = {
        let parts = Arc::new(parts(&tiers.env, places));
        let (env, name) = (tiers.env.clone(), tiers.server.name.clone());
        move || async move { ready(&env, &name, &parts).await }
    };
    let mut router = Router::new()
        .route("/livez", get(livez).with_state(tiers.process.clone()))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics_text).with_state(tiers.metrics.clone()))
        .fallback(unknown_route);
    for role in places.keys() {
        // As a service and not as a nest: the tier's own fallback and layers stay what they are.
        router = router.nest_service(&format!("/{role}"), router_of(places, *role));
    }
    router
}

async fn unknown_route(uri: Uri) -> Problem {
    let path: String = uri.path().chars().take(100).collect();
    let detail = format!("there is nothing at {path}; each tier is under its name, as in /catalog");
    Problem::new(Code::UnknownRoute, detail)
}

fn parts(env: &Env, places: &BTreeMap<Role, LocalPlace>) -> Vec<(Role, Upstream)> {
    let part =
        |(role, place): (&Role, &LocalPlace)| (*role, Upstream::local(env, "", place.local()));
    places.iter().map(part).collect()
}

/// Ready when every part is; the reasons are those of the parts.
async fn ready(env: &Env, name: &str, parts: &[(Role, Upstream)]) -> Response {
    let mut reasons = BTreeMap::new();
    for (role, part) in parts {
        let call = Call::new(Method::GET, "/readyz", RequestContext::fresh(env, READY_TIMEOUT));
        let reason = match part.send(&call, READY_TIMEOUT).await {
            Ok(answer) if answer.status == StatusCode::OK => continue,
            Ok(answer) => serde_json::from_slice(&answer.body).ok(),
            Err(failure) => Some(serde_json::Value::from(failure.to_string())),
        };
        let reason = reason.map(|said| said.get("reasons").cloned().unwrap_or(said));
        reasons.insert(role.as_str(), reason);
    }
    let ready = reasons.is_empty();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Json(status, serde_json::json!({ "name": name, "ready": ready, "reasons": reasons }))
        .into_response()
}
