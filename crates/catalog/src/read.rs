//! Linearizable reads: ReadIndex, in rounds that all waiting reads share.
//!
//! A round begins after the reads that it serves have arrived. On the leader it is a heartbeat to
//! a majority; a follower asks the leader for one. The read then waits until its own replica has
//! applied that far, reads, and waits until what it read is released.

use std::{sync::Arc, time::Duration};

use openraft::ReadPolicy;
use pygmy_protocol::{
    Problem,
    env::{Env, Instant},
    http::Fatal,
    planted,
};
use tokio::sync::{mpsc, oneshot};

use crate::{
    peer::{Message, Reply},
    release::Progress,
    replica::Shared,
    state::{Read, Reader, StateError},
};

/// Reads that wait for a round.
const WAITING_READS: usize = 20_000;
/// Longest time for one round. A leader without a majority is noticed by it.
const ROUND_TIMEOUT: Duration = Duration::from_secs(1);
/// Wait before another round when one failed.
const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// From where on a read is fresh.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fresh {
    pub(crate) index: u64,
    /// Up to where the leader's answers may reveal the state.
    pub(crate) released: u64,
    /// The term in which this replica led, if it was its own round.
    pub(crate) led_in: Option<u64>,
}

type Waiter = oneshot::Sender<Result<Fresh, String>>;

/// The way to join a round.
#[derive(Clone)]
pub(crate) struct Rounds {
    sender: mpsc::Sender<Waiter>,
}

impl Rounds {
    /// Rounds, and their end for [`run_rounds`].
    pub(crate) fn new() -> (Rounds, mpsc::Receiver<Waiter>) {
        let (sender, receiver) = mpsc::channel(WAITING_READS);
        (Rounds { sender }, receiver)
    }

    /// Waits for a round that begins from now on.
    pub(crate) async fn join(&self) -> Result<Fresh, String> {
        let (waiter, fresh) = oneshot::channel();
        self.sender.try_send(waiter).map_err(|_| "too many reads wait".to_owned())?;
        fresh.await.map_err(|_| "the replica is stopping".to_owned())?
    }
}

/// Does one round after the other while reads wait.
pub(crate) async fn run_rounds(shared: Arc<Shared>, mut waiting: mpsc::Receiver<Waiter>) -> Fatal {
    while let Some(first) = waiting.recv().await {
        let mut waiters = vec![first];
        while let Ok(next) = waiting.try_recv() {
            waiters.push(next);
        }
        let result = shared.env.timeout(ROUND_TIMEOUT, round(&shared)).await;
        let result = result.unwrap_or_else(|_| Err("no majority answers".to_owned()));
        if let Ok(fresh) = &result {
            shared.gate.heard_released(fresh.released);
        }
        for waiter in waiters {
            // The reader may have given up.
            let _ = waiter.send(result.clone());
        }
    }
    // Never: `shared` holds the other end.
    Fatal("the queue of reads was closed".to_owned())
}

async fn round(shared: &Shared) -> Result<Fresh, String> {
    if planted!(StaleReadFromDeposedLeader)
        && let Progress { leads: Some(_), applied, released, .. } = shared.gate.progress()
    {
        return Ok(Fresh { index: applied, released, led_in: None });
    }
    let leader = shared.leadership.borrow().leader.clone();
    let Some(leader) = leader else { return Err("there is no leader".to_owned()) };
    if leader.is_me {
        return leader_round(shared).await;
    }
    let link = shared.links.to(leader.id, &leader.url);
    let reply = tokio::select! {
        biased;
        reply = link.call(Message::ReadIndex, ROUND_TIMEOUT) => reply,
        () = shared.leader_changed(&leader) => return Err("the leader changed".to_owned()),
    };
    match reply {
        Ok(Reply::ReadIndex { index, released }) => Ok(Fresh { index, released, led_in: None }),
        Ok(Reply::Failed(why)) => Err(why),
        Ok(_) => Err(format!("{} does not lead any more", leader.name)),
        Err(error) => Err(error.to_string()),
    }
}

async fn leader_round(shared: &Shared) -> Result<Fresh, String> {
    let ready =
        shared.raft.get_read_linearizer(ReadPolicy::ReadIndex).await.map_err(|e| e.to_string())?;
    let read = ready.read_log_id();
    // It belongs to the leadership that the majority has just confirmed.
    let led_in = Some(read.committed_leader_id().term);
    if planted!(ReadBeforeOwnEntry) {
        let Progress { applied: index, released, .. } = shared.gate.progress();
        return Ok(Fresh { index, released, led_in });
    }
    Ok(Fresh { index: read.index(), released: shared.gate.progress().released, led_in })
}

/// Reads what is fresh from now on, and returns when it may be revealed.
pub(crate) async fn read<T>(
    shared: &Shared,
    deadline: Instant,
    query: impl Fn(&Reader) -> Result<Read<T>, StateError>,
) -> Result<Read<T>, Problem> {
    let mut reason = "the deadline passed".to_owned();
    while shared.env.now() < deadline {
        match attempt(shared, deadline, &query).await {
            Ok(read) => return Ok(read),
            Err(Trouble::Final(problem)) => return Err(problem),
            Err(Trouble::Again(why)) => reason = why,
        }
        shared.env.sleep(RETRY_PAUSE).await;
    }
    Err(Problem::unavailable(format!("the read cannot be proved fresh: {reason}; try again")))
}

enum Trouble {
    Again(String),
    Final(Problem),
}

async fn attempt<T>(
    shared: &Shared,
    deadline: Instant,
    query: impl Fn(&Reader) -> Result<Read<T>, StateError>,
) -> Result<Read<T>, Trouble> {
    let env = &shared.env;
    let in_time = |what: &'static str| move |_| Trouble::Again(what.to_owned());
    let left = |env: &Env| deadline.saturating_since(env.now());
    let fresh = env.timeout(left(env), shared.rounds.join()).await;
    let fresh = fresh.map_err(in_time("no round ended in time"))?.map_err(Trouble::Again)?;
    let applied = shared.gate.await_applied(fresh.index);
    env.timeout(left(env), applied).await.map_err(in_time("this replica is behind"))?;
    let read = query(&shared.reader).map_err(|error| {
        tracing::error!(%error, "the database cannot be read");
        shared.damage.report(&error);
        Trouble::Final(Problem::unavailable(
            "the replica's database cannot be read; ask another replica",
        ))
    })?;
    await_revealed(shared, read.index, left(env)).await.map_err(Trouble::Again)?;
    Ok(read)
}

/// Waits until the state at `index` may be revealed by this replica.
async fn await_revealed(shared: &Shared, index: u64, limit: Duration) -> Result<(), String> {
    let progress = shared.gate.progress();
    if let Some(term) = progress.leads {
        return shared.gate.await_released(term, index, limit).await.map_err(|e| e.to_string());
    }
    if progress.released >= index || planted!(FollowerAnswersBeforeRelease) {
        return Ok(());
    }
    let leader = shared.leadership.borrow().leader.clone().filter(|leader| !leader.is_me);
    let leader = leader.ok_or("there is no leader")?;
    let deadline_ms = limit.as_millis() as u64;
    let link = shared.links.to(leader.id, &leader.url);
    match link.call(Message::AwaitReleased { index, deadline_ms }, limit).await {
        Ok(Reply::Released) => {
            shared.gate.heard_released(index);
            Ok(())
        }
        Ok(Reply::Failed(why)) => Err(why),
        Ok(_) => Err(format!("{} does not lead any more", leader.name)),
        Err(error) => Err(error.to_string()),
    }
}
