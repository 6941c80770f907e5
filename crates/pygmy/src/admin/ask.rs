//! Asking many servers at the same time.

use std::time::Duration;

use http::Method;
use pygmy_client::{Answer, Call, Upstream};
use pygmy_protocol::{Code, Env, Problem, RequestContext, http::Secret};
use serde::de::DeserializeOwned;

use crate::config::Part;

/// Servers, with what each said, or why it did not.
pub(super) type Answers<T> = Vec<(Part, Result<T, NoAnswer>)>;

/// Why there is nothing from a server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoAnswer {
    /// It answers, and with a problem.
    #[error("{0}")]
    Problem(Problem),
    /// It does not answer, or nobody understands what.
    #[error("{0}")]
    Failed(String),
}

impl NoAnswer {
    /// Whether it wants another secret.
    pub(super) fn is_secret_required(&self) -> bool {
        matches!(self, NoAnswer::Problem(problem) if problem.code == Code::SecretRequired)
    }
}

impl From<String> for NoAnswer {
    fn from(why: String) -> NoAnswer {
        NoAnswer::Failed(why)
    }
}

/// What those that answered have said.
pub(super) fn answered<T>(answers: &Answers<T>) -> impl Iterator<Item = &T> {
    answers.iter().filter_map(|(_, answer)| answer.as_ref().ok())
}

/// Asks all of them at the same time. `asking` gets a base URL.
pub(super) async fn each<T, F>(
    env: &Env,
    servers: Vec<Part>,
    asking: impl Fn(String) -> F,
) -> Answers<T>
where
    T: Send + 'static,
    F: Future<Output = Result<T, NoAnswer>> + Send + 'static,
{
    let asked: Vec<_> = servers
        .into_iter()
        .map(|part| {
            let task = env.spawn(asking(part.url.clone()));
            (part, task)
        })
        .collect();
    let mut answers = Vec::new();
    for (part, task) in asked {
        answers.push((part, task.await.unwrap_or_else(|error| Err(error.to_string().into()))));
    }
    answers
}

/// Asks all of them for the same document.
pub(super) async fn for_json<T: DeserializeOwned + Send + 'static>(
    env: &Env,
    secret: &Secret,
    servers: Vec<Part>,
    path: &'static str,
    limit: Duration,
) -> Answers<T> {
    each(env, servers, |url| {
        let (env, secret) = (env.clone(), secret.clone());
        async move {
            let answer = get(&env, &secret, &url, path, limit).await?;
            answer.json().map_err(NoAnswer::Problem)
        }
    })
    .await
}

/// One answer, whatever it is.
pub(super) async fn get(
    env: &Env,
    secret: &Secret,
    url: &str,
    path: &str,
    limit: Duration,
) -> Result<Answer, NoAnswer> {
    let context = RequestContext::fresh(env, limit);
    let call = Call::new(Method::GET, path, context).with_secret(secret);
    let answer = Upstream::remote(env, url)?.send(&call, limit).await;
    answer.map_err(|failure| failure.to_string().into())
}
