//! The watcher itself: looks at the others, asks them, and remembers.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;
use http::{Method, StatusCode};
use pygmy_protocol::{
    Env, RequestContext,
    http::{Fatal, PROCESS, Secret, Shutdown},
    metrics::{Counter, Gauge, Labelled, Metrics},
    watched::{State, Story, Watched, WatchedServer},
};
use tokio::sync::Semaphore;

use super::{
    Process, Settings,
    decide::{Decision, Facts, Opinion, decide},
    target::{Change, Look, Moment, Target, learn},
};
use crate::{Answer, Call, Failure, Upstream};

/// Longest time between two looks at a process: `/livez` costs nothing.
const LOOK: Duration = Duration::from_millis(500);
/// Between two looks at one of which something is expected.
const LOOK_SOON: Duration = Duration::from_millis(100);
/// Longest wait for what another watcher knows.
const ASK_TIMEOUT: Duration = Duration::from_millis(500);
/// Between two times of learning what the others know.
const LEARN: Duration = Duration::from_secs(2);
/// Commands at a time.
const COMMANDS_MAX: usize = 4;

/// What a watcher is started with.
#[derive(Clone)]
pub struct Config {
    /// The name of the process that watches.
    pub name: String,
    /// All processes of the cluster, this one, too. A command is to be checked before.
    pub processes: Vec<Process>,
    /// When, and how often.
    pub settings: Settings,
    /// Time between two looks at a process; half a second at most.
    pub interval: Duration,
    /// The path of the configuration, for commands.
    pub config: String,
    /// The path of this program, for commands.
    pub program: String,
    /// The cluster's secret.
    pub secret: Secret,
}

/// Watches all other processes of the cluster, and starts those again that are its to watch.
pub struct Watcher {
    pub(super) env: Env,
    pub(super) config: Config,
    pub(super) others: Vec<Other>,
    /// What others have told of processes that are not this one's to watch, itself for example.
    learnt: Mutex<BTreeMap<String, (u64, Option<Story>)>>,
    pub(super) commands: Semaphore,
    pub(super) done: Counter,
    pub(super) failed: Counter,
}

/// Another process.
pub(super) struct Other {
    pub(super) process: Process,
    /// Whether it is this watcher's to start it again.
    is_watched: bool,
    upstream: Upstream,
    /// Where it shows what it knows, if it watches.
    watcher: Option<Upstream>,
    /// Never held across an await.
    target: Mutex<Target>,
}

impl Other {
    pub(super) fn target(&self) -> MutexGuard<'_, Target> {
        self.target.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watcher {
    /// A watcher that watches once it [runs](Watcher::run).
    ///
    /// # Errors
    /// A sentence that names the URL that is none.
    pub fn new(config: Config, env: &Env, metrics: &Metrics) -> Result<Arc<Watcher>, String> {
        let own = config.processes.iter().find(|process| process.name == config.name);
        let other = |process: &Process| {
            let watcher = process.watcher_url.as_deref();
            Ok(Other {
                process: process.clone(),
                is_watched: own.is_some_and(|own| own.watches(process)),
                upstream: Upstream::remote(env, &process.url)?,
                watcher: watcher.map(|url| Upstream::remote(env, url)).transpose()?,
                target: Mutex::new(Target::new(env.now())),
            })
        };
        let others = config.processes.iter().filter(|process| process.name != config.name);
        let watcher = Arc::new(Watcher {
            env: env.clone(),
            others: others.map(other).collect::<Result<_, String>>()?,
            config,
            learnt: Mutex::default(),
            commands: Semaphore::new(COMMANDS_MAX),
            done: Counter::default(),
            failed: Counter::default(),
        });
        watcher.register(metrics);
        Ok(watcher)
    }

    fn register(self: &Arc<Watcher>, metrics: &Metrics) {
        let outcomes = [("done", self.done.clone()), ("failed", self.failed.clone())];
        let help = "Commands that were to start a process again, by how they ended";
        metrics.register("respawns", help, Labelled::new("outcome").with(outcomes));
        let states = [("alive", State::Alive), ("dead", State::Dead), ("silent", State::Silent)];
        let gauge = |(label, state): (&'static str, State)| {
            let watcher = Arc::downgrade(self);
            let count = move || watcher.upgrade().map_or(0, |w| w.count(state));
            (label, Gauge::new(count))
        };
        let help = "Processes that this one watches, by what the last look found";
        metrics.register("watched_servers", help, Labelled::new("state").with(states.map(gauge)));
    }

    fn count(&self, state: State) -> u64 {
        self.watched().filter(|other| other.target().state == state).count() as u64
    }

    /// Watches until `shutdown`. Commands that run then are ended with the process.
    ///
    /// # Errors
    /// None.
    pub async fn run(self: Arc<Watcher>, mut shutdown: Shutdown) -> Result<(), Fatal> {
        let following = (0..self.others.len()).map(|index| self.follow(index));
        let watching = async { tokio::join!(join_all(following), self.learn_from_others()) };
        tokio::select! {
            biased;
            () = shutdown.stopped() => {}
            _ = watching => {}
        }
        Ok(())
    }

    /// Looks at one process again and again, and does what is to be done about it.
    async fn follow(self: &Arc<Watcher>, index: usize) {
        let Some(other) = self.others.get(index) else { return };
        let interval = self.config.interval.min(LOOK);
        loop {
            let begun = self.env.now();
            let look = self.look(other).await;
            let took = self.env.now().saturating_since(begun);
            let change = other.target().looked(look, took, &self.config.settings, self.moment());
            if other.is_watched {
                self.tell(other, change);
                self.consider(index, other).await;
            }
            let in_motion = other.target().is_in_motion(self.env.now());
            let pause = if in_motion { LOOK_SOON.min(interval) } else { interval };
            self.env.sleep(pause).await;
        }
    }

    async fn look(&self, other: &Other) -> Look {
        let name = |answer: &Answer| {
            let process = answer.headers.get(PROCESS);
            process.and_then(|process| process.to_str().ok()).unwrap_or_default().to_owned()
        };
        match self.get(&other.upstream, "/livez", self.config.settings.look_timeout()).await {
            Ok(answer) => Look::Alive(name(&answer)),
            Err(Failure::Refused(_)) => Look::Dead,
            Err(Failure::NotSent(_) | Failure::Unanswered(_)) => Look::Silent,
        }
    }

    async fn consider(self: &Arc<Watcher>, index: usize, other: &Other) {
        if other.target().is_to_be_ready() {
            return self.see_whether_ready(other).await;
        }
        let decision = decide(&self.facts(other), None, self.env.now());
        if decision != Decision::Ask {
            return;
        }
        let opinions = self.opinions(other).await;
        match decide(&self.facts(other), Some(&opinions), self.env.now()) {
            Decision::Act(action) => {
                other.target().begin(self.env.now());
                let watcher = Arc::clone(self);
                self.env.spawn(async move { watcher.respawn(index, action).await });
            }
            Decision::Nothing(why) => {
                tracing::debug!(server = other.process.name, why, "nothing is done");
            }
            Decision::Ask => {}
        }
    }

    fn facts(&self, other: &Other) -> Facts {
        let alive = |other: &&Other| other.target().state == State::Alive;
        let heard = 1 + self.others.iter().filter(alive).count();
        let before = self.watchers_of(other).filter(|w| w.process.name < self.config.name);
        let rank = before.filter(alive).count() as u32;
        let target = other.target();
        Facts {
            state: target.state,
            since: target.since,
            looks: target.looks,
            left: target.has_left(),
            has_command: !other.process.command.is_empty(),
            is_busy: target.is_busy,
            starting_since: target.starting_since,
            not_before: target.not_before(&self.config.settings),
            rank,
            heard,
            processes: self.config.processes.len(),
            after: self.config.settings.after(),
        }
    }

    /// The processes that this one watches.
    fn watched(&self) -> impl Iterator<Item = &Other> {
        self.others.iter().filter(|other| other.is_watched)
    }

    /// The other watchers of a process.
    fn watchers_of(&self, watched: &Other) -> impl Iterator<Item = &Other> {
        let watched = &watched.process;
        self.others.iter().filter(|other| other.process.watches(watched))
    }

    /// What the other watchers of a process say of it, those that answer.
    async fn opinions(&self, other: &Other) -> Vec<Opinion> {
        let asked = self.watchers_of(other).filter_map(|watcher| watcher.watcher.as_ref());
        let answers = join_all(asked.map(|watcher| self.ask(watcher))).await;
        let of_it =
            |told: Vec<WatchedServer>| told.into_iter().find(|s| s.name == other.process.name);
        answers.into_iter().flatten().filter_map(of_it).map(|told| Opinion::from(&told)).collect()
    }

    async fn ask(&self, watcher: &Upstream) -> Option<Vec<WatchedServer>> {
        let answer = self.get(watcher, "/watched", ASK_TIMEOUT).await.ok()?;
        answer.json::<Watched>().ok().map(|watched| watched.servers)
    }

    async fn see_whether_ready(&self, other: &Other) {
        let answer = self.get(&other.upstream, "/readyz", ASK_TIMEOUT).await;
        if !answer.is_ok_and(|answer| answer.status == StatusCode::OK) {
            return;
        }
        let after_ms = other.target().ready(self.moment());
        // At once: who started it may be the next that is lost.
        self.ask_all_others().await;
        let by = other.target().story.as_ref().and_then(|story| story.by.clone());
        tracing::info!(server = other.process.name, after_ms, by, "ready again");
    }

    fn tell(&self, other: &Other, change: Option<Change>) {
        let server = &other.process.name;
        match change {
            Some(Change::Lost(reason)) => {
                let command = !other.process.command.is_empty();
                let reason = reason.as_str();
                tracing::warn!(server, reason, has_respawn_command = command, "lost");
            }
            Some(Change::Left) => tracing::info!(server, "left in order; not started again"),
            Some(Change::Back) => tracing::info!(server, "answers again"),
            None => {}
        }
    }

    async fn learn_from_others(&self) {
        loop {
            self.ask_all_others().await;
            self.env.sleep(LEARN).await;
        }
    }

    /// Asks all other watchers what they know.
    async fn ask_all_others(&self) {
        let asked = self.others.iter().filter_map(|other| other.watcher.as_ref());
        for told in join_all(asked.map(|watcher| self.ask(watcher))).await.into_iter().flatten() {
            told.iter().for_each(|told| self.learn(told));
        }
    }

    fn learn(&self, told: &WatchedServer) {
        if let Some(other) = self.watched().find(|other| other.process.name == told.name) {
            return other.target().learn(told);
        }
        if self.config.processes.iter().any(|process| process.name == told.name) {
            let mut learnt = self.learnt.lock().unwrap_or_else(PoisonError::into_inner);
            let (respawns, story) = learnt.entry(told.name.clone()).or_default();
            learn((respawns, story), told);
        }
    }

    /// How often the process that registers as `part` was started again, and how the last time.
    pub fn story_of(&self, part: &str) -> (u64, Option<Story>) {
        let mut processes = self.config.processes.iter();
        let named = |process: &&Process| process.parts.iter().any(|name| name == part);
        let Some(process) = processes.find(named) else { return (0, None) };
        if let Some(other) = self.watched().find(|other| other.process.name == process.name) {
            let target = other.target();
            return (target.respawns, target.story.clone());
        }
        let learnt = self.learnt.lock().unwrap_or_else(PoisonError::into_inner);
        learnt.get(&process.name).cloned().unwrap_or_default()
    }

    /// What `GET /watched` tells.
    pub fn show(&self) -> Watched {
        let now = self.env.now();
        let show =
            |other: &Other| other.target().show(&other.process.name, &self.config.settings, now);
        let mut servers: Vec<_> = self.watched().map(show).collect();
        servers.sort_by(|a, b| a.name.cmp(&b.name));
        Watched { watcher: self.config.name.clone(), servers }
    }

    /// `process` of that name has said that it leaves.
    pub(super) fn leaves(&self, name: &str, process: String) {
        if let Some(other) = self.watched().find(|other| other.process.name == name) {
            tracing::info!(server = name, "leaves");
            other.target().leaves(process);
        }
    }

    async fn get(&self, from: &Upstream, path: &str, limit: Duration) -> Result<Answer, Failure> {
        let context = RequestContext::fresh(&self.env, limit);
        let call = Call::new(Method::GET, path, context).with_secret(&self.config.secret);
        from.send(&call, limit).await
    }

    pub(super) fn moment(&self) -> Moment {
        Moment { now: self.env.now(), wall_ms: self.env.wall_ms() }
    }
}
