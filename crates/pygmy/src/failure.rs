//! What went wrong, as one sentence and an exit code.

use std::{fmt, io, process::ExitCode};

use pygmy_client::store::StoreError;
use pygmy_protocol::Code;

/// The store refused, or the command failed.
const REFUSED: u8 = 1;
/// The store cannot be reached, or cannot say whether it did what was asked.
const UNCERTAIN: u8 = 3;

/// A failure that stands in the log already, which goes to stderr as well.
#[derive(Debug)]
pub(crate) struct Logged;

impl fmt::Display for Logged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("see the log")
    }
}

impl std::error::Error for Logged {}

/// Prints `error` to stderr.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    if error.is::<Logged>() {
        return ExitCode::from(REFUSED);
    }
    if is_broken_pipe(error) {
        // Whoever read the output (`| head`) has enough of it.
        return ExitCode::SUCCESS;
    }
    let refusal = error.downcast_ref::<StoreError>();
    match refusal.and_then(advice) {
        Some(advice) => eprintln!("pygmy: {error:#}; {advice}"),
        None => eprintln!("pygmy: {error:#}"),
    }
    let uncertain = refusal.is_some_and(StoreError::is_retryable);
    ExitCode::from(if uncertain { UNCERTAIN } else { REFUSED })
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// What to do about it.
fn advice(error: &StoreError) -> Option<&'static str> {
    let problem = match error {
        StoreError::Unreachable { .. } => {
            return Some("start a store with `pygmy demo`, or name one with --server or --config");
        }
        StoreError::Problem(problem) => problem,
    };
    Some(match problem.code {
        Code::UnknownItem => "`pygmy topics` and `pygmy search TOPIC` show what there is",
        Code::UnknownOrder => "use the number that the buy gave",
        Code::OutOfStock => "try fewer copies, or later",
        Code::CostChanged => "that is in the minor unit of the currency, as --expected-cost is",
        Code::BadCursor => "leave --cursor out to begin at the first page",
        Code::SecretRequired => "name the file with the store's secret with --secret-file",
        Code::Unavailable | Code::TooManyRequests => "nothing was done; try again in a moment",
        _ => return None,
    })
}
