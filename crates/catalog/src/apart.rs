//! Blocking work apart from the async tasks: one piece after the other, in a thread of its own.
//!
//! For what reads or writes whole files: an open, a check, a snapshot on its way. The threads of the
//! runtime, of which there may be only one, must not wait for a disk.

use std::{collections::VecDeque, sync::Arc};

use pygmy_protocol::env::{Env, Worker};
use tokio::sync::oneshot;

type Piece = Box<dyn FnOnce() + Send>;

/// The worker for that. Clones are the same.
#[derive(Clone)]
pub(crate) struct Apart(Arc<Worker<Piece>>);

impl Apart {
    /// Starts the worker `name`. It ends with its last clone.
    pub(crate) fn start(env: &Env, name: &str) -> Apart {
        Apart(Arc::new(Worker::start(env, name, |waiting: &mut VecDeque<Piece>| {
            waiting.drain(..).for_each(|piece| piece());
        })))
    }

    /// Runs `piece`. `None` if the worker has ended.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        piece: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let (done, result) = oneshot::channel();
        self.0.submit(Box::new(move || {
            // Whoever gave up waiting does not need it any more.
            if !done.is_closed() {
                let _ = done.send(piece());
            }
        }));
        result.await.ok()
    }
}
