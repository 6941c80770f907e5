//! The invalidation stream of one front end, from its opening to its end.

use std::{io, sync::Arc, time::Duration};

use pygmy_protocol::{
    env::{Connection, Env},
    frame,
    invalidation::{FromCatalog, ToCatalog},
    planted,
};
use tokio::{
    io::{AsyncWriteExt, BufReader, ReadHalf, WriteHalf},
    sync::{mpsc, watch},
};

use crate::{
    holders::register,
    release::{Gate, Opened},
    replica::Shared,
};

/// Longest wait for the first message of a front end.
const HELLO_TIMEOUT: Duration = Duration::from_secs(1);
/// Wait before a majority is asked again that did not follow.
const CONFIRM_AGAIN: Duration = Duration::from_millis(20);

/// Serves one front end until it is gone, is late, or this replica leads no more. A session that
/// has left something unacknowledged for the time of a lease is closed.
pub(crate) async fn serve_stream(shared: &Arc<Shared>, connection: Connection) -> io::Result<()> {
    let Shared { env, gate, lease, .. } = &**shared;
    let (reader, writer) = tokio::io::split(connection);
    let mut reader = BufReader::new(reader);
    let hello = env.timeout(HELLO_TIMEOUT, frame::read(&mut reader)).await;
    let Some(ToCatalog::Hello { name, nonce }) = hello.map_err(io::Error::other)?? else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a stream begins with a hello"));
    };
    if !gate.is_registered(nonce)
        && !register(shared, nonce, &name).await.map_err(io::Error::other)?
    {
        return Err(io::Error::other("too many front ends are registered"));
    }
    let opened = gate.open_session(nonce).map_err(io::Error::other)?;
    let (session, term, base) = (opened.session, opened.term, opened.base);
    tracing::info!(front_end = name, term, base, "invalidation stream opened");
    let (asked, asks) = watch::channel(None);
    let ended = tokio::select! {
        biased;
        ended = read_messages(reader, gate, session, asked) => ended,
        ended = write_messages(writer, opened) => ended,
        ended = confirm_renewals(shared, session, asks) => ended,
        () = until_late(env, gate, session, *lease) => Err(io::Error::other("it does not acknowledge")),
    };
    let why = ended.as_ref().err().map(ToString::to_string);
    tracing::info!(front_end = name, term, why, "invalidation stream closed");
    match ended {
        // It closes the stream by itself only after it has dropped its cache.
        Ok(()) => gate.forget_session(session),
        // It may not have noticed yet, and serve on until its lease runs out.
        Err(_) => gate.close_session(session),
    }
    ended
}

/// What the front end says. `asked` gets the number of each request for a lease.
async fn read_messages(
    mut reader: BufReader<ReadHalf<Connection>>,
    gate: &Gate,
    session: u64,
    asked: watch::Sender<Option<u64>>,
) -> io::Result<()> {
    while let Some(message) = frame::read(&mut reader).await? {
        match message {
            ToCatalog::Acknowledge { index } => gate.acknowledged(session, index),
            ToCatalog::Renew { number, wants_items } => {
                gate.renew(session, number, wants_items);
                asked.send_replace(Some(number));
            }
            ToCatalog::Hello { .. } => return Err(io::Error::other("a second hello")),
        }
    }
    Ok(())
}

/// Has a majority say, after each request for a lease, that it still follows this leader.
async fn confirm_renewals(
    shared: &Shared,
    session: u64,
    mut asks: watch::Receiver<Option<u64>>,
) -> io::Result<()> {
    loop {
        if asks.changed().await.is_err() {
            // The reader has ended, and with it the session.
            return std::future::pending().await;
        }
        let Some(number) = *asks.borrow_and_update() else { continue };
        if planted!(RenewalWithoutRound) {
            let term = shared.gate.progress().leads.unwrap_or_default();
            shared.gate.confirm(session, number, term);
            continue;
        }
        // Without a majority there is no lease. A later round is as good, until the front end asks
        // again.
        while !asks.has_changed().unwrap_or(true) {
            if let Ok(fresh) = shared.rounds.join().await
                && let Some(term) = fresh.led_in
            {
                shared.gate.confirm(session, number, term);
                break;
            }
            shared.env.sleep(CONFIRM_AGAIN).await;
        }
    }
}

/// Writes what waits in one go.
async fn write_messages(mut writer: WriteHalf<Connection>, mut opened: Opened) -> io::Result<()> {
    let Opened { term, base, .. } = opened;
    frame::write(&mut writer, &FromCatalog::Start { term, base }).await?;
    let mut buffer = Vec::new();
    while let Some(message) = opened.outgoing.recv().await {
        buffer.clear();
        frame::encode(&message, &mut buffer)?;
        drain(&mut opened.outgoing, &mut buffer)?;
        writer.write_all(&buffer).await?;
        writer.flush().await?;
    }
    Err(io::Error::other("the leader has closed it"))
}

fn drain(outgoing: &mut mpsc::Receiver<FromCatalog>, buffer: &mut Vec<u8>) -> io::Result<()> {
    while let Ok(message) = outgoing.try_recv() {
        frame::encode(&message, buffer)?;
    }
    Ok(())
}

async fn until_late(env: &Env, gate: &Gate, session: u64, lease: Duration) {
    while !gate.is_late(session) {
        env.sleep(lease / 10).await;
    }
}
