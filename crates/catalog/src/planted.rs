//! What a planted bug does where one line is not enough.

use std::time::Duration;

use pygmy_protocol::{
    command::{Command, Outcome, Request},
    order::{Order, OrderNumber},
};

use crate::{
    propose::{Attempt, propose},
    replica::Shared,
    state::Reader,
};

/// Proposes `requests`. If a majority is slow, judges buys by what is applied here, as if nothing
/// could come before them any more.
pub(crate) async fn answer_before_commit(
    shared: &Shared,
    requests: Vec<Request>,
    limit: Duration,
) -> Attempt {
    let patience = limit / 4;
    let proposed = propose(shared, requests.clone(), limit);
    if let Ok(attempt) = shared.env.timeout(patience, proposed).await {
        return attempt;
    }
    let orders = shared.reader.status().orders;
    let judged = requests.iter().zip(orders + 1..).map(|(r, n)| judge(&shared.reader, r, n));
    match judged.collect() {
        Some(outcomes) => Attempt::Done(outcomes),
        None => Attempt::Unknown("a majority did not take it in time".to_owned()),
    }
}

fn judge(reader: &Reader, request: &Request, order: u64) -> Option<Outcome> {
    let Command::Buy { item, quantity, .. } = request.command else { return None };
    let item = reader.item(item).ok()?.value?;
    let order = Order {
        order_number: OrderNumber(order),
        item_number: item.item_number,
        title: item.title,
        quantity,
        cost: item.cost,
        stock: item.stock.checked_sub(quantity)?,
    };
    Some(Outcome::Ordered { order, replayed: false })
}
