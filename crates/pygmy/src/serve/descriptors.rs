//! Open files: a server that has none left can neither take a connection nor write its log.
//!
//! Connections are what may be many, so they get a part of what the system allows, and the rest is
//! for files, and for the connections to other servers.

use anyhow::bail;
use pygmy_protocol::http::Limits;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Fewer would not do for the files of a catalog replica and the other servers of a cluster.
const FEWEST: u64 = 256;

/// How many files this process may have open: as many as the system allows.
///
/// # Errors
/// Too few.
pub(super) fn raise() -> anyhow::Result<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // The soft limit is often 1024, for the sake of programs that use select(). Where it may not be
    // raised it has to do.
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_ok();
    let files = if raised { maximum } else { current }.unwrap_or(u64::MAX);
    if files < FEWEST {
        bail!("only {files} open files are allowed here (ulimit -n); a server needs {FEWEST}");
    }
    Ok(files)
}

/// `limits` for a listener that gets so many `quarters` of all open `files` for its connections.
pub(super) fn fit(limits: &Limits, files: u64, quarters: u64) -> Limits {
    let share = usize::try_from(files / 4 * quarters).unwrap_or(usize::MAX);
    Limits { max_connections: limits.max_connections.min(share), ..limits.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_room_for_files() {
        let limits = Limits { max_connections: 20_000, ..Limits::default() };
        assert_eq!(fit(&limits, 1 << 20, 2), limits);
        assert_eq!(fit(&limits, u64::MAX, 3), limits);
        assert_eq!(fit(&limits, 1024, 3).max_connections, 768);
        assert_eq!(fit(&limits, 1024, 1).max_connections, 256);
    }
}
