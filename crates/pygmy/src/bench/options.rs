//! The arguments of `pygmy bench`.

use std::path::PathBuf;

use clap::Args;
use pygmy_client::bench::{ITEMS_MAX, Mix};

use crate::cli::OperatorArgs;

/// More of them than the ports of one address.
const CONNECTIONS_MAX: i64 = 50_000;
/// A day.
const SECONDS_MAX: i64 = 86_400;
const THREADS_MAX: i64 = 256;
/// Ten times what a store was seen to do.
const RATE_MAX: f64 = 1_000_000.0;
/// Beyond this all requests are for one item.
const ZIPF_MAX: f64 = 10.0;
/// So many copies of so many items that their sum is still a number of the wire.
const STOCK_MAX: i64 = 1_000_000_000;

/// Measure how much a running store does, and how fast
///
/// Makes items of its own in a fresh topic, which stay in the store; needs a balancer and the
/// cluster's secret for that. Every buy carries a key and asks for one copy; only 201 counts as a
/// sale. After the run the stock is counted: a sale that does not add up is an error.
///
/// Without --rate the loop is closed: each connection asks again as soon as it has its answer.
/// With --rate it is open: requests are due by the clock, and latency counts from when a request
/// was due, so that a store that stalls cannot hide it. A request that waits for a connection for
/// more than 5 s, or still waits at the end, is not sent and counted as unsent.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pygmy bench                                  64 connections, 10 s, mostly lookups
  pygmy bench --mix buy=1 --items 10000        buys only, spread over 10,000 items
  pygmy bench --rate 5000 --plot latency.svg   5,000 requests a second, and their latencies")]
pub(crate) struct BenchArgs {
    /// A front end; repeat it, or separate URLs with commas, to spread the connections over
    /// several [default: those of --config]
    #[arg(long, value_name = "URL", env = "PYGMY_SERVER", value_delimiter = ',')]
    pub(crate) server: Vec<String>,
    /// Connections; each has one request under way at most
    #[arg(
        long, value_name = "N", default_value_t = 64,
        value_parser = clap::value_parser!(u32).range(1..=CONNECTIONS_MAX)
    )]
    pub(crate) connections: u32,
    /// How long to measure
    #[arg(
        long, value_name = "SECONDS", default_value_t = 10,
        value_parser = clap::value_parser!(u32).range(1..=SECONDS_MAX)
    )]
    pub(crate) seconds: u32,
    /// How long to ask before that without measuring
    #[arg(
        long, value_name = "SECONDS", default_value_t = 2,
        value_parser = clap::value_parser!(u32).range(0..=SECONDS_MAX)
    )]
    pub(crate) warm_up: u32,
    /// Requests a second over all connections, by the clock (open loop)
    #[arg(long, value_name = "N", value_parser = rate)]
    pub(crate) rate: Option<f64>,
    /// Shares of the kinds of requests
    #[arg(long, value_name = "SHARES", default_value = "lookup=80,search=10,buy=10")]
    pub(crate) mix: Mix,
    /// How many items there are: 7 are hot, 10000 are spread
    #[arg(
        long, value_name = "N", default_value_t = 7,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(ITEMS_MAX))
    )]
    pub(crate) items: u32,
    /// Want the n-th item n^S times less often than the first (Zipf's law), instead of all equally
    #[arg(long, value_name = "S", value_parser = zipf)]
    pub(crate) zipf: Option<f64>,
    /// Copies of each item
    #[arg(
        long, value_name = "N", default_value_t = 1_000_000,
        value_parser = clap::value_parser!(u64).range(1..=STOCK_MAX as u64)
    )]
    pub(crate) stock: u64,
    /// Threads of the load generator
    #[arg(
        long, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=THREADS_MAX)
    )]
    pub(crate) threads: u32,
    /// Print one JSON object instead of tables
    #[arg(long)]
    pub(crate) json: bool,
    /// Draw the latencies by percentile, as SVG
    #[arg(long, value_name = "FILE")]
    pub(crate) plot: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) operator: OperatorArgs,
}

fn rate(text: &str) -> Result<f64, String> {
    positive(text, RATE_MAX)
}

fn zipf(text: &str) -> Result<f64, String> {
    positive(text, ZIPF_MAX)
}

fn positive(text: &str, max: f64) -> Result<f64, String> {
    match text.parse() {
        Ok(number) if number > 0.0 && number <= max => Ok(number),
        _ => Err(format!("a number above 0, up to {max}, is needed")),
    }
}
