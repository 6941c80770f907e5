//! Lanes: many connections share a task.
//!
//! The scheduler of tokio gives every task that is ready a turn, one after the other. With a task
//! for each connection, a flood of requests over ten thousand connections puts ten thousand turns
//! before the next turn of a heartbeat: each step of the consensus then takes as long as a round of
//! all connections, the leader seems dead, and nothing is sold at all (measured with 12,000
//! connections that asked for twice of what the store can do: 280 buys/s of 18,000).
//!
//! So the connections of a listener are futures in a few *lanes*, tasks of their own, one for each
//! thread of the runtime. A lane has a turn like any other task. In a turn it polls [`TURN`] of its
//! connections, in the order in which they became ready: well under a millisecond. What the server
//! does for itself waits for that long at most, however many ask.

use std::{
    future::poll_fn,
    panic::AssertUnwindSafe,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use tokio::{
    runtime::Handle,
    sync::mpsc,
    task::{JoinHandle, coop::unconstrained},
};

use crate::env::{BoxFuture, Env};

/// Connections that a lane polls in one turn.
const TURN: usize = 32;

/// The lanes of a listener. The connections go on when this is dropped.
pub(super) struct Lanes {
    lanes: Vec<Lane>,
    next: usize,
}

struct Lane {
    /// Its bound is that on the number of connections.
    connections: mpsc::UnboundedSender<BoxFuture<'static, ()>>,
    task: JoinHandle<()>,
}

impl Lanes {
    /// One for each thread of the runtime.
    pub(super) fn new(env: &Env) -> Lanes {
        let threads = Handle::current().metrics().num_workers();
        Lanes { lanes: (0..threads).map(|_| Lane::start(env)).collect(), next: 0 }
    }

    /// Serves a connection, in the next lane.
    pub(super) fn add(&mut self, connection: impl Future<Output = ()> + Send + 'static) {
        let turn = self.next % self.lanes.len();
        self.next = turn + 1;
        // A lane takes connections as long as it has a sender.
        let _ = self.lanes[turn].connections.send(Box::pin(connection));
    }

    /// Completes when the last connection has ended.
    pub(super) async fn ended(self) {
        for Lane { connections, task } in self.lanes {
            drop(connections);
            // It catches the panics of its connections.
            let _ = task.await;
        }
    }
}

impl Lane {
    fn start(env: &Env) -> Lane {
        let (connections, arriving) = mpsc::unbounded_channel();
        Lane { connections, task: env.spawn(run(arriving)) }
    }
}

async fn run(mut arriving: mpsc::UnboundedReceiver<BoxFuture<'static, ()>>) {
    let polled = Arc::new(AtomicUsize::new(0));
    let mut connections = FuturesUnordered::new();
    let mut serving = pin!(async {
        let mut open = true;
        while open || !connections.is_empty() {
            tokio::select! {
                biased;
                connection = arriving.recv(), if open => match connection {
                    Some(connection) => connections.push(in_turn(connection, &polled)),
                    None => open = false,
                },
                Some(ended) = connections.next() => if ended.is_err() {
                    tracing::error!("a connection ended with a panic");
                },
            }
        }
    });
    poll_fn(|context| {
        polled.store(0, Relaxed);
        serving.as_mut().poll(context)
    })
    .await;
}

/// `connection` as a lane polls it. A defect that panics costs this one, not those beside it.
fn in_turn(
    connection: BoxFuture<'static, ()>,
    polled: &Arc<AtomicUsize>,
) -> impl Future<Output = std::thread::Result<()>> + use<> {
    // Not by tokio's budget: whoever exceeds that is woken in the reverse order, and some starve.
    let connection = unconstrained(AssertUnwindSafe(connection).catch_unwind());
    InTurn { connection, polled: Arc::clone(polled) }
}

struct InTurn<F> {
    connection: F,
    /// By the lane, in this turn.
    polled: Arc<AtomicUsize>,
}

impl<F: Future + Unpin> Future for InTurn<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        if self.polled.fetch_add(1, Relaxed) < TURN {
            return self.connection.poll_unpin(context);
        }
        // Ready again at once: after the second such one, the lane ends its turn.
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Mutex, time::Duration};

    use tokio::sync::mpsc::channel;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    /// Goes to the end of those that are ready. tokio's `yield_now` waits until none is.
    async fn next_turn() {
        let mut waited = false;
        poll_fn(|context| {
            if std::mem::replace(&mut waited, true) {
                return Poll::Ready(());
            }
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    #[tokio::test]
    async fn all_connections_and_others_have_their_turns() {
        let env = Env::production();
        let served = Arc::new(Mutex::new(BTreeMap::<usize, usize>::new()));
        let mut lanes = Lanes::new(&env);
        for number in 0..1_000 {
            // Always ready, as a connection whose client asks again and again.
            let (sender, mut receiver) = channel(1);
            let served = Arc::clone(&served);
            lanes.add(async move {
                loop {
                    sender.send(()).await.unwrap();
                    receiver.recv().await.unwrap();
                    *served.lock().unwrap().entry(number).or_default() += 1;
                    next_turn().await;
                }
            });
        }
        // Another task of the server.
        let of_others = Arc::clone(&served);
        let other = env.spawn(async move {
            let all = || of_others.lock().unwrap().values().sum::<usize>();
            while of_others.lock().unwrap().len() < 1_000 {
                next_turn().await;
            }
            for _ in 0..400 {
                let before = all();
                next_turn().await;
                let between = all() - before;
                assert!(between <= TURN, "{between} turns of connections before ours");
            }
        });
        other.await.unwrap();
        let served = served.lock().unwrap();
        let (least, most) = (served.values().min().unwrap(), served.values().max().unwrap());
        assert!(served.len() == 1_000 && *most <= least + 4, "{least} to {most} turns each");
    }

    #[tokio::test]
    async fn a_panic_costs_one_connection() {
        let env = Env::production();
        let mut lanes = Lanes::new(&env);
        let (sender, mut receiver) = channel::<()>(1);
        let (done, mut is_done) = channel(1);
        lanes.add(async { panic!("planted") });
        lanes.add(async move {
            receiver.recv().await;
            done.send(()).await.unwrap();
        });
        drop(sender);
        assert_eq!(env.timeout(LONG, is_done.recv()).await, Ok(Some(())));
        env.timeout(LONG, lanes.ended()).await.unwrap();
    }
}
