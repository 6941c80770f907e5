//! What is done to servers.

use std::{
    collections::BTreeMap,
    io::Write,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use pygmy_protocol::Env;
use rustix::process::{Pid, Signal, kill_process};

use crate::harness::Store;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// kill -9.
    Kill,
    /// SIGSTOP, and SIGCONT later, unless whoever watches has ended it by then.
    Stop,
    /// Nobody reaches its port any more, for a while.
    Cut,
}

/// Longest time between two faults, for a stop, and for a cut: about the time after which a silent
/// server is ended.
const GAP_MS: u64 = 1_500;
const HELD_UP_MS: u64 = 2_500;
/// How often the next fault waits until all servers are ready, in percent.
const PATIENT: u64 = 80;

pub(crate) struct Faults {
    store: Arc<Store>,
    env: Env,
    filter: Option<Filter>,
    stopped: Vec<Pid>,
    counts: BTreeMap<Fault, u64>,
}

impl Faults {
    pub(crate) fn new(store: &Arc<Store>) -> Faults {
        let filter = Filter::new();
        if filter.is_none() {
            eprintln!("without cuts: there is no packet filter here, or no right to use it");
        }
        let (store, env) = (Arc::clone(store), Env::production());
        Faults { store, env, filter, stopped: Vec::new(), counts: BTreeMap::new() }
    }

    /// One fault, and a while.
    pub(crate) async fn one(&mut self) {
        let names = self.store.names();
        let name = &names[self.env.random.below(names.len() as u64) as usize];
        let kinds = [Fault::Kill, Fault::Kill, Fault::Stop, Fault::Cut];
        let mut fault = kinds[self.env.random.below(kinds.len() as u64) as usize];
        if fault == Fault::Cut && self.filter.is_none() {
            fault = Fault::Kill;
        }
        let Some(pid) = self.store.process(name) else { return self.wait(100).await };
        *self.counts.entry(fault).or_default() += 1;
        match fault {
            // It may have ended by itself.
            Fault::Kill => drop(kill_process(pid, Signal::KILL)),
            Fault::Stop => {
                if kill_process(pid, Signal::STOP).is_ok() {
                    self.stopped.push(pid);
                }
                self.wait(HELD_UP_MS).await;
                self.resume();
            }
            Fault::Cut => {
                let port = self.store.url(name).rsplit(':').next().unwrap().to_owned();
                self.filter.iter().for_each(|filter| filter.cut(&port));
                self.wait(HELD_UP_MS).await;
                self.filter.iter().for_each(Filter::heal);
            }
        }
        if self.env.random.below(100) < PATIENT {
            self.store.ready().await;
        }
        self.wait(GAP_MS).await;
    }

    /// Ends all faults and waits until every server is ready.
    pub(crate) async fn end_all(&mut self) {
        self.resume();
        self.filter.iter().for_each(Filter::heal);
        self.store.ready().await;
    }

    pub(crate) fn counts(&self) -> BTreeMap<Fault, u64> {
        self.counts.clone()
    }

    fn resume(&mut self) {
        for pid in self.stopped.drain(..) {
            // It may have been ended.
            let _ = kill_process(pid, Signal::CONT);
        }
    }

    /// Up to `ms` milliseconds.
    async fn wait(&self, ms: u64) {
        let ms = 50 + self.env.random.below(ms);
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }
}

/// A table of the kernel's packet filter, on loopback, for the ports of one store.
struct Filter(String);

impl Filter {
    fn new() -> Option<Filter> {
        let filter = Filter(format!("pygmychaos{}", std::process::id()));
        let made = filter.obey(
            "add table inet TABLE
             add set inet TABLE cut { type inet_service; }
             add chain inet TABLE in { type filter hook input priority 0; }
             add rule inet TABLE in iif lo tcp dport @cut drop
             add rule inet TABLE in iif lo tcp sport @cut drop",
        );
        made.then_some(filter)
    }

    fn cut(&self, port: &str) {
        assert!(self.obey(&format!("add element inet TABLE cut {{ {port} }}")));
    }

    fn heal(&self) {
        assert!(self.obey("flush set inet TABLE cut"));
    }

    fn obey(&self, commands: &str) -> bool {
        let nft = Command::new("nft")
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let Ok(mut nft) = nft else { return false };
        let commands = commands.replace("TABLE", &self.0);
        let _ = nft.stdin.take().unwrap().write_all(commands.as_bytes());
        nft.wait().is_ok_and(|status| status.success())
    }
}

impl Drop for Filter {
    fn drop(&mut self) {
        self.obey("delete table inet TABLE");
    }
}
