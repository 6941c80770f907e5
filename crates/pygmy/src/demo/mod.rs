//! `pygmy demo`: the whole store on this machine.
//!
//! A demo is a directory with a configuration, which [`layout`] writes when there is none, and
//! the servers of that configuration as child processes ([`supervise`]). [`bring_up`](up) waits
//! until they live, makes them a cluster with the [`books`](crate::books) of the reference design
//! or the [`items`](crate::items) of a file, once, and waits until they are ready. A
//! server that is lost is noticed by those that watch it, which [`ask`] for it to be started again;
//! it stays a child of the demo. [`report`] tells people what happens.

mod ask;
mod chaos;
mod layout;
mod report;
mod supervise;
mod up;

use std::{
    ffi::OsString,
    fs,
    io::Write,
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{DirBuilderExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use pygmy_client::{
    operator::Operator,
    store::{Patience, Store},
};
use pygmy_protocol::{Env, http::Secret, registration::Role};
use tokio::sync::mpsc;

pub(crate) use self::ask::run as respawn;
use self::{ask::Ask, chaos::Chaos, report::Report, supervise::Children};
use crate::{
    cli::DemoArgs,
    client,
    config::{Config, Settings},
    items::{Checked, ItemsFile, check},
    runtime::{self, Signals},
};

/// The configuration, in the demo's directory.
const CONFIG: &str = "pygmy.toml";
/// What the client process and the test cases write, in the demo's directory.
const CLIENT_OUTPUT: &str = "ClientOutput.txt";
const TESTS: &str = "tests.txt";
const NO_SERVER_LEFT: &str =
    "no server is left, and so nobody to start one again; run the same command once more";

/// Runs a demo until it is told to stop.
pub(crate) fn run(args: &DemoArgs) -> anyhow::Result<()> {
    let env = Env::production();
    let mut plan = Plan::of(args)?;
    runtime::block_on(&env, demo(&env, args, &mut plan))?
}

/// What is going to run.
struct Plan {
    config: Config,
    /// The text of the configuration, if the directory has none yet.
    new: Option<String>,
    /// What to put on sale instead of the books.
    items: Option<(ItemsFile, Checked)>,
}

impl Plan {
    fn of(args: &DemoArgs) -> anyhow::Result<Plan> {
        let settings = Settings::of_process(&[]);
        settings.check_variables()?;
        let items = match &args.items {
            Some(file) => Some(first_items(&args.dir, file)?),
            None => unfinished_items(&args.dir)?,
        };
        let path = args.dir.join(CONFIG);
        let asked = layout::Asked { layout: args.layout, base_port: args.base_port };
        if path.exists() {
            let config = Config::load(&path, &settings)?;
            asked.check_against(&config)?;
            return Ok(Plan { config, new: None, items });
        }
        let text = asked.configuration()?;
        Ok(Plan { config: Config::parse(&path, &text, &settings)?, new: Some(text), items })
    }

    /// Makes the directory, the configuration and the secret, as far as they are missing.
    fn write(&self, env: &Env, dir: &Path) -> anyhow::Result<()> {
        // The secret and everything that was sold are nobody else's business.
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.with_context(|| format!("cannot make {}; choose another --dir", dir.display()))?;
        if let Some(text) = &self.new {
            write(self.config.path(), text, 0o644)?;
        }
        let secret_file = self.config.secret_file();
        if !secret_file.exists() {
            write(&secret_file, format!("{}\n", Secret::generate(env)), 0o600)?;
        }
        if let Some((file, _)) = &self.items {
            // Who starts it the next time, should this be broken off, need not know it.
            let file = std::path::absolute(file.path())?;
            write(&dir.join(up::LOADING), file.as_os_str().as_bytes(), 0o644)?;
        }
        Ok(())
    }
}

/// The first items of a new demo: a bad file is found before any server starts.
fn first_items(dir: &Path, file: &Path) -> anyhow::Result<(ItemsFile, Checked)> {
    if dir.join(up::BOOTSTRAPPED).exists() {
        bail!(
            "the store in {} has its first items; bring others with `pygmy admin import`, or choose \
             another --dir",
            dir.display()
        );
    }
    let mut file = ItemsFile::open(file, None)?;
    let checked = check(&mut file)?;
    Ok((file, checked))
}

/// The first items of a demo that was broken off while it loaded them.
fn unfinished_items(dir: &Path) -> anyhow::Result<Option<(ItemsFile, Checked)>> {
    let recorded = dir.join(up::LOADING);
    if dir.join(up::BOOTSTRAPPED).exists() || !recorded.exists() {
        return Ok(None);
    }
    let read =
        fs::read(&recorded).with_context(|| format!("cannot read {}", recorded.display()))?;
    let file = PathBuf::from(OsString::from_vec(read));
    let items = first_items(dir, &file).with_context(|| {
        format!(
            "the store in {} was to begin with the items of {}; name a file with --items, or \
             choose another --dir",
            dir.display(),
            file.display()
        )
    })?;
    eprintln!("going on with the items of {}", file.display());
    Ok(Some(items))
}

/// Writes a whole file or, under its name, nothing.
fn write(path: &Path, text: impl AsRef<[u8]>, mode: u32) -> anyhow::Result<()> {
    let unfinished = path.with_extension("new");
    let written = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&unfinished)
        .and_then(|mut file| file.write_all(text.as_ref()).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&unfinished, path));
    written.with_context(|| format!("cannot write {}", path.display()))
}

async fn demo(env: &Env, args: &DemoArgs, plan: &mut Plan) -> anyhow::Result<()> {
    let mut signals = Signals::catch().context("cannot catch signals")?;
    supervise::check_ports(env, &plan.config, plan.new.is_some()).await?;
    // Only now: who is refused for a port in use may ask for others in the same directory.
    plan.write(env, &args.dir)?;
    let Plan { config, items, .. } = plan;
    let report = Report::new(config, &args.dir);
    let asks = ask::listen(env, &args.dir).unwrap_or_else(|error| {
        eprintln!("pygmy: {error:#}; servers that are lost will not be started again");
        mpsc::channel(1).1
    });
    let mut children = Children::start(env, config, args.log_format)?;
    let outcome = tokio::select! {
        outcome = run_store(env, args, config, items, &mut children, asks, &report) => outcome,
        _ = signals.next() => Ok(()),
    };
    report.stopping(children.count());
    let killed = children.stop(env, &mut signals).await;
    ask::forget(&args.dir);
    report.stopped(&killed);
    outcome
}

/// Runs the store until no server is left. Whoever is tired of it drops this.
async fn run_store(
    env: &Env,
    args: &DemoArgs,
    config: &Config,
    items: &mut Option<(ItemsFile, Checked)>,
    children: &mut Children<'_>,
    mut asks: mpsc::Receiver<Ask>,
    report: &Report<'_>,
) -> anyhow::Result<()> {
    let secret = Secret::read(&config.secret_file())?;
    let first = up::First { dir: &args.dir, config, secret: &secret, items };
    up::bring_up(env, first, children, &mut asks, report).await?;
    report.servers(children)?;
    if args.client {
        let client = run_client(env, &args.dir, config, secret);
        tokio::select! {
            ended = client => if let Err(error) = ended {
                // The store goes on: it is what people need to find out why.
                eprintln!("pygmy: {error:#}");
            },
            () = tend(children, &mut asks, report) => bail!(NO_SERVER_LEFT),
        }
    }
    report.what_to_try()?;
    let mut chaos = args.chaos.then(|| Chaos::new(env, config.servers().len()));
    loop {
        tokio::select! {
            event = children.next_event(&mut asks) => match event {
                Some(event) => report.event(&event),
                None => bail!(NO_SERVER_LEFT),
            },
            () = next_of(chaos.as_ref()) => {
                let struck = chaos.as_mut().and_then(|chaos| chaos.strike(children));
                struck.iter().for_each(|struck| eprintln!("{struck}"));
            }
        }
    }
}

/// Does what is asked and says what happens, until no server is left.
async fn tend(children: &mut Children<'_>, asks: &mut mpsc::Receiver<Ask>, report: &Report<'_>) {
    while let Some(event) = children.next_event(asks).await {
        report.event(&event);
    }
}

/// Completes when chaos wants a server; never without chaos.
async fn next_of(chaos: Option<&Chaos>) {
    match chaos {
        Some(chaos) => chaos.next().await,
        None => std::future::pending().await,
    }
}

async fn run_client(env: &Env, dir: &Path, config: &Config, secret: Secret) -> anyhow::Result<()> {
    let (patience, wrong) = (Patience::default(), anyhow::Error::msg);
    let store = Store::new(env, &config.public_urls(), patience).map_err(wrong)?;
    let operator = Operator::new(env, &config.urls(Role::Balancer), secret, patience);
    crate::print::line("")?;
    client::run_process(env, &store, &dir.join(CLIENT_OUTPUT)).await?;
    client::run_cases(env, &store, &operator.map_err(wrong)?, &dir.join(TESTS)).await
}
