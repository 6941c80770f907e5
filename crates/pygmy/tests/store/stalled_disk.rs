//! A disk that stalls: a file system that is frozen while the leader writes its log to it.

use std::{fs::File, path::Path};

use crate::{
    disks::{Disks, run},
    harness::until,
};

const DISK_BYTES: u64 = 64 << 20;

fn mount(dir: &Path) -> bool {
    let image = dir.with_extension("image");
    File::create(&image).unwrap().set_len(DISK_BYTES).unwrap();
    let device = image.to_str().unwrap();
    run("mkfs.ext4", &["-q"], &image) && run("mount", &["-o", "loop", device], dir)
}

#[tokio::test]
async fn a_leader_whose_disk_stalls_gives_way() {
    let Some(mut disks) = Disks::store("", "raft-log", mount).await else { return };
    let store = disks.store_mut();
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
