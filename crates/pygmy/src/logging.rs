//! A server's log: to stderr, for people or as JSON.

use std::io;

use tracing_subscriber::EnvFilter;

use crate::{cli::LogFormat, print::Style};

/// Says how much is logged, as `info` or `pygmy_catalog=debug,info`.
const VARIABLE: &str = "PYGMY_LOG";

/// The consensus library's own account of its work is for its developers: it warns twice for every
/// election that finds no majority, several times a second while a replica is alone.
const DEFAULT: &str = "info,openraft=error";

/// Starts logging. To be called once.
///
/// # Errors
/// `PYGMY_LOG` says nothing that can be followed.
pub(crate) fn start(format: LogFormat) -> anyhow::Result<()> {
    let filter = match std::env::var(VARIABLE) {
        Ok(text) if !text.is_empty() => EnvFilter::try_new(&text).map_err(|e| {
            anyhow::anyhow!(
                "{VARIABLE}={text} is no log filter: {e}; use info or debug, for example"
            )
        })?,
        _ => EnvFilter::new(DEFAULT),
    };
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    // A line that cannot be written, on a full disk or to a reader that is gone, is lost. To say so on
    // stderr, as the library would, would fail as well, and with a panic.
    let subscriber = subscriber.log_internal_errors(false);
    match format {
        LogFormat::Text => subscriber.with_ansi(Style::of_stderr().colours).init(),
        LogFormat::Json => subscriber.json().flatten_event(true).init(),
    }
    end_on_panic();
    Ok(())
}

/// A panic is a mistake of ours, and what it leaves behind is not known: the server ends and is
/// started again, rather than going on with one of its tasks missing.
fn end_on_panic() {
    std::panic::set_hook(Box::new(|info| {
        tracing::error!(%info, "a mistake in the server; it ends");
        std::process::abort();
    }));
}
