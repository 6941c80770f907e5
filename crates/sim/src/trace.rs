//! What happened in a run, line by line: the same seed gives the same lines.

use std::{cell::RefCell, fmt::Write as _};

use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{Layer, layer::Context, prelude::*};

use crate::{clock::WorldTime, host};

thread_local! {
    static TRACE: RefCell<Option<Trace>> = const { RefCell::new(None) };
}

struct Trace {
    time: WorldTime,
    lines: Vec<String>,
    panicked: bool,
}

/// Has the logs of all servers written into the trace of the run of their thread, and panics too.
pub(crate) fn install() {
    // Fails only if another part of the process has set one, and then that one is wanted.
    let _ = tracing_subscriber::registry().with(IntoTrace).try_init();
    std::panic::set_hook(Box::new(|info| {
        TRACE.with_borrow_mut(|trace| match trace {
            Some(trace) => trace.panicked = true,
            None => eprintln!("{info}"),
        });
        note(format_args!("PANIC {info}"));
    }));
}

/// Begins the trace of a run on this thread.
pub(crate) fn begin(time: WorldTime) {
    TRACE.set(Some(Trace { time, lines: Vec::new(), panicked: false }));
}

/// Ends it: its lines, and whether a task panicked.
pub(crate) fn end() -> (Vec<String>, bool) {
    TRACE.take().map_or_else(Default::default, |trace| (trace.lines, trace.panicked))
}

/// Whether a task has panicked.
pub(crate) fn panicked() -> bool {
    TRACE.with_borrow(|trace| trace.as_ref().is_some_and(|trace| trace.panicked))
}

/// Writes a line.
pub(crate) fn note(what: std::fmt::Arguments<'_>) {
    TRACE.with_borrow_mut(|trace| {
        let Some(trace) = trace else { return };
        let time = trace.time.elapsed();
        trace.lines.push(format!("{:>12.6} {:<11} {what}", time.as_secs_f64(), host::running()));
    });
}

struct IntoTrace;

impl<S: Subscriber> Layer<S> for IntoTrace {
    fn enabled(&self, metadata: &tracing::Metadata<'_>, _: Context<'_, S>) -> bool {
        // openraft writes the time of day into its lines.
        metadata.target().starts_with("pygmy") && *metadata.level() <= Level::INFO
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut line = format!("{}", event.metadata().level());
        event.record(&mut Fields(&mut line));
        note(format_args!("{line}"));
    }
}

struct Fields<'a>(&'a mut String);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Writing into a string cannot fail.
        let _ = match field.name() {
            "message" => write!(self.0, " {value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}
