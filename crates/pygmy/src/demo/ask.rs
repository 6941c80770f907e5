//! How a watcher has the demo start a server again: `pygmy respawn`, the command in a demo's
//! configuration, asks the demo over a socket in its directory. One line there, one line back.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, anyhow, bail};
use pygmy_protocol::{Env, watched::Reason};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot},
};

use crate::{cli::RespawnArgs, print, runtime};

/// In the demo's directory, beside the configuration.
const SOCKET: &str = "supervisor.sock";
/// Longest line, either way.
const LINE_BYTES: u64 = 1024;
/// Longest wait for a line that is asked or answered. Shorter than a watcher waits for a command.
const ASK_TIMEOUT: Duration = Duration::from_secs(29);
/// Asked at a time; more wait.
const ASKED_MAX: usize = 16;
/// Wait after a connection that could not be taken.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What is asked.
pub(super) struct Ask {
    pub(super) name: String,
    /// Dead: start it. Otherwise: end it and start it.
    pub(super) reason: Reason,
    /// Who asks.
    pub(super) watcher: String,
    /// What became of it; closed when nobody waits for that any more.
    pub(super) reply: oneshot::Sender<Result<String, String>>,
}

/// Takes what is asked from now on.
///
/// # Errors
/// The socket cannot be made; its path may be too long.
pub(super) fn listen(env: &Env, dir: &Path) -> anyhow::Result<mpsc::Receiver<Ask>> {
    let path = dir.join(SOCKET);
    // Of a demo that was killed; one that runs would have the ports.
    let _ = fs::remove_file(&path);
    let bound = UnixListener::bind(&path).and_then(|listener| {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    });
    let listener = bound.with_context(|| format!("cannot listen at {}", path.display()))?;
    let (asks, receiver) = mpsc::channel(ASKED_MAX);
    let own = env.clone();
    env.spawn(async move {
        while !asks.is_closed() {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let (env, asks) = (own.clone(), asks.clone());
                    own.spawn(async move { env.timeout(ASK_TIMEOUT, take(stream, asks)).await });
                }
                Err(_) => own.sleep(ACCEPT_PAUSE).await,
            }
        }
    });
    Ok(receiver)
}

/// Nobody asks any more.
pub(super) fn forget(dir: &Path) {
    let _ = fs::remove_file(dir.join(SOCKET));
}

async fn take(mut stream: UnixStream, asks: mpsc::Sender<Ask>) -> anyhow::Result<()> {
    let line = read_line(&mut stream).await?;
    let (reply, answer) = oneshot::channel();
    let outcome = match parse(&line, reply) {
        Some(ask) => tokio::select! {
            outcome = put(ask, &asks, answer) => outcome,
            // Nothing more is said before the answer: who asks has gone, and the answer is dropped.
            _ = stream.read_u8() => return Ok(()),
        },
        None => Err(format!("{line:?} is not: reason, name, watcher")),
    };
    let (word, text) = match &outcome {
        Ok(text) => ("ok", text),
        Err(text) => ("error", text),
    };
    stream.write_all(format!("{word} {}\n", text.replace('\n', " ")).as_bytes()).await?;
    Ok(())
}

async fn put(
    ask: Ask,
    asks: &mpsc::Sender<Ask>,
    answer: oneshot::Receiver<Result<String, String>>,
) -> Result<String, String> {
    let stopping = || "the demo is stopping".to_owned();
    asks.send(ask).await.map_err(|_| stopping())?;
    answer.await.unwrap_or_else(|_| Err(stopping()))
}

fn parse(line: &str, reply: oneshot::Sender<Result<String, String>>) -> Option<Ask> {
    let [reason, name, watcher] = line.split(' ').collect::<Vec<_>>()[..] else { return None };
    let reasons = [Reason::Dead, Reason::Hung, Reason::Rolling];
    let reason = reasons.into_iter().find(|known| known.as_str() == reason)?;
    Some(Ask { name: name.to_owned(), reason, watcher: watcher.to_owned(), reply })
}

async fn read_line(stream: &mut UnixStream) -> anyhow::Result<String> {
    let mut line = String::new();
    BufReader::new(stream.take(LINE_BYTES)).read_line(&mut line).await?;
    match line.strip_suffix('\n') {
        Some(line) => Ok(line.to_owned()),
        None => bail!("the other side ended in the middle of a line"),
    }
}

/// `pygmy respawn`.
pub(crate) fn run(args: &RespawnArgs) -> anyhow::Result<()> {
    let env = Env::production();
    let path = args.config.parent().unwrap_or(Path::new("")).join(SOCKET);
    let asked = async {
        let asking = env.timeout(ASK_TIMEOUT, ask(args, path));
        asking.await.unwrap_or_else(|_| bail!("the demo does not answer"))
    };
    Ok(print::line(runtime::block_on(&env, asked)??)?)
}

async fn ask(args: &RespawnArgs, path: PathBuf) -> anyhow::Result<String> {
    let connected = UnixStream::connect(&path).await;
    let mut stream = connected.with_context(|| {
        format!("no demo listens at {}; start it with `pygmy demo`", path.display())
    })?;
    let RespawnArgs { reason, name, watcher, .. } = args;
    let asked = stream.write_all(format!("{reason} {name} {watcher}\n").as_bytes()).await;
    // Its text alone: a pipe that is broken here is none that has enough of our output.
    asked.map_err(|error| anyhow!("the demo has stopped listening: {error}"))?;
    let line = read_line(&mut stream).await?;
    match line.split_once(' ') {
        Some(("ok", text)) => Ok(text.to_owned()),
        Some(("error", text)) => bail!("{text}"),
        _ => bail!("the demo answers {line:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_has_gone_waits_for_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut asks = listen(&Env::production(), dir.path()).unwrap();
        let mut stream = UnixStream::connect(dir.path().join(SOCKET)).await.unwrap();
        stream.write_all(b"hung catalog-1 balancer-1\n").await.unwrap();
        let mut ask = asks.recv().await.unwrap();
        assert!(!ask.reply.is_closed());
        drop(stream);
        ask.reply.closed().await;
    }

    #[test]
    fn a_line_is_reason_name_and_watcher() {
        let parsed = |line| parse(line, oneshot::channel().0);
        let ask = parsed("hung catalog-1 balancer-1").unwrap();
        assert_eq!((ask.name.as_str(), ask.reason), ("catalog-1", Reason::Hung));
        assert_eq!(ask.watcher, "balancer-1");
        for line in ["", "dead", "dead a", "gone a b", "dead a b c", "dead  a b"] {
            assert!(parsed(line).is_none(), "{line}");
        }
    }
}
