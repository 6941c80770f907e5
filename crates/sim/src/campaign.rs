//! Many runs, on all processors, and what is told of those that fail.

use std::{
    io::{IsTerminal, Write},
    ops::Range,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    faults::Scenario,
    run::{Plan, Report, Scratch, run},
};

/// Lines of the trace that are shown of a failure.
const SHOWN_LINES: usize = 80;
/// Runs that the shortening of a failure may take.
const SHORTENINGS_MAX: u32 = 24;

/// Which runs.
pub(crate) struct Campaign {
    pub(crate) seeds: Range<u64>,
    pub(crate) scenario: Scenario,
    /// End after this many failures.
    pub(crate) failures_max: usize,
    /// End after this time.
    pub(crate) time_max: Option<Duration>,
    pub(crate) quiet: bool,
}

/// What they came to.
pub(crate) struct Summary {
    pub(crate) runs: u64,
    pub(crate) requests: u64,
    pub(crate) failures: Vec<Report>,
    pub(crate) took: Duration,
}

impl Campaign {
    /// Runs them all.
    #[allow(clippy::disallowed_methods, reason = "runs are independent, and the time is ours")]
    pub(crate) fn run(&self, scratch: &Scratch) -> Summary {
        let begun = Instant::now();
        let next = AtomicU64::new(self.seeds.start);
        let (runs, requests) = (AtomicU64::new(0), AtomicU64::new(0));
        let failures = Mutex::new(Vec::new());
        let failed = || failures.lock().unwrap_or_else(PoisonError::into_inner);
        let work = || {
            while self.time_max.is_none_or(|most| begun.elapsed() < most)
                && failed().len() < self.failures_max
            {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= self.seeds.end {
                    return;
                }
                let plan = Plan { seed, scenario: self.scenario, faults: None, clients: None };
                let report = run(plan, scratch);
                let done = 1 + runs.fetch_add(1, Ordering::Relaxed);
                requests.fetch_add(report.requests as u64, Ordering::Relaxed);
                if let Some(why) = &report.failure {
                    self.tell_at_once(seed, why);
                    failed().push(report);
                }
                self.progress(done, failed().len(), begun.elapsed());
            }
        };
        let threads = thread::available_parallelism().map_or(1, usize::from);
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(work);
            }
        });
        if !self.quiet && std::io::stderr().is_terminal() {
            eprintln!();
        }
        Summary {
            runs: runs.into_inner(),
            requests: requests.into_inner(),
            failures: failures.into_inner().unwrap_or_else(PoisonError::into_inner),
            took: begun.elapsed(),
        }
    }

    /// A campaign may run for hours, and be ended before it tells the whole.
    fn tell_at_once(&self, seed: u64, why: &str) {
        if self.quiet {
            return;
        }
        if std::io::stderr().is_terminal() {
            eprintln!();
        }
        eprintln!("seed {seed} failed: {}", why.lines().next().unwrap_or_default());
    }

    fn progress(&self, done: u64, failures: usize, took: Duration) {
        let per_minute = done as f64 * 60.0 / took.as_secs_f64();
        if !self.quiet && std::io::stderr().is_terminal() {
            eprint!("\r{done} runs, {failures} failed, {per_minute:.0} a minute ");
            // Only a nicety.
            let _ = std::io::stderr().flush();
        }
    }
}

/// Fewer faults and fewer clients, as long as the same promise is broken.
pub(crate) fn shorten(report: Report, scratch: &Scratch) -> Report {
    let mut shortest = report;
    let mut runs = 0;
    let (mut faults, mut clients) = (20, 3);
    while runs < SHORTENINGS_MAX && (faults > 0 || clients > 0) {
        let mut shorter = false;
        for plan in [
            Plan {
                faults: Some(shortest.plan.faults.unwrap_or(40).saturating_sub(faults)),
                ..shortest.plan
            },
            Plan {
                clients: Some(shortest.plan.clients.unwrap_or(6).saturating_sub(clients).max(1)),
                ..shortest.plan
            },
        ] {
            runs += 1;
            if plan == shortest.plan {
                continue;
            }
            let tried = run(plan, scratch);
            if kind(&tried) == kind(&shortest) {
                shortest = tried;
                shorter = true;
            }
        }
        if !shorter {
            (faults, clients) = (faults / 2, clients / 2);
        }
    }
    shortest
}

/// Which promise is broken: the words of the failure before its first number or list.
fn kind(report: &Report) -> Option<&str> {
    let why = report.failure.as_deref()?;
    why.split(|c: char| c == ':' || c.is_ascii_digit()).next()
}

/// The lines of the trace around the last event that the failure speaks of; its last lines if it
/// speaks of none.
fn around(report: &Report) -> &[String] {
    let lines = &report.trace;
    let why = report.failure.as_deref().unwrap_or_default();
    // Events are written as `[12.000000 ms .. 15.500000 ms]`, lines begin with their seconds.
    let ms = why.split(['[', ' ']).filter_map(|word| {
        let is_time = word.contains('.') && word.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        is_time.then(|| word.parse::<f64>().ok()).flatten()
    });
    let seconds = |line: &str| line.split_whitespace().next().and_then(|s| s.parse::<f64>().ok());
    let middle = ms.reduce(f64::max).and_then(|last| {
        lines.iter().position(|line| seconds(line).is_some_and(|s| s * 1000.0 >= last))
    });
    let end = middle.map_or(lines.len(), |at| lines.len().min(at + SHOWN_LINES / 2));
    &lines[end.saturating_sub(SHOWN_LINES)..end]
}

/// Tells of a failure: how to see it again, which promise, and the trace around it.
pub(crate) fn tell(report: &Report, command: &str) {
    let Plan { seed, scenario, faults, clients } = report.plan;
    println!("\nFAILED seed {seed}: {}", report.failure.as_deref().unwrap_or("nothing"));
    let limit =
        |name: &str, limit: Option<u64>| limit.map_or(String::new(), |n| format!(" --{name} {n}"));
    println!(
        "again: {command} --seed {seed} --scenario {}{}{} --trace",
        format!("{scenario:?}").to_lowercase(),
        limit("faults", faults),
        limit("clients", clients)
    );
    let events =
        report.trace.iter().filter(|line| line.contains(" world ") || line.contains("VIOLATION"));
    println!("faults and starts:");
    for line in events {
        println!("  {line}");
    }
    println!("the trace around it:");
    for line in around(report) {
        println!("  {line}");
    }
}
