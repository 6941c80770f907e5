//! The tier's routes.

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::{Path, State, rejection::PathRejection},
    routing::{get, post},
};
use bytes::Bytes;
use http::{HeaderMap, Method};
use pygmy_client::{Answer, Call};
use pygmy_protocol::{
    Env, IdempotencyKey, RequestContext,
    context::{IDEMPOTENCY_KEY, key_of, key_value},
    env::BoxFuture,
    http::{Direct, Limits, Line, Measure, read_body},
};

use crate::purchase::{Purchases, purchase};

pub(crate) struct Routes {
    pub(crate) env: Env,
    pub(crate) limits: Limits,
    pub(crate) purchases: Purchases,
    /// Of the buys that come without HTTP.
    pub(crate) buys: Measure,
}

/// How the router knows a buy.
pub(crate) const BUY: &str = "/buy/{itemNumber}";

pub(crate) fn router(routes: Arc<Routes>) -> Router {
    Router::new()
        .route(BUY, post(buy))
        .route("/orders/{orderNumber}", get(order))
        .with_state(routes)
}

/// A path segment that is no UTF-8 is no number either: it is judged as the empty one.
type Segment = Result<Path<String>, PathRejection>;

fn text(segment: Segment) -> String {
    segment.map(|Path(text)| text).unwrap_or_default()
}

async fn buy(
    State(routes): State<Arc<Routes>>,
    context: RequestContext,
    item: Segment,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let key = match key_of(&routes.env, &headers) {
        Ok(key) => key,
        Err(problem) => return problem.into(),
    };
    let answer = match read_body(&routes.env, &context, &routes.limits, body).await {
        Ok(body) => routes.buy(context, &key, &text(item), &headers, &body).await,
        Err(problem) => problem.into(),
    };
    with_key(answer, &key)
}

impl Direct for Routes {
    fn call(self: Arc<Self>, call: Call) -> Result<BoxFuture<'static, Answer>, Box<Call>> {
        if call.method != Method::POST || !call.target.starts_with("/buy/") {
            return Err(Box::new(call));
        }
        Ok(Box::pin(async move {
            let line = Line::new(&call.context, &call.method, &call.target);
            self.buys.answer(&self.env, line, self.buy_directly(call)).await
        }))
    }
}

impl Routes {
    async fn buy_directly(&self, call: Call) -> Answer {
        let Call { target, headers, body, context, .. } = call;
        let key = match key_of(&self.env, &headers) {
            Ok(key) => key,
            Err(problem) => return problem.into(),
        };
        let item = target.strip_prefix("/buy/").unwrap_or_default();
        with_key(self.buy(context, &key, item, &headers, &body).await, &key)
    }

    async fn buy(
        &self,
        context: RequestContext,
        key: &IdempotencyKey,
        item: &str,
        headers: &HeaderMap,
        body: &Bytes,
    ) -> Answer {
        match purchase(item, headers, body) {
            Ok(purchase) => self.purchases.make(context, key, &purchase).await,
            Err(problem) => problem.into(),
        }
    }
}

/// On errors too: a buyer who sent no key needs this one to ask again.
fn with_key(mut answer: Answer, key: &IdempotencyKey) -> Answer {
    answer.headers.insert(IDEMPOTENCY_KEY, key_value(key));
    answer
}

async fn order(
    State(routes): State<Arc<Routes>>,
    context: RequestContext,
    number: Segment,
) -> Answer {
    match text(number).parse() {
        Ok(number) => routes.purchases.get(context, number).await,
        Err(problem) => problem.into(),
    }
}
