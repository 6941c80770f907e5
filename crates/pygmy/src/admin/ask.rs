//! Asking many servers at the same time.

use std::time::Duration;

use http::Method;
use pygmy_client::{Answer, Call, Upstream};
use pygmy_protocol::{Env, RequestContext, http::Secret};
use serde::de::DeserializeOwned;

use crate::config::Part;

/// Servers, with what each said, or why it did not.
pub(super) type Answers<T> = Vec<(Part, Result<T, String>)>;

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
    F: Future<Output = Result<T, String>> + Send + 'static,
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
        answers.push((part, task.await.unwrap_or_else(|error| Err(error.to_string()))));
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
            answer.json().map_err(|problem| problem.to_string())
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
) -> Result<Answer, String> {
    let context = RequestContext::fresh(env, limit);
    let call = Call::new(Method::GET, path, context).with_secret(secret);
    let answer = Upstream::remote(env, url)?.send(&call, limit).await;
    answer.map_err(|failure| failure.to_string())
}
