use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::task::{AbortHandle, JoinHandle};

/// Rules over the tasks of one simulated host: a host that is paused runs none of them, a host
/// that crashes loses all.
pub trait Governor: Send + Sync {
    /// Calls `poll` if tasks of this host may run now. If not, wakes the context when they may.
    fn run(&self, context: &mut Context<'_>, poll: &mut dyn FnMut(&mut Context<'_>));

    /// A task was started.
    fn started(&self, task: AbortHandle);
}

#[allow(clippy::disallowed_methods, reason = "called by Env::spawn")]
pub(super) fn spawn<F>(governor: &Arc<dyn Governor>, future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let governed = Governed { governor: Arc::clone(governor), future: Box::pin(future) };
    let task = tokio::spawn(governed);
    governor.started(task.abort_handle());
    task
}

struct Governed<F> {
    governor: Arc<dyn Governor>,
    future: Pin<Box<F>>,
}

impl<F: Future> Future for Governed<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let Governed { governor, future } = &mut *self;
        let mut polled = Poll::Pending;
        governor.run(context, &mut |context| polled = future.as_mut().poll(context));
        polled
    }
}
