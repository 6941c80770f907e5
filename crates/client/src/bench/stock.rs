//! The items of a run: made before it, counted after it.

use pygmy_protocol::{
    env::Env,
    item::{Item, ItemNumber},
};

use super::workload::{ItemNumbers, Workload};
use crate::{operator::Operator, store::StoreError};

/// Items of one request: some 50 KB of JSON, below the `max_body_bytes` of every server.
const BATCH_ITEMS: u32 = 400;
/// The price of a copy; nobody pays it.
const COST: u64 = 2_000;

/// A topic that no other run has.
pub fn fresh_topic(env: &Env) -> String {
    format!("bench-{}", env.random.hex(8))
}

/// The stock of a run's items.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stock {
    /// How many items there are.
    pub items: u64,
    /// Copies of all of them.
    pub copies: u64,
}

/// Makes the items, with `copies` of each. `progress` hears how many there are.
///
/// # Errors
/// See [`StoreError`].
pub async fn make_items(
    operator: &Operator,
    workload: &Workload,
    copies: u64,
    mut progress: impl FnMut(u32),
) -> Result<(), StoreError> {
    let ItemNumbers { first, count } = workload.numbers;
    for from in (0..count).step_by(BATCH_ITEMS as usize) {
        let to = count.min(from + BATCH_ITEMS);
        let items = (from..to).map(|index| {
            Ok(Item {
                item_number: ItemNumber::try_from(first + u64::from(index))?,
                title: format!("Benchmark, volume {}", index + 1),
                topic: workload.topic.clone(),
                stock: copies,
                cost: COST,
            })
        });
        let items = items.collect::<Result<Vec<_>, _>>().map_err(StoreError::Problem)?;
        operator.add_items(&items).await?;
        progress(to);
    }
    Ok(())
}

/// Counts the items and their copies, as the catalog has them: past the front ends' caches.
///
/// # Errors
/// See [`StoreError`].
pub async fn count_stock(operator: &Operator, topic: &str) -> Result<Stock, StoreError> {
    let mut stock = Stock { items: 0, copies: 0 };
    let mut cursor = None;
    loop {
        let page = operator.page(topic, cursor.as_deref()).await?;
        stock.items += page.items.len() as u64;
        stock.copies += page.items.iter().map(|item| item.stock).sum::<u64>();
        cursor = page.next;
        if cursor.is_none() {
            return Ok(stock);
        }
    }
}
