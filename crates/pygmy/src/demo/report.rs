//! What a demo tells people.

use std::{collections::BTreeMap, env, fs, path::Path, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};
use pygmy_protocol::registration::Role;

use super::supervise::{Children, Exit, log_file};
use crate::{
    config::{Config, ServerEntry},
    print::{self, Column, Style},
};

/// Lines of a log that are shown when its server has failed.
const LOG_LINES: usize = 10;
/// Of a log, only so much from its end is looked at.
const LOG_BYTES: usize = 16 * 1024;

/// Tells people what happens.
pub(super) struct Report<'a> {
    config: &'a Config,
    dir: &'a Path,
}

/// A line that follows what happens. On no terminal there is none.
pub(super) struct Progress(ProgressBar);

impl Progress {
    pub(super) fn step(&self, what: &str) {
        self.0.set_message(what.to_owned());
    }

    pub(super) fn at(&self, done: usize) {
        self.0.set_position(done as u64);
        self.0.tick();
    }

    pub(super) fn clear(&self) {
        self.0.finish_and_clear();
    }
}

impl<'a> Report<'a> {
    pub(super) fn new(config: &'a Config, dir: &'a Path) -> Report<'a> {
        Report { config, dir }
    }

    pub(super) fn progress(&self, servers: usize) -> Progress {
        eprintln!("starting {servers} servers in {}", self.dir.display());
        let bar = ProgressBar::new(servers as u64);
        let colour = if Style::of_stderr().colours { ".cyan" } else { "" };
        let template = format!("{{spinner}} {{bar:24{colour}}} {{pos}}/{{len}} {{msg}}");
        // The template is ours and valid; if it were not, the default does.
        if let Ok(style) = ProgressStyle::with_template(&template) {
            bar.set_style(style);
        }
        bar.set_message("waiting until all live");
        Progress(bar)
    }

    pub(super) fn ready(&self, took: Duration) -> anyhow::Result<()> {
        Ok(print::line(format_args!("the store is ready, after {:.1} s\n", took.as_secs_f64()))?)
    }

    pub(super) fn not_ready(&self, missing: &BTreeMap<String, String>) {
        for (name, reason) in missing {
            eprintln!("{name} is not ready: {}", reason.trim_end());
        }
        let logs = missing.keys().filter_map(|name| self.config.server(name));
        if let Some(server) = logs.take(1).next() {
            show_log(&log_file(self.config, server));
        }
    }

    pub(super) fn servers(&self, children: &Children) -> anyhow::Result<()> {
        let columns = [
            Column::Text("SERVER"),
            Column::Text("ROLE"),
            Column::Text("URL"),
            Column::Number("PID"),
            Column::Text("LOG"),
        ];
        let rows = self.config.servers().iter().map(|server| {
            let pid = children.pid(&server.name);
            let log = log_file(self.config, server);
            let log = log.strip_prefix(self.dir).unwrap_or(&log);
            vec![
                server.name.clone(),
                server.role.to_string(),
                urls(server),
                pid.map_or_else(String::new, |pid| pid.as_raw_nonzero().to_string()),
                log.display().to_string(),
            ]
        });
        print::table(&columns, rows)?;
        Ok(print::line(format_args!("data and logs are in {}", self.dir.display()))?)
    }

    pub(super) fn what_to_try(&self) -> anyhow::Result<()> {
        let program = env::args().next().unwrap_or_else(|| "pygmy".to_owned());
        let public = self.config.public_urls();
        let server = public.first().map_or("", String::as_str);
        print::line(format_args!(
            "\ntry, in another terminal:\n\
             \x20 {program} search 'Distributed Systems' --server {server}\n\
             \x20 {program} buy 2 --server {server}\n\
             \x20 {program} admin status --config {}\n\
             \nCtrl-C stops everything.",
            self.config.path().display()
        ))?;
        Ok(())
    }

    pub(super) fn died(&self, exit: &Exit) {
        eprintln!("{} has ended ({}); the end of {}:", exit.name, exit.how(), exit.log.display());
        show_log(&exit.log);
    }

    pub(super) fn stopping(&self, servers: usize) {
        if servers > 0 {
            eprintln!("stopping {servers} servers; Ctrl-C again kills them");
        }
    }

    pub(super) fn stopped(&self, killed: &[String]) {
        match killed {
            [] => eprintln!("all servers have stopped"),
            killed => eprintln!("all servers have stopped; killed: {}", killed.join(", ")),
        }
    }
}

/// What people call; and, where it is another one, what servers call.
fn urls(server: &ServerEntry) -> String {
    match (server.role, server.public_url()) {
        (Role::All, Some(public)) => format!("{public}\n{} (internal)", server.base_url()),
        _ => server.base_url(),
    }
}

fn show_log(path: &Path) {
    // The log may not even exist; then there is nothing to show.
    let bytes = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(LOG_BYTES)..]);
    let lines: Vec<_> = text.lines().collect();
    for line in &lines[lines.len().saturating_sub(LOG_LINES)..] {
        eprintln!("  {}", print::without_controls(line));
    }
}
