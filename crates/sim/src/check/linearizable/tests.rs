//! Histories that are known to be good or bad, and random ones against a judge that tries all
//! orders there are.

use proptest::prelude::*;
use pygmy_protocol::order::{Order, OrderNumber};

use super::{super::history::testing::*, *};

/// Item 1 begins with `stock` copies. No orders are found but those that clients know of.
fn judge(stock: u64, events: impl IntoIterator<Item = Event>) -> Result<(), Violation> {
    judge_with(stock, events, [])
}

fn judge_with(
    stock: u64,
    events: impl IntoIterator<Item = Event>,
    found: impl IntoIterator<Item = Order>,
) -> Result<(), Violation> {
    let found = found.into_iter().map(|order| (order.order_number, order)).collect();
    check(&history(events), &stocked(stock), &found)
}

fn assert_bad(what: &str, stock: u64, events: impl IntoIterator<Item = Event>) -> String {
    match judge(stock, events) {
        Err(Violation::NotLinearizable { why, .. }) => why,
        other => panic!("{what}: {other:?}"),
    }
}

fn refused(code: Code) -> Outcome {
    Outcome::Refused(code)
}

fn buy_at(cost: u64, key: &str) -> Operation {
    let (item, key) = (number(1), key.parse().unwrap());
    Operation::Buy { item, quantity: 1, expected_cost: Some(cost), key }
}

fn set_cost(cost: u64, key: &str) -> Operation {
    Operation::SetCost { item: number(1), cost, key: key.parse().unwrap() }
}

#[test]
fn one_after_the_other() {
    let good = [
        event((1, 2), read(), seen(3)),
        event((3, 4), buy(2, "a"), ordered(1, 2, 1)),
        event((5, 6), buy(2, "b"), refused(Code::OutOfStock)),
        event((7, 8), set_stock(9, "c"), updated(9)),
        event((9, 10), set_cost(7, "d"), Outcome::Updated(item(1, 9, 7))),
        event((11, 12), buy_at(COST, "e"), refused(Code::CostChanged)),
        event((13, 14), buy_at(7, "f"), Outcome::NotDone),
        event((15, 16), read(), Outcome::Read(Some(item(1, 9, 7)))),
    ];
    assert_eq!(judge(3, good), Ok(()));
}

#[test]
fn the_last_copy_is_sold_once() {
    let twice = [
        event((1, 9), buy(1, "a"), ordered(1, 1, 0)),
        event((2, 8), buy(1, "b"), ordered(2, 1, 0)),
    ];
    assert_bad("double sale", 1, twice);
    let below = [event((1, 9), buy(2, "a"), ordered(1, 2, 1_u64.wrapping_sub(2)))];
    assert_bad("negative stock", 1, below);
}

#[test]
fn reads_are_neither_stale_nor_early() {
    let bought = || event((10, 20), buy(1, "a"), ordered(1, 1, 2));
    assert_eq!(judge(3, [bought(), event((15, 30), read(), seen(3))]), Ok(()));
    assert_eq!(judge(3, [bought(), event((5, 15), read(), seen(2))]), Ok(()));
    assert_bad("stale", 3, [bought(), event((21, 30), read(), seen(3))]);
    assert_bad("future", 3, [bought(), event((1, 9), read(), seen(2))]);
    // Each could be right, not both.
    let back = [event((11, 12), read(), seen(2)), event((13, 14), read(), seen(3))];
    assert_bad("back", 3, back.into_iter().chain([bought()]));
}

#[test]
fn refusals_have_a_reason() {
    let alone = [event((1, 2), buy(1, "a"), refused(Code::OutOfStock))];
    assert_bad("in stock", 1, alone);
    let cost = [event((1, 2), buy_at(COST, "a"), refused(Code::CostChanged))];
    assert_bad("the same cost", 1, cost);
    // The price is judged first.
    let both = [event((1, 2), buy_at(1, "a"), refused(Code::OutOfStock))];
    assert_bad("another cost", 0, both);
    let other = [event((1, 2), buy(1, "a"), refused(Code::BadQuantity))];
    assert_bad("no such refusal", 1, other);
    // Out of stock for a moment in between.
    let between = [
        event((1, 9), buy(1, "a"), ordered(1, 1, 0)),
        event((2, 8), buy(1, "b"), refused(Code::OutOfStock)),
        event((3, 9), set_stock(5, "c"), updated(5)),
        event((10, 11), read(), seen(5)),
    ];
    assert_eq!(judge(1, between), Ok(()));
}

#[test]
fn unknown_outcomes_happen_late_or_never() {
    let lost =
        |operation| Event { returned_ns: None, ..event((1, 2), operation, Outcome::Unknown) };
    let reads = |stocks: [u64; 3]| {
        (10..).step_by(10).zip(stocks).map(|(at, stock)| event((at, at + 5), read(), seen(stock)))
    };
    let bought = || lost(buy(1, "a"));
    for stocks in [[3, 3, 2], [2, 2, 2], [3, 3, 3]] {
        let found = judge_with(3, reads(stocks).chain([bought()]), [order(1, 1, 2)]);
        assert_eq!(found, Ok(()), "{stocks:?}");
    }
    assert_eq!(judge(3, reads([3, 3, 3]).chain([bought()])), Ok(()));
    assert_bad("not found at the end", 3, reads([3, 3, 2]).chain([bought()]));
    let twice = judge_with(3, reads([3, 2, 1]).chain([bought()]), [order(1, 1, 2)]);
    assert!(twice.is_err(), "once in the orders, twice in the stock");
    let late = event((12, 13), buy(1, "a"), Outcome::Unknown);
    let early = judge_with(3, [event((10, 11), read(), seen(2)), late], [order(1, 1, 2)]);
    assert!(early.is_err(), "before its call");

    let (one, five) = (lost(set_stock(1, "a")), lost(set_stock(5, "b")));
    for stocks in [[3, 1, 5], [5, 1, 1], [3, 3, 3], [5, 5, 5]] {
        let good = judge(3, reads(stocks).chain([one.clone(), five.clone()]));
        assert_eq!(good, Ok(()), "{stocks:?}");
    }
    assert_bad("undone", 3, reads([1, 5, 1]).chain([one, five]));
    let late = event((12, 13), set_stock(2, "a"), Outcome::Unknown);
    assert_bad("before its call", 3, [event((10, 11), read(), seen(2)), late]);
}

#[test]
fn the_tries_of_a_key_are_one_operation() {
    let tries = [
        event((1, 2), buy(1, "a"), Outcome::Unknown),
        event((20, 30), buy(1, "a"), ordered(1, 1, 2)),
    ];
    assert_eq!(judge(3, tries.clone().into_iter().chain([event((5, 6), read(), seen(2))])), Ok(()));
    let twice = [event((40, 41), read(), seen(1))];
    assert_bad("counted twice", 3, tries.into_iter().chain(twice));
}

#[test]
fn orders_are_numbered_as_they_are_made() {
    let swapped = [
        event((1, 9), buy(1, "a"), ordered(2, 1, 2)),
        event((1, 9), buy(1, "b"), ordered(1, 1, 1)),
    ];
    assert_bad("numbers", 3, swapped);
}

#[test]
fn other_items_are_left_alone() {
    let buys = [event((1, 2), buy(3, "a"), ordered(1, 3, 0))];
    let other = |outcome| event((3, 4), Operation::ReadItem { item: number(2) }, outcome);
    assert_eq!(judge(3, buys.clone().into_iter().chain([other(Outcome::Read(None))])), Ok(()));
    let conjured = other(Outcome::Read(Some(item(2, 1, 1))));
    assert_bad("no such item", 3, buys.clone().into_iter().chain([conjured]));
    let renamed = Item { title: "x".into(), ..item(1, 0, COST) };
    let renamed = event((3, 4), read(), Outcome::Read(Some(renamed)));
    assert_bad("another title", 3, buys.into_iter().chain([renamed]));
}

#[test]
fn the_explanation_is_about_the_place() {
    let mut events: Vec<Event> = (1..=50)
        .map(|n| event((n * 10, n * 10 + 5), buy(1, &format!("k{n}")), ordered(n, 1, 100 - n)))
        .collect();
    events.push(event((600, 601), read(), seen(51)));
    events.extend((61..70).map(|n| event((n * 10, n * 10 + 5), read(), seen(50))));
    let why = assert_bad("stale", 100, events);
    assert!(why.contains("50 of 60 answers"), "{why}");
    assert!(why.contains("buy 1 of item 1 (k50)"), "{why}");
    assert!(why.contains("stock 50, cost 500"), "{why}");
    assert!(why.contains("-> stock 51"), "{why}");
    assert!(why.lines().count() < 12, "{why}");
}

/// A run of a store that is in order, which can then be tampered with.
#[derive(Debug, Clone)]
struct Script {
    stock: u64,
    steps: Vec<Step>,
}

#[derive(Debug, Clone)]
struct Step {
    called_ns: u64,
    lasts_ns: u64,
    /// When it takes effect, in thousandths of the time that it lasts.
    point: u64,
    what: What,
    fate: Fate,
}

#[derive(Debug, Clone, Copy)]
enum What {
    Change(Change),
    Read,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Told,
    DoneUntold,
    LostUntold,
    NotDone,
}

impl Script {
    /// What the clients see.
    fn play(&self) -> (History, Orders) {
        let mut steps: Vec<(u64, usize)> = (self.steps.iter().enumerate())
            .map(|(n, step)| (step.called_ns * 1000 + step.lasts_ns * step.point, n))
            .collect();
        steps.sort_unstable();
        let (mut state, mut orders) = (State { stock: self.stock, cost: COST, last_order: 0 }, 0);
        let mut found = Orders::new();
        let events = steps.into_iter().map(|(_, n)| {
            let step = &self.steps[n];
            let done = matches!(step.fate, Fate::Told | Fate::DoneUntold);
            let before = state;
            if let (What::Change(change), true) = (step.what, done) {
                state = state.apply(change).unwrap_or(state);
                if is_sale(before, change) {
                    orders += 1;
                    let quantity = before.stock - state.stock;
                    let order = Order { cost: state.cost, ..order(orders, quantity, state.stock) };
                    found.insert(order.order_number, order);
                }
            }
            step.event(n, before, state, orders)
        });
        (History { events: events.collect() }, found)
    }
}

fn is_sale(before: State, change: Change) -> bool {
    matches!(change, Change::Buy { .. }) && before.apply(change).is_ok()
}

impl Step {
    fn event(&self, n: usize, before: State, after: State, orders: u64) -> Event {
        let key = format!("k{n}").parse().unwrap();
        let number = number(1);
        let (operation, told) = match self.what {
            What::Read => (read(), Outcome::Read(Some(item(1, before.stock, before.cost)))),
            What::Change(change) => {
                let updated = Outcome::Updated(item(1, after.stock, after.cost));
                match change {
                    Change::SetStock(stock) => {
                        (Operation::SetStock { item: number, stock, key }, updated)
                    }
                    Change::SetCost(cost) => {
                        (Operation::SetCost { item: number, cost, key }, updated)
                    }
                    Change::Buy { quantity, expected_cost } => {
                        let order =
                            Order { cost: before.cost, ..order(orders, quantity, after.stock) };
                        let told = match before.apply(change) {
                            Ok(_) => Outcome::Ordered { order, replayed: false },
                            Err(code) => Outcome::Refused(code),
                        };
                        (Operation::Buy { item: number, quantity, expected_cost, key }, told)
                    }
                }
            }
        };
        let outcome = match self.fate {
            Fate::Told => told,
            Fate::DoneUntold | Fate::LostUntold => Outcome::Unknown,
            Fate::NotDone => Outcome::NotDone,
        };
        event((self.called_ns, self.called_ns + self.lasts_ns), operation, outcome)
    }
}

/// Makes an answer wrong, or right for another state.
fn tamper(event: &mut Event) {
    match &mut event.outcome {
        Outcome::Ordered { order, .. } => order.stock += 1,
        Outcome::Updated(item) => item.cost += 1,
        Outcome::Read(Some(item)) => item.stock += 1,
        outcome @ Outcome::Refused(_) => *outcome = Outcome::Refused(Code::OutOfStock),
        Outcome::Read(None) | Outcome::Unknown | Outcome::NotDone => {}
    }
}

/// Tries every order of the events: the definition, word by word. The state is stock, cost and
/// the last order's number; `left` are the events that have not had their turn. The orders in
/// `found` are made, one after the other, and no others.
fn explainable(
    events: &[Event],
    left: &[usize],
    (stock, cost, last): (u64, u64, u64),
    found: &Orders,
) -> bool {
    let settled = |n: &usize| matches!(events[*n].outcome, Outcome::Unknown | Outcome::NotDone);
    let next = found.range(OrderNumber(last + 1)..).next();
    if left.iter().all(settled) && next.is_none() {
        return true;
    }
    left.iter().any(|&n| {
        let precedes =
            |other: &usize| !settled(other) && events[*other].end_ns() < events[n].called_ns;
        if left.iter().any(precedes) {
            return false;
        }
        let rest: Vec<usize> = left.iter().copied().filter(|other| *other != n).collect();
        let Some(mut after) = plainly(&events[n], (stock, cost, last)) else { return false };
        let sold = matches!(events[n].operation, Operation::Buy { .. }) && after.0 < stock;
        if sold {
            let Some((number, order)) = next else { return false };
            if (order.quantity, order.stock, order.cost) != (stock - after.0, after.0, cost) {
                return false;
            }
            let told = matches!(events[n].outcome, Outcome::Ordered { .. });
            if told && after.2 != number.0 {
                return false;
            }
            after.2 = number.0;
        }
        explainable(events, &rest, after, found)
    })
}

/// The state after an event, if it can happen as told.
fn plainly(event: &Event, (stock, cost, last): (u64, u64, u64)) -> Option<(u64, u64, u64)> {
    let told = |item: &Item| (item.stock, item.cost);
    match (&event.operation, &event.outcome) {
        (_, Outcome::NotDone) => Some((stock, cost, last)),
        (Operation::ReadItem { .. }, Outcome::Read(Some(item))) => {
            (told(item) == (stock, cost)).then_some((stock, cost, last))
        }
        (Operation::SetStock { stock, .. }, Outcome::Updated(item)) => {
            (told(item) == (*stock, cost)).then_some((*stock, cost, last))
        }
        (Operation::SetCost { cost, .. }, Outcome::Updated(item)) => {
            (told(item) == (stock, *cost)).then_some((stock, *cost, last))
        }
        (Operation::SetStock { stock, .. }, Outcome::Unknown) => Some((*stock, cost, last)),
        (Operation::SetCost { cost, .. }, Outcome::Unknown) => Some((stock, *cost, last)),
        (Operation::Buy { quantity, expected_cost, .. }, outcome) => {
            let cheap = expected_cost.is_some_and(|expected| expected != cost);
            let short = stock < *quantity;
            match outcome {
                Outcome::Refused(Code::CostChanged) => cheap.then_some((stock, cost, last)),
                Outcome::Refused(_) => (short && !cheap).then_some((stock, cost, last)),
                Outcome::Unknown => (!short && !cheap).then(|| (stock - quantity, cost, last)),
                Outcome::Ordered {
                    order: Order { order_number: OrderNumber(made), .. }, ..
                } if short || cheap || *made <= last => None,
                Outcome::Ordered { order, .. } => {
                    let right = (order.stock + quantity, order.cost) == (stock, cost);
                    right.then_some((order.stock, cost, order.order_number.0))
                }
                _ => None,
            }
        }
        _ => None,
    }
}

fn steps(calls_ns: u64, lasts_ns: u64) -> impl Strategy<Value = Step> {
    let cost = COST..COST + 2;
    let what = prop_oneof![
        4 => (1..3_u64, prop::option::weighted(0.3, cost.clone())).prop_map(
            |(quantity, expected_cost)| What::Change(Change::Buy { quantity, expected_cost })
        ),
        2 => (0..4_u64).prop_map(|stock| What::Change(Change::SetStock(stock))),
        1 => cost.prop_map(|cost| What::Change(Change::SetCost(cost))),
        2 => Just(What::Read),
    ];
    let fate = prop_oneof![
        6 => Just(Fate::Told),
        2 => Just(Fate::DoneUntold),
        1 => Just(Fate::LostUntold),
        1 => Just(Fate::NotDone),
    ];
    (0..calls_ns, 1..lasts_ns, 0..=1000_u64, what, fate).prop_map(
        |(called_ns, lasts_ns, point, what, fate)| Step { called_ns, lasts_ns, point, what, fate },
    )
}

fn scripts(length: std::ops::Range<usize>) -> impl Strategy<Value = Script> {
    (0..4_u64, prop::collection::vec(steps(30, 25), length))
        .prop_map(|(stock, steps)| Script { stock, steps })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Which lost buy made an order is only told apart by quantity, so that the bound on its time
    /// is exact: buys that may get lost name no price.
    #[test]
    fn it_agrees_with_trying_everything(mut script in scripts(1..8), wrong in wrong()) {
        for step in &mut script.steps {
            if let (What::Change(Change::Buy { expected_cost, .. }), Fate::DoneUntold | Fate::LostUntold) = (&mut step.what, step.fate) {
                *expected_cost = None;
            }
        }
        agrees(&script, wrong)?;
    }
}

fn wrong() -> impl Strategy<Value = Option<prop::sample::Index>> {
    prop::option::of(any::<prop::sample::Index>())
}

fn agrees(script: &Script, wrong: Option<prop::sample::Index>) -> Result<(), TestCaseError> {
    let (mut history, mut orders) = script.play();
    if let Some(wrong) = wrong {
        let length = history.events.len();
        let event = &mut history.events[wrong.index(length)];
        tamper(event);
        // That an order is the same at the end is not for this check.
        if let Outcome::Ordered { order, .. } = &event.outcome {
            orders.insert(order.order_number, order.clone());
        }
    }
    let all: Vec<usize> = (0..history.events.len()).collect();
    let expected = explainable(&history.events, &all, (script.stock, COST, 0), &orders);
    let found = check(&history, &stocked(script.stock), &orders);
    prop_assert_eq!(found.is_ok(), expected, "{:?}", found);
    prop_assert!(expected || wrong.is_some());
    Ok(())
}

/// Ten clients at once on one item. Nothing here is random but the numbers of the generator.
fn hot_item(requests: u64, untold_percent: u64) -> Script {
    let mut random = 7_u64;
    let mut below = |limit: u64| {
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % limit
    };
    let steps = (0..requests).map(|n| {
        let what = match below(20) {
            0 => What::Change(Change::SetStock(below(50))),
            1 => What::Change(Change::SetCost(COST + below(2))),
            2..=5 => What::Read,
            6 => What::Change(Change::Buy { quantity: 1, expected_cost: Some(COST) }),
            _ => What::Change(Change::Buy { quantity: 1 + below(3), expected_cost: None }),
        };
        let fate = match below(100) {
            untold if untold < untold_percent && below(2) == 0 => Fate::LostUntold,
            untold if untold < untold_percent => Fate::DoneUntold,
            _ => Fate::Told,
        };
        let (lasts_ns, point) = (1 + below(200), below(1000));
        Step { called_ns: n * 10 + below(10), lasts_ns, point, what, fate }
    });
    Script { stock: 50, steps: steps.collect() }
}

/// The effort in configurations, which do not depend on the machine.
fn effort(script: &Script, history: &History, orders: &Orders) -> (Verdict, usize) {
    let found = Search::new(history, &item(1, script.stock, COST), orders).run();
    (found.verdict, found.configurations)
}

#[test]
fn a_hot_item_takes_little_effort() {
    for untold_percent in [0, 2, 10, 50] {
        let script = hot_item(2000, untold_percent);
        let (history, orders) = script.play();
        let (verdict, configurations) = effort(&script, &history, &orders);
        assert!(matches!(verdict, Verdict::Linearizable), "{untold_percent} % untold");
        assert!(configurations < 50_000, "{untold_percent} % untold: {configurations}");
    }
}

#[test]
fn a_fault_on_a_hot_item_is_found() {
    for untold_percent in [0, 2, 10] {
        let script = hot_item(2000, untold_percent);
        let (mut history, orders) = script.play();
        let mut reads = history.events.iter_mut().skip(1500);
        // No update, lost or not, has set such a stock.
        let wrong = reads.find_map(|event| match &mut event.outcome {
            Outcome::Read(Some(item)) => Some(item),
            _ => None,
        });
        wrong.unwrap().stock += 1000;
        let (verdict, configurations) = effort(&script, &history, &orders);
        let Verdict::Stuck(why) = verdict else { panic!("{untold_percent} % untold: not found") };
        assert!(why.lines().count() < 40, "{why}");
        assert!(configurations < 50_000, "{untold_percent} % untold: {configurations}");
    }
}
