//! Disks that are full, as small file systems in memory.

use std::{fs, path::Path};

use http::{Method, StatusCode};
use pygmy_protocol::Code;

use crate::{
    disks::{Disks, run},
    harness::until,
};

/// Small segments of the log, and 4 MiB to be kept free.
const SETTINGS: &str = "[catalog]\nlog_segment_bytes = 65536\nmin_free_bytes = 4194304\n";
const DISK_BYTES: u64 = 16 << 20;

async fn small_disks() -> Option<Disks> {
    Disks::store(SETTINGS, "", |dir| {
        let size = format!("size={DISK_BYTES}");
        run("mount", &["-t", "tmpfs", "-o", &size, "tmpfs"], dir)
    })
    .await
}

impl Disks {
    /// Leaves so many megabytes free on the disk of a replica.
    fn fill(&mut self, name: &str, megabytes: u64) {
        let path = self.store_mut().data(name).join("fill");
        let free = free(path.parent().unwrap());
        fs::write(&path, vec![1; (free - (megabytes << 20)) as usize]).unwrap();
    }

    fn make_room(&mut self, name: &str) {
        fs::remove_file(self.store_mut().data(name).join("fill")).unwrap();
    }
}

fn free(dir: &Path) -> u64 {
    let stat = rustix::fs::statvfs(dir).unwrap();
    stat.f_bavail * stat.f_frsize
}

#[tokio::test]
async fn a_follower_without_room_falls_behind_and_catches_up() {
    let Some(mut disks) = small_disks().await else { return };
    let leader = disks.store_mut().leader().await;
    let follower = disks.store_mut().replicas().into_iter().find(|name| *name != leader).unwrap();
    // Less than half of what is to be kept free.
    disks.fill(&follower, 1);
    let store = disks.store_mut();
    until("the follower takes no more", async || {
        store.log(&follower).contains("too little room").then_some(())
    })
    .await;
    until("it wants no traffic", async || {
        let answer =
            store.send_to(&store.url(&follower), &store.call(Method::GET, "/readyz")).await;
        let body = String::from_utf8_lossy(&answer.ok()?.body).into_owned();
        body.contains("too little room").then_some(())
    })
    .await;
    let before = store.status(&follower).await.unwrap().orders;
    for n in 0..20 {
        store.order(1, &format!("key-{n}")).await;
    }
    assert_eq!(store.status(&follower).await.unwrap().orders, before);
    disks.make_room(&follower);
    let store = disks.store_mut();
    store.agreed().await;
    assert_eq!(store.status(&follower).await.unwrap().orders, 20);
    store.verify().await;
}

#[tokio::test]
async fn a_leader_without_room_gives_way_to_one_that_has_some() {
    let Some(mut disks) = small_disks().await else { return };
    let leader = disks.store_mut().leader().await;
    disks.fill(&leader, 3);
    let store = disks.store_mut();
    until("another one leads", async || (store.leader().await != leader).then_some(())).await;
    store.order(1, "key").await;
    disks.make_room(&leader);
    disks.store_mut().agreed().await;
}

#[tokio::test]
async fn without_room_anywhere_changes_are_refused_and_reads_go_on_until_there_is_some() {
    let Some(mut disks) = small_disks().await else { return };
    let order = disks.store_mut().order(1, "before").await;
    let replicas = disks.store_mut().replicas();
    for name in &replicas {
        disks.fill(name, 3);
    }
    let store = disks.store_mut();
    let refused = until("changes are refused", async || {
        let answer = store.buy(0, 1, "during").await.ok()?;
        let problem = answer.problem();
        (problem.code == Code::Unavailable && problem.detail.contains("nearly full"))
            .then_some(answer)
    })
    .await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(refused.headers.contains_key("retry-after"));
    for front_end in 0..store.front_ends() {
        assert!(store.lookup(front_end, 2).await.stock > 0);
        let target = format!("/orders/{}", order.order_number);
        let answer = store.get(front_end, &target).await;
        assert_eq!(answer.json(), Ok(order.clone()));
    }
    assert_eq!(store.get(0, "/search/Distributed%20Systems").await.status, StatusCode::OK);
    for name in &replicas {
        disks.make_room(name);
    }
    let store = disks.store_mut();
    store.order(1, "after").await;
    store.agreed().await;
    store.verify().await;
}
