//! The state machine as Raft sees it.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use futures_util::{Stream, TryStreamExt};
use openraft::{
    EntryPayload, OptionalSend,
    storage::{ApplyResponder, EntryResponder, RaftStateMachine},
    type_config::alias::SnapshotOf,
};
use pygmy_protocol::{
    env::{Clock, Env, Files, Worker},
    metrics::Histogram,
};
use tokio::sync::{Mutex, oneshot};

use super::{
    AppliedHook, Reader, SnapshotFile, SnapshotStore, StateConfig, StateError,
    build::{self, Build, SnapshotBuilder, SnapshotTimes, View},
    install,
    query::Shared,
    requests_log,
    writer::{self, Writer},
};
use crate::{
    identity::remove_files,
    raft::{Entry, LogId, SnapshotMeta, StoredMembership, TypeConfig},
};

/// Most entries in one transaction: beyond, the cost of a COMMIT is spread thinly enough.
const GROUP_ENTRIES_MAX: usize = 64;
/// A group takes no further entry once it has this many requests, so that the first of them do
/// not wait for long: at 28 microseconds each (measured in an unoptimised build) 115 ms.
const GROUP_REQUESTS_MAX: usize = 4096;

/// Where snapshots are, in the data directory.
const SNAPSHOTS: &str = "snapshots";

/// What the worker "apply" does, in the order in which it is asked.
enum Job {
    Apply {
        entries: Vec<Entry>,
        responders: Vec<Option<ApplyResponder<TypeConfig>>>,
        done: oneshot::Sender<Result<(), StateError>>,
    },
    Install {
        meta: SnapshotMeta,
        file: SnapshotFile,
        done: oneshot::Sender<Result<(), StateError>>,
    },
}

/// The state machine. Raft owns it; everyone else has a [`Reader`].
pub(crate) struct StateMachine {
    files: Arc<dyn Files>,
    dir: PathBuf,
    shared: Arc<Shared>,
    snapshots: SnapshotStore,
    apply: Worker<Job>,
    build: Arc<Worker<Build>>,
    snapshot_times: SnapshotTimes,
    /// Held by a view and by an installation: SQLite must have no connection to a database that
    /// is being replaced. In front of the readers' lock, so that reads go on while an
    /// installation waits for the end of a build.
    views: Arc<Mutex<()>>,
}

impl StateMachine {
    /// Opens the state in `dir`, or begins a new one there. If a snapshot there is newer than the
    /// database, it is installed first.
    ///
    /// # Errors
    /// [`StateError::Corrupt`] and [`StateError::Newer`] name the file that cannot be used.
    pub(crate) fn open(
        env: &Env,
        dir: &Path,
        config: StateConfig,
        hook: Arc<dyn AppliedHook>,
    ) -> Result<(StateMachine, Reader), StateError> {
        env.files.create_dir_all(dir).map_err(StateError::io("create", dir))?;
        let snapshots = SnapshotStore::open(&env.files, dir.join(SNAPSHOTS))?;
        let snapshot_times = SnapshotTimes::default();
        let SnapshotTimes { built, installed } = snapshot_times.clone();
        let (bytes, listener) = (config.snapshot_chunk_bytes, Arc::clone(&hook));
        let database = writer::database(env, dir);
        let build = build::worker(env, snapshots.clone(), bytes, built, listener, database);
        let mut writer = Writer::open(env, dir, config, hook, snapshots.clone())?;
        let shared = writer.shared();
        let reader = Reader { shared: Arc::clone(&shared), snapshots: snapshots.clone() };
        let clock = Arc::clone(&env.clock);
        let apply = Worker::start(env, "apply", move |jobs| {
            for job in jobs.drain(..) {
                work(&mut writer, job, &*clock, &installed);
            }
        });
        let machine = StateMachine {
            files: Arc::clone(&env.files),
            dir: dir.to_owned(),
            shared,
            snapshots,
            apply,
            build: Arc::new(build),
            snapshot_times,
            views: Arc::default(),
        };
        Ok((machine, reader))
    }

    /// Removes the state in `dir`, if there is one: database, snapshots, text log.
    pub(crate) fn remove(env: &Env, dir: &Path) -> io::Result<()> {
        install::remove(&writer::database(env, dir))?;
        remove_files(&*env.files, &dir.join(SNAPSHOTS), |_| true)?;
        remove_files(&*env.files, dir, requests_log::is_one)
    }

    /// Where a snapshot that arrives from the network is written.
    pub(crate) fn snapshots(&self) -> SnapshotStore {
        self.snapshots.clone()
    }

    /// How long snapshots took.
    pub(crate) fn snapshot_times(&self) -> SnapshotTimes {
        self.snapshot_times.clone()
    }

    /// A snapshot holds what the database holds, without its indexes: it is smaller.
    fn has_room_for_a_snapshot(&self) -> Result<bool, StateError> {
        let free =
            self.files.free_bytes(&self.dir).map_err(StateError::io("measure", &self.dir))?;
        Ok(free > self.shared.pool.database_bytes()?)
    }
}

fn work(writer: &mut Writer, job: Job, clock: &dyn Clock, installed: &Histogram) {
    // If nobody waits for the end of a job any more, Raft was shut down.
    match job {
        Job::Apply { entries, responders, done } => match writer.apply(&entries) {
            Ok(outcomes) => {
                for (responder, outcomes) in responders.into_iter().zip(outcomes) {
                    if let Some(responder) = responder {
                        responder.send(outcomes);
                    }
                }
                let _ = done.send(Ok(()));
                writer.write_lines();
            }
            Err(e) => {
                let _ = done.send(Err(e));
            }
        },
        Job::Install { meta, file, done } => {
            let begun = clock.now();
            let result = writer.install(&meta, file);
            installed.observe_time(clock.now().saturating_since(begun));
            let _ = done.send(result);
        }
    }
}

/// Waits for a worker's answer; a worker that is gone gives none.
pub(super) async fn answer<T>(done: oneshot::Receiver<Result<T, StateError>>) -> io::Result<T> {
    Ok(done.await.unwrap_or(Err(StateError::Stopped))?)
}

/// Takes entries from the stream until it ends or a group is full.
async fn next_group<S>(stream: &mut S) -> io::Result<Vec<EntryResponder<TypeConfig>>>
where
    S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin,
{
    let mut group = Vec::new();
    let mut requests = 0;
    while group.len() < GROUP_ENTRIES_MAX && requests < GROUP_REQUESTS_MAX {
        let Some((entry, responder)) = stream.try_next().await? else { break };
        if let EntryPayload::Normal(batch) = &entry.payload {
            requests += batch.requests.iter().map(|r| r.command.weight()).sum::<usize>();
        }
        group.push((entry, responder));
    }
    Ok(group)
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let meta = self.shared.meta();
        Ok((meta.applied, meta.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        loop {
            let group = next_group(&mut entries).await?;
            if group.is_empty() {
                return Ok(());
            }
            let (entries, responders) = group.into_iter().unzip();
            let (done, applied) = oneshot::channel();
            self.apply.submit(Job::Apply { entries, responders, done });
            answer(applied).await?;
        }
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<SnapshotBuilder> {
        // A disk that fills up while a snapshot is written would end the node; without a new
        // snapshot only the log grows, until there is room again.
        if !force && !self.has_room_for_a_snapshot().unwrap_or(true) {
            tracing::warn!("no snapshot for now: {} has not enough room", self.dir.display());
            return None;
        }
        Some(self.get_snapshot_builder().await)
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        let no_installation = Arc::clone(&self.views).lock_owned().await;
        SnapshotBuilder::new(View::open(&self.shared, no_installation), &self.build)
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        file: SnapshotFile,
    ) -> Result<(), io::Error> {
        let _no_view = self.views.lock().await;
        let (done, installed) = oneshot::channel();
        self.apply.submit(Job::Install { meta: meta.clone(), file, done });
        answer(installed).await
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> Result<Option<SnapshotOf<TypeConfig, SnapshotFile>>, io::Error> {
        let current = self.snapshots.current();
        Ok(current
            .map(|(meta, snapshot)| SnapshotOf::<TypeConfig, SnapshotFile> { meta, snapshot }))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use openraft::{Membership, RaftSnapshotBuilder};

    use super::{
        super::testing::{Heard, Recorder, buy, entry, inline_env, item, log_id, number, request},
        *,
    };
    use crate::raft::Member;
    use pygmy_protocol::command::Command;

    fn open(dir: &Path) -> (StateMachine, Reader, Arc<Recorder>) {
        open_in(&Env::production(), dir)
    }

    fn open_in(env: &Env, dir: &Path) -> (StateMachine, Reader, Arc<Recorder>) {
        let hook = Arc::new(Recorder::default());
        let applied = Arc::clone(&hook) as Arc<dyn AppliedHook>;
        let (machine, reader) =
            StateMachine::open(env, dir, StateConfig::default(), applied).unwrap();
        (machine, reader, hook)
    }

    async fn apply(machine: &mut StateMachine, entries: impl IntoIterator<Item = Entry>) {
        let entries: Vec<_> = entries.into_iter().map(|entry| Ok((entry, None))).collect();
        machine.apply(stream::iter(entries)).await.unwrap();
    }

    fn stock(index: u64) -> Entry {
        let add = Command::AddItems { items: vec![item(1, "a", 1000)] };
        entry(index, vec![request("add", add)])
    }

    fn buys(indexes: std::ops::Range<u64>) -> impl Iterator<Item = Entry> {
        indexes.map(|n| entry(n, vec![request(&format!("k{n}"), buy(1, 1))]))
    }

    #[tokio::test]
    async fn more_entries_than_fit_a_transaction_are_applied_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let (mut machine, reader, hook) = open(dir.path());
        let last = 3 * GROUP_ENTRIES_MAX as u64;
        apply(&mut machine, [stock(1)].into_iter().chain(buys(2..last + 1))).await;
        let read = reader.item(number(1)).unwrap();
        assert_eq!((read.value.unwrap().stock, read.index), (1000 - (last - 1), last));
        let status = reader.status();
        assert_eq!((status.applied, status.orders), (Some(log_id(last)), last - 1));
        let heard = hook.take().into_iter().map(|heard| match heard {
            Heard::Applied(index, _) => index,
            Heard::Restored(index) => panic!("restored at {index}"),
            Heard::Holders(_) => panic!("nobody joined"),
        });
        assert!(heard.eq(1..=last));
        assert_eq!(machine.applied_state().await.unwrap().0, Some(log_id(last)));
    }

    #[tokio::test]
    async fn the_membership_is_kept() {
        // Without threads a machine that was dropped has closed its files.
        let env = inline_env();
        let dir = tempfile::tempdir().unwrap();
        let (mut machine, ..) = open_in(&env, dir.path());
        let member = |name: &str| Member { name: name.into(), ..Member::default() };
        let nodes = [(1, member("one")), (2, member("two"))];
        let membership = Membership::new(
            vec![[1].into(), [1, 2].into()],
            std::collections::BTreeMap::from(nodes),
        );
        let payload = EntryPayload::Membership(membership.unwrap());
        apply(&mut machine, [Entry { log_id: log_id(1), payload }]).await;
        let before = machine.applied_state().await.unwrap();
        assert_eq!(before.1.log_id(), &Some(log_id(1)));
        drop(machine);
        let (mut machine, ..) = open_in(&env, dir.path());
        assert_eq!(machine.applied_state().await.unwrap(), before);
        let snapshot = machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
        assert_eq!(snapshot.meta.last_membership, before.1);
    }

    #[tokio::test]
    async fn a_snapshot_shows_the_state_at_which_it_was_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let (mut machine, reader, _) = open(dir.path());
        apply(&mut machine, [stock(1)]).await;
        let mut builder = machine.try_create_snapshot_builder(true).await.unwrap();
        apply(&mut machine, buys(2..10)).await;
        let snapshot = builder.build_snapshot().await.unwrap();
        assert_eq!(snapshot.meta.last_log_id, Some(log_id(1)));
        assert_eq!(snapshot.snapshot.verify().unwrap(), snapshot.meta);
        assert_eq!(reader.status().snapshot_index, 1);
        assert!(builder.build_snapshot().await.is_err());
    }

    #[tokio::test]
    async fn a_snapshot_travels_to_another_replica() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (mut source, source_reader, _) = open(from.path());
        apply(&mut source, [stock(1)].into_iter().chain(buys(2..10))).await;
        source.get_snapshot_builder().await.build_snapshot().await.unwrap();
        let sent = source.get_current_snapshot().await.unwrap().unwrap();

        let (mut machine, reader, hook) = open(to.path());
        apply(&mut machine, [stock(1)]).await;
        let incoming = machine.snapshots().incoming().unwrap();
        let mut bytes = vec![0; sent.snapshot.len().unwrap() as usize];
        sent.snapshot.read_exact_at(&mut bytes, 0).unwrap();
        incoming.write_all_at(&bytes, 0).unwrap();
        machine.install_snapshot(&sent.meta, incoming).await.unwrap();

        assert_eq!(reader.status(), source_reader.status());
        assert_eq!(hook.take().last(), Some(&Heard::Restored(9)));
        let current = machine.get_current_snapshot().await.unwrap().unwrap();
        assert_eq!(current.meta, sent.meta);
        apply(&mut machine, buys(10..12)).await;
        apply(&mut source, buys(10..12)).await;
        assert_eq!(reader.status().state_hash, source_reader.status().state_hash);
        reader.verify().unwrap();
    }

    #[tokio::test]
    async fn an_installation_waits_for_the_view_of_a_builder() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (mut source, ..) = open(from.path());
        apply(&mut source, [stock(1)].into_iter().chain(buys(2..10))).await;
        let sent = source.get_snapshot_builder().await.build_snapshot().await.unwrap();

        let (mut machine, reader, _) = open(to.path());
        apply(&mut machine, [stock(1)]).await;
        let mut builder = machine.get_snapshot_builder().await;
        let install = machine.install_snapshot(&sent.meta, sent.snapshot);
        let (installed, built) = tokio::join!(install, builder.build_snapshot());
        installed.unwrap();
        assert_eq!(built.unwrap().meta.last_log_id, Some(log_id(1)));
        assert_eq!(reader.status().snapshot_index, 9);
        reader.verify().unwrap();
    }
}
