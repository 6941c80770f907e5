//! A disk that stalls: a file system that is frozen while the leader writes its log to it.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use crate::harness::{Layout, Store, until};

const DISK_BYTES: u64 = 64 << 20;

/// A file system of its own for the log of each replica, as long as this lives.
struct Disks {
    store: Option<Store>,
    mounted: Vec<PathBuf>,
}

impl Disks {
    /// A store on them; `None` where nobody may mount one.
    async fn store() -> Option<Disks> {
        let mut mounted = Vec::new();
        let mut refused = false;
        let store = Store::start_on(Layout::Tiers, "", |store| {
            for name in store.replicas() {
                let dir = store.data(&name).join("raft-log");
                fs::create_dir_all(&dir).unwrap();
                refused |= !mount(&store.dir().join(format!("{name}.image")), &dir);
                mounted.push(dir);
            }
        })
        .await;
        if refused {
            eprintln!("skipped: a file system that can be frozen cannot be mounted here");
            return None;
        }
        Some(Disks { store: Some(store), mounted })
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        // Nobody who waits for a frozen disk can be killed.
        self.mounted.iter().for_each(|dir| {
            run("fsfreeze", &["--unfreeze"], dir);
        });
        self.store = None;
        self.mounted.iter().for_each(|dir| {
            run("umount", &["--lazy"], dir);
        });
    }
}

fn mount(image: &Path, dir: &Path) -> bool {
    File::create(image).unwrap().set_len(DISK_BYTES).unwrap();
    let device = image.to_str().unwrap();
    run("mkfs.ext4", &["-q"], image) && run("mount", &["-o", "loop", device], dir)
}

/// Whether a command did well.
fn run(program: &str, options: &[&str], path: &Path) -> bool {
    let output = Command::new(program).args(options).arg(path).output();
    output.is_ok_and(|output| output.status.success())
}

#[tokio::test]
async fn a_leader_whose_disk_stalls_gives_way() {
    let Some(disks) = Disks::store().await else { return };
    let store = disks.store.as_ref().unwrap();
    store.order(1, "before").await;
    let stalled = store.leader().await;
    let disk = store.data(&stalled).join("raft-log");
    assert!(run("fsfreeze", &["--freeze"], &disk));
    // The others can do without its log for a while.
    store.order(1, "meanwhile").await;
    until("another one leads", async || (store.leader().await != stalled).then_some(())).await;
    assert!(store.log(&stalled).contains("the disk has stalled"), "it gives way by itself");
    store.order(1, "under-another-leader").await;
    assert!(run("fsfreeze", &["--unfreeze"], &disk));
    store.order(1, "after").await;
    assert_eq!(store.agreed().await[0].orders, 4);
    store.verify().await;
}
