//! The arguments.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use pygmy_protocol::{
    IdempotencyKey, Problem,
    import::ImportId,
    item::{ItemNumber, MAX_NUMBER, PageRequest},
    order::{MAX_QUANTITY, OrderNumber},
    registration::Role,
};

use crate::{bench::BenchArgs, items::Format};

/// Where `pygmy demo` keeps a store unless told otherwise.
pub(crate) const DEMO_DIR: &str = "pygmy-data";
/// The configuration that clients' and operators' commands use unless told otherwise: the demo's.
pub(crate) const DEMO_CONFIG: &str = "pygmy-data/pygmy.toml";

/// Most threads of one server: beyond any machine that it was tried on.
const MAX_THREADS: u64 = 1024;
/// The highest port that leaves room for the others of a layout.
const MAX_BASE_PORT: i64 = 65_500;

/// A bookstore server that keeps selling while machines fail.
#[derive(Debug, Parser)]
#[command(
    name = "pygmy",
    version,
    arg_required_else_help = true,
    after_help = "\
Examples:
  pygmy demo                          the whole store on this machine
  pygmy search 'Distributed Systems'  what there is in a topic
  pygmy buy 2 --expected-cost 150000  a copy of item 2, at 1500.00 or not at all
  pygmy bench --mix buy=1             how many buys a second it takes
  pygmy admin status                  how the servers are

Exit codes:
  0  done
  1  refused, or failed
  2  wrong usage
  3  the store cannot be reached or does not know: ask again, and for a buy with
     the same --key"
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Each is described where its arguments are.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Demo(DemoArgs),
    Serve(ServeArgs),
    Respawn(RespawnArgs),
    Topics(TopicsArgs),
    Search(SearchArgs),
    Lookup(LookupArgs),
    Buy(BuyArgs),
    Order(OrderArgs),
    Client(ClientArgs),
    Bench(BenchArgs),
    Admin(AdminArgs),
    /// Check or show a configuration file
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
}

/// Run the whole store on this machine, every server its own process
///
/// Ctrl-C stops everything. A server that is killed or hangs is started again, because the others
/// watch it (`[respawn]` in the configuration). DIR holds the configuration (pygmy.toml), the
/// cluster's secret, and for each server its data and its log. A DIR that has a configuration already
/// is started as it says. A log.txt over 16 MiB is put aside as log.1.txt at the next start.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pygmy demo --client                  and run the client process and the tests
  pygmy demo --layout nodes            three machines in small, node-1 to node-3
  pygmy demo --chaos                   and lose one every few seconds
  pygmy demo --dir b --base-port 9080  a second store beside the first")]
pub(crate) struct DemoArgs {
    /// Where the store is kept; nothing in it is removed at the end
    #[arg(long, value_name = "DIR", default_value = DEMO_DIR)]
    pub(crate) dir: PathBuf,
    /// Which servers to run, for a new DIR [default: tiers]
    #[arg(long, value_enum)]
    pub(crate) layout: Option<LayoutName>,
    /// The first port, for a new DIR; the others follow it [default: 8080]
    #[arg(
        long, value_name = "PORT",
        value_parser = clap::value_parser!(u16).range(1024..=MAX_BASE_PORT)
    )]
    pub(crate) base_port: Option<u16>,
    /// Put the items of FILE on sale instead of the seven books, for a new DIR; see `pygmy admin
    /// import`
    #[arg(long, value_name = "FILE")]
    pub(crate) items: Option<PathBuf>,
    /// Run the client process and the test cases once all is ready, and write
    /// DIR/ClientOutput.txt and DIR/tests.txt
    #[arg(long)]
    pub(crate) client: bool,
    /// Kill or stop a random server every few seconds and say so; they come back by themselves
    #[arg(long)]
    pub(crate) chaos: bool,
    /// The form of the servers' logs
    #[arg(long, value_enum, default_value_t)]
    pub(crate) log_format: LogFormat,
}

/// Which servers a demo has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LayoutName {
    /// Every tier in processes of its own: two balancers, two front ends, three catalog replicas,
    /// two order servers
    Tiers,
    /// Three processes with all tiers in each, as on three machines
    Nodes,
}

/// The form of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum LogFormat {
    /// Lines for people
    #[default]
    Text,
    /// A JSON object on each line
    Json,
}

/// Run one server of a cluster
///
/// SIGTERM or Ctrl-C stops it: it finishes what is in flight, leaves the balancers' tables and
/// exits with 0. Its log goes to stderr; PYGMY_LOG says how much of it (error, warn, info, debug,
/// trace, or per part, as in info,pygmy_catalog=debug).
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// frontend, balancer, order, catalog, or all (the four of them in one process)
    #[arg(value_parser = role)]
    pub(crate) role: Role,
    /// Which server of FILE this is
    #[arg(long)]
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    /// The form of the log
    #[arg(long, value_enum, default_value_t)]
    pub(crate) log_format: LogFormat,
    /// Threads that work on requests [default: one on two processors or fewer, else one for each]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MAX_THREADS))]
    pub(crate) threads: Option<u64>,
    /// Stop when standard input ends: a parent that holds the other end of it has died then
    #[arg(long)]
    pub(crate) stop_with_parent: bool,
}

/// Ask a running demo to start one of its servers again
///
/// The command in the configuration of a demo: the servers that watch one another run it.
#[derive(Debug, Args)]
#[command(hide = true)]
pub(crate) struct RespawnArgs {
    /// dead, hung or rolling
    pub(crate) reason: String,
    /// Which server
    pub(crate) name: String,
    /// Who asks
    #[arg(long, default_value = "somebody")]
    pub(crate) watcher: String,
    /// The configuration of the demo
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    /// The configuration of the cluster
    #[arg(long, value_name = "FILE", env = "PYGMY_CONFIG")]
    pub(crate) config: PathBuf,
    /// Use another value for a setting than the file and the environment do; may be repeated
    #[arg(long, value_name = "TABLE.KEY=VALUE", value_parser = key_and_value)]
    pub(crate) set: Vec<(String, String)>,
}

#[derive(Debug, Args)]
pub(crate) struct StoreArgs {
    /// A front end; repeat it, or separate URLs with commas, to name several [default: those of
    /// --config]
    #[arg(long, value_name = "URL", env = "PYGMY_SERVER", value_delimiter = ',')]
    pub(crate) server: Vec<String>,
    /// A configuration to take the front ends and the currency from [default:
    /// pygmy-data/pygmy.toml if that exists and no --server is given; without either, front ends
    /// are expected at http://127.0.0.1:8081 and http://127.0.0.1:8088]
    #[arg(long, value_name = "FILE", env = "PYGMY_CONFIG")]
    pub(crate) config: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct CustomerArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    /// Print the store's answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// List the topics
#[derive(Debug, Args)]
pub(crate) struct TopicsArgs {
    #[command(flatten)]
    pub(crate) customer: CustomerArgs,
}

/// List the items of a topic
#[derive(Debug, Args)]
pub(crate) struct SearchArgs {
    /// Matches exactly; see `pygmy topics`
    pub(crate) topic: String,
    /// Items of a page, at most [default: 100]
    #[arg(
        long, value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=i64::from(PageRequest::MAX_LIMIT))
    )]
    pub(crate) limit: Option<u32>,
    /// Where the page begins: as the page before says
    #[arg(long)]
    pub(crate) cursor: Option<String>,
    #[command(flatten)]
    pub(crate) customer: CustomerArgs,
}

/// Show an item
#[derive(Debug, Args)]
pub(crate) struct LookupArgs {
    /// The item's number
    #[arg(value_parser = item_number)]
    pub(crate) item: ItemNumber,
    #[command(flatten)]
    pub(crate) customer: CustomerArgs,
}

/// Buy copies of an item
///
/// A buy is done once, however often the request has to be sent: that is what its key is for.
#[derive(Debug, Args)]
pub(crate) struct BuyArgs {
    /// The item's number
    #[arg(value_parser = item_number)]
    pub(crate) item: ItemNumber,
    /// Copies
    #[arg(
        long, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u64).range(1..=MAX_QUANTITY)
    )]
    pub(crate) quantity: u64,
    /// Buy only if one copy costs this much, in the minor unit of the currency (2000 for 20.00)
    #[arg(long, value_name = "COST", value_parser = cost)]
    pub(crate) expected_cost: Option<u64>,
    /// Names this buy: the same key again gives the same order and never a second one
    /// [default: a random one]
    #[arg(long, value_parser = key)]
    pub(crate) key: Option<IdempotencyKey>,
    #[command(flatten)]
    pub(crate) customer: CustomerArgs,
}

/// Show an order
#[derive(Debug, Args)]
pub(crate) struct OrderArgs {
    /// The order's number
    #[arg(value_parser = order_number)]
    pub(crate) order: OrderNumber,
    #[command(flatten)]
    pub(crate) customer: CustomerArgs,
}

/// Run the client process, or the test cases, against a running store
///
/// The client process searches, looks up and buys one copy of up to 10 items of up to 10 topics;
/// each request and its response is written to ClientOutput.txt.
///
/// The test cases (--tests) are search, lookup, buy, cost update and stock update, written to
/// tests.txt. They buy one copy, and take back what they update.
#[derive(Debug, Args)]
pub(crate) struct ClientArgs {
    /// Run the test cases; needs a balancer and the cluster's secret
    #[arg(long)]
    pub(crate) tests: bool,
    /// Where to write [default: ClientOutput.txt, or tests.txt with --tests]
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// A front end; may be repeated [default: those of --config]
    #[arg(long, value_name = "URL", env = "PYGMY_SERVER", value_delimiter = ',')]
    pub(crate) server: Vec<String>,
    #[command(flatten)]
    pub(crate) operator: OperatorArgs,
}

#[derive(Debug, Args)]
pub(crate) struct OperatorArgs {
    /// The configuration of the cluster
    #[arg(
        long,
        value_name = "FILE",
        env = "PYGMY_CONFIG",
        default_value = DEMO_CONFIG,
        global = true
    )]
    pub(crate) config: PathBuf,
    /// A balancer, instead of those of the configuration; may be repeated
    #[arg(long, value_name = "URL", requires = "secret_file", global = true)]
    pub(crate) balancer: Vec<String>,
    /// The file with the cluster's secret, instead of that of the configuration
    #[arg(long, value_name = "FILE", env = "PYGMY_SECRET_FILE", global = true)]
    pub(crate) secret_file: Option<PathBuf>,
}

/// Look after a running store
#[derive(Debug, Args)]
pub(crate) struct AdminArgs {
    #[command(flatten)]
    pub(crate) operator: OperatorArgs,
    /// Print JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: AdminCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AdminCommand {
    /// Make the servers of the configuration a cluster, once; all its replicas must be running
    ///
    /// A cluster can be made without items; `pygmy admin import` brings them.
    Bootstrap {
        /// Give it the seven books of the reference design
        #[arg(long)]
        books: bool,
    },
    /// Show the catalog replicas and what the balancers know
    Status,
    /// Show the servers that the balancers know
    Servers,
    /// Check that the store keeps its promises, and say what to do where it does not
    ///
    /// Asks every server of the configuration, compares the replicas, and has each check its whole
    /// database: that takes seconds for millions of orders, while the store goes on. Exits with 0
    /// if nothing is wrong; warnings are not wrong.
    Doctor,
    /// Restart every server, one after the other, while the store sells
    ///
    /// For a new version or new settings. Each is restarted with its `[respawn]` command, followers
    /// before the leader; the next one waits until it is ready, has caught up and gets requests
    /// again. Stops at the first that does not come back within a minute.
    RollingRestart,
    /// Make a new, running replica of the catalog a member of the cluster
    ///
    /// It is in the configuration that it was started with, and in the one that is given here. It
    /// catches up first, while the store goes on.
    AddReplica {
        /// The server's name
        name: String,
    },
    /// Take a replica out of the cluster, also one that is lost for good
    RemoveReplica {
        /// The server's name
        name: String,
    },
    /// Put a new, running replica in the place of another, in one step
    ///
    /// A replica whose disk was lost needs no command: started again, it takes its place by itself.
    ReplaceReplica {
        /// The server that goes
        old: String,
        /// The server that comes
        new: String,
    },
    /// Make a replica the leader
    TransferLeader {
        /// The server's name
        name: String,
    },
    Import(ImportArgs),
    Export(ExportArgs),
    /// Set how many copies of an item there are
    SetStock {
        /// The item's number
        #[arg(value_parser = item_number)]
        item: ItemNumber,
        /// Copies
        #[arg(value_parser = clap::value_parser!(u64).range(0..=MAX_NUMBER))]
        stock: u64,
    },
    /// Set the price of an item
    SetCost {
        /// The item's number
        #[arg(value_parser = item_number)]
        item: ItemNumber,
        /// The price of one copy, in the minor unit of the currency (2000 for 20.00)
        #[arg(value_parser = cost)]
        cost: u64,
    },
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct ImportWhat {
    /// The items
    pub(crate) file: Option<PathBuf>,
    /// List the imports that are not finished
    #[arg(long)]
    pub(crate) unfinished: bool,
    /// Drop what an unfinished import has brought
    #[arg(long, value_name = "NAME", value_parser = import_id)]
    pub(crate) discard: Option<ImportId>,
}

/// Put the items of a file on sale, all at once
///
/// FILE is CSV with the header itemNumber,title,topic,stock,cost, or has a JSON object with these
/// fields on each line. All of it is checked first; bad lines are named and nothing is loaded. So
/// it is if one of the items exists. Nobody sees an item before the last one is there. An import
/// that broke off goes on when the same command is given again; Ctrl-C takes it back.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pygmy admin import catalog.csv --dry-run   only check the file
  pygmy admin import catalog.csv
  pygmy admin import --unfinished            imports that broke off
  pygmy admin import --discard NAME          drop one of them")]
pub(crate) struct ImportArgs {
    #[command(flatten)]
    pub(crate) what: ImportWhat,
    /// Only check the file and say what would be loaded
    #[arg(long, requires = "file")]
    pub(crate) dry_run: bool,
    /// What FILE is [default: what its name or its first character says]
    #[arg(long, value_enum, requires = "file")]
    pub(crate) format: Option<Format>,
}

/// Write all items into a file that can be imported
///
/// The file is written whole or not at all. The items are read page by page, a thousand at a time:
/// each page shows one moment, and of a store that sells meanwhile not all the same. What an
/// unfinished import has brought is not in it.
#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// Where to write [default: the terminal, or wherever standard output goes]
    pub(crate) file: Option<PathBuf>,
    /// How [default: what the name of FILE says, or csv]
    #[arg(long, value_enum)]
    pub(crate) format: Option<Format>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Say whether a configuration is valid, and if not, on which line
    Check(ConfigFileArgs),
    /// Print every value in effect and where it comes from
    Show(ConfigFileArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ConfigFileArgs {
    /// The configuration
    #[arg(env = "PYGMY_CONFIG")]
    pub(crate) file: PathBuf,
    /// Use another value for a setting than the file and the environment do; may be repeated
    #[arg(long, value_name = "TABLE.KEY=VALUE", value_parser = key_and_value)]
    pub(crate) set: Vec<(String, String)>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

fn detail(problem: Problem) -> String {
    problem.detail.into_owned()
}

fn role(text: &str) -> Result<Role, String> {
    text.parse()
}

fn item_number(text: &str) -> Result<ItemNumber, String> {
    text.parse().map_err(detail)
}

fn order_number(text: &str) -> Result<OrderNumber, String> {
    text.parse().map_err(|_| "an order number is a whole number from 1".to_owned())
}

/// People write 15.00, which is no whole number: say what is expected instead.
fn cost(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(cost) if cost <= MAX_NUMBER => Ok(cost),
        _ => Err(format!(
            "a cost is a whole number of the currency's minor unit, as 2000 for 20.00, up to \
             {MAX_NUMBER}"
        )),
    }
}

fn import_id(text: &str) -> Result<ImportId, String> {
    text.parse().map_err(detail)
}

fn key(text: &str) -> Result<IdempotencyKey, String> {
    text.parse().map_err(detail)
}

fn key_and_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) => Ok((key.trim().to_owned(), value.trim().to_owned())),
        None => Err("write it as table.key=value".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, error::ErrorKind};

    use super::*;

    fn parse(line: &str) -> Result<Command, clap::Error> {
        Cli::try_parse_from(line.split(' ')).map(|cli| cli.command)
    }

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn wrong_usage_is_found_before_anything_runs() {
        for line in [
            "pygmy lookup 0",
            "pygmy lookup -1",
            "pygmy buy 1 --quantity 0",
            "pygmy buy 1 --quantity 1000001",
            "pygmy buy 1 --key ä",
            "pygmy search x --limit 1001",
            "pygmy order x",
            "pygmy serve shop --name a --config f",
            "pygmy demo --base-port 80",
            "pygmy buy 1 --expected-cost 15.00",
            "pygmy admin set-cost 1 -5",
            "pygmy admin set-cost 1 9007199254740992",
            "pygmy config check f --set x",
            "pygmy admin import --discard a/b",
            "pygmy admin import f --format xml",
            "pygmy bench --mix sell=1",
            "pygmy bench --rate 0",
            "pygmy bench --connections 0",
        ] {
            let error = parse(line).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
            let told =
                [ErrorKind::ValueValidation, ErrorKind::InvalidValue, ErrorKind::UnknownArgument];
            assert!(told.contains(&error.kind()), "{line}: {error}");
        }
    }

    #[test]
    fn servers_may_be_repeated_or_separated() {
        let line = "pygmy topics --server http://a:1,http://b:2 --server http://c:3";
        let Command::Topics(args) = parse(line).unwrap() else { panic!("not topics") };
        assert_eq!(args.customer.store.server, ["http://a:1", "http://b:2", "http://c:3"]);
    }

    #[test]
    fn operators_flags_stand_before_or_after_the_command() {
        for line in ["pygmy admin --config f status", "pygmy admin status --config f"] {
            let Command::Admin(args) = parse(line).unwrap() else { panic!("{line}") };
            assert_eq!(args.operator.config, PathBuf::from("f"));
        }
    }
}
