//! A replica put together: directory, log, state machine, Raft, gate, and the tasks between them.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use openraft::{RaftSnapshotBuilder, storage::RaftStateMachine};
use pygmy_client::ServerConfig;
use pygmy_protocol::{
    env::Env,
    http::{Fatal, Readiness, Secret, Shutdown},
    invalidation::CacheKey,
    registration::{CatalogStatus, Role},
};
use tokio::{sync::watch, task::JoinHandle};

use crate::{
    Config, ReplicaAddress, Settings,
    apart::Apart,
    compact::compact_log,
    config::LEASE_HEARTBEATS,
    damage::{Damage, scrub, watch_damage},
    holders::remove_lapsed,
    identity::{DataDir, IdentityError},
    join::join_cluster,
    leadership::{Leader, Leadership, follow_raft},
    log::{LogConfig, LogError, LogStore},
    members,
    metrics::{self, Measures},
    peer::{Link, PeerNetwork},
    propose::{Queue, run_batches},
    raft::{CatalogRaft, LogId},
    read::{Rounds, run_rounds},
    ready::watch_readiness,
    rejoin::open_or_rejoin,
    release::Gate,
    retire::hand_over,
    room::{Room, watch_room},
    stall::watch_disk,
    state::{
        AppliedHook, Changed, Holders, KeyIndexConfig, Reader, SnapshotStore, StateConfig,
        StateError, StateMachine,
    },
};

/// Pages of SQLite's write-ahead log at which it is checkpointed, and how many more a replica may
/// wait. Measured: 5 to 8 ms at 1000 pages, less at fewer, but more often.
const CHECKPOINT_PAGES: u32 = 800;
const CHECKPOINT_STAGGER: u64 = 400;
/// Where the log lives in the data directory.
pub(crate) const LOG_DIR: &str = "raft-log";

/// What all parts of a replica use.
pub(crate) struct Shared {
    pub(crate) env: Env,
    pub(crate) id: u64,
    pub(crate) dir: PathBuf,
    pub(crate) server: ServerConfig,
    pub(crate) replicas: Vec<ReplicaAddress>,
    pub(crate) settings: Settings,
    pub(crate) lease: Duration,
    pub(crate) raft: CatalogRaft,
    pub(crate) log: LogStore,
    pub(crate) reader: Reader,
    pub(crate) snapshots: SnapshotStore,
    pub(crate) gate: Arc<Gate>,
    pub(crate) leadership: watch::Receiver<Leadership>,
    pub(crate) links: Links,
    pub(crate) queue: Queue,
    pub(crate) rounds: Rounds,
    pub(crate) measures: Measures,
    pub(crate) room: Room,
    pub(crate) damage: Arc<Damage>,
    /// Held while the membership is changed.
    pub(crate) member_changes: tokio::sync::Mutex<()>,
    /// Does checks of whole files, one after the other.
    pub(crate) checks: Apart,
    /// Held as long as the replica lives.
    _dir: DataDir,
}

/// Links to the other replicas, for what followers pass on.
pub(crate) struct Links {
    env: Env,
    id: u64,
    secret: Secret,
    by_id: Mutex<BTreeMap<u64, Arc<Link>>>,
}

impl Links {
    /// The link to a replica.
    pub(crate) fn to(&self, id: u64, url: &str) -> Arc<Link> {
        let mut links = self.by_id.lock().unwrap_or_else(PoisonError::into_inner);
        match links.get(&id) {
            Some(link) if link.url() == url => Arc::clone(link),
            _ => {
                let link = Arc::new(Link::new(&self.env, url, self.id, id, &self.secret));
                links.insert(id, Arc::clone(&link));
                link
            }
        }
    }
}

/// The state machine's word to the others.
struct ToGate {
    gate: Arc<Gate>,
    damage: Arc<Damage>,
}

impl AppliedHook for ToGate {
    fn wants_items(&self) -> bool {
        self.gate.wants_items()
    }

    fn applied(&self, log_id: LogId, changed: Changed) {
        self.gate.applied(log_id, changed);
    }

    fn damaged(&self, error: &StateError) {
        self.damage.report(error);
    }

    fn holders(&self, holders: Arc<Holders>) {
        self.gate.holders(holders);
    }

    fn restored(&self, log_id: LogId) {
        self.gate.applied(log_id, vec![CacheKey::All].into());
    }
}

/// A started replica.
pub(crate) struct Started {
    pub(crate) shared: Arc<Shared>,
    pub(crate) readiness: Readiness,
    pub(crate) tasks: Vec<JoinHandle<Result<(), Fatal>>>,
    pub(crate) background: Vec<JoinHandle<Fatal>>,
}

/// Opens the data directory and starts the replica.
pub(crate) async fn start(
    config: Config,
    env: &Env,
    shutdown: &Shutdown,
) -> Result<Started, Fatal> {
    check(&config)?;
    let data = open_or_rejoin(&config, env).await?;
    let Data { dir: data_dir, id, log, mut machine, reader, gate, damage } = data;
    keep_what_the_log_lacks(&log, &mut machine, &reader).await;
    let Config { server, dir, replicas, lease_ms, settings, .. } = config;
    let snapshots = machine.snapshots();
    let measures = Measures::new(machine.snapshot_times());
    let rejected = server.metrics.rejections("min_free_bytes");
    let room = Room::new(env, dir.clone(), settings.min_free_bytes, rejected);
    let checks = Apart::start(env, "checks");
    let network = PeerNetwork {
        env: env.clone(),
        id,
        secret: server.secret.clone(),
        checks: checks.clone(),
        damage: Arc::clone(&damage),
    };
    let raft_config = Arc::new(settings.raft().validate().map_err(fatal)?);
    let raft = CatalogRaft::new(id, raft_config, network, log.clone(), machine);
    let raft = raft.await.map_err(|e| Fatal(format!("Raft cannot start: {e}")))?;

    let readiness = Readiness::new();
    readiness.not_ready("catalog", "starting");
    let registered = server.register(env, Role::Catalog, &readiness, shutdown.clone());
    let (view, leadership) = watch::channel(Leadership::default());
    let (queue, waiting) = Queue::new(env, &server.metrics, settings.waiting_requests_max);
    let (rounds, reads) = Rounds::new();
    let links =
        Links { env: env.clone(), id, secret: server.secret.clone(), by_id: Mutex::default() };
    let shared = Arc::new(Shared {
        env: env.clone(),
        id,
        dir,
        server,
        replicas,
        settings,
        lease: Duration::from_millis(lease_ms),
        raft,
        log,
        reader,
        snapshots,
        gate,
        leadership,
        links,
        queue,
        rounds,
        measures,
        room,
        damage,
        member_changes: tokio::sync::Mutex::default(),
        checks,
        _dir: data_dir,
    });
    metrics::register(&shared, &shared.server.metrics);
    // Requests in flight need these while the server drains.
    let background = vec![
        env.spawn(run_batches(Arc::clone(&shared), waiting)),
        env.spawn(run_rounds(Arc::clone(&shared), reads)),
        env.spawn(follow_raft(Arc::clone(&shared), view, Arc::clone(&registered.registration))),
        env.spawn(watch_leases(Arc::clone(&shared))),
        env.spawn(watch_damage(Arc::clone(&shared))),
    ];
    let tasks = vec![
        registered.task,
        env.spawn(watch_readiness(
            Arc::clone(&shared),
            readiness.clone(),
            registered.registration,
            shutdown.clone(),
        )),
        env.spawn(compact_log(Arc::clone(&shared), shutdown.clone())),
        env.spawn(remove_lapsed(Arc::clone(&shared), shutdown.clone())),
        env.spawn(hand_over(Arc::clone(&shared), shutdown.clone())),
        env.spawn(scrub(Arc::clone(&shared), shutdown.clone())),
        env.spawn(watch_room(Arc::clone(&shared), shutdown.clone())),
        env.spawn(watch_disk(Arc::clone(&shared), shutdown.clone())),
        env.spawn(members::settle(Arc::clone(&shared), shutdown.clone())),
        env.spawn(join_cluster(Arc::clone(&shared), shutdown.clone())),
    ];
    Ok(Started { shared, readiness, tasks, background })
}

fn fatal(error: impl std::fmt::Display) -> Fatal {
    Fatal(error.to_string())
}

fn check(Config { lease_ms, settings, .. }: &Config) -> Result<(), Fatal> {
    settings.check().map_err(|e| Fatal(format!("[catalog] {e}")))?;
    let heartbeat_ms = settings.raft_heartbeat_ms;
    if *lease_ms >= LEASE_HEARTBEATS * heartbeat_ms {
        return Ok(());
    }
    Err(Fatal(format!(
        "lease_ms is {lease_ms}; it must be at least {LEASE_HEARTBEATS} times raft_heartbeat_ms, \
         which is {heartbeat_ms}"
    )))
}

/// What a data directory holds, opened, and the gate that hears what is applied.
pub(crate) struct Data {
    dir: DataDir,
    id: u64,
    log: LogStore,
    machine: StateMachine,
    reader: Reader,
    gate: Arc<Gate>,
    damage: Arc<Damage>,
}

/// Why a data directory cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// What is in it is not whole: its identity has ended.
    #[error("{0}")]
    Ended(String),
    /// It may be whole.
    #[error("{0}")]
    Other(String),
}

impl From<IdentityError> for OpenError {
    fn from(error: IdentityError) -> OpenError {
        match error.ends_identity() {
            true => OpenError::Ended(error.to_string()),
            false => OpenError::Other(error.to_string()),
        }
    }
}

impl From<LogError> for OpenError {
    fn from(error: LogError) -> OpenError {
        match error {
            LogError::Corrupt { .. } => OpenError::Ended(error.to_string()),
            _ => OpenError::Other(error.to_string()),
        }
    }
}

impl From<StateError> for OpenError {
    fn from(error: StateError) -> OpenError {
        match error {
            StateError::Corrupt { .. } => OpenError::Ended(error.to_string()),
            _ => OpenError::Other(error.to_string()),
        }
    }
}

/// Opens the data directory.
pub(crate) fn open(config: &Config, env: &Env) -> Result<Data, OpenError> {
    let Config { server, dir, lease_ms, waits_for_caches, settings, .. } = config;
    let mut data_dir = DataDir::open(env, dir, &server.name)?;
    let log_dir = dir.join(LOG_DIR);
    let log_was_there = LogStore::exists(env, &log_dir)
        .map_err(|error| OpenError::Other(format!("cannot look for the Raft log: {error}")))?;
    // Before a new one is made in its place, which the next start would take for the old one.
    data_dir.check_log(log_was_there)?;
    let log_config = LogConfig {
        segment_bytes: settings.log_segment_bytes,
        cache_bytes: settings.log_cache_bytes,
    };
    let log = LogStore::open(env, &log_dir, log_config)?;
    let gate = Arc::new(Gate::new(env, Duration::from_millis(*lease_ms), *waits_for_caches));
    let damage = Arc::new(Damage::new(env, dir));
    let hook = Arc::new(ToGate { gate: Arc::clone(&gate), damage: Arc::clone(&damage) });
    let state = state_config(settings, &server.name);
    let (machine, reader) = StateMachine::open(env, dir, state, hook)?;
    let holds_data = log.holds_data() || reader.status().applied.is_some();
    let id = data_dir.identity(env, holds_data)?;
    check_no_gap(&log, &reader)?;
    if let Some(applied) = reader.status().applied {
        gate.holders(reader.holders());
        gate.applied(applied, Changed::default());
    }
    Ok(Data { dir: data_dir, id, log, machine, reader, gate, damage })
}

async fn watch_leases(shared: Arc<Shared>) -> Fatal {
    match shared.gate.watch_leases().await {}
}

fn state_config(settings: &Settings, name: &str) -> StateConfig {
    let stagger = xxhash_rust::xxh3::xxh3_64(name.as_bytes()) % CHECKPOINT_STAGGER;
    StateConfig {
        key_index: KeyIndexConfig {
            run_orders: settings.key_run_orders,
            ..KeyIndexConfig::default()
        },
        requests_log_bytes: settings.requests_log_bytes,
        requests_log_files: settings.requests_log_files,
        // Replicas apply the same at the same time; their checkpoints should not come together.
        wal_autocheckpoint_pages: CHECKPOINT_PAGES + stagger as u32,
        ..StateConfig::default()
    }
}

/// A process that was killed may leave the database ahead of the log: entries are applied while they
/// are still being written. Raft then drops its log up to where the database is. A snapshot has to
/// hold that first: for the next start, if a power loss takes it from the database, and for others.
///
/// Where there is no room for one the replica does without: that is better than not to start.
async fn keep_what_the_log_lacks(log: &LogStore, machine: &mut StateMachine, reader: &Reader) {
    let status = reader.status();
    let applied = status.applied.map_or(0, |id| id.index);
    if applied <= log.last_index().unwrap_or(0) || applied <= status.snapshot_index {
        return;
    }
    tracing::info!(applied, "the database is ahead of the log: taking a snapshot");
    let Some(mut builder) = machine.try_create_snapshot_builder(false).await else { return };
    if let Err(error) = builder.build_snapshot().await {
        tracing::warn!(%error, "there is no snapshot of what the log lacks");
    }
}

/// The log must still hold everything that the database has not applied.
fn check_no_gap(log: &LogStore, reader: &Reader) -> Result<(), OpenError> {
    let applied = reader.status().applied.map_or(0, |id| id.index);
    let purged = log.purged_index().unwrap_or(0);
    if applied < purged {
        return Err(OpenError::Ended(format!(
            "the database ends at log index {applied}, the log begins after {purged}, and no valid \
             snapshot lies between"
        )));
    }
    Ok(())
}

impl Shared {
    /// Completes when somebody else than `leader` leads, or nobody.
    pub(crate) async fn leader_changed(&self, leader: &Leader) {
        let mut leadership = self.leadership.clone();
        // The sender lives as long as the process.
        let _ = leadership.wait_for(|now| now.leader.as_ref() != Some(leader)).await;
    }

    /// Whether this replica has never belonged to a cluster.
    pub(crate) fn is_blank(&self) -> bool {
        // The log knows before Raft has said so.
        !self.leadership.borrow().initialised && !self.log.holds_data()
    }

    /// Whether this replica leads, as far as it knows.
    pub(crate) fn is_leader(&self) -> bool {
        self.leadership.borrow().leader.as_ref().is_some_and(|leader| leader.is_me)
    }

    /// `GET /status`.
    pub(crate) fn status(&self) -> CatalogStatus {
        let leadership = self.leadership.borrow().clone();
        let state = self.reader.status();
        let is_leader = leadership.leader.as_ref().is_some_and(|leader| leader.is_me);
        CatalogStatus {
            name: self.server.name.clone(),
            id: self.id,
            role: if self.is_blank() {
                "blank".to_owned()
            } else if is_leader {
                "leader".to_owned()
            } else {
                "follower".to_owned()
            },
            term: leadership.term,
            leader: leadership.leader.map(|leader| leader.name),
            last_log_index: self.log.last_index().unwrap_or(0),
            applied_index: state.applied.map_or(0, |id| id.index),
            purged_index: self.log.purged_index().unwrap_or(0),
            snapshot_index: state.snapshot_index,
            released_index: self.gate.progress().released,
            state_hash: format!("{:032x}", state.state_hash),
            orders: state.orders,
            front_ends: self.gate.front_ends(),
            members: members::statuses(self),
        }
    }
}
