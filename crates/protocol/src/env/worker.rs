use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::{Clock, Env, Instant};

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
    clock: Arc<dyn Clock>,
    queue: Arc<Mutex<Queue<J>>>,
    handle: Box<dyn Wake>,
}

struct Queue<J> {
    jobs: VecDeque<J>,
    /// Since when there has been something to do, or since the handler last came back.
    busy_since: Option<Instant>,
}

impl<J: Send + 'static> Worker<J> {
    /// Starts the worker `name`. `handle` takes jobs from the front of the queue it is given;
    /// what it leaves there is offered again with the next call.
    pub fn start(
        env: &Env,
        name: &str,
        mut handle: impl FnMut(&mut VecDeque<J>) + Send + 'static,
    ) -> Worker<J> {
        let queue = Arc::new(Mutex::new(Queue { jobs: VecDeque::new(), busy_since: None }));
        let (shared, clock) = (Arc::clone(&queue), Arc::clone(&env.clock));
        let mut taken = VecDeque::new();
        let work = move || {
            taken.append(&mut lock(&shared).jobs);
            if taken.is_empty() {
                return;
            }
            handle(&mut taken);
            let mut queue = lock(&shared);
            let is_idle = taken.is_empty() && queue.jobs.is_empty();
            queue.busy_since = (!is_idle).then(|| clock.now());
        };
        let clock = Arc::clone(&env.clock);
        Worker { clock, queue, handle: env.workers.start(name, Box::new(work)) }
    }

    /// Queues `job`.
    pub fn submit(&self, job: J) {
        let mut queue = lock(&self.queue);
        queue.jobs.push_back(job);
        queue.busy_since.get_or_insert_with(|| self.clock.now());
        drop(queue);
        self.handle.wake();
    }

    /// How many jobs wait (without those handed to the handler).
    pub fn waiting(&self) -> usize {
        lock(&self.queue).jobs.len()
    }

    /// How long the handler has been at what it was given last, or has been waited for: long if the
    /// disk has stalled. Zero when there is nothing to do.
    pub fn busy_for(&self) -> Duration {
        let busy_since = lock(&self.queue).busy_since;
        busy_since.map_or(Duration::ZERO, |since| self.clock.now().saturating_since(since))
    }
}

fn lock<J>(queue: &Mutex<Queue<J>>) -> MutexGuard<'_, Queue<J>> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}
