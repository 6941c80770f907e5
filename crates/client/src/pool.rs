//! Connections to one server, kept for the next request.
//!
//! HTTP/1.1 without pipelining: a connection carries one request at a time. hyper gives a request
//! back when the connection closed before any of it was written, which is how a connection that
//! the server had closed in the meantime costs nothing but a second try.

use std::{
    io,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderName, Request, Response, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use pygmy_protocol::Env;
use tokio::sync::Semaphore;

use crate::{Answer, Failure};

/// Most connections to one server. More requests than that wait for one, within their deadline.
const MAX_CONNECTIONS: usize = 4096;
/// Largest answer: a page of 1000 items has about 1.3 MB at worst.
const MAX_ANSWER_BYTES: usize = 16 * 1024 * 1024;
/// Longest wait for a connection to open: servers are near.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A request that came back unsent is tried on this many more connections; the last is fresh.
const UNSENT_RETRIES: usize = 3;

/// What of an answer's headers belongs to the connection it came on (RFC 9110, 7.6.1), or is set
/// anew where the answer is passed on. Everything else stays, also what later versions may add.
const OF_THE_CONNECTION: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::CONTENT_LENGTH,
    header::DATE,
];

type Sender = http1::SendRequest<Full<Bytes>>;

pub(crate) struct Pool {
    env: Env,
    authority: String,
    idle: Mutex<Vec<Sender>>,
    connections: Semaphore,
}

impl Pool {
    pub(crate) fn new(env: &Env, authority: &str) -> Pool {
        Pool {
            env: env.clone(),
            authority: authority.to_owned(),
            idle: Mutex::default(),
            connections: Semaphore::new(MAX_CONNECTIONS),
        }
    }

    /// Sends one request and reads the whole answer. Has no deadline of its own: `handed_over`
    /// says to whoever gives up waiting whether the server may have seen the request.
    pub(crate) async fn send(
        &self,
        mut request: Request<Full<Bytes>>,
        handed_over: &AtomicBool,
    ) -> Result<Answer, Failure> {
        let _permit = self.connections.acquire().await.map_err(not_sent)?;
        for attempt in 0..=UNSENT_RETRIES {
            let mut sender = match self.take_idle().await {
                Some(sender) if attempt < UNSENT_RETRIES => sender,
                _ => self.connect().await?,
            };
            handed_over.store(true, Ordering::Relaxed);
            match sender.try_send_request(request).await {
                Ok(response) => return self.read(response, sender).await,
                Err(mut error) => match error.take_message() {
                    Some(unsent) => {
                        handed_over.store(false, Ordering::Relaxed);
                        request = unsent;
                    }
                    None => return Err(Failure::Unanswered(error.into_error().to_string())),
                },
            }
        }
        Err(not_sent("the server closes every connection at once"))
    }

    async fn read(&self, response: Response<Incoming>, sender: Sender) -> Result<Answer, Failure> {
        let (mut parts, body) = response.into_parts();
        for name in OF_THE_CONNECTION {
            parts.headers.remove(name);
        }
        let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await;
        let body = body.map_err(|e| Failure::Unanswered(e.to_string()))?.to_bytes();
        self.lock_idle().push(sender);
        Ok(Answer { status: parts.status, headers: parts.headers, body })
    }

    /// The connection that was used last: others may then idle out.
    async fn take_idle(&self) -> Option<Sender> {
        loop {
            let mut sender = self.lock_idle().pop()?;
            // Ready at once unless the server closed it.
            if sender.ready().await.is_ok() {
                return Some(sender);
            }
        }
    }

    async fn connect(&self) -> Result<Sender, Failure> {
        let connection = self.env.connect(&self.authority, CONNECT_TIMEOUT).await;
        let connection = connection.map_err(|error| {
            let why = format!("cannot connect to {}: {error}", self.authority);
            match error.kind() {
                io::ErrorKind::ConnectionRefused => Failure::Refused(why),
                _ => Failure::NotSent(why),
            }
        })?;
        let (sender, driver) =
            http1::handshake(TokioIo::new(connection)).await.map_err(not_sent)?;
        self.env.spawn(async move {
            if let Err(error) = driver.await {
                tracing::trace!(%error, "a connection to a server ended");
            }
        });
        Ok(sender)
    }

    fn lock_idle(&self) -> std::sync::MutexGuard<'_, Vec<Sender>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn not_sent(why: impl ToString) -> Failure {
    Failure::NotSent(why.to_string())
}
