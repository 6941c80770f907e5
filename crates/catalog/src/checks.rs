//! Work that reads a lot and is asked for rarely: checks of whole files, in a thread of its own, one
//! after the other.

use std::{collections::VecDeque, sync::Arc};

use pygmy_protocol::env::{Env, Worker};
use tokio::sync::oneshot;

type Check = Box<dyn FnOnce() + Send>;

/// The worker for that. Clones are the same.
#[derive(Clone)]
pub(crate) struct Checks(Arc<Worker<Check>>);

impl Checks {
    pub(crate) fn start(env: &Env) -> Checks {
        Checks(Arc::new(Worker::start(env, "checks", |waiting: &mut VecDeque<Check>| {
            waiting.drain(..).for_each(|check| check());
        })))
    }

    /// Runs `check`. `None` if the worker has ended.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        check: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let (done, result) = oneshot::channel();
        self.0.submit(Box::new(move || {
            // Whoever gave up waiting does not need it any more.
            if !done.is_closed() {
                let _ = done.send(check());
            }
        }));
        result.await.ok()
    }
}
