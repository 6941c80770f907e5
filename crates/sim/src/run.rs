//! One run: a cluster, clients, faults, and the judges.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use http::{Method, StatusCode};
use pygmy_client::{Call, Upstream};
use pygmy_protocol::{
    Env, RequestContext,
    env::Random,
    http::Secret,
    item::{Item, ItemNumber},
    order::{Order, OrderNumber},
    registration::CatalogStatus,
};
use tokio::runtime::{Builder, RngSeed};

use crate::{
    check::{
        history::{Event, History, Operation, Outcome},
        linearizable,
        orders::{self, Found},
        replicas::{Observation, Replicas},
    },
    clock::WorldTime,
    cluster::{Cluster, Layout},
    faults::{Faults, Scenario},
    load::{Client, Load, items},
    rng::Rng,
    trace::{self, note},
};

/// What a run is asked to be. Everything else comes from the seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) scenario: Scenario,
    /// Most faults; `None` for as many as the seed says.
    pub(crate) faults: Option<u64>,
    /// Most clients.
    pub(crate) clients: Option<u64>,
}

/// What a run came to.
pub(crate) struct Report {
    pub(crate) plan: Plan,
    /// The broken promise, if there is one.
    pub(crate) failure: Option<String>,
    pub(crate) trace: Vec<String>,
    /// Requests that clients made.
    pub(crate) requests: usize,
}

/// How long the faults go on.
const STORM: Duration = Duration::from_secs(15);
/// The store sells again this long after a majority is healed, or is not alive.
const RECOVERY: Duration = Duration::from_secs(20);
/// A request of the driver.
const REQUEST: Duration = Duration::from_secs(5);
/// Time between two looks at a replica's state.
const LOOK: Duration = Duration::from_millis(40);
/// The driver's machine has this number among the clients.
const DRIVER: usize = 7;

/// Runs `plan` to its end. SQLite's files go to a directory of their own below `scratch`.
pub(crate) fn run(plan: Plan, scratch: &Scratch) -> Report {
    let seed = RngSeed::from_bytes(&plan.seed.to_le_bytes());
    let runtime =
        Builder::new_current_thread().enable_time().start_paused(true).rng_seed(seed).build();
    // A current-thread runtime without I/O needs nothing that could be missing.
    let runtime = runtime.expect("a runtime without I/O starts");
    // Two runs of one process may have the same seed.
    static RUNS: AtomicU64 = AtomicU64::new(0);
    let dir = scratch.0.join(format!("run-{}", RUNS.fetch_add(1, Ordering::Relaxed)));
    let (result, requests) = runtime.block_on(async {
        trace::begin(WorldTime::begin());
        let history = Arc::new(Mutex::new(History::default()));
        let result = play(plan, &dir, &history).await;
        (result, lock(&history).events.len())
    });
    drop(runtime);
    let (lines, panicked) = trace::end();
    let _ = fs::remove_dir_all(&dir);
    let failure = match result {
        _ if panicked => Some("a task panicked".to_owned()),
        Ok(()) => None,
        Err(why) => Some(why),
    };
    let shown = dir.to_string_lossy().into_owned();
    let trace = lines.into_iter().map(|line| line.replace(&shown, "DIR")).collect();
    Report { plan, failure, trace, requests }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn play(plan: Plan, dir: &Path, history: &Arc<Mutex<History>>) -> Result<(), String> {
    let driver = Driver::begin(plan, dir, history).await?;
    driver.storm_and_judge().await
}

/// Sees a run through.
struct Driver {
    plan: Plan,
    rng: Rng,
    time: WorldTime,
    cluster: Cluster,
    env: Env,
    secret: Secret,
    history: Arc<Mutex<History>>,
    replicas: Arc<Mutex<Watch>>,
}

/// What the replicas were seen to hold.
#[derive(Default)]
struct Watch {
    replicas: Replicas,
    violation: Option<String>,
    /// The highest term in which a machine was seen to lead, and its number.
    leader: Option<(u64, usize)>,
}

impl Driver {
    /// Starts everything and makes the cluster.
    async fn begin(
        plan: Plan,
        dir: &Path,
        history: &Arc<Mutex<History>>,
    ) -> Result<Driver, String> {
        let rng = Rng::new(plan.seed);
        let time = WorldTime::begin();
        let layout = if rng.percent(50) { Layout::Tiers } else { Layout::Nodes };
        let cluster = Cluster::new(layout, time, &rng, dir).map_err(|e| e.to_string())?;
        let env = cluster.client(DRIVER);
        let secret = cluster.secret().clone();
        let (history, replicas) = (Arc::clone(history), Arc::default());
        let mut driver = Driver { plan, rng, time, cluster, env, secret, history, replicas };
        note(format_args!("{layout:?}"));
        for index in 0..driver.cluster.machines.len() {
            driver.cluster.start(index);
        }
        driver.bootstrap().await?;
        Ok(driver)
    }

    async fn bootstrap(&mut self) -> Result<(), String> {
        let body = serde_json::json!({ "items": items() });
        self.within(RECOVERY, "the cluster is made", async |driver: &Driver| {
            let url = driver.cluster.urls("catalog").swap_remove(0);
            let call = driver.call(Method::POST, "/bootstrap").with_json(&body);
            let answer = driver.send(&url, &call).await?;
            (answer.status == StatusCode::OK).then_some(())
        })
        .await
    }

    async fn storm_and_judge(mut self) -> Result<(), String> {
        let load = Load {
            history: Arc::clone(&self.history),
            stop: Arc::new(AtomicBool::new(false)),
            time: self.time,
        };
        let clients = self.rng.between(2, 6).min(self.plan.clients.unwrap_or(u64::MAX));
        let mut tasks = Vec::new();
        for number in 0..clients {
            let client = Client::new(&self.cluster, number as u32, &self.rng, &load);
            tasks.push(client.env.clone().spawn(client.run()));
        }
        self.watch_replicas();
        let mut faults = Faults::draw(&self.rng, &self.env, self.plan.scenario, self.plan.faults);
        self.storm(&mut faults).await?;
        self.live_again(&mut faults).await?;
        load.stop.store(true, Ordering::Relaxed);
        for task in tasks {
            task.await.map_err(|e| format!("a client failed: {e}"))?;
        }
        // What got lost may still be made until its deadline.
        self.env.sleep(REQUEST).await;
        let found = self.final_state().await?;
        self.judge(&found)
    }

    /// Faults, one after the other.
    async fn storm(&mut self, faults: &mut Faults) -> Result<(), String> {
        let end = self.time.elapsed() + STORM;
        while self.time.elapsed() < end {
            self.env.sleep(faults.gap()).await;
            let leader = lock(&self.replicas).leader.map(|(_, leader)| leader);
            faults.step(&mut self.cluster, leader).await.map_err(|e| e.to_string())?;
            self.no_violation()?;
        }
        Ok(())
    }

    /// With all faults over, but a minority down, the store sells again; then all come back.
    async fn live_again(&mut self, faults: &mut Faults) -> Result<(), String> {
        self.lost_disks_are_back(faults).await?;
        let down = self.minority();
        faults.end_all(&mut self.cluster, &down).await.map_err(|e| e.to_string())?;
        self.within(RECOVERY, "a majority sells again", async |driver: &Driver| {
            let url = driver.rng.pick(&driver.cluster.public_urls()).clone();
            // An item that does not exist: refused by the state machine, and nothing changes.
            let call = driver.call(Method::POST, "/buy/99");
            let answer = driver.send(&url, &call).await?;
            (answer.status == StatusCode::NOT_FOUND).then_some(())
        })
        .await?;
        faults.end_all(&mut self.cluster, &[]).await.map_err(|e| e.to_string())?;
        Ok(())
    }

    /// A replica whose disk was lost counts for nothing until it has its place again: the store can
    /// do without a minority, and it is one of that.
    async fn lost_disks_are_back(&mut self, faults: &mut Faults) -> Result<(), String> {
        if faults.lost_are_back(&self.cluster).await {
            return Ok(());
        }
        faults.end_all(&mut self.cluster, &[]).await.map_err(|e| e.to_string())?;
        let end = self.time.elapsed() + RECOVERY;
        while !faults.lost_are_back(&self.cluster).await {
            if self.time.elapsed() > end {
                return Err(format!(
                    "not alive: waited {RECOVERY:?} in vain until replicas that lost their disks are back"
                ));
            }
            // Without a leader such a replica ends, and whoever watches it starts it again.
            faults.restart_ended(&mut self.cluster).await.map_err(|e| e.to_string())?;
            self.env.sleep(LOOK).await;
        }
        Ok(())
    }

    /// Machines with replicas that the store can do without: mostly as many as can be.
    fn minority(&self) -> Vec<usize> {
        let mut replicas = self.cluster.replicas();
        let most = (replicas.len() as u64 - 1) / 2;
        let down = if self.rng.percent(70) { most } else { self.rng.below(most) };
        let leaving = |_| replicas.swap_remove(self.rng.below(replicas.len() as u64) as usize);
        (0..down).map(leaving).collect()
    }

    /// Waits until all replicas are at the same index, checks them whole, and reads everything.
    async fn final_state(&mut self) -> Result<Found, String> {
        let status = self
            .within(3 * RECOVERY, "the replicas agree", async |driver: &Driver| {
                let mut statuses = Vec::new();
                for url in driver.cluster.urls("catalog") {
                    statuses.push(driver.get::<CatalogStatus>(&url, "/status").await?);
                }
                let first = statuses.swap_remove(0);
                let same = |s: &CatalogStatus| {
                    (s.applied_index, &s.state_hash) == (first.applied_index, &first.state_hash)
                };
                (statuses.iter().all(same) && first.last_log_index == first.applied_index)
                    .then_some(first)
            })
            .await?;
        for url in self.cluster.urls("catalog") {
            self.within(RECOVERY, "the database adds up", async |driver: &Driver| {
                driver.get::<serde_json::Value>(&url, "/verify").await.map(|_| ())
            })
            .await?;
        }
        let mut found = Found::default();
        for number in 1..=status.orders {
            let order: Order = self.read(&format!("/purchases/{number}")).await?;
            found.orders.insert(OrderNumber(number), order);
        }
        for item in items() {
            let called_ns = self.time.elapsed().as_nanos() as u64;
            let read: Item = self.read(&format!("/query/{}", item.item_number)).await?;
            let operation = Operation::ReadItem { item: item.item_number };
            let returned_ns = Some(self.time.elapsed().as_nanos() as u64);
            let outcome = Outcome::Read(Some(read.clone()));
            let event = Event { client: DRIVER as u32, called_ns, returned_ns, operation, outcome };
            lock(&self.history).events.push(event);
            found.items.insert(item.item_number, read);
        }
        Ok(found)
    }

    async fn read<T: serde::de::DeserializeOwned>(&mut self, target: &str) -> Result<T, String> {
        self.within(RECOVERY, target, async |driver: &Driver| {
            let url = driver.rng.pick(&driver.cluster.urls("catalog")).clone();
            driver.get(&url, target).await
        })
        .await
    }

    fn judge(&self, found: &Found) -> Result<(), String> {
        self.no_violation()?;
        let history = lock(&self.history);
        let initial: BTreeMap<ItemNumber, Item> =
            items().into_iter().map(|item| (item.item_number, item)).collect();
        orders::check(&history, &initial, found).map_err(|e| e.to_string())?;
        linearizable::check(&history, &initial, &found.orders).map_err(|e| e.to_string())?;
        if lock(&self.replicas).replicas.indexes() == 0 {
            return Err("no replica was ever looked at".to_owned());
        }
        Ok(())
    }

    /// Looks at each replica all along.
    fn watch_replicas(&mut self) {
        let machines = self.cluster.replicas().into_iter();
        for (number, (machine, url)) in machines.zip(self.cluster.urls("catalog")).enumerate() {
            let lives = self.cluster.machines[machine].lives();
            let (env, secret, watch) =
                (self.env.clone(), self.secret.clone(), Arc::clone(&self.replicas));
            self.env.spawn(async move {
                loop {
                    env.sleep(LOOK).await;
                    let before = lives.load(Ordering::Relaxed);
                    let status = ask::<CatalogStatus>(&env, &secret, &url, "/status").await;
                    let mut watch = lock(&watch);
                    // An answer across a restart belongs to one life or the other: not known.
                    if let Some(status) = status
                        && before == lives.load(Ordering::Relaxed)
                    {
                        watch.look(number as u64, before, &status);
                        if status.role == "leader" {
                            watch.leader = watch.leader.max(Some((status.term, machine)));
                        }
                    }
                }
            });
        }
    }

    fn no_violation(&self) -> Result<(), String> {
        if trace::panicked() {
            return Err("a task panicked".to_owned());
        }
        lock(&self.replicas).violation.clone().map_or(Ok(()), Err)
    }

    /// Polls `condition` for at most `limit`.
    async fn within<T>(
        &self,
        limit: Duration,
        what: &str,
        condition: impl AsyncFn(&Driver) -> Option<T>,
    ) -> Result<T, String> {
        let polling = async {
            loop {
                if let Some(found) = condition(self).await {
                    return found;
                }
                self.env.sleep(Duration::from_millis(20)).await;
            }
        };
        let late = |_| format!("not alive: waited {limit:?} in vain until {what}");
        self.env.timeout(limit, polling).await.map_err(late)
    }

    fn call(&self, method: Method, target: &str) -> Call {
        let context = RequestContext::fresh(&self.env, REQUEST);
        Call::new(method, target, context).with_secret(&self.secret)
    }

    async fn send(&self, url: &str, call: &Call) -> Option<pygmy_client::Answer> {
        Upstream::remote(&self.env, url).ok()?.send(call, REQUEST).await.ok()
    }

    async fn get<T: serde::de::DeserializeOwned>(&self, url: &str, target: &str) -> Option<T> {
        ask(&self.env, &self.secret, url, target).await
    }
}

async fn ask<T: serde::de::DeserializeOwned>(
    env: &Env,
    secret: &Secret,
    url: &str,
    target: &str,
) -> Option<T> {
    let context = RequestContext::fresh(env, REQUEST);
    let call = Call::new(Method::GET, target, context).with_secret(secret);
    Upstream::remote(env, url).ok()?.send(&call, REQUEST).await.ok()?.json().ok()
}

impl Watch {
    fn look(&mut self, replica: u64, incarnation: u64, status: &CatalogStatus) {
        // Nothing is applied before the cluster is made.
        let Ok(state_hash) = u128::from_str_radix(&status.state_hash, 16) else { return };
        let applied_index = status.applied_index;
        let seen = Observation { replica, incarnation, applied_index, state_hash };
        if let Err(violation) = self.replicas.observe(seen) {
            note(format_args!("VIOLATION {violation}"));
            self.violation.get_or_insert(violation.to_string());
        }
    }
}

/// Where SQLite's files of all runs go: memory, if the machine has a file system for that. Removed
/// when it is dropped.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn make() -> io::Result<Scratch> {
        let memory = Path::new("/dev/shm");
        let base = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        // Tests make several in one process.
        static MADE: AtomicU64 = AtomicU64::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let dir = base.join(format!("pygmy-sim-{}-{number}", std::process::id()));
        fs::create_dir_all(&dir)?;
        Ok(Scratch(dir))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays is in memory, and says whose it was.
        let _ = fs::remove_dir_all(&self.0);
    }
}
