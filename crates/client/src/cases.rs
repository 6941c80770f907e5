//! The test cases of the reference design, run against a store that is up: search, lookup, buy,
//! cost update, stock update. Each compares what the store does with what it should do.
//!
//! The store may be in use: expectations about stock allow for other buyers, and what an update
//! changed is taken back afterwards by the same difference. The copy that is bought stays bought.

use std::{
    fmt,
    io::{self, Write},
};

use pygmy_protocol::{
    Env, IdempotencyKey,
    item::{Item, MAX_NUMBER},
    order::BuyBody,
    time::rfc3339,
};

use crate::{
    operator::Operator,
    store::{Store, StoreError},
};

/// By how much the updates change stock and cost.
const DIFFERENCE: u64 = 7;

/// How one case went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// `search`, `lookup`, `buy`, `cost update` or `stock update`.
    pub name: &'static str,
    /// What the store should do.
    pub expectation: String,
    /// What it did, and whether that is what it should do.
    pub result: Result<String, String>,
}

impl Case {
    /// Whether the store did as expected.
    pub fn passed(&self) -> bool {
        self.result.is_ok()
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (verdict, found) = match &self.result {
            Ok(found) => ("PASS", found),
            Err(found) => ("FAIL", found),
        };
        writeln!(f, "{verdict} {}", self.name)?;
        writeln!(f, "     expected: {}", self.expectation)?;
        write!(f, "     found:    {found}")
    }
}

/// Runs all cases on the first item that the store has in stock and writes them to `log`, with a
/// last line that counts them.
///
/// # Errors
/// Those of `log` only: whatever else goes wrong fails a case.
pub async fn run(
    env: &Env,
    store: &Store,
    operator: &Operator,
    mut log: impl Write,
) -> io::Result<Vec<Case>> {
    writeln!(log, "Test cases, {}\n", rfc3339(env.wall_ms()))?;
    let mut cases = Vec::new();
    match pick(store).await {
        Ok(item) => {
            cases.push(search(store, &item).await);
            cases.push(lookup(store, operator, &item).await);
            cases.push(buy(env, store, &item).await);
            cases.push(cost_update(store, operator, &item).await);
            cases.push(stock_update(store, operator, &item).await);
        }
        Err(found) => {
            let expectation = "the store has an item in stock to test with".to_owned();
            cases.push(Case { name: "search", expectation, result: Err(found) });
        }
    }
    for case in &cases {
        writeln!(log, "{case}\n")?;
    }
    let passed = cases.iter().filter(|case| case.passed()).count();
    writeln!(log, "{passed} passed, {} failed", cases.len() - passed)?;
    log.flush()?;
    Ok(cases)
}

async fn pick(store: &Store) -> Result<Item, String> {
    for topic in store.topics().await.map_err(failed)?.topics {
        let page = store.search(&topic.topic, None, None).await.map_err(failed)?;
        let in_stock = page.items.into_iter().find(|item| item.stock > 0);
        if let Some(item) = in_stock {
            return Ok(item);
        }
    }
    Err("no item is in stock; set one with `pygmy admin set-stock`".to_owned())
}

async fn search(store: &Store, item: &Item) -> Case {
    let expectation = format!(
        "a search for {:?} finds item {}, only that topic, in order",
        item.topic, item.item_number
    );
    let result = async {
        let page = store.search(&item.topic, None, None).await.map_err(failed)?;
        let numbers: Vec<_> = page.items.iter().map(|i| i.item_number).collect();
        let found = format!("{} items", numbers.len());
        let one_topic = page.items.iter().all(|i| i.topic == item.topic);
        expect(numbers.is_sorted() && one_topic && numbers.contains(&item.item_number), found)
    };
    Case { name: "search", expectation, result: result.await }
}

async fn lookup(store: &Store, operator: &Operator, item: &Item) -> Case {
    let expectation = format!(
        "a lookup of item {} gives what the catalog has: {:?}",
        item.item_number, item.title
    );
    let result = async {
        let seen = store.lookup(item.item_number).await.map_err(failed)?;
        let stored = operator.query(item.item_number).await.map_err(failed)?;
        // Copies may be sold between the two reads.
        let same = Item { stock: seen.stock, ..stored.clone() } == seen;
        expect(same && stored.stock <= seen.stock, describe(&seen))
    };
    Case { name: "lookup", expectation, result: result.await }
}

async fn buy(env: &Env, store: &Store, item: &Item) -> Case {
    let number = item.item_number;
    let expectation = format!(
        "a buy of one copy of item {number} gives an order, takes the copy out of the stock, and \
         counts once however often it is sent"
    );
    let result = async {
        let before = store.lookup(number).await.map_err(failed)?;
        let body = BuyBody { quantity: 1, expected_cost: Some(before.cost) };
        let key = IdempotencyKey::random(env);
        let bought = store.buy(number, body, key.clone()).await.map_err(failed)?;
        let again = store.buy(number, body, key).await.map_err(failed)?;
        let kept = store.order(bought.order.order_number).await.map_err(failed)?;
        let after = store.lookup(number).await.map_err(failed)?;
        let found = format!(
            "order {}, stock {} before and {} after; sent again: order {}",
            kept.order_number, before.stock, after.stock, again.order.order_number
        );
        let once = again.replayed && again.order == bought.order && kept == bought.order;
        expect(once && kept.quantity == 1 && after.stock < before.stock, found)
    };
    Case { name: "buy", expectation, result: result.await }
}

async fn cost_update(store: &Store, operator: &Operator, item: &Item) -> Case {
    let number = item.item_number;
    let expectation =
        format!("a lookup right after an update of the cost of item {number} sees the new cost");
    let result = async {
        let before = store.lookup(number).await.map_err(failed)?;
        let cost = different(before.cost);
        operator.set_cost(number, cost).await.map_err(failed)?;
        let after = store.lookup(number).await;
        // A price that somebody else set in the meantime is left alone.
        let now = operator.query(number).await.map_err(failed)?;
        if now.cost == cost {
            operator.set_cost(number, before.cost).await.map_err(failed)?;
        }
        let after = after.map_err(failed)?;
        let found = format!("cost {} before, {cost} set, {} seen", before.cost, after.cost);
        expect(after.cost == cost, found)
    };
    Case { name: "cost update", expectation, result: result.await }
}

async fn stock_update(store: &Store, operator: &Operator, item: &Item) -> Case {
    let number = item.item_number;
    let expectation =
        format!("a lookup right after an update of the stock of item {number} sees the new stock");
    let result = async {
        let before = store.lookup(number).await.map_err(failed)?;
        let stock = different(before.stock);
        let updated = operator.set_stock(number, stock).await.map_err(failed)?;
        let after = store.lookup(number).await;
        let now = operator.query(number).await.map_err(failed)?.stock;
        let restored = if stock > before.stock {
            now.saturating_sub(DIFFERENCE)
        } else {
            now.saturating_add(DIFFERENCE)
        };
        operator.set_stock(number, restored).await.map_err(failed)?;
        let after = after.map_err(failed)?.stock;
        let found = format!("stock {} before, {stock} set, {after} seen", before.stock);
        // Other buyers can only have made it less.
        let in_between = after <= stock && after > stock.saturating_sub(DIFFERENCE);
        expect(updated.stock == stock && in_between, found)
    };
    Case { name: "stock update", expectation, result: result.await }
}

/// Another value, [`DIFFERENCE`] away and within the range of stock and cost.
fn different(value: u64) -> u64 {
    if value <= MAX_NUMBER - DIFFERENCE { value + DIFFERENCE } else { value - DIFFERENCE }
}

fn expect(as_expected: bool, found: String) -> Result<String, String> {
    if as_expected { Ok(found) } else { Err(found) }
}

fn describe(item: &Item) -> String {
    format!("{:?}, stock {}, cost {}", item.title, item.stock, item.cost)
}

fn failed(error: StoreError) -> String {
    format!("the request failed: {error}")
}
