//! Replicas that come, go and lead by command, while the store sells.

use std::{
    process::Output,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::{
    failures::{Acknowledged, alone, keep_buying, nothing_is_lost},
    harness::{Layout, Store, until},
};

fn done(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    assert!(output.status.success(), "{} {}", shown(out), shown(err));
    shown(out)
}

fn shown(text: &[u8]) -> String {
    String::from_utf8_lossy(text).into_owned()
}

async fn members(store: &Store) -> Vec<String> {
    let leader = store.status(&store.leader().await).await.unwrap();
    let mut names: Vec<_> = leader
        .members
        .into_iter()
        .filter(|member| member.voter)
        .map(|member| member.name)
        .collect();
    names.sort();
    names
}

/// Runs `commands` one after the other while four buyers buy; then all that was acknowledged is
/// checked.
struct UnderLoad {
    store: Arc<Store>,
    stop: Arc<AtomicBool>,
    buying: Acknowledged,
}

impl UnderLoad {
    fn begin(store: Store) -> UnderLoad {
        let (store, stop) = (Arc::new(store), Arc::new(AtomicBool::new(false)));
        let buying = keep_buying(&store, 4, &stop);
        UnderLoad { store, stop, buying }
    }

    async fn admin(&self, arguments: &'static [&'static str]) -> Output {
        self.buying.more(10).await;
        let store = Arc::clone(&self.store);
        let output = tokio::task::spawn_blocking(move || store.admin(arguments)).await.unwrap();
        self.buying.more(10).await;
        output
    }

    /// Ends the load and checks what was acknowledged, on these replicas.
    async fn end(self, members: &[&str]) -> Store {
        self.stop.store(true, Ordering::Relaxed);
        let acknowledged = self.buying.finish().await;
        let mut store = alone(self.store);
        for name in store.replicas() {
            if !members.contains(&name.as_str()) {
                store.kill(&name);
                store.forget(&name);
            }
        }
        nothing_is_lost(&store, &acknowledged).await;
        store
    }
}

#[tokio::test]
async fn replicas_come_and_go_and_lead_under_load() {
    let mut store = Store::start(Layout::Tiers).await;
    for name in ["catalog-4", "catalog-5"] {
        store.configure_catalog(name);
        store.spawn(name);
        until("it answers", async || store.status(name).await).await;
    }
    let load = UnderLoad::begin(store);
    done(&load.admin(&["add-replica", "catalog-4"]).await);
    assert_eq!(members(&load.store).await, ["catalog-1", "catalog-2", "catalog-3", "catalog-4"]);

    done(&load.admin(&["transfer-leader", "catalog-1"]).await);
    assert_eq!(load.store.leader().await, "catalog-1");

    // The leader itself goes: it makes another one the leader first.
    let text = done(&load.admin(&["replace-replica", "catalog-1", "catalog-5"]).await);
    assert!(text.contains("now stop the server catalog-1"), "{text}");
    assert_eq!(members(&load.store).await, ["catalog-2", "catalog-3", "catalog-4", "catalog-5"]);

    done(&load.admin(&["remove-replica", "catalog-2"]).await);
    assert_eq!(members(&load.store).await, ["catalog-3", "catalog-4", "catalog-5"]);
    let table = done(&load.admin(&["status"]).await);
    let row = table.lines().find(|line| line.starts_with("catalog-2 ")).unwrap();
    assert!(row.contains("removed"), "{table}");
    load.store.ready_server("catalog-5").await;
    load.end(&["catalog-3", "catalog-4", "catalog-5"]).await;
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_with_a_reason() {
    let mut store = Store::start(Layout::Nodes).await;
    let says = |output: &Output, what: &str| {
        assert!(!output.status.success());
        let text = shown(&output.stderr);
        assert!(text.contains(what), "{text}");
    };
    says(&store.admin(&["remove-replica", "node-9"]), "no replica named node-9");
    says(&store.admin(&["transfer-leader", "node-9"]), "no voter of the cluster is named node-9");
    says(&store.admin(&["add-replica", "node-9"]), "has no server node-9");
    store.configure_catalog("catalog-4");
    says(&store.admin(&["add-replica", "catalog-4"]), "must run before it can join");
    store.forget("catalog-4");
    let leader = store.leader().await;
    let mut others = store.replicas().into_iter().filter(|name| *name != leader);
    let (dead, alive) = (others.next().unwrap(), others.next().unwrap());
    store.kill(&dead);
    says(&store.admin(&["remove-replica", &alive]), "no majority");
    assert!(store.admin(&["remove-replica", &dead]).status.success());
    done(&store.admin(&["transfer-leader", &alive]));
    assert_eq!(store.leader().await, alive);
}
