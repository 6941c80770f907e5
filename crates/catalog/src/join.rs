//! A replica with a new directory asks to be let into the cluster, until it is in.
//!
//! It asks for the place of its name: of the one whose directory was lost. Whether there is such a
//! place is up to the leader ([`members`](crate::members)), and so is each step on the way. A
//! replica that belongs to no cluster yet asks as well, and is told that there is none; one with a
//! new name is told that somebody has to add it.

use std::{sync::Arc, time::Duration};

use pygmy_client::members::Members;
use pygmy_protocol::{
    http::{Fatal, Shutdown},
    members::{Candidate, MemberChange},
};

use crate::{members::is_voter, replica::Shared};

/// Between two requests.
const ASK_AGAIN: Duration = Duration::from_millis(250);

/// Asks until this replica is a voter.
pub(crate) async fn join_cluster(shared: Arc<Shared>, mut shutdown: Shutdown) -> Result<(), Fatal> {
    tokio::select! {
        biased;
        () = shutdown.stopped() => Ok(()),
        joined = ask_until_in(&shared) => joined,
    }
}

async fn ask_until_in(shared: &Shared) -> Result<(), Fatal> {
    let me = &shared.server;
    let others = shared.replicas.iter().filter(|replica| replica.name != me.name);
    let urls: Vec<_> = others.map(|replica| replica.url.clone()).collect();
    let members = Members::new(&shared.env, &urls, me.secret.clone()).map_err(Fatal)?;
    let candidate = Candidate { id: shared.id, name: me.name.clone(), url: me.url.clone() };
    let wish = MemberChange::Join(candidate);
    let mut told = String::new();
    while !is_voter(shared) {
        let said = match members.ask(&wish).await {
            Ok(progress) => progress.detail,
            Err(problem) => problem.detail.into_owned(),
        };
        if said != told {
            tracing::info!(answer = said, "asking to be let into the cluster");
            told = said;
        }
        shared.env.sleep(ASK_AGAIN).await;
    }
    Ok(())
}
