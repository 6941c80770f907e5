//! The load generator.
//!
//! Before a run, [`make_items`] puts items of its own into the store, in a fresh topic, so that
//! stock suffices and nobody's items are sold. Then each thread [`drive`]s its share of the
//! connections. A connection is a task ([`worker`]): it takes the moment of its next request from
//! the [`pace`] (closed loop: at once; open loop: when a clock says so), draws a request
//! ([`workload`]), patches its numbers into bytes that were made beforehand, and has them answered
//! ([`connection`]). Latencies and failures go into a [`Tally`]; who prints gets what was counted
//! since the last time, again and again, and adds it up. After the run, [`count_stock`] says what
//! the store has sold: as many copies as there were answers 201, and no more than that and the
//! answers that are missing.
//!
//! A buy carries a key, and counts as a sale when it is answered 201, once. When it may or may not
//! have been done (no answer, 504) or was certainly not done for now (503), it is sent again with
//! that key, some times; its latency counts from the first time. A read is sent once, and so is a
//! buy that was refused because the store has too much to do (429): an open loop would only add to
//! it.
//!
//! What a request belongs to is decided by the moment when it was due: those of the warm-up are
//! done and not measured, and those that are under way at the end are waited for.

mod connection;
mod pace;
mod stock;
mod tally;
mod worker;
mod workload;

#[cfg(test)]
mod tests;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use pygmy_protocol::{Env, env::Instant};
use tokio::sync::mpsc;

use self::{
    pace::{Pace, Tickets},
    tally::Counter,
    worker::Worker,
    workload::{Requests, Template},
};
use crate::upstream::split_url;

pub use stock::{Stock, count_stock, fresh_topic, make_items};
pub use tally::{KindTally, Tally};
pub use workload::{ITEMS_MAX, ItemNumbers, Kind, Mix, Popularity, Workload};

/// How often a thread says what it has counted.
pub const REPORT_EVERY: Duration = Duration::from_millis(500);

/// A front end.
#[derive(Debug, Clone)]
pub struct Server {
    authority: String,
    prefix: String,
}

impl Server {
    /// The one at `url`.
    ///
    /// # Errors
    /// A sentence that names the URL that is none.
    pub fn new(url: &str) -> Result<Server, String> {
        let (authority, prefix) = split_url(url)?;
        Ok(Server { authority, prefix })
    }

    fn templates(&self, requests: &Requests) -> [Template; 3] {
        requests.templates(&self.authority, &self.prefix)
    }
}

/// When a run begins, is measured, and ends.
#[derive(Debug)]
pub struct Window {
    start: Instant,
    measured_from: Instant,
    /// Since the clock's origin: it may be moved.
    end_ns: AtomicU64,
}

impl Window {
    /// Begins at `start`, and measures for `measured` after `warm_up`.
    pub fn new(start: Instant, warm_up: Duration, measured: Duration) -> Window {
        let measured_from = start + warm_up;
        let end_ns = nanoseconds(measured_from + measured);
        Window { start, measured_from, end_ns: AtomicU64::new(end_ns) }
    }

    /// Ends the run at `moment`, unless it ends before.
    pub fn end_at(&self, moment: Instant) {
        self.end_ns.fetch_min(nanoseconds(moment), Ordering::Relaxed);
    }

    /// The moment from which nothing is sent any more.
    pub fn end(&self) -> Instant {
        Instant::from_origin(Duration::from_nanos(self.end_ns.load(Ordering::Relaxed)))
    }

    /// The moment from which it is measured.
    pub fn measured_from(&self) -> Instant {
        self.measured_from
    }

    /// For how long it is measured.
    pub fn measured(&self) -> Duration {
        self.end().saturating_since(self.measured_from)
    }

    fn is_measured(&self, due: Instant) -> bool {
        (self.measured_from..self.end()).contains(&due)
    }
}

/// 584 years fit.
fn nanoseconds(moment: Instant) -> u64 {
    u64::try_from(moment.since_origin().as_nanos()).unwrap_or(u64::MAX)
}

/// What the threads of a run have in common.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The front ends; the connections are spread over them.
    pub servers: Arc<[Server]>,
    /// What to ask.
    pub workload: Arc<Workload>,
    /// When.
    pub window: Arc<Window>,
    /// Connections of all threads.
    pub connections: usize,
    /// Requests a second of all threads, in an open loop; `None` in a closed one.
    pub rate: Option<f64>,
    /// Threads; at most as many as there are connections.
    pub threads: usize,
}

impl Plan {
    /// The `thread`-th thread's pace. Threads take turns: the first request of each is due one
    /// after the other.
    fn pace(&self, thread: usize) -> Pace {
        let Some(rate) = self.rate else { return Pace::Closed };
        let first = self.window.start + Duration::from_secs_f64(thread as f64 / rate);
        Pace::Open(Arc::new(Tickets::new(first, rate / self.threads as f64)))
    }
}

/// Runs the `thread`-th thread's share of `plan` until its last request is answered. What it
/// counts goes to `tallies`, each time what is new.
pub async fn drive(env: &Env, plan: &Plan, thread: usize, tallies: mpsc::Sender<Tally>) {
    let counter = Arc::new(Counter::default());
    let pace = plan.pace(thread);
    let mut tasks = Vec::new();
    for number in (thread..plan.connections).step_by(plan.threads) {
        let requests = Requests::new(env, &plan.workload);
        let pace = pace.clone();
        let worker =
            Worker::new(env, &plan.window, pace, &counter, &plan.servers, requests, number);
        tasks.push(env.spawn(worker.run()));
    }
    if let Pace::Open(tickets) = pace {
        let (task_env, window) = (env.clone(), Arc::clone(&plan.window));
        let counter = Arc::clone(&counter);
        tasks.push(env.spawn(async move { tickets.release(&task_env, &window, &counter).await }));
    }
    let all = async {
        for task in tasks {
            // A worker that panicked has printed why; its thread goes on without it.
            let _ = task.await;
        }
    };
    let reports = async {
        loop {
            env.sleep(REPORT_EVERY).await;
            // Whoever prints is behind: it hears of this with the next.
            if let Ok(place) = tallies.try_reserve() {
                place.send(counter.take());
            }
        }
    };
    tokio::select! {
        () = all => {}
        () = reports => {}
    }
    // Nobody listens any more: then nobody wants to know.
    let _ = tallies.send(counter.take()).await;
}
