//! Asking the catalog to change its membership: what a new replica, and the operator, do.

use std::{sync::Arc, time::Duration};

use http::Method;
use pygmy_protocol::{
    Env, IdempotencyKey, Problem, RequestContext,
    http::Secret,
    invalidation::LEADER_URL,
    members::{MemberChange, MemberProgress, PATH},
    registration::CatalogStatus,
};

use crate::{Answer, Call, Upstream};

/// Longest wait for one replica. One step of a change is done within it.
const LIMIT: Duration = Duration::from_secs(8);
/// Longest wait for a status, which takes no time.
const STATUS_LIMIT: Duration = Duration::from_secs(2);

/// The catalog replicas of a cluster, one of which leads.
pub struct Members {
    env: Env,
    secret: Secret,
    replicas: Vec<Arc<Upstream>>,
}

impl Members {
    /// The replicas at `urls`, as many as are known.
    ///
    /// # Errors
    /// A sentence that names the URL that is none.
    pub fn new(env: &Env, urls: &[String], secret: Secret) -> Result<Members, String> {
        let replicas = urls.iter().map(|url| Upstream::remote(env, url).map(Arc::new));
        Ok(Members { env: env.clone(), secret, replicas: replicas.collect::<Result<_, _>>()? })
    }

    /// Asks the leader to do one step towards `change`.
    ///
    /// # Errors
    /// Why not. `unavailable` and `outcome_unknown` pass: the same may be asked again.
    pub async fn ask(&self, change: &MemberChange) -> Result<MemberProgress, Problem> {
        let mut problem = Problem::unavailable("no catalog server is known");
        for replica in &self.replicas {
            match self.ask_one(replica, change).await {
                Ok(answer) if answer.status.is_success() => return answer.json(),
                Ok(answer) => {
                    problem = answer.problem();
                    if let Some(answer) = self.ask_leader(&answer, change).await {
                        return answer.json();
                    }
                }
                Err(unreachable) => problem = unreachable,
            }
            if !problem.code.may_pass() {
                break;
            }
        }
        Err(problem)
    }

    /// The status of the replica that leads and reaches a majority, if there is one.
    pub async fn leader(&self) -> Option<CatalogStatus> {
        for replica in &self.replicas {
            match status_at(&self.env, &self.secret, replica).await {
                Ok(status) if status.role == "leader" => return Some(status),
                _ => {}
            }
        }
        None
    }

    async fn ask_leader(&self, answer: &Answer, change: &MemberChange) -> Option<Answer> {
        let leader = answer.headers.get(LEADER_URL)?.to_str().ok()?;
        let leader = Arc::new(Upstream::remote(&self.env, leader).ok()?);
        self.ask_one(&leader, change).await.ok()
    }

    async fn ask_one(
        &self,
        replica: &Arc<Upstream>,
        change: &MemberChange,
    ) -> Result<Answer, Problem> {
        let context = RequestContext::fresh(&self.env, LIMIT);
        // Asking again is harmless, whatever became of it before.
        let key = IdempotencyKey::random(&self.env);
        let call = Call::new(Method::POST, PATH, context).with_secret(&self.secret);
        let call = call.with_key(&key).with_json(change);
        replica.send(&call, LIMIT).await.map_err(|failure| {
            Problem::unavailable(format!("{} does not answer: {failure}", replica.url()))
        })
    }
}

/// What the catalog server at `url` says of itself.
///
/// # Errors
/// A sentence for people.
pub async fn status_of(env: &Env, secret: &Secret, url: &str) -> Result<CatalogStatus, String> {
    status_at(env, secret, &Arc::new(Upstream::remote(env, url)?)).await
}

async fn status_at(
    env: &Env,
    secret: &Secret,
    replica: &Arc<Upstream>,
) -> Result<CatalogStatus, String> {
    let context = RequestContext::fresh(env, STATUS_LIMIT);
    let call = Call::new(Method::GET, "/status", context).with_secret(secret);
    let answer = replica.send(&call, STATUS_LIMIT).await.map_err(|e| e.to_string())?;
    answer.json().map_err(|problem| problem.to_string())
}
