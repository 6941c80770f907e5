//! The network between hosts: ordered byte streams with delays, which can be held up, broken, and
//! cut in one direction.
//!
//! It behaves as TCP does. What is sent while a link is cut arrives when it heals, unless the
//! connection was broken meanwhile; a host that crashes leaves its peers with a reset, which they
//! notice as soon as the link lets it through.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use pygmy_protocol::env::{BoxFuture, Connection, Listener, Network, Random};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::mpsc,
    time::{Instant, Sleep},
};

use crate::rng::Rng;

/// Bytes under way in one direction of a connection.
const WINDOW_BYTES: usize = 256 * 1024;
/// How often a held-up connection looks whether its link has healed.
const HEAL_CHECK: Duration = Duration::from_millis(5);
/// Connections that wait to be taken.
const BACKLOG: usize = 1024;

/// The whole network.
#[derive(Clone)]
pub(crate) struct Wires(Arc<Mutex<Inner>>);

struct Inner {
    rng: Rng,
    listeners: BTreeMap<SocketAddr, mpsc::Sender<(SimStream, SocketAddr)>>,
    /// Directions that let nothing through.
    cut: BTreeSet<(IpAddr, IpAddr)>,
    /// Directions that let nothing through every other time, and how long each time is.
    flapping: BTreeMap<(IpAddr, IpAddr), Duration>,
    begun: Instant,
    /// Longest usual delay in one direction.
    delay_us_max: u64,
    pipes: Vec<(IpAddr, IpAddr, Arc<Pipe>)>,
    next_port: u16,
}

impl Wires {
    pub(crate) fn new(rng: Rng) -> Wires {
        Wires(Arc::new(Mutex::new(Inner {
            rng,
            listeners: BTreeMap::new(),
            cut: BTreeSet::new(),
            flapping: BTreeMap::new(),
            begun: Instant::now(),
            delay_us_max: 500,
            pipes: Vec::new(),
            next_port: 40_000,
        })))
    }

    /// Cuts one direction.
    pub(crate) fn cut(&self, from: IpAddr, to: IpAddr) {
        self.lock().cut.insert((from, to));
    }

    /// Cuts both directions.
    pub(crate) fn cut_pair(&self, a: IpAddr, b: IpAddr) {
        self.lock().cut.extend([(a, b), (b, a)]);
    }

    /// Lets both directions through again.
    pub(crate) fn mend_pair(&self, a: IpAddr, b: IpAddr) {
        let mut inner = self.lock();
        [(a, b), (b, a)].iter().for_each(|link| {
            inner.cut.remove(link);
        });
    }

    /// Cuts one direction and lets it go again and again, each for `period`.
    pub(crate) fn flap(&self, from: IpAddr, to: IpAddr, period: Duration) {
        self.lock().flapping.insert((from, to), period);
    }

    /// Holds up what is and will be sent on the connections that there are now in one direction.
    pub(crate) fn stall(&self, from: IpAddr, to: IpAddr, how_long: Duration) {
        let until = Instant::now() + how_long;
        let inner = self.lock();
        let stalled = inner.pipes.iter().filter(|(f, t, _)| (*f, *t) == (from, to));
        stalled.for_each(|(.., pipe)| pipe.lock().stalled_until = Some(until));
    }

    /// Heals everything.
    pub(crate) fn heal(&self) {
        let mut inner = self.lock();
        inner.cut.clear();
        inner.flapping.clear();
        inner.delay_us_max = 500;
        for (.., pipe) in &inner.pipes {
            let mut state = pipe.lock();
            if state.stalled_until.take().is_some() {
                state.wake();
            }
        }
    }

    /// Makes every message slower.
    pub(crate) fn set_delay(&self, delay_us_max: u64) {
        self.lock().delay_us_max = delay_us_max;
    }

    /// Breaks every connection between two hosts.
    pub(crate) fn break_between(&self, a: IpAddr, b: IpAddr) {
        let inner = self.lock();
        let between = |from: IpAddr, to: IpAddr| (from, to) == (a, b) || (from, to) == (b, a);
        inner
            .pipes
            .iter()
            .filter(|(from, to, _)| between(*from, *to))
            .for_each(|(.., p)| p.reset());
    }

    /// A host is gone, and its addresses are free. If its power is gone, too, nobody tells its
    /// peers; otherwise the system ends its connections when the process is dropped, or resets
    /// them.
    pub(crate) fn host_gone(&self, host: IpAddr, silently: bool, with_reset: bool) {
        let mut inner = self.lock();
        inner.listeners.retain(|address, _| address.ip() != host);
        for (.., pipe) in inner.pipes.iter().filter(|(f, t, _)| *f == host || *t == host) {
            if silently {
                pipe.lock().silent = true;
            } else if with_reset {
                pipe.reset();
            }
        }
        inner.pipes.retain(|(f, t, _)| *f != host && *t != host);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_cut(&self, from: IpAddr, to: IpAddr) -> bool {
        let inner = self.lock();
        let link = (from, to);
        let is_off = |period: &Duration| {
            (inner.begun.elapsed().as_micros() / period.as_micros()).is_multiple_of(2)
        };
        inner.cut.contains(&link) || inner.flapping.get(&link).is_some_and(is_off)
    }

    fn delay(&self) -> Duration {
        let inner = self.lock();
        let usual = 50 + inner.rng.below(inner.delay_us_max);
        // Now and then one is much later than the others.
        let late = if inner.rng.percent(1) { 10 } else { 1 };
        Duration::from_micros(usual * late)
    }
}

/// The network as one host sees it.
pub(crate) struct HostNetwork {
    pub(crate) wires: Wires,
    pub(crate) address: IpAddr,
}

impl Network for HostNetwork {
    fn listen(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn Listener>>> {
        Box::pin(async move {
            let (sender, receiver) = mpsc::channel(BACKLOG);
            let mut inner = self.wires.lock();
            if inner.listeners.get(&address).is_some_and(|other| !other.is_closed()) {
                return Err(io::ErrorKind::AddrInUse.into());
            }
            inner.listeners.insert(address, sender);
            Ok(Box::new(SimListener { address, receiver }) as Box<dyn Listener>)
        })
    }

    fn connect<'a>(&'a self, authority: &'a str) -> BoxFuture<'a, io::Result<Connection>> {
        Box::pin(async move {
            let to: SocketAddr = authority.parse().map_err(io::Error::other)?;
            let (here, there) = (self.address, to.ip());
            // The handshake goes there and back.
            for (from, to) in [(here, there), (there, here)] {
                sleep(self.wires.delay()).await;
                while self.wires.is_cut(from, to) {
                    sleep(HEAL_CHECK).await;
                }
            }
            let listener = self.wires.lock().listeners.get(&to).cloned();
            let listener = listener.ok_or(io::ErrorKind::ConnectionRefused)?;
            let (mine, theirs, from) = self.wires.pair(here, there);
            match listener.try_send((theirs, from)) {
                Ok(()) => Ok(Box::new(mine) as Connection),
                Err(_) => Err(io::ErrorKind::ConnectionRefused.into()),
            }
        })
    }
}

impl Wires {
    fn pair(&self, here: IpAddr, there: IpAddr) -> (SimStream, SimStream, SocketAddr) {
        let (out, back) = (Arc::new(Pipe::default()), Arc::new(Pipe::default()));
        let mut inner = self.lock();
        inner.next_port = 40_000 + (inner.next_port - 39_999) % 20_000;
        let from = SocketAddr::new(here, inner.next_port);
        inner.pipes.retain(|(.., pipe)| !pipe.is_over());
        inner.pipes.push((here, there, Arc::clone(&out)));
        inner.pipes.push((there, here, Arc::clone(&back)));
        drop(inner);
        let end = |reads: &Arc<Pipe>, writes: &Arc<Pipe>, me, other| SimStream {
            wires: self.clone(),
            reads: Arc::clone(reads),
            writes: Arc::clone(writes),
            me,
            other,
            waiting: None,
        };
        (end(&back, &out, here, there), end(&out, &back, there, here), from)
    }
}

struct SimListener {
    address: SocketAddr,
    receiver: mpsc::Receiver<(SimStream, SocketAddr)>,
}

impl Listener for SimListener {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<(Connection, SocketAddr)>> {
        Box::pin(async move {
            match self.receiver.recv().await {
                Some((stream, from)) => Ok((Box::new(stream) as Connection, from)),
                // The host is gone, and this task with it.
                None => std::future::pending().await,
            }
        })
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

/// One direction of a connection.
#[derive(Default)]
struct Pipe {
    state: Mutex<PipeState>,
    over: AtomicBool,
}

#[derive(Default)]
struct PipeState {
    segments: VecDeque<(Instant, VecDeque<u8>)>,
    bytes: usize,
    /// The writer has closed it: the reader sees the end after the last segment.
    closed: bool,
    /// Nobody reads any more.
    abandoned: bool,
    reset: bool,
    /// Nothing comes through any more, and nobody says so.
    silent: bool,
    /// Everything that is read comes after this.
    stalled_until: Option<Instant>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Pipe {
    fn lock(&self) -> MutexGuard<'_, PipeState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    fn reset(&self) {
        let mut state = self.lock();
        state.reset = true;
        state.wake();
    }
}

impl PipeState {
    fn wake(&mut self) {
        self.reader.take().into_iter().chain(self.writer.take()).for_each(Waker::wake);
    }
}

/// One end of a connection.
pub(crate) struct SimStream {
    wires: Wires,
    reads: Arc<Pipe>,
    writes: Arc<Pipe>,
    me: IpAddr,
    other: IpAddr,
    /// Until what was sent arrives, or the link may have healed.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl SimStream {
    /// When the next thing can be seen, if there is one; `None` while there is nothing.
    fn due(&self, state: &PipeState) -> Option<Instant> {
        if state.silent {
            return None;
        }
        let over = state.closed || state.reset;
        let arrival = match state.segments.front() {
            Some((at, _)) => *at,
            None if over => Instant::now(),
            None => return None,
        };
        let arrival = state.stalled_until.map_or(arrival, |until| arrival.max(until));
        let cut = self.wires.is_cut(self.other, self.me);
        Some(if cut { arrival.max(Instant::now() + HEAL_CHECK) } else { arrival })
    }
}

impl AsyncRead for SimStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let pipe = Arc::clone(&self.reads);
            let mut state = pipe.lock();
            let Some(due) = self.due(&state) else {
                state.reader = Some(context.waker().clone());
                return Poll::Pending;
            };
            if due > Instant::now() {
                state.reader = Some(context.waker().clone());
                drop(state);
                let mut sleep = Box::pin(tokio::time::sleep_until(due));
                if sleep.as_mut().poll(context).is_pending() {
                    self.waiting = Some(sleep);
                    return Poll::Pending;
                }
                continue;
            }
            if state.reset {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            let Some((_, segment)) = state.segments.front_mut() else {
                return Poll::Ready(Ok(()));
            };
            let n = segment.len().min(buffer.remaining());
            for byte in segment.drain(..n) {
                buffer.put_slice(&[byte]);
            }
            if segment.is_empty() {
                state.segments.pop_front();
            }
            state.bytes -= n;
            if let Some(writer) = state.writer.take() {
                writer.wake();
            }
            return Poll::Ready(Ok(()));
        }
    }
}

impl AsyncWrite for SimStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let delay = self.wires.delay();
        let mut state = self.writes.lock();
        if !state.silent && (state.reset || state.abandoned) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if state.bytes >= WINDOW_BYTES {
            state.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        let n = bytes.len().min(WINDOW_BYTES - state.bytes);
        // In order, however late the one before is.
        let earliest = state.segments.back().map_or(Instant::now(), |(at, _)| *at);
        let arrival = earliest.max(Instant::now() + delay);
        state.segments.push_back((arrival, bytes[..n].iter().copied().collect()));
        state.bytes += n;
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.writes.lock();
        state.closed = true;
        state.wake();
        Poll::Ready(Ok(()))
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        for (pipe, is_mine) in [(&self.writes, true), (&self.reads, false)] {
            let mut state = pipe.lock();
            state.closed |= is_mine;
            state.abandoned |= !is_mine;
            state.wake();
            if state.closed && state.abandoned {
                pipe.over.store(true, Ordering::Relaxed);
            }
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "the network has no clock of a host")]
async fn sleep(duration: Duration) {
    tokio::time::sleep(duration).await;
}
