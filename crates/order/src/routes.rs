//! The tier's routes.

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::{Path, State, rejection::PathRejection},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use http::HeaderMap;
use pygmy_protocol::{
    Env, Problem, RequestContext,
    context::{IDEMPOTENCY_KEY, key_of, key_value},
    http::{Limits, read_body},
    order::Purchase,
};

use crate::purchase::{Purchases, purchase};

#[derive(Clone)]
struct Routes {
    env: Env,
    limits: Limits,
    purchases: Arc<Purchases>,
}

pub(crate) fn router(env: &Env, limits: &Limits, purchases: Arc<Purchases>) -> Router {
    Router::new()
        .route("/buy/{itemNumber}", post(buy))
        .route("/orders/{orderNumber}", get(order))
        .with_state(Routes { env: env.clone(), limits: limits.clone(), purchases })
}

/// A path segment that is no UTF-8 is no number either: it is judged as the empty one.
type Segment = Result<Path<String>, PathRejection>;

fn text(segment: Segment) -> String {
    segment.map(|Path(text)| text).unwrap_or_default()
}

async fn buy(
    State(routes): State<Routes>,
    context: RequestContext,
    item: Segment,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let key = match key_of(&routes.env, &headers) {
        Ok(key) => key,
        Err(problem) => return problem.into_response(),
    };
    let mut response = match routes.purchase(&context, &text(item), &headers, body).await {
        Ok(purchase) => routes.purchases.make(context, &key, &purchase).await,
        Err(problem) => problem.into_response(),
    };
    // On errors too: a buyer who sent no key needs this one to ask again.
    response.headers_mut().insert(IDEMPOTENCY_KEY, key_value(&key));
    response
}

impl Routes {
    async fn purchase(
        &self,
        context: &RequestContext,
        item: &str,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<Purchase, Problem> {
        let body = read_body(&self.env, context, &self.limits, body).await?;
        purchase(item, headers, &body)
    }
}

async fn order(State(routes): State<Routes>, context: RequestContext, number: Segment) -> Response {
    match text(number).parse() {
        Ok(number) => routes.purchases.get(context, number).await,
        Err(problem) => problem.into_response(),
    }
}
