//! A replica whose data is not whole begins anew, if the others can do without it.
//!
//! What has lost a part may have acknowledged what is lost, so it never votes again: its identity
//! has ended. What is left of it is worth something only as long as the others cannot go on without
//! it. So the directory is cleared once a leader says that voters other than this one are a majority,
//! answer now, and lack nothing: they have everything that was ever acknowledged. Then the replica
//! starts as a blank one, under a new identity, and [`join`](crate::join) brings it into its old
//! place.
//!
//! Without such a leader nothing is touched and the server ends; whoever started it tries again.

use std::time::Duration;

use futures_util::{StreamExt, future, stream::FuturesUnordered};
use pygmy_client::members::Members;
use pygmy_protocol::{
    env::Env,
    http::Fatal,
    members::{MemberChange, MemberProgress},
};

use crate::{
    Config, ReplicaAddress,
    apart::Apart,
    identity,
    replica::{Data, OpenError, open},
};

/// How long a leader is looked for: an election may be under way, perhaps because this one ended.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Opens the data directory, or a blank one in its place.
pub(crate) async fn open_or_rejoin(config: &Config, env: &Env) -> Result<Data, Fatal> {
    let why = match open_apart(config, env).await {
        Ok(data) => return Ok(data),
        Err(OpenError::Other(why)) => return Err(Fatal(why)),
        Err(OpenError::Ended(why)) => why,
    };
    tracing::error!(why, "the data of this replica is not whole: it never votes again");
    // A leader that is asked gives everybody the time of a lease to answer.
    let patience = PATIENCE + 2 * Duration::from_millis(config.lease_ms);
    let Ok(answer) = env.timeout(patience, leader_without_me(config, env)).await else {
        return Err(Fatal(format!(
            "{why}; this replica may have acknowledged what is lost, so it can only join anew, and it \
             does so by itself as soon as a majority of the other replicas has a leader: start those, \
             and then this server again. Nothing was taken out of {}",
            config.dir.display()
        )));
    };
    tracing::warn!(answer, "the others have everything: this replica begins anew, and blank");
    identity::clear(env, &config.dir, &why).map_err(|error| Fatal(error.to_string()))?;
    open_apart(config, env).await.map_err(|error| Fatal(error.to_string()))
}

/// Opens the data directory on a worker: that may take minutes, while the server says that it lives.
async fn open_apart(config: &Config, env: &Env) -> Result<Data, OpenError> {
    let (config, inner) = (config.clone(), env.clone());
    let opened = Apart::start(env, "open").run(move || open(&config, &inner)).await;
    opened.unwrap_or_else(|| Err(OpenError::Other("the data was not opened".to_owned())))
}

/// What a leader says that has a majority without this replica, once there is one.
async fn leader_without_me(config: &Config, env: &Env) -> String {
    let others = config.replicas.iter().filter(|replica| replica.name != config.server.name);
    // Each on its own: one that does not answer holds up no other.
    let mut asking: FuturesUnordered<_> =
        others.map(|replica| spared_by(config, env, replica)).collect();
    match asking.next().await {
        Some(answer) => answer,
        None => future::pending().await,
    }
}

/// Asks a replica, and the leader that it names, until the answer is yes.
async fn spared_by(config: &Config, env: &Env, replica: &ReplicaAddress) -> String {
    let secret = config.server.secret.clone();
    let Ok(members) = Members::new(env, std::slice::from_ref(&replica.url), secret) else {
        return future::pending().await;
    };
    let wish = MemberChange::Spare { name: config.server.name.clone() };
    loop {
        if let Ok(MemberProgress { done: true, detail }) = members.ask(&wish).await {
            return detail;
        }
        env.sleep(LOOK_AGAIN).await;
    }
}
