//! `pygmy serve`: one server of the cluster.
//!
//! The address is taken first, so that a port in use is the first thing that is said. Then the
//! tier gets its `Config`, made of the configuration file ([`tiers`]), and runs until a signal, or
//! until the parent is gone; `all` runs the four tiers in one process ([`all`]).

mod all;
mod descriptors;
mod process;
mod tiers;

use std::{io, net::SocketAddr, path::Path, sync::Arc};

use anyhow::{Context, bail};
use pygmy_client::watch;
use pygmy_protocol::{
    Env,
    env::{Listener, Wake},
    http::{Fatal, Secret, Shutdown, Stopper, shutdown},
    metrics::Metrics,
    registration::Role,
};

use self::tiers::Tiers;
use crate::{
    cli::ServeArgs,
    config::{Config, ServerEntry, Settings},
    failure::Logged,
    logging,
    runtime::{self, Signals},
};

/// Runs a server to its end.
pub(crate) fn run(args: &ServeArgs) -> anyhow::Result<()> {
    let settings = Settings::of_process(&args.config.set);
    settings.check_variables()?;
    let config = Arc::new(Config::load(&args.config.config, &settings)?);
    let server = find(&config, &args.name, args.role)?.clone();
    let secret = read_secret(&config.secret_file())?;
    logging::start(args.log_format)?;
    let env = Env::production();
    // The range of the argument fits every usize.
    let threads = args.threads.map(|threads| threads as usize);
    runtime::run(&env, threads, serve(&env, config, server, secret, args.stop_with_parent))?
}

fn find<'a>(config: &'a Config, name: &str, role: Role) -> anyhow::Result<&'a ServerEntry> {
    let file = config.path().display();
    let Some(server) = config.server(name) else {
        let names: Vec<_> = config.servers().iter().map(|server| server.name.as_str()).collect();
        bail!("{file} has no server {name:?}; it has {}", names.join(", "));
    };
    if server.role != role {
        bail!("{name} has the role {} in {file}; run `pygmy serve {0} --name {name}`", server.role);
    }
    Ok(server)
}

/// Reads the cluster's secret.
///
/// # Errors
/// What is wrong with the file, and how to make one.
pub(crate) fn read_secret(file: &Path) -> anyhow::Result<Secret> {
    Secret::read(file).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => anyhow::anyhow!(
            "{error}; copy it from another machine of the cluster, or make the cluster's with: \
             (umask 077; openssl rand -hex 32 > {})",
            file.display()
        ),
        _ => error.into(),
    })
}

async fn serve(
    env: &Env,
    config: Arc<Config>,
    server: ServerEntry,
    secret: Secret,
    stop_with_parent: bool,
) -> anyhow::Result<()> {
    let files = descriptors::raise()?;
    let listeners = Listeners::bind(env, &server).await?;
    let (stopper, stopped) = shutdown();
    let signals = Signals::catch().context("cannot catch signals")?;
    stop_on_signal(env, signals, stopper.clone());
    let _watching = stop_with_parent.then(|| watch_parent(env, stopper));
    let (name, role) = (server.name.clone(), server.role);
    tracing::info!(name, %role, listen = %server.listen, url = server.base_url(), "serving");
    let metrics = Metrics::new(env);
    process::register(&metrics);
    let process = env.random.hex(8);
    let tiers = Tiers { env: env.clone(), config, server, secret, metrics, process, files };
    let (wanted, taken) = (tiers.config.document().limits.max_connections, tiers.limits());
    if taken.max_connections < wanted {
        let taken = taken.max_connections;
        tracing::warn!(
            files,
            wanted,
            taken,
            "fewer connections are taken than max_connections: too few open files are allowed here (ulimit -n)"
        );
    }
    match listeners.run(tiers, stopped).await {
        Ok(()) => {
            tracing::info!(name, "stopped");
            Ok(())
        }
        Err(Fatal(reason)) => {
            tracing::error!(name, reason, "cannot go on");
            Err(Logged.into())
        }
    }
}

/// Where a server takes connections.
struct Listeners {
    listener: Box<dyn Listener>,
    public: Option<Box<dyn Listener>>,
}

impl Listeners {
    async fn bind(env: &Env, server: &ServerEntry) -> anyhow::Result<Listeners> {
        let listener = listen(env, server, server.listen).await?;
        let public = match server.public_listen {
            Some(address) => Some(listen(env, server, address).await?),
            None => None,
        };
        Ok(Listeners { listener, public })
    }

    /// Serves until `stopped`, and tells those that watch this process when it leaves so.
    async fn run(self, tiers: Tiers, stopped: Shutdown) -> Result<(), Fatal> {
        let goodbye = tiers.env.spawn(say_goodbye(&tiers, stopped.clone()));
        let result = match self.public {
            Some(public) => all::run(tiers, self.listener, public, stopped).await,
            None => run_tier(tiers, self.listener, stopped).await,
        };
        match &result {
            // A panic has been reported by itself.
            Ok(()) => drop(goodbye.await),
            Err(_) => goodbye.abort(),
        }
        result
    }
}

/// Runs the server `name` of the configuration `text`, which stands for the file at `path`, in
/// `env` until `stopped`. For simulations, which are one process with many servers.
///
/// # Errors
/// The configuration is wrong, the address is taken, or what ended the server early.
pub async fn run_server(
    env: &Env,
    path: &Path,
    text: &str,
    name: &str,
    secret: Secret,
    stopped: Shutdown,
) -> anyhow::Result<()> {
    let config = Arc::new(Config::parse(path, text, &Settings::default())?);
    let server = config.server(name).with_context(|| format!("there is no server {name}"))?.clone();
    let listeners = Listeners::bind(env, &server).await?;
    let metrics = Metrics::new(env);
    let process = env.random.hex(8);
    let files = u64::MAX;
    let tiers = Tiers { env: env.clone(), config, server, secret, metrics, process, files };
    Ok(listeners.run(tiers, stopped).await?)
}

fn say_goodbye(tiers: &Tiers, mut stopped: Shutdown) -> impl Future<Output = ()> + use<> {
    let (env, secret) = (tiers.env.clone(), tiers.secret.clone());
    let (name, process) = (tiers.server.name.clone(), tiers.process.clone());
    let processes = tiers.config.processes();
    async move {
        stopped.stopped().await;
        watch::leave(&env, &processes, &name, &process, &secret).await;
    }
}

async fn run_tier(
    tiers: Tiers,
    listener: Box<dyn Listener>,
    stopped: Shutdown,
) -> Result<(), Fatal> {
    let env = tiers.env.clone();
    match tiers.server.role {
        Role::Frontend => pygmy_frontend::run(tiers.frontend()?, env, listener, stopped).await,
        Role::Balancer => pygmy_balancer::run(tiers.balancer()?, env, listener, stopped).await,
        Role::Order => pygmy_order::run(tiers.order()?, env, listener, stopped).await,
        Role::Catalog => pygmy_catalog::run(tiers.catalog()?, env, listener, stopped).await,
        Role::All => Err(Fatal("a server with all tiers needs public_listen".to_owned())),
    }
}

async fn listen(
    env: &Env,
    server: &ServerEntry,
    address: SocketAddr,
) -> anyhow::Result<Box<dyn Listener>> {
    env.listen(address).await.map_err(|error| {
        let advice = match error.kind() {
            io::ErrorKind::AddrInUse => "stop the program that uses the port, or give another one",
            _ => "give another address",
        };
        anyhow::anyhow!("{error}; {advice} to {} in the configuration", server.name)
    })
}

fn stop_on_signal(env: &Env, mut signals: Signals, stopper: Stopper) {
    env.spawn(async move {
        let signal = signals.next().await;
        tracing::info!(signal, "stopping");
        stopper.stop();
    });
}

/// Stops when standard input ends. A worker of its own reads it, because such a read cannot be
/// called off; it dies with the process.
fn watch_parent(env: &Env, stopper: Stopper) -> Box<dyn Wake> {
    let wait = move || {
        // An error is an end as well.
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        tracing::info!("stopping: the parent process is gone");
        stopper.stop();
    };
    let worker = env.workers.start("parent", Box::new(wait));
    worker.wake();
    worker
}
