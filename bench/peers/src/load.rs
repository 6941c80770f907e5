//! A closed loop of buyers, as `pygmy bench` has it.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use clap::Args;
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::timeout};

/// How much longer than planned a run may take before it counts as stuck.
const GRACE: Duration = Duration::from_secs(30);
/// Latencies from a microsecond to a minute, to three digits.
const SLOWEST_US: u64 = 60_000_000;
const DIGITS: u8 = 3;
/// A day.
const SECONDS_MAX: u64 = 86_400;

/// What is asked for.
#[derive(Args, Clone, Debug)]
pub(crate) struct Load {
    /// Buyers; each has a sale under way at all times
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) connections: u32,
    /// All equally wanted
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) items: u32,
    /// Copies of each item
    #[arg(long, default_value_t = 1_000_000)]
    pub(crate) stock: u64,
    /// Not measured
    #[arg(long, value_parser = clap::value_parser!(u64).range(..=SECONDS_MAX))]
    pub(crate) warm_up: u64,
    /// Measured
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=SECONDS_MAX))]
    pub(crate) seconds: u64,
}

/// Somebody who buys, over a connection of their own.
pub(crate) trait Buyer: Send + 'static {
    /// Buys a copy of item `item` (from 0) under `key`, and gives how many further tries that took.
    /// The sale is durable on two servers of three.
    ///
    /// # Errors
    /// Anything else than a sale: it ends the run.
    fn buy(&mut self, item: u32, key: &str) -> impl Future<Output = anyhow::Result<u64>> + Send;
}

/// What one buyer, or all, have done.
struct Tally {
    /// Warm-up included.
    sales: u64,
    /// Of the sales that were measured.
    latency_us: Histogram<u64>,
    retries: u64,
}

impl Tally {
    fn new() -> anyhow::Result<Tally> {
        let latency_us = Histogram::new_with_bounds(1, SLOWEST_US, DIGITS)?;
        Ok(Tally { sales: 0, latency_us, retries: 0 })
    }
}

/// What came of a run.
pub(crate) struct Outcome {
    /// Sales that were acknowledged, warm-up included.
    pub(crate) sales: u64,
    json: Value,
}

impl Outcome {
    /// As JSON, if `left` copies left of those that `load` began with are what must be left.
    pub(crate) fn checked(self, load: &Load, left: u64) -> anyhow::Result<Value> {
        let expected = u64::from(load.items) * load.stock - self.sales;
        ensure!(left == expected, "{left} copies are left, and not {expected}");
        Ok(self.json)
    }
}

/// Lets `buyers` buy.
pub(crate) async fn drive<B: Buyer>(buyers: Vec<B>, load: &Load) -> anyhow::Result<Outcome> {
    let start = Instant::now() + Duration::from_secs(load.warm_up);
    let end = start + Duration::from_secs(load.seconds);
    let mut tasks = JoinSet::new();
    for buyer in buyers {
        tasks.spawn(keep_buying(buyer, load.items, start, end));
    }
    let mut total = Tally::new()?;
    let limit = Duration::from_secs(load.warm_up + load.seconds) + GRACE;
    timeout(limit, async {
        while let Some(tally) = tasks.join_next().await {
            let tally = tally??;
            total.sales += tally.sales;
            total.latency_us.add(&tally.latency_us)?;
            total.retries += tally.retries;
        }
        anyhow::Ok(())
    })
    .await
    .context("a sale does not end")??;

    let done = total.latency_us.len();
    ensure!(done > 0, "nothing was sold");
    let at = |quantile| total.latency_us.value_at_quantile(quantile) as f64 / 1e3;
    let json = json!({
        "done": done,
        "perSecond": done as f64 / load.seconds as f64,
        "p50Ms": at(0.5),
        "p99Ms": at(0.99),
        "retries": total.retries,
    });
    Ok(Outcome { sales: total.sales, json })
}

/// A sale is measured if it was asked for between `start` and `end`.
async fn keep_buying<B: Buyer>(
    mut buyer: B,
    items: u32,
    start: Instant,
    end: Instant,
) -> anyhow::Result<Tally> {
    let mut random = fastrand::Rng::new();
    // As long as the keys of Pygmy's clients: 32 characters.
    let prefix = random.u64(..);
    let mut tally = Tally::new()?;
    loop {
        let asked_at = Instant::now();
        if asked_at >= end {
            return Ok(tally);
        }
        let key = format!("{prefix:016x}{:016}", tally.sales);
        tally.retries += buyer.buy(random.u32(..items), &key).await?;
        tally.sales += 1;
        if asked_at >= start {
            let micros = u64::try_from(asked_at.elapsed().as_micros())?;
            tally.latency_us.saturating_record(micros.max(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Instantly;

    impl Buyer for Instantly {
        async fn buy(&mut self, _item: u32, key: &str) -> anyhow::Result<u64> {
            assert_eq!(key.len(), 32);
            tokio::task::yield_now().await;
            Ok(1)
        }
    }

    #[tokio::test]
    async fn sales_are_counted_and_must_add_up() {
        let load = Load { connections: 2, items: 7, stock: 1 << 40, warm_up: 0, seconds: 1 };
        for missing in [0, 1] {
            let outcome = drive(vec![Instantly, Instantly], &load).await.unwrap();
            let left = 7 * load.stock - outcome.sales - missing;
            let (sales, checked) = (outcome.sales, outcome.checked(&load, left));
            if missing == 0 {
                let json = checked.unwrap();
                assert_eq!(json["retries"], sales);
                assert!(json["done"].as_u64().unwrap() <= sales);
            } else {
                checked.unwrap_err();
            }
        }
    }
}
