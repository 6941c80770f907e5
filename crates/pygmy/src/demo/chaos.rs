//! `pygmy demo --chaos`: kills and stops random servers, one at a time, so that people see them
//! come back.

use std::{fmt, time::Duration};

use pygmy_protocol::Env;
use rustix::process::{Pid, Signal, kill_process};

use super::supervise::Children;

/// Time between two servers, when all are there: so long, and up to twice as long.
const GAP: Duration = Duration::from_secs(3);
/// Of so many servers, one is stopped and the others are killed.
const STOPPED: u64 = 4;

/// What was done so far.
pub(super) struct Chaos {
    env: Env,
    servers: usize,
    killed: u64,
    stopped: u64,
    /// The last one that was stopped: until it is ended it still runs, in a way.
    hung: Option<Pid>,
}

/// What was done to a server.
pub(super) struct Struck {
    name: String,
    signal: Signal,
}

impl fmt::Display for Struck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.signal {
            Signal::KILL => write!(f, "chaos: {} is killed (SIGKILL)", self.name),
            _ => write!(f, "chaos: {} is stopped (SIGSTOP) and hangs", self.name),
        }
    }
}

impl Chaos {
    /// For a demo of so many servers.
    pub(super) fn new(env: &Env, servers: usize) -> Chaos {
        Chaos { env: env.clone(), servers, killed: 0, stopped: 0, hung: None }
    }

    /// Waits until it is time for another one.
    pub(super) async fn next(&self) {
        let more = self.env.random.below(GAP.as_millis() as u64);
        self.env.sleep(GAP + Duration::from_millis(more)).await;
    }

    /// Does something to a server. Nothing while another one is away: each is to be seen coming
    /// back.
    pub(super) fn strike(&mut self, children: &Children<'_>) -> Option<Struck> {
        let running = children.serving();
        let is_hung = |(_, pid): &(String, Pid)| self.hung == Some(*pid);
        if running.len() < self.servers || running.iter().any(is_hung) {
            return None;
        }
        let (name, pid) = running.get(self.env.random.below(running.len() as u64) as usize)?;
        let signal = if self.env.random.below(STOPPED) == 0 { Signal::STOP } else { Signal::KILL };
        // An error means that it has just ended by itself.
        kill_process(*pid, signal).ok()?;
        match signal {
            Signal::STOP => {
                self.stopped += 1;
                self.hung = Some(*pid);
            }
            _ => self.killed += 1,
        }
        Some(Struck { name: name.clone(), signal })
    }
}

/// However the demo ends, it says what it did.
impl Drop for Chaos {
    fn drop(&mut self) {
        eprintln!("{self}");
    }
}

impl fmt::Display for Chaos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "chaos: {} servers were killed, {} stopped", self.killed, self.stopped)
    }
}
