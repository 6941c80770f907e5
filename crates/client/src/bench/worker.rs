//! One connection's loop: take the next request, see it through, count it.

use std::{io, sync::Arc, time::Duration};

use pygmy_protocol::{Env, env::Instant};

use super::{
    Server, Window,
    connection::{Broken, Connection, Reply},
    pace::Pace,
    tally::Counter,
    workload::{Drawn, Kind, Requests, Template},
};

/// A buy of which it is not known whether it was done is sent this often, with the same key.
const BUY_ATTEMPTS_MAX: u32 = 6;
/// And for this long.
const BUY_TIME_MAX: Duration = Duration::from_secs(10);
/// First pause before something is tried again; it doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// What Linux says when the process, or the machine, has as many files open as it may: no kind of
/// [`io::Error`] has a name for it.
const EMFILE: i32 = 24;
const ENFILE: i32 = 23;

pub(crate) struct Worker {
    env: Env,
    window: Arc<Window>,
    pace: Pace,
    counter: Arc<Counter>,
    requests: Requests,
    link: Link,
    /// Of the pauses after connections that could not be opened.
    pause: Duration,
}

/// The connection and where it goes.
struct Link {
    env: Env,
    servers: Arc<[Server]>,
    server: usize,
    connection: Option<Connection>,
    templates: [Template; 3],
}

/// An attempt without an answer.
enum Failure {
    NoConnection(String),
    Broken(Broken),
}

/// What has become of a request in the end.
enum End {
    Done,
    Refused(Reply),
    Failed(Failure),
}

impl Worker {
    /// The `number`-th connection: the first to the first server, and so on.
    pub(crate) fn new(
        env: &Env,
        window: &Arc<Window>,
        pace: Pace,
        counter: &Arc<Counter>,
        servers: &Arc<[Server]>,
        requests: Requests,
        number: usize,
    ) -> Worker {
        let server = number % servers.len();
        let templates = servers[server].templates(&requests);
        let servers = Arc::clone(servers);
        Worker {
            env: env.clone(),
            window: Arc::clone(window),
            pace,
            counter: Arc::clone(counter),
            requests,
            link: Link { env: env.clone(), servers, server, connection: None, templates },
            pause: PAUSE_MIN,
        }
    }

    /// Works until the run is over and the last request is answered.
    pub(crate) async fn run(mut self) {
        while let Some(due) = self.pace.next(&self.env, &self.window).await {
            let drawn = self.requests.draw();
            let end = match drawn.kind {
                Kind::Buy => self.buy(drawn).await,
                Kind::Lookup | Kind::Search => self.read(drawn).await,
            };
            if self.window.is_measured(due) {
                self.count(drawn.kind, due, end);
            }
        }
    }

    fn count(&self, kind: Kind, due: Instant, end: End) {
        match end {
            End::Done => self.counter.done(kind, self.env.now().saturating_since(due)),
            End::Refused(Reply { status, code: Some(code) }) => {
                self.counter.failed(kind, format_args!("{status} {}", code.as_str()));
            }
            End::Refused(Reply { status, code: None }) => self.counter.failed(kind, status),
            End::Failed(Failure::NoConnection(why)) => {
                self.counter.failed(kind, format_args!("no connection: {why}"));
            }
            End::Failed(Failure::Broken(why)) => self.counter.failed(kind, why),
        }
    }

    async fn read(&mut self, drawn: Drawn) -> End {
        match self.attempt(drawn).await {
            Ok(Reply { status: 200, .. }) => End::Done,
            Ok(refusal) => End::Refused(refusal),
            Err(failure) => End::Failed(failure),
        }
    }

    /// Buys, for sure if it can be: what may have been done is asked again under its key.
    async fn buy(&mut self, drawn: Drawn) -> End {
        let give_up_at = self.env.now() + BUY_TIME_MAX;
        let mut may_be_done = false;
        let mut pause = PAUSE_MIN;
        for attempt in 1.. {
            let end = match self.attempt(drawn).await {
                Ok(Reply { status: 201, .. }) => {
                    self.counter.with(|tally| tally.sales += 1);
                    return End::Done;
                }
                Ok(reply) => End::Refused(reply),
                Err(failure) => End::Failed(failure),
            };
            may_be_done |= end.may_be_done();
            let tired = attempt >= BUY_ATTEMPTS_MAX || self.env.now() >= give_up_at;
            if !end.is_worth_another() || tired {
                self.counter.with(|tally| tally.unknown += u64::from(may_be_done));
                return end;
            }
            self.counter.with(|tally| tally.buy_retries += 1);
            self.env.sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
        unreachable!("the last attempt returns")
    }

    /// Sends once. After a connection that could not be opened it is the next server's turn.
    async fn attempt(&mut self, drawn: Drawn) -> Result<Reply, Failure> {
        if self.link.connection.is_none() {
            match self.link.open().await {
                Ok(()) => {
                    self.counter.with(|tally| tally.connects += 1);
                    self.pause = PAUSE_MIN;
                }
                Err(error) => {
                    let why = obstacle(&error);
                    self.counter.with(|tally| {
                        *tally.failed_connects.entry(why.clone()).or_default() += 1;
                    });
                    self.link.next_server(&self.requests);
                    self.env.sleep(self.pause).await;
                    self.pause = (self.pause * 2).min(PAUSE_MAX);
                    return Err(Failure::NoConnection(why));
                }
            }
        }
        let reply = self.link.exchange(drawn).await;
        if self.link.connection.is_none() {
            self.counter.with(|tally| tally.broken += 1);
        }
        reply.map_err(Failure::Broken)
    }
}

/// Why a connection could not be opened.
fn obstacle(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(EMFILE | ENFILE) => "too many open files here; raise `ulimit -n`".to_owned(),
        _ => error.kind().to_string(),
    }
}

impl Link {
    async fn open(&mut self) -> io::Result<()> {
        let authority = &self.servers[self.server].authority;
        self.connection = Some(Connection::open(&self.env, authority).await?);
        Ok(())
    }

    fn next_server(&mut self, requests: &Requests) {
        self.server = (self.server + 1) % self.servers.len();
        self.templates = self.servers[self.server].templates(requests);
    }

    async fn exchange(&mut self, drawn: Drawn) -> Result<Reply, Broken> {
        let connection = self.connection.as_mut().ok_or(Broken::Closed)?;
        let reply = connection.exchange(self.templates[drawn.kind as usize].fill(drawn)).await;
        if !connection.is_open() {
            self.connection = None;
        }
        reply
    }
}

impl End {
    /// Whether a buy that came to this may be in the store. A 503 says that it is not.
    fn may_be_done(&self) -> bool {
        match self {
            End::Refused(reply) => reply.status >= 500 && reply.status != 503,
            End::Failed(Failure::Broken(_)) => true,
            End::Done | End::Failed(Failure::NoConnection(_)) => false,
        }
    }

    fn is_worth_another(&self) -> bool {
        match self {
            // Not a 429: it says that the store has too much to do already.
            End::Refused(reply) => reply.status >= 500,
            End::Failed(_) => true,
            End::Done => false,
        }
    }
}
