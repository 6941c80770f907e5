//! What a demo tells people.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    env, fs,
    io::{self, IsTerminal},
    path::Path,
    time::Duration,
};

use comfy_table::Table;
use indicatif::{ProgressBar, ProgressStyle};
use pygmy_protocol::{registration::Role, watched::Reason};

use super::supervise::{Children, Event, Exit, log_file};
use crate::{
    cli::DEMO_CONFIG,
    config::{Config, ServerEntry},
    print::{self, Column, Style},
};

/// Lines of a log that are shown when its server has failed.
const LOG_LINES: usize = 3;
/// Columns of a terminal that does not say how many it has.
const WIDTH: u16 = 80;
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

    pub(super) fn servers(&self, children: &Children<'_>) -> anyhow::Result<()> {
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
        let program = program();
        let (mut store, mut config) = (String::new(), String::new());
        if self.config.path() != Path::new(DEMO_CONFIG) {
            let public = self.config.public_urls();
            store = format!(" --server {}", public.first().map_or("", String::as_str));
            config = format!(" --config {}", quoted(&self.config.path().to_string_lossy()));
        }
        print::line(format_args!(
            "\ntry, in another terminal:\n\
             \x20 {program} search 'Graduate School'{store}\n\
             \x20 {program} buy 2{store}\n\
             \x20 {program} admin status{config}\n\
             \nCtrl-C stops everything."
        ))?;
        Ok(())
    }

    pub(super) fn event(&self, event: &Event) {
        match event {
            Event::Ended(exit) => self.died(exit),
            Event::Ending { name, reason, watcher } => ending(name, *reason, watcher),
            Event::Back { name, watcher, after } => {
                eprintln!("{name} is back after {:.1} s, thanks to {watcher}", after.as_secs_f64());
            }
        }
    }

    fn died(&self, exit: &Exit) {
        let (name, how) = (&exit.name, exit.how());
        if exit.is_killed() && self.is_respawned(name) {
            // It had no time for last words.
            return eprintln!("{name} has ended ({how}); those that watch it start it again");
        }
        if exit.is_in_order() && self.is_respawned(name) {
            eprintln!("{name} was stopped; who is stopped in order is not started again");
            return self.how_to_start(name);
        }
        eprintln!("{name} has ended ({how}); its last words:");
        show_log(&exit.log);
        if !self.is_respawned(name) {
            self.how_to_start(name);
        }
    }

    fn how_to_start(&self, name: &str) {
        if let Some(server) = self.config.server(name) {
            let config = quoted(&self.config.path().to_string_lossy()).into_owned();
            let (program, role, name) = (program(), server.role, &server.name);
            eprintln!("start it again, in another terminal:");
            // On one line it would be too long for most terminals.
            eprintln!("  {program} serve {role} --name {name} \\\n    --config {config}");
        }
    }

    fn is_respawned(&self, name: &str) -> bool {
        let processes = self.config.processes();
        processes.iter().any(|process| process.name == name && !process.command.is_empty())
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

fn ending(name: &str, reason: Reason, watcher: &str) {
    match reason {
        Reason::Hung => eprintln!("{name} hangs, says {watcher}; it is ended and started again"),
        Reason::Rolling | Reason::Dead => eprintln!("{name} is stopped and started again"),
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
    // A file has room for all of it.
    let width = io::stderr().is_terminal().then(|| {
        let width = Table::new().use_stderr().width().unwrap_or(WIDTH);
        usize::from(width).saturating_sub(2)
    });
    for line in &lines[lines.len().saturating_sub(LOG_LINES)..] {
        let line = print::without_controls(line);
        eprintln!("  {}", width.map_or(line.as_str().into(), |width| cut(&line, width)));
    }
}

/// The last `width` characters of a line: a reason stands at its end, what everybody knows at its
/// beginning. The first of them says if there are more.
fn cut(line: &str, width: usize) -> Cow<'_, str> {
    let chars = line.chars().count();
    if chars <= width {
        return line.into();
    }
    ['…'].into_iter().chain(line.chars().skip((chars + 1).saturating_sub(width))).collect()
}

/// This program, as it can be called from the same directory.
fn program() -> String {
    let called = env::args().next().unwrap_or_else(|| "pygmy".to_owned());
    let here = env::current_dir().unwrap_or_default();
    let inside = Path::new(&called).strip_prefix(here).ok().and_then(Path::to_str);
    // Without a slash the shell would look for it elsewhere.
    quoted(inside.filter(|path| path.contains('/')).unwrap_or(&called)).into_owned()
}

/// One word for a shell.
fn quoted(text: &str) -> Cow<'_, str> {
    let plain = |c: char| c.is_alphanumeric() || "/._-+:,=@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.into();
    }
    format!("'{}'", text.replace('\'', r"'\''")).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_are_cut_and_say_so() {
        assert_eq!(cut("Größe", 5), "Größe");
        assert_eq!(cut("Größe!", 5), "…öße!");
    }

    #[test]
    fn what_a_shell_would_take_apart_is_quoted() {
        assert_eq!(quoted("target/debug/pygmy"), "target/debug/pygmy");
        assert_eq!(quoted("my shop's/pygmy.toml"), r"'my shop'\''s/pygmy.toml'");
    }
}
