//! Asking the catalog to change its membership: what a new replica, and the operator, do.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use http::Method;
use pygmy_protocol::{
    Code, Env, IdempotencyKey, Problem, RequestContext,
    http::Secret,
    members::{MemberChange, MemberProgress, PATH},
    registration::CatalogStatus,
};

use crate::{Call, Failure, Upstream};

/// Longest wait for the leader. One step of a change is done within it.
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
        let leader = self.find_leader().await?;
        let context = RequestContext::fresh(&self.env, LIMIT);
        // Asking again is harmless, whatever became of it before.
        let key = IdempotencyKey::random(&self.env);
        let call = Call::new(Method::POST, PATH, context).with_secret(&self.secret);
        let call = call.with_key(&key).with_json(change);
        let answer = leader.send(&call, LIMIT).await.map_err(|failure| {
            let detail = format!("{} does not answer: {failure}", leader.url());
            match failure {
                Failure::Unanswered(_) => Problem::outcome_unknown(detail),
                Failure::Refused(_) | Failure::NotSent(_) => Problem::unavailable(detail),
            }
        })?;
        answer.json()
    }

    /// The status of the replica that leads and reaches a majority, if there is one.
    pub async fn leader(&self) -> Option<CatalogStatus> {
        let leader = self.find_leader().await.ok()?;
        status_at(&self.env, &self.secret, &leader).await.ok()
    }

    /// Asks all replicas at once who leads: one whose machine has died may not hold up the others
    /// longer than a status takes, while a change that the leader makes has all its time.
    async fn find_leader(&self) -> Result<Arc<Upstream>, Problem> {
        let ask = |(place, replica)| async move {
            (place, replica, status_at(&self.env, &self.secret, replica).await)
        };
        let mut asking: FuturesUnordered<_> = self.replicas.iter().enumerate().map(ask).collect();
        let (mut said, mut named) = (BTreeMap::new(), None);
        while let Some((place, replica, answer)) = asking.next().await {
            match &answer {
                Ok(status) if status.role == "leader" => return Ok(Arc::clone(replica)),
                Ok(status) => named = named.or_else(|| self.unknown_leader(status)),
                // The others have the same one.
                Err(problem) if problem.code == Code::SecretRequired => {
                    return Err(problem.clone());
                }
                Err(_) => {}
            }
            said.insert(place, self_portrait(replica, answer));
        }
        // Not before all have been asked: whoever is cut off may name one that is long gone.
        if let Some(leader) = named {
            return Ok(leader);
        }
        let said = match said.is_empty() {
            true => "none is known".to_owned(),
            false => said.into_values().collect::<Vec<_>>().join(", "),
        };
        Err(Problem::unavailable(format!("no catalog replica leads: {said}")))
    }

    /// The leader that `status` names, unless it is asked itself: then only its own word counts.
    fn unknown_leader(&self, status: &CatalogStatus) -> Option<Arc<Upstream>> {
        let name = status.leader.as_ref()?;
        let leader = status.members.iter().find(|member| member.voter && member.name == *name)?;
        if self.replicas.iter().any(|replica| replica.url() == leader.url) {
            return None;
        }
        Upstream::remote(&self.env, &leader.url).map(Arc::new).ok()
    }
}

/// What a replica that does not lead said of itself, for people.
fn self_portrait(replica: &Upstream, answer: Result<CatalogStatus, Problem>) -> String {
    match answer {
        Ok(CatalogStatus { name, leader: Some(leader), .. }) => format!("{name} follows {leader}"),
        Ok(CatalogStatus { name, role, .. }) if role == "blank" => format!("{name} is blank"),
        Ok(CatalogStatus { name, .. }) => format!("{name} knows no leader"),
        Err(problem) => format!("{} does not answer ({})", replica.url(), problem.detail),
    }
}

/// What the catalog server at `url` says of itself.
///
/// # Errors
/// A sentence for people.
pub async fn status_of(env: &Env, secret: &Secret, url: &str) -> Result<CatalogStatus, String> {
    let status = status_at(env, secret, &Arc::new(Upstream::remote(env, url)?)).await;
    status.map_err(|problem| problem.to_string())
}

async fn status_at(
    env: &Env,
    secret: &Secret,
    replica: &Arc<Upstream>,
) -> Result<CatalogStatus, Problem> {
    let context = RequestContext::fresh(env, STATUS_LIMIT);
    let call = Call::new(Method::GET, "/status", context).with_secret(secret);
    let answer = replica.send(&call, STATUS_LIMIT).await;
    answer.map_err(|failure| Problem::unavailable(failure.to_string()))?.json()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{Asked, answer, environment};

    const SILENT: Duration = Duration::from_secs(3600);

    /// `a` is silent, `b` follows `d`, `c` leads, `d` leads as well, `e` is blank, and `f` wants another
    /// secret.
    fn world() -> Env {
        environment(|_, Asked { authority, request }| {
            let name = authority.trim_end_matches(":80");
            let said = match (name, request.starts_with("POST /members ")) {
                ("a", _) => return (SILENT, String::new()),
                ("c", true) => answer(200, r#"{"done":true,"detail":"c did it"}"#),
                ("d", true) => answer(
                    409,
                    r#"{"type":"x","title":"x","status":409,"detail":"d refuses","code":"membership_refused"}"#,
                ),
                ("b", false) => answer(200, &status("b", "follower", Some("d"))),
                ("c" | "d", false) => answer(200, &status(name, "leader", Some(name))),
                ("e", false) => answer(200, &status("e", "blank", None)),
                ("f", false) => answer(
                    401,
                    r#"{"type":"x","title":"x","status":401,"detail":"no","code":"secret_required"}"#,
                ),
                _ => answer(500, ""),
            };
            (Duration::from_millis(1), said)
        })
    }

    fn status(name: &str, role: &str, leader: Option<&str>) -> String {
        let member = |name| {
            json!({ "id": 1, "name": name, "url": format!("http://{name}"), "voter": true,
                    "answers": true })
        };
        let members = ["a", "b", "c", "d"].map(member);
        let status = json!({
            "name": name, "id": 1, "role": role, "term": 1, "leader": leader, "lastLogIndex": 0,
            "appliedIndex": 0, "purgedIndex": 0, "snapshotIndex": 0, "releasedIndex": 0,
            "stateHash": "0", "orders": 0, "frontEnds": [], "members": members,
        });
        status.to_string()
    }

    /// What comes of the wish, and how long it took.
    async fn ask(replicas: &[&str]) -> (Result<MemberProgress, Problem>, Duration) {
        let env = world();
        let urls: Vec<_> = replicas.iter().map(|name| format!("http://{name}")).collect();
        let members = Members::new(&env, &urls, Secret::new("0123456789abcdef").unwrap()).unwrap();
        let begun = env.now();
        let asked = members.ask(&MemberChange::Lead { name: "c".to_owned() }).await;
        (asked, env.now().saturating_since(begun))
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_replica_does_not_hold_up_the_way_to_the_leader() {
        let (asked, took) = ask(&["a", "c"]).await;
        assert_eq!(asked.unwrap().detail, "c did it");
        assert!(took < Duration::from_millis(100), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_only_the_others_know_is_asked_and_its_refusal_counts() {
        let (asked, took) = ask(&["a", "b"]).await;
        let problem = asked.unwrap_err();
        assert_eq!((problem.code, &*problem.detail), (Code::MembershipRefused, "d refuses"));
        assert!(took <= STATUS_LIMIT + Duration::from_millis(100), "{took:?}");
        assert_eq!(ask(&["b", "c"]).await.0.unwrap().detail, "c did it", "its own word counts");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_leader_each_says_how_it_is_and_no_status_takes_long() {
        let (asked, took) = ask(&["a", "e", "nobody"]).await;
        let problem = asked.unwrap_err();
        assert_eq!(problem.code, Code::Unavailable);
        let (a, rest) = problem.detail.split_once("), ").unwrap();
        assert!(a.starts_with("no catalog replica leads: http://a does not answer ("), "{a}");
        assert!(rest.starts_with("e is blank, http://nobody does not answer (refused"), "{rest}");
        assert!(took <= STATUS_LIMIT + Duration::from_millis(100), "{took:?}");
        let (refused, took) = ask(&["a", "f"]).await;
        assert_eq!(refused.unwrap_err().code, Code::SecretRequired);
        assert!(took < Duration::from_millis(100), "{took:?}");
        let problem = ask(&[]).await.0.unwrap_err();
        assert_eq!(&*problem.detail, "no catalog replica leads: none is known");
    }
}
