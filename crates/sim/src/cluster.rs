//! The machines of a run and the servers on them.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use pygmy_protocol::{
    Env,
    env::{FakeDisk, Random},
    http::{Secret, Stopper, shutdown},
};
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    clock::{HostClock, WorldTime},
    commands::{self, Commands},
    host::HostTasks,
    losses::Loss,
    network::{HostNetwork, Wires},
    rng::Rng,
    trace::note,
    workers::SimWorkers,
};

/// The secret of every simulated cluster.
const SECRET: &str = "secret-of-the-simulation";
/// The port of every server, and the public one of those with all tiers.
const PORT: u16 = 8080;
const PUBLIC_PORT: u16 = 8081;
/// No clock is faster or slower than this: together the bound of 1 % that the design assumes.
const DRIFT_PPM_MAX: u64 = 4_900;

/// What runs on the machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Each tier in processes of its own.
    Tiers,
    /// All tiers in each process.
    Nodes,
}

const CATALOGS: [&str; 5] = ["catalog-1", "catalog-2", "catalog-3", "catalog-4", "catalog-5"];
const FRONT_ENDS: [&str; 3] = ["frontend-1", "frontend-2", "frontend-3"];
const NODES: [&str; 5] = ["node-1", "node-2", "node-3", "node-4", "node-5"];
const CLIENTS: &[&str] = &[
    "client-1", "client-2", "client-3", "client-4", "client-5", "client-6", "client-7", "client-8",
];

/// The servers with their roles: mostly three replicas, sometimes four or five.
fn servers(layout: Layout, rng: &Rng) -> Vec<(&'static str, &'static str)> {
    let replicas = *rng.pick(&[3, 3, 3, 4, 5]);
    let front_ends = rng.between(2, 3) as usize;
    let all_in_one = |name: &&'static str| (*name, "all");
    let of = |role: &'static str, names: &[&'static str]| -> Vec<_> {
        names.iter().map(|name| (*name, role)).collect()
    };
    match layout {
        Layout::Nodes => NODES[..replicas].iter().map(all_in_one).collect(),
        Layout::Tiers => [
            of("balancer", &["balancer-1", "balancer-2"]),
            of("catalog", &CATALOGS[..replicas]),
            of("frontend", &FRONT_ENDS[..front_ends]),
            of("order", &["order-1", "order-2"]),
        ]
        .concat(),
    }
}

/// How a server ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Crash {
    /// kill -9: the machine and what it has in memory for its disk stay.
    Process,
    /// The machine: what was not synced is lost, whole or in part.
    Power,
}

/// A machine.
pub(crate) struct Machine {
    pub(crate) name: &'static str,
    pub(crate) role: &'static str,
    pub(crate) address: IpAddr,
    pub(crate) clock: Arc<HostClock>,
    /// What its configuration says. It differs from that of the others in runs in which a changed
    /// one is being rolled out.
    lease_ms: u64,
    disk: FakeDisk,
    rng: Rng,
    dir: PathBuf,
    life: Option<Life>,
    lives: Arc<AtomicU64>,
    is_broken: bool,
    /// What SQLite had when it was last looked at.
    database: Option<Database>,
}

struct Life {
    /// Held for the workers, which belong to it.
    _env: Arc<Env>,
    tasks: Arc<HostTasks>,
    workers: SimWorkers,
    _stopper: Stopper,
    ended: Arc<std::sync::OnceLock<String>>,
}

/// A committed state of SQLite: its two files.
struct Database {
    main_hash: u64,
    main: Vec<u8>,
    log: Vec<u8>,
}

/// All machines.
pub(crate) struct Cluster {
    pub(crate) layout: Layout,
    pub(crate) wires: Wires,
    pub(crate) commands: Commands,
    time: WorldTime,
    rng: Rng,
    dir: PathBuf,
    config: String,
    secret: Secret,
    pub(crate) machines: Vec<Machine>,
}

impl Cluster {
    /// Machines without servers. SQLite's files go to `dir`, a real one.
    pub(crate) fn new(
        layout: Layout,
        time: WorldTime,
        rng: &Rng,
        dir: &Path,
    ) -> io::Result<Cluster> {
        let rng = rng.fork();
        let servers = servers(layout, &rng);
        let mut machines = Vec::new();
        // With the shortest one, Raft's own patience with a silent leader hides what leases are for.
        let lease_ms = *rng.pick(&[500, 1_500, 3_000]);
        let is_rolled_out = rng.percent(30);
        let mut config = SETTINGS.to_owned();
        if rng.percent(50) {
            config += commands::SETTINGS;
        }
        for (number, (name, role)) in servers.into_iter().enumerate() {
            let address = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1 + number as u8));
            config += &format!("[[server]]\nname = \"{name}\"\nrole = \"{role}\"\n");
            config += &format!("listen = \"{address}:{PORT}\"\n");
            if role == "all" {
                config += &format!("public_listen = \"{address}:{PUBLIC_PORT}\"\n");
            }
            let drift = rng.below(2 * DRIFT_PPM_MAX) as i64 - DRIFT_PPM_MAX as i64;
            let data = dir.join(name);
            fs::create_dir_all(&data)?;
            machines.push(Machine {
                name,
                role,
                address,
                clock: HostClock::new(time, drift),
                lease_ms: match is_rolled_out {
                    true => *rng.pick(&[500, 1_500, 3_000]),
                    false => lease_ms,
                },
                disk: FakeDisk::default(),
                rng: rng.fork(),
                dir: data,
                life: None,
                lives: Arc::default(),
                is_broken: false,
                database: None,
            });
        }
        let secret = Secret::new(SECRET).map_err(io::Error::other)?;
        let (wires, dir) = (Wires::new(rng.fork()), dir.to_owned());
        let commands = Commands::default();
        Ok(Cluster { layout, wires, commands, time, rng, dir, config, secret, machines })
    }

    /// The environment of a client's machine, with a clock of its own.
    pub(crate) fn client(&self, number: usize) -> Env {
        let name = CLIENTS[number % CLIENTS.len()];
        let address = IpAddr::V4(Ipv4Addr::new(10, 0, 1, 1 + number as u8));
        let disk = FakeDisk::default();
        let tasks = HostTasks::new(name, &disk);
        let workers = SimWorkers::new(self.rng.fork());
        let clock = HostClock::new(self.time, 0);
        let env = self.environment(clock, address, disk, &workers, &tasks);
        (*env).clone()
    }

    /// The secret of the cluster.
    pub(crate) fn secret(&self) -> &Secret {
        &self.secret
    }

    /// Base URLs of what answers the public.
    pub(crate) fn public_urls(&self) -> Vec<String> {
        let public = |m: &&Machine| matches!(m.role, "frontend" | "all");
        let port = if self.layout == Layout::Nodes { PUBLIC_PORT } else { PORT };
        self.machines
            .iter()
            .filter(public)
            .map(|m| format!("http://{}:{port}", m.address))
            .collect()
    }

    /// Base URLs of all servers with a tier.
    pub(crate) fn urls(&self, tier: &str) -> Vec<String> {
        let has = |m: &&Machine| m.role == tier || m.role == "all";
        let url = |m: &Machine| match m.role {
            "all" => format!("http://{}:{PORT}/{tier}", m.address),
            _ => format!("http://{}:{PORT}", m.address),
        };
        self.machines.iter().filter(has).map(url).collect()
    }

    fn environment(
        &self,
        clock: Arc<HostClock>,
        address: IpAddr,
        disk: FakeDisk,
        workers: &SimWorkers,
        tasks: &Arc<HostTasks>,
    ) -> Arc<Env> {
        let env = Arc::new(Env {
            clock,
            network: Arc::new(HostNetwork { wires: self.wires.clone(), address }),
            files: Arc::new(disk),
            random: Arc::new(self.rng.fork()),
            workers: Arc::new(workers.clone()),
            processes: Arc::new(self.commands.clone()),
            governor: Some(Arc::clone(tasks) as Arc<_>),
        });
        workers.belong_to(&env);
        env
    }

    /// Starts the server of a machine.
    pub(crate) fn start(&mut self, index: usize) {
        let (name, address) = (self.machines[index].name, self.machines[index].address);
        note(format_args!("start {name}"));
        let machine = &self.machines[index];
        let tasks = HostTasks::new(name, &machine.disk);
        let workers = SimWorkers::new(self.rng.fork());
        let (clock, disk) = (Arc::clone(&machine.clock), machine.disk.clone());
        let env = self.environment(clock, address, disk, &workers, &tasks);
        let (stopper, stopped) = shutdown();
        let ended = Arc::new(std::sync::OnceLock::new());
        let (says, runs) = (Arc::clone(&ended), Arc::clone(&env));
        let lease = format!("[frontend]\nlease_ms = {}\n\n", machine.lease_ms);
        let (path, text, secret) =
            (self.dir.join("pygmy.toml"), lease + &self.config, self.secret.clone());
        env.spawn(async move {
            let result = pygmy::run_server(&runs, &path, &text, name, secret, stopped).await;
            let why = result.err().map_or("it stopped".to_owned(), |error| format!("{error:#}"));
            note(format_args!("{name} ended: {why}"));
            // Ends once.
            let _ = says.set(why);
        });
        self.machines[index].lives.fetch_add(1, Ordering::Relaxed);
        self.machines[index].life =
            Some(Life { _env: env, tasks, workers, _stopper: stopper, ended });
    }

    /// Whether the server of a machine runs.
    pub(crate) fn is_up(&self, index: usize) -> bool {
        let machine = &self.machines[index];
        let runs = |life: &Life| life.ended.get().is_none() && !machine.disk.is_dead();
        machine.life.as_ref().is_some_and(runs)
    }

    /// The machines with a replica of the catalog.
    pub(crate) fn replicas(&self) -> Vec<usize> {
        self.machines_with("catalog")
    }

    /// The machines that have a tier.
    pub(crate) fn machines_with(&self, tier: &str) -> Vec<usize> {
        let has_it = |index: &usize| [tier, "all"].contains(&self.machines[*index].role);
        (0..self.machines.len()).filter(has_it).collect()
    }

    /// Ends the server of a machine, if there is one.
    pub(crate) async fn crash(&mut self, index: usize, crash: Crash) -> io::Result<()> {
        let wires = self.wires.clone();
        let machine = &mut self.machines[index];
        let Some(life) = machine.life.take() else { return Ok(()) };
        note(format_args!("crash {} {crash:?}", machine.name));
        // From here on nothing it does has an effect.
        machine.disk.die_after(0);
        let power = crash == Crash::Power;
        wires.host_gone(machine.address, power, machine.rng.percent(50));
        let database = machine.database_after(crash)?;
        life.tasks.pause(false);
        life.tasks.abort_all();
        drop(life);
        // The tasks are dropped when the runtime comes to them.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        if let Some(database) = database {
            database.write(&machine.dir)?;
        }
        match crash {
            Crash::Process => machine.disk.process_death(),
            Crash::Power => machine.disk.power_loss(machine.rng.u64()),
        }
        machine.database = None;
        machine.is_broken = false;
        Ok(())
    }

    /// Holds a server up, or lets it go on.
    pub(crate) fn pause(&self, index: usize, paused: bool) {
        if let Some(life) = &self.machines[index].life {
            note(format_args!(
                "{} {}",
                if paused { "pause" } else { "resume" },
                self.machines[index].name
            ));
            life.tasks.pause(paused);
        }
    }

    /// Makes a disk slow, or quick again.
    pub(crate) fn set_disk_delay(&self, index: usize, delay_us_max: u64) {
        if let Some(life) = &self.machines[index].life {
            life.workers.set_delay(delay_us_max);
        }
    }

    /// Makes a replica slow to apply what is committed, for `how_long`: its log, its votes and its
    /// reads are as quick as ever.
    pub(crate) fn slow_apply(&self, index: usize, delay_us_max: u64, how_long: Duration) {
        if let Some(life) = &self.machines[index].life {
            life.workers.slow_apply(delay_us_max, how_long);
        }
    }

    /// Lets a running server die after so many more calls to its disk.
    pub(crate) fn die_after(&self, index: usize, calls: u64) {
        if self.is_up(index) {
            self.machines[index].disk.die_after(calls);
        }
    }

    /// Takes [`die_after`](Cluster::die_after) back, if it is not too late.
    pub(crate) fn spare(&self, index: usize) {
        self.machines[index].disk.spare();
    }

    /// Whether a server has died at a call to its disk and waits to be taken away.
    pub(crate) fn has_died(&self, index: usize) -> bool {
        self.machines[index].disk.is_dead()
    }

    /// Lets every fsync of a running server fail from now on, until it is started again.
    pub(crate) fn fail_syncs(&mut self, index: usize) {
        if self.is_up(index) {
            note(format_args!("fsync fails on {}", self.machines[index].name));
            self.machines[index].disk.fail_syncs();
            self.machines[index].is_broken = true;
        }
    }

    /// Leaves so many bytes free on the disk of a machine.
    pub(crate) fn fill_disk(&self, index: usize, free_bytes: u64) {
        let disk = &self.machines[index].disk;
        disk.set_room(disk.used_bytes() + free_bytes);
    }

    /// Makes room on all disks.
    pub(crate) fn make_room(&self) {
        self.machines.iter().for_each(|machine| machine.disk.set_room(u64::MAX));
    }

    /// Whether the disk of a machine is broken.
    pub(crate) fn is_broken(&self, index: usize) -> bool {
        self.machines[index].is_broken
    }

    /// Takes the disk of a machine whose server does not run, or a part of it.
    pub(crate) fn lose_disk(&mut self, index: usize) -> io::Result<()> {
        let Machine { dir, disk, rng, .. } = &self.machines[index];
        let loss = Loss::draw(rng, disk);
        loss.strike(rng, disk);
        if loss == Loss::Everything {
            remove_database(dir)?;
        }
        Ok(())
    }

    /// Takes note of what SQLite has committed, as a state that a power loss may take it back to.
    pub(crate) fn remember_databases(&mut self) -> io::Result<()> {
        for machine in &mut self.machines {
            if machine.life.is_some() && machine.dir.join(MAIN).exists() {
                machine.database = Some(Database::read(&machine.dir)?);
            }
        }
        Ok(())
    }
}

const MAIN: &str = "catalog.db";
const LOG: &str = "catalog.db-wal";
const SHARED: &str = "catalog.db-shm";

impl Machine {
    /// How often its server was started, now and later.
    pub(crate) fn lives(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.lives)
    }

    /// What SQLite has after a crash: what it has now, or after a power loss what it had when it
    /// was last looked at. The latter only if no checkpoint came in between: that is synced.
    fn database_after(&mut self, crash: Crash) -> io::Result<Option<Database>> {
        if !self.dir.join(MAIN).exists() {
            return Ok(None);
        }
        let now = Database::read(&self.dir)?;
        let older = self.database.take().filter(|older| older.main_hash == now.main_hash);
        let lost = crash == Crash::Power && self.rng.percent(60);
        Ok(Some(older.filter(|_| lost).unwrap_or(now)))
    }
}

fn remove_database(dir: &Path) -> io::Result<()> {
    for name in [MAIN, LOG, SHARED] {
        match fs::remove_file(dir.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

impl Database {
    fn read(dir: &Path) -> io::Result<Database> {
        let main = fs::read(dir.join(MAIN))?;
        let log = match fs::read(dir.join(LOG)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            log => log?,
        };
        Ok(Database { main_hash: xxh3_64(&main), main, log })
    }

    /// Writes new files, because a router of the dead server may hold connections to the old
    /// ones: the tiers of one process call one another in a circle, which only its end breaks.
    fn write(&self, dir: &Path) -> io::Result<()> {
        remove_database(dir)?;
        fs::write(dir.join(MAIN), &self.main)?;
        fs::write(dir.join(LOG), &self.log)
    }
}

/// Small logs, so that segments and snapshots come within a run.
const SETTINGS: &str = "\
[cluster]
heartbeat_ms = 500

[balancer]
probe_interval_ms = 250

[catalog]
log_segment_bytes = 65536
log_cache_bytes = 16384
snapshot_log_entries = 120
log_entries_kept = 10
key_run_orders = 8
min_free_bytes = 1048576

";
