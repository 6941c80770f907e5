//! What the servers of a store say, in one examination.

use std::time::Duration;

use http::StatusCode;
use pygmy_protocol::{
    Code, Env,
    health::{self, Readyz, ReplicaHealth},
    http::Secret,
    registration::{CatalogStatus, Role, Servers},
};

use super::{
    super::{
        Cluster,
        ask::{Answers, NoAnswer, answered, each, for_json, get},
        status::{STATUS_TIMEOUT, replicas},
    },
    hashes::Hashes,
    servers::without_requests,
};
use crate::{
    config::{Config, Part},
    wait,
};

/// Longest wait for the check of a whole database.
const VERIFY_TIMEOUT: Duration = Duration::from_secs(600);
/// Between two questions to balancers that do not know a server yet.
const ASK_AGAIN: Duration = Duration::from_millis(100);
const TIERS: [Role; 4] = [Role::Balancer, Role::Frontend, Role::Order, Role::Catalog];

/// A process, as it stands in the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) name: String,
    pub(super) role: Role,
    pub(super) url: String,
    /// Where its data is, on its machine.
    pub(super) dir: String,
}

/// A server of one tier, alone in its process or with others.
#[derive(Debug, Clone)]
pub(super) struct Server {
    pub(super) part: Part,
    pub(super) tier: Role,
    pub(super) process: Process,
    pub(super) seen: Result<Seen, NoAnswer>,
}

/// What a server said of its readiness.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) readyz: Readyz,
    /// How far its wall clock is ahead of this machine's, in milliseconds, and how far that may be
    /// off: the answer was on its way for some of the time.
    pub(super) clock_ms: Option<(i64, u64)>,
}

/// What came of the check of a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verified {
    AddsUp,
    /// It does not, and why.
    Damaged(String),
    /// There is no result yet, and why.
    NotYet(String),
}

/// Everything that is judged.
pub(super) struct Facts {
    /// The configuration's file.
    pub(super) config: String,
    /// The secret's file.
    pub(super) secret_file: String,
    /// All that are configured.
    pub(super) servers: Vec<Server>,
    pub(super) balancers: Answers<Servers>,
    /// The replicas that are configured, and those that the balancers know.
    pub(super) replicas: Answers<CatalogStatus>,
    pub(super) hashes: Hashes,
    /// Of the replicas that answer, as are the next.
    pub(super) health: Answers<ReplicaHealth>,
    pub(super) verified: Answers<Verified>,
}

impl Facts {
    /// Asks everybody.
    pub(super) async fn gather(
        env: &Env,
        cluster: &Cluster,
        config: &Config,
        secret: &Secret,
    ) -> Facts {
        let first = async {
            let servers = servers(env, secret, config).await;
            let balancers = balancers(env, secret, cluster, config, &servers).await;
            let replicas = replicas(cluster, &balancers);
            let replicas = for_json(env, secret, replicas, "/status", STATUS_TIMEOUT).await;
            (servers, balancers, replicas)
        };
        let (servers, balancers, replicas) =
            wait::patiently(env, "asking all servers", first).await;
        let answering = answering(&replicas);
        let health = for_json(env, secret, answering.clone(), health::PATH, STATUS_TIMEOUT).await;
        let hashes = Hashes::compare(env, secret, answering.clone());
        let hashes = wait::patiently(env, "comparing the replicas", hashes).await;
        let verified = verify(env, secret, answering);
        let verified = wait::patiently(env, "reading every row of every replica", verified).await;
        let config = config.path().display().to_string();
        let secret_file = cluster.secret_file.display().to_string();
        Facts { config, secret_file, servers, balancers, replicas, hashes, health, verified }
    }

    /// The servers of one tier.
    pub(super) fn of_tier(&self, tier: Role) -> impl Iterator<Item = &Server> {
        self.servers.iter().filter(move |server| server.tier == tier)
    }

    /// The process of a server; none if it is not configured.
    pub(super) fn process_of(&self, server: &str) -> Option<&Process> {
        let found = self.servers.iter().find(|known| known.part.name == server);
        found.map(|server| &server.process)
    }

    /// Whether a server wants another secret.
    pub(super) fn refuses_secret(&self, server: &str) -> bool {
        self.refusing().any(|name| name == server)
    }

    /// Those that want another secret, of the tiers that want one.
    pub(super) fn refusing(&self) -> impl Iterator<Item = &str> {
        refusing(&self.balancers).chain(refusing(&self.replicas))
    }

    /// Whether a server is configured and answers.
    pub(super) fn answers(&self, server: &str) -> bool {
        self.servers.iter().any(|known| known.part.name == server && known.seen.is_ok())
    }

    /// The replica that leads; of two that say so, that of the newer term.
    pub(super) fn leader(&self) -> Option<&CatalogStatus> {
        let leading = answered(&self.replicas).filter(|status| status.role == "leader");
        leading.max_by_key(|status| status.term)
    }
}

fn refusing<T>(answers: &Answers<T>) -> impl Iterator<Item = &str> {
    let refuses =
        |answer: &Result<T, NoAnswer>| answer.as_ref().is_err_and(NoAnswer::is_secret_required);
    answers.iter().filter(move |(_, answer)| refuses(answer)).map(|(part, _)| &*part.name)
}

/// Asks every server of the configuration whether it is ready.
async fn servers(env: &Env, secret: &Secret, config: &Config) -> Vec<Server> {
    let mut places = Vec::new();
    for entry in config.servers() {
        let process = Process {
            name: entry.name.clone(),
            role: entry.role,
            url: entry.base_url(),
            dir: config.data_dir(entry).display().to_string(),
        };
        let parts = TIERS.into_iter().filter_map(|tier| Some((tier, entry.part(tier)?)));
        places.extend(parts.map(|(tier, part)| (tier, part, process.clone())));
    }
    let parts = places.iter().map(|(_, part, _)| part.clone()).collect();
    let seen = each(env, parts, |url| {
        let (env, secret) = (env.clone(), secret.clone());
        async move { readiness(&env, &secret, &url).await }
    })
    .await;
    let server = |((tier, part, process), (_, seen))| Server { part, tier, process, seen };
    places.into_iter().zip(seen).map(server).collect()
}

async fn readiness(env: &Env, secret: &Secret, url: &str) -> Result<Seen, NoAnswer> {
    let (asked_at, asked_ms) = (env.now(), env.wall_ms());
    let answer = get(env, secret, url, "/readyz", STATUS_TIMEOUT).await?;
    let took_ms = env.now().saturating_since(asked_at).as_millis() as u64;
    let readyz: Readyz = serde_json::from_slice(&answer.body)
        .map_err(|_| format!("it answers with {}, and not as a server of Pygmy", answer.status))?;
    let error_ms = took_ms.div_ceil(2);
    let here_ms = asked_ms + took_ms / 2;
    let ahead = |there_ms: u64| (there_ms.cast_signed() - here_ms.cast_signed(), error_ms);
    let clock_ms = readyz.wall_ms.map(ahead);
    Ok(Seen { readyz, clock_ms })
}

/// Asks the balancers for what they know of `servers`. One that has just started hears of a server
/// with that one's next heartbeat, and looks at it with the next probe: it is asked again meanwhile.
async fn balancers(
    env: &Env,
    secret: &Secret,
    cluster: &Cluster,
    config: &Config,
    servers: &[Server],
) -> Answers<Servers> {
    let document = config.document();
    let hear_ms = document.cluster.heartbeat_ms + document.balancer.probe_interval_ms;
    let end = env.now() + Duration::from_millis(hear_ms);
    loop {
        let balancers = cluster.balancers.clone();
        let said = for_json(env, secret, balancers, "/servers", STATUS_TIMEOUT).await;
        if without_requests(servers, &said).is_empty() || env.now() >= end {
            return said;
        }
        env.sleep(ASK_AGAIN).await;
    }
}

/// Those that can be compared: they answer and belong to a cluster.
fn answering(replicas: &Answers<CatalogStatus>) -> Vec<Part> {
    let member = |answer: &Result<CatalogStatus, NoAnswer>| {
        answer.as_ref().is_ok_and(|status| status.role != "blank")
    };
    replicas.iter().filter(|(_, answer)| member(answer)).map(|(part, _)| part.clone()).collect()
}

/// Has all of them check their databases; an error if one does not answer to the end.
async fn verify(env: &Env, secret: &Secret, replicas: Vec<Part>) -> Answers<Verified> {
    each(env, replicas, |url| {
        let (env, secret) = (env.clone(), secret.clone());
        async move {
            let answer = get(&env, &secret, &url, "/verify", VERIFY_TIMEOUT).await?;
            if answer.status == StatusCode::OK {
                return Ok(Verified::AddsUp);
            }
            let problem = answer.problem();
            match problem.code {
                Code::Damaged => Ok(Verified::Damaged(problem.detail.into_owned())),
                _ => Ok(Verified::NotYet(problem.detail.into_owned())),
            }
        }
    })
    .await
}
