//! The routes: what clients and operators may ask, and in which words.

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::{Path, Query as Parameters, Request, State, rejection::PathRejection},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use pygmy_client::{Answer, Balancers, Call};
use pygmy_protocol::{
    Code, Env, IdempotencyKey, Problem, RequestContext,
    context::{IDEMPOTENCY_KEY, IDEMPOTENCY_REPLAYED, key_of, key_value},
    http::{Limits, Secret, internal, json_body, read_body},
    invalidation::CacheKey,
    item::{ItemNumber, MAX_TEXT_BYTES, PageRequest},
    order::{BuyBody, OrderNumber},
    problem::PROBLEM_JSON,
};

use crate::{
    admission::Admission,
    entry::Document,
    flight::Query,
    home::home,
    read::{Found, Outcome, Reader, Refusal},
};

/// What a client sees of another server's answer besides status and body.
const PASSED_ON: [HeaderName; 4] =
    [header::CONTENT_TYPE, header::RETRY_AFTER, header::LOCATION, IDEMPOTENCY_REPLAYED];
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// What the handlers work with.
pub(crate) struct App {
    pub(crate) env: Env,
    pub(crate) limits: Limits,
    pub(crate) secret: Secret,
    pub(crate) admission: Arc<Admission>,
    pub(crate) reader: Arc<Reader>,
    pub(crate) balancers: Arc<Balancers>,
}

type Segment = Result<Path<String>, PathRejection>;

/// All routes of the tier, without the layers that every server has.
pub(crate) fn router(app: App) -> Router {
    let public = Router::new()
        .route("/", get(home))
        .route("/search/", get(no_topic))
        .route("/search/{topic}", get(search))
        .route("/topics", get(topics))
        .route("/lookup/{item}", get(lookup))
        .route("/buy/{item}", post(buy))
        .route("/orders/{order}", get(order));
    let operators = Router::new()
        .route("/invalidate/item/{item}", post(invalidate_item))
        .route("/invalidate/topic/{topic}", post(invalidate_topic))
        .route("/invalidate/all", post(invalidate_all));
    let operators = internal(operators, &app.secret);
    public.merge(operators).with_state(Arc::new(app))
}

async fn search(
    State(app): State<Arc<App>>,
    context: RequestContext,
    topic: Segment,
    Parameters(parameters): Parameters<Vec<(String, String)>>,
) -> Result<Response, Problem> {
    let topic = topic_of(topic)?;
    let limit = parameter(&parameters, "limit", Code::BadValue)?;
    let cursor = parameter(&parameters, "cursor", Code::BadCursor)?;
    let which = PageRequest::parse(limit, cursor)?;
    Ok(found(app.reader.read(Query::Page(topic, which), &context).await, &HeaderMap::new()))
}

async fn no_topic() -> Problem {
    bad_topic()
}

async fn topics(
    State(app): State<Arc<App>>,
    context: RequestContext,
    headers: HeaderMap,
) -> Response {
    found(app.reader.read(Query::Topics, &context).await, &headers)
}

async fn lookup(
    State(app): State<Arc<App>>,
    context: RequestContext,
    item: Segment,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let item = number_of(item)?;
    Ok(found(app.reader.read(Query::Item(item), &context).await, &headers))
}

async fn buy(
    State(app): State<Arc<App>>,
    context: RequestContext,
    item: Segment,
    request: Request,
) -> Result<Response, Problem> {
    let key = key_of(&app.env, request.headers())?;
    let mut response = match forward_buy(&app, context, item, &key, request).await {
        Ok(answer) => pass_on(answer, Problem::outcome_unknown),
        Err(problem) => problem.into_response(),
    };
    response.headers_mut().insert(IDEMPOTENCY_KEY, key_value(&key));
    Ok(response)
}

/// Bad requests end here, so that they cost the cluster nothing; the body of a good one goes on as
/// it is.
async fn forward_buy(
    app: &App,
    context: RequestContext,
    item: Segment,
    key: &IdempotencyKey,
    request: Request,
) -> Result<Answer, Problem> {
    let item = number_of(item)?;
    let (parts, body) = request.into_parts();
    let body = read_body(&app.env, &context, &app.limits, body).await?;
    json_body(&parts.headers, &body)?;
    BuyBody::parse(&body)?;
    // Not before: a client that sends its body slowly says nothing about the store.
    let _admitted = app.admission.enter()?;
    let mut call = Call::new(Method::POST, format!("/buy/{item}"), context)
        .with_secret(&app.secret)
        .with_key(key);
    if !body.is_empty() {
        call.headers.insert(header::CONTENT_TYPE, JSON);
        call.body = body;
    }
    Ok(app.balancers.call(&call).await)
}

async fn order(
    State(app): State<Arc<App>>,
    context: RequestContext,
    order: Segment,
) -> Result<Response, Problem> {
    // What is no text cannot be the number of an order.
    let order: OrderNumber = order.map_or(String::new(), |Path(order)| order).parse()?;
    let _admitted = app.admission.enter()?;
    let call = Call::new(Method::GET, format!("/orders/{order}"), context).with_secret(&app.secret);
    Ok(pass_on(app.balancers.call(&call).await, Problem::unavailable))
}

async fn invalidate_item(
    State(app): State<Arc<App>>,
    item: Segment,
) -> Result<StatusCode, Problem> {
    Ok(invalidate(&app, CacheKey::Item(number_of(item)?)))
}

async fn invalidate_topic(
    State(app): State<Arc<App>>,
    topic: Segment,
) -> Result<StatusCode, Problem> {
    Ok(invalidate(&app, CacheKey::Topic(topic_of(topic)?)))
}

async fn invalidate_all(State(app): State<Arc<App>>) -> StatusCode {
    invalidate(&app, CacheKey::All)
}

fn invalidate(app: &App, key: CacheKey) -> StatusCode {
    tracing::info!(?key, "dropped from the cache by hand");
    app.reader.erase_by_hand(&[key]);
    StatusCode::NO_CONTENT
}

fn number_of(segment: Segment) -> Result<ItemNumber, Problem> {
    // What is no text is no number: the empty one is refused in the same words.
    segment.map_or(String::new(), |Path(text)| text).parse()
}

fn topic_of(segment: Segment) -> Result<String, Problem> {
    let Ok(Path(topic)) = segment else { return Err(bad_topic()) };
    if topic.is_empty() || topic.len() > MAX_TEXT_BYTES {
        return Err(bad_topic());
    }
    Ok(topic)
}

fn bad_topic() -> Problem {
    let detail = format!("a topic has 1 to {MAX_TEXT_BYTES} bytes of percent-encoded UTF-8");
    Problem::new(Code::BadValue, detail)
}

/// The value of a query parameter that may be given once.
fn parameter<'a>(
    parameters: &'a [(String, String)],
    name: &'static str,
    bad: Code,
) -> Result<Option<&'a str>, Problem> {
    let mut values = parameters.iter().filter(|(given, _)| given == name);
    match (values.next(), values.next()) {
        (value, None) => Ok(value.map(|(_, value)| value.as_str())),
        (_, Some(_)) => Err(Problem::new(bad, format!("give the parameter {name} once"))),
    }
}

fn found(outcome: Outcome, headers: &HeaderMap) -> Response {
    match outcome {
        Ok(Found::Document(document)) => document_response(&document, headers),
        Ok(Found::Page(body)) => ([(header::CONTENT_TYPE, JSON)], body).into_response(),
        Err(Refusal(answer)) => pass_on(*answer, Problem::unavailable),
    }
}

/// The document, or 304 if the client says that it has it.
fn document_response(document: &Document, headers: &HeaderMap) -> Response {
    let etag = (header::ETAG, document.etag.clone());
    if has_already(headers, &document.etag) {
        return (StatusCode::NOT_MODIFIED, [etag]).into_response();
    }
    ([(header::CONTENT_TYPE, JSON), etag], document.body.clone()).into_response()
}

/// `If-None-Match` (RFC 9110, 13.1.2): any of the tags, which are compared weakly, or `*`.
fn has_already(headers: &HeaderMap, etag: &HeaderValue) -> bool {
    let lines = headers.get_all(header::IF_NONE_MATCH).iter();
    lines.flat_map(|line| line.as_bytes().split(|b| *b == b',')).any(|tag| {
        let tag = tag.trim_ascii();
        tag == b"*" || tag.strip_prefix(b"W/").unwrap_or(tag) == etag.as_bytes()
    })
}

/// Gives an answer of this store on, unparsed. `otherwise` says what anything else means.
fn pass_on(answer: Answer, otherwise: fn(String) -> Problem) -> Response {
    if answer.status == StatusCode::UNAUTHORIZED {
        // Refused before anything was done. It is this server's secret that is wrong, of which a
        // client knows nothing.
        tracing::error!("a balancer refuses this front end's secret: use the cluster's secret");
        return Problem::unavailable("the servers of the store do not trust each other")
            .into_response();
    }
    let is_problem = answer.headers.get(header::CONTENT_TYPE).is_some_and(|t| t == PROBLEM_JSON);
    if !answer.status.is_success() && !is_problem {
        let detail = format!("an answer that is not of this store: {}", answer.status);
        return otherwise(detail).into_response();
    }
    let mut response = Response::new(Body::from(answer.body));
    *response.status_mut() = answer.status;
    for name in PASSED_ON {
        if let Some(value) = answer.headers.get(&name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn if_none_match_takes_lists_weak_tags_and_a_star() {
        let matches = |lines: &[&str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(header::IF_NONE_MATCH, line.parse().unwrap());
            }
            has_already(&headers, &HeaderValue::from_static("\"a\""))
        };
        for lines in [&["\"a\""][..], &["*"], &["W/\"a\""], &["\"b\", \"a\""], &["\"b\"", "\"a\""]]
        {
            assert!(matches(lines), "{lines:?}");
        }
        for lines in [&[][..], &["\"b\""], &["a"], &["\"ab\""], &[""]] {
            assert!(!matches(lines), "{lines:?}");
        }
    }

    #[test]
    fn what_is_not_of_this_store_may_have_been_a_sale() {
        let strange = Answer {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            headers: HeaderMap::new(),
            body: "oops".into(),
        };
        let response = pass_on(strange, Problem::outcome_unknown);
        assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
    }
}
