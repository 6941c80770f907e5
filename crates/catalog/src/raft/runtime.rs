//! openraft's window to the world, through the environment of the task that it runs in.
//!
//! openraft asks for time, sleep, randomness and tasks with plain functions, so the environment
//! is found through [`Env::current`]. Whatever calls into openraft must therefore run inside
//! [`Env::spawn`] or [`Env::enter`], as every server does. Channels and locks are tokio's.

use std::{
    convert::Infallible,
    fmt,
    future::Future,
    ops::{Add, AddAssign, Sub, SubAssign},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use openraft::{AsyncRuntime, OptionalSend};
use openraft_rt_tokio::{TokioMpsc, TokioMutex, TokioOneshot, TokioWatch};
use pygmy_protocol::env::{BoxFuture, Env, Instant, Random};

fn env() -> Env {
    // A mistake of ours that the first call in any test meets.
    Env::current().expect("openraft runs inside Env::spawn or Env::enter")
}

/// The runtime that is given to openraft.
pub(crate) struct EnvRuntime(tokio::runtime::Runtime);

impl fmt::Debug for EnvRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EnvRuntime")
    }
}

impl AsyncRuntime for EnvRuntime {
    type JoinError = tokio::task::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = tokio::task::JoinHandle<T>;
    type Sleep = BoxFuture<'static, ()>;
    type Instant = RaftInstant;
    type TimeoutError = pygmy_protocol::env::TimedOut;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = Timeout<T>;
    type ThreadLocalRng = EnvRng;
    type Mpsc = TokioMpsc;
    type Watch = TokioWatch;
    type Oneshot = TokioOneshot;
    type Mutex<T: OptionalSend + 'static> = TokioMutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        env().spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        env().sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        let env = env();
        env.sleep(deadline.0.saturating_since(env.now()))
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        Timeout { future: Box::pin(future), sleep: Self::sleep(duration) }
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        Timeout { future: Box::pin(future), sleep: Self::sleep_until(deadline) }
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        join_error.is_panic()
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        EnvRng(env().random)
    }

    // The two below are for openraft's own test suite only.

    fn new(_threads: usize) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        EnvRuntime(runtime.expect("a test's runtime starts"))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(Env::production().enter(future))
    }
}

/// A future with a limit.
pub(crate) struct Timeout<T> {
    future: Pin<Box<T>>,
    sleep: BoxFuture<'static, ()>,
}

impl<T: Future> Future for Timeout<T> {
    type Output = Result<T::Output, pygmy_protocol::env::TimedOut>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Poll::Ready(output) = self.future.as_mut().poll(cx) {
            return Poll::Ready(Ok(output));
        }
        self.sleep.as_mut().poll(cx).map(|()| Err(pygmy_protocol::env::TimedOut))
    }
}

/// Random numbers from the environment.
pub(crate) struct EnvRng(Arc<dyn Random>);

impl rand::TryRng for EnvRng {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(self.0.u64() as u32)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(self.0.u64())
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        self.0.fill(bytes);
        Ok(())
    }
}

/// The environment's monotonic clock, as openraft wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RaftInstant(Instant);

impl openraft::Instant for RaftInstant {
    fn now() -> RaftInstant {
        RaftInstant(env().now())
    }
}

impl Add<Duration> for RaftInstant {
    type Output = RaftInstant;
    fn add(self, duration: Duration) -> RaftInstant {
        RaftInstant(self.0 + duration)
    }
}

impl AddAssign<Duration> for RaftInstant {
    fn add_assign(&mut self, duration: Duration) {
        *self = *self + duration;
    }
}

impl Sub<Duration> for RaftInstant {
    type Output = RaftInstant;
    fn sub(self, duration: Duration) -> RaftInstant {
        RaftInstant(self.0 - duration)
    }
}

impl SubAssign<Duration> for RaftInstant {
    fn sub_assign(&mut self, duration: Duration) {
        *self = *self - duration;
    }
}

impl Sub for RaftInstant {
    type Output = Duration;
    fn sub(self, earlier: RaftInstant) -> Duration {
        self.0.saturating_since(earlier.0)
    }
}
