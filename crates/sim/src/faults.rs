//! What goes wrong, drawn from the seed.
//!
//! A run draws which kinds of faults it has at all, so that rare ones are not always drowned by
//! the others. To add a kind: a variant of [`Fault`], its place in [`Fault::is_of`], what it does in
//! [`Faults::inject`], and how it ends in [`Faults::end_all`]. Those that are several in one order are
//! in [`directed`].

mod directed;

use std::{io, time::Duration};

use clap::ValueEnum;
use pygmy_protocol::{Env, env::Random};

use crate::{
    cluster::{Cluster, Crash},
    losses::Lost,
    rng::Rng,
    trace::note,
    workers::USUAL_US_MAX,
};

/// A kind of fault. [`ValueEnum`] lists them all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Fault {
    /// kill -9 of one server.
    Kill,
    /// kill -9 of the replica that leads.
    KillLeader,
    /// Front ends lose the leader, then it is killed, and what they were answered meanwhile by
    /// another replica arrives when a third leads, which lags.
    LateAnswers,
    /// What the leader tells one front end, its leases too, is late by less than what would make
    /// that ask again; then the two are cut off from one another.
    LateGrants,
    /// The power of one machine fails.
    PowerLoss,
    /// The power of all machines fails, in the middle of what their disks write.
    PowerLossOfAll,
    /// A replica dies between two calls to its disk: after a write, before its fsync.
    DieWriting,
    /// A follower that has what others do not have yet loses its power while it writes; the leader
    /// dies with it, and those go on without it.
    LastCopy,
    /// SIGSTOP, and SIGCONT later.
    Pause,
    /// One machine is cut off in both directions.
    Isolate,
    /// Two groups of machines do not hear each other.
    Split,
    /// Two machines do not hear each other, and all others hear both.
    CutPair,
    /// One direction between two machines is cut.
    CutOneWay,
    /// A link comes and goes.
    Flap,
    /// Connections between two machines break.
    Break,
    /// What is under way between two machines is late by seconds; new connections are not.
    Stall,
    /// Every message is slow.
    Slow,
    /// A disk is slow.
    SlowDisk,
    /// A replica lags: for seconds, what is committed it applies late.
    SlowApply,
    /// Every fsync of a machine fails.
    FailSync,
    /// A disk is nearly full.
    FullDisk,
    /// The disk of a replica is lost, or a part of it.
    LoseDisk,
    /// A wall clock is set forward or back by an hour.
    ClockJump,
}

impl Fault {
    /// The scenario that has it, beside [`Scenario::All`]; some are in two.
    fn is_of(self, scenario: Scenario) -> bool {
        use Fault::*;
        match scenario {
            Scenario::All => true,
            Scenario::Calm => false,
            Scenario::Crashes => {
                matches!(
                    self,
                    Kill | KillLeader
                        | LateAnswers
                        | PowerLoss
                        | PowerLossOfAll
                        | DieWriting
                        | LastCopy
                )
            }
            Scenario::Network => {
                matches!(
                    self,
                    LateGrants
                        | Isolate
                        | Split
                        | CutPair
                        | CutOneWay
                        | Flap
                        | Break
                        | Stall
                        | Slow
                )
            }
            Scenario::Disks => {
                matches!(
                    self,
                    PowerLoss
                        | PowerLossOfAll
                        | DieWriting
                        | SlowDisk
                        | SlowApply
                        | FailSync
                        | FullDisk
                        | LoseDisk
                )
            }
            Scenario::Pauses => matches!(self, Pause | ClockJump),
        }
    }
}

/// Which faults a run may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scenario {
    /// All kinds
    All,
    /// None
    Calm,
    /// Servers and machines that die
    Crashes,
    /// Cuts, broken and stalled connections, delays
    Network,
    /// Slow and failing disks, and machines that lose power
    Disks,
    /// Servers that are held up, and clocks that jump
    Pauses,
}

/// The faults of one run.
pub(crate) struct Faults {
    rng: Rng,
    env: Env,
    kinds: Vec<Fault>,
    /// Longest time between two.
    gap_ms_max: u64,
    /// How many are left.
    left: u64,
    /// Machines that are paused.
    paused: Vec<usize>,
    lost: Lost,
}

/// A replica that dies while it writes has this many calls to its disk left, at most: those of
/// two or three batches.
const CALLS_LEFT_MAX: u64 = 10;
/// Most faults of a run.
const FAULTS_MAX: u64 = 40;

impl Faults {
    /// Draws the kinds and how often they come; `limit` at most.
    pub(crate) fn draw(rng: &Rng, env: &Env, scenario: Scenario, limit: Option<u64>) -> Faults {
        let rng = rng.fork();
        let all: Vec<_> =
            Fault::value_variants().iter().copied().filter(|f| f.is_of(scenario)).collect();
        let chance = *rng.pick(&[15, 45]);
        let mut kinds: Vec<_> = all.iter().copied().filter(|_| rng.percent(chance)).collect();
        if kinds.is_empty() && !all.is_empty() {
            kinds.push(*rng.pick(&all));
        }
        let gap_ms_max = *rng.pick(&[300, 1000, 3000]);
        let most = if kinds.is_empty() { 0 } else { FAULTS_MAX };
        let left = most.min(limit.unwrap_or(most));
        note(format_args!("faults {kinds:?}, up to {gap_ms_max} ms apart"));
        Faults {
            rng,
            env: env.clone(),
            kinds,
            gap_ms_max,
            left,
            paused: Vec::new(),
            lost: Lost::default(),
        }
    }

    /// Time to the next change.
    pub(crate) fn gap(&self) -> Duration {
        Duration::from_millis(self.rng.between(20, self.gap_ms_max))
    }

    /// Injects one fault, or ends what earlier ones have left. `leader` is the machine that was
    /// last seen to lead.
    pub(crate) async fn step(
        &mut self,
        cluster: &mut Cluster,
        leader: Option<usize>,
    ) -> io::Result<()> {
        cluster.remember_databases()?;
        self.bury(cluster).await?;
        self.respawn(cluster).await?;
        if self.rng.percent(40) || self.left == 0 {
            return self.recover(cluster).await;
        }
        self.left -= 1;
        let fault = *self.rng.pick(&self.kinds);
        note(format_args!("fault {fault:?}"));
        self.inject(fault, cluster, leader).await
    }

    async fn inject(
        &mut self,
        fault: Fault,
        cluster: &mut Cluster,
        leader: Option<usize>,
    ) -> io::Result<()> {
        let one = self.any(cluster);
        let (a, b) = (cluster.machines[one].address, cluster.machines[self.any(cluster)].address);
        match fault {
            Fault::Kill => self.crash(cluster, one, Crash::Process).await?,
            Fault::KillLeader => {
                self.crash(cluster, leader.unwrap_or(one), Crash::Process).await?;
            }
            Fault::LateAnswers => {
                let leader = leader.unwrap_or(one);
                self.hold_answers(cluster, leader).await;
                self.crash(cluster, leader, Crash::Process).await?;
            }
            Fault::LateGrants => self.hold_grants(cluster, leader.unwrap_or(one)).await,
            Fault::PowerLoss => self.crash(cluster, one, Crash::Power).await?,
            Fault::PowerLossOfAll => self.lose_all_power(cluster).await?,
            Fault::DieWriting => {
                let replica = *self.rng.pick(&cluster.replicas());
                cluster.die_after(replica, self.rng.below(CALLS_LEFT_MAX));
            }
            Fault::LastCopy => self.lose_copies(cluster, leader).await?,
            Fault::Pause => {
                cluster.pause(one, true);
                self.paused.push(one);
            }
            Fault::Isolate => {
                cluster.machines.iter().for_each(|other| cluster.wires.cut_pair(a, other.address));
            }
            Fault::Split => {
                let (left, right): (Vec<_>, Vec<_>) =
                    cluster.machines.iter().partition(|_| self.rng.percent(50));
                for machine in left {
                    right.iter().for_each(|r| cluster.wires.cut_pair(machine.address, r.address));
                }
            }
            Fault::CutPair => cluster.wires.cut_pair(a, b),
            Fault::CutOneWay => cluster.wires.cut(a, b),
            Fault::Flap => {
                let period = Duration::from_millis(self.rng.between(20, 1500));
                cluster.wires.flap(a, b, period);
                if self.rng.percent(50) {
                    cluster.wires.flap(b, a, period);
                }
            }
            Fault::Break => cluster.wires.break_between(a, b),
            Fault::Stall => {
                cluster.wires.stall(a, b, Duration::from_millis(self.rng.between(500, 6_000)));
            }
            Fault::Slow => cluster.wires.set_delay(*self.rng.pick(&[5_000, 50_000, 200_000])),
            Fault::SlowDisk => {
                cluster.set_disk_delay(one, *self.rng.pick(&[10_000, 100_000, 1_000_000]));
            }
            Fault::SlowApply => {
                let replica = *self.rng.pick(&cluster.replicas());
                let how_long = Duration::from_millis(self.rng.between(500, 6_000));
                let delay_us_max = *self.rng.pick(&[300_000, 3_000_000]);
                note(format_args!("{} lags", cluster.machines[replica].name));
                cluster.slow_apply(replica, delay_us_max, how_long);
            }
            Fault::FailSync => cluster.fail_syncs(one),
            // Too little for one segment of the log, or about as much as is kept free.
            Fault::FullDisk => {
                let most = *self.rng.pick(&[1 << 16, 1 << 21]);
                cluster.fill_disk(one, self.rng.below(most));
            }
            Fault::LoseDisk => self.lose_disk(cluster).await?,
            Fault::ClockJump => {
                let hour = 3_600_000;
                cluster.machines[one].clock.jump(if self.rng.percent(50) { hour } else { -hour });
            }
        }
        Ok(())
    }

    fn any(&self, cluster: &Cluster) -> usize {
        self.rng.below(cluster.machines.len() as u64) as usize
    }

    /// The process ends at any point, and so does what its disk held.
    async fn lose_disk(&mut self, cluster: &mut Cluster) -> io::Result<()> {
        let replica = *self.rng.pick(&cluster.replicas());
        let Some(members) = self.lost.all_are_well(&self.env, cluster).await else { return Ok(()) };
        self.lost.note(&members, cluster.machines[replica].name);
        self.crash(cluster, replica, Crash::Process).await?;
        cluster.lose_disk(replica)?;
        if self.rng.percent(50) {
            cluster.start(replica);
        }
        Ok(())
    }

    /// Whether every replica whose disk was lost has its place again.
    pub(crate) async fn lost_are_back(&self, cluster: &Cluster) -> bool {
        self.lost.is_empty() || self.lost.all_are_well(&self.env, cluster).await.is_some()
    }

    /// Does what watchers have asked for: starts servers that have ended, and ends those first that
    /// seem to hang.
    async fn respawn(&mut self, cluster: &mut Cluster) -> io::Result<()> {
        for (name, ends_it) in cluster.commands.take() {
            let index = cluster.machines.iter().position(|machine| machine.name == name);
            let Some(index) = index.filter(|index| ends_it || !cluster.is_up(*index)) else {
                continue;
            };
            self.paused.retain(|paused| *paused != index);
            restart(cluster, index).await?;
        }
        Ok(())
    }

    /// Starts servers that have ended by themselves.
    pub(crate) async fn restart_ended(&self, cluster: &mut Cluster) -> io::Result<()> {
        for index in 0..cluster.machines.len() {
            if !cluster.is_up(index) {
                restart(cluster, index).await?;
            }
        }
        Ok(())
    }

    /// Who has died at a call to the disk is gone, and so is perhaps the power of the machine.
    async fn bury(&mut self, cluster: &mut Cluster) -> io::Result<()> {
        for index in 0..cluster.machines.len() {
            if cluster.has_died(index) {
                let power = self.rng.percent(50);
                let crash = if power { Crash::Power } else { Crash::Process };
                self.crash(cluster, index, crash).await?;
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
                cluster.make_room();
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
        cluster.make_room();
        for index in self.paused.drain(..) {
            cluster.pause(index, false);
        }
        for index in 0..cluster.machines.len() {
            cluster.set_disk_delay(index, USUAL_US_MAX);
            cluster.slow_apply(index, USUAL_US_MAX, Duration::ZERO);
            cluster.spare(index);
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
