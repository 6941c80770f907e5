//! Building a snapshot while buys go on.

use std::{
    io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use openraft::{RaftSnapshotBuilder, type_config::alias::SnapshotOf};
use pygmy_protocol::{
    env::{Env, Worker},
    metrics::Histogram,
};
use rusqlite::Connection;
use tokio::sync::{OwnedMutexGuard, oneshot};

use super::{
    AppliedHook, SnapshotFile, SnapshotStore, StateError, machine::answer, meta::Meta,
    query::Shared, snapshot,
};
use crate::raft::TypeConfig;

/// A read transaction that keeps seeing the state as it was when the builder was asked for. Raft
/// relies on that: a snapshot must not be ahead of the entries that Raft knows to be applied.
pub(super) struct View {
    // The order matters: the connection is closed before an installation may begin.
    db: Connection,
    meta: Meta,
    _no_installation: OwnedMutexGuard<()>,
}

impl View {
    pub(super) fn open(
        shared: &Shared,
        no_installation: OwnedMutexGuard<()>,
    ) -> Result<View, StateError> {
        let open = || {
            let db = shared.pool.open()?;
            db.execute_batch("BEGIN")?;
            let meta = Meta::load(&db)?;
            Ok(View { db, meta, _no_installation: no_installation })
        };
        open().map_err(|e: StateError| e.in_database(shared.pool.path()))
    }
}

type Built = SnapshotOf<TypeConfig, SnapshotFile>;

/// A snapshot to be made of one view.
pub(super) struct Build {
    view: View,
    done: oneshot::Sender<Result<Built, StateError>>,
}

/// How long snapshots took. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct SnapshotTimes {
    /// From the database to a durable file.
    pub(crate) built: Histogram,
    /// From a file to the database in use.
    pub(crate) installed: Histogram,
}

impl Default for SnapshotTimes {
    fn default() -> SnapshotTimes {
        SnapshotTimes { built: Histogram::of_times(), installed: Histogram::of_times() }
    }
}

/// Starts the worker that builds.
pub(super) fn worker(
    env: &Env,
    snapshots: SnapshotStore,
    chunk_bytes: usize,
    times: Histogram,
    hook: Arc<dyn AppliedHook>,
    database: PathBuf,
) -> Worker<Build> {
    let clock = Arc::clone(&env.clock);
    Worker::start(env, "snapshot", move |jobs| {
        for Build { view, done } in jobs.drain(..) {
            let begun = clock.now();
            // It reads every row: whatever is damaged, it finds.
            let built = build(view, &snapshots, chunk_bytes)
                .map_err(|error| error.in_database(&database))
                .inspect_err(|error| hook.damaged(error));
            times.observe_time(clock.now().saturating_since(begun));
            // Raft may have been shut down in the meantime: then nobody wants to know.
            let _ = done.send(built);
        }
    })
}

fn build(view: View, snapshots: &SnapshotStore, chunk_bytes: usize) -> Result<Built, StateError> {
    let file = snapshots.incoming()?;
    snapshot::write(&file, &view.db, &view.meta, chunk_bytes)?;
    let meta = view.meta.snapshot_meta();
    let snapshot = snapshots.publish(&meta, file)?;
    Ok(Built { meta, snapshot })
}

/// Builds one snapshot.
pub(crate) struct SnapshotBuilder {
    // A connection cannot be shared between threads, which Raft wants of a builder.
    view: Mutex<Option<Result<View, StateError>>>,
    worker: Arc<Worker<Build>>,
}

impl SnapshotBuilder {
    pub(super) fn new(
        view: Result<View, StateError>,
        worker: &Arc<Worker<Build>>,
    ) -> SnapshotBuilder {
        SnapshotBuilder { view: Mutex::new(Some(view)), worker: Arc::clone(worker) }
    }
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> Result<Built, io::Error> {
        let view = self.view.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        let view =
            view.ok_or_else(|| io::Error::other("this builder has built its snapshot"))??;
        let (done, built) = oneshot::channel();
        self.worker.submit(Build { view, done });
        answer(built).await
    }
}
