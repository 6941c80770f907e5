//! File systems of their own for the replicas of a store, so that one can be full or stall.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::harness::{Layout, Store};

/// A store with every tier a process, and what is mounted for its replicas as long as this lives.
pub(crate) struct Disks {
    store: Option<Store>,
    mounted: Vec<PathBuf>,
}

impl Disks {
    /// Mounts a file system at `place` in the directory of each replica, with `mount`, which is given
    /// the directory and says whether it could. `None` where nobody may.
    pub(crate) async fn store(
        settings: &str,
        place: &str,
        mount: fn(&Path) -> bool,
    ) -> Option<Disks> {
        let mut mounted = Vec::new();
        let mut refused = false;
        let store = Store::start_on(Layout::Tiers, settings, |store| {
            for name in store.replicas() {
                let dir = store.data(&name).join(place);
                fs::create_dir_all(&dir).unwrap();
                refused |= !mount(&dir);
                mounted.push(dir);
            }
        })
        .await;
        let disks = Disks { store: Some(store), mounted };
        if refused {
            eprintln!("skipped: a file system cannot be mounted here");
            return None;
        }
        Some(disks)
    }

    pub(crate) fn store_mut(&mut self) -> &mut Store {
        self.store.as_mut().unwrap()
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        for dir in &self.mounted {
            // Nobody who waits for a frozen disk can be killed.
            run("fsfreeze", &["--unfreeze"], dir);
        }
        // The servers end before their disks do.
        self.store = None;
        for dir in &self.mounted {
            run("umount", &["--lazy"], dir);
        }
    }
}

/// Whether a command did well.
pub(crate) fn run(program: &str, options: &[&str], path: &Path) -> bool {
    let output = Command::new(program).args(options).arg(path).output();
    output.is_ok_and(|output| output.status.success())
}
