//! What `bench/run` needs to measure Pygmy's peers, apart from the peers themselves.
//!
//! `redis` and `etcd` are what `pygmy bench --mix buy=1` is for Pygmy: a closed loop of buyers on
//! one thread, each with one sale under way, which count what was acknowledged and then look
//! whether the stock adds up ([`load`]). How a sale is made there, in one round trip where that is
//! possible, is in [`redis`] and [`etcd`]. PostgreSQL brings a generator of its own, pgbench.
//! `constant` is the least that an HTTP server in Rust can do ([`constant`]).
//!
//! Each command prints one JSON object and ends with 0, or says why not.

mod constant;
mod etcd;
mod load;
mod redis;

use std::{net::SocketAddr, process::ExitCode};

use clap::{Parser, Subcommand};
use tokio::runtime::Builder;

use crate::load::Load;

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Buy from Redis: a script and WAIT 1 for each sale
    Redis {
        /// The primary
        #[arg(long)]
        address: SocketAddr,
        #[command(flatten)]
        load: Load,
    },
    /// Buy from etcd: compare-and-swap over gRPC
    Etcd {
        /// The leader
        #[arg(long)]
        address: SocketAddr,
        #[command(flatten)]
        load: Load,
    },
    /// Answer every request with one item, until killed
    Constant {
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long, default_value_t = 1)]
        threads: usize,
    },
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Redis { address, load } => {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            println!("{}", runtime.block_on(redis::run(address, &load))?);
        }
        Command::Etcd { address, load } => {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            println!("{}", runtime.block_on(etcd::run(address, &load))?);
        }
        Command::Constant { listen, threads: 1 } => {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(constant::serve(listen))?;
        }
        Command::Constant { listen, threads } => {
            let runtime =
                Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
            runtime.block_on(constant::serve(listen))?;
        }
    }
    Ok(())
}
