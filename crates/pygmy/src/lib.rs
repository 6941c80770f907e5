//! The command line of Pygmy: one binary for servers, customers and operators.
//!
//! `cli` turns the arguments into one validated command, [`main`] runs it, and `failure` turns
//! what went wrong into a sentence and an exit code.
//!
//! `pygmy serve` reads the configuration (`config`), builds what the tier needs to know of it and
//! runs the tier (`serve`); `pygmy demo` writes such a configuration and runs every server of it
//! as a child process (`demo`). Customers (`shop`) talk to front ends, operators (`admin`)
//! to balancers and catalog replicas, both through `pygmy_client`; so does the load generator
//! (`bench`), which measures a store. Files of `items` are checked, loaded and written for both
//! the demo and the operators.

mod cli;

mod config;
mod serve;

mod books;
mod demo;
mod items;

mod admin;
mod bench;
mod client;
mod shop;

#[cfg(feature = "fuzzing")]
pub mod fuzzing;

mod failure;
mod logging;
mod money;
mod print;
mod runtime;
mod wait;

use std::process::ExitCode;

use clap::Parser;

use self::cli::{Cli, Command, ConfigCommand};

pub use serve::run_server;

/// Runs the command that the process was started with.
#[must_use]
pub fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure::report(&error),
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Demo(args) => demo::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Respawn(args) => demo::respawn(&args),
        Command::Topics(args) => shop::topics(&args),
        Command::Search(args) => shop::search(&args),
        Command::Lookup(args) => shop::lookup(&args),
        Command::Buy(args) => shop::buy(&args),
        Command::Order(args) => shop::order(&args),
        Command::Client(args) => client::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Admin(args) => admin::run(&args),
        Command::Config { command: ConfigCommand::Check(args) } => config::command::check(&args),
        Command::Config { command: ConfigCommand::Show(args) } => config::command::show(&args),
    }
}
