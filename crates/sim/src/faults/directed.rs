//! Moments that chance hardly ever makes: several things that go wrong in one order, near enough to
//! each other. They were made for planted errors that nothing else found (`docs/simulation.md`).

use std::{io, time::Duration};

use http::Method;
use pygmy_client::{Call, Upstream};
use pygmy_protocol::{RequestContext, env::Random};

use super::{CALLS_LEFT_MAX, Faults, restart};
use crate::{
    cluster::{Cluster, Crash},
    load::ITEMS,
};

/// For a lookup that nobody waits for.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(3);

impl Faults {
    /// Nobody but the replicas reaches `leader`. One of the others is ahead of the rest, and what it
    /// answers is late, for longer than an election takes.
    pub(super) async fn hold_answers(&self, cluster: &mut Cluster, leader: usize) {
        let mut replicas = cluster.replicas();
        let others: Vec<_> =
            (0..cluster.machines.len()).filter(|m| !replicas.contains(m)).collect();
        replicas.retain(|replica| *replica != leader);
        let ahead = *self.rng.pick(&replicas);
        for lags in replicas.into_iter().filter(|replica| *replica != ahead) {
            let how_long = Duration::from_millis(self.rng.between(2_000, 6_000));
            cluster.slow_apply(lags, 3_000_000, how_long);
        }
        for other in &others {
            let (a, b) = (cluster.machines[leader].address, cluster.machines[*other].address);
            cluster.wires.cut_pair(a, b);
            cluster.wires.break_between(a, b);
        }
        // Most leases run out meanwhile.
        self.env.sleep(Duration::from_millis(self.rng.between(500, 3_500))).await;
        let how_long = Duration::from_millis(self.rng.between(500, 2_000));
        for other in &others {
            let (a, b) = (cluster.machines[ahead].address, cluster.machines[*other].address);
            cluster.wires.stall(a, b, how_long);
        }
        self.ask_for_all(cluster);
        self.env.sleep(Duration::from_millis(self.rng.below(300))).await;
    }

    /// One front end asks `leader` for its lease, and is told late; then it hears nothing more.
    pub(super) async fn hold_grants(&self, cluster: &mut Cluster, leader: usize) {
        let mut front_ends = cluster.machines_with("frontend");
        front_ends.retain(|machine| *machine != leader);
        if front_ends.is_empty() {
            return;
        }
        let front_end = cluster.machines[*self.rng.pick(&front_ends)].address;
        let leader = cluster.machines[leader].address;
        self.ask_for_all(cluster);
        self.env.sleep(Duration::from_millis(self.rng.below(50))).await;
        let how_long =
            Duration::from_millis(self.rng.between(20, *self.rng.pick(&[150, 400, 900])));
        cluster.wires.stall(leader, front_end, how_long);
        // What was late is taken and acknowledged.
        self.env.sleep(how_long + Duration::from_millis(self.rng.between(1, 10))).await;
        cluster.wires.cut_pair(leader, front_end);
    }

    /// Looks every item up at every front end. Nobody waits for the answers, but caches fill up.
    fn ask_for_all(&self, cluster: &Cluster) {
        for url in cluster.public_urls() {
            for (item, ..) in ITEMS {
                let env = self.env.clone();
                let url = url.clone();
                self.env.spawn(async move {
                    let context = RequestContext::fresh(&env, LOOKUP_TIMEOUT);
                    let call = Call::new(Method::GET, format!("/lookup/{item}"), context);
                    if let Ok(front_end) = Upstream::remote(&env, &url) {
                        let _ = front_end.send(&call, LOOKUP_TIMEOUT).await;
                    }
                });
            }
        }
    }

    /// The leader commits with the fewest followers that it needs. One of them loses its power
    /// between two calls to its disk, the leader and the other ones die, and those are left that
    /// know least.
    pub(super) async fn lose_copies(
        &mut self,
        cluster: &mut Cluster,
        leader: Option<usize>,
    ) -> io::Result<()> {
        let mut replicas = cluster.replicas();
        let needed = replicas.len() / 2;
        let leader = leader.unwrap_or(replicas[0]);
        replicas.retain(|replica| *replica != leader);
        let mut needed: Vec<_> = (0..needed)
            .map(|_| replicas.swap_remove(self.rng.below(replicas.len() as u64) as usize))
            .collect();
        let address = |cluster: &Cluster, machine: usize| cluster.machines[machine].address;
        for lags in &replicas {
            cluster.wires.cut_pair(address(cluster, leader), address(cluster, *lags));
        }
        self.env.sleep(Duration::from_millis(self.rng.below(150))).await;
        let torn = needed.swap_remove(0);
        cluster.die_after(torn, self.rng.below(CALLS_LEFT_MAX));
        // Soon enough, before the others elect somebody else.
        for _ in 0..100 {
            if cluster.has_died(torn) {
                break;
            }
            self.env.sleep(Duration::from_millis(2)).await;
        }
        self.crash(cluster, torn, Crash::Power).await?;
        for ends in needed.into_iter().chain([leader]) {
            self.crash(cluster, ends, Crash::Process).await?;
        }
        for lags in replicas {
            cluster.wires.mend_pair(address(cluster, leader), address(cluster, lags));
        }
        restart(cluster, torn).await?;
        // They elect a leader, and it takes requests.
        self.env.sleep(Duration::from_millis(self.rng.between(500, 3_000))).await;
        Ok(())
    }

    /// Replicas stop between any two calls to their disks, and soon nothing has power.
    pub(super) async fn lose_all_power(&mut self, cluster: &mut Cluster) -> io::Result<()> {
        for replica in cluster.replicas() {
            cluster.die_after(replica, self.rng.below(CALLS_LEFT_MAX));
        }
        self.env.sleep(Duration::from_micros(self.rng.below(50_000))).await;
        for index in 0..cluster.machines.len() {
            self.crash(cluster, index, Crash::Power).await?;
        }
        Ok(())
    }
}
