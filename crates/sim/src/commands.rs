//! The one command that simulated servers run: it starts one of them again.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, PoisonError},
};

use pygmy_protocol::env::{BoxFuture, Ended, Processes};

use crate::trace::note;

/// The settings with which watchers have it run.
pub(crate) const SETTINGS: &str = "\
[respawn]
command = [\"{action}\", \"{name}\"]
after_ms = 2000

";

/// What watchers have asked for and nobody has done yet: names of servers, and whether one that
/// still runs is to be ended.
#[derive(Clone, Default)]
pub(crate) struct Commands(Arc<Mutex<BTreeMap<String, bool>>>);

impl Commands {
    /// Takes all that was asked for.
    pub(crate) fn take(&self) -> BTreeMap<String, bool> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Processes for Commands {
    fn run<'a>(&'a self, command: &'a [String]) -> BoxFuture<'a, io::Result<Ended>> {
        Box::pin(async move {
            let [action, name] = command else { return Err(io::ErrorKind::NotFound.into()) };
            note(format_args!("a watcher asks to {action} {name}"));
            let mut asked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            *asked.entry(name.clone()).or_default() |= action == "restart";
            Ok(Ended { success: true, how: "exit status: 0".to_owned(), output: String::new() })
        })
    }
}
