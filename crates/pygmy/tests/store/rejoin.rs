//! Replicas whose disks were lost or damaged.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use http::{Method, StatusCode};

use crate::{
    failures::{alone, keep_buying, nothing_is_lost},
    harness::{Layout, Store, until},
};

/// A replica that does not lead.
async fn follower(store: &Store) -> String {
    let leader = store.leader().await;
    store.replicas().into_iter().find(|name| *name != leader).unwrap()
}

/// Waits until the replica of `name` is a voter under another id than `old`, in its place.
async fn has_taken_its_place(store: &Store, name: &str, old: u64) {
    until("the replica has taken its place", async || {
        let status = store.status(name).await?;
        let leader = store.status(&store.leader().await).await?;
        let own = leader.members.iter().find(|member| member.name == status.name)?;
        let voters = leader.members.iter().filter(|member| member.voter).count();
        (own.voter && own.id == status.id && own.id != old && leader.members.len() == 3)
            .then(|| assert_eq!(voters, 3))
    })
    .await;
}

/// Flips one bit in the middle of what a file holds.
fn flip(path: &Path) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut bytes = fs::read(path).unwrap();
    let used = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    bytes[used / 2] ^= 1;
    file.write_all_at(&bytes[used / 2..=used / 2], used as u64 / 2).unwrap();
}

fn first_segment(dir: &Path) -> PathBuf {
    dir.join("raft-log/00000000000000000000.log")
}

/// `settings` say how it catches up: with entries of the log, or with a snapshot.
async fn a_wiped_replica_takes_its_place_while_the_store_sells(layout: Layout, settings: &str) {
    let mut store = Store::start_with(layout, settings).await;
    let victim = follower(&store).await;
    let old = store.status(&victim).await.unwrap().id;
    store.kill(&victim);
    fs::remove_dir_all(store.data(&victim)).unwrap();
    let store = Arc::new(store);
    let stop = Arc::new(AtomicBool::new(false));
    let buying = keep_buying(&store, 4, &stop);
    buying.more(20).await;
    stop.store(true, Ordering::Relaxed);
    let mut acknowledged = buying.finish().await;
    let mut store = alone(store);
    store.spawn(&victim);
    let (store, stop) = (Arc::new(store), Arc::new(AtomicBool::new(false)));
    // Keys of before are repeated, and new ones follow.
    let buying = keep_buying(&store, 3, &stop);
    has_taken_its_place(&store, &victim, old).await;
    buying.more(20).await;
    stop.store(true, Ordering::Relaxed);
    acknowledged.extend(buying.finish().await);
    store.ready().await;
    let statuses = store.agreed().await;
    assert!(statuses.iter().all(|status| status.orders == acknowledged.len() as u64));
    nothing_is_lost(&store, &acknowledged).await;
}

#[tokio::test]
async fn a_wiped_replica_takes_its_place_while_the_store_sells_tiers() {
    a_wiped_replica_takes_its_place_while_the_store_sells(Layout::Tiers, "").await;
}

#[tokio::test]
async fn a_wiped_node_takes_its_place_while_the_store_sells() {
    let short_log = "[catalog]\nsnapshot_log_entries = 5\nlog_entries_kept = 1\n";
    a_wiped_replica_takes_its_place_while_the_store_sells(Layout::Nodes, short_log).await;
}

type Damage = Box<dyn Fn(&Path)>;

#[tokio::test]
async fn whatever_of_a_replica_is_damaged_it_begins_anew_under_another_identity() {
    let mut store = Store::start(Layout::Tiers).await;
    for n in 0..30 {
        store.order(1, &format!("key-{n}")).await;
    }
    let damages: [(&str, Damage); 6] = [
        ("a record of the log", Box::new(|dir| flip(&first_segment(dir)))),
        ("the log", Box::new(|dir| fs::remove_dir_all(dir.join("raft-log")).unwrap())),
        ("the vote", Box::new(|dir| fs::remove_file(dir.join("raft-log/state")).unwrap())),
        ("the identity", Box::new(|dir| fs::remove_file(dir.join("identity.json")).unwrap())),
        (
            "the text of the identity",
            Box::new(|dir| fs::write(dir.join("identity.json"), "{").unwrap()),
        ),
        (
            "the database",
            Box::new(|dir| {
                // What SQLite has not moved into the database yet would repair it.
                let _ = fs::remove_file(dir.join("catalog.db-wal"));
                fs::write(dir.join("catalog.db"), "x".repeat(8192)).unwrap();
            }),
        ),
    ];
    for (what, damage) in damages {
        let victim = follower(&store).await;
        let old = store.status(&victim).await.unwrap().id;
        assert_eq!(store.stop(&victim).await, Some(0));
        damage(&store.data(&victim));
        store.spawn(&victim);
        has_taken_its_place(&store, &victim, old).await;
        assert!(store.log(&victim).contains("never votes again"), "{what}");
        store.ready().await;
    }
    store.agreed().await;
    store.verify().await;
}

#[tokio::test]
async fn a_damaged_row_is_never_served_and_its_replica_begins_anew() {
    let mut store = Store::start(Layout::Tiers).await;
    store.order(1, "key").await;
    let victim = follower(&store).await;
    let old = store.status(&victim).await.unwrap().id;
    assert_eq!(store.stop(&victim).await, Some(0));
    let db = rusqlite::Connection::open(store.data(&victim).join("catalog.db")).unwrap();
    assert_eq!(db.execute("UPDATE items SET stock = 7000 WHERE item_number = 2", ()).unwrap(), 1);
    drop(db);
    store.spawn(&victim);
    store.ready_server(&victim).await;
    let answer = store.send_to(&store.url(&victim), &store.call(Method::GET, "/query/2")).await;
    assert!(answer.is_ok_and(|answer| answer.status == StatusCode::SERVICE_UNAVAILABLE));
    assert_eq!(store.ended(&victim).await, Some(1));
    let log = store.log(&victim);
    assert!(log.contains("row 2 fails its check"), "{log}");
    store.spawn(&victim);
    has_taken_its_place(&store, &victim, old).await;
    store.ready().await;
    store.agreed().await;
    store.verify().await;
}

#[tokio::test]
async fn a_directory_of_another_replica_is_not_used() {
    let mut store = Store::start(Layout::Tiers).await;
    store.order(1, "key").await;
    let victim = follower(&store).await;
    let leader = store.leader().await;
    let other = store.replicas().into_iter().find(|n| *n != leader && *n != victim).unwrap();
    let (old, foreign) = {
        let id = async |name: &str| store.status(name).await.unwrap().id;
        (id(&victim).await, id(&other).await)
    };
    for name in [&victim, &other] {
        assert_eq!(store.stop(name).await, Some(0));
    }
    let copied = fs::copy(
        store.data(&other).join("identity.json"),
        store.data(&victim).join("identity.json"),
    );
    copied.unwrap();
    store.spawn(&other);
    store.ready_server(&other).await;
    store.spawn(&victim);
    has_taken_its_place(&store, &victim, old).await;
    assert_ne!(store.status(&victim).await.unwrap().id, foreign);
    store.ready().await;
    store.agreed().await;
}

#[tokio::test]
async fn without_a_majority_of_others_nothing_is_thrown_away() {
    let mut store = Store::start(Layout::Tiers).await;
    store.order(1, "key").await;
    let leader = store.leader().await;
    let (damaged, others): (Vec<_>, Vec<_>) =
        store.replicas().into_iter().partition(|name| *name != leader);
    for name in damaged.iter().chain(&others) {
        store.kill(name);
    }
    let first = store.data(&damaged[0]);
    flip(&first_segment(&first));
    let before = fs::read(first_segment(&first)).unwrap();
    store.spawn(&damaged[0]);
    assert_eq!(store.ended(&damaged[0]).await, Some(1));
    assert!(store.log(&damaged[0]).contains("as soon as a majority of the other replicas"));
    assert_eq!(fs::read(first_segment(&first)).unwrap(), before);
    // Nor does it take a new log for the one that it had, however often it is started.
    fs::remove_dir_all(first.join("raft-log")).unwrap();
    for _ in 0..2 {
        store.spawn(&damaged[0]);
        assert_eq!(store.ended(&damaged[0]).await, Some(1));
        assert!(!first.join("raft-log").exists());
    }
    assert!(store.log(&damaged[0]).contains("its Raft log is gone"));
    // When there is one, it goes by itself.
    store.spawn(&damaged[1]);
    store.spawn(&leader);
    store.spawn(&damaged[0]);
    store.ready().await;
    store.agreed().await;
    assert_eq!(store.order(1, "key").await.order_number.0, 1);
}
