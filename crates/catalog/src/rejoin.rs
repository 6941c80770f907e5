//! A replica whose data is not whole begins anew, if the others can do without it.
//!
//! What has lost a part may have acknowledged what is lost, so it never votes again: its identity
//! has ended. What is left of it is worth something only as long as the others cannot go on without
//! it. So the directory is cleared once a leader says that voters other than this one are a majority
//! and answer: they have everything that was ever acknowledged. Then the replica starts as a blank
//! one, under a new identity, and [`join`](crate::join) brings it into its old place.
//!
//! Without such a leader nothing is touched and the server ends; whoever started it tries again.

use std::time::Duration;

use pygmy_client::members::status_of;
use pygmy_protocol::{
    env::Env,
    http::Fatal,
    registration::{CatalogStatus, MemberStatus},
};

use crate::{
    Config, ReplicaAddress, identity,
    replica::{Data, OpenError, open},
};

/// How long a leader is looked for: an election may be under way, perhaps because this one ended.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Opens the data directory, or a blank one in its place.
pub(crate) async fn open_or_rejoin(config: &Config, env: &Env) -> Result<Data, Fatal> {
    let why = match open(config, env) {
        Ok(data) => return Ok(data),
        Err(OpenError::Other(why)) => return Err(Fatal(why)),
        Err(OpenError::Ended(why)) => why,
    };
    tracing::error!(why, "the data of this replica is not whole: it never votes again");
    let Ok(leader) = env.timeout(PATIENCE, leader_without_me(config, env)).await else {
        return Err(Fatal(format!(
            "{why}; this replica may have acknowledged what is lost, so it can only join anew, and it \
             does so by itself as soon as a majority of the other replicas has a leader: start those, \
             and then this server again. Nothing in {} was changed",
            config.dir.display()
        )));
    };
    tracing::warn!(leader, "the others have everything: this replica begins anew, and blank");
    identity::clear(env, &config.dir, &why).map_err(|error| Fatal(error.to_string()))?;
    open(config, env).map_err(|error| Fatal(error.to_string()))
}

/// The name of a leader that has a majority without this replica, once there is one.
async fn leader_without_me(config: &Config, env: &Env) -> String {
    loop {
        for replica in &config.replicas {
            if let Some(leader) = leads_without(config, env, replica).await {
                return leader;
            }
        }
        env.sleep(LOOK_AGAIN).await;
    }
}

async fn leads_without(config: &Config, env: &Env, replica: &ReplicaAddress) -> Option<String> {
    let me = &config.server.name;
    if replica.name == *me {
        return None;
    }
    let status = status_of(env, &config.server.secret, &replica.url).await.ok()?;
    has_majority_without(&status, me).then_some(status.name)
}

fn has_majority_without(status: &CatalogStatus, name: &str) -> bool {
    let voters = || status.members.iter().filter(|member| member.voter);
    let helps = |member: &&MemberStatus| member.answers && member.name != name;
    status.role == "leader" && 2 * voters().filter(helps).count() > voters().count()
}
