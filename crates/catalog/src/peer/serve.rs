//! The answering side of a link.

use std::{io, pin::Pin, task::Poll};

use futures_util::{FutureExt, StreamExt, poll, stream::FuturesUnordered};
use pygmy_protocol::{
    env::{BoxFuture, Connection, Env},
    frame,
};
use tokio::io::{AsyncWriteExt, ReadHalf};

use super::message::{Hello, Message, Numbered, Reply};

/// Calls of one connection that are answered at a time; beyond it the connection is not read.
const CALLS_UNDER_WAY: usize = 256;

/// What answers the calls of one connection.
pub(crate) trait Answering: Send + Sync + 'static {
    /// The Raft id that calls must be meant for.
    fn id(&self) -> u64;

    /// Answers one call. The future is polled once before the next call is read, so that Raft
    /// sees them in the order in which they came.
    fn answer(&self, message: Message) -> BoxFuture<'static, Reply>;
}

type UnderWay = FuturesUnordered<BoxFuture<'static, Numbered<Reply>>>;

/// Answers the calls on `connection` until it ends.
pub(crate) async fn serve_peer(
    env: &Env,
    connection: Connection,
    answering: &dyn Answering,
) -> io::Result<()> {
    let (reader, mut writer) = tokio::io::split(connection);
    let mut reader = tokio::io::BufReader::with_capacity(64 * 1024, reader);
    let Some(hello) = frame::read::<Hello>(&mut reader).await? else { return Ok(()) };
    if hello.to != answering.id() {
        let why = format!("replica {} asks for {}, which is not here", hello.from, hello.to);
        return Err(io::Error::new(io::ErrorKind::NotFound, why));
    }
    // Reading a frame cannot be interrupted without losing its beginning, so a task does it.
    let (calls, mut arriving) = tokio::sync::mpsc::channel(CALLS_UNDER_WAY);
    let reading = env.spawn(read_calls(reader, calls));
    let mut under_way = UnderWay::new();
    let mut buffer = Vec::new();
    loop {
        tokio::select! {
            biased;
            Some(reply) = under_way.next(), if !under_way.is_empty() => {
                buffer.clear();
                frame::encode(&reply, &mut buffer)?;
                // Whatever else is ready goes in the same write.
                while let Some(Some(reply)) = under_way.next().now_or_never() {
                    frame::encode(&reply, &mut buffer)?;
                }
                writer.write_all(&buffer).await?;
                writer.flush().await?;
            }
            call = arriving.recv(), if under_way.len() < CALLS_UNDER_WAY => match call {
                Some(call) => begin(answering, call, &mut under_way).await,
                None => break,
            },
        }
    }
    reading.await.map_err(io::Error::other)?
}

async fn read_calls(
    mut reader: tokio::io::BufReader<ReadHalf<Connection>>,
    calls: tokio::sync::mpsc::Sender<Numbered<Message>>,
) -> io::Result<()> {
    while let Some(call) = frame::read(&mut reader).await? {
        if calls.send(call).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// Polls the answer once, which hands the call to Raft. Unconstrained, because a cooperative
/// yield here would let the next call overtake this one.
async fn begin(answering: &dyn Answering, call: Numbered<Message>, under_way: &mut UnderWay) {
    let number = call.number;
    let mut answer = answering.answer(call.message);
    let first: Pin<&mut _> = answer.as_mut();
    match poll!(tokio::task::unconstrained(first)) {
        Poll::Ready(message) => {
            under_way.push(Box::pin(std::future::ready(Numbered { number, message })));
        }
        Poll::Pending => {
            under_way.push(Box::pin(answer.map(move |message| Numbered { number, message })));
        }
    }
}
