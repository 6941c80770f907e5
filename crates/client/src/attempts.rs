use std::{sync::Arc, time::Duration};

use http::StatusCode;
use pygmy_protocol::{Env, Problem, planted};

use crate::{Answer, Call, Failure, Upstream};

/// What several attempts at one call add up to.
///
/// Once an attempt may have had its effect, a refusal of a later one proves nothing, whatever its
/// reason: the earlier one may still be under way and be done after it. Final are then only a success,
/// and the store's word that the key belongs to another request.
#[derive(Debug, Default)]
pub struct Attempts {
    maybe_done: bool,
    last: Option<Answer>,
    reason: Option<String>,
}

impl Attempts {
    /// No attempt yet.
    pub fn new() -> Attempts {
        Attempts::default()
    }

    /// Takes the result of an attempt. `Some` is the final answer, `None` means that another
    /// server may be tried.
    pub fn judge(&mut self, call: &Call, result: Result<Answer, Failure>) -> Option<Answer> {
        match result {
            Err(Failure::Refused(reason) | Failure::NotSent(reason)) => self.reason = Some(reason),
            Err(Failure::Unanswered(reason)) => {
                self.reason = Some(reason);
                self.maybe_done |= !call.is_read();
                if !call.is_repeatable() {
                    return Some(self.unknown());
                }
            }
            Ok(answer) => match answer.status {
                StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => {
                    self.last = Some(answer);
                }
                StatusCode::GATEWAY_TIMEOUT if !call.is_repeatable() => return Some(answer),
                StatusCode::GATEWAY_TIMEOUT => {
                    self.maybe_done |= !call.is_read();
                    self.last = Some(answer);
                }
                // Not from a server of ours, but from something in between.
                status if status.is_server_error() => {
                    self.maybe_done |= !call.is_read();
                    self.reason = Some(format!("the answer was {status}"));
                }
                status
                    if self.maybe_done
                        && !status.is_success()
                        && status != StatusCode::UNPROCESSABLE_ENTITY
                        && !planted!(RefusalAfterUnknown) =>
                {
                    return Some(self.unknown());
                }
                _ => return Some(answer),
            },
        }
        None
    }

    /// The answer when no other server is left, or no time.
    pub fn give_up(self) -> Answer {
        match self.last {
            _ if self.maybe_done => self.unknown(),
            Some(answer) if answer.status != StatusCode::GATEWAY_TIMEOUT => answer,
            _ => {
                let reason = self.reason.unwrap_or_else(|| "no server is known".to_owned());
                Problem::unavailable(format!("no server could take the request: {reason}")).into()
            }
        }
    }

    fn unknown(&self) -> Answer {
        let why = self.reason.as_deref().unwrap_or("the servers do not agree yet");
        let detail = format!("the request may have been done; ask again with the same key ({why})");
        Problem::outcome_unknown(detail).into()
    }
}

/// Sends `call` to one server after the other, each for at most `attempt_limit`, until one gives
/// a final answer. The caller puts them in the order of its preference.
pub async fn call_any(
    env: &Env,
    servers: impl IntoIterator<Item = Arc<Upstream>>,
    call: &Call,
    attempt_limit: Duration,
) -> Answer {
    let mut attempts = Attempts::new();
    for server in servers {
        if call.remaining(env).is_zero() {
            break;
        }
        let result = server.send(call, attempt_limit).await;
        if let Some(answer) = attempts.judge(call, result) {
            return answer;
        }
    }
    attempts.give_up()
}

#[cfg(test)]
mod tests {
    use http::Method;
    use pygmy_protocol::{Code, RequestContext};

    use super::*;

    fn buy(env: &Env) -> Call {
        let context = RequestContext::fresh(env, Duration::from_secs(1));
        Call::new(Method::POST, "/buy/1", context).with_key(&"k".parse().unwrap())
    }

    fn unanswered() -> Result<Answer, Failure> {
        Err(Failure::Unanswered("gone".into()))
    }

    #[test]
    fn a_refusal_after_an_unanswered_attempt_is_unknown() {
        let call = buy(&Env::production());
        // Also those that depend on the server that was asked: its secret, its limits.
        for (refusal, verdict) in [
            (Code::OutOfStock, Code::OutcomeUnknown),
            (Code::UnknownItem, Code::OutcomeUnknown),
            (Code::SecretRequired, Code::OutcomeUnknown),
            (Code::BodyTooLarge, Code::OutcomeUnknown),
            (Code::BadValue, Code::OutcomeUnknown),
            (Code::IdempotencyKeyReused, Code::IdempotencyKeyReused),
        ] {
            let mut attempts = Attempts::new();
            assert!(attempts.judge(&call, unanswered()).is_none());
            let answer = Answer::from(Problem::new(refusal, "no"));
            assert_eq!(attempts.judge(&call, Ok(answer)).unwrap().problem().code, verdict);
        }
    }

    #[test]
    fn a_refusal_of_the_first_attempt_is_final() {
        let call = buy(&Env::production());
        let refusal = Answer::from(Problem::new(Code::SecretRequired, "no"));
        let verdict = Attempts::new().judge(&call, Ok(refusal)).unwrap();
        assert_eq!(verdict.problem().code, Code::SecretRequired);
    }

    #[test]
    fn unsent_is_unavailable_and_unanswered_is_unknown() {
        let call = buy(&Env::production());
        let mut attempts = Attempts::new();
        assert!(attempts.judge(&call, Err(Failure::NotSent("refused".into()))).is_none());
        assert_eq!(attempts.give_up().problem().code, Code::Unavailable);

        let mut attempts = Attempts::new();
        assert!(attempts.judge(&call, unanswered()).is_none());
        assert!(attempts.judge(&call, Err(Failure::NotSent("refused".into()))).is_none());
        assert_eq!(attempts.give_up().problem().code, Code::OutcomeUnknown);
    }

    #[test]
    fn a_change_without_a_key_is_sent_once() {
        let mut call = buy(&Env::production());
        call.headers.clear();
        let mut attempts = Attempts::new();
        let verdict = attempts.judge(&call, unanswered()).unwrap();
        assert_eq!(verdict.problem().code, Code::OutcomeUnknown);
    }

    #[test]
    fn a_read_is_never_unknown() {
        let mut call = buy(&Env::production());
        call.method = Method::GET;
        let mut attempts = Attempts::new();
        assert!(attempts.judge(&call, unanswered()).is_none());
        assert_eq!(attempts.give_up().problem().code, Code::Unavailable);
    }
}
