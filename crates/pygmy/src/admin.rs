//! What operators do: `pygmy admin`.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use anyhow::{Context, anyhow, bail};
use http::Method;
use pygmy_client::{Call, Upstream, operator::Operator, store::Patience};
use pygmy_protocol::{
    Env, RequestContext,
    http::Secret,
    item::Item,
    registration::{CatalogStatus, Role, ServerStatus, Servers},
};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    cli::{AdminArgs, AdminCommand, OperatorArgs},
    config::{Config, Settings},
    money::Currency,
    print::{self, Column},
    runtime::block_on,
};

/// Longest wait for one server's status: one that hangs must not hide the others.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);
/// Digits of a state hash that people compare.
const HASH_DIGITS: usize = 12;

/// Where a cluster's internal routes are, and its secret.
pub(crate) struct Cluster {
    config: Option<Config>,
    balancers: Vec<String>,
    secret_file: PathBuf,
}

impl Cluster {
    /// From the configuration, or from the flags that stand in for it.
    pub(crate) fn find(args: &OperatorArgs) -> anyhow::Result<Cluster> {
        if let (false, Some(secret_file)) = (args.balancer.is_empty(), &args.secret_file) {
            let (balancers, secret_file) = (args.balancer.clone(), secret_file.clone());
            return Ok(Cluster { config: None, balancers, secret_file });
        }
        let config = Config::load(&args.config, &Settings::of_process(&[]))?;
        let secret_file = args.secret_file.clone().unwrap_or_else(|| config.secret_file());
        Ok(Cluster { balancers: config.urls(Role::Balancer), config: Some(config), secret_file })
    }

    /// The front ends.
    pub(crate) fn public_urls(&self) -> anyhow::Result<Vec<String>> {
        match &self.config {
            Some(config) => Ok(config.public_urls()),
            None => bail!("without a configuration, name the front ends with --server"),
        }
    }

    /// A client of the balancers.
    pub(crate) fn operator(&self, env: &Env) -> anyhow::Result<Operator> {
        let secret = Secret::read(&self.secret_file)?;
        Operator::new(env, &self.balancers, secret, Patience::default()).map_err(|e| anyhow!(e))
    }

    fn currency(&self) -> Currency {
        self.config.as_ref().map_or_else(Currency::default, Config::currency)
    }
}

/// Runs one of the operators' commands.
pub(crate) fn run(args: &AdminArgs) -> anyhow::Result<()> {
    let env = Env::production();
    let cluster = Cluster::find(&args.operator)?;
    match args.command {
        AdminCommand::Status | AdminCommand::Servers => status(&env, &cluster, args),
        AdminCommand::SetStock { item, stock } => {
            let item = block_on(&env, cluster.operator(&env)?.set_stock(item, stock))??;
            print_change(&cluster, args.json, &item)
        }
        AdminCommand::SetCost { item, cost } => {
            let item = block_on(&env, cluster.operator(&env)?.set_cost(item, cost))??;
            print_change(&cluster, args.json, &item)
        }
    }
}

fn print_change(cluster: &Cluster, json: bool, item: &Item) -> anyhow::Result<()> {
    if json {
        return Ok(print::json(item)?);
    }
    let Item { item_number, title, stock, cost, .. } = item;
    let (title, price) = (print::without_controls(title), cluster.currency().format(*cost));
    Ok(print::line(format_args!("item {item_number}, {title}: {stock} in stock at {price}"))?)
}

/// What all servers say of themselves and of one another.
#[derive(Debug, Serialize)]
struct Overview {
    catalogs: Vec<CatalogStatus>,
    balancers: Vec<Servers>,
    /// Sentences of those that did not answer.
    unanswered: Vec<String>,
}

fn status(env: &Env, cluster: &Cluster, args: &AdminArgs) -> anyhow::Result<()> {
    let secret = Secret::read(&cluster.secret_file)?;
    let all = matches!(args.command, AdminCommand::Status);
    let overview = block_on(env, look(env, cluster, &secret, all))?;
    if args.json {
        return Ok(print::json(&overview)?);
    }
    if all {
        print_catalogs(&overview.catalogs)?;
        print_together(&overview.balancers)?;
    } else {
        overview.balancers.iter().try_for_each(print_servers)?;
    }
    for sentence in &overview.unanswered {
        eprintln!("pygmy: {sentence}");
    }
    if overview.balancers.is_empty() && overview.catalogs.is_empty() {
        bail!("no server answers; start the store with `pygmy demo` or `pygmy serve`");
    }
    Ok(())
}

async fn look(env: &Env, cluster: &Cluster, secret: &Secret, catalogs: bool) -> Overview {
    let mut overview =
        Overview { catalogs: Vec::new(), balancers: Vec::new(), unanswered: Vec::new() };
    for url in &cluster.balancers {
        match get(env, secret, url, "/servers").await {
            Ok(servers) => overview.balancers.push(servers),
            Err(error) => overview.unanswered.push(format!("{error:#}")),
        }
    }
    if catalogs {
        for url in catalog_urls(cluster, &overview.balancers) {
            match get(env, secret, &url, "/status").await {
                Ok(status) => overview.catalogs.push(status),
                Err(error) => overview.unanswered.push(format!("{error:#}")),
            }
        }
    }
    overview
}

/// Those of the configuration and those that the balancers know: they may have been added later.
fn catalog_urls(cluster: &Cluster, balancers: &[Servers]) -> Vec<String> {
    let configured = cluster.config.iter().flat_map(|config| config.parts(Role::Catalog));
    let mut named: BTreeMap<_, _> = configured.map(|part| (part.name, part.url)).collect();
    for server in balancers.iter().flat_map(|balancer| &balancer.servers) {
        if server.role == Role::Catalog {
            named.insert(server.name.clone(), server.url.clone());
        }
    }
    named.into_values().collect()
}

async fn get<T: DeserializeOwned>(
    env: &Env,
    secret: &Secret,
    url: &str,
    path: &str,
) -> anyhow::Result<T> {
    let upstream = Upstream::remote(env, url).map_err(|e| anyhow!(e))?;
    let context = RequestContext::fresh(env, STATUS_TIMEOUT);
    let call = Call::new(Method::GET, path, context).with_secret(secret);
    let answer = upstream.send(&call, STATUS_TIMEOUT).await;
    let answer = answer.with_context(|| format!("no status from {url}"))?;
    answer.json().with_context(|| format!("no status from {url}"))
}

fn print_catalogs(catalogs: &[CatalogStatus]) -> anyhow::Result<()> {
    if catalogs.is_empty() {
        return Ok(());
    }
    let columns = [
        Column::Text("CATALOG"),
        Column::Text("ROLE"),
        Column::Number("TERM"),
        Column::Number("LOG"),
        Column::Number("APPLIED"),
        Column::Number("RELEASED"),
        Column::Number("ORDERS"),
        Column::Text("STATE"),
    ];
    let rows = catalogs.iter().map(|status| {
        vec![
            status.name.clone(),
            status.role.clone(),
            status.term.to_string(),
            status.last_log_index.to_string(),
            status.applied_index.to_string(),
            status.released_index.to_string(),
            status.orders.to_string(),
            status.state_hash.chars().take(HASH_DIGITS).collect(),
        ]
    });
    print::table(&columns, rows)?;
    let fresh = catalogs.iter().find(|status| !status.front_ends.is_empty());
    if let Some(leader) = fresh {
        print::line(format_args!(
            "{} keeps the caches of {} fresh",
            leader.name,
            leader.front_ends.join(", ")
        ))?;
    }
    Ok(())
}

/// One table of what all balancers know: their counts added up, and who sees what where they do
/// not agree.
fn print_together(balancers: &[Servers]) -> anyhow::Result<()> {
    let mut views: BTreeMap<(Role, &str), Vec<(&str, &ServerStatus)>> = BTreeMap::new();
    for Servers { balancer, servers } in balancers {
        for server in servers {
            views.entry((server.role, &server.name)).or_default().push((balancer, server));
        }
    }
    if views.is_empty() {
        return Ok(());
    }
    print::line("")?;
    let rows = views.into_values().filter_map(|seen| {
        let (_, first) = *seen.first()?;
        let sum = |count: fn(&ServerStatus) -> u64| seen.iter().map(|(_, s)| count(s)).sum();
        let healths: Vec<_> = seen.iter().map(|(by, server)| (*by, health(server))).collect();
        Some(row(first, agreed(&healths), sum(|s| s.in_flight), sum(|s| s.served)))
    });
    Ok(print::table(&SERVER_COLUMNS, rows)?)
}

fn agreed(healths: &[(&str, String)]) -> String {
    let first = healths.first().map_or("", |(_, health)| health);
    if healths.iter().all(|(_, health)| health == first) {
        return first.to_owned();
    }
    let views: Vec<_> = healths.iter().map(|(by, health)| format!("{by}: {health}")).collect();
    views.join("\n")
}

const SERVER_COLUMNS: [Column; 6] = [
    Column::Text("SERVER"),
    Column::Text("ROLE"),
    Column::Text("AT"),
    Column::Text("HEALTH"),
    Column::Number("BUSY"),
    Column::Number("SERVED"),
];

fn row(server: &ServerStatus, health: String, in_flight: u64, served: u64) -> Vec<String> {
    vec![
        server.name.clone(),
        server.role.to_string(),
        server.url.trim_start_matches("http://").to_owned(),
        health,
        in_flight.to_string(),
        served.to_string(),
    ]
}

fn print_servers(servers: &Servers) -> anyhow::Result<()> {
    print::line(format_args!("as {} sees them:", servers.balancer))?;
    let rows = servers.servers.iter().map(|s| row(s, health(s), s.in_flight, s.served));
    print::table(&SERVER_COLUMNS, rows)?;
    Ok(print::line("")?)
}

fn health(server: &ServerStatus) -> String {
    let leader = if server.leader { ", leader" } else { "" };
    match &server.reason {
        Some(reason) => format!("{}{leader}: {reason}", server.health),
        None => format!("{}{leader}", server.health),
    }
}
