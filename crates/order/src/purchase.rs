//! From a buy to a purchase, and from the catalog's answer to the buyer's.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method, header};
use pygmy_client::{Answer, Balancers, Call};
use pygmy_protocol::{
    IdempotencyKey, Problem, RequestContext,
    context::IDEMPOTENCY_REPLAYED,
    http::{Secret, json_body},
    item::ItemNumber,
    order::{BuyBody, OrderNumber, Purchase},
};

/// What of the catalog's headers is meant for the buyer. The rest belongs to the connections in
/// between, or is set by this server.
const PASSED_BACK: [HeaderName; 4] =
    [header::CONTENT_TYPE, header::LOCATION, header::RETRY_AFTER, IDEMPOTENCY_REPLAYED];

/// The catalog's purchases, behind the balancers.
pub(crate) struct Purchases {
    pub(crate) balancers: Balancers,
    pub(crate) secret: Secret,
}

impl Purchases {
    /// Has `purchase` made, at most once for `key`.
    pub(crate) async fn make(
        &self,
        context: RequestContext,
        key: &IdempotencyKey,
        purchase: &Purchase,
    ) -> Answer {
        let call = Call::new(Method::POST, "/purchases", context).with_key(key).with_json(purchase);
        self.pass(call).await
    }

    /// Looks an order up.
    pub(crate) async fn get(&self, context: RequestContext, number: OrderNumber) -> Answer {
        self.pass(Call::new(Method::GET, format!("/purchases/{number}"), context)).await
    }

    async fn pass(&self, call: Call) -> Answer {
        let mut answer = self.balancers.call(&call.with_secret(&self.secret)).await;
        answer.headers = passed_back(&answer);
        answer
    }
}

fn passed_back(answer: &Answer) -> HeaderMap {
    let value = |name: HeaderName| answer.headers.get(&name).cloned().map(|value| (name, value));
    PASSED_BACK.into_iter().filter_map(value).collect()
}

/// The purchase that a buy of `item` with `body` asks for.
///
/// # Errors
/// `bad_item_number`, `unsupported_media_type`, `bad_body`, `bad_quantity`, `bad_value`.
pub(crate) fn purchase(item: &str, headers: &HeaderMap, body: &Bytes) -> Result<Purchase, Problem> {
    let item_number: ItemNumber = item.parse()?;
    json_body(headers, body)?;
    let BuyBody { quantity, expected_cost } = BuyBody::parse(body)?;
    Ok(Purchase { item_number, quantity, expected_cost })
}
