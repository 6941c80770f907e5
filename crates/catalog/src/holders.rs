//! Who may hold a lease: front-end processes come and go through the log.
//!
//! So every leader, also a new one, knows whom to wait for. A process registers with the first
//! session that it asks for, under a random nonce. One that is gone is taken out by the leader
//! whose own clock has seen its lease run out, in that leader's term and by nobody else; from the
//! moment that this is decided, the leader gives it neither a session nor a lease. Registering is
//! no change of the catalog: it waits for no release.

use std::{sync::Arc, time::Duration};

use pygmy_protocol::{
    IdempotencyKey,
    command::{Command, Outcome, Request},
    http::{Fatal, Shutdown},
};

use crate::{raft::Batch, replica::Shared};

/// Longest wait for a registration.
const LIMIT: Duration = Duration::from_secs(2);

/// Registers a front-end process. Gives whether it is registered now.
///
/// # Errors
/// Why the log did not take it, as far as is known.
pub(crate) async fn register(shared: &Shared, nonce: u128, name: &str) -> Result<bool, String> {
    shared.room.check()?;
    let outcome = propose(shared, Command::JoinHolder { nonce, name: name.to_owned() }).await?;
    Ok(outcome == Outcome::Holder { registered: true })
}

/// Takes out whom the gate says has gone, as long as this replica leads.
pub(crate) async fn remove_lapsed(
    shared: Arc<Shared>,
    mut shutdown: Shutdown,
) -> Result<(), Fatal> {
    loop {
        tokio::select! {
            biased;
            () = shutdown.stopped() => return Ok(()),
            () = shared.env.sleep(shared.lease) => {}
        }
        if shared.room.is_short() {
            // Nothing is decided that could not be proposed: a front end that comes back before there
            // is room again gets its session.
            continue;
        }
        let Some((term, nonces)) = shared.gate.lapsed() else { continue };
        for nonce in nonces {
            match propose(&shared, Command::RemoveHolder { nonce, term }).await {
                Ok(_) => tracing::info!(term, "a front end that has gone is waited for no more"),
                // It is in the log, and takes effect in this term or never; then the next leader sees
                // to it.
                Err(why) => tracing::debug!(why, "a front end that has gone is not taken out"),
            }
        }
    }
}

/// Proposes `command` here, and nowhere else.
async fn propose(shared: &Shared, command: Command) -> Result<Outcome, String> {
    let key = IdempotencyKey::random(&shared.env);
    let requests = vec![Request { key, command }];
    let batch = Batch { time_ms: shared.env.wall_ms(), requests };
    let written = shared.env.timeout(LIMIT, shared.raft.client_write(batch)).await;
    let written = written.map_err(|_| "a majority did not take it in time".to_owned())?;
    let written = written.map_err(|error| error.to_string())?;
    written.data.0.into_iter().next().ok_or_else(|| "there is no outcome".to_owned())
}
