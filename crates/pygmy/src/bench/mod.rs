//! `pygmy bench`: the load generator, its progress and what it found. The engine is in
//! [`pygmy_client::bench`].

mod options;
mod plot;
mod progress;
mod report;

use std::{
    fs::{self, File},
    io,
    path::Path,
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context, anyhow, bail};
use pygmy_client::{
    bench::{
        ItemNumbers, Kind, Plan, Popularity, Server, Stock, Tally, Window, Workload, count_stock,
        drive, fresh_topic, make_items,
    },
    operator::Operator,
    store::{Patience, Store},
};
use pygmy_protocol::{Env, item::ItemNumber};
use tokio::sync::mpsc;

use self::{progress::Progress, report::Report};
use crate::{
    admin::Cluster,
    print,
    runtime::{Signals, block_on},
    wait,
};

pub(crate) use options::BenchArgs;

/// Room for what the threads have counted; one that finds none keeps counting.
const WAITING_TALLIES: usize = 64;

/// Runs the load generator.
pub(crate) fn run(args: &BenchArgs) -> anyhow::Result<()> {
    let env = Env::production();
    let cluster = Cluster::find(&args.operator)?;
    let urls = if args.server.is_empty() { cluster.public_urls()? } else { args.server.clone() };
    let operator = cluster.operator(&env)?;
    let servers: Result<Vec<_>, String> = urls.iter().map(|url| Server::new(url)).collect();
    let servers = servers.map_err(|e| anyhow!(e))?;
    let workload = Arc::new(workload(&env, args));

    let plot = args.plot.as_deref();
    if let Some(path) = plot {
        // Before the run, which would be lost.
        let created = File::options().write(true).create(true).truncate(false).open(path);
        created.with_context(|| format!("cannot write {}", path.display()))?;
    }
    let before = block_on(&env, prepare(&env, args, &operator, &urls, &workload))??;
    let run = measure(&env, args, servers, &workload)?;
    let after = block_on(&env, count_stock(&operator, &workload.topic))?;

    let counted = (before, after.as_ref().ok().copied());
    let report = Report::new(args, urls, &workload, &run, counted);
    if args.json {
        print::json(&report)?
    } else {
        report.print()?
    }
    if let Some(path) = plot {
        draw(path, &run.tally).with_context(|| format!("cannot write {}", path.display()))?;
        if !args.json {
            let path = path.display();
            print::line(format_args!("latencies by percentile are drawn in {path}"))?;
        }
    }
    after.context("cannot count the stock after the run")?;
    match report.complaint() {
        Some(complaint) => bail!(complaint),
        None => Ok(()),
    }
}

fn draw(path: &Path, tally: &Tally) -> io::Result<()> {
    let latencies_ns = Kind::ALL.map(|kind| (kind, &tally.kind(kind).latency_ns));
    fs::write(path, plot::draw(&latencies_ns))
}

fn workload(env: &Env, args: &BenchArgs) -> Workload {
    let numbers = ItemNumbers::random(env, args.items);
    let popularity = match args.zipf {
        Some(exponent) => Popularity::zipf(exponent, args.items),
        None => Popularity::Uniform,
    };
    Workload { mix: args.mix, numbers, popularity, topic: fresh_topic(env) }
}

/// Makes the items and looks whether they are there, also through the front ends.
async fn prepare(
    env: &Env,
    args: &BenchArgs,
    operator: &Operator,
    urls: &[String],
    workload: &Workload,
) -> anyhow::Result<Stock> {
    let progress = Progress::making_items(args.items);
    make_items(operator, workload, args.stock, |made| progress.made(made)).await?;
    progress.clear();
    let store = Store::new(env, urls, Patience::default()).map_err(|e| anyhow!(e))?;
    let first = ItemNumber::try_from(workload.numbers.first)?;
    store.with_notice(wait::notice).lookup(first).await?;
    let stock = count_stock(operator, &workload.topic).await?;
    let expected = u64::from(args.items);
    if (stock.items, stock.copies) != (expected, expected * args.stock) {
        bail!(
            "the store has {} items with {} copies in the topic {}, not the {expected} with {} \
             each that were added",
            stock.items,
            stock.copies,
            workload.topic,
            args.stock
        );
    }
    Ok(stock)
}

/// What was counted in a run.
struct Run {
    tally: Tally,
    measured: Duration,
    /// Whether a signal ended it early.
    interrupted: bool,
}

fn measure(
    env: &Env,
    args: &BenchArgs,
    servers: Vec<Server>,
    workload: &Arc<Workload>,
) -> anyhow::Result<Run> {
    let seconds = |seconds: u32| Duration::from_secs(u64::from(seconds));
    let window = Window::new(env.now(), seconds(args.warm_up), seconds(args.seconds));
    let connections = args.connections as usize;
    let plan = Plan {
        servers: servers.into(),
        workload: Arc::clone(workload),
        window: Arc::new(window),
        connections,
        rate: args.rate,
        threads: connections.min(args.threads as usize),
    };
    let (sender, tallies) = mpsc::channel(WAITING_TALLIES);
    let (tally, interrupted) = thread::scope(|scope| {
        let start = |number| {
            let (plan, sender) = (&plan, sender.clone());
            let drive = move || block_on(env, drive(env, plan, number, sender));
            thread::Builder::new().name(format!("bench-{number}")).spawn_scoped(scope, drive)
        };
        let threads: io::Result<Vec<_>> = (0..plan.threads).map(start).collect();
        let threads = threads.context("cannot start a thread")?;
        drop(sender);
        let watched = block_on(env, watch(env, &plan.window, tallies))??;
        for thread in threads {
            thread.join().map_err(|_| anyhow!("a thread of the load generator panicked"))??;
        }
        anyhow::Ok(watched)
    })?;
    Ok(Run { tally, measured: plan.window.measured(), interrupted })
}

/// Adds up what the threads count and shows it, until they are done. A signal ends the run early;
/// says whether one did.
async fn watch(
    env: &Env,
    window: &Window,
    mut tallies: mpsc::Receiver<Tally>,
) -> anyhow::Result<(Tally, bool)> {
    let mut signals = Signals::catch().context("cannot catch signals")?;
    let (mut total, mut interrupted) = (Tally::default(), false);
    let mut progress = Progress::measuring(env, window);
    loop {
        tokio::select! {
            tally = tallies.recv() => match tally {
                Some(tally) => {
                    total.add(&tally);
                    progress.count(env.now(), &tally);
                }
                None => break,
            },
            _ = signals.next() => {
                window.end_at(env.now());
                interrupted = true;
            }
        }
    }
    progress.clear();
    Ok((total, interrupted))
}
