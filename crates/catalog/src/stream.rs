//! The invalidation stream of one front end, from its opening to its end.

use std::{io, time::Duration};

use pygmy_protocol::{
    env::{Connection, Env},
    frame,
    invalidation::{FromCatalog, ToCatalog},
};
use tokio::{
    io::{AsyncWriteExt, ReadHalf, WriteHalf},
    sync::mpsc,
};

use crate::release::{Gate, Opened};

/// Longest wait for the first message of a front end.
const HELLO_TIMEOUT: Duration = Duration::from_secs(1);

/// The clock of the front end may run slower than ours by this factor: one per cent.
const CLOCK_DRIFT_PER_MILLE: u32 = 10;

/// Serves one front end until it is gone, is late, or this replica leads no more.
///
/// `lease` is how long a front end may serve from its cache without hearing from the leader. A
/// session that has left something unacknowledged for that long, by whichever clock is slower, is
/// closed.
pub(crate) async fn serve_stream(
    env: &Env,
    gate: &Gate,
    connection: Connection,
    lease: Duration,
) -> io::Result<()> {
    let (reader, writer) = tokio::io::split(connection);
    let mut reader = tokio::io::BufReader::new(reader);
    let hello = env.timeout(HELLO_TIMEOUT, frame::read(&mut reader)).await;
    let Some(ToCatalog::Hello { name, nonce }) = hello.map_err(io::Error::other)?? else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a stream begins with a hello"));
    };
    let opened = gate.open_session(&name, nonce).map_err(io::Error::other)?;
    let (session, term, base) = (opened.session, opened.term, opened.base);
    tracing::info!(front_end = name, term, base, "invalidation stream opened");
    let limit = lease + lease * CLOCK_DRIFT_PER_MILLE / 1000;
    let ended = tokio::select! {
        biased;
        ended = read_acknowledgements(reader, gate, session) => ended,
        ended = write_messages(env, gate, writer, opened, lease) => ended,
        () = until_late(env, gate, session, limit) => Err(io::Error::other("it does not acknowledge")),
    };
    let why = ended.as_ref().err().map(ToString::to_string);
    tracing::info!(front_end = name, term, why, "invalidation stream closed");
    // It closes the stream by itself only after it has dropped its cache. Otherwise it may not
    // have noticed yet, and serve on until it has heard nothing for the time of the lease.
    if ended.is_err() {
        gate.close_session(session);
        env.sleep(limit).await;
    }
    gate.forget_session(session);
    ended
}

async fn read_acknowledgements(
    mut reader: tokio::io::BufReader<ReadHalf<Connection>>,
    gate: &Gate,
    session: u64,
) -> io::Result<()> {
    while let Some(message) = frame::read(&mut reader).await? {
        match message {
            ToCatalog::Acknowledge { index } => gate.acknowledged(session, index),
            ToCatalog::Hello { .. } => return Err(io::Error::other("a second hello")),
        }
    }
    Ok(())
}

/// Writes what waits in one go; says that the leader is alive when there is nothing, and a
/// majority agrees.
async fn write_messages(
    env: &Env,
    gate: &Gate,
    mut writer: WriteHalf<Connection>,
    mut opened: Opened,
    lease: Duration,
) -> io::Result<()> {
    let Opened { term, base, .. } = opened;
    frame::write(&mut writer, &FromCatalog::Start { term, base }).await?;
    let mut buffer = Vec::new();
    loop {
        let message = match env.timeout(lease / 3, opened.outgoing.recv()).await {
            Ok(Some(message)) => message,
            Ok(None) => return Err(io::Error::other("the leader has closed it")),
            Err(_) if gate.has_quorum() => FromCatalog::Alive,
            Err(_) => continue,
        };
        buffer.clear();
        frame::encode(&message, &mut buffer)?;
        drain(&mut opened.outgoing, &mut buffer)?;
        writer.write_all(&buffer).await?;
        writer.flush().await?;
    }
}

fn drain(outgoing: &mut mpsc::Receiver<FromCatalog>, buffer: &mut Vec<u8>) -> io::Result<()> {
    while let Ok(message) = outgoing.try_recv() {
        frame::encode(&message, buffer)?;
    }
    Ok(())
}

async fn until_late(env: &Env, gate: &Gate, session: u64, limit: Duration) {
    while !gate.is_late(session, limit) {
        env.sleep(limit / 10).await;
    }
}
