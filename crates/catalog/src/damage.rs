//! A replica that finds its own database damaged stops, and begins anew when it is started again.
//!
//! Each row has a checksum, which is looked at whenever the row is read, and SQLite finds pages that
//! make no sense; from time to time all of it is read ([`scrub`]). Whoever finds damage says so here.
//! The identity is marked as ended, because the next start would not look at every row, and the
//! server ends: see [`rejoin`](crate::rejoin) for how it goes on. A damaged log needs no mark: it is
//! read whole at every start.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use pygmy_protocol::{
    env::{Env, Files},
    http::{Fatal, Shutdown},
};
use tokio::sync::watch;

use crate::{identity::end_identity, replica::Shared, state::StateError};

/// What was found, if anything was.
pub(crate) struct Damage {
    files: Arc<dyn Files>,
    dir: PathBuf,
    found: watch::Sender<Option<String>>,
}

impl Damage {
    /// Nothing was found in the data directory `dir` yet.
    pub(crate) fn new(env: &Env, dir: &Path) -> Damage {
        let (found, _) = watch::channel(None);
        Damage { files: Arc::clone(&env.files), dir: dir.to_owned(), found }
    }

    /// Ends the replica, and its identity, if `error` is damage. Blocks for an fsync then, once.
    pub(crate) fn report(&self, error: &StateError) {
        self.mark(error);
        self.stop(error);
    }

    /// Ends the identity if `error` is damage: from the next start on, however soon that comes.
    pub(crate) fn mark(&self, error: &StateError) {
        if !matches!(error, StateError::Corrupt { .. }) || self.found.borrow().is_some() {
            return;
        }
        let why = error.to_string();
        tracing::error!(why, "the data of this replica is damaged: it stops and never votes again");
        if let Err(error) = end_identity(&*self.files, &self.dir, &why) {
            tracing::error!(%error, "the end of this identity cannot be written down");
        }
    }

    /// Ends the replica if `error` is damage, and nothing else: for files that the next start makes
    /// anew from the rest.
    pub(crate) fn stop(&self, error: &StateError) {
        if matches!(error, StateError::Corrupt { .. }) {
            self.found.send_if_modified(|found| {
                let first = found.is_none();
                found.get_or_insert_with(|| error.to_string());
                first
            });
        }
    }

    /// Completes when damage was found.
    pub(crate) async fn found(&self) -> Fatal {
        let mut found = self.found.subscribe();
        match found.wait_for(Option::is_some).await {
            Ok(why) => Fatal(format!(
                "{}; start this server again, and it mends that or begins anew",
                why.as_deref().unwrap_or_default()
            )),
            Err(_) => Fatal("nobody looks for damage any more".to_owned()),
        }
    }
}

/// Ends with what was found.
pub(crate) async fn watch_damage(shared: Arc<Shared>) -> Fatal {
    shared.damage.found().await
}

/// Reads the whole database at every interval, and each replica at another time.
pub(crate) async fn scrub(shared: Arc<Shared>, mut shutdown: Shutdown) -> Result<(), Fatal> {
    let interval = shared.settings.scrub_interval_ms;
    let mut next = interval / 2 + shared.env.random.below(interval / 2 + 1);
    loop {
        tokio::select! {
            biased;
            () = shutdown.stopped() => return Ok(()),
            () = shared.env.sleep(Duration::from_millis(next)) => {}
        }
        next = interval;
        let reader = shared.reader.clone();
        match shared.checks.run(move || reader.verify()).await {
            Some(Ok(read)) => tracing::info!(index = read.index, "the database adds up"),
            Some(Err(error)) => {
                tracing::error!(%error, "the database does not add up");
                shared.damage.report(&error);
            }
            None => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use pygmy_protocol::env::FakeDisk;

    use super::*;
    use crate::identity::DataDir;

    #[test]
    fn damage_ends_the_identity_for_good_and_other_errors_do_not() {
        let disk = FakeDisk::default();
        let env = Env { files: Arc::new(disk.clone()), ..Env::production() };
        let dir = Path::new("data");
        let damage = Damage::new(&env, dir);
        damage.report(&StateError::Stopped);
        assert_eq!(damage.found().now_or_never(), None);
        assert!(DataDir::open(&env, dir, "catalog-1").is_ok());
        let corrupt =
            |detail: &str| StateError::Corrupt { path: "db".into(), detail: detail.into() };
        damage.report(&corrupt("row 7"));
        damage.report(&corrupt("row 8"));
        let Fatal(why) = damage.found().now_or_never().expect("it was found");
        assert!(why.starts_with("db is damaged: row 7;"), "{why}");
        disk.power_loss(1);
        let error = DataDir::open(&env, dir, "catalog-1").err().expect("it has ended");
        assert!(error.ends_identity() && error.to_string().contains("row 7"), "{error}");
    }
}
