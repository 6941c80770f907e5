//! Machines that give a server little: few open files, and no room for what it logs.

use std::{process::Command, sync::Arc};

use crate::harness::{Layout, Machines, PATIENCE, PYGMY, Store, free_ports, until};

/// This machine, whose servers may have so many files open.
const FILES: usize = 400;

struct Poor(u16);

impl Machines for Poor {
    fn address(&self, _: &str, port: u16) -> String {
        format!("127.0.0.1:{}", self.0 + port)
    }

    fn program(&self, _: &str) -> Command {
        let mut shell = Command::new("sh");
        let script = format!("ulimit -n {FILES}; exec \"$0\" \"$@\" 2>/dev/full");
        shell.args(["-c", &script, PYGMY]);
        shell
    }
}

#[tokio::test]
async fn connections_leave_files_for_the_log_and_a_log_that_is_full_stops_nothing() {
    let machines = Arc::new(Poor(free_ports(&pygmy_protocol::Env::production(), 20)));
    let settings = "[catalog]\nlog_segment_bytes = 65536\n";
    let store = Store::start_across(machines, Layout::Nodes, settings, |_| {}).await;
    let mut idle = Vec::new();
    for front_end in 0..store.front_ends() {
        // The connection that is used below is there before the flood.
        assert_eq!(store.get(front_end, "/lookup/1").await.status, 200);
        let authority = store.public_authority(front_end);
        for _ in 0..FILES {
            idle.push(store.env.connect(&authority, PATIENCE).await.unwrap());
        }
    }
    let turned_away = async || {
        let scrape = store.scrape(&store.url("node-1")).await;
        let count = scrape.value("pygmy_rejections_total", &["reason=\"max_connections\""]);
        (count >= 100.0).then_some(())
    };
    until("connections are turned away", turned_away).await;
    // Enough for several segments of the log.
    for number in 0..600 {
        store.order(1, &format!("key-{number}")).await;
    }
    store.verify().await;
    drop(idle);
}
