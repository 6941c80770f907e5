//! A simulation of the whole store, from one seed.
//!
//! The servers are those of production, started with [`pygmy::run_server`] from a configuration
//! as an operator writes it. What differs is the environment: virtual time and clocks that drift
//! ([`clock`]), a network in memory ([`network`]), a disk that forgets what was not synced
//! (`pygmy_protocol::env::FakeDisk`), workers with delays ([`workers`]), numbers from the seed
//! ([`rng`]), and tasks that a crash ends and a pause holds up ([`host`]). [`cluster`] puts them
//! together; `docs/simulation.md` tells what it can and cannot show.
//!
//! A [`run`] starts a cluster, lets clients ask ([`load`]) while things go wrong ([`faults`]),
//! heals a majority and wants it to sell again, heals everything, reads everything, and asks the
//! judges ([`check`]). [`trace`] has what happened, the same for the same seed. [`campaign`] does
//! many runs and shortens those that fail, [`meta`] compares runs of one seed, and `mutants`
//! plants known errors and counts the seeds until they are found.

mod campaign;
mod meta;
#[cfg(feature = "planted-bugs")]
mod mutants;

mod run;

mod check;
mod faults;
mod load;
mod losses;

mod cluster;
mod commands;

mod clock;
mod host;
mod network;
mod rng;
mod workers;

mod trace;

#[cfg(test)]
mod tests;

use std::{ops::Range, process::ExitCode, time::Duration};

use clap::{Args, Parser, Subcommand};

use crate::{
    campaign::{Campaign, shorten, tell},
    faults::Scenario,
    run::{Plan, Scratch},
};

/// Simulates the whole store, with faults, from a seed.
#[derive(Debug, Parser)]
#[command(name = "pygmy-sim")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run one seed, or many on all processors
    Run(RunArgs),
    /// Run each seed twice in fresh processes and compare the traces byte for byte
    Meta {
        /// As A..B, B not included
        #[arg(long, value_parser = seeds)]
        seeds: Range<u64>,
        /// Which faults
        #[arg(long, value_enum, default_value = "all")]
        scenario: Scenario,
    },
    /// Plant one known error after the other and count the seeds until it is found
    #[cfg(feature = "planted-bugs")]
    Mutants {
        /// Most seeds for each
        #[arg(long, default_value_t = 2000)]
        seeds: u64,
        /// Only this one
        #[arg(long)]
        only: Option<String>,
    },
}

#[derive(Debug, Args)]
struct RunArgs {
    /// One seed
    #[arg(long, conflicts_with = "seeds", required_unless_present = "seeds")]
    seed: Option<u64>,
    /// Many, as A..B, B not included
    #[arg(long, value_parser = seeds)]
    seeds: Option<Range<u64>>,
    /// Which faults
    #[arg(long, value_enum, default_value = "all")]
    scenario: Scenario,
    /// Most faults of the one seed
    #[arg(long, requires = "seed")]
    faults: Option<u64>,
    /// Most clients of the one seed
    #[arg(long, requires = "seed")]
    clients: Option<u64>,
    /// Print all that happened in the one seed
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Begin no new run after this many seconds
    #[arg(long, value_name = "SECONDS")]
    for_seconds: Option<u64>,
}

fn seeds(text: &str) -> Result<Range<u64>, String> {
    let range = text.split_once("..").and_then(|(a, b)| Some(a.parse().ok()?..b.parse().ok()?));
    range.filter(|range| !range.is_empty()).ok_or_else(|| "write seeds as 1..100".to_owned())
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    trace::install();
    match Scratch::make().and_then(|scratch| obey(cli.command, &scratch)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("pygmy-sim: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all is well.
fn obey(command: Command, scratch: &Scratch) -> std::io::Result<bool> {
    match command {
        Command::Run(args) => Ok(match args.seed {
            Some(seed) => run_one(seed, &args, scratch),
            None => run_many(&args, scratch),
        }),
        Command::Meta { seeds, scenario } => {
            let difference = meta::compare(seeds, scenario)?;
            if let Some(difference) = &difference {
                println!("{difference}");
            }
            Ok(difference.is_none())
        }
        #[cfg(feature = "planted-bugs")]
        Command::Mutants { seeds, only } => Ok(mutants::hunt(seeds, only.as_deref(), scratch)),
    }
}

fn run_one(seed: u64, args: &RunArgs, scratch: &Scratch) -> bool {
    let RunArgs { scenario, faults, clients, trace, .. } = *args;
    let report = run::run(Plan { seed, scenario, faults, clients }, scratch);
    let kept = report.failure.is_none();
    if trace {
        report.trace.iter().for_each(|line| println!("{line}"));
    }
    match &report.failure {
        None => println!("seed {seed}: {} requests, every promise kept", report.requests),
        Some(why) if trace => println!("FAILED seed {seed}: {why}"),
        Some(_) => tell(&shorten(report, scratch), "pygmy-sim run"),
    }
    kept
}

fn run_many(args: &RunArgs, scratch: &Scratch) -> bool {
    let campaign = Campaign {
        seeds: args.seeds.clone().unwrap_or(0..0),
        scenario: args.scenario,
        failures_max: 5,
        time_max: args.for_seconds.map(Duration::from_secs),
        quiet: false,
    };
    let summary = campaign.run(scratch);
    let failed = summary.failures.len();
    for report in summary.failures {
        tell(&shorten(report, scratch), "pygmy-sim run");
    }
    println!(
        "{} runs with {} requests in {:.0} s ({:.0} a minute): {}",
        summary.runs,
        summary.requests,
        summary.took.as_secs_f64(),
        summary.runs as f64 * 60.0 / summary.took.as_secs_f64(),
        if failed == 0 { "every promise kept".to_owned() } else { format!("{failed} FAILED") }
    );
    failed == 0
}
