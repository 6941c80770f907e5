//! The tokio runtime of a command, and the signals that end it.

use std::{convert::Infallible, env, io, thread::available_parallelism};

use anyhow::Context;
use pygmy_protocol::Env;
use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{Signal, SignalKind, signal},
};

/// Up to so many processors one thread does all requests: others would only take turns with the
/// threads that write the log and the database.
const PROCESSORS_OF_ONE_THREAD: usize = 2;

/// Turns of tasks between two looks at the sockets and timers, while tasks are ready. A turn of the
/// connections (see `pygmy_protocol::http`) may take half a millisecond; with tokio's 61 of them a
/// heartbeat would be seen 30 ms late in a flood of requests. Fewer cost nothing that could be
/// measured: 8, 16 and 61 did as many buys.
const TURNS_PER_LOOK: u32 = 16;

/// Runs `future` to its end on a runtime with `threads` threads; on one that fits the machine if
/// none are given.
///
/// # Errors
/// The operating system gives no runtime.
pub(crate) fn run<F: Future>(
    env: &Env,
    threads: Option<usize>,
    future: F,
) -> anyhow::Result<F::Output> {
    let runtime = build(threads).context("cannot start the runtime")?;
    let output = runtime.block_on(env.enter(future));
    // A name that is still being looked up must not keep the process.
    runtime.shutdown_background();
    Ok(output)
}

/// Runs `future` to its end on this thread.
///
/// # Errors
/// As [`run`].
pub(crate) fn block_on<F: Future>(env: &Env, future: F) -> anyhow::Result<F::Output> {
    run(env, Some(1), future)
}

fn build(threads: Option<usize>) -> io::Result<Runtime> {
    let processors = available_parallelism().map_or(1, usize::from);
    let fitting = if processors <= PROCESSORS_OF_ONE_THREAD { 1 } else { processors };
    match threads.unwrap_or(fitting) {
        1 => Builder::new_current_thread().event_interval(TURNS_PER_LOOK).enable_all().build(),
        threads => Builder::new_multi_thread()
            .worker_threads(threads)
            .event_interval(TURNS_PER_LOOK)
            .enable_all()
            .build(),
    }
}

/// The path of this program, for commands that are to run it again.
pub(crate) fn program() -> String {
    let path = env::current_exe().unwrap_or_else(|_| "pygmy".into());
    let path = path.to_string_lossy().into_owned();
    // So Linux calls a program that was replaced; its successor has the same path.
    path.strip_suffix(" (deleted)").map_or(path.clone(), str::to_owned)
}

/// SIGTERM and SIGINT.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Catches them from now on.
    ///
    /// # Errors
    /// As the operating system says.
    pub(crate) fn catch() -> io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Takes them all and does nothing about them.
    pub(crate) async fn ignore(&mut self) -> Infallible {
        loop {
            self.next().await;
        }
    }

    /// The name of the next one.
    pub(crate) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
