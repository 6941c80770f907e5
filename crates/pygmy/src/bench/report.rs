//! What a run came to: as JSON for programs, as a table for people.

use std::{collections::BTreeMap, time::Duration};

use hdrhistogram::Histogram;
use pygmy_client::bench::{Kind, KindTally, Stock, Tally, Workload};
use serde::Serialize;

use super::{Run, options::BenchArgs};
use crate::print::{self, Column};

/// Everything that was measured. Field names are part of the interface; times are in the unit that
/// ends their name.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    /// `closed` or `open`.
    #[serde(rename = "loop")]
    loop_kind: &'static str,
    /// What an open loop was to send, over all connections.
    target_per_second: Option<f64>,
    connections: u32,
    threads: u32,
    servers: Vec<String>,
    /// As `--mix` takes it.
    mix: String,
    topic: String,
    first_item_number: u64,
    items: u32,
    copies_per_item: u64,
    /// The exponent of Zipf's law; none if all items are wanted equally.
    zipf: Option<f64>,
    warm_up_seconds: u32,
    /// For how long it was to be measured.
    seconds: u32,
    /// For how long it was measured: less than asked for if the run was interrupted.
    measured_seconds: f64,
    interrupted: bool,
    /// `lookup`, `search` and `buy` as far as the mix has them, and `all`.
    requests: BTreeMap<&'static str, Requests>,
    /// Requests of an open loop that were due while it was measured and were never sent.
    unsent: u64,
    /// Buys that were sent again with their key, the warm-up's too.
    buy_retries: u64,
    connects: u64,
    failed_connects: u64,
    /// How many of them, by what was in the way.
    connect_failures: BTreeMap<String, u64>,
    /// Connections that the server closed, or that were closed because no answer came.
    broken_connections: u64,
    sales: Sales,
}

/// The requests of one kind that were due while it was measured.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Requests {
    /// Answered with 200; buys with 201.
    done: u64,
    done_per_second: f64,
    failed: u64,
    /// How many, by status and code, or by what happened to the connection.
    failures: BTreeMap<String, u64>,
    /// Of those done; none if there are none.
    latency_ms: Option<Latency>,
}

#[derive(Debug, Serialize)]
struct Latency {
    mean: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    #[serde(rename = "p99.9")]
    p999: f64,
    max: f64,
}

/// What was sold, in the warm-up and after.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Sales {
    /// Buys answered 201, each key once.
    acknowledged: u64,
    /// Buys of which the store has not said what became of them.
    unknown: u64,
    stock_before: u64,
    /// None if it could not be counted; so are the next.
    stock_after: Option<u64>,
    /// The difference.
    sold: Option<u64>,
    /// Whether `sold` is `acknowledged`, and `unknown` more at most, and every item is there.
    adds_up: Option<bool>,
}

impl Report {
    pub(super) fn new(
        args: &BenchArgs,
        servers: Vec<String>,
        workload: &Workload,
        run: &Run,
        (before, after): (Stock, Option<Stock>),
    ) -> Report {
        let Run { tally, measured, interrupted } = run;
        let asked = Kind::ALL.into_iter().filter(|kind| args.mix.share(*kind) > 0);
        let of_kind = |kind: Kind| (kind.name(), Requests::new(tally.kind(kind), *measured));
        let mut requests: BTreeMap<_, _> = asked.map(of_kind).collect();
        requests.insert("all", Requests::new(&tally.all(), *measured));
        Report {
            loop_kind: if args.rate.is_some() { "open" } else { "closed" },
            target_per_second: args.rate,
            connections: args.connections,
            threads: args.threads,
            servers,
            mix: args.mix.to_string(),
            topic: workload.topic.clone(),
            first_item_number: workload.numbers.first,
            items: args.items,
            copies_per_item: args.stock,
            zipf: args.zipf,
            warm_up_seconds: args.warm_up,
            seconds: args.seconds,
            measured_seconds: measured.as_secs_f64(),
            interrupted: *interrupted,
            requests,
            unsent: tally.unsent,
            buy_retries: tally.buy_retries,
            connects: tally.connects,
            failed_connects: tally.failed_connects.values().sum(),
            connect_failures: tally.failed_connects.clone(),
            broken_connections: tally.broken,
            sales: Sales::new(tally, before, after),
        }
    }

    /// What makes the run a failure; `None` if nothing does.
    pub(super) fn complaint(&self) -> Option<String> {
        let Sales { acknowledged, unknown, sold, adds_up, .. } = self.sales;
        if let (Some(false), Some(sold)) = (adds_up, sold) {
            return Some(format!(
                "the stock does not add up: {sold} copies are gone, {acknowledged} buys were \
                 answered 201 and the outcome of {unknown} is not known"
            ));
        }
        let nothing = self.requests.get("all").is_none_or(|all| all.done == 0);
        nothing.then(|| "no request succeeded".to_owned())
    }

    pub(super) fn print(&self) -> anyhow::Result<()> {
        print::line(self.headline())?;
        print::line("")?;
        self.print_table()?;
        print::line("")?;
        for (kind, requests) in self.requests.iter().filter(|(kind, _)| **kind != "all") {
            for (failure, count) in &requests.failures {
                print::line(format_args!("failed: {kind}, {failure}: {}", grouped(*count)))?;
            }
        }
        for remark in self.remarks() {
            print::line(remark)?;
        }
        Ok(print::line(self.sales.sentence())?)
    }

    fn headline(&self) -> String {
        let pace = match self.target_per_second {
            None => format!("closed loop, {} connections", self.connections),
            Some(rate) => {
                format!("open loop, {rate} requests/s over {} connections", self.connections)
            }
        };
        let wanted = match self.zipf {
            None => "equally wanted".to_owned(),
            Some(exponent) => format!("wanted by Zipf's law ({exponent})"),
        };
        format!(
            "{pace}, {:.1} s after {} s of warm-up\n{}, {} items {wanted}, at {}",
            self.measured_seconds,
            self.warm_up_seconds,
            self.mix,
            grouped(u64::from(self.items)),
            self.servers.join(", "),
        )
    }

    fn print_table(&self) -> anyhow::Result<()> {
        let columns = [
            Column::Text("REQUEST"),
            Column::Number("DONE"),
            Column::Number("PER S"),
            Column::Number("P50 MS"),
            Column::Number("P90 MS"),
            Column::Number("P99 MS"),
            Column::Number("P99.9 MS"),
            Column::Number("MAX MS"),
            Column::Number("FAILED"),
        ];
        let rows = ["lookup", "search", "buy", "all"]
            .into_iter()
            .filter_map(|kind| Some((kind, self.requests.get(kind)?)))
            .map(|(kind, requests)| requests.row(kind));
        Ok(print::table(&columns, rows)?)
    }

    fn remarks(&self) -> Vec<String> {
        let mut remarks = Vec::new();
        if self.interrupted {
            remarks.push(format!("it was interrupted; {} s were to be measured", self.seconds));
        }
        if self.unsent > 0 {
            remarks.push(format!(
                "unsent: {}; the store, or this machine, did not keep up, and the latencies are \
                 those of the others",
                grouped(self.unsent)
            ));
        }
        let counts = [
            ("buys sent again with their key", self.buy_retries),
            ("broken connections", self.broken_connections),
        ];
        for (what, count) in counts.into_iter().filter(|(_, count)| *count > 0) {
            remarks.push(format!("{what}: {}", grouped(count)));
        }
        remarks.extend(self.connect_failures.iter().map(|(why, count)| {
            format!("connections that could not be opened: {} ({why})", grouped(*count))
        }));
        remarks
    }
}

impl Requests {
    fn new(tally: &KindTally, measured: Duration) -> Requests {
        let done = tally.done();
        Requests {
            done,
            done_per_second: rounded(done as f64 / measured.as_secs_f64().max(1e-9)),
            failed: tally.failed(),
            failures: tally.failures.clone(),
            latency_ms: (done > 0).then(|| Latency::new(&tally.latency_ns)),
        }
    }

    fn row(&self, kind: &str) -> Vec<String> {
        let mut row = vec![kind.to_owned(), grouped(self.done)];
        row.push(grouped(self.done_per_second.round() as u64));
        match &self.latency_ms {
            Some(Latency { p50, p90, p99, p999, max, .. }) => {
                row.extend([p50, p90, p99, p999, max].map(|ms| milliseconds(*ms)));
            }
            None => row.extend(["-"; 5].map(str::to_owned)),
        }
        row.push(grouped(self.failed));
        row
    }
}

impl Latency {
    fn new(latency_ns: &Histogram<u64>) -> Latency {
        let at = |quantile| rounded(latency_ns.value_at_quantile(quantile) as f64 / 1e6);
        Latency {
            mean: rounded(latency_ns.mean() / 1e6),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: at(1.0),
        }
    }
}

impl Sales {
    fn new(tally: &Tally, before: Stock, after: Option<Stock>) -> Sales {
        let Tally { sales: acknowledged, unknown, .. } = *tally;
        let possible = acknowledged..=acknowledged + unknown;
        let adds_up = |after: Stock| {
            // More copies than before would be as wrong as too few.
            let sold = before.copies.checked_sub(after.copies);
            before.items == after.items && sold.is_some_and(|sold| possible.contains(&sold))
        };
        Sales {
            acknowledged,
            unknown,
            stock_before: before.copies,
            stock_after: after.map(|after| after.copies),
            sold: after.map(|after| before.copies.saturating_sub(after.copies)),
            adds_up: after.map(adds_up),
        }
    }

    fn sentence(&self) -> String {
        let known = match self.unknown {
            0 => String::new(),
            unknown => format!(" and {} unknown outcomes", grouped(unknown)),
        };
        let stock = match (self.sold, self.adds_up) {
            (Some(sold), Some(adds_up)) => {
                let verdict = if adds_up { "it adds up" } else { "IT DOES NOT ADD UP" };
                format!("{} copies gone from stock: {verdict}", grouped(sold))
            }
            _ => "the stock was not counted".to_owned(),
        };
        let acknowledged = grouped(self.acknowledged);
        format!("sales: {acknowledged} answers 201{known} (warm-up included), {stock}")
    }
}

/// To a thousandth: beyond that is noise.
fn rounded(number: f64) -> f64 {
    (number * 1e3).round() / 1e3
}

/// With three digits that count.
pub(super) fn milliseconds(ms: f64) -> String {
    match ms {
        0.0..1.0 => format!("{ms:.3}"),
        1.0..10.0 => format!("{ms:.2}"),
        10.0..100.0 => format!("{ms:.1}"),
        _ => format!("{ms:.0}"),
    }
}

/// With a comma for each thousand.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_people() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(grouped(number), text);
        }
        for (ms, text) in [(0.1234, "0.123"), (1.2345, "1.23"), (12.345, "12.3"), (123.4, "123")] {
            assert_eq!(milliseconds(ms), text);
        }
    }

    #[test]
    fn sales_add_up_or_do_not() {
        let stock = |items, copies| Stock { items, copies };
        let mut tally = Tally::default();
        (tally.sales, tally.unknown) = (5, 2);
        let sales = |after| Sales::new(&tally, stock(7, 100), after);
        let adds_up = |after| sales(Some(after)).adds_up == Some(true);
        assert!([95, 94, 93].iter().all(|copies| adds_up(stock(7, *copies))));
        assert!(![96, 92, 101].iter().any(|copies| adds_up(stock(7, *copies))));
        assert!(!adds_up(stock(6, 95)), "an item is gone");
        assert_eq!(sales(None).adds_up, None);
        let told = "sales: 5 answers 201 and 2 unknown outcomes (warm-up included), the stock was \
                    not counted";
        assert_eq!(sales(None).sentence(), told);
    }
}
