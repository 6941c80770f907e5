//! The demo's servers as child processes.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    net::SocketAddr,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, anyhow, bail};
use pygmy_protocol::{Env, env::Instant, watched::Reason};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    process::{ChildStdin, Command},
    sync::mpsc,
    task::JoinSet,
};

use super::ask::Ask;
use crate::{
    cli::LogFormat,
    config::{Config, ServerEntry},
    runtime::{self, Signals},
};

/// A log longer than this is put aside when its server is started. While the server runs it has no
/// bound: the demo is not how stores are run for months.
const LOG_BYTES_MAX: u64 = 16 << 20;
/// How long a server may take to stop before it is killed: longer than its `drain_timeout_ms`.
const STOP_TIMEOUT: Duration = Duration::from_secs(8);
/// Signals within this time are one: some senders send theirs to the process and to its group.
const SAME_SIGNAL: Duration = Duration::from_millis(500);
/// How long a killed process takes to be gone, at most.
const KILL_TIMEOUT: Duration = Duration::from_secs(2);

/// Time for somebody to ask for one to be started when none runs: who asks may be all that is left.
const LAST_ASK: Duration = Duration::from_secs(2);
/// Longest wait until a server that was started listens.
const LIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Between two looks whether it does.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// All child processes, by the names of their servers.
pub(super) struct Children<'a> {
    env: Env,
    config: &'a Config,
    log_format: LogFormat,
    running: BTreeMap<String, Child>,
    exits: JoinSet<Exit>,
    /// When those that do not run ended.
    ended_at: BTreeMap<String, Instant>,
    /// Asked for: those that are to be started when they have ended, and those that were started
    /// and do not listen yet.
    ending: BTreeMap<String, Ask>,
    starting: BTreeMap<String, Ask>,
    /// Names of those that listen now, and of those that had their time to end.
    listening: JoinSet<(String, bool)>,
    overdue: JoinSet<(String, Pid)>,
}

struct Child {
    pid: Pid,
    /// Ends with this process, however it ends; the child stops then (`--stop-with-parent`).
    _life_line: Option<ChildStdin>,
}

/// What happens to the servers.
pub(super) enum Event {
    /// One has ended that nobody wanted to end.
    Ended(Exit),
    /// One is being ended, to be started again.
    Ending { name: String, reason: Reason, watcher: String },
    /// One listens again, so long after it ended.
    Back { name: String, watcher: String, after: Duration },
}

/// The end of a child process.
pub(super) struct Exit {
    pub(super) name: String,
    pub(super) log: PathBuf,
    status: io::Result<ExitStatus>,
}

impl Exit {
    /// `exit status: 1`, or the signal.
    pub(super) fn how(&self) -> String {
        match &self.status {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        }
    }

    /// Whether it ended as it does when it is told to.
    pub(super) fn is_in_order(&self) -> bool {
        self.status.as_ref().is_ok_and(ExitStatus::success)
    }

    /// Whether a signal ended it.
    pub(super) fn is_killed(&self) -> bool {
        self.status.as_ref().is_ok_and(|status| status.signal().is_some())
    }
}

/// Checks that nobody else listens where the servers are to listen.
///
/// # Errors
/// Which port is in use, and what to do: a store that is `new` may have others.
pub(super) async fn check_ports(env: &Env, config: &Config, new: bool) -> anyhow::Result<()> {
    for server in config.servers() {
        for address in [Some(server.listen), server.public_listen].into_iter().flatten() {
            check_port(env, &server.name, address, new).await?;
        }
    }
    Ok(())
}

async fn check_port(env: &Env, name: &str, address: SocketAddr, new: bool) -> anyhow::Result<()> {
    let advice = if new {
        "stop what uses it, or choose other ports with --base-port"
    } else {
        "is this store running already? Stop what uses the port, or run another store with \
         --base-port and a --dir of its own"
    };
    match env.listen(address).await {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            bail!("port {} is in use, and {name} needs it; {advice}", address.port())
        }
        Err(error) => Err(error).context(format!("{name} cannot be started")),
    }
}

/// Where a server writes its log.
pub(super) fn log_file(config: &Config, server: &ServerEntry) -> PathBuf {
    config.data_dir(server).join("log.txt")
}

impl<'a> Children<'a> {
    /// Starts every server of `config`.
    pub(super) fn start(
        env: &Env,
        config: &'a Config,
        log_format: LogFormat,
    ) -> anyhow::Result<Children<'a>> {
        let mut children = Children::none(env, config, log_format);
        for server in config.servers() {
            children.start_one(server)?;
        }
        Ok(children)
    }

    fn none(env: &Env, config: &'a Config, log_format: LogFormat) -> Children<'a> {
        Children {
            env: env.clone(),
            config,
            log_format,
            running: BTreeMap::new(),
            exits: JoinSet::new(),
            ended_at: BTreeMap::new(),
            ending: BTreeMap::new(),
            starting: BTreeMap::new(),
            listening: JoinSet::new(),
            overdue: JoinSet::new(),
        }
    }

    fn start_one(&mut self, server: &ServerEntry) -> anyhow::Result<()> {
        let log = log_file(self.config, server);
        let output = open_log(&log)?;
        let mut command = Command::new(runtime::program());
        command
            .args(["serve", server.role.as_str(), "--name", &server.name, "--config"])
            .arg(self.config.path())
            .args(["--stop-with-parent", "--log-format"])
            .arg(match self.log_format {
                LogFormat::Text => "text",
                LogFormat::Json => "json",
            })
            .stdin(Stdio::piped())
            .stdout(output.try_clone()?)
            .stderr(output)
            // Out of the terminal's group: Ctrl-C reaches the demo, which stops the servers.
            .process_group(0)
            .kill_on_drop(true);
        let added = self.add(server.name.clone(), log, command);
        added.with_context(|| format!("cannot start {}", server.name))
    }

    fn add(&mut self, name: String, log: PathBuf, mut command: Command) -> io::Result<()> {
        let mut child = command.spawn()?;
        let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        let pid = pid.ok_or(io::ErrorKind::NotFound)?;
        let running = Child { pid, _life_line: child.stdin.take() };
        self.running.insert(name.clone(), running);
        self.exits.spawn(async move { Exit { name, log, status: child.wait().await } });
        Ok(())
    }

    /// How many are running.
    pub(super) fn count(&self) -> usize {
        self.running.len()
    }

    /// The running servers that are neither being started nor being ended.
    pub(super) fn serving(&self) -> Vec<(String, Pid)> {
        let in_motion = |name| self.ending.contains_key(name) || self.starting.contains_key(name);
        let serving = self.running.iter().filter(|(name, _)| !in_motion(*name));
        serving.map(|(name, child)| (name.clone(), child.pid)).collect()
    }

    /// The process id of a running server.
    pub(super) fn pid(&self, name: &str) -> Option<Pid> {
        self.running.get(name).map(|child| child.pid)
    }

    /// The next one that ends; `None` when none is left. Nothing is lost if it is dropped.
    pub(super) async fn next_exit(&mut self) -> Option<Exit> {
        loop {
            // An error would be a panic in a wait, which has been reported by itself.
            if let Ok(exit) = self.exits.join_next().await? {
                self.running.remove(&exit.name);
                return Some(exit);
            }
        }
    }

    /// The next thing that happens; `None` when no server is left and nobody asks for one.
    pub(super) async fn next_event(&mut self, asks: &mut mpsc::Receiver<Ask>) -> Option<Event> {
        loop {
            if self.exits.is_empty() {
                let ask = self.env.timeout(LAST_ASK, asks.recv()).await.ok()??;
                self.asked(ask);
                continue;
            }
            let event = tokio::select! {
                Some(Ok(exit)) = self.exits.join_next() => self.ended(exit),
                Some(ask) = asks.recv() => self.asked(ask),
                Some(Ok((name, in_time))) = self.listening.join_next() => {
                    self.listens(&name, in_time)
                }
                Some(Ok((name, pid))) = self.overdue.join_next() => self.is_overdue(&name, pid),
                else => None,
            };
            if event.is_some() {
                return event;
            }
        }
    }

    fn asked(&mut self, ask: Ask) -> Option<Event> {
        if ask.reply.is_closed() {
            // It has waited for longer than who asked: what was wrong then may be well now.
            return None;
        }
        let Ask { name, reason, watcher, .. } = &ask;
        let (name, reason, watcher) = (name.clone(), *reason, watcher.clone());
        let busy = self.ending.contains_key(&name) || self.starting.contains_key(&name);
        let refusal = match self.running.get(&name) {
            _ if busy => Err(format!("{name} is being started already")),
            Some(_) if reason == Reason::Dead => Ok(format!("{name} runs already")),
            Some(child) => {
                // One that hangs would not hear anything gentler.
                let signal = if reason == Reason::Hung { Signal::KILL } else { Signal::TERM };
                // An error means that it has just ended.
                let _ = kill_process(child.pid, signal);
                let (sleep, overdue) = (self.env.sleep(STOP_TIMEOUT), (name.clone(), child.pid));
                self.overdue.spawn(async move {
                    sleep.await;
                    overdue
                });
                self.ending.insert(name.clone(), ask);
                return Some(Event::Ending { name, reason, watcher });
            }
            None => return self.start_again(ask),
        };
        let _ = ask.reply.send(refusal);
        None
    }

    fn start_again(&mut self, ask: Ask) -> Option<Event> {
        let started = match self.config.server(&ask.name) {
            Some(server) => self.start_one(server).map(|()| server.listen),
            None => Err(anyhow!("the demo has no server {:?}", ask.name)),
        };
        match started {
            Ok(address) => {
                let (env, name) = (self.env.clone(), ask.name.clone());
                self.listening.spawn(async move {
                    let listens = env.timeout(LIVE_TIMEOUT, listens(&env, address)).await;
                    (name, listens.is_ok())
                });
                self.starting.insert(ask.name.clone(), ask);
            }
            Err(error) => drop(ask.reply.send(Err(format!("{error:#}")))),
        }
        None
    }

    fn ended(&mut self, exit: Exit) -> Option<Event> {
        self.running.remove(&exit.name);
        self.ended_at.insert(exit.name.clone(), self.env.now());
        if let Some(ask) = self.ending.remove(&exit.name) {
            return self.start_again(ask);
        }
        if let Some(ask) = self.starting.remove(&exit.name) {
            let log = exit.log.display();
            let why = format!("{} has ended again ({}); its log: {log}", exit.name, exit.how());
            let _ = ask.reply.send(Err(why));
        }
        Some(Event::Ended(exit))
    }

    fn listens(&mut self, name: &str, in_time: bool) -> Option<Event> {
        let Ask { name, watcher, reply, .. } = self.starting.remove(name)?;
        if !in_time {
            let _ = reply.send(Err(format!("{name} runs and does not listen yet; see its log")));
            return None;
        }
        let after = self.env.now().saturating_since(self.ended_at.remove(&name)?);
        let _ = reply.send(Ok(format!("{name} is back after {} ms", after.as_millis())));
        Some(Event::Back { name, watcher, after })
    }

    /// Only the process that was asked to stop, and not its successor.
    fn is_overdue(&mut self, name: &str, pid: Pid) -> Option<Event> {
        if self.running.get(name).is_some_and(|child| child.pid == pid) {
            let _ = kill_process(pid, Signal::KILL);
        }
        None
    }

    /// Stops all: asks first, and kills those that have not stopped in time, or at once when
    /// another signal comes. Gives the names of those that had to be killed.
    pub(super) async fn stop(mut self, env: &Env, signals: &mut Signals) -> Vec<String> {
        self.signal_all(Signal::TERM);
        let impatience = async {
            let _ = env.timeout(SAME_SIGNAL, signals.ignore()).await;
            signals.next().await
        };
        tokio::select! {
            _ = env.timeout(STOP_TIMEOUT, self.all_gone()) => {}
            _ = impatience => {}
        }
        let killed = self.running.keys().cloned().collect();
        self.signal_all(Signal::KILL);
        // One that cannot even be killed (a hung disk) is left to the operating system.
        let _ = env.timeout(KILL_TIMEOUT, self.all_gone()).await;
        killed
    }

    async fn all_gone(&mut self) {
        while self.next_exit().await.is_some() {}
    }

    /// To those that were not waited for yet: their ids are certainly still theirs.
    fn signal_all(&self, signal: Signal) {
        for child in self.running.values() {
            // An error means that it has just ended.
            let _ = kill_process(child.pid, signal);
        }
    }
}

/// Waits until somebody listens at `address`.
async fn listens(env: &Env, address: SocketAddr) {
    while env.connect(&address.to_string(), LIVE_TIMEOUT).await.is_err() {
        env.sleep(LOOK_AGAIN).await;
    }
}

/// Opens a log to go on with it; one that has become long is put aside, in place of the one that
/// was put aside before.
fn open_log(path: &Path) -> anyhow::Result<File> {
    let open = || {
        fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
        if fs::metadata(path).is_ok_and(|log| log.len() > LOG_BYTES_MAX) {
            fs::rename(path, path.with_extension("1.txt"))?;
        }
        File::options().create(true).append(true).open(path)
    };
    open().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;
    use crate::config::Settings;

    const CONFIG: &str = "\
[[server]]
name = \"one\"
role = \"all\"
listen = \"127.0.0.1:8091\"
public_listen = \"127.0.0.1:8081\"
";

    /// Runs something in place of the server.
    fn children<'a>(env: &Env, config: &'a Config) -> Children<'a> {
        let mut children = Children::none(env, config, LogFormat::Text);
        let mut command = Command::new("sleep");
        command.arg("3600").kill_on_drop(true);
        children.add("one".to_owned(), PathBuf::new(), command).unwrap();
        children
    }

    #[tokio::test]
    async fn what_nobody_waits_for_any_more_is_not_done() {
        let config = Config::parse(Path::new("x"), CONFIG, &Settings::default()).unwrap();
        let mut children = children(&Env::production(), &config);
        let ask = || {
            let (reply, answer) = oneshot::channel();
            let (name, watcher) = ("one".to_owned(), "two".to_owned());
            (Ask { name, reason: Reason::Hung, watcher, reply }, answer)
        };
        let (asks, mut asked) = mpsc::channel(2);
        let (late, answer) = ask();
        drop(answer);
        asks.send(late).await.unwrap();
        assert!(children.asked(asked.recv().await.unwrap()).is_none());
        assert!(!children.ending.contains_key("one"), "it is left alone");
        let (in_time, _answer) = ask();
        assert!(matches!(children.asked(in_time), Some(Event::Ending { .. })));
        assert!(children.next_exit().await.unwrap().is_killed());
    }

    #[test]
    fn a_long_log_is_put_aside_once() {
        let dir = tempfile::tempdir().unwrap();
        let (path, aside) = (dir.path().join("a/log.txt"), dir.path().join("a/log.1.txt"));
        open_log(&path).unwrap().set_len(LOG_BYTES_MAX).unwrap();
        open_log(&path).unwrap();
        assert!(!aside.exists(), "it is not too long yet");
        for bytes in [LOG_BYTES_MAX + 1, LOG_BYTES_MAX + 2] {
            open_log(&path).unwrap().set_len(bytes).unwrap();
            assert_eq!(open_log(&path).unwrap().metadata().unwrap().len(), 0);
            assert_eq!(fs::metadata(&aside).unwrap().len(), bytes);
        }
    }
}
