//! The invalidation stream of one front end, from its opening to its end.

use std::{io, sync::Arc, time::Duration};

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

/// Serves one front end until it is gone, is late, or this replica leads no more.
///
/// `lease` is how long a front end may serve from its cache without hearing from the leader; a
/// session that has left something unacknowledged for that long, and the bound of its clock on
/// top, is closed.
pub(crate) async fn serve_stream(
    env: &Env,
    gate: &Arc<Gate>,
    connection: Connection,
    lease: Duration,
) -> io::Result<()> {
    let (reader, mut writer) = tokio::io::split(connection);
    let mut reader = tokio::io::BufReader::new(reader);
    let hello = env.timeout(HELLO_TIMEOUT, frame::read(&mut reader)).await;
    let Some(ToCatalog::Hello { name, nonce }) = hello.map_err(io::Error::other)?? else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a stream begins with a hello"));
    };
    let opened = gate.open_session(&name, nonce).map_err(io::Error::other)?;
    let (term, base) = (opened.term, opened.base);
    let _closing = Closing { gate: Arc::clone(gate), nonce, term };
    frame::write(&mut writer, &FromCatalog::Start { term, base }).await?;
    tracing::info!(front_end = name, term, base, "invalidation stream opened");
    let ended = tokio::select! {
        ended = read_acknowledgements(reader, gate, nonce) => ended,
        ended = write_messages(env, writer, opened, lease) => ended,
        () = until_late(env, gate, nonce, lease) => Err(io::Error::other("it does not acknowledge")),
    };
    let why = ended.as_ref().err().map(ToString::to_string);
    tracing::info!(front_end = name, term, why, "invalidation stream closed");
    ended
}

/// Closes the session however the stream ends.
struct Closing {
    gate: Arc<Gate>,
    nonce: u128,
    term: u64,
}

impl Drop for Closing {
    fn drop(&mut self) {
        self.gate.close_session(self.nonce, self.term);
    }
}

async fn read_acknowledgements(
    mut reader: tokio::io::BufReader<ReadHalf<Connection>>,
    gate: &Gate,
    nonce: u128,
) -> io::Result<()> {
    while let Some(message) = frame::read(&mut reader).await? {
        match message {
            ToCatalog::Acknowledge { index } => gate.acknowledged(nonce, index),
            ToCatalog::Hello { .. } => return Err(io::Error::other("a second hello")),
        }
    }
    Ok(())
}

/// Writes what waits in one go; says that the leader is alive when there is nothing.
async fn write_messages(
    env: &Env,
    mut writer: WriteHalf<Connection>,
    mut opened: Opened,
    lease: Duration,
) -> io::Result<()> {
    let mut buffer = Vec::new();
    loop {
        let message = match env.timeout(lease / 3, opened.outgoing.recv()).await {
            Ok(Some(message)) => message,
            // Closed by the gate.
            Ok(None) => return Ok(()),
            Err(_) => FromCatalog::Alive,
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

/// The clock of the front end may run slower than ours by this factor: one per cent.
const CLOCK_DRIFT_PER_MILLE: u32 = 10;

async fn until_late(env: &Env, gate: &Gate, nonce: u128, lease: Duration) {
    let limit = lease + lease * CLOCK_DRIFT_PER_MILLE / 1000;
    while !gate.is_late(nonce, limit) {
        env.sleep(lease / 10).await;
    }
}
