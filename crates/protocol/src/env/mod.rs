//! The environment: everything a server may not take from the machine by itself.
//!
//! The clock, sleeping, randomness, the network, files, workers and other programs come in through
//! [`Env`].
//! Production servers get [`Env::production`]; the simulator builds one per simulated host and
//! runs the same `run` functions. `clippy.toml` bans the ways around it.
//!
//! Two things are shared with the simulator by construction: tasks run on tokio (the simulator
//! drives a single-threaded runtime with virtual time), and SQLite opens real files, at the path
//! that [`Files::database_path`] gives.

mod clock;
#[cfg(feature = "simulation")]
mod fake_disk;
mod files;
mod governor;
mod network;
mod processes;
mod production;
mod random;
mod worker;

pub use clock::{Clock, Instant};
#[cfg(feature = "simulation")]
pub use fake_disk::FakeDisk;
pub use files::{File, Files, LockGuard};
pub use governor::Governor;
pub use network::{Connection, Listener, Network, ReadWrite};
pub use processes::{Ended, NoProcesses, Processes};
pub use random::Random;
pub use worker::{Wake, Worker, Workers};

use std::{
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::Duration,
};

/// A boxed future, as the object-safe traits of this module return them.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The environment of one server process. Cloning is cheap and gives the same environment.
#[derive(Clone)]
pub struct Env {
    /// Monotonic and wall clock, and sleeping.
    pub clock: Arc<dyn Clock>,
    /// Listening and connecting.
    pub network: Arc<dyn Network>,
    /// Durable files.
    pub files: Arc<dyn Files>,
    /// Random numbers.
    pub random: Arc<dyn Random>,
    /// Threads for blocking work.
    pub workers: Arc<dyn Workers>,
    /// Running other programs.
    pub processes: Arc<dyn Processes>,
    /// Who holds tasks up or ends them: nobody on a real machine.
    pub governor: Option<Arc<dyn Governor>>,
}

tokio::task_local! {
    static CURRENT: Env;
}

/// A wait that ended without its event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("timed out")]
pub struct TimedOut;

impl Env {
    /// The environment of a real machine.
    pub fn production() -> Env {
        production::environment()
    }

    /// The environment of the task that asks, for libraries whose hooks are plain functions.
    /// `None` outside of [`Env::spawn`] and [`Env::enter`].
    pub fn current() -> Option<Env> {
        CURRENT.try_with(Env::clone).ok()
    }

    /// Reads the monotonic clock.
    pub fn now(&self) -> Instant {
        self.clock.now()
    }

    /// Reads the wall clock: milliseconds since 1970-01-01 UTC. For people and records only; it
    /// may jump, and nothing may depend on its order.
    pub fn wall_ms(&self) -> u64 {
        self.clock.wall_ms()
    }

    /// Waits for `duration` of this host's clock.
    pub fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        self.clock.sleep(duration)
    }

    /// The same, as precisely as the machine can.
    pub fn sleep_precisely(&self, duration: Duration) -> BoxFuture<'static, ()> {
        self.clock.sleep_precisely(duration)
    }

    /// Runs `future` for at most `limit` of this host's clock.
    ///
    /// # Errors
    /// [`TimedOut`] when `limit` passed first; the future is dropped then.
    pub async fn timeout<F: Future>(
        &self,
        limit: Duration,
        future: F,
    ) -> Result<F::Output, TimedOut> {
        let mut future = pin!(future);
        let mut timer = None;
        poll_fn(|context| {
            if let Poll::Ready(output) = future.as_mut().poll(context) {
                return Poll::Ready(Ok(output));
            }
            // Not before: much is ready at once, and needs none.
            let timer = timer.get_or_insert_with(|| self.sleep(limit));
            timer.as_mut().poll(context).map(|()| Err(TimedOut))
        })
        .await
    }

    /// Starts a task that inherits this environment.
    #[allow(clippy::disallowed_methods, reason = "the one place that may")]
    pub fn spawn<F>(&self, future: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let task = CURRENT.scope(self.clone(), future);
        match &self.governor {
            None => tokio::spawn(task),
            Some(governor) => governor::spawn(governor, task),
        }
    }

    /// Runs `future` with this environment as the current one.
    pub async fn enter<F: Future>(&self, future: F) -> F::Output {
        CURRENT.scope(self.clone(), future).await
    }

    /// Listens on `address` (port 0: any free port).
    ///
    /// # Errors
    /// As the operating system says, with the address named.
    pub async fn listen(&self, address: SocketAddr) -> io::Result<Box<dyn Listener>> {
        self.network
            .listen(address)
            .await
            .map_err(|e| io::Error::new(e.kind(), format!("cannot listen on {address}: {e}")))
    }

    /// Connects to `authority` (`host:port`), within `limit`.
    ///
    /// # Errors
    /// As the operating system says, or [`io::ErrorKind::TimedOut`].
    pub async fn connect(&self, authority: &str, limit: Duration) -> io::Result<Connection> {
        match self.timeout(limit, self.network.connect(authority)).await {
            Ok(result) => result,
            Err(TimedOut) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}
