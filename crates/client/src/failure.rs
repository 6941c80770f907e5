/// A call without an answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Nobody listens there: the host is up and the server is not. The request certainly had no
    /// effect.
    #[error("refused: {0}")]
    Refused(String),
    /// The request certainly had no effect.
    #[error("not sent: {0}")]
    NotSent(String),
    /// The request was sent, at least in part: it may have had its effect.
    #[error("no answer: {0}")]
    Unanswered(String),
}
