//! The environment of a real machine. The only module that may ask the operating system for
//! time, randomness, sockets, files and threads.
#![allow(clippy::disallowed_methods, reason = "this module is what the ban points to")]

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    thread,
    time::{Duration, SystemTime},
};

use rustix::{
    fs::{FallocateFlags, fallocate, statvfs},
    io::retry_on_intr,
    net::sockopt,
    time::{
        ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec,
        clock_gettime, timerfd_create, timerfd_settime,
    },
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, Interest, unix::AsyncFd},
    net::{TcpListener, TcpSocket, TcpStream},
    process::Command,
};

use super::{
    BoxFuture, Clock, Connection, Ended, Env, File, Files, Instant, Listener, LockGuard, Network,
    Processes, Random, Wake, Workers,
};

pub(super) fn environment() -> Env {
    Env {
        clock: Arc::new(MachineClock),
        network: Arc::new(MachineNetwork),
        files: Arc::new(MachineFiles),
        random: Arc::new(MachineRandom::default()),
        workers: Arc::new(Threads),
        processes: Arc::new(MachineProcesses),
        governor: None,
    }
}

struct MachineClock;

impl Clock for MachineClock {
    fn now(&self) -> Instant {
        let t = clock_gettime(ClockId::Boottime);
        // The boot clock starts at zero and only advances: both parts are non-negative.
        Instant::from_origin(Duration::new(t.tv_sec as u64, t.tv_nsec as u32))
    }

    fn wall_ms(&self) -> u64 {
        SystemTime::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_millis() as u64)
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }

    fn sleep_precisely(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            // No descriptor left, for example.
            if kernel_timer(duration).await.is_err() {
                tokio::time::sleep(duration).await;
            }
        })
    }
}

/// Waits for a timer of the kernel: tokio's are whole milliseconds.
#[allow(deprecated, reason = "sound for an OwnedFd; what replaces it is unsafe")]
async fn kernel_timer(duration: Duration) -> io::Result<()> {
    let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
    let timer = timerfd_create(TimerfdClockId::Boottime, flags)?;
    // Zero would never ring.
    let value = duration.max(Duration::from_nanos(1)).try_into().map_err(io::Error::other)?;
    let once = Itimerspec { it_interval: Timespec::default(), it_value: value };
    timerfd_settime(&timer, TimerfdTimerFlags::empty(), &once)?;
    AsyncFd::with_interest(timer, Interest::READABLE)?.readable().await.map(drop)
}

/// The generator of the operating system, asked for many bytes at a time: every request wants a
/// few, and asking costs more than they do. Each byte is given out once.
#[derive(Default)]
struct MachineRandom(Mutex<Vec<u8>>);

/// What is asked for at a time. More than that is never wanted at once.
const RANDOM_BYTES: usize = 4096;

impl Random for MachineRandom {
    fn fill(&self, bytes: &mut [u8]) {
        let mut stock = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for bytes in bytes.chunks_mut(RANDOM_BYTES) {
            if stock.len() < bytes.len() {
                stock.resize(RANDOM_BYTES, 0);
                ask_for_random(&mut stock);
            }
            let left = stock.len() - bytes.len();
            bytes.copy_from_slice(&stock[left..]);
            stock[left..].fill(0);
            stock.truncate(left);
        }
    }
}

fn ask_for_random(bytes: &mut [u8]) {
    let mut filled = 0;
    while filled < bytes.len() {
        let flags = rustix::rand::GetRandomFlags::empty();
        match rustix::rand::getrandom(&mut bytes[filled..], flags) {
            Ok(n) => filled += n,
            Err(rustix::io::Errno::INTR) => {}
            // Linux has had the call since 3.17; without randomness keys would collide.
            Err(e) => panic!("the operating system gives no random numbers: {e}"),
        }
    }
}

struct MachineNetwork;

impl Network for MachineNetwork {
    fn listen(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn Listener>>> {
        Box::pin(async move {
            let socket = match address {
                SocketAddr::V4(_) => TcpSocket::new_v4()?,
                SocketAddr::V6(_) => TcpSocket::new_v6()?,
            };
            // A port of a server that has just ended can be used at once.
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            Ok(Box::new(MachineListener(socket.listen(BACKLOG)?)) as Box<dyn Listener>)
        })
    }

    fn connect<'a>(&'a self, authority: &'a str) -> BoxFuture<'a, io::Result<Connection>> {
        Box::pin(async move {
            let stream = TcpStream::connect(authority).await?;
            tune(&stream)?;
            Ok(Box::new(stream) as Connection)
        })
    }
}

/// Connections that wait to be taken; the kernel has a bound of its own (`net.core.somaxconn`, 4,096
/// by default). Over it they are lost without a word and come back after a second, three, seven:
/// the first seconds of a sale.
const BACKLOG: u32 = 65_535;

/// A peer that is silent for this long is asked whether it is still there.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
/// A peer that takes nothing of what is to be sent for this long is given up, whether it is gone
/// or only does not read.
const UNSENT_MS_MAX: u32 = 20_000;

fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_IDLE / 2)?;
    sockopt::set_tcp_user_timeout(stream, UNSENT_MS_MAX)?;
    Ok(())
}

struct MachineListener(TcpListener);

impl Listener for MachineListener {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<(Connection, SocketAddr)>> {
        Box::pin(async move {
            let (stream, peer) = self.0.accept().await?;
            tune(&stream)?;
            Ok((Box::new(stream) as Connection, peer))
        })
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

struct MachineFiles;

impl Files for MachineFiles {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        fs::exists(path)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(MachineFile(fs::File::options().read(true).write(true).open(path)?)))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let options =
            fs::File::options().read(true).write(true).create(true).truncate(true).open(path)?;
        Ok(Arc::new(MachineFile(options)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        fs::File::open(dir)?.sync_all()
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        let stat = statvfs(dir)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn LockGuard>> {
        let file =
            fs::File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Box::new(MachineLock(file))),
            Err(fs::TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(fs::TryLockError::Error(e)) => Err(e),
        }
    }

    fn database_path(&self, path: &Path) -> PathBuf {
        path.to_owned()
    }
}

/// The lock ends when the file is closed.
struct MachineLock(#[allow(dead_code, reason = "held, not read")] fs::File);

impl LockGuard for MachineLock {}

struct MachineFile(fs::File);

impl File for MachineFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buffer, offset)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        match retry_on_intr(|| fallocate(&self.0, FallocateFlags::empty(), 0, len)) {
            Ok(()) => Ok(()),
            // Some file systems cannot reserve; zeros written later cost speed, not safety.
            Err(rustix::io::Errno::OPNOTSUPP) => self.0.set_len(len.max(self.len()?)),
            Err(e) => Err(e.into()),
        }
    }
}

struct Threads;

const IDLE: u8 = 0;
const WOKEN: u8 = 1;
const STOPPED: u8 = 2;

impl Workers for Threads {
    fn start(&self, name: &str, mut work: Box<dyn FnMut() + Send>) -> Box<dyn Wake> {
        let state = Arc::new(AtomicU8::new(IDLE));
        let shared = Arc::clone(&state);
        let body = move || {
            loop {
                match shared.compare_exchange(WOKEN, IDLE, Ordering::AcqRel, Ordering::Acquire) {
                    Ok(_) => work(),
                    Err(STOPPED) => return work(),
                    Err(_) => thread::park(),
                }
            }
        };
        // Linux shows 15 characters of a thread's name.
        let thread = thread::Builder::new().name(name.chars().take(15).collect()).spawn(body);
        let thread = match thread {
            Ok(join) => join.thread().clone(),
            // A server without its workers cannot do anything: stop while nothing has begun.
            Err(e) => panic!("cannot start the thread {name}: {e}"),
        };
        Box::new(ThreadWake { state, thread })
    }
}

struct ThreadWake {
    state: Arc<AtomicU8>,
    thread: thread::Thread,
}

impl Wake for ThreadWake {
    fn wake(&self) {
        if self.state.compare_exchange(IDLE, WOKEN, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            self.thread.unpark();
        }
    }
}

impl Drop for ThreadWake {
    fn drop(&mut self) {
        self.state.store(STOPPED, Ordering::Release);
        self.thread.unpark();
    }
}

struct MachineProcesses;

/// Most that is kept of each stream of a program's output; the rest is read and dropped.
const OUTPUT_BYTES: usize = 4096;
/// Time for the rest of the output after the end. A program that was left running may hold the
/// streams open for good.
const OUTPUT_REST: Duration = Duration::from_millis(100);

impl Processes for MachineProcesses {
    fn run<'a>(&'a self, command: &'a [String]) -> BoxFuture<'a, io::Result<Ended>> {
        Box::pin(async move {
            let (program, arguments) = command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
            let mut child = Command::new(program)
                .args(arguments)
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                // Out of the terminal's group: Ctrl-C is for the server.
                .process_group(0)
                .kill_on_drop(true)
                .spawn()?;
            let (stdout, stderr) = (Mutex::default(), Mutex::default());
            let streams = (child.stdout.take(), child.stderr.take());
            let reading =
                async { tokio::join!(drain(streams.0, &stdout), drain(streams.1, &stderr)) };
            tokio::pin!(reading);
            let status = tokio::select! {
                status = child.wait() => {
                    let _ = tokio::time::timeout(OUTPUT_REST, reading).await;
                    status?
                }
                _ = &mut reading => child.wait().await?,
            };
            let text = |bytes: &Mutex<Vec<u8>>| {
                let bytes = bytes.lock().unwrap_or_else(PoisonError::into_inner);
                String::from_utf8_lossy(&bytes).trim().to_owned()
            };
            let output = [text(&stdout), text(&stderr)].join("\n").trim().to_owned();
            Ok(Ended { success: status.success(), how: status.to_string(), output })
        })
    }
}

async fn drain(stream: Option<impl AsyncRead + Unpin>, kept: &Mutex<Vec<u8>>) {
    let Some(mut stream) = stream else { return };
    let mut buffer = [0; 1024];
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        let room = OUTPUT_BYTES - kept.len();
        kept.extend_from_slice(&buffer[..read.min(room)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_precise_sleep_is_never_too_short() {
        let env = environment();
        for micros in [0, 1, 100, 1_500] {
            let duration = Duration::from_micros(micros);
            let from = env.now();
            env.sleep_precisely(duration).await;
            assert!(env.now().saturating_since(from) >= duration, "{micros} us");
        }
    }

    async fn run(script: &str) -> Ended {
        let command = ["sh", "-c", script].map(str::to_owned);
        environment().processes.run(&command).await.unwrap()
    }

    #[tokio::test]
    async fn a_program_says_how_it_ended_and_what_it_wrote() {
        let ended = run("echo out; echo err >&2; exit 3").await;
        assert_eq!(ended.output, "out\nerr");
        assert_eq!((ended.success, ended.how.as_str()), (false, "exit status: 3"));
        let much = run("yes | head -c 100000").await;
        assert!(much.success && much.output.len() <= OUTPUT_BYTES, "the rest was dropped");
    }

    #[tokio::test]
    async fn what_a_program_leaves_running_is_not_waited_for() {
        let from = environment().now();
        assert_eq!(run("sleep 60 & echo $!").await.how, "exit status: 0");
        assert!(environment().now().saturating_since(from) < Duration::from_secs(30));
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_an_error() {
        let command = ["/no/such/program".to_owned()];
        let error = environment().processes.run(&command).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
