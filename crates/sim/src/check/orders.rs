//! Nothing acknowledged is lost, nothing is sold twice, every request counts once.
//!
//! Goes by what clients were told and by all orders and items as read at the end, when no
//! request is under way any more.

use std::collections::BTreeMap;

use pygmy_protocol::{
    Code, IdempotencyKey,
    item::{Item, ItemNumber, MAX_NUMBER},
    order::{Order, OrderNumber},
};

use super::{
    Violation,
    history::{Event, History, Operation, Outcome, Request},
};

/// The store as found at the end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Found {
    /// Under the numbers by which they were found.
    pub(crate) orders: BTreeMap<OrderNumber, Order>,
    pub(crate) items: BTreeMap<ItemNumber, Item>,
}

/// Checks the orders in `history` and `found`; `initial` is the state of the store before, when
/// it had no orders.
///
/// # Errors
/// The first [`Violation`] that is found.
pub(crate) fn check(
    history: &History,
    initial: &BTreeMap<ItemNumber, Item>,
    found: &Found,
) -> Result<(), Violation> {
    let requests = history.requests();
    one_answer_for_each_key(history, &requests)?;
    let acknowledged = acknowledged(&requests)?;
    in_range(history, found)?;
    all_found(history, found)?;
    numbers_without_holes(found)?;
    all_asked_for(&requests, &acknowledged, found)?;
    numbers_in_order(&acknowledged)?;
    look_ups(history, &acknowledged)?;
    same_items(initial, found)?;
    copies_add_up(&requests, initial, found)
}

/// Acknowledged buys by the numbers of their orders.
type Acknowledged<'a> = BTreeMap<OrderNumber, Buy<'a>>;

#[derive(Clone, Copy)]
struct Buy<'a> {
    key: &'a IdempotencyKey,
    request: Request<'a>,
    event: &'a Event,
}

/// Who was told of a success is told the same ever after.
fn one_answer_for_each_key(
    history: &History,
    requests: &BTreeMap<&IdempotencyKey, Request<'_>>,
) -> Result<(), Violation> {
    for second in &history.events {
        let request = second.operation.key().and_then(|key| requests.get(key));
        let Some(first) = request.and_then(|request| request.answer) else { continue };
        let differs = match (&first.outcome, &second.outcome) {
            (_, Outcome::Unknown | Outcome::NotDone) => false,
            (Outcome::Ordered { order: a, .. }, Outcome::Ordered { order: b, .. }) => a != b,
            (Outcome::Updated(a), Outcome::Updated(b)) => a != b,
            // A refusal leaves the key free, so it may come before the success.
            (_, Outcome::Refused(_)) => second.called_ns > first.end_ns(),
            _ => true,
        };
        if differs {
            return Err(Violation::TwoAnswers { first: boxed(first), second: boxed(second) });
        }
    }
    Ok(())
}

fn acknowledged<'a>(
    requests: &BTreeMap<&'a IdempotencyKey, Request<'a>>,
) -> Result<Acknowledged<'a>, Violation> {
    let mut acknowledged = Acknowledged::new();
    for (&key, &request) in requests {
        let Some(event) = request.answer else { continue };
        let Outcome::Ordered { order, .. } = &event.outcome else { continue };
        let number = order.order_number;
        let Some(first) = acknowledged.insert(number, Buy { key, request, event }) else {
            continue;
        };
        let (first, second) = (first.key.clone(), key.clone());
        return Err(Violation::TwoKeys { number, first, second });
    }
    Ok(acknowledged)
}

/// A stock below zero shows as a number that is far too large.
fn in_range(history: &History, found: &Found) -> Result<(), Violation> {
    let told = history.events.iter().filter_map(|event| match &event.outcome {
        Outcome::Ordered { order, .. } => Some((order.stock, event.to_string())),
        Outcome::Updated(item) | Outcome::Read(Some(item)) => Some((item.stock, event.to_string())),
        _ => None,
    });
    let orders = found.orders.values().map(|order| (order.stock, format!("{order:?}")));
    let items = found.items.values().map(|item| (item.stock, format!("{item:?}")));
    match told.chain(orders).chain(items).find(|(stock, _)| *stock > MAX_NUMBER) {
        Some((stock, at)) => Err(Violation::StockOutOfRange { stock, at }),
        None => Ok(()),
    }
}

/// What a client was told of an order, in answer to a buy or a look-up, is what is there.
fn all_found(history: &History, found: &Found) -> Result<(), Violation> {
    for event in &history.events {
        let Outcome::Ordered { order, .. } = &event.outcome else { continue };
        match found.orders.get(&order.order_number) {
            None => return Err(Violation::OrderLost { event: boxed(event) }),
            Some(found) if found != order => {
                return Err(Violation::OrderDiffers {
                    event: boxed(event),
                    found: Box::new(found.clone()),
                });
            }
            Some(_) => {}
        }
    }
    Ok(())
}

fn numbers_without_holes(found: &Found) -> Result<(), Violation> {
    for (expected, (number, order)) in (1..).map(OrderNumber).zip(&found.orders) {
        if (*number, order.order_number) != (expected, expected) {
            return Err(Violation::NumberMissing { number: expected });
        }
    }
    Ok(())
}

/// Each order belongs to a buy of its own that was acknowledged, or whose outcome is unknown.
fn all_asked_for(
    requests: &BTreeMap<&IdempotencyKey, Request<'_>>,
    acknowledged: &Acknowledged<'_>,
    found: &Found,
) -> Result<(), Violation> {
    let mut unknown: BTreeMap<(ItemNumber, u64, Option<u64>), usize> = BTreeMap::new();
    for request in requests.values().filter(|request| request.answer.is_none()) {
        if let Operation::Buy { item, quantity, expected_cost, .. } = *request.operation {
            *unknown.entry((item, quantity, expected_cost)).or_default() += 1;
        }
    }
    for (number, order) in &found.orders {
        let asked = match acknowledged.get(number) {
            Some(buy) => buy.request.operation.can_make(order),
            // A buy that names its price fits fewer orders than one that does not: it goes first.
            None => [Some(order.cost), None].into_iter().any(|expected_cost| {
                let kind = (order.item_number, order.quantity, expected_cost);
                let left = unknown.get_mut(&kind).filter(|left| **left > 0);
                left.map(|left| *left -= 1).is_some()
            }),
        };
        if !asked {
            return Err(Violation::NotAsked { order: Box::new(order.clone()) });
        }
    }
    Ok(())
}

/// Orders are numbered as they are made, over all items.
fn numbers_in_order(acknowledged: &Acknowledged<'_>) -> Result<(), Violation> {
    let mut later: Option<&Buy<'_>> = None;
    for buy in acknowledged.values().rev() {
        if let Some(second) = later.filter(|later| later.request.end_ns() < buy.request.called_ns) {
            let (first, second) = (boxed(second.event), boxed(buy.event));
            return Err(Violation::NumbersOutOfOrder { first, second });
        }
        // Of the orders with higher numbers, the one that was acknowledged first.
        later = later.into_iter().chain([buy]).min_by_key(|buy| buy.request.end_ns());
    }
    Ok(())
}

/// An order is found from the time on when anybody knows of it, and not before its buy.
fn look_ups(history: &History, acknowledged: &Acknowledged<'_>) -> Result<(), Violation> {
    // From when on the order must be there, for the highest numbers first: where an order is,
    // all lower numbers are.
    let mut known_ns: BTreeMap<OrderNumber, u64> = BTreeMap::new();
    for event in &history.events {
        let Outcome::Ordered { order, .. } = &event.outcome else { continue };
        let known = known_ns.entry(order.order_number).or_insert(u64::MAX);
        *known = (*known).min(event.end_ns());
    }
    let mut earliest_ns = u64::MAX;
    for known in known_ns.values_mut().rev() {
        earliest_ns = earliest_ns.min(*known);
        *known = earliest_ns;
    }
    for event in &history.events {
        let Operation::OrderLookup { number } = event.operation else { continue };
        let known = known_ns.range(number..).next().map_or(u64::MAX, |(_, known)| *known);
        let made = acknowledged.get(&number).map_or(0, |buy| buy.request.called_ns);
        match &event.outcome {
            Outcome::Refused(Code::UnknownOrder) if event.called_ns > known => {
                return Err(Violation::OrderHidden { number, event: boxed(event) });
            }
            Outcome::Ordered { .. } if event.end_ns() < made => {
                return Err(Violation::OrderFromTheFuture { event: boxed(event) });
            }
            Outcome::Ordered { order, .. } if order.order_number != number => {
                return Err(Violation::OrderDiffers {
                    event: boxed(event),
                    found: Box::new(order.clone()),
                });
            }
            _ => {}
        }
    }
    Ok(())
}

/// Each order of an item, and the stock at the end, begins with what the order before it left,
/// or with what an update set that nothing else has needed yet. Without updates: initial stock
/// less copies sold is the final stock, all the way. The times of the updates are left to the
/// check of linearizability.
fn copies_add_up(
    requests: &BTreeMap<&IdempotencyKey, Request<'_>>,
    initial: &BTreeMap<ItemNumber, Item>,
    found: &Found,
) -> Result<(), Violation> {
    let mut updates: BTreeMap<(ItemNumber, u64), usize> = BTreeMap::new();
    for request in requests.values() {
        if let Operation::SetStock { item, stock, .. } = *request.operation {
            *updates.entry((item, stock)).or_default() += 1;
        }
    }
    let mut stocks: BTreeMap<ItemNumber, u64> =
        initial.iter().map(|(number, item)| (*number, item.stock)).collect();
    let mut expect = |stocks: &BTreeMap<_, _>, item: ItemNumber, actual: u64, at: &str| {
        let expected = stocks.get(&item).copied().unwrap_or_default();
        let update = updates.get_mut(&(item, actual)).filter(|left| **left > 0);
        match (expected == actual, update) {
            (true, _) => Ok(()),
            (false, Some(left)) => {
                *left -= 1;
                Ok(())
            }
            (false, None) => {
                Err(Violation::StockDoesNotAddUp { item, at: at.to_owned(), expected, actual })
            }
        }
    };
    for order in found.orders.values() {
        let before = order.stock.saturating_add(order.quantity);
        let at = format!("order {}", order.order_number);
        expect(&stocks, order.item_number, before, &at)?;
        stocks.insert(order.item_number, order.stock);
    }
    found
        .items
        .iter()
        .try_for_each(|(number, item)| expect(&stocks, *number, item.stock, "the end"))
}

/// No operation adds or removes items or gives them other titles.
fn same_items(initial: &BTreeMap<ItemNumber, Item>, found: &Found) -> Result<(), Violation> {
    let names = |item: &Item| (item.title.clone(), item.topic.clone());
    let differs =
        |item: &&ItemNumber| initial.get(*item).map(names) != found.items.get(*item).map(names);
    match initial.keys().chain(found.items.keys()).find(differs) {
        Some(item) => Err(Violation::ItemDiffers { item: *item }),
        None => Ok(()),
    }
}

fn boxed(event: &Event) -> Box<Event> {
    Box::new(event.clone())
}

#[cfg(test)]
mod tests {
    use super::{super::history::testing::*, *};

    fn found(orders: impl IntoIterator<Item = Order>, stock: u64) -> Found {
        let orders = orders.into_iter().map(|order| (order.order_number, order)).collect();
        Found { orders, items: stocked(stock) }
    }

    /// Item 1 begins with 5 copies.
    fn judge(events: impl IntoIterator<Item = Event>, found: &Found) -> Result<(), Violation> {
        check(&history(events), &stocked(5), found)
    }

    fn two_buys() -> [Event; 2] {
        [
            event((10, 20), buy(2, "a"), ordered(1, 2, 3)),
            event((30, 40), buy(1, "b"), ordered(2, 1, 2)),
        ]
    }

    #[test]
    fn what_was_acknowledged_and_is_there_passes() {
        assert_eq!(judge(two_buys(), &found([order(1, 2, 3), order(2, 1, 2)], 2)), Ok(()));
        assert_eq!(judge([], &found([], 5)), Ok(()));
    }

    #[test]
    fn a_lost_order_is_found() {
        let lost = judge(two_buys(), &found([order(1, 2, 3)], 3));
        assert!(matches!(lost, Err(Violation::OrderLost { .. })), "{lost:?}");
    }

    #[test]
    fn a_changed_order_is_found() {
        let changed = judge(two_buys(), &found([order(1, 2, 3), order(2, 2, 1)], 1));
        assert!(matches!(changed, Err(Violation::OrderDiffers { .. })), "{changed:?}");
        let wrong_number = [event((50, 60), look_up(2), ordered(1, 2, 3))];
        let other = judge(
            two_buys().into_iter().chain(wrong_number),
            &found([order(1, 2, 3), order(2, 1, 2)], 2),
        );
        assert!(matches!(other, Err(Violation::OrderDiffers { .. })), "{other:?}");
    }

    #[test]
    fn two_orders_for_one_key_are_found() {
        let mut events = two_buys();
        events[1].operation = events[0].operation.clone();
        let twice = judge(events, &found([order(1, 2, 3), order(2, 1, 2)], 2));
        assert!(matches!(twice, Err(Violation::TwoAnswers { .. })), "{twice:?}");

        // The same when the client never heard of one of them.
        let once = two_buys().into_iter().take(1);
        let twice = judge(once, &found([order(1, 2, 3), order(2, 2, 1)], 1));
        assert!(matches!(twice, Err(Violation::NotAsked { .. })), "{twice:?}");
    }

    #[test]
    fn one_order_for_two_keys_is_found() {
        let mut events = two_buys();
        events[1].outcome = events[0].outcome.clone();
        let shared = judge(events, &found([order(1, 2, 3)], 3));
        assert!(matches!(shared, Err(Violation::TwoKeys { .. })), "{shared:?}");
    }

    #[test]
    fn a_replayed_answer_is_the_same_answer() {
        let replay = Outcome::Ordered { order: order(1, 2, 3), replayed: true };
        let events = [
            event((1, 5), buy(2, "a"), Outcome::Refused(Code::OutOfStock)),
            event((10, 20), buy(2, "a"), ordered(1, 2, 3)),
            event((30, 40), buy(2, "a"), replay),
        ];
        assert_eq!(judge(events.clone(), &found([order(1, 2, 3)], 3)), Ok(()));
        let refused = event((50, 60), buy(2, "a"), Outcome::Refused(Code::OutOfStock));
        let refused = judge(events.into_iter().chain([refused]), &found([order(1, 2, 3)], 3));
        assert!(matches!(refused, Err(Violation::TwoAnswers { .. })), "{refused:?}");
    }

    #[test]
    fn an_order_may_come_from_an_unknown_buy_but_one_only() {
        let lost = || event((1, 5), buy(1, "lost"), Outcome::Unknown);
        assert_eq!(judge([lost()], &found([order(1, 1, 4)], 4)), Ok(()));
        assert_eq!(judge([lost()], &found([], 5)), Ok(()));
        for orders in [vec![order(1, 1, 4), order(2, 1, 3)], vec![order(1, 2, 3)]] {
            let left = orders[orders.len() - 1].stock;
            let ghost = judge([lost()], &found(orders, left));
            assert!(matches!(ghost, Err(Violation::NotAsked { .. })), "{ghost:?}");
        }
        let failed = event((1, 5), buy(1, "k"), Outcome::NotDone);
        let ghost = judge([failed], &found([order(1, 1, 4)], 4));
        assert!(matches!(ghost, Err(Violation::NotAsked { .. })), "{ghost:?}");
    }

    #[test]
    fn buys_that_name_their_price_are_matched_first() {
        let named = Operation::Buy {
            item: number(1),
            quantity: 1,
            expected_cost: Some(COST),
            key: "named".parse().unwrap(),
        };
        let mut dearer = order(2, 1, 3);
        dearer.cost += 1;
        let events =
            [named, buy(1, "any")].map(|operation| event((1, 5), operation, Outcome::Unknown));
        let orders = found([order(1, 1, 4), dearer.clone()], 3);
        assert_eq!(judge(events.clone(), &orders), Ok(()));
        let orders = found([Order { cost: COST + 1, ..order(1, 1, 4) }, dearer], 3);
        let ghost = judge(events, &orders);
        assert!(matches!(ghost, Err(Violation::NotAsked { .. })), "{ghost:?}");
    }

    #[test]
    fn numbers_have_no_holes_and_follow_time() {
        let lost = event((1, 50), buy(1, "lost"), Outcome::Unknown);
        let hole = judge([lost], &found([order(2, 1, 4)], 4));
        let missing = Err(Violation::NumberMissing { number: OrderNumber(1) });
        assert_eq!(hole, missing);

        let events = [
            event((10, 20), buy(1, "a"), ordered(2, 1, 3)),
            event((30, 40), buy(1, "b"), ordered(1, 1, 4)),
        ];
        let swapped = judge(events, &found([order(1, 1, 4), order(2, 1, 3)], 3));
        assert!(matches!(swapped, Err(Violation::NumbersOutOfOrder { .. })), "{swapped:?}");
    }

    #[test]
    fn look_ups_see_what_was_acknowledged_and_nothing_earlier() {
        let all = found([order(1, 2, 3), order(2, 1, 2)], 2);
        let hidden = || Outcome::Refused(Code::UnknownOrder);
        let judge = |look_up| judge(two_buys().into_iter().chain([look_up]), &all);
        assert_eq!(judge(event((50, 60), look_up(2), ordered(2, 1, 2))), Ok(()));
        assert_eq!(judge(event((35, 60), look_up(2), hidden())), Ok(()), "at the same time");
        assert_eq!(judge(event((50, 60), look_up(3), hidden())), Ok(()));
        for number in [1, 2] {
            let found = judge(event((50, 60), look_up(number), hidden()));
            assert!(matches!(found, Err(Violation::OrderHidden { .. })), "{found:?}");
        }
        let early = judge(event((21, 29), look_up(2), ordered(2, 1, 2)));
        assert!(matches!(early, Err(Violation::OrderFromTheFuture { .. })), "{early:?}");
    }

    #[test]
    fn copies_that_do_not_add_up_are_found() {
        let wrong = |result: Result<(), Violation>| {
            assert!(matches!(result, Err(Violation::StockDoesNotAddUp { .. })), "{result:?}");
        };
        wrong(judge(two_buys(), &found([order(1, 2, 3), order(2, 1, 2)], 3)));
        // The last copies, sold twice.
        let twice = [
            event((10, 20), buy(5, "a"), ordered(1, 5, 0)),
            event((10, 20), buy(5, "b"), ordered(2, 5, 0)),
        ];
        wrong(judge(twice.clone(), &found([order(1, 5, 0), order(2, 5, 0)], 0)));
        // A restock explains it, be it acknowledged or not, but only once.
        for outcome in [Outcome::Unknown, updated(5)] {
            let restock = event((12, 18), set_stock(5, "r"), outcome);
            let events = twice.clone().into_iter().chain([restock]);
            let orders = [order(1, 5, 0), order(2, 5, 0)];
            assert_eq!(judge(events.clone(), &found(orders.clone(), 0)), Ok(()));
            wrong(judge(events, &found(orders, 5)));
        }
    }

    #[test]
    fn a_negative_stock_is_found() {
        let below = 3_u64.wrapping_sub(4);
        let events = [event((10, 20), buy(4, "a"), ordered(1, 4, below))];
        let found = judge(events, &found([order(1, 4, below)], below));
        assert!(matches!(found, Err(Violation::StockOutOfRange { .. })), "{found:?}");
    }

    #[test]
    fn items_stay_what_they_are() {
        let mut renamed = found([], 5);
        renamed.items =
            BTreeMap::from([(number(1), Item { title: "x".into(), ..item(1, 5, COST) })]);
        let gone = Found::default();
        for found in [renamed, gone] {
            assert_eq!(judge([], &found), Err(Violation::ItemDiffers { item: number(1) }));
        }
    }
}
