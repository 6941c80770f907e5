//! What people see while a run is under way.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use pygmy_client::bench::{Tally, Window};
use pygmy_protocol::{Env, env::Instant};

use super::report::{grouped, milliseconds};
use crate::print::Style;

/// The figures are those of so long a time.
const NOW: Duration = Duration::from_secs(1);

/// A line that follows what happens. On no terminal there is none.
pub(super) struct Progress {
    bar: ProgressBar,
    start: Instant,
    measured_from: Instant,
    /// When the figures began, and what they are.
    since: Instant,
    recent: Tally,
}

impl Progress {
    /// Of items that are made.
    pub(super) fn making_items(items: u32) -> Progress {
        let zero = Instant::from_origin(Duration::ZERO);
        let bar = bar(u64::from(items), "making items {bar} {pos}/{len}");
        Progress { bar, start: zero, measured_from: zero, since: zero, recent: Tally::default() }
    }

    /// Of a run.
    pub(super) fn measuring(env: &Env, window: &Window) -> Progress {
        let start = env.now();
        let length = window.end().saturating_since(start);
        // Some microseconds of it have passed already.
        let bar = bar(length.as_secs_f64().ceil() as u64, "{bar} {pos}/{len} s  {msg}");
        bar.set_message("warming up");
        bar.tick();
        let measured_from = window.measured_from();
        Progress { bar, start, measured_from, since: measured_from, recent: Tally::default() }
    }

    pub(super) fn made(&self, items: u32) {
        self.bar.set_position(u64::from(items));
        self.bar.tick();
    }

    /// Takes what was counted since the last time.
    pub(super) fn count(&mut self, now: Instant, tally: &Tally) {
        self.recent.add(tally);
        // The last answers may take longer than the run.
        let passed_s = now.saturating_since(self.start).as_secs();
        self.bar.set_position(passed_s.min(self.bar.length().unwrap_or(passed_s)));
        let passed = now.saturating_since(self.since);
        if now > self.measured_from && passed >= NOW {
            let all = self.recent.all();
            let per_second = (all.done() as f64 / passed.as_secs_f64()) as u64;
            let p99_ms = all.latency_ns.value_at_quantile(0.99) as f64 / 1e6;
            self.bar.set_message(format!(
                "{} requests/s  p99 {} ms  failed {}",
                grouped(per_second),
                milliseconds(p99_ms),
                grouped(all.failed()),
            ));
            self.recent = Tally::default();
            self.since = now;
        }
        self.bar.tick();
    }

    pub(super) fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

fn bar(length: u64, template: &str) -> ProgressBar {
    let bar = ProgressBar::new(length);
    let colour = if Style::of_stderr().colours { ".cyan" } else { "" };
    let template = template.replace("{bar}", &format!("{{bar:24{colour}}}"));
    // The template is ours and valid; if it were not, the default does.
    if let Ok(style) = ProgressStyle::with_template(&template) {
        bar.set_style(style);
    }
    bar
}
