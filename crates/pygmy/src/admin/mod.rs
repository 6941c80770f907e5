//! What operators do: `pygmy admin`.

mod ask;
mod doctor;
mod items;
mod members;
mod rolling;
mod status;

use std::path::PathBuf;

use anyhow::{anyhow, bail};
use pygmy_client::{
    operator::{Bootstrapped, Founder, Operator},
    store::{Patience, StoreError},
};
use pygmy_protocol::{Code, Env, http::Secret, item::Item, registration::Role};

use self::members::Change;
use crate::{
    books::books,
    cli::{AdminArgs, AdminCommand, OperatorArgs},
    config::{Config, Part, Settings},
    money::Currency,
    print,
    runtime::block_on,
    wait,
};

/// Where a cluster's internal routes are, and its secret.
pub(crate) struct Cluster {
    config: Option<Config>,
    balancers: Vec<Part>,
    secret_file: PathBuf,
}

impl Cluster {
    /// From the configuration, or from the flags that stand in for it.
    pub(crate) fn find(args: &OperatorArgs) -> anyhow::Result<Cluster> {
        if let (false, Some(secret_file)) = (args.balancer.is_empty(), &args.secret_file) {
            // Their names are not known: the URL stands for one.
            let named = |url: &String| Part { name: url.clone(), url: url.clone() };
            let balancers = args.balancer.iter().map(named).collect();
            return Ok(Cluster { config: None, balancers, secret_file: secret_file.clone() });
        }
        let config = Config::load(&args.config, &Settings::of_process(&[]))?;
        let secret_file = args.secret_file.clone().unwrap_or_else(|| config.secret_file());
        Ok(Cluster { balancers: config.parts(Role::Balancer), config: Some(config), secret_file })
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
        let urls: Vec<_> = self.balancers.iter().map(|balancer| balancer.url.clone()).collect();
        let operator = Operator::new(env, &urls, self.secret()?, Patience::default());
        Ok(operator.map_err(|e| anyhow!(e))?.with_notice(wait::notice))
    }

    fn secret(&self) -> anyhow::Result<Secret> {
        Ok(Secret::read(&self.secret_file)?)
    }

    fn currency(&self) -> Currency {
        self.config.as_ref().map_or_else(Currency::default, Config::currency)
    }
}

/// Runs one of the operators' commands.
pub(crate) fn run(args: &AdminArgs) -> anyhow::Result<()> {
    let env = Env::production();
    if let AdminCommand::Import(import) = &args.command {
        // Checking a file needs no cluster.
        return items::import(&env, &args.operator, import, args.json);
    }
    let cluster = Cluster::find(&args.operator)?;
    match args.command {
        AdminCommand::Import(_) => Ok(()),
        AdminCommand::Export(ref export) => items::export(&env, &cluster, export, args.json),
        AdminCommand::Bootstrap { books } => bootstrap(&env, &cluster, books, args.json),
        AdminCommand::Status => status::status(&env, &cluster, args.json),
        AdminCommand::Servers => status::servers(&env, &cluster, args.json),
        AdminCommand::Doctor => doctor::run(&env, &cluster, args.json),
        AdminCommand::RollingRestart => rolling::run(&env, &cluster, args.json),
        AdminCommand::AddReplica { ref name } => {
            members::run(&env, &cluster, Change::Add(name), args.json)
        }
        AdminCommand::RemoveReplica { ref name } => {
            members::run(&env, &cluster, Change::Remove(name), args.json)
        }
        AdminCommand::ReplaceReplica { ref old, ref new } => {
            members::run(&env, &cluster, Change::Replace { old, new }, args.json)
        }
        AdminCommand::TransferLeader { ref name } => {
            members::run(&env, &cluster, Change::Lead(name), args.json)
        }
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

fn bootstrap(env: &Env, cluster: &Cluster, with_books: bool, json: bool) -> anyhow::Result<()> {
    let Some(config) = &cluster.config else {
        bail!("a cluster is made of the replicas of a configuration: name it with --config");
    };
    let items = if with_books { books()? } else { Vec::new() };
    let replicas = config.parts(Role::Catalog);
    let urls: Vec<_> = replicas.iter().map(|replica| replica.url.clone()).collect();
    let founder = Founder::new(env, &urls, cluster.secret()?, Patience::default());
    let founder = founder.map_err(|e| anyhow!(e))?.with_notice(wait::notice);
    let made = block_on(env, founder.bootstrap(&items))?.map_err(refused)?;
    if json {
        return Ok(print::json(&made)?);
    }
    let (replicas, items) = (replicas.len(), number_of_items(made));
    Ok(if made.created {
        print::line(format_args!("made a cluster of {replicas} replicas, with {items}"))
    } else {
        print::line(format_args!("the cluster exists already; it was made with {items}"))
    }?)
}

fn number_of_items(made: Bootstrapped) -> String {
    match made.items {
        0 => "no items".to_owned(),
        1 => "1 item".to_owned(),
        items => format!("{items} items"),
    }
}

/// The store speaks of keys, which are nothing that was given to this command.
fn refused(error: StoreError) -> anyhow::Error {
    let code = match &error {
        StoreError::Problem(problem) => Some(problem.code),
        StoreError::Unreachable { .. } => None,
    };
    match code {
        Some(Code::IdempotencyKeyReused) => anyhow!(
            "the cluster exists already, with other first items; nothing was changed, and nothing \
             needs to be: see `pygmy admin status`"
        ),
        Some(Code::OutcomeUnknown) => anyhow::Error::new(error)
            .context("it is not known whether the cluster was made; run the same command again"),
        _ => error.into(),
    }
}
