//! The demo's servers as child processes.

use std::{
    collections::BTreeMap,
    env,
    fs::{self, File},
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, bail};
use pygmy_protocol::Env;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    process::{ChildStdin, Command},
    task::JoinSet,
};

use crate::{
    cli::LogFormat,
    config::{Config, ServerEntry},
    runtime::Signals,
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

/// All child processes, by the names of their servers.
pub(super) struct Children {
    running: BTreeMap<String, Child>,
    exits: JoinSet<Exit>,
}

struct Child {
    pid: Pid,
    /// Ends with this process, however it ends; the child stops then (`--stop-with-parent`).
    _life_line: Option<ChildStdin>,
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

impl Children {
    /// Starts every server of `config`.
    pub(super) fn start(config: &Config, log_format: LogFormat) -> anyhow::Result<Children> {
        let program = env::current_exe().context("cannot find this program")?;
        let mut children = Children { running: BTreeMap::new(), exits: JoinSet::new() };
        for server in config.servers() {
            let log = log_file(config, server);
            let output = open_log(&log)?;
            let mut command = Command::new(&program);
            command
                .args(["serve", server.role.as_str(), "--name", &server.name, "--config"])
                .arg(config.path())
                .args(["--stop-with-parent", "--log-format"])
                .arg(match log_format {
                    LogFormat::Text => "text",
                    LogFormat::Json => "json",
                })
                .stdin(Stdio::piped())
                .stdout(output.try_clone()?)
                .stderr(output)
                // Out of the terminal's group: Ctrl-C reaches the demo, which stops the servers.
                .process_group(0)
                .kill_on_drop(true);
            children
                .add(server.name.clone(), log, command)
                .with_context(|| format!("cannot start {}", server.name))?;
        }
        Ok(children)
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
    use super::*;

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
