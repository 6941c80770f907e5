//! The catalog's routes.

mod items;

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::{Path, Query, Request, State},
    response::{IntoResponse, Response},
    routing::{any, get, post},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use pygmy_protocol::{
    Code, Problem, RequestContext,
    command::{Command, Outcome, Request as Change},
    context::{IDEMPOTENCY_KEY, IDEMPOTENCY_REPLAYED, LOG_INDEX, key_of, key_value},
    env::BoxFuture,
    http::{
        Answer, Call, Direct, Json, Line, Measure, accept_upgrade, empty_body, internal, json_body,
        read_body,
    },
    import::{ImportProgress, ItemsAdded},
    invalidation,
    item::{ItemNumber, MAX_TEXT_BYTES, PageRequest, parse_value, parse_whole_number},
    members::MemberChange,
    order::{BuyBody, Order, OrderNumber, Purchase, unknown_order},
    planted,
    registration::{CatalogStatus, Role},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    answer::Answers,
    bootstrap::{BootstrapBody, Bootstrapped, bootstrap},
    health, members,
    peer::{self, serve_peer},
    read::read,
    replica::Shared,
    state::Read,
    stream::serve_stream,
};

type Replica = State<Arc<Shared>>;

const PURCHASES: &str = "/purchases";
const QUERY: &str = "/query/{item_or_topic}";

/// The replica as the tiers of its process call it.
pub(crate) struct Directly {
    shared: Arc<Shared>,
    purchases: Measure,
    queries: Measure,
}

impl Directly {
    pub(crate) fn new(shared: Arc<Shared>) -> Directly {
        let measure = |route| Measure::new(&shared.server.metrics, Role::Catalog.as_str(), route);
        Directly { purchases: measure(PURCHASES), queries: measure(QUERY), shared }
    }

    async fn purchase(&self, call: &Call) -> Answer {
        let Call { headers, body, context, .. } = call;
        purchase(&self.shared, context, headers, body).await.unwrap_or_else(Answer::from)
    }

    async fn item(&self, call: &Call, number: &str) -> Answer {
        item(&self.shared, &call.context, number).await.unwrap_or_else(Answer::from)
    }
}

impl Direct for Directly {
    fn call(self: Arc<Self>, call: Call) -> Result<BoxFuture<'static, Answer>, Box<Call>> {
        let line = Line::new(&call.context, &call.method, &call.target);
        if call.method == Method::POST && call.target == PURCHASES {
            return Ok(Box::pin(async move {
                self.purchases.answer(&self.shared.env, line, self.purchase(&call)).await
            }));
        }
        let text = call.target.strip_prefix("/query/");
        if call.method == Method::GET && text.and_then(parse_whole_number).is_some() {
            return Ok(Box::pin(async move {
                let number = call.target.strip_prefix("/query/").unwrap_or_default();
                self.queries.answer(&self.shared.env, line, self.item(&call, number)).await
            }));
        }
        Err(Box::new(call))
    }
}

/// All routes, each behind the secret.
pub(crate) fn routes(shared: Arc<Shared>) -> Router {
    let secret = shared.server.secret.clone();
    let routes = Router::new()
        .route("/query", get(query_topic))
        .route(QUERY, get(query))
        .route("/topics", get(topics))
        .route(PURCHASES, post(purchases))
        .route("/purchases/{order}", get(order))
        .route("/updateStock/{item}/{value}", post(update_stock))
        .route("/reduceStock/{item}", post(reduce_stock))
        .route("/updateCost/{item}/{value}", post(update_cost))
        .route("/update_replica/{item}", any(replaced))
        .route("/update_replica_stock/{item}/{value}", any(replaced))
        .route("/update_replica_cost/{item}/{value}", any(replaced))
        .route("/status", get(status))
        .route("/bootstrap", post(make_cluster))
        .route(pygmy_protocol::members::PATH, post(change_members))
        .route(peer::PATH, get(peer_connection))
        .route(invalidation::PATH, get(invalidation_stream))
        .merge(items::routes())
        .merge(health::routes())
        .with_state(shared);
    internal(routes, &secret)
}

#[derive(Deserialize)]
struct PageQuery {
    topic: Option<String>,
    limit: Option<String>,
    cursor: Option<String>,
}

type PageParams = Result<Query<PageQuery>, axum::extract::rejection::QueryRejection>;

fn page_query(params: PageParams) -> Result<PageQuery, Problem> {
    params.map(|Query(query)| query).map_err(|e| Problem::new(Code::BadValue, e.body_text()))
}

/// A whole number is an item number; everything else is a topic.
async fn query(
    State(shared): Replica,
    context: RequestContext,
    Path(text): Path<String>,
    params: PageParams,
) -> Result<Response, Problem> {
    if parse_whole_number(&text).is_none() {
        return topic_page(&shared, &context, text, page_query(params)?).await;
    }
    Ok(item(&shared, &context, &text).await?.into_response())
}

async fn item(shared: &Shared, context: &RequestContext, text: &str) -> Result<Answer, Problem> {
    let number: ItemNumber = text.parse()?;
    let read = read(shared, context.deadline, |reader| reader.item(number)).await?;
    let item = read.value.ok_or_else(|| Problem::unknown_item(number))?;
    let mut answer = Answer::of_json(StatusCode::OK, &item);
    answer.headers.insert(LOG_INDEX, HeaderValue::from(read.index));
    Ok(answer)
}

async fn query_topic(
    State(shared): Replica,
    context: RequestContext,
    params: PageParams,
) -> Result<Response, Problem> {
    let query = page_query(params)?;
    let missing = || Problem::new(Code::BadValue, "say which topic: /query?topic=…");
    let topic = query.topic.clone().ok_or_else(missing)?;
    topic_page(&shared, &context, topic, query).await
}

async fn topic_page(
    shared: &Shared,
    context: &RequestContext,
    topic: String,
    query: PageQuery,
) -> Result<Response, Problem> {
    if topic.is_empty() || topic.len() > MAX_TEXT_BYTES {
        return Err(Problem::new(
            Code::BadValue,
            format!("a topic has 1 to {MAX_TEXT_BYTES} bytes"),
        ));
    }
    let page = PageRequest::parse(query.limit.as_deref(), query.cursor.as_deref())?;
    let Read { value, index } =
        read(shared, context.deadline, |reader| reader.page(&topic, page)).await?;
    Ok(with_index(index, Json(StatusCode::OK, value)))
}

async fn topics(State(shared): Replica, context: RequestContext) -> Result<Response, Problem> {
    let Read { value, index } = read(&shared, context.deadline, |reader| reader.topics()).await?;
    Ok(with_index(index, Json(StatusCode::OK, value)))
}

async fn order(
    State(shared): Replica,
    context: RequestContext,
    Path(text): Path<String>,
) -> Result<Json<Order>, Problem> {
    let number: OrderNumber = text.parse()?;
    let read = read(&shared, context.deadline, |reader| reader.order(number)).await?;
    read.value.map(|order| Json(StatusCode::OK, order)).ok_or_else(|| unknown_order(number))
}

pub(crate) fn with_index(index: u64, answer: impl IntoResponse) -> Response {
    let mut response = answer.into_response();
    response.headers_mut().insert(LOG_INDEX, HeaderValue::from(index));
    response
}

async fn purchases(
    State(shared): Replica,
    context: RequestContext,
    request: Request,
) -> Result<Answer, Problem> {
    let (headers, body) = split(request);
    let body = read_body(&shared.env, &context, &shared.server.limits, body).await?;
    purchase(&shared, &context, &headers, &body).await
}

async fn purchase(
    shared: &Shared,
    context: &RequestContext,
    headers: &HeaderMap,
    body: &Bytes,
) -> Result<Answer, Problem> {
    let Purchase { item_number, quantity, expected_cost } = parse_json(headers, body)?;
    BuyBody { quantity, expected_cost }.check()?;
    if planted!(StockCheckedBefore)
        && let found = read(shared, context.deadline, |reader| reader.item(item_number)).await?
        && found.value.is_some_and(|item| item.stock < quantity)
    {
        return Err(Problem::out_of_stock());
    }
    change(shared, context, headers, Command::Buy { item: item_number, quantity, expected_cost })
        .await
}

async fn update_stock(
    State(shared): Replica,
    context: RequestContext,
    Path((item, value)): Path<(String, String)>,
    request: Request,
) -> Result<Answer, Problem> {
    let command = Command::SetStock { item: item.parse()?, stock: parse_value(&value)? };
    update(&shared, &context, request, command).await
}

async fn update_cost(
    State(shared): Replica,
    context: RequestContext,
    Path((item, value)): Path<(String, String)>,
    request: Request,
) -> Result<Answer, Problem> {
    let command = Command::SetCost { item: item.parse()?, cost: parse_value(&value)? };
    update(&shared, &context, request, command).await
}

async fn reduce_stock(
    State(shared): Replica,
    context: RequestContext,
    Path(item): Path<String>,
    request: Request,
) -> Result<Answer, Problem> {
    update(&shared, &context, request, Command::ReduceStock { item: item.parse()? }).await
}

async fn update(
    shared: &Shared,
    context: &RequestContext,
    request: Request,
    command: Command,
) -> Result<Answer, Problem> {
    let (headers, body) = split(request);
    empty_body(&read_body(&shared.env, context, &shared.server.limits, body).await?)?;
    change(shared, context, &headers, command).await
}

/// Has `command` done under the request's key.
async fn change(
    shared: &Shared,
    context: &RequestContext,
    headers: &HeaderMap,
    command: Command,
) -> Result<Answer, Problem> {
    let key = key_of(&shared.env, headers)?;
    let name = key_value(&key);
    let written = shared.queue.write(Change { key, command }, context.deadline).await;
    let mut answer = written.map_or_else(|error| Problem::from(error).into(), outcome_answer);
    answer.headers.insert(IDEMPOTENCY_KEY, name);
    Ok(answer)
}

fn outcome_answer(outcome: Outcome) -> Answer {
    if let Some(problem) = outcome.problem() {
        return problem.into();
    }
    match outcome {
        Outcome::Ordered { order, replayed } => {
            let location = HeaderValue::from_str(&format!("/orders/{}", order.order_number));
            let mut answer = replayable(replayed, StatusCode::CREATED, &order);
            if let Ok(location) = location {
                answer.headers.insert(header::LOCATION, location);
            }
            answer
        }
        Outcome::Updated { item, replayed } => replayable(replayed, StatusCode::OK, &item),
        Outcome::Added { items, replayed } => {
            replayable(replayed, StatusCode::OK, &ItemsAdded { items })
        }
        Outcome::Imported { items, replayed } => {
            replayable(replayed, StatusCode::OK, &ImportProgress { items })
        }
        _ => Problem::outcome_unknown("an outcome of another kind").into(),
    }
}

fn replayable(replayed: bool, status: StatusCode, value: &impl Serialize) -> Answer {
    let mut answer = Answer::of_json(status, value);
    if replayed {
        answer.headers.insert(IDEMPOTENCY_REPLAYED, HeaderValue::from_static("true"));
    }
    answer
}

async fn replaced() -> Problem {
    Problem::new(
        Code::Replaced,
        "replicas are kept in step by Raft: send updateStock, reduceStock or updateCost to any of them",
    )
}

async fn status(State(shared): Replica) -> Json<CatalogStatus> {
    Json(StatusCode::OK, shared.status())
}

async fn make_cluster(
    State(shared): Replica,
    context: RequestContext,
    request: Request,
) -> Result<Json<Bootstrapped>, Problem> {
    let (headers, body) = split(request);
    let body: BootstrapBody = read_json(&shared, &context, &headers, body).await?;
    Ok(Json(StatusCode::OK, bootstrap(&shared, &context, body).await?))
}

async fn change_members(
    State(shared): Replica,
    context: RequestContext,
    request: Request,
) -> Result<Response, Problem> {
    let (headers, body) = split(request);
    let wish: MemberChange = read_json(&shared, &context, &headers, body).await?;
    wish.check()?;
    if !shared.is_leader() {
        return Ok(not_leader(&shared));
    }
    Ok(Json(StatusCode::OK, members::change(&shared, &wish).await?).into_response())
}

async fn peer_connection(
    State(shared): Replica,
    mut request: Request,
) -> Result<Response, Problem> {
    let (response, upgraded) = accept_upgrade(&mut request, peer::PROTOCOL)?;
    let env = shared.env.clone();
    env.clone().spawn(async move {
        let Ok(connection) = upgraded.connection().await else { return };
        if let Err(error) = serve_peer(&env, connection, &Answers::new(shared)).await {
            tracing::debug!(%error, "the connection of a replica ended");
        }
    });
    Ok(response)
}

async fn invalidation_stream(
    State(shared): Replica,
    mut request: Request,
) -> Result<Response, Problem> {
    if shared.gate.progress().leads.is_none() {
        return Ok(not_leader(&shared));
    }
    let (response, upgraded) = accept_upgrade(&mut request, invalidation::PROTOCOL)?;
    let env = shared.env.clone();
    env.spawn(async move {
        let Ok(connection) = upgraded.connection().await else { return };
        if let Err(error) = serve_stream(&shared, connection).await {
            tracing::debug!(%error, "an invalidation stream ended");
        }
    });
    Ok(response)
}

fn not_leader(shared: &Shared) -> Response {
    let mut response = Problem::unavailable("this replica does not lead").into_response();
    let leader = shared.leadership.borrow().leader.clone().filter(|leader| !leader.is_me);
    if let Some(url) = leader.and_then(|leader| HeaderValue::from_str(&leader.url).ok()) {
        response.headers_mut().insert(invalidation::LEADER_URL, url);
    }
    response
}

fn split(request: Request) -> (HeaderMap, Body) {
    let (parts, body) = request.into_parts();
    (parts.headers, body)
}

async fn read_json<T: DeserializeOwned>(
    shared: &Shared,
    context: &RequestContext,
    headers: &HeaderMap,
    body: Body,
) -> Result<T, Problem> {
    let bytes = read_body(&shared.env, context, &shared.server.limits, body).await?;
    parse_json(headers, &bytes)
}

fn parse_json<T: DeserializeOwned>(headers: &HeaderMap, bytes: &Bytes) -> Result<T, Problem> {
    json_body(headers, bytes)?;
    serde_json::from_slice(bytes)
        .map_err(|e| Problem::new(Code::BadBody, format!("the body is not as expected: {e}")))
}
