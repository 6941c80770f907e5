//! A simulated machine: its tasks, which a crash ends and a pause holds up.

use std::{
    cell::Cell,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Waker},
};

use pygmy_protocol::env::{FakeDisk, Governor};
use tokio::task::AbortHandle;

thread_local! {
    static RUNNING: Cell<&'static str> = const { Cell::new("world") };
}

/// The host whose task runs now, for the trace.
pub(crate) fn running() -> &'static str {
    RUNNING.get()
}

/// Rules over the tasks of one host. One for each life of it.
pub(crate) struct HostTasks {
    name: &'static str,
    disk: FakeDisk,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    paused: bool,
    held_up: Vec<Waker>,
    tasks: Vec<AbortHandle>,
}

impl HostTasks {
    /// Those of a host with this disk: at the call where that dies, all of them stop.
    pub(crate) fn new(name: &'static str, disk: &FakeDisk) -> Arc<HostTasks> {
        Arc::new(HostTasks { name, disk: disk.clone(), state: Mutex::default() })
    }

    /// As SIGSTOP and SIGCONT.
    pub(crate) fn pause(&self, paused: bool) {
        let mut state = self.lock();
        state.paused = paused;
        if !paused {
            state.held_up.drain(..).for_each(Waker::wake);
        }
    }

    /// Ends all tasks, where they stand.
    pub(crate) fn abort_all(&self) {
        let tasks = std::mem::take(&mut self.lock().tasks);
        tasks.iter().for_each(AbortHandle::abort);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Governor for HostTasks {
    fn run(&self, context: &mut Context<'_>, poll: &mut dyn FnMut(&mut Context<'_>)) {
        {
            let mut state = self.lock();
            if state.paused || self.disk.is_dead() {
                state.held_up.push(context.waker().clone());
                return;
            }
        }
        let before = RUNNING.replace(self.name);
        poll(context);
        RUNNING.set(before);
    }

    fn started(&self, task: AbortHandle) {
        let mut state = self.lock();
        // A life is short, but tasks are many.
        if state.tasks.len() % 1024 == 1023 {
            state.tasks.retain(|task| !task.is_finished());
        }
        state.tasks.push(task);
    }
}
