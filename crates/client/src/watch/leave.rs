//! A process says that it leaves.

use std::time::Duration;

use futures_util::future::join_all;
use http::Method;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use pygmy_protocol::{Env, RequestContext, http::Secret};

use super::Process;
use crate::{Call, Upstream};

/// Longest wait for a watcher that is told. One that is gone needs no goodbye; one that does not
/// hear it starts the process again.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);

/// Tells those that watch the process `name` that this one, `process`, leaves in order and is not
/// to be started again.
pub async fn leave(env: &Env, processes: &[Process], name: &str, process: &str, secret: &Secret) {
    let Some(own) = processes.iter().find(|process| process.name == name) else { return };
    let name = utf8_percent_encode(name, NON_ALPHANUMERIC);
    let target = format!("/watched/{name}/{process}");
    let watchers = processes.iter().filter(|other| other.watches(own));
    let goodbyes = watchers.filter_map(|watcher| watcher.watcher_url.as_ref()).map(|url| {
        let context = RequestContext::fresh(env, GOODBYE_TIMEOUT);
        let call = Call::new(Method::DELETE, target.clone(), context).with_secret(secret);
        async move {
            let Ok(watcher) = Upstream::remote(env, url) else { return };
            if let Err(failure) = watcher.send(&call, GOODBYE_TIMEOUT).await {
                tracing::debug!(url, %failure, "could not say goodbye");
            }
        }
    });
    join_all(goodbyes).await;
}
