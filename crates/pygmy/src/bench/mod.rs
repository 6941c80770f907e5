//! `pygmy bench`: the load generator, its progress and what it found. The engine is in
//! [`pygmy_client::bench`].

mod options;
mod plot;
mod progress;
mod report;

use std::{fs, io, sync::Arc, thread, time::Duration};

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

    let before = block_on(&env, prepare(&env, args, &operator, &urls, &workload))??;
    let (tally, measured) = measure(&env, args, servers, &workload)?;
    let after = block_on(&env, count_stock(&operator, &workload.topic))?;
    let after = after.context("cannot count the stock after the run")?;

    if let Some(file) = &args.plot {
        let cannot = || format!("cannot write {}", file.display());
        let latencies_ns = Kind::ALL.map(|kind| (kind, &tally.kind(kind).latency_ns));
        fs::write(file, plot::draw(&latencies_ns)).with_context(cannot)?;
    }
    let Workload { topic, numbers, .. } = &*workload;
    let report = Report::new(args, urls, topic, numbers.first, measured, &tally, (before, after));
    if args.json {
        print::json(&report)?;
    } else {
        report.print()?;
        if let Some(file) = &args.plot {
            print::line(format_args!("latencies by percentile are drawn in {}", file.display()))?;
        }
    }
    match report.complaint() {
        Some(complaint) => bail!(complaint),
        None => Ok(()),
    }
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

/// Gives what was counted, and for how long it was measured.
fn measure(
    env: &Env,
    args: &BenchArgs,
    servers: Vec<Server>,
    workload: &Arc<Workload>,
) -> anyhow::Result<(Tally, Duration)> {
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
    let tally = thread::scope(|scope| {
        let start = |number| {
            let (plan, sender) = (&plan, sender.clone());
            let drive = move || block_on(env, drive(env, plan, number, sender));
            thread::Builder::new().name(format!("bench-{number}")).spawn_scoped(scope, drive)
        };
        let threads: io::Result<Vec<_>> = (0..plan.threads).map(start).collect();
        let threads = threads.context("cannot start a thread")?;
        drop(sender);
        let tally = block_on(env, watch(env, &plan.window, tallies))??;
        for thread in threads {
            thread.join().map_err(|_| anyhow!("a thread of the load generator panicked"))??;
        }
        anyhow::Ok(tally)
    })?;
    Ok((tally, plan.window.measured()))
}

/// Adds up what the threads count and shows it, until they are done. A signal ends the run early.
async fn watch(
    env: &Env,
    window: &Window,
    mut tallies: mpsc::Receiver<Tally>,
) -> anyhow::Result<Tally> {
    let mut signals = Signals::catch().context("cannot catch signals")?;
    let mut total = Tally::default();
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
            _ = signals.next() => window.end_at(env.now()),
        }
    }
    progress.clear();
    Ok(total)
}
