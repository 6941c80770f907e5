//! What goes wrong, drawn from the seed.
//!
//! A run draws which kinds of faults it has at all, so that rare ones are not always drowned by
//! the others. To add a kind: a variant of [`Fault`], its place in [`Scenario::kinds`], what it
//! does in [`Faults::inject`], and how it ends in [`Faults::end_all`].

use std::{io, time::Duration};

use pygmy_protocol::env::Random;

use crate::{
    cluster::{Cluster, Crash},
    rng::Rng,
    trace::note,
};

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// kill -9 of one server.
    Kill,
    /// The power of one machine fails.
    PowerLoss,
    /// The power of all machines fails.
    PowerLossOfAll,
    /// SIGSTOP, and SIGCONT later.
    Pause,
    /// One machine is cut off in both directions.
    Isolate,
    /// One direction between two machines is cut.
    CutOneWay,
    /// Connections between two machines break.
    Break,
    /// Every message is slow.
    Slow,
    /// A disk is slow.
    SlowDisk,
    /// Every fsync of a machine fails.
    FailSync,
    /// A wall clock is set forward or back by an hour.
    ClockJump,
}

/// Which faults a run may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Scenario {
    /// All kinds
    All,
    /// None
    Calm,
    /// Servers and machines that die
    Crashes,
    /// Cuts, broken connections, delays
    Network,
    /// Slow and failing disks, and machines that lose power
    Disks,
    /// Servers that are held up, and clocks that jump
    Pauses,
}

impl Scenario {
    fn kinds(self) -> &'static [Fault] {
        use Fault::*;
        match self {
            Scenario::All => &[
                Kill,
                PowerLoss,
                PowerLossOfAll,
                Pause,
                Isolate,
                CutOneWay,
                Break,
                Slow,
                SlowDisk,
                FailSync,
                ClockJump,
            ],
            Scenario::Calm => &[],
            Scenario::Crashes => &[Kill, PowerLoss, PowerLossOfAll],
            Scenario::Network => &[Isolate, CutOneWay, Break, Slow],
            Scenario::Disks => &[PowerLoss, PowerLossOfAll, SlowDisk, FailSync],
            Scenario::Pauses => &[Pause, ClockJump],
        }
    }
}

/// The faults of one run.
pub(crate) struct Faults {
    rng: Rng,
    kinds: Vec<Fault>,
    /// Longest time between two.
    gap_ms_max: u64,
    /// How many are left.
    left: u64,
    /// Machines that are paused.
    paused: Vec<usize>,
}

/// Most faults of a run.
const FAULTS_MAX: u64 = 40;

impl Faults {
    /// Draws the kinds and how often they come; `limit` at most.
    pub(crate) fn draw(rng: &Rng, scenario: Scenario, limit: Option<u64>) -> Faults {
        let rng = rng.fork();
        let all = scenario.kinds();
        let mut kinds: Vec<_> = all.iter().copied().filter(|_| rng.percent(45)).collect();
        if kinds.is_empty() {
            kinds.extend(all.first());
        }
        let gap_ms_max = *rng.pick(&[300, 1000, 3000]);
        let most = if kinds.is_empty() { 0 } else { FAULTS_MAX };
        let left = most.min(limit.unwrap_or(most));
        note(format_args!("faults {kinds:?}, up to {gap_ms_max} ms apart"));
        Faults { rng, kinds, gap_ms_max, left, paused: Vec::new() }
    }

    /// Time to the next change.
    pub(crate) fn gap(&self) -> Duration {
        Duration::from_millis(self.rng.between(20, self.gap_ms_max))
    }

    /// Injects one fault, or ends what earlier ones have left.
    pub(crate) async fn step(&mut self, cluster: &mut Cluster) -> io::Result<()> {
        cluster.remember_databases()?;
        if self.rng.percent(40) || self.left == 0 {
            return self.recover(cluster).await;
        }
        self.left -= 1;
        let fault = *self.rng.pick(&self.kinds);
        note(format_args!("fault {fault:?}"));
        self.inject(fault, cluster).await
    }

    async fn inject(&mut self, fault: Fault, cluster: &mut Cluster) -> io::Result<()> {
        let count = cluster.machines.len() as u64;
        let one = self.rng.below(count) as usize;
        let other = self.rng.below(count) as usize;
        let (a, b) = (cluster.machines[one].address, cluster.machines[other].address);
        match fault {
            Fault::Kill => self.crash(cluster, one, Crash::Process).await?,
            Fault::PowerLoss => self.crash(cluster, one, Crash::Power).await?,
            Fault::PowerLossOfAll => {
                for index in 0..cluster.machines.len() {
                    self.crash(cluster, index, Crash::Power).await?;
                }
            }
            Fault::Pause => {
                cluster.pause(one, true);
                self.paused.push(one);
            }
            Fault::Isolate => {
                for machine in &cluster.machines {
                    cluster.wires.set_cut(a, machine.address, true);
                    cluster.wires.set_cut(machine.address, a, true);
                }
            }
            Fault::CutOneWay => cluster.wires.set_cut(a, b, true),
            Fault::Break => cluster.wires.break_between(a, b),
            Fault::Slow => cluster.wires.set_delay(*self.rng.pick(&[5_000, 50_000, 200_000])),
            Fault::SlowDisk => {
                cluster.set_disk_delay(one, *self.rng.pick(&[10_000, 100_000, 1_000_000]));
            }
            Fault::FailSync => cluster.fail_syncs(one),
            Fault::ClockJump => {
                let hour = 3_600_000;
                cluster.machines[one].clock.jump(if self.rng.percent(50) { hour } else { -hour });
            }
        }
        Ok(())
    }

    async fn crash(&mut self, cluster: &mut Cluster, index: usize, crash: Crash) -> io::Result<()> {
        self.paused.retain(|paused| *paused != index);
        cluster.crash(index, crash).await
    }

    /// Brings back one thing that an earlier fault has taken.
    async fn recover(&mut self, cluster: &mut Cluster) -> io::Result<()> {
        let down: Vec<_> =
            (0..cluster.machines.len()).filter(|index| !cluster.is_up(*index)).collect();
        match self.rng.below(3) {
            0 if !self.paused.is_empty() => {
                let index = self.paused.remove(self.rng.below(self.paused.len() as u64) as usize);
                cluster.pause(index, false);
            }
            1 => {
                note(format_args!("heal"));
                cluster.wires.heal();
            }
            _ if !down.is_empty() => restart(cluster, *self.rng.pick(&down)).await?,
            _ => {}
        }
        Ok(())
    }

    /// Ends all faults, except that the machines in `left_down` stay down.
    pub(crate) async fn end_all(
        &mut self,
        cluster: &mut Cluster,
        left_down: &[usize],
    ) -> io::Result<()> {
        note(format_args!("all faults end"));
        cluster.wires.heal();
        for index in self.paused.drain(..) {
            cluster.pause(index, false);
        }
        for index in 0..cluster.machines.len() {
            cluster.set_disk_delay(index, 400);
            if left_down.contains(&index) {
                cluster.crash(index, Crash::Process).await?;
            } else if !cluster.is_up(index) || cluster.is_broken(index) {
                restart(cluster, index).await?;
            }
        }
        Ok(())
    }
}

/// Starts a server whose process has ended, by a crash or by itself.
pub(crate) async fn restart(cluster: &mut Cluster, index: usize) -> io::Result<()> {
    cluster.crash(index, Crash::Process).await?;
    cluster.start(index);
    Ok(())
}
