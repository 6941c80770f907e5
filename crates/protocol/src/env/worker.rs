use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use super::Env;

/// Starts blocking work outside the async tasks.
pub trait Workers: Send + Sync {
    /// Starts a worker that calls `work` once after each wake (several wakes may become one
    /// call), never twice at the same time, until the returned handle is dropped. In production
    /// a thread; in the simulator a task with a delay from the seed before each call, so that a
    /// crash can come in between.
    fn start(&self, name: &str, work: Box<dyn FnMut() + Send>) -> Box<dyn Wake>;
}

/// Wakes one worker. Dropping it ends the worker after the call that is under way and one last.
pub trait Wake: Send + Sync {
    /// Has `work` called soon.
    fn wake(&self);
}

/// A worker with a queue: submits never block, and the handler gets everything that waits at
/// once, so that one fsync or one transaction serves it all.
///
/// The queue has no bound of its own: whoever submits waits for the completion of what it
/// submitted, and bounds how much that is.
pub struct Worker<J> {
    queue: Arc<Mutex<VecDeque<J>>>,
    handle: Box<dyn Wake>,
}

impl<J: Send + 'static> Worker<J> {
    /// Starts the worker `name`. `handle` takes jobs from the front of the queue it is given;
    /// what it leaves there is offered again with the next call.
    pub fn start(
        env: &Env,
        name: &str,
        mut handle: impl FnMut(&mut VecDeque<J>) + Send + 'static,
    ) -> Worker<J> {
        let queue = Arc::new(Mutex::new(VecDeque::new()));
        let shared = Arc::clone(&queue);
        let mut taken = VecDeque::new();
        let work = move || {
            taken.append(&mut shared.lock().unwrap_or_else(PoisonError::into_inner));
            if !taken.is_empty() {
                handle(&mut taken);
            }
        };
        Worker { queue, handle: env.workers.start(name, Box::new(work)) }
    }

    /// Queues `job`.
    pub fn submit(&self, job: J) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).push_back(job);
        self.handle.wake();
    }

    /// How many jobs wait (without those handed to the handler).
    pub fn waiting(&self) -> usize {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}
