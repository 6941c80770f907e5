//! Writes: from a waiting request to its outcome.
//!
//! Every changing request of this replica waits in one queue. Whatever waits when the last batch
//! was handed over goes together: on a follower as one message to the leader, where it joins what
//! waits there; on the leader as one log entry. A batch is tried again, with its keys, until its
//! deadline; what was handed over once may have been done, and only a success is final then.

use std::{sync::Arc, time::Duration};

use openraft::errors::{ClientWriteError, RaftError};
use pygmy_protocol::{
    Problem,
    command::{Outcome, Request},
    env::{Env, Instant},
    http::Fatal,
    metrics::{Counter, Metrics},
    planted,
};
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::{
    leadership::Leader,
    peer::{LinkError, Message, Reply},
    raft::Batch,
    replica::Shared,
};

/// Batches under way at a time: enough to keep the log busy while earlier ones replicate, few
/// enough that waiting requests gather.
const BATCHES_UNDER_WAY: usize = 4;
/// Times that the batcher lets other tasks run before it closes a batch: requests that are ready
/// at the same time join it. Measured: each of the first three raises the throughput.
const YIELDS: usize = 3;
/// Wait before another try when there is no leader.
const RETRY_PAUSE: Duration = Duration::from_millis(10);
/// How much later than its deadline a request is given up by its handler. The batch knows more
/// precisely what became of it, and answers within this.
const GRACE: Duration = Duration::from_millis(100);

/// Why a write has no outcome.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WriteError {
    /// Certainly not done.
    #[error("{0}")]
    NotDone(String),
    /// Certainly not done, and will not be for a while.
    #[error("{0}")]
    Refused(String),
    /// May have been done.
    #[error("{0}")]
    Unknown(String),
}

impl From<WriteError> for Problem {
    fn from(error: WriteError) -> Problem {
        match error {
            WriteError::NotDone(why) => Problem::unavailable(format!("not done: {why}; try again")),
            WriteError::Refused(why) => Problem::unavailable(format!("not done: {why}")),
            WriteError::Unknown(why) => Problem::outcome_unknown(format!(
                "may have been done: {why}; ask again with the same key"
            )),
        }
    }
}

/// Requests that wait for their outcomes together: one that came to this replica, or those that a
/// follower has forwarded in one message.
pub(crate) struct Waiting {
    requests: Vec<Request>,
    deadline: Instant,
    /// The follower looks for the leader itself: what it forwarded goes no further.
    forwarded: bool,
    reply: oneshot::Sender<Result<Vec<Outcome>, WriteError>>,
}

impl Waiting {
    fn weight(&self) -> usize {
        self.requests.iter().map(|request| request.command.weight()).sum()
    }
}

/// The way into the queue.
#[derive(Clone)]
pub(crate) struct Queue {
    env: Env,
    sender: mpsc::Sender<Waiting>,
    rejected: Counter,
}

impl Queue {
    /// A queue for at most `bound` requests, and its end for [`run_batches`].
    pub(crate) fn new(
        env: &Env,
        metrics: &Metrics,
        bound: usize,
    ) -> (Queue, mpsc::Receiver<Waiting>) {
        let (sender, receiver) = mpsc::channel(bound);
        let rejected = metrics.rejections("waiting_requests_max");
        (Queue { env: env.clone(), sender, rejected }, receiver)
    }

    /// How many requests wait.
    pub(crate) fn length(&self) -> usize {
        self.sender.max_capacity() - self.sender.capacity()
    }

    /// Has `request` applied and released.
    pub(crate) async fn write(
        &self,
        request: Request,
        deadline: Instant,
    ) -> Result<Outcome, WriteError> {
        let outcomes = self.wait(vec![request], deadline, false).await?;
        // One for each request.
        let nothing = || WriteError::Unknown("there is no outcome".to_owned());
        outcomes.into_iter().next().ok_or_else(nothing)
    }

    /// Has what a follower has forwarded applied and released. Gives one outcome for each request;
    /// nothing is done if this replica does not lead.
    pub(crate) async fn write_forwarded(
        &self,
        requests: Vec<Request>,
        deadline: Instant,
    ) -> Result<Vec<Outcome>, WriteError> {
        self.wait(requests, deadline, true).await
    }

    async fn wait(
        &self,
        requests: Vec<Request>,
        deadline: Instant,
        forwarded: bool,
    ) -> Result<Vec<Outcome>, WriteError> {
        let (reply, outcomes) = oneshot::channel();
        let waiting = Waiting { requests, deadline, forwarded, reply };
        self.sender.try_send(waiting).map_err(|error| {
            WriteError::NotDone(match error {
                mpsc::error::TrySendError::Full(_) => {
                    self.rejected.inc();
                    "too many requests wait (waiting_requests_max)".to_owned()
                }
                mpsc::error::TrySendError::Closed(_) => "the replica is stopping".to_owned(),
            })
        })?;
        let limit = deadline.saturating_since(self.env.now()) + GRACE;
        match self.env.timeout(limit, outcomes).await {
            Ok(Ok(outcomes)) => outcomes,
            Ok(Err(_)) => Err(WriteError::Unknown("the replica is stopping".to_owned())),
            Err(_) => Err(WriteError::Unknown("the deadline passed".to_owned())),
        }
    }
}

/// Gathers batches and hands them over.
pub(crate) async fn run_batches(shared: Arc<Shared>, mut queue: mpsc::Receiver<Waiting>) -> Fatal {
    let under_way = Arc::new(Semaphore::new(BATCHES_UNDER_WAY));
    let most = shared.settings.batch_requests_max;
    while let Some(first) = queue.recv().await {
        let Ok(permit) = Arc::clone(&under_way).acquire_owned().await else { break };
        for _ in 0..YIELDS {
            tokio::task::yield_now().await;
        }
        let mut weight = first.weight();
        let mut batch = vec![first];
        while weight < most
            && let Ok(next) = queue.try_recv()
        {
            weight += next.weight();
            batch.push(next);
        }
        let shared = Arc::clone(&shared);
        let env = shared.env.clone();
        env.spawn(async move {
            submit(&shared, batch).await;
            drop(permit);
        });
    }
    // Neither the queue nor the semaphore is ever closed: `shared` holds one, this function the
    // other.
    Fatal("the queue of requests was closed".to_owned())
}

/// What one attempt at a batch came to.
pub(crate) enum Attempt {
    Done(Vec<Outcome>),
    NotDone(String),
    /// Not done, and not tried again.
    Refused(String),
    Unknown(String),
}

/// Tries a batch until it is done or its requests' deadlines have passed.
async fn submit(shared: &Shared, mut batch: Vec<Waiting>) {
    let mut maybe_done = None;
    let mut reason = "there is no leader".to_owned();
    loop {
        let leader = shared.leadership.borrow().leader.clone();
        let now = shared.env.now();
        let leads = leader.as_ref().is_some_and(|leader| leader.is_me);
        let goes_on = |waiting: &Waiting| now < waiting.deadline && (leads || !waiting.forwarded);
        batch = give_up(batch, goes_on, &reason, maybe_done.as_deref());
        let Some(deadline) = batch.iter().map(|w| w.deadline).max() else { return };
        let requests: Vec<_> = batch.iter().flat_map(|w| w.requests.iter().cloned()).collect();
        let expected = requests.len();
        match attempt(shared, leader, requests, deadline.saturating_since(now)).await {
            Attempt::Done(outcomes) if outcomes.len() == expected => {
                return answer(batch, outcomes, maybe_done.as_deref());
            }
            Attempt::Done(_) => maybe_done = Some("the leader gave too few outcomes".to_owned()),
            Attempt::Unknown(why) => maybe_done = Some(why),
            Attempt::NotDone(why) => reason = why,
            Attempt::Refused(why) => return refuse(batch, &why, maybe_done.as_deref()),
        }
        shared.env.sleep(RETRY_PAUSE).await;
    }
}

/// Keeps what goes on and answers the rest.
fn give_up(
    batch: Vec<Waiting>,
    goes_on: impl Fn(&Waiting) -> bool,
    reason: &str,
    maybe_done: Option<&str>,
) -> Vec<Waiting> {
    let (live, given_up): (Vec<_>, Vec<_>) = batch.into_iter().partition(goes_on);
    for waiting in given_up {
        // The handler may have given up before.
        let _ = waiting.reply.send(Err(match maybe_done {
            Some(why) => WriteError::Unknown(why.to_owned()),
            None => WriteError::NotDone(reason.to_owned()),
        }));
    }
    live
}

/// Tells all what the leader said. An earlier attempt may still be done.
fn refuse(batch: Vec<Waiting>, why: &str, maybe_done: Option<&str>) {
    for waiting in batch {
        let _ = waiting.reply.send(Err(match maybe_done {
            Some(why) => WriteError::Unknown(why.to_owned()),
            None => WriteError::Refused(why.to_owned()),
        }));
    }
}

fn answer(batch: Vec<Waiting>, outcomes: Vec<Outcome>, maybe_done: Option<&str>) {
    let mut outcomes = outcomes.into_iter();
    for waiting in batch {
        let own: Vec<_> = outcomes.by_ref().take(waiting.requests.len()).collect();
        // After an attempt whose end is not known, a refusal proves nothing: that attempt may
        // still be done after this one.
        let result = match maybe_done {
            Some(why) if own.iter().any(proves_nothing) => Err(WriteError::Unknown(why.to_owned())),
            _ => Ok(own),
        };
        let _ = waiting.reply.send(result);
    }
}

/// Whether the request may still be done after this outcome, by an earlier attempt. Not if its key
/// belongs to another request: that stays so.
fn proves_nothing(outcome: &Outcome) -> bool {
    outcome.problem().is_some() && *outcome != Outcome::KeyReused && !planted!(RefusalAfterUnknown)
}

async fn attempt(
    shared: &Shared,
    leader: Option<Leader>,
    requests: Vec<Request>,
    limit: Duration,
) -> Attempt {
    match leader {
        None => Attempt::NotDone("there is no leader".to_owned()),
        #[cfg(feature = "planted-bugs")]
        Some(leader) if leader.is_me && planted!(AnswerBeforeCommit) => {
            crate::planted::answer_before_commit(shared, requests, limit).await
        }
        Some(leader) if leader.is_me => propose(shared, requests, limit).await,
        Some(leader) => tokio::select! {
            biased;
            attempt = forward(shared, &leader, requests, limit) => attempt,
            // It may hang, and somebody else leads now: ask there instead of waiting.
            () = shared.leader_changed(&leader) => Attempt::Unknown("the leader changed".to_owned()),
        },
    }
}

/// Hands `requests` to the leader.
async fn forward(
    shared: &Shared,
    leader: &Leader,
    requests: Vec<Request>,
    limit: Duration,
) -> Attempt {
    let deadline_ms = limit.as_millis() as u64;
    let link = shared.links.to(leader.id, &leader.url);
    match link.call(Message::Forward { requests, deadline_ms }, limit).await {
        Ok(Reply::Outcomes(outcomes)) => Attempt::Done(outcomes),
        Ok(Reply::NotLeader) => Attempt::NotDone(format!("{} does not lead any more", leader.name)),
        Ok(Reply::Unknown(why)) => Attempt::Unknown(why),
        Ok(Reply::Refused(why)) => Attempt::Refused(why),
        Ok(_) => Attempt::Unknown(format!("{} gave a strange reply", leader.name)),
        Err(LinkError::NotSent(why)) => Attempt::NotDone(why),
        Err(LinkError::NoReply(why)) => Attempt::Unknown(why),
    }
}

/// Proposes `requests` as one log entry, as the leader, and waits until it is applied and
/// released.
pub(crate) async fn propose(shared: &Shared, requests: Vec<Request>, limit: Duration) -> Attempt {
    if let Err(why) = shared.room.check() {
        return Attempt::Refused(why);
    }
    let begun = shared.env.now();
    shared.measures.batch_requests.observe(requests.len() as u64);
    let entry = Batch { time_ms: shared.env.wall_ms(), requests };
    let written = match shared.env.timeout(limit, shared.raft.client_write(entry)).await {
        Ok(Ok(written)) => written,
        Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_)))) => {
            return Attempt::NotDone("this replica does not lead any more".to_owned());
        }
        Ok(Err(error)) => return Attempt::Unknown(error.to_string()),
        Err(_) => return Attempt::Unknown("a majority did not take it in time".to_owned()),
    };
    let is_replay = |outcome: &Outcome| matches!(outcome, Outcome::Ordered { replayed: true, .. });
    if planted!(ReplaySkipsGate) && written.data.0.iter().all(is_replay) {
        return Attempt::Done(written.data.0);
    }
    let (term, index) = (written.log_id.committed_leader_id().term, written.log_id.index);
    let applied_at = shared.env.now();
    let left = limit.saturating_sub(applied_at.saturating_since(begun));
    let released = shared.gate.await_released(term, index, left).await;
    shared.measures.release_wait.observe_time(shared.env.now().saturating_since(applied_at));
    match released {
        Ok(()) => Attempt::Done(written.data.0),
        Err(error) => Attempt::Unknown(error.to_string()),
    }
}
